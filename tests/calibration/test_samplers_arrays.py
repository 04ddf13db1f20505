"""Arrays of named inputs are checked against the model, drawn by seed, and never shared between parts."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tiny_models import VOCABULARY, tiny_language_model

from guidedq.calibration.files import FileSampler
from guidedq.errors import CalibrationError
from guidedq.ir.model import InputSpec, Objective
from guidedq.progress import SilentProgress

SMALL = FileSampler(samples=4, probe_samples=2)


def image_model():
    spec = InputSpec(name="pixels", dtype=torch.float32, shape=(None, 3, 2, None))
    return dataclasses.replace(
        tiny_language_model(), objective=Objective.CLASSIFIER, inputs=(spec,), vocabulary_size=None, tokenizer=None
    )


def images(count, start=0):
    values = np.arange(start, start + count, dtype=np.float32)
    return np.broadcast_to(values[:, None, None, None], (count, 3, 2, 2)).copy()


def draw(model, path, *evaluation, sampler=SMALL, seed=0):
    return sampler.sample(model, [path], list(evaluation), seed=seed, progress=SilentProgress())


def numbers(samples):
    return samples.inputs["pixels"][:, 0, 0, 0].tolist()


@given(count=st.integers(3, 80), repeats=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_parts_share_no_sample_even_if_the_file_repeats_some(tmp_path, count, repeats, seed):
    path = tmp_path / "x.npz"
    np.savez(path, pixels=np.tile(images(count), (repeats, 1, 1, 1)), labels=np.tile(np.arange(count), repeats))
    made = draw(image_model(), path, seed=seed)
    parts = [numbers(part) for part in (made.calibration, made.probe, made.evaluation)]
    together = [number for part in parts for number in part]
    assert len(together) == len(set(together))
    assert len(parts[2]) == max(1, count // 10)
    assert all(len(part) >= 1 for part in parts)
    for part in (made.calibration, made.probe, made.evaluation):
        assert part.labels.tolist() == numbers(part)


@pytest.mark.parametrize(("length", "asked", "probes"), [(32, 0, 64), (8, 0, 256), (512, 0, 24), (8, 5, 5)])
def test_probes_of_short_sequences_are_so_many_more(tmp_path, length, asked, probes):
    np.savez(tmp_path / "x.npz", input_ids=np.random.default_rng(0).integers(0, VOCABULARY, (900, length)))
    made = draw(tiny_language_model(), tmp_path / "x.npz", sampler=FileSampler(samples=400, probe_samples=asked))
    assert len(made.probe) == probes


def test_safetensors_npz_and_a_folder_of_both_give_the_same_samples(tmp_path):
    (tmp_path / "both").mkdir()
    np.savez(tmp_path / "x.npz", pixels=images(40))
    save_file({"pixels": images(40)}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "both" / "a.npz", pixels=images(25))
    save_file({"pixels": images(15, 25)}, tmp_path / "both" / "b.safetensors")
    made = {draw(image_model(), tmp_path / name).digest for name in ("x.npz", "x.safetensors", "both")}
    assert len(made) == 1


def test_all_of_an_evaluation_file_is_taken_but_what_was_calibrated_on(tmp_path):
    np.savez(tmp_path / "a.npz", pixels=images(6))
    np.savez(tmp_path / "b.npz", pixels=images(50, 3))
    made = draw(image_model(), tmp_path / "a.npz", tmp_path / "b.npz")
    assert numbers(made.evaluation) == list(range(6, 53))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": images(5)}, "no array 'pixels'; it has images"),
        ({"pixels": images(5), "more": images(5)}, "'more' is no input"),
        ({"pixels": images(5).astype(np.uint8)}, "uint8, expected float32"),
        ({"pixels": images(5).transpose(0, 2, 3, 1)}, r"\[5, 2, 2, 3\], expected \[any, 3, 2, any\]|expected \['any'"),
        ({"pixels": images(5)[0]}, "shape"),
        ({"pixels": images(0)}, "no sample"),
        ({"pixels": images(5) * np.nan}, "NaN"),
        ({"pixels": images(5), "labels": np.arange(4)}, "different numbers of samples"),
        ({"pixels": images(5), "labels": np.ones(5)}, "whole numbers"),
        ({"pixels": images(2)}, "at least 3 are needed"),
        ({"pixels": np.array(["a"])}, "which no model takes"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, said):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(CalibrationError, match=said):
        draw(image_model(), path)


def test_pickled_arrays_are_never_read(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, pixels=np.array([{}], dtype=object))
    with pytest.raises(CalibrationError, match="cannot be read"):
        draw(image_model(), path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    np.savez(tmp_path / "x.npz", pixels=images(5))
    save_file({"pixels": images(5)}, tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(CalibrationError, match="cannot be read"):
        draw(image_model(), path)


@pytest.mark.parametrize("bad", [-1, 24])
def test_token_ids_outside_the_vocabulary_are_refused(tmp_path, bad):
    tokens = np.ones((5, 6), dtype=np.int64)
    tokens[3, 2] = bad
    np.savez(tmp_path / "x.npz", input_ids=tokens)
    with pytest.raises(CalibrationError, match=f"token id {bad} is outside"):
        draw(tiny_language_model(), tmp_path / "x.npz")


def test_attention_mask_becomes_the_mask_of_the_samples(tmp_path):
    specs = tuple(
        InputSpec(name=name, dtype=torch.int64, shape=(None, None)) for name in ("attention_mask", "input_ids")
    )
    model = dataclasses.replace(tiny_language_model(), objective=Objective.VALUES, inputs=specs)
    tokens = np.arange(30).reshape(10, 3).astype(np.int32) % 24
    mask = np.ones((10, 3), dtype=np.int32)
    mask[:, 2] = 0
    np.savez(tmp_path / "x.npz", input_ids=tokens, attention_mask=mask)
    made = draw(model, tmp_path / "x.npz")
    assert next(iter(made.calibration.inputs)) == "input_ids"
    assert made.calibration.inputs["input_ids"].dtype == torch.int64
    assert torch.equal(made.calibration.mask, torch.tensor([[True, True, False]] * 4))


def test_a_number_without_samples_is_given_to_every_sample(tmp_path):
    rate = InputSpec(name="rate", dtype=torch.int64, shape=(None,), sample_axis=None)
    model = image_model()
    model = dataclasses.replace(model, inputs=(*model.inputs, rate))
    np.savez(tmp_path / "x.npz", pixels=images(10), rate=np.array(16000))
    assert draw(model, tmp_path / "x.npz").calibration.inputs["rate"].tolist() == [16000] * 4
