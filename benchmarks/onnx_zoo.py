"""Make the ONNX models and data that the tools are compared on: exports, calibration and evaluation samples.

    python benchmarks/onnx_zoo.py --models FOLDER [--models FOLDER] --out FOLDER [--only NAME]

FOLDERs are searched for what is made into entries: `cifar10/`, `all-MiniLM-L6-v2/`, `stories260K/`, `whisper/`
(Hugging Face folders), `rapidocr-onnxruntime/`, `silero-vad/`, `magika/` (as in their wheels), and `text/`. Speech is
spoken by espeak-ng. Each entry is a folder (benchmarks/zoo/entries.py); those that are there are not made again. A
seed gives the same files on the same machine; magika's samples are the machine's own files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from zoo.files import magika
from zoo.images import detection, direction, recognition, resnet
from zoo.sound import voice_activity, whisper_decoder, whisper_encoder
from zoo.sources import Sources
from zoo.text import gpt2, minilm, stories

MAKERS: dict[str, Callable[[Sources, Path], None]] = {
    "ResNet-20": resnet,
    "silero-vad": partial(voice_activity, file="silero_vad_op18_ifless.onnx"),
    "silero-vad-branches": partial(voice_activity, file="silero_vad.onnx"),
    "stories260K-dynamo": partial(stories, dynamo=True),
    "stories260K-torchscript": partial(stories, dynamo=False),
    "GPT-2-small": gpt2,
    "PP-OCRv4-cls": direction,
    "magika": magika,
    "PP-OCRv4-rec": recognition,
    "PP-OCRv4-det": detection,
    "MiniLM-L6": minilm,
    "whisper-tiny-encoder": whisper_encoder,
    "whisper-tiny-decoder": whisper_decoder,
}


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=MAKERS, default=[])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sources = Sources(folders=arguments.models, seed=arguments.seed)
    for name in arguments.only or MAKERS:
        folder = arguments.out / name
        if not (folder / "facts.json").exists():
            MAKERS[name](sources, folder)
            print(f"{name}: {(folder / 'model.onnx').stat().st_size / 1e6:.3f} MB", flush=True)


if __name__ == "__main__":
    main()
