"""The zoo's models of sound: silero VAD and Whisper, on sentences that espeak-ng speaks, with noise and pauses."""

from __future__ import annotations

import io
import subprocess
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from .entries import Arrays, Facts, write_entry
from .sources import OneOutput, Sources, export, store

RATE = 16000
"""Samples of sound a second."""
VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m3", "en-us+f2", "en-gb-scotland", "en-us+m7")
CHUNK, CONTEXT = 512, 64
"""What silero VAD takes at once, and what it wants of the chunk before."""
CLIPS = (8, 16)
"""Of half a minute each, for calibration and evaluation of Whisper's encoder."""
DECODED = (32, 16)
TOKENS = 40
"""Of each clip that the decoder is given; those of its own making."""
NO_TIMESTAMPS = 50362
"""The token of whisper's English models that asks for words without times. Words are all tokens before the end's."""
CHUNKS = (512, 1024)


def clip(sources: Sources, number: int, seconds: float) -> np.ndarray:
    """Speech of one voice: sentences between pauses, in noise that differs from clip to clip; float32 within ±1."""
    draw = np.random.default_rng((sources.seed, number))
    text = sources.find("text/tinystories_niklas6.txt").read_text(encoding="utf-8")
    start = int(draw.integers(0, len(text) - 3000))
    words = text[start : start + 3000].split()[1:]
    voice, speed, pitch = VOICES[number % len(VOICES)], int(draw.integers(130, 190)), int(draw.integers(30, 70))
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", " ".join(words[:110])]
    spoken = subprocess.run(command, capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(spoken)) as sound:
        rate, values = sound.getframerate(), np.frombuffer(sound.readframes(1 << 30), np.int16) / np.float32(32768)
    count = int(seconds * RATE)
    values = np.interp(np.arange(count) * rate / RATE, np.arange(len(values)), values, right=0.0)
    silent = np.repeat(draw.random(int(seconds) + 1) < 0.15, RATE)[:count]
    loudness = 10 ** draw.uniform(-1.0, 0.0)
    noise = draw.normal(0, 10 ** draw.uniform(-4, -2), count)
    return (np.where(silent, 0.0, values) * loudness + noise).astype(np.float32)


def voice_activity(sources: Sources, folder: Path, file: str) -> None:
    """Chunks with the states that the model itself had come to."""
    path = store(onnx.load(str(sources.find(f"silero-vad/{file}"))), folder)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts: dict[str, Arrays] = {}
    for part, wanted, first in zip(("calibration", "evaluation"), CHUNKS, (0, 1000), strict=True):
        inputs, states = list[np.ndarray](), list[np.ndarray]()
        while len(inputs) < wanted:
            sound = clip(sources, first + len(inputs), 20.0)
            state = np.zeros((2, 1, 128), np.float32)
            for start in range(CONTEXT, len(sound) - CHUNK, CHUNK):
                chunk = sound[None, start - CONTEXT : start + CHUNK]
                if start // CHUNK % 8 == 7:  # every eighth: neighbours are much alike
                    inputs.append(chunk[0])
                    states.append(state[:, 0])
                found = session.run(None, {"input": chunk, "state": state, "sr": np.array(RATE)})
                state = np.asarray(found[1])
        parts[part] = {"input": np.stack(inputs[:wanted]), "state": np.stack(states[:wanted]), "sr": np.array(RATE)}
    facts = Facts(
        family="speech", output="output", meaning="values", task="threshold", batch=32,
        sample_axes={"state": 1, "sr": -1}, source="silero-vad 6.2.3",
    )  # fmt: skip
    write_entry(folder, facts, **parts)


def whisper_encoder(sources: Sources, folder: Path) -> None:
    """Spectra of half a minute to states."""
    model, spectra = _whisper(sources)
    parts: dict[str, Arrays] = {
        part: {"input_features": np.stack([spectra(first + number) for number in range(count)])}
        for part, count, first in zip(("calibration", "evaluation"), CLIPS, (0, 1000), strict=True)
    }
    module = OneOutput(model.model.encoder, ["input_features"], "last_hidden_state")
    with tempfile.TemporaryDirectory() as scratch:
        example = torch.from_numpy(parts["calibration"]["input_features"][:2])
        made = export(module, [example], Path(scratch) / "m.onnx", axes=[{0: "n"}], dynamo=True, opset=18)
    store(made, folder)
    facts = Facts(family="speech", output="last_hidden_state", meaning="values", batch=2,
                  source="whisper-tiny.en, dynamo exporter")  # fmt: skip
    write_entry(folder, facts, **parts)


def whisper_decoder(sources: Sources, folder: Path) -> None:
    """The tokens that the model itself makes of a clip, and the next of each."""
    model, spectra = _whisper(sources)
    parts: dict[str, Arrays] = {}
    for part, count, first in zip(("calibration", "evaluation"), DECODED, (0, 1000), strict=True):
        features = torch.from_numpy(np.stack([spectra(first + number) for number in range(count)]))
        states = torch.cat([model.model.encoder(one).last_hidden_state for one in features.split(4)])
        tokens = _spoken(model, states)
        parts[part] = {"input_ids": tokens.numpy(), "encoder_hidden_states": states.numpy()}
    module = OneOutput(_Decoder(model), ["input_ids", "encoder_hidden_states"], "logits")
    examples = [torch.from_numpy(parts["calibration"][name][:2]) for name in module.names]
    with tempfile.TemporaryDirectory() as scratch:
        axes = [{0: "n", 1: "s"}, {0: "n"}]
        made = export(module, examples, Path(scratch) / "m.onnx", axes=axes, dynamo=True, opset=18)
    store(made, folder)
    facts = Facts(family="speech", output="logits", meaning="logits", batch=2,
                  source="whisper-tiny.en, dynamo exporter, without a cache")  # fmt: skip
    write_entry(folder, facts, **parts)


def whisper_clips(sources: Sources, count: int, first: int) -> dict[str, np.ndarray]:
    """What the whole model reads: spectra of clips, and the tokens that it makes of them itself."""
    model, spectra = _whisper(sources)
    features = np.stack([spectra(first + number) for number in range(count)])
    states = torch.cat([model.model.encoder(one).last_hidden_state for one in torch.from_numpy(features).split(4)])
    return {"input_features": features, "decoder_input_ids": _spoken(model, states).numpy()}


class _Decoder(torch.nn.Module):
    """The decoder with its head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.head = model.model.decoder, model.proj_out

    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        """Something with `logits`."""
        states = self.decoder(input_ids=input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False)
        return type("Output", (), {"logits": self.head(states.last_hidden_state)})


def _spoken(model: Any, states: torch.Tensor) -> torch.Tensor:
    """The likeliest words, one after the other, asked for as one asks for a text: without times, and not to stop.

    Else the model answers many a clip with "no speech", and then with the same few tokens for ever.
    """
    decoder, words = _Decoder(model), model.config.eos_token_id
    tokens = torch.tensor([[model.config.decoder_start_token_id, NO_TIMESTAMPS]]).repeat(len(states), 1)
    while tokens.shape[1] < TOKENS:
        pairs = zip(tokens.split(4), states.split(4), strict=True)
        likeliest = torch.cat([decoder(*pair).logits[:, -1, :words].argmax(-1) for pair in pairs])
        tokens = torch.cat([tokens, likeliest[:, None]], 1)
    return tokens


def _whisper(sources: Sources) -> tuple[Any, Any]:
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.set_grad_enabled(False)
    folder = sources.find("whisper")
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)

    def spectra(number: int) -> np.ndarray:
        sound = clip(sources, number, 30.0)
        return np.asarray(extractor(sound, sampling_rate=RATE, return_tensors="np").input_features[0], np.float32)

    return model.eval(), spectra
