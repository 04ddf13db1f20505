"""Settings that are the backend's: `onnx-style=qdq` is `style=qdq` of the onnx backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from guidedq.errors import RecipeError
from guidedq.registry import available, name_of, with_options
from guidedq.stages import AbstractBackend


def with_backend_settings(backend: AbstractBackend, settings: Sequence[str]) -> tuple[AbstractBackend, list[str]]:
    """The backend with those of the settings that are its own, and the other settings.

    A setting is its own if it names one of its options, plainly, after its name (`onnx-style=`), or after `backend.`.

    Raises:
        RecipeError: a setting is of another backend, or its value does not fit.
    """
    if not settings:
        return backend, []
    name, others = name_of(backend, "backend"), list[str]()
    own: dict[str, str] = {}
    options = {field.name.replace("_", "-") for field in fields(backend)}  # pyright: ignore[reportArgumentType]
    for setting in settings:
        spelled, separator, value = (part.strip() for part in setting.partition("="))
        option = spelled.replace("_", "-").removeprefix("backend.").removeprefix(f"{name}-")
        if separator and (option in options or spelled.startswith("backend.")):
            own[option] = value
        else:
            _refuse_foreign(setting, option, name)
            others.append(setting)
    return with_options(backend, name, own), others


def _refuse_foreign(setting: str, option: str, chosen: str) -> None:
    """Refuse what is an option of another backend, by its prefix or plainly."""
    for other, leaf in available("backend").items():
        known = {field.name.replace("_", "-") for field in fields(leaf)}
        if other != chosen and (option in known or option.removeprefix(f"{other}-") in known):
            raise RecipeError(
                f"{setting}: this is an option of the {other} backend, and {chosen} is written. Pass --backend {other}."
            )
