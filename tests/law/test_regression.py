"""Fits of both forms to data of known parameters, and to data that do not tell them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from law_data import WIDTHS, exponential_increase, grid, measured, power_increase

from guidedq.errors import LawError
from guidedq.law.forms import Cells, Form
from guidedq.law.regression import Measured, fit_form, growth, held_out_error, predicted

TRUTH = {
    Form.POWER: {"eta": 1e-12, "beta": 0.4, "delta": 10.0},
    Form.EXPONENTIAL: {"C_T": 0.5, "gamma_D": 0.5, "gamma_N": 0.3, "g_post": 0.7},
}
INCREASE = {Form.POWER: power_increase, Form.EXPONENTIAL: exponential_increase}


@pytest.mark.parametrize("form", Form)
def test_the_parameters_that_made_the_data_are_found(form: Form) -> None:
    cells = grid()
    fit = fit_form(form, measured(cells, INCREASE[form](cells)), 16.0)
    found = {name: value for name, (value, _, _) in fit.intervals().items()}
    assert found == pytest.approx(TRUTH[form], rel=1e-5)


@pytest.mark.parametrize("form", Form)
def test_the_intervals_hold_the_truth_nine_times_in_ten(form: Form) -> None:
    cells = grid()
    held: list[bool] = []
    for seed in range(60):
        fit = fit_form(form, measured(cells, INCREASE[form](cells), noise=0.1, seed=seed), 16.0)
        held += [low <= TRUTH[form][name] <= high for name, (_, low, high) in fit.intervals().items()]
    assert 0.82 <= np.mean(held) <= 0.97


@pytest.mark.parametrize("form", Form)
def test_one_model_tells_the_constant_and_the_slope_alone(form: Form) -> None:
    cells = grid([3e5], [4e6])
    data = measured(cells, INCREASE[form](cells))
    unknown = replace(data, cells=replace(cells, tokens=np.full(len(cells), np.nan)))
    for given in (data, unknown):
        fit = fit_form(form, given, 16.0)
        assert len(fit.names) == 2
        assert np.allclose(predicted(fit, given.cells)[0], data.increase)


def test_checkpoints_of_one_size_tell_what_tokens_do_and_not_what_parameters_do() -> None:
    cells = grid([3e5])
    fit = fit_form(Form.EXPONENTIAL, measured(cells, exponential_increase(cells)), 16.0)
    assert fit.names == ("log_C_T", "gamma_D", "1/g_post")
    assert fit.intervals()["gamma_D"][0] == pytest.approx(0.5)


def test_tokens_that_grow_with_the_parameters_are_not_told_apart_from_them() -> None:
    cells = grid([1e5], [1e6])
    parts = [grid([size], [10 * size]) for size in (1e5, 1e6, 1e7)]
    names = ("parameters", "tokens", "bits")
    cells = Cells(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    with pytest.raises(LawError, match="the exponential law is not identified"):
        fit_form(Form.EXPONENTIAL, measured(cells, exponential_increase(cells)), 16.0)


def test_the_form_that_made_the_data_has_the_smaller_held_out_error() -> None:
    cells = grid()
    for truth in Form:
        data = measured(cells, INCREASE[truth](cells), noise=0.02)
        errors = {form: held_out_error(form, data, cells.bits, 16.0) for form in Form}
        assert min(errors, key=lambda form: errors[form] or np.inf) is truth
        assert errors[truth] == pytest.approx(0.02, rel=0.5)


def test_a_law_that_one_group_alone_tells_has_no_held_out_error() -> None:
    cells = grid([1e5], [1e6], widths=(4, 3, 2))
    data = measured(cells, exponential_increase(cells))
    assert held_out_error(Form.EXPONENTIAL, data, cells.bits, 16.0) is None


def test_an_increase_below_its_noise_pulls_no_more_than_its_noise_allows() -> None:
    cells = grid([1e5], [1e6])
    increase = exponential_increase(cells)
    disturbed = np.where(cells.bits == 8, -1e-5, increase)
    data = Measured(cells=cells, increase=disturbed, error=np.maximum(1e-4, 1e-3 * increase))
    assert fit_form(Form.EXPONENTIAL, data, 16.0).intervals()["g_post"][0] == pytest.approx(0.7, rel=0.05)


def test_growth_is_the_exponent_at_one_width() -> None:
    cells = grid([3e5], widths=[3])
    value, low, high = growth(measured(cells, exponential_increase(cells))) or (0, 0, 0)
    assert value == pytest.approx(0.5)
    assert low <= value <= high
    assert growth(measured(grid([3e5], [1e6]), exponential_increase(grid([3e5], [1e6])))) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"widths": [4, 4, 4, 4]}, "one width"),
        ({"widths": [4, 3]}, "one more measurement"),
        ({"increase": 0.0}, "nothing to fit"),
        ({"increase": np.nan}, "not a finite number"),
        ({"increase": np.inf}, "not a finite number"),
    ],
)
def test_data_that_tell_nothing_are_refused_in_words(change: dict[str, object], says: str) -> None:
    cells = grid([1e5], [1e6], widths=change.get("widths", WIDTHS))  # type: ignore[arg-type]
    increase = exponential_increase(cells)
    if "increase" in change:
        increase = np.full(len(cells), change["increase"])
    data = Measured(cells=cells, increase=increase, error=np.full(len(cells), 1e-4))
    for form in Form:
        with pytest.raises(LawError, match=says):
            fit_form(form, data, 16.0)


def test_the_power_law_ends_at_the_bits_of_training() -> None:
    cells = grid([1e5], [1e6])
    fit = fit_form(Form.POWER, measured(cells, power_increase(cells)), 16.0)
    with pytest.raises(LawError, match="less than the 16 bits"):
        predicted(fit, grid([1e5], [1e6], widths=[16]))
