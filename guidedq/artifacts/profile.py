"""A profile: how long a runtime's kernels take on a machine, by shape; and which kernels could run a site."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from guidedq.errors import ProfileError
from guidedq.files import write_text

PROFILE_VERSION = 1
"""Of the file: raised when the meaning of something in it changes."""
BLOCK = "block_size"
"""An option of operators in which those that differ are about as fast."""
NEIGHBOURS = 6
"""Measured shapes that a shape between them is estimated from: one on either side along each of three axes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An operator of a runtime on one shape.

    Attributes:
        operator: Its type, with the options that matter: `MatMul`, `MatMulNBits{bits=4 block-size=32}`.
        tokens: Vectors that the weight is multiplied with in one call; positions of a convolution's result.
        columns: Inputs of each result.
        rows: Results of each vector.
        window: Of a convolution: height and width of what it reads, of its kernel, its strides, and its groups.
    """

    operator: str
    tokens: int
    columns: int
    rows: int
    window: tuple[int, ...] = ()

    @property
    def shape(self) -> str:
        """Its shape as text: `64x384x1536`, for convolutions with the window behind."""
        return "x".join(map(str, (self.tokens, self.columns, self.rows, *self.window)))

    @property
    def work(self) -> int:
        """Multiplications and additions."""
        return self.tokens * self.columns * self.rows

    def distance(self, other: Kernel) -> float:
        """How unlike the shapes are: squared differences of the logarithms to base 2."""
        pairs = ((self.tokens, other.tokens), (self.columns, other.columns), (self.rows, other.rows))
        return sum(math.log2(mine / theirs) ** 2 for mine, theirs in pairs)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteKernels:
    """The kernels that could run a site, one for each of its operators.

    Attributes:
        original: In the model as it is.
        formats: In each format of its footprint, its activations in float (or as the runtime rounds them itself).
        integer: With its activations rounded to integers; empty if that is not offered.
        mixed: What takes the place of a format's kernels where rows have several formats, to be compared with
            `plain`; empty where rows are never mixed, or mixing costs nothing.
        plain: One format for all rows, in the way that `mixed` is several.
    """

    original: tuple[Kernel, ...]
    formats: tuple[tuple[Kernel, ...], ...]
    integer: tuple[Kernel, ...] = ()
    mixed: tuple[Kernel, ...] = ()
    plain: tuple[Kernel, ...] = ()

    @property
    def all(self) -> tuple[Kernel, ...]:
        """Every kernel that is spoken of."""
        formats = (kernel for kernels in self.formats for kernel in kernels)
        return tuple(dict.fromkeys((*self.original, *formats, *self.integer, *self.mixed, *self.plain)))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Seconds by kernel, measured.

    Attributes:
        runtime: The runtime and its version.
        processor: Of the machine.
        threads: That the runtime was given.
        seconds: Of one call.
        models: Whole models, unquantized, on one sample; by the digest of the model.
    """

    runtime: str
    processor: str
    threads: int
    seconds: Mapping[Kernel, float]
    models: Mapping[str, float] = field(default_factory=dict[str, float])

    def estimate(self, kernel: Kernel) -> float:
        """Seconds of a kernel: as measured, or at the rate of the nearest shapes that were, the nearer the more.

        Raises:
            ProfileError: the operator was not measured on any shape.
        """
        if kernel in self.seconds:
            return self.seconds[kernel]
        known = [other for other in self.seconds if other.operator == self._nearest_operator(kernel.operator)]
        if not known:
            listed = ", ".join(dict.fromkeys(other.operator for other in self.seconds)) or "none"
            raise ProfileError(
                f"the profile has no {kernel.operator}. It has: {listed}. Measure the model's own kernels with "
                "`guidedq profile MODEL`."
            )
        near = sorted(known, key=kernel.distance)[:NEIGHBOURS]
        if (nearest := kernel.distance(near[0])) == 0:  # a convolution that differs in its window alone
            near = [other for other in near if kernel.distance(other) == nearest]
        weights = [1 / max(kernel.distance(other), 1e-9) for other in near]
        rates = [math.log(self.seconds[other] / other.work) for other in near]
        rate = sum(weight * value for weight, value in zip(weights, rates, strict=True)) / sum(weights)
        return kernel.work * math.exp(rate)

    def _nearest_operator(self, operator: str) -> str:
        """The operator, or where it was not measured, the one that differs least in its block size alone."""
        name, options = parsed_operator(operator)
        block = options.pop(BLOCK, None)
        found: dict[str, float] = {}
        for other in dict.fromkeys(kernel.operator for kernel in self.seconds):
            other_name, others = parsed_operator(other)
            if block is not None and BLOCK in others and (name, options) == (other_name, _without_block(others)):
                found[other] = abs(math.log2(others[BLOCK] / block))
        return min(found, key=found.__getitem__, default=operator)

    def content(self) -> dict[str, Any]:
        """The profile as plain values; times in microseconds."""
        times: dict[str, dict[str, float]] = {}
        for kernel, seconds in self.seconds.items():
            times.setdefault(kernel.operator, {})[kernel.shape] = round(1e6 * seconds, 2)
        return {
            "version": PROFILE_VERSION,
            "runtime": self.runtime,
            "processor": self.processor,
            "threads": self.threads,
            "models": {digest: round(1e6 * seconds, 2) for digest, seconds in self.models.items()},
            "microseconds": times,
        }

    def toml(self) -> str:
        """The profile as TOML."""
        content = self.content()
        tables = {"models": content.pop("models")}
        tables |= {f"microseconds.{_quoted(name)}": times for name, times in content.pop("microseconds").items()}
        lines = [f"{name} = {value if isinstance(value, int) else _quoted(value)}" for name, value in content.items()]
        for name, values in tables.items():
            lines += ["", f"[{name}]", *(f"{_quoted(key)} = {value}" for key, value in values.items())]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Write it as TOML.

        Raises:
            ProfileError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, self.toml())
        except OSError as error:
            raise ProfileError(f"cannot write {path}: {error.strerror or error}.") from error


def operator_text(name: str, **options: int) -> str:
    """An operator with its options: `MatMulNBits{bits=4 block-size=32}`."""
    words = " ".join(f"{key.replace('_', '-')}={value}" for key, value in options.items())
    return f"{name}{{{words}}}" if words else name


def parsed_operator(text: str) -> tuple[str, dict[str, int]]:
    """The inverse of `operator_text`."""
    name, _, words = text.removesuffix("}").partition("{")
    pairs = (word.partition("=") for word in words.split())
    return name, {key.replace("-", "_"): int(value) for key, _, value in pairs}


def read_profile(path: Path) -> Profile:
    """Read what `Profile.write` wrote.

    Raises:
        ProfileError: it is none, or of a newer version.
    """
    try:
        return parse_profile(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}. Make one with `guidedq profile`.") from error
    except (UnicodeDecodeError, ProfileError) as error:
        raise ProfileError(f"{path}: {error}") from error


def parse_profile(toml: str) -> Profile:
    """A profile from TOML, the inverse of `Profile.toml`.

    Raises:
        ProfileError: it is none, or of a newer version.
    """
    try:
        content: dict[str, Any] = tomllib.loads(toml)
        version, threads = content["version"], content["threads"]
        if type(version) is not int or version > PROFILE_VERSION:
            raise ProfileError(f"version {version!r}; this guidedq reads up to {PROFILE_VERSION}. Install a newer one.")
        if type(threads) is not int or threads < 1:
            raise ProfileError(f"threads = {threads!r}: expected a whole number, at least 1.")
        seconds = {
            _kernel(operator, shape): _seconds(shape, time)
            for operator, times in content.get("microseconds", {}).items()
            for shape, time in times.items()
        }
        models = {str(name): _seconds(name, time) for name, time in content.get("models", {}).items()}
        runtime, processor = str(content["runtime"]), str(content["processor"])
    except (tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"no profile of guidedq ({error}).") from error
    return Profile(runtime=runtime, processor=processor, threads=threads, seconds=seconds, models=models)


def _without_block(options: Mapping[str, int]) -> dict[str, int]:
    return {key: value for key, value in options.items() if key != BLOCK}


def _kernel(operator: str, shape: str) -> Kernel:
    parsed_operator(operator)
    numbers = [int(number) for number in shape.split("x")]
    if min(numbers) < 1:
        raise ValueError(f"shape {shape!r}")
    tokens, columns, rows, *window = numbers
    return Kernel(operator=operator, tokens=tokens, columns=columns, rows=rows, window=tuple(window))


def _seconds(name: str, microseconds: Any) -> float:
    if isinstance(microseconds, bool) or not isinstance(microseconds, int | float) or not 0 < microseconds < math.inf:
        raise ValueError(f"{name} = {microseconds!r}, expected microseconds above 0")
    return microseconds / 1e6


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
