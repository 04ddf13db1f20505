"""The face for Python: `compile`, `plan`, `check`, `verify`, `load`, `load_quantized`. The command line uses it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidedq.artifacts.profile import Profile
from guidedq.artifacts.report import PlanPoint, Report, read_report
from guidedq.budget import parse_budget
from guidedq.checking.verification import Verification, verify_artifact
from guidedq.compiler import Artifact, compile_model, plan_model
from guidedq.driver.gates import Gates
from guidedq.driver.profiling import own_profile
from guidedq.errors import ArtifactError, BudgetError
from guidedq.frontend import load
from guidedq.ir.model import Model
from guidedq.nested_compiler import compile_nested
from guidedq.output import check_file
from guidedq.progress import Progress, SilentProgress
from guidedq.quant.nested import parse_widths
from guidedq.recipe import Recipe
from guidedq.registry import build_stage, parse_stage
from guidedq.report.policy import Policy, PolicyResult, check_policy, read_policy
from guidedq.request import PathLike, make_job, paths_of
from guidedq.schedules.precision import at_precision, precisions, set_precision
from guidedq.stages import AbstractBackend
from guidedq.workspace import default_workspace


def compile(
    model: Model | PathLike,
    *,
    budget: str | None = None,
    nested: str | Sequence[int] | None = None,
    data: PathLike | Sequence[PathLike] = (),
    backend: str | AbstractBackend | None = None,
    activations: str | None = None,
    objective: str = "size",
    max_latency: str | float | None = None,
    profile: PathLike | None = None,
    threads: int | None = None,
    out: PathLike | None = None,
    recipe: str | Recipe = "default",
    effort: str | None = None,
    settings: Sequence[str] = (),
    eval_data: PathLike | Sequence[PathLike] = (),
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    workspace: PathLike | None = None,
    max_memory: int | None = None,
    max_loss_increase: float | None = None,
    strict: bool = False,
    training_tokens: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a trained model within a budget.

    Args:
        model: A loaded model, or what `load` takes: a folder, an `.onnx` or `.pt2` file, a hub name, `"demo"`.
        budget: `"3.5bits"` (all bytes of the weights file over all parameters), `"120MB"`, or for the smallest file
            that loses no more: `"+0.02nats"`, `"1.02x"` (perplexity), `"-0.5%"` (points of accuracy, with labels), or
            `"+0.01error"` where the output is no distribution (half its relative squared error).
        nested: Instead: the widths of one artifact that can be read at each of them, `"3,4,5"`. A budget then bounds
            the size of the whole file, and may be left out.
        data: Calibration data: .txt, .jsonl, .npz, .safetensors, or folders of these.
        backend: `"torch"`, `"onnx"`, with options in braces; by default the one that fits the model's source.
        out: Folder to write; by default `<model>-<budget>` in the working directory.
        activations: `"none"`, `"dynamic"` or `"static"` of the ONNX backend, `"none"` or `"int8"` of the torch backend;
            by default as the backend says.
        objective: `"size"`, or `"latency"` for ONNX files: what is chosen is to be fast as well, by the kernels' times.
        max_latency: Under the objective `latency`, which it implies: the least loss in at most this share of the
            original's time, `"0.6x"`; by default the fastest that loses little more (`speed-budget` of the recipe).
        profile: A file of kernel times that `profile` wrote, on another machine say; by default the model's are
            measured here.
        threads: That ONNX Runtime is timed with; 1 by default.
        recipe: A recipe, its name, a TOML file, or the `report.json` of a compile.
        effort: How much time rounding may take: `"quick"`, `"standard"`, `"thorough"`; by default as the recipe says.
        settings: Changes to it, `"round.damping-fraction=0.02"`.
        eval_data: Evaluation data; a tenth of `data` is held back if empty.
        samples: Calibration samples.
        sequence_length: Tokens per sequence.
        seed: Seeds every draw.
        workspace: Where measured things are kept; the user's cache folder by default.
        max_memory: Bound in bytes on the statistics held at once.
        max_loss_increase: A gate, in the objective's unit; of a nested artifact at each precision.
        strict: A gate too: no diagnostic may warn; of a nested artifact at any precision.
        training_tokens: What the model was trained on, if known, for a diagnostic.
        overwrite: Replace `out` if it exists.
        progress: Told about the work.

    Returns:
        The artifact: its folder and its report.

    Raises:
        GuidedQError: whatever is wrong with the input; `GateError` if the gate, or a budget for loss, was missed.
    """
    if budget is None and nested is None:
        raise BudgetError("nothing is asked for: give a budget, such as 3.5bits, or nested widths, such as 3,4,5.")
    asked = None if budget is None else parse_budget(budget)
    widths = _widths(nested)
    job = make_job(
        model,
        data=data,
        backend=backend,
        activations=activations,
        objective=objective,
        max_latency=max_latency,
        profile=profile,
        threads=threads,
        recipe=recipe,
        effort=effort,
        settings=settings,
        eval_data=eval_data,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
        workspace=workspace,
        max_memory=max_memory,
        progress=progress,
    )
    named = f"nested{'-'.join(map(str, widths))}" if asked is None else asked.text.strip().replace(" ", "")
    target = Path(out) if out is not None else Path(f"{job.model.name}-{named}")
    gates = Gates(largest_loss_increase=max_loss_increase, strict=strict)
    if asked is None or widths:
        return compile_nested(
            job, widths, asked, target, overwrite=overwrite, gates=gates, training_tokens=training_tokens
        )
    return compile_model(job, asked, target, overwrite=overwrite, gates=gates, training_tokens=training_tokens)


def plan(model: Model | PathLike, *, budgets: Sequence[str] = (), **options: Any) -> tuple[PlanPoint, ...]:
    """The forecast at each budget, smallest file first in the order given; writes nothing but the workspace.

    Args:
        model: As for `compile`.
        budgets: As `budget` of `compile`; without any, the feasible ones of 2.25 to 8 bits.
        **options: As for `compile`, without those that concern the output.

    Raises:
        GuidedQError: whatever is wrong with the input.
    """
    asked = [parse_budget(budget) for budget in budgets]
    return plan_model(make_job(model, **options), asked)


def profile(
    model: PathLike | None = None,
    *,
    out: PathLike | None = None,
    overwrite: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Path, Profile]:
    """Measure ONNX Runtime's kernels on this machine, and write them as TOML.

    Args:
        model: An `.onnx` file whose shapes are measured; without it, a grid of shapes.
        out: The file; by default one in the user's cache folder, named after the model.
        overwrite: Replace the file if it exists.
        threads: That the runtime is given.
        progress: Told about the work.
        **options: `data`, `sequence_length` and `workspace`, as for `compile`.

    Returns:
        The file and what lies in it.

    Raises:
        OutputError: the file exists.
        GuidedQError: whatever is wrong with the input.
    """
    name = f"{Path(model).stem if model is not None else 'machine'}-{threads}-threads.toml"
    path = Path(out) if out is not None else default_workspace() / "profiles" / name
    check_file(path, overwrite=overwrite)
    if model is None:
        timer = parse_stage("onnx", "backend").timer()
        measured = timer.profile(timer.grid(), threads=threads, progress=progress or SilentProgress())
    else:
        job = make_job(model, backend="onnx", objective="latency", threads=threads, progress=progress, **options)
        measured = own_profile(job)
    measured.write(path)
    return path, measured


def load_quantized(folder: PathLike, *, activations: str | None = None) -> Any:
    """Load an artifact: a torch module that runs (and generates, for a language model), or an ONNX Runtime session.

    Args:
        folder: What `compile` wrote.
        activations: `"int8"`: a torch module's linear layers round what they multiply, which is faster; by default as
            the folder says, which `compile --activations int8` wrote.

    Raises:
        ArtifactError: it is no artifact, damaged, or from a newer version; or cannot be read so.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ArtifactError(f"{path} is no folder. Expected one that guidedq compile wrote.")
    kind = "torch" if (path / "manifest.json").exists() else "onnx" if (path / "model.onnx").exists() else None
    if kind is None:
        raise ArtifactError(
            f"{path} holds neither manifest.json nor model.onnx. Expected a folder that guidedq compile wrote."
        )
    if activations is not None and kind == "onnx":
        raise ArtifactError(f"{path} is an ONNX file: how it rounds activations was settled by compile --activations.")
    options = {} if activations is None else {"activations": activations}
    backend: AbstractBackend = build_stage(kind, "backend", options)
    return backend.load(path)


def check(report: Report | PathLike, policy: Policy | PathLike) -> PolicyResult:
    """Hold a report against a policy; the result says whether it is `met`.

    Args:
        report: A report, a `report.json`, or an artifact's folder.
        policy: A policy, or a TOML file.

    Raises:
        ArtifactError: the report cannot be read.
        PolicyError: the policy cannot be read, or asks for what there is not.
    """
    read = report if isinstance(report, Report) else read_report(Path(report))
    return check_policy(read, policy if isinstance(policy, Policy) else read_policy(Path(policy)))


def verify(
    folder: PathLike,
    *,
    model: PathLike | None = None,
    data: PathLike | Sequence[PathLike] = (),
    eval_data: PathLike | Sequence[PathLike] = (),
    workspace: PathLike | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check every file of an artifact by its digest, and measure it again on the samples of its report.

    Args:
        folder: What `compile` wrote.
        model: The original, if it is not where the report says.
        data: What `compile` was given, if it is not where the report says.
        eval_data: The same of its evaluation data.
        workspace: Where samples are kept; the user's cache folder by default.
        progress: Told about the work.

    Returns:
        The numbers of the report and those measured, and whether they agree.

    Raises:
        ArtifactError: a file is missing, truncated, altered, or from a newer version.
        GuidedQError: the model or the data are not those of the report.
    """
    return verify_artifact(
        Path(folder),
        model,
        paths_of(data),
        paths_of(eval_data),
        workspace=Path(workspace) if workspace is not None else default_workspace(),
        progress=progress or SilentProgress(),
    )


def _widths(nested: str | Sequence[int] | None) -> tuple[int, ...]:
    """The widths that are asked for; none without nesting.

    Raises:
        FormatError: they cannot be nested.
    """
    if nested is None:
        return ()
    return parse_widths(nested if isinstance(nested, str) else ",".join(map(str, nested)))


__all__ = [
    "Artifact",
    "at_precision",
    "check",
    "compile",
    "load",
    "load_quantized",
    "plan",
    "precisions",
    "profile",
    "set_precision",
    "verify",
]
