"""Schedules: their text and file, and the bits that they give."""

from __future__ import annotations

import pytest
import torch

from guidedq.errors import ScheduleError
from guidedq.schedules.rules import LossRule, constant_rule, signal_of
from guidedq.schedules.schedule import Schedule, parse_schedule, read_schedule, schedule_text, schedule_toml

WIDTHS = (3, 4, 5)
TEXTS = [
    "prefill=5,constant=4",
    "prefill=3,constant=3.25",
    "prefill=5,decode=4,3@32",
    "prefill=4,decode=5,4@8,3@100",
    "prefill=5,linear=5..3@256",
    "prefill=5,entropy=3<0.8<4<2.5<5",
    "prefill=5,margin=4",
]


def bits_of(text: str, count: int) -> list[int]:
    steps = torch.arange(count)
    return parse_schedule(text, WIDTHS).rule.bits(steps, steps, None).tolist()


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_file_give_the_schedule_back(text, tmp_path):
    schedule = parse_schedule(text, WIDTHS)
    assert schedule_text(schedule) == text
    (tmp_path / "schedule.toml").write_text(schedule_toml(schedule, "digest", {"kl": 0.25}))
    assert read_schedule(tmp_path / "schedule.toml", WIDTHS, "digest") == schedule


def test_a_file_also_holds_classes_of_tokens(tmp_path):
    rule = LossRule(signal="impurity", edges=(0.25, 0.5), table=((3, 4, 5), (3, 3, 4)), classes=(0, 1, 1, 0))
    schedule = Schedule(prefill=5, rule=rule)
    (tmp_path / "schedule.toml").write_text(schedule_toml(schedule, "digest", {}))
    assert read_schedule(tmp_path / "schedule.toml", WIDTHS, "digest") == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no schedule"),
        ("decode", "no schedule"),
        ("decode=4,3", "no schedule"),
        ("decode=4,3@", "no schedule"),
        ("decode=4,3@0", "then rising"),
        ("decode=4,3@9,5@9", "then rising"),
        ("linear=5..3", "no schedule"),
        ("entropy=3<2<4<1<5", "rising numbers"),
        ("entropy=3<2", "no schedule"),
        ("prefill=6,decode=4", "asks for 6 bits; the model has 3, 4, 5"),
        ("decode=7", "asks for 7"),
        ("2.5", "beyond the model's widths"),
        ("nonsense=3", "no schedule"),
    ],
)
def test_what_is_no_schedule_is_refused_with_a_reason(text, message):
    with pytest.raises(ScheduleError, match=message):
        parse_schedule(text, WIDTHS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version = ", "no schedule"),
        ('version = 9\nweights = "digest"', "newer|up to 1"),
        ('version = 1\nweights = "other"', "other weights"),
        ('version = 1\nweights = "digest"', "damaged"),
        (
            'version = 1\nweights = "digest"\nprefill = 5\nsignal = "margin"\nedges = [1]\ntable = [[3]]\nclasses = []',
            "ranges",
        ),
    ],
)
def test_damaged_foreign_and_newer_files_are_refused(content, message, tmp_path):
    (tmp_path / "schedule.toml").write_text(content)
    with pytest.raises(ScheduleError, match=message):
        read_schedule(tmp_path / "schedule.toml", WIDTHS, "digest")


@pytest.mark.parametrize("average", [3.0, 3.25, 3.7, 4.0, 4.5, 5.0])
def test_a_constant_keeps_its_average_over_any_stretch(average):
    steps = torch.arange(400)
    bits = constant_rule(average, WIDTHS).bits(steps, steps, None).double()
    assert float(bits.mean()) == pytest.approx(average, abs=0.005)
    assert float((bits.unfold(0, 40, 1).mean(1) - average).abs().max()) <= 0.026


def test_steps_and_lines_change_where_they_say():
    assert bits_of("decode=4,3@2,5@4", 6) == [4, 4, 3, 3, 5, 5]
    assert bits_of("linear=5..3@4", 7) == [5, 5, 4, 3, 3, 3, 3] or bits_of("linear=5..3@4", 7) == [5, 4, 4, 3, 3, 3, 3]


def test_thresholds_part_the_signal_and_a_token_without_logits_takes_the_last_range():
    rule = parse_schedule("entropy=3<0.5<4<1<5", WIDTHS).rule
    signals = torch.tensor([0.1, 0.5, 0.99, 2.0, torch.nan])
    assert rule.bits(torch.arange(5), torch.arange(5), signals).tolist() == [3, 4, 4, 5, 5]


def test_signals_of_known_distributions():
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30]]).log()
    assert signal_of("entropy", logits).tolist() == pytest.approx([1.0397, 0.0], abs=1e-3)
    assert signal_of("margin", logits).tolist() == pytest.approx([0.75, 0.0], abs=1e-3)
    assert signal_of("impurity", logits).tolist() == pytest.approx([0.625, 0.0], abs=1e-3)
