"""From a Hugging Face folder to a Model, through transformers; no code from the folder is ever run."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from guidedq.errors import ModelError
from guidedq.frontend.checkpoint import Checkpoint, open_checkpoint
from guidedq.frontend.experts import is_routed, split_experts
from guidedq.frontend.transformer_inputs import Inputs, possible_inputs
from guidedq.frontend.transformer_module import LanguageModelModule, TransformerModule, expose_lookups, main_output
from guidedq.ir.graph import Graph, Storage, UseKind
from guidedq.ir.lifting import WeightedModule, lift, trial_batch
from guidedq.ir.model import Model, Objective
from guidedq.ir.program import TorchProgram

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer_config.json",
)
LONGEST_TOKENIZER_LIMIT = 1_000_000
"""Tokenizers without a limit of their own state a huge number; anything above this is none."""
KNOWN_FORWARDS = {
    nn.Linear.forward: (UseKind.LINEAR, Storage.OUT_IN),
    Conv1D.forward: (UseKind.LINEAR, Storage.IN_OUT),
    nn.Embedding.forward: (UseKind.EMBEDDING, Storage.OUT_IN),
    nn.Conv1d.forward: (UseKind.CONVOLUTION, Storage.OUT_IN),
    nn.Conv2d.forward: (UseKind.CONVOLUTION, Storage.OUT_IN),
}
"""How a module applies its weight, by the forward it runs. Of subclasses with a forward of their own, linear layers
whose forward gives the same are understood, no others."""
LANGUAGE_MODELS = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
CLASSIFIERS = (
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
)
"""Tables of transformers, from a type of model to the name of its class, or to several names."""


def load_hugging_face(path: Path) -> Model:
    """Load a folder as Hugging Face writes it: config.json, safetensors, maybe a tokenizer.

    The class is the one that the configuration names; weights are float32 and frozen.

    Raises:
        ModelError: the folder is unusable (see `open_checkpoint`), the class is unknown, weights are missing,
            unexpected or of another shape, or the model does not run.
    """
    checkpoint = open_checkpoint(path)
    leaf = _model_class(checkpoint)
    with _quiet():
        whole = _load_weights(checkpoint, leaf)
        tokenizer, notices = _tokenizer(path)
    expose_lookups(whole)
    split_experts(whole)
    constants = {"use_cache": False} if "use_cache" in inspect.signature(whole.forward).parameters else {}
    inputs, output = _inputs_that_run(whole, constants)
    objective = _objective(whole, inputs, output)
    decoder_only = objective is Objective.LANGUAGE_MODEL and [spec.name for spec in inputs] == ["input_ids"]
    module = (LanguageModelModule if decoder_only else TransformerModule)(whole, constants)
    module.eval().requires_grad_(False)
    graph, found = lift(module, weighted_modules(module), trial_batch(inputs))
    embedding = _token_embedding(whole, inputs)
    return Model(
        name=path.resolve().name,
        path=path,
        source="hugging_face",
        digest=checkpoint.digest,
        graph=graph if objective is not Objective.VALUES else replace(graph, head=None),
        program=TorchProgram(module=module),
        objective=objective,
        inputs=inputs,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        tokenizer=tokenizer,
        vocabulary_size=embedding.num_embeddings if embedding is not None else None,
        context_length=_context_length(whole.config, tokenizer) if embedding is not None else None,
        notices=(*notices, *found, *_left_alone(module, graph)),
    )


def weighted_modules(module: nn.Module) -> Mapping[str, WeightedModule]:
    """The submodules whose way of applying their weight is known."""
    found: dict[str, WeightedModule] = {}
    for name, part in module.named_modules():
        known = KNOWN_FORWARDS.get(nn.Linear.forward if _is_linear(part) else type(part).forward)
        if known and isinstance(part.weight, nn.Parameter):
            groups = part.groups if isinstance(part, (nn.Conv1d, nn.Conv2d)) else 1
            parameter = f"{name}.weight" if name else "weight"
            found[name] = WeightedModule(
                parameter=parameter,
                kind=known[0],
                storage=known[1],
                input_groups=groups,
                routed=is_routed(module, name),
            )
    return found


def _is_linear(part: nn.Module) -> bool:
    """Whether it is a linear layer that does with a trial input what any does, in words of its own (Falcon's)."""
    if not isinstance(part, nn.Linear) or not isinstance(part.weight, nn.Parameter):
        return False
    if type(part).forward is nn.Linear.forward:
        return True
    trial = torch.randn(3, part.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            result: Any = part(trial)
        except Exception:  # the part's own code runs here: anything can be raised
            return False
        return isinstance(result, Tensor) and torch.allclose(
            result, nn.Linear.forward(part, trial), rtol=1e-4, atol=1e-5
        )


@contextmanager
def _quiet() -> Generator[None]:
    """Keep transformers from drawing bars and tables: what matters is raised or becomes a notice."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _model_class(checkpoint: Checkpoint) -> Any:
    names = checkpoint.config.get("architectures")
    if not isinstance(names, list) or not names:
        raise ModelError(
            f"{checkpoint.folder / 'config.json'} names no architecture. Add the class that wrote it, for instance "
            '"architectures": ["LlamaForCausalLM"].'
        )
    leaf = getattr(transformers, str(names[0]), None)
    if not (inspect.isclass(leaf) and issubclass(leaf, transformers.PreTrainedModel)):
        raise ModelError(
            f"{checkpoint.folder}: transformers {transformers.__version__} has no model class {names[0]!r}, and code "
            "from a model's folder is never run. A newer transformers may have it; or export the model to ONNX."
        )
    return leaf


def _load_weights(checkpoint: Checkpoint, leaf: Any) -> Any:
    """The model in float32; transformers maps the file and copies weight by weight, so no two copies are held."""
    try:
        whole, report = leaf.from_pretrained(
            checkpoint.folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # configurations can be wrong in as many ways as there are models
        raise ModelError(
            f"{checkpoint.folder}: transformers {transformers.__version__} cannot build {leaf.__name__} from it. "
            f"{type(error).__name__}: {error}"
        ) from error
    _check_report(checkpoint, leaf.__name__, report)
    return whole


def _check_report(checkpoint: Checkpoint, name: str, report: Mapping[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers, or drop."""
    where = f"{checkpoint.folder}: the weights do not fit {name}, which config.json names:"
    if mismatched := sorted(report["mismatched_keys"], key=str):
        key, found, expected = mismatched[0][:3]
        raise ModelError(f"{where} {key} is {list(found)}, expected {list(expected)} ({_number(mismatched)}).")
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{where} {missing[0]} is missing ({_number(missing)}).")
    if unexpected := sorted(report["unexpected_keys"]):
        raise ModelError(f"{where} {unexpected[0]} is not part of it ({_number(unexpected)}).")
    if report["error_msgs"]:
        raise ModelError(f"{where} {report['error_msgs'][0]}")


def _number(names: list[Any]) -> str:
    return f"{len(names)} such weight{'s' if len(names) > 1 else ''}"


def _inputs_that_run(whole: Any, constants: Mapping[str, Any]) -> tuple[Inputs, Tensor | None]:
    """The first of the possible inputs with which the model runs, and its output; if only one is possible, just that.

    Where the model runs with none, `lift` tells why it does not with the first.
    """
    usual, *others = possible_inputs(whole)
    for inputs in (usual, *others) if others else ():
        try:
            with torch.no_grad():
                return inputs, main_output(whole.eval()(**trial_batch(inputs), **constants))
        except Exception:  # noqa: S112 - the model's own code runs here: anything can be raised
            continue
    return usual, None


def _objective(whole: Any, inputs: Inputs, output: Tensor | None) -> Objective:
    """By the model's class; a language model predicts the tokens that it reads, and no more (where an image led)."""
    tokens = trial_batch(inputs[:1])[inputs[0].name]
    predicts = output is None or output.shape[:2] == tokens.shape
    if predicts and inputs[0].name.endswith("input_ids") and _is_in(whole, LANGUAGE_MODELS):
        return Objective.LANGUAGE_MODEL
    if _is_in(whole, CLASSIFIERS) and whole.config.num_labels > 1:
        return Objective.CLASSIFIER
    return Objective.VALUES


def _is_in(whole: Any, tables: Sequence[Any]) -> bool:
    listed: list[Any] = [entry for table in tables for entry in table.values()]
    names: set[str] = {name for entry in listed for name in ([entry] if isinstance(entry, str) else entry)}
    return type(whole).__name__ in names


def _token_embedding(whole: Any, inputs: Inputs) -> nn.Embedding | None:
    """The table that token ids index, if the model takes any and names it."""
    if not any(spec.name.endswith("input_ids") for spec in inputs):
        return None
    reader = whole.get_decoder() if inputs[0].name.startswith("decoder") else whole
    try:
        table = reader.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # FSMT's decoder has no such method
        return None
    return table if isinstance(table, nn.Embedding) else None


def _context_length(config: Any, tokenizer: Any) -> int | None:
    text = config.get_text_config(decoder=True)
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "max_target_positions")]
    limits.append(getattr(tokenizer, "model_max_length", None))
    sane = [limit for limit in limits if isinstance(limit, int) and 0 < limit < LONGEST_TOKENIZER_LIMIT]
    return min(sane, default=None)


def _tokenizer(path: Path) -> tuple[Any, tuple[str, ...]]:
    """The folder's tokenizer, or `None` with the reason why a tokenizer that is there cannot be used."""
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        return None, ()
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False), ()
    except Exception as error:  # each kind of tokenizer fails in its own way
        return None, (
            f"its tokenizer cannot be loaded ({type(error).__name__}: {error}); text cannot be used as data.",
        )


def _left_alone(module: nn.Module, graph: Graph) -> tuple[str, ...]:
    """A notice when much of the model is in no site."""
    total = sum(parameter.numel() for parameter in module.parameters())
    share = 1 - sum(site.parameters for site in graph.sites) / max(total, 1)
    return (f"{share:.0%} of its parameters are in no weight that guidedq can quantize.",) if share > 0.1 else ()
