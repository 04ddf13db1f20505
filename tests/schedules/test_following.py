"""A schedule followed token by token, and over a whole text at once; and the search for one."""

from __future__ import annotations

import itertools

import jaxtyping
import pytest
import torch
from nested_weights import random_nested
from packed_folders import load_kind

import guidedq
from guidedq.backends.packed_torch.backend import PackedTorchBackend
from guidedq.errors import ScheduleError
from guidedq.schedules.following import followed, following
from guidedq.schedules.rules import LossRule
from guidedq.schedules.schedule import Schedule, parse_schedule
from guidedq.schedules.search import least_within

WIDTHS = (3, 4, 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    original = load_kind("llama", tmp_path_factory.mktemp("original"))
    weights = [random_nested((site.rows, site.columns), name=site.name) for site in original.graph.quantizable]
    folder = tmp_path_factory.mktemp("nested")
    PackedTorchBackend().emit(original, weights, folder)
    return guidedq.load_quantized(folder)


def rules(vocabulary: int) -> list[Schedule]:
    classes = tuple(token % 2 for token in range(vocabulary))
    paired = LossRule(signal="impurity", edges=(0.9,), table=((3, 4), (5, 3)), classes=classes)
    texts = ("decode=4,3@3", "3.5", "linear=5..3@6", "entropy=3<2.9<5", "margin=5<0.9<4<0.95<3")
    return [*(parse_schedule(text, WIDTHS) for text in texts), Schedule(prefill=5, rule=paired)]


@pytest.mark.parametrize("number", range(6))
def test_a_whole_text_at_once_is_what_token_by_token_decoding_gives(model, number):
    schedule = rules(model.config.vocab_size)[number]
    tokens = torch.randint(3, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    at_once, bits = followed(model, tokens, schedule)
    cache, found, read = None, [], []
    rule = schedule.rule
    for step in range(tokens.shape[1]):  # the slow twin: each text alone, each token alone
        rows = []
        for text in range(len(tokens)):
            previous = None if not found else found[-1][text : text + 1]
            from guidedq.schedules.rules import signal_of

            name = rule.signal if isinstance(rule, LossRule) else ""
            signal = signal_of(name, previous) if name and previous is not None else torch.tensor([torch.nan])
            rows.append(rule.bits(torch.tensor([step]), tokens[text, step : step + 1], signal))
        chosen = torch.stack(rows)
        guidedq.set_precision(model, chosen)
        with torch.no_grad():
            output = model(input_ids=tokens[:, step : step + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits[:, -1])
        read.append(chosen[:, 0])
    assert torch.equal(torch.stack(read, 1), bits)
    torch.testing.assert_close(torch.stack(found, 1), at_once, rtol=1e-3, atol=1e-3)


def test_generate_follows_a_schedule_and_leaves_the_model_at_its_widest(model):
    prompt = torch.tensor([[4, 7, 9]])
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    with following(model, parse_schedule("prefill=5,decode=4,3@3", WIDTHS)) as follower:
        scheduled = model.generate(prompt, **settings)
    assert follower.bits == [4, 4, 4, 3, 3, 3, 3]  # the last token is written, not read
    with following(model, parse_schedule("prefill=3,decode=3", WIDTHS)):
        narrow = model.generate(prompt, **settings)
    with guidedq.at_precision(model, 3):
        assert torch.equal(model.generate(prompt, **settings), narrow)
    with following(model, parse_schedule("prefill=5,decode=5", WIDTHS)):
        widest = model.generate(prompt, **settings)
    assert torch.equal(model.generate(prompt, **settings), widest)
    assert scheduled.shape == (1, 11)


def test_texts_of_a_batch_have_precisions_of_their_own(model):
    classes = tuple(token % 2 for token in range(model.config.vocab_size))
    rule = LossRule(signal="", edges=(), table=((3,), (5,)), classes=classes)
    with following(model, Schedule(prefill=5, rule=rule)) as follower:
        model.generate(torch.tensor([[4, 7], [9, 8]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert len(follower.bits) == 3
    with pytest.raises(ScheduleError, match="asks for 9"), following(model, Schedule(prefill=9, rule=rule)):
        pass


def test_a_compiled_model_follows_a_schedule_in_generate_and_in_a_loop(model, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of types cannot be traced
    classes = tuple(token % 2 for token in range(model.config.vocab_size))
    schedule = Schedule(prefill=5, rule=LossRule(signal="", edges=(), table=((3,), (5,)), classes=classes))
    prompts = torch.tensor([[4, 7, 9], [6, 8, 5]])
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with following(model, schedule) as follower:
        expected, bits = model.generate(prompts, **settings), follower.bits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with following(compiled, schedule) as follower:
        assert torch.equal(compiled.generate(prompts, **settings), expected)
        assert follower.bits == bits
        cache, tokens, written = None, prompts, prompts
        for _ in range(6):
            output = compiled(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache, tokens = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
            written = torch.cat((written, tokens), 1)
        assert torch.equal(written, expected)
        assert follower.bits == bits
    assert len(set(bits)) > 1


@pytest.mark.parametrize("average", [3.0, 3.3, 3.9, 4.4, 5.0])
def test_the_search_keeps_the_average_and_comes_near_the_exhaustive_best(average):
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(1, 20, (6,), generator=generator).double()
    levels = torch.rand(6, generator=generator).double() * counts
    sums = torch.stack([levels, 0.3 * levels, 0.1 * levels])
    chosen = least_within(sums, counts, WIDTHS, average)

    def cost(bits):
        return sum(float(sums[WIDTHS.index(width), cell]) for cell, width in enumerate(bits))

    def mean(bits):
        return float((torch.tensor(bits).double() * counts).sum() / counts.sum())

    best = min(cost(bits) for bits in itertools.product(WIDTHS, repeat=6) if mean(bits) <= average + 1e-9)
    assert mean(chosen.tolist()) <= average + 1e-9
    assert cost(chosen.tolist()) <= 1.15 * best


def test_an_average_below_the_narrowest_width_is_refused():
    with pytest.raises(ScheduleError, match="below the narrowest"):
        least_within(torch.ones(3, 2), torch.ones(2), WIDTHS, 2.5)
