"""The options that several commands share, and what they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, final, get_type_hints

import typer

from guidedq.budget import parse_budget
from guidedq.errors import BudgetError

DATA = "Data"
SEARCH = "What may be chosen"
WRITTEN = "How it is written"
WORK = "How it runs"


class ScopeName(StrEnum):
    """What a budget counts."""

    FILE = "file"
    LINEAR = "linear"


class ActivationsName(StrEnum):
    """How activations meet weights."""

    NONE = "none"
    DYNAMIC = "dynamic"
    STATIC = "static"
    INT8 = "int8"


class ObjectiveName(StrEnum):
    """What is made small within the budget, besides the loss."""

    SIZE = "size"
    LATENCY = "latency"


class EffortName(StrEnum):
    """How much time rounding may take."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"


class CastName(StrEnum):
    """How tensors that are not quantized are stored."""

    NONE = "none"
    FP16 = "fp16"
    BF16 = "bf16"


class OnnxLayoutName(StrEnum):
    """What lies in the folder of an ONNX file."""

    PLAIN = "plain"
    GENAI = "genai"


class OnnxStyleName(StrEnum):
    """How an ONNX file holds quantized weights."""

    NATIVE = "native"
    QDQ = "qdq"
    BAKED = "baked"


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, an .onnx or .pt2 file, a name on the hub, or demo.")
]
BudgetOption = Annotated[
    str,
    typer.Option(
        "--budget",
        "-b",
        metavar="BUDGET",
        help="3.5bits (all bytes over all parameters), 120MB, or the smallest file that loses at most +0.02nats, 1.02x "
        "(perplexity), -0.5% (accuracy, with labels) or +0.01error (of encoders).",
    ),
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        metavar="FILE",
        rich_help_panel=DATA,
        help="Calibration data: .txt, .jsonl, .npz, .safetensors, or a folder of these. May be repeated. "
        "Without it a language model writes its own.",
    ),
]
EvaluationOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--eval-data",
        metavar="FILE",
        rich_help_panel=DATA,
        help="Evaluation data; without it, a tenth of --data is held back.",
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        "--samples",
        min=1,
        rich_help_panel=DATA,
        help="Calibration samples. Default: 64 sequences, or 256 of others.",
    ),
]
LengthOption = Annotated[
    int | None,
    typer.Option("--sequence-length", min=1, rich_help_panel=DATA, help="Tokens of a sequence. Default: 512."),
]
SeedOption = Annotated[int, typer.Option("--seed", rich_help_panel=DATA, help="Seeds every draw.")]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend", metavar="torch|onnx", help="What to write. Default: torch for a Hugging Face model, else onnx."
    ),
]
ActivationsOption = Annotated[
    ActivationsName | None,
    typer.Option(
        "--activations",
        rich_help_panel=SEARCH,
        help="ONNX: compute in integers, with ranges from the calibration data (static) or of each call (dynamic). "
        "PyTorch: round inputs of linear layers (int8), for faster kernels. Default: none.",
    ),
]
ObjectiveOption = Annotated[
    ObjectiveName,
    typer.Option(
        "--objective",
        rich_help_panel=SEARCH,
        help="ONNX: latency makes the model fast as well, by kernel times measured here or read from --profile.",
    ),
]
MaxLatencyOption = Annotated[
    str | None,
    typer.Option(
        "--max-latency",
        metavar="RATIO",
        rich_help_panel=SEARCH,
        help="The least loss in at most this share of the original's time: 0.6x. Default with --objective latency: the "
        "fastest that loses at most half more than the best of this size.",
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FILE",
        rich_help_panel=SEARCH,
        help="Kernel times by `guidedq profile`, of another machine say. Default: the model's are measured here.",
    ),
]
MinBitsOption = Annotated[
    int | None,
    typer.Option(
        "--min-bits",
        rich_help_panel=SEARCH,
        help="Narrowest codes. Default: 1 by entropy, else 2.",
    ),
]
MaxBitsOption = Annotated[
    int | None,
    typer.Option("--max-bits", rich_help_panel=SEARCH, help="Widest codes. Default: 8."),
]
ScopeOption = Annotated[
    ScopeName | None,
    typer.Option(
        "--scope",
        rich_help_panel=SEARCH,
        help="What the budget counts: the whole file, or only linear and convolution weights (the rest is left alone).",
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="PATTERN",
        rich_help_panel=SEARCH,
        help="Leave these sites alone: *.lm_head.*. May be repeated.",
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        rich_help_panel=SEARCH,
        help="default, nearest, gptq, guided-uniform, article, a TOML file, or the report.json of a compile.",
    ),
]
EffortOption = Annotated[
    EffortName | None,
    typer.Option(
        "--effort",
        rich_help_panel=SEARCH,
        help="How much time rounding may take. Default: as the recipe says, which is standard but for PTQ baselines.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="STAGE.OPTION=VALUE",
        rich_help_panel=SEARCH,
        help="Change the recipe: round.damping-fraction=0.02, guide=hessian, group-sizes=32,64. May be repeated. "
        "`guidedq stages` lists all.",
    ),
]
CastOption = Annotated[
    CastName | None,
    typer.Option(
        "--cast",
        rich_help_panel=WRITTEN,
        help="ONNX: store what is not quantized (norms, biases) in 16 bits; what is out of range stays in float32. "
        "Default: none.",
    ),
]
OnnxLayoutOption = Annotated[
    OnnxLayoutName | None,
    typer.Option(
        "--onnx-layout",
        rich_help_panel=WRITTEN,
        help="genai: a language model with a cache, genai_config.json and the tokenizer, for ONNX Runtime GenAI. "
        "Default: plain.",
    ),
]
OnnxStyleOption = Annotated[
    OnnxStyleName | None,
    typer.Option(
        "--onnx-style",
        rich_help_panel=WRITTEN,
        help="native: unpacked while ONNX Runtime loads it, the smallest file. qdq: behind DequantizeLinear, for other "
        "runtimes too. baked: unpacked already, the fastest to load. Default: native.",
    ),
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="DIR",
        rich_help_panel=WORK,
        help="Where measured things are kept for the next budget. Default: the user's cache folder.",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory", metavar="SIZE", rich_help_panel=WORK, help="Bound on the statistics held at once: 2GB."
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, rich_help_panel=WORK, help="CPU threads; of --objective latency, too.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Write the plot: a .png, .svg or .pdf file.")
]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """The options that `compile`, `plan` and `compare` share, and what the user said."""

    data: DataOption = None
    eval_data: EvaluationOption = None
    samples: SamplesOption = None
    sequence_length: LengthOption = None
    seed: SeedOption = 0
    backend: BackendOption = None
    activations: ActivationsOption = None
    objective: ObjectiveOption = ObjectiveName.SIZE
    max_latency: MaxLatencyOption = None
    profile: ProfileOption = None
    min_bits: MinBitsOption = None
    max_bits: MaxBitsOption = None
    scope: ScopeOption = None
    keep: KeepOption = None
    recipe: RecipeOption = "default"
    effort: EffortOption = None
    set: SetOption = None
    onnx_style: OnnxStyleOption = None
    onnx_layout: OnnxLayoutOption = None
    cast: CastOption = None
    workspace: WorkspaceOption = None
    max_memory: MemoryOption = None
    threads: ThreadsOption = None

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of `guidedq.api`'s functions.

        Raises:
            BudgetError: `max_memory` is not a size in bytes.
        """
        return {
            "data": self.data or (),
            "eval_data": self.eval_data or (),
            "samples": self.samples,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "backend": self.backend,
            "activations": None if self.activations is None else self.activations.value,
            "objective": self.objective.value,
            "max_latency": self.max_latency,
            "profile": self.profile,
            "threads": self.threads,
            "recipe": self.recipe,
            "effort": None if self.effort is None else self.effort.value,
            "settings": self.settings(),
            "workspace": self.workspace,
            "max_memory": None if self.max_memory is None else memory_bytes(self.max_memory),
        }

    def changed(self) -> list[str]:
        """The options that the user gave another value than the default, as they are spelled."""
        return [field.name.replace("_", "-") for field in fields(self) if getattr(self, field.name) != field.default]

    def settings(self) -> list[str]:
        """The options that change the recipe or the backend, as settings; those of --set come last and win."""
        options = {
            "min-bits": self.min_bits,
            "max-bits": self.max_bits,
            "scope": self.scope,
            "keep": ",".join(self.keep) if self.keep else None,
            "onnx-style": self.onnx_style,
            "onnx-layout": self.onnx_layout,
            "cast": self.cast,
        }
        named = [f"{name}={value}" for name, value in options.items() if value is not None]
        return [*named, *(self.set or ())]


def with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes every option of `JobOptions` where `command` takes them as one, named `options`."""
    hints = get_type_hints(JobOptions, include_extras=True)
    shared = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(JobOptions)
    ]
    own = [
        parameter.replace(kind=Parameter.KEYWORD_ONLY)
        for name, parameter in signature(command, eval_str=True).parameters.items()
        if name != "options"
    ]

    def flat(**given: Any) -> None:
        options = JobOptions(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(**given, options=options)

    flat.__name__, flat.__doc__ = command.__name__, command.__doc__
    flat.__dict__["__signature__"] = Signature([*own, *shared])
    return flat


def memory_bytes(text: str) -> int:
    """Read `2GB`.

    Raises:
        BudgetError: it is no size in bytes.
    """
    size = parse_budget(text)
    if size.kind != "bytes":
        raise BudgetError(f"--max-memory {text}: expected a size in bytes, such as 2GB.")
    return int(size.amount)
