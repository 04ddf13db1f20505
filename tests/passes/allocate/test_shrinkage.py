from __future__ import annotations

import numpy as np

from guidedq.passes.allocate.shrinkage import shrinkage_scale


def rows_with(levels: np.ndarray) -> np.ndarray:
    return (np.array([[4.0], [1.0], [0.2]]) * levels).astype(np.float32)


def test_without_noise_nothing_is_shrunk() -> None:
    levels = np.random.default_rng(0).lognormal(0, 1, 50)
    assert (shrinkage_scale(rows_with(levels), np.zeros(50, dtype=np.float32)) == 1.0).all()


def test_rows_that_differ_by_less_than_their_noise_become_equal() -> None:
    levels = np.random.default_rng(0).lognormal(0, 0.1, 50)
    distortion = rows_with(levels)
    shrunk = distortion[0] * shrinkage_scale(distortion, np.full(50, 0.5, dtype=np.float32))
    assert shrunk.std() < 1e-6 * shrunk.mean()
    assert np.isclose(shrunk.sum(), distortion[0].sum(), rtol=1e-6)


def test_shrinking_brings_noisy_levels_nearer_to_the_true_ones() -> None:
    random = np.random.default_rng(1)
    true = random.lognormal(0, 0.5, 2000)
    observed = true * random.lognormal(0, 0.5, 2000)
    noise = np.full(2000, np.sqrt(np.expm1(0.25)), dtype=np.float32)
    shrunk = observed * shrinkage_scale(rows_with(observed), noise)
    spread = {name: np.log(values / true).std() for name, values in (("before", observed), ("after", shrunk))}
    best = np.sqrt(0.25 * 0.25 / 0.5)
    assert spread["before"] > 0.48
    assert abs(spread["after"] - best) < 0.02


def test_a_row_without_distortion_is_left_and_a_noisier_row_is_shrunk_more() -> None:
    levels = np.array([0.0, 1.0, 8.0, 8.0, 0.3, 0.1, 3.0, 0.02])
    noise = np.array([0.2, 0.2, 0.1, 1.0, 0.2, 0.2, 0.2, 0.2], dtype=np.float32)
    scale = shrinkage_scale(rows_with(levels), noise)
    assert scale[0] == 1.0
    assert scale[3] < scale[2]
