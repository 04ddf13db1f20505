"""Everything that a user can get wrong is said in one message, with exit code 1, before any long work."""

import errno
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import VOCABULARY, options, run, save_language_model, save_tokens
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from guidedq.backends.packed_torch.backend import PackedTorchBackend

SECONDS = 60.0
"""Far more than any of these takes on a busy machine, far less than a compile of a real model."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_language_model(tmp_path / "model")


def refused(*words: object) -> str:
    """The one message of a command that must be refused."""
    began = time.perf_counter()
    result = run(*words)
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    assert time.perf_counter() - began < SECONDS
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    told, _, message = result.stderr.partition("error: ")
    assert "error" not in told
    assert message
    return message


def compile_refused(model: object, tmp_path: Path, *words: object, budget: str = "4bits") -> str:
    out = tmp_path / "out"
    message = refused("compile", model, "--budget", budget, "--out", out, *options(tmp_path), *words)
    assert not out.exists()
    assert [path for path in tmp_path.iterdir() if "partial" in path.name] == []
    return message


def test_no_such_path(tmp_path: Path) -> None:
    assert "no such path" in compile_refused(tmp_path / "nowhere", tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in compile_refused(tmp_path / "empty", tmp_path)


def test_a_pickle_checkpoint_is_refused_unopened(model: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "safetensors" in compile_refused(model, tmp_path)
    (model / "weights.pt").write_bytes(pickle.dumps(Trap()))
    assert "pickle" in compile_refused(model / "weights.pt", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_truncated_safetensors(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in compile_refused(model, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_names_its_site(model: Path, tmp_path: Path, value: float) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, path, metadata={"format": "pt"})
    message = compile_refused(model, tmp_path)
    assert "model.layers.1.mlp.up_proj.weight" in message
    assert "NaN or infinite" in message


def write_onnx(path: Path, *, weighted: bool) -> Path:
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "weight")
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"]) if weighted else helper.make_node("Relu", ["x"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3 if weighted else 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight] if weighted else [])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_truncated_onnx(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", weighted=True)
    path.write_bytes(path.read_bytes()[:-20])
    assert "net.onnx" in compile_refused(path, tmp_path)


def test_a_model_with_no_quantizable_site(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", weighted=False)
    np.savez(tmp_path / "inputs.npz", x=np.ones((9, 4), np.float32))
    words = ("compile", path, "--budget", "4", "--data", tmp_path / "inputs.npz", "--workspace", tmp_path / "workspace")
    assert "no quantizable site" in refused(*words, "--out", tmp_path / "out")


def test_a_model_that_needs_data_says_of_what_names_and_shapes(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", weighted=True)
    message = refused("compile", path, "--budget", "4bits", "--out", tmp_path / "out")
    assert "--data" in message
    assert "x" in message and "4" in message and "float32" in message


def test_an_npz_with_wrong_names(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", tokens=np.zeros((9, 8), np.int64))
    message = compile_refused(model, tmp_path, "--data", tmp_path / "wrong.npz")
    assert "tokens" in message and "input_ids" in message


def test_an_npz_with_wrong_shapes(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", input_ids=np.zeros((9, 8, 2), np.int64))
    message = compile_refused(model, tmp_path, "--data", tmp_path / "wrong.npz")
    assert "input_ids" in message and "wrong.npz" in message


def test_token_ids_beyond_the_vocabulary(model: Path, tmp_path: Path) -> None:
    path = save_tokens(tmp_path / "wild.npz", input_ids=np.full((9, 8), VOCABULARY))
    message = compile_refused(model, tmp_path, "--data", path)
    assert str(VOCABULARY) in message


def test_text_for_a_model_that_reads_none(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words\n" * 100)
    words = ("compile", model, "--budget", "8", "--data", tmp_path / "text.txt", "--workspace", tmp_path / "workspace")
    assert "tokenizer" in refused(*words, "--scope", "linear", "--out", tmp_path / "out")


def test_text_shorter_than_one_sequence(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("three short words\n")
    message = refused(
        "compile", "demo", "--budget", "4", "--data", tmp_path / "short.txt", "--out", tmp_path / "out",
        "--workspace", tmp_path / "workspace",
    )  # fmt: skip
    assert "token" in message or "text" in message


def test_data_that_is_not_there(model: Path, tmp_path: Path) -> None:
    assert "no such data" in compile_refused(model, tmp_path, "--data", tmp_path / "nothing.npz")


@pytest.mark.parametrize(
    ("budget", "part"),
    [("0bits", "above zero"), ("1bits", "Feasible"), ("99bits", "Feasible"), ("abc", "no budget"), ("1B", "Feasible")],
)
def test_a_budget_that_cannot_be_met_names_what_can(model: Path, tmp_path: Path, budget: str, part: str) -> None:
    assert part in compile_refused(model, tmp_path, budget=budget)
    assert not (tmp_path / "workspace").exists() or list((tmp_path / "workspace").iterdir()) == []


def test_a_feasible_budget_in_the_message_is_feasible(model: Path, tmp_path: Path) -> None:
    message = compile_refused(model, tmp_path, budget="1bits")
    raised = message.split("Raise the budget to ")[1].split("bits")[0]
    done = run("plan", model, "--budgets", f"{raised}bits", *options(tmp_path))
    assert done.exit_code == 0, done.stderr


def test_an_output_folder_that_is_not_empty_is_left_as_it_is(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    message = refused("compile", model, "--budget", "4bits", "--out", out, *options(tmp_path))
    assert "--overwrite" in message
    assert (out / "mine").read_text() == "precious"


def test_a_full_disk_leaves_nothing_and_says_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: object, _model: object, weights: Any, folder: Path, *_: object) -> None:
        next(iter(weights))
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PackedTorchBackend, "emit", full)
    assert "No space left on device" in compile_refused(model, tmp_path)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--backend", "tensorrt"], "onnx, torch"),
        (["--recipe", "bset"], "default"),
        (["--set", "round.rounding=up"], "damping-fraction"),
        (["--min-bits", "9"], "min-bits"),
        (["--min-bits", "5", "--max-bits", "4"], "min-bits 5 and max-bits 4"),
        (["--max-memory", "much"], "120MB"),
        (["--max-memory", "3bits"], "2GB"),
    ],
)
def test_a_bad_option_says_what_there_is(model: Path, tmp_path: Path, words: list[str], part: str) -> None:
    assert part in compile_refused(model, tmp_path, *words)


@pytest.mark.parametrize("plot", ["plan.doc", "nowhere/plan.png"])
def test_a_plot_that_cannot_be_written_is_refused_first(tmp_path: Path, plot: str) -> None:
    message = refused("plan", tmp_path / "no-model-either", "--budgets", "3", "--plot", tmp_path / plot)
    assert plot.rpartition("/")[2] in message


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    assert "report.json" in refused("eval", tmp_path, "--data", tmp_path)


def test_a_workspace_that_is_a_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in compile_refused(model, tmp_path, "--workspace", tmp_path / "file")
