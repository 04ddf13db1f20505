"""`guidedq profile`, and what the commands say of latency."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import run, run_json, save_language_model
from integer_networks import convolutions

from guidedq.artifacts.profile import read_profile
from guidedq.backends.onnx import stopwatch, timer
from guidedq.backends.onnx.timer import OnnxTimer


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    """What is measured need not be measured well."""
    monkeypatch.setattr(timer, "PASSES", 1)
    monkeypatch.setattr(stopwatch, "MOST_ROUNDS", stopwatch.FEWEST_ROUNDS)


@pytest.fixture
def network(tmp_path):
    """A network of convolutions, and data for it."""
    convolutions(tmp_path)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(24, 3, 6, 6)).astype(np.float32))
    return [tmp_path / "source.onnx", "--data", tmp_path / "data.npz", "--workspace", tmp_path / "workspace"]


def test_the_profile_of_a_model_has_its_shapes_and_the_model_itself(network, tmp_path):
    done = run("profile", *network, "--out", tmp_path / "net.toml")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert "QLinearConv" in done.stdout
    assert str(tmp_path / "net.toml") in done.stdout
    found = read_profile(tmp_path / "net.toml")
    assert len(found.models) == 1
    shapes = {kernel.shape for kernel in found.seconds if kernel.operator == "Conv"}
    assert shapes == {"36x27x8x6x6x3x3x1x1x1", "36x72x8x6x6x3x3x1x1x1"}


def test_a_profile_is_not_overwritten_unasked(network, tmp_path):
    (tmp_path / "net.toml").write_text("precious")
    done = run("profile", *network, "--out", tmp_path / "net.toml")
    assert (done.exit_code, (tmp_path / "net.toml").read_text()) == (1, "precious")
    assert "--overwrite" in done.stderr
    assert "--out" in run("profile", *network, "--out", tmp_path).stderr
    assert run("profile", *network, "--out", tmp_path / "net.toml", "--overwrite").exit_code == 0
    assert read_profile(tmp_path / "net.toml").threads == 1


def test_without_a_model_it_is_the_grid_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = OnnxTimer.grid
    monkeypatch.setattr(OnnxTimer, "grid", lambda self: [k for k in small(self) if k.work < 2**13][:4])
    done = run("profile", "--threads", 2)
    assert done.exit_code == 0, (done.stderr, done.exception)
    found = read_profile(tmp_path / "guidedq" / "profiles" / "machine-2-threads.toml")
    assert (found.threads, len(found.seconds)) == (2, 4)
    assert run("profile", "--threads", 2).exit_code == 1
    told = run_json("profile", "--overwrite")
    assert (told["threads"], sum(map(len, told["microseconds"].values()))) == (1, 4)


def test_models_that_are_no_onnx_files_have_no_latency(tmp_path):
    model = save_language_model(tmp_path / "llama")
    asked = run("profile", model)
    assert asked.exit_code == 1
    assert "Export it to ONNX first" in asked.stderr
    asked = run("compile", model, "--budget", "4bits", "--objective", "latency")
    assert asked.exit_code == 1
    assert "--backend onnx" in asked.stderr


def test_a_bound_on_the_latency_must_be_a_share(network):
    asked = run("compile", *network, "--budget", "4bits", "--max-latency", "5ms")
    assert asked.exit_code == 1
    assert "such as 0.6x" in asked.stderr


def test_a_law_has_nothing_to_do_with_time(tmp_path):
    asked = run("law", "demo", "--objective", "latency", "--out", tmp_path / "law")
    assert asked.exit_code == 1
    assert "leave --objective latency out" in asked.stderr
