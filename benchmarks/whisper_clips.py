"""Clips for the whole of Whisper, as `forecast.py` takes them: spectra, and the tokens that the model makes of them.

    python benchmarks/whisper_clips.py --models FOLDER [--models FOLDER] --out FOLDER

FOLDERs hold `whisper/` (a Hugging Face folder) and `text/`; espeak-ng speaks. Written: calibration.npz, evaluation.npz.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from zoo.sound import whisper_clips
from zoo.sources import Sources

CLIPS = {"calibration": (64, 0), "evaluation": (48, 1000)}
"""How many, and the number of the first."""


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sources = Sources(folders=arguments.models, seed=arguments.seed)
    for part, (count, first) in CLIPS.items():
        arrays = whisper_clips(sources, count, first)
        np.savez(arguments.out / f"{part}.npz", **arrays)  # pyright: ignore[reportArgumentType]  (a name is no option)


if __name__ == "__main__":
    main()
