"""Loss increases made from known laws, for tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from guidedq.law.forms import Cells
from guidedq.law.record import GUIDED, UNIFORM, Point, SweptModel
from guidedq.law.regression import Measured
from guidedq.law.training import TrainingLaw

WIDTHS = (8, 6, 5, 4, 3, 2)
TRAINING = TrainingLaw(a=300.0, alpha=0.4, b=900.0, beta=0.35, floor=1.5, source="fitted")
SIZES, COUNTS = (1e5, 3e5, 1e6), (1e6, 4e6, 16e6, 64e6)


def grid(sizes: Sequence[float] = SIZES, counts: Sequence[float] = COUNTS, widths: Sequence[float] = WIDTHS) -> Cells:
    """Every size after every training at every width."""
    cells = [(size, count, float(bits)) for size in sizes for count in counts for bits in widths]
    parameters, tokens, bits = np.array(cells, dtype=np.float64).T
    return Cells(parameters=parameters, tokens=tokens, bits=bits)


def power_increase(cells: Cells) -> np.ndarray:
    """By the power law with eta 1e-12, beta 0.4, delta 10."""
    return 1e-12 * (cells.tokens / cells.parameters) ** 0.4 * (16.0 - cells.bits) ** 10


def exponential_increase(cells: Cells) -> np.ndarray:
    """By the exponential law with C_T 0.5, gamma_D 0.5, gamma_N 0.3, g_post 0.7."""
    return 0.5 * cells.tokens**0.5 / cells.parameters**0.3 * np.exp(-cells.bits / 0.7)


def measured(cells: Cells, increase: np.ndarray, *, noise: float = 0.0, seed: int = 0) -> Measured:
    """Measurements with a relative error of `noise`, and a standard error far below."""
    factor = np.exp(noise * np.random.default_rng(seed).standard_normal(len(cells)))
    return Measured(cells=cells, increase=increase * factor, error=1e-6 * increase)


def swept_models(sizes: Sequence[float] = SIZES, counts: Sequence[float] = COUNTS) -> list[SweptModel]:
    """Models whose increases follow the exponential law, guided ones a third of it."""
    found: list[SweptModel] = []
    for size in sizes:
        for count in counts:
            loss = float(TRAINING.loss(size, count))
            points: list[Point] = []
            for allocation, share in ((UNIFORM, 1.0), (GUIDED, 1 / 3)):
                cells = grid([size], [count])
                for width, increase in zip(WIDTHS, share * exponential_increase(cells), strict=True):
                    points.append(
                        Point(
                            allocation=allocation,
                            width=width,
                            bits=float(width),
                            increase=float(increase),
                            error=1e-3 * float(increase),
                            kl=float(increase),
                            loss=loss + float(increase),
                        )
                    )
            name = f"{size:.0e}-{count:.0e}"
            found.append(
                SweptModel(
                    name=name, digest=name, parameters=math.floor(size), tokens=count, loss=loss, points=tuple(points)
                )
            )
    return found
