"""The original's outputs: computed once, the same when read, never in the way."""

import torch

from guidedq import original
from guidedq.ir.program import AbstractProgram
from guidedq.original import OriginalOutputs
from guidedq.workspace import Workspace


class Counting(AbstractProgram):
    """Doubles its input, and counts how often."""

    def __init__(self):
        self.calls = 0

    @property
    def differentiable(self):
        return False

    def parameter(self, name):
        raise NotImplementedError

    def operator(self, name):
        raise NotImplementedError

    def observe(self, batch, operators, *, weights=None):
        raise NotImplementedError

    def predict(self, batch, *, weights=None, activations=None):
        self.calls += 1
        return batch["x"].float() * 2


def outputs_of(program, root, digest="model"):
    return OriginalOutputs.of(program, digest, Workspace(root=root))


def batch(*values):
    return {"x": torch.tensor([values])}


def test_each_batch_runs_once_and_reads_the_same_in_another_run(tmp_path):
    program = Counting()
    first = outputs_of(program, tmp_path).predict(batch(1, 2))
    again = outputs_of(program, tmp_path).predict(batch(1, 2))
    other = outputs_of(program, tmp_path).predict(batch(1, 3))
    assert program.calls == 2
    assert torch.equal(first, again)
    assert other.tolist() == [[2.0, 6.0]]


def test_another_model_has_its_own(tmp_path):
    program = Counting()
    outputs_of(program, tmp_path, "one").predict(batch(1))
    outputs_of(program, tmp_path, "two").predict(batch(1))
    assert program.calls == 2


def test_beyond_the_bound_nothing_is_kept(tmp_path, monkeypatch):
    program = Counting()
    outputs_of(program, tmp_path).predict(batch(1, 2))
    monkeypatch.setattr(original, "KEPT_OUTPUTS_BYTES", 15)
    outputs = outputs_of(program, tmp_path)
    for _ in range(2):
        outputs.predict(batch(3, 4))
    assert program.calls == 3
    assert len(list(outputs.folder.iterdir())) == 1


def test_a_damaged_file_is_made_anew(tmp_path):
    program = Counting()
    outputs = outputs_of(program, tmp_path)
    outputs.predict(batch(1, 2))
    next(outputs.folder.iterdir()).write_bytes(b"damaged")
    assert outputs.predict(batch(1, 2)).tolist() == [[2.0, 4.0]]
    assert outputs.predict(batch(1, 2)).tolist() == [[2.0, 4.0]]
    assert program.calls == 2


def test_a_full_disk_is_no_failure(tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(original, "write_tensors", full)
    assert outputs_of(Counting(), tmp_path).predict(batch(1)).tolist() == [[2.0]]
