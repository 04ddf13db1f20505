"""Text samplers: packed or padded, seeded, and never overlapping."""

import dataclasses
import json
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_language_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from guidedq.artifacts.samples import SampleSet
from guidedq.calibration.demo import DemoSampler
from guidedq.calibration.files import FileSampler
from guidedq.calibration.generated import GeneratedSampler
from guidedq.calibration.packing import _spread
from guidedq.calibration.split import Sizes
from guidedq.errors import CalibrationError
from guidedq.ir.model import InputSpec, Objective
from guidedq.progress import SilentProgress

SMALL = FileSampler(samples=4, sequence_length=20, probe_samples=2, evaluation_samples=3)
WORDS = 5000


class Notes:
    """Keeps the notices."""

    def __init__(self):
        self.texts = []

    def start(self, stage, total):
        pass

    def advance(self, steps=1):
        pass

    def notice(self, text):
        self.texts.append(text)


def word_tokenizer(bos=True):
    """One token for each of the words `w0`, `w1`, ...: a token tells its place in the text."""
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3} | {f"w{i}": i + 4 for i in range(WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **special
    )


def language_model(bos=True, **changes):
    facts = {"tokenizer": word_tokenizer(bos), "vocabulary_size": WORDS + 4, "context_length": 64} | changes
    return dataclasses.replace(tiny_language_model(), **facts)


def encoder(**changes):
    masked = tuple(
        InputSpec(name=name, dtype=torch.int64, shape=(None, None)) for name in ("input_ids", "attention_mask")
    )
    return language_model(objective=Objective.VALUES, inputs=masked, **changes)


def words(start, stop):
    return " ".join(f"w{i}" for i in range(start, stop))


def rows(samples: SampleSet):
    return [row.tolist() for row in samples.inputs["input_ids"]]


def draw(model, path, *evaluation, sampler=SMALL, seed=0, progress=None):
    return sampler.sample(model, [path], list(evaluation), seed=seed, progress=progress or SilentProgress())


@given(seed=st.integers(0, 10**6), count=st.integers(200, 3000), documents=st.integers(1, 12), bos=st.booleans())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_token_of_the_text_is_in_two_sequences(tmp_path, seed, count, documents, bos):
    path = tmp_path / "text.txt"
    edges = [count * i // documents for i in range(documents + 1)]
    path.write_text("<|endoftext|>".join(words(a, b) for a, b in pairwise(edges)))
    made = draw(language_model(bos), path, seed=seed)
    parts = [made.calibration, made.probe, made.evaluation]
    assert [len(part) for part in parts][:2] == [4, 2]
    seen = [token for part in parts for row in rows(part) for token in row if token > 3]
    assert len(seen) == len(set(seen))
    for part in parts:
        assert part.mask is None
        assert part.inputs["input_ids"].shape[1] == 20
        for row in rows(part):
            text = [token for token in row if token > 3]
            assert text == list(range(text[0], text[0] + len(text)))
            assert (row[0] == 0) or not bos


def test_same_seed_gives_the_same_samples_and_another_seed_others(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(words(0, 3000))
    made = [draw(language_model(), path, seed=seed).digest for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_documents_are_parted_by_the_token_that_ends_a_text_where_none_begins_it(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": words(i * 10, i * 10 + 10)}) for i in range(100)))
    made = draw(language_model(bos=False), path)
    for row in rows(made.calibration):
        after = [row[i + 1] for i in range(len(row) - 1) if row[i] == 1]
        assert after
        assert all((token - 4) % 10 == 0 for token in after)


def test_short_text_shortens_the_sequences_and_says_so(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(words(0, 50))
    notes = Notes()
    made = draw(language_model(), path, progress=notes)
    assert [len(part) for part in (made.calibration, made.probe, made.evaluation)] == [1, 1, 1]
    assert made.calibration.inputs["input_ids"].shape[1] == 18
    assert "shortened from 20 to 18" in notes.texts[0]


@pytest.mark.parametrize(("count", "said"), [(15, "shorter than one sequence"), (30, "too short for 3 sequences")])
def test_text_that_is_too_short_says_how_much_is_there_and_needed(tmp_path, count, said):
    path = tmp_path / "text.txt"
    path.write_text(words(0, count))
    with pytest.raises(CalibrationError, match=f"{said}: it has {count + 1} tokens.* need 57"):
        draw(language_model(), path)


def test_sequences_are_no_longer_than_the_model_takes(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(words(0, 3000))
    long = dataclasses.replace(SMALL, sequence_length=1000)
    assert draw(language_model(), path, sampler=long).calibration.inputs["input_ids"].shape[1] == 64


def test_evaluation_file_is_drawn_from_alone(tmp_path):
    (tmp_path / "a.txt").write_text(words(0, 1000))
    (tmp_path / "b.txt").write_text(words(2000, 3000))
    made = draw(language_model(), tmp_path / "a.txt", tmp_path / "b.txt")
    assert all(token >= 2004 for row in rows(made.evaluation) for token in row if token > 3)
    assert all(token < 1004 for row in rows(made.calibration) + rows(made.probe) for token in row if token > 3)


def test_file_cannot_be_both_calibration_and_evaluation_data(tmp_path):
    (tmp_path / "a.txt").write_text(words(0, 1000))
    (tmp_path / "copy.txt").write_text(words(0, 1000))
    with pytest.raises(CalibrationError, match="held out"):
        draw(language_model(), tmp_path / "a.txt", tmp_path / "a.txt")
    with pytest.raises(CalibrationError, match="no text that is not also"):
        draw(language_model(), tmp_path / "a.txt", tmp_path / "copy.txt")


def test_repeated_text_cannot_stand_in_two_parts(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("w1 " * 1000)
    with pytest.raises(CalibrationError, match="also a calibration sample"):
        draw(language_model(), path)


def test_token_ids_beyond_the_vocabulary_are_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(words(0, 1000))
    with pytest.raises(CalibrationError, match=r"token id \d+ is outside the vocabulary"):
        draw(language_model(vocabulary_size=24), path)


def test_encoder_reads_a_line_a_sample_padded_and_masked(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(words(i * 10, i * 10 + 1 + i % 7) for i in range(60)))
    made = draw(encoder(), path)
    for part, count in ((made.calibration, 4), (made.probe, 2), (made.evaluation, 3)):
        assert len(part) == count
        tokens, mask = part.inputs["input_ids"], part.inputs["attention_mask"]
        assert torch.equal(tokens != 2, mask.bool())
        assert part.mask is None or torch.equal(part.mask, mask.bool())
        assert mask.sum(1).max() == tokens.shape[1]
        assert all((row[0] - 4) % 10 == 0 for row in tokens.tolist())


def test_one_long_line_is_read_sentence_by_sentence(tmp_path):
    path = tmp_path / "line.txt"
    path.write_text("w1 w2. w3 w4! w5 w6? w7 w8.")
    made = draw(encoder(), path)
    assert sum(len(part) for part in (made.calibration, made.probe, made.evaluation)) == 4


@pytest.mark.parametrize(
    ("content", "said"), [('{"txt": "a"}', "field 'text'"), ("{", "no JSON"), ("[1]", "field 'text'")]
)
def test_bad_jsonl_is_named_by_its_line(tmp_path, content, said):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "w1"}\n' + content)
    with pytest.raises(CalibrationError, match=f"line 2.*{said}"):
        draw(language_model(), path)


def test_text_for_a_model_without_a_tokenizer_says_what_it_takes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("w1")
    with pytest.raises(CalibrationError, match=r"no tokenizer.*input_ids int64\[any, any\]"):
        draw(language_model(tokenizer=None), path)


def test_no_data_an_unknown_kind_and_a_missing_file_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(CalibrationError, match="no data given"):
        SMALL.sample(language_model(), [], [], seed=0, progress=SilentProgress())
    with pytest.raises(CalibrationError, match="no known kind"):
        draw(language_model(), tmp_path / "a.csv")
    with pytest.raises(CalibrationError, match="no such file"):
        draw(language_model(), tmp_path / "b.txt")
    with pytest.raises(CalibrationError, match="no data file"):
        draw(language_model(), tmp_path)


def test_model_writes_its_own_text_the_same_for_the_same_seed():
    sampler = GeneratedSampler(samples=5, sequence_length=9, tuning_samples=5, probe_samples=2, evaluation_samples=3)
    model = dataclasses.replace(tiny_language_model(), context_length=64)
    made = [sampler.sample(model, [], [], seed=seed, progress=SilentProgress()) for seed in (4, 4, 5)]
    assert made[0].digest == made[1].digest != made[2].digest
    sizes = [len(part) for part in (made[0].calibration, made[0].probe, made[0].evaluation)]
    assert sizes == [5, 2, 3]
    assert made[0].calibration.inputs["input_ids"].shape == (5, 9)


def test_written_text_follows_the_model_own_distribution():
    class Certain(torch.nn.Module):
        """The next token is always the last plus one."""

        def forward(self, input_ids):
            return 1000.0 * torch.nn.functional.one_hot((input_ids + 1) % 24, 24).float()

    model = tiny_language_model()
    sure = dataclasses.replace(model, program=dataclasses.replace(model.program, module=Certain()))
    sampler = GeneratedSampler(samples=4, sequence_length=9, probe_samples=1, evaluation_samples=1)
    try:
        made = sampler.sample(sure, [], [], seed=0, progress=SilentProgress())
    except CalibrationError:  # with 24 possible starts two parts may begin alike
        made = sampler.sample(sure, [], [], seed=1, progress=SilentProgress())
    for row in rows(made.calibration):
        assert row == [(row[0] + step) % 24 for step in range(9)]


def test_only_a_language_model_writes_its_own_text():
    model = dataclasses.replace(tiny_language_model(), objective=Objective.VALUES)
    with pytest.raises(CalibrationError, match="only a language model"):
        GeneratedSampler().sample(model, [], [], seed=0, progress=SilentProgress())


def test_the_demo_text_is_shared_out_without_overlap():
    tokenizer = word_tokenizer()
    model = language_model(tokenizer=tokenizer)
    sampler = DemoSampler(samples=9, sequence_length=32, probe_samples=3, evaluation_samples=2)
    with pytest.MonkeyPatch.context() as patch:
        texts = {"calibration": [words(0, 400)], "evaluation": [words(1000, 1400)]}
        patch.setattr("guidedq.calibration.demo.demo_text", texts.__getitem__)
        made = sampler.sample(model, [], [], seed=0, progress=SilentProgress())
    seen = [{token for row in rows(part) for token in row if token > 3}
            for part in (made.calibration, made.probe, made.evaluation)]  # fmt: skip
    assert all(seen)
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert min(seen[2]) < 404 < 1004 <= max(seen[2])  # of both texts


@pytest.mark.parametrize(("count", "held"), [(3, 1), (29, 2), (490, 49)])
def test_what_is_held_back_is_spread_over_the_text(count, held):
    for seed in range(5):
        found = _spread(count, torch.Generator().manual_seed(seed))
        assert len(found) == held == len(found.unique())
        assert int(found.min()) >= 0
        assert int(found.max()) < count
        if held > 1:
            assert int(found.diff().min()) >= count // held


@pytest.mark.parametrize("kind", ["packed", "lines", "generated"])
def test_tuning_samples_go_beyond_the_calibration_and_stay_apart_from_the_rest(kind, tmp_path):
    sizes = {"samples": 4, "sequence_length": 20, "probe_samples": 2, "evaluation_samples": 3, "tuning_samples": 11}
    if kind == "generated":
        made = GeneratedSampler(**sizes).sample(tiny_language_model(), [], [], seed=0, progress=SilentProgress())
    else:
        text = tmp_path / "text.txt"
        text.write_text(words(0, 2000) if kind == "packed" else "\n".join(words(i, i + 9) for i in range(0, 900, 9)))
        model = language_model() if kind == "packed" else encoder(tokenizer=word_tokenizer())
        made = FileSampler(**sizes).sample(model, [text], [], seed=0, progress=SilentProgress())
    assert [len(part) for part in (made.calibration, made.tuning, made.probe)] == [4, 11, 2]
    seen = {
        name: {tuple(token for token in row if token != 2) for row in rows(getattr(made, name))}
        for name in ("calibration", "tuning", "probe", "evaluation")
    }
    assert seen["calibration"] < seen["tuning"]
    assert not seen["tuning"] & seen["probe"]
    assert not seen["tuning"] & seen["evaluation"]


def test_a_short_text_leaves_nothing_for_further_tuning_samples():
    for available in range(2, 40):
        calibration, tuning, probe = Sizes(samples=12, tuning=20, probe=4, evaluation=1, sequence_length=16).shared_out(
            available
        )
        assert calibration == tuning[: len(calibration)]
        assert len(tuning) == (len(calibration) if available <= 16 else min(20, available - 4))
        assert sorted([*tuning, *probe]) == list(range(len(tuning) + len(probe)))
        assert calibration and probe
