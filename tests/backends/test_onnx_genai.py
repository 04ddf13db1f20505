"""The genai layout: GenAI generates from the folder what the original does with the dequantized weights."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from onnx_models import quantized
from test_onnx_export import VOCABULARY, agrees, tagger, tiny_language_model
from test_onnx_numerics import all_rows
from torch import Tensor
from transformers import AutoTokenizer

from guidedq import load
from guidedq.artifacts.emission import Emission
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.backends.onnx.backend import OnnxBackend
from guidedq.errors import BackendError
from guidedq.ir.model import Model
from guidedq.quant.formats import AffineFormat

FORMAT = AffineFormat(bits=6, group_size=64)
LENGTH = 24


class Written(NamedTuple):
    """A language model, and what was emitted of it."""

    model: Model
    weights: list[QuantizedWeight]
    emission: Emission
    folder: Path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("genai")
    model = tiny_language_model("llama", root / "model")
    weights = quantized(model, all_rows(FORMAT))
    (root / "out").mkdir()
    return Written(model, weights, backend().emit(model, weights, root / "out"), root / "out")


def backend() -> OnnxBackend:
    return OnnxBackend(layout="genai", accuracy_level=0)


def continued(written: Written, tokens: Tensor) -> list[int]:
    """The most likely continuation by the original with the dequantized weights, without a cache."""
    values = {w.name: written.model.graph.site(w.name).stored(w.dequantize()) for w in written.weights}
    while tokens.shape[1] < LENGTH:
        logits = written.model.program.predict({"input_ids": tokens}, weights=values)
        tokens = torch.cat((tokens, logits[:, -1:].argmax(-1)), dim=1)
    return tokens[0].tolist()


@pytest.mark.slow
def test_genai_generates_what_the_original_does_with_these_weights(written: Written) -> None:
    genai: Any = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(written.folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=LENGTH, min_length=LENGTH, do_sample=False)
    generator = genai.Generator(model, parameters)
    start = [5, 17, 30, 3]
    generator.append_tokens(start)
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0)) == continued(written, torch.tensor([start]))


@pytest.mark.slow
def test_the_cached_graph_gives_the_logits_of_whole_sequences(written: Written) -> None:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, VOCABULARY, (3, 11)))
    assert agrees(written.model, written.weights, written.folder, tokens, "input_ids")


@pytest.mark.slow
def test_tokens_after_a_cache_see_what_is_past(written: Written) -> None:
    session = backend().load(written.folder)
    names = [entry.name for entry in session.get_inputs()]
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, 7))
    none = {name: np.zeros((2, 2, 0, 12), dtype=np.float32) for name in names[3:]}
    mask, places = np.ones((2, 7), dtype=np.int64), np.tile(np.arange(7), (2, 1))
    whole = session.run(None, {**dict(zip(names, (tokens, mask, places), strict=False)), **none})[0]
    first = session.run(None, {**dict(zip(names, (tokens[:, :4], mask[:, :4], places[:, :4]), strict=False)), **none})
    past = dict(zip(names[3:], first[1:], strict=True))
    rest = session.run(None, {**dict(zip(names, (tokens[:, 4:], mask, places[:, 4:]), strict=False)), **past})[0]
    assert np.allclose(np.concatenate((first[0], rest), axis=1), whole, atol=1e-4 * np.abs(whole).max())


@pytest.mark.slow
def test_the_folder_tells_what_is_in_it(written: Written) -> None:
    config = json.loads((written.folder / "genai_config.json").read_text())["model"]
    assert (config["type"], config["vocab_size"], config["decoder"]["num_hidden_layers"]) == ("llama", VOCABULARY, 2)
    assert (config["decoder"]["num_key_value_heads"], config["decoder"]["head_size"]) == (2, 12)
    names = {entry.name for entry in backend().load(written.folder).get_outputs()}
    assert names == {"logits", *(f"present.{layer}.{part}" for layer in (0, 1) for part in ("key", "value"))}
    assert any("tokenizer.json" in notice for notice in written.emission.notices)


@pytest.mark.slow
def test_genai_reads_and_writes_text_by_the_tokenizer_that_lies_in_the_folder(tmp_path: Path) -> None:
    genai: Any = pytest.importorskip("onnxruntime_genai")
    source = load("demo")
    weights = quantized(source, all_rows(AffineFormat(bits=8, group_size=64)))
    demo = Written(source, weights, backend().emit(source, weights, tmp_path), tmp_path)
    assert not any("tokenizer.json" in notice for notice in demo.emission.notices)
    model = genai.Model(str(tmp_path))
    tokenizer, reference = genai.Tokenizer(model), AutoTokenizer.from_pretrained(source.path)
    start = tokenizer.encode("Once upon a time").tolist()
    assert start == reference.encode("Once upon a time", add_special_tokens=False)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=LENGTH, min_length=LENGTH, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(start)
    while not generator.is_done():
        generator.generate_next_token()
    expected = reference.decode(continued(demo, torch.tensor([start])))
    assert tokenizer.decode(generator.get_sequence(0)) == expected
    assert expected.startswith("Once upon a time") and len(expected) > len("Once upon a time") + LENGTH


def test_other_models_are_refused() -> None:
    with pytest.raises(BackendError, match="layout plain"):
        backend().footprint(tagger(), [FORMAT])
