"""What the user said, resolved into a job: stages by name, the sampler that fits, the graph rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from guidedq.backend_settings import with_backend_settings
from guidedq.driver.job import Job, latency_goal
from guidedq.errors import CalibrationError, OutputError
from guidedq.frontend import DEMO, load
from guidedq.ir.model import Model, Objective, check_sites
from guidedq.progress import Progress, SilentProgress
from guidedq.recipe import Recipe, effort_settings, load_recipe
from guidedq.registry import available, parse_stage
from guidedq.sampling import check_data, named_sampler
from guidedq.stages import AbstractBackend, AbstractRewrite, AbstractSampler
from guidedq.workspace import Workspace, default_workspace

PathLike = str | Path


def make_job(
    model: Model | PathLike,
    *,
    data: PathLike | Sequence[PathLike] = (),
    backend: str | AbstractBackend | None = None,
    activations: str | None = None,
    objective: str = "size",
    max_latency: str | float | None = None,
    profile: PathLike | None = None,
    threads: int | None = None,
    recipe: str | Recipe = "default",
    effort: str | None = None,
    settings: Sequence[str] = (),
    eval_data: PathLike | Sequence[PathLike] = (),
    samples: int | None = None,
    sequence_length: int | None = None,
    sampler: AbstractSampler | None = None,
    seed: int = 0,
    workspace: PathLike | None = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Job:
    """Resolve what the user said into a job: stages by name, the sampler that fits, the graph rewritten."""
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    goal = latency_goal(objective, max_latency, profile, threads)
    files, evaluation = paths_of(data), paths_of(eval_data)
    check_data((*files, *evaluation))
    root = Path(workspace) if workspace is not None else default_workspace()
    if root.is_file():
        raise OutputError(f"the workspace {root} is a file. Name a folder with --workspace.")
    is_demo = isinstance(model, str) and model == DEMO
    loaded = model if isinstance(model, Model) else load(model)
    check_sites(loaded)
    told = progress or SilentProgress()
    for notice in loaded.notices:
        told.notice(notice)
    writer: AbstractBackend = backend if isinstance(backend, AbstractBackend) else _backend(backend, loaded)
    asked = settings if activations is None else [f"activations={activations}", *settings]
    writer, changes = with_backend_settings(writer, asked)
    if goal is not None:
        writer.timer(loaded)  # refuses here, before any work, what cannot be timed
    chosen = recipe.with_settings([*(effort_settings(effort) if effort is not None else ()), *changes])
    job = Job(
        model=_rewritten(loaded, chosen, writer),
        backend=writer,
        recipe=chosen,
        sampler=sampler or _sampler(loaded, files, is_demo, samples, sequence_length),
        data=files,
        evaluation_data=evaluation,
        seed=seed,
        workspace=Workspace(root=root),
        memory_bytes=max_memory,
        latency=goal,
        progress=told,
    )
    if idle := chosen.idle_options(job.entropy_code):
        told.notice(
            f"{', '.join(idle)}: of fixed widths alone, and up to 6 bits codes are stored by their entropy here; "
            "--set coding=fixed makes them all fixed."
        )
    return job


def _backend(text: str | None, model: Model) -> AbstractBackend:
    return parse_stage(text or ("torch" if model.source == "hugging_face" else "onnx"), "backend")


def _sampler(
    model: Model, data: Sequence[Path], is_demo: bool, samples: int | None, sequence_length: int | None
) -> AbstractSampler:
    if data:
        name: Literal["files", "demo", "generated"] = "files"
    elif is_demo:
        name = "demo"
    elif model.objective is Objective.LANGUAGE_MODEL and model.program.differentiable:
        name = "generated"
    else:
        wanted = ", ".join(
            f"{spec.name} {list(spec.shape)} {spec.dtype}".replace("None", "any") for spec in model.inputs
        )
        raise CalibrationError(
            f"{model.name} needs calibration data: pass --data with an .npz or .safetensors file of inputs ({wanted})"
            + (", or text." if model.tokenizer is not None else ".")
        )
    return named_sampler(name, samples, sequence_length)


def _rewritten(model: Model, recipe: Recipe, backend: AbstractBackend) -> Model:
    """Apply the graph passes: keep what the user wants kept and what is out of scope, fuse what the runtime fuses."""
    rewrites = available("rewrite")
    passes: list[AbstractRewrite] = []
    if recipe.keep:
        passes.append(rewrites["keep"](patterns=recipe.keep))
    if recipe.scope == "linear":
        passes.append(rewrites["scope"]())
    graph = model.graph
    for rewrite in passes:
        graph = rewrite.rewrite(graph)
    if groups := backend.fuses(graph):
        graph = rewrites["fuse"](groups=tuple(map(tuple, groups))).rewrite(graph)
    return model.with_graph(graph)


def paths_of(paths: PathLike | Sequence[PathLike]) -> tuple[Path, ...]:
    """One path or several, as a tuple."""
    return (Path(paths),) if isinstance(paths, str | Path) else tuple(map(Path, paths))
