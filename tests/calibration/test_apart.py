"""Documents apart: what calibration, probes and evaluation share, and what is given up for it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from guidedq.calibration.apart import LONGEST_DOCUMENT, Spans, document_numbers, parted
from guidedq.calibration.split import Sizes


def spans_of(lengths, sequence):
    numbers = document_numbers(lengths)
    numbers = numbers[: len(numbers) // sequence * sequence].reshape(-1, sequence)
    return Spans(first=numbers[:, 0], last=numbers[:, -1])


def sizes(samples, tuning, probe):
    return Sizes(samples=samples, tuning=tuning, probe=probe, evaluation=1, sequence_length=20)


def documents(spans, chosen):
    return {number for i in chosen.tolist() for number in range(int(spans.first[i]), int(spans.last[i]) + 1)}


@given(st.lists(st.integers(1, 40), min_size=4, max_size=40), st.integers(2, 12), st.data())
def test_touching_is_having_a_document_in_common(lengths, sequence, data):
    spans = spans_of(lengths, sequence)
    count = len(spans.first)
    if not count:
        return
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), max_size=4)), dtype=torch.int64)
    touched = documents(spans, chosen)
    wanted = [bool(documents(spans, torch.tensor([i])) & touched) for i in range(count)]
    assert spans.touching(chosen).tolist() == wanted


def test_long_documents_are_parted_and_short_ones_are_not():
    numbers = document_numbers([5, 3 * LONGEST_DOCUMENT, 0, 7])
    assert len(numbers) == 12 + 3 * LONGEST_DOCUMENT
    assert numbers[:6].tolist() == [0, 0, 0, 0, 0, 1]
    assert numbers.bincount().tolist() == [5, *[LONGEST_DOCUMENT] * 3, 7]


def test_in_a_long_text_no_part_shares_a_document_with_another_and_probes_are_from_all_over():
    spans = spans_of([80] * 100, 20)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    calibration, tuning, probe = parted(spans, order[20:], order[:20], sizes(40, 200, 8))
    assert (len(calibration), len(tuning), len(probe)) == (40, 200, 8)
    measured = documents(spans, probe) | documents(spans, order[:20])
    assert not documents(spans, calibration) & measured
    assert torch.equal(tuning[:40], calibration)
    assert not set(tuning.tolist()) & {*probe.tolist(), *order[:20].tolist()}
    assert len(documents(spans, probe)) >= 6


@given(st.integers(0, 1000))
def test_in_a_short_text_calibration_goes_without_the_probes_documents_as_far_as_it_can(seed):
    spans = spans_of([160] * 8, 20)  # eight sequences a document
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    calibration, tuning, probe = parted(spans, order, order[:0], sizes(57, 57, 7))
    assert sorted([*calibration.tolist(), *probe.tolist()]) == list(range(64))
    assert torch.equal(tuning, calibration)
    shared = spans.touching(probe)[calibration].long()
    assert (shared.diff() >= 0).all()
