"""Mixtures of experts: a linear layer for each expert, the same function, and gradients told apart by samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import transformers
from tiny_transformers import CONFIGURATIONS, save_tiny_transformer
from torch import Tensor, nn

from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.fisher import FisherGuide
from guidedq.frontend.experts import SplitExperts, split_experts
from guidedq.frontend.hugging_face import load_hugging_face
from guidedq.ir.model import Model
from guidedq.progress import Progress

KINDS = ("mixtral", "gpt_oss", "nemotron")
"""With a gate; with biases, transposed and interleaved; without a gate."""
TOKENS = torch.randint(40, (3, 8), generator=torch.Generator().manual_seed(4))


def original(kind: str, folder: Path) -> nn.Module:
    """As transformers makes it, experts one after another."""
    leaf = getattr(transformers, CONFIGURATIONS[kind][0])
    return leaf.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()


def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(kind, tmp_path) -> Path:
    return save_tiny_transformer(kind, tmp_path / "model")


def test_every_expert_is_a_site_and_the_function_stays(kind, folder):
    model = load_hugging_face(folder)
    expected = logits(original(kind, folder), TOKENS).detach()
    torch.testing.assert_close(model.program.predict({"input_ids": TOKENS}), expected)
    names = {site.name.rpartition("experts.")[2] for site in model.graph.sites if ".experts." in site.name}
    first = "up_proj" if kind == "nemotron" else "gate_up_proj"
    assert names == {f"{name}.{number}.weight" for name in (first, "down_proj") for number in range(4)}
    assert not model.notices


def test_split_models_run_alone_compiled_and_token_by_token(kind, folder, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of types cannot be traced
    whole, split = original(kind, folder), original(kind, folder)
    split_experts(split)
    with torch.no_grad():
        expected = logits(whole, TOKENS)
        torch.testing.assert_close(logits(split, TOKENS), expected)
        torch.testing.assert_close(logits(torch.compile(split, backend="eager"), TOKENS), expected)
        torch.testing.assert_close(logits(split, TOKENS[:1, :1]), logits(whole, TOKENS[:1, :1]))


@pytest.mark.parametrize("samples", [1, 3, 5])
def test_any_number_of_samples_gives_the_same(samples, kind, folder):
    split = original(kind, folder)
    split_experts(split)
    expected = logits(split, TOKENS).detach()
    for part in split.modules():
        if isinstance(part, SplitExperts):
            part.samples = samples  # 5 do not divide the tokens
    torch.testing.assert_close(logits(split, TOKENS).detach(), expected)


def test_each_sample_has_its_own_gradient(kind, folder):
    whole, model = original(kind, folder), load_hugging_face(folder)
    (experts,) = [part for part in whole.modules() if type(part).__name__.endswith("Experts")]
    heard = gradients_by_sample(model)
    for sample in range(len(TOKENS)):
        (expected,) = torch.autograd.grad(loss(logits(whole, TOKENS[sample : sample + 1])), [experts.down_proj])
        for number, weight in enumerate(expected):
            want = weight.t() if experts.is_transposed else weight
            torch.testing.assert_close(heard[number][sample], want, rtol=1e-4, atol=1e-6)


def gradients_by_sample(model: Model) -> list[Tensor]:
    """From what the operators of the last projections read and what comes back to them, `[sample, out, in]` each."""
    module: nn.Module = model.program.module  # pyright: ignore[reportAttributeAccessIssue]
    (experts,) = [part for part in module.modules() if isinstance(part, SplitExperts)]
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        inputs.append(given[0].detach())
        outputs.append(made)

    handles = [layer.register_forward_hook(keep) for layer in experts.down_proj]
    for parameter in module.parameters():
        parameter.requires_grad_()
    back = torch.autograd.grad(loss(module(input_ids=TOKENS)), outputs)
    for handle in handles:
        handle.remove()
    return [torch.einsum("sti,sto->soi", read, gradient) for read, gradient in zip(inputs, back, strict=True)]


def loss(values: Tensor) -> Tensor:
    return values.square().sum()


def test_an_expert_that_no_token_is_sent_to_matters_little_for_its_size_and_is_told(tmp_path):
    told = Told()
    stakes = importance(tmp_path / "one", told)
    assert "no sample reached model.layers.0.mlp.experts.gate_up_proj.2.weight" in told.notices[0]
    assert 0 < stakes[2] < max(stakes)
    larger = importance(tmp_path / "ten", Told(), size=10.0)
    assert larger[2] == pytest.approx(stakes[2] / 100, rel=0.05)  # 16-bit floats are stored


def importance(folder: Path, told: Told, size: float = 1.0) -> list[float]:
    """What a weight of each expert matters, where the third is sent nothing; its weights are multiplied by `size`."""
    save_tiny_transformer("gpt_oss", folder)
    changed: Any = original("gpt_oss", folder)
    changed.model.layers[0].mlp.router.bias.data[2] = -1e4
    changed.model.layers[0].mlp.experts.down_proj.data[2] *= size
    changed.save_pretrained(folder)
    model, samples = load_hugging_face(folder), SampleSet(inputs={"input_ids": TOKENS})
    guidance = FisherGuide().collect(model, samples, folder / "g", seed=0, memory_bytes=None, progress=told)
    terms = [guidance.site(f"model.layers.0.mlp.experts.down_proj.{number}.weight").terms[0] for number in range(4)]
    return [float(term.hessian.diagonal(dim1=1, dim2=2).mean() * term.row_weight.mean()) for term in terms]


class Told(Progress):
    """Remembers notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def start(self, name: str, total: int) -> None: ...

    def advance(self, amount: int = 1) -> None: ...

    def notice(self, text: str) -> None:
        self.notices.append(text)
