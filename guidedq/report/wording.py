"""Numbers for people: the same spelling on the terminal, in the report's page and on the plots."""

from __future__ import annotations

import math
from collections.abc import Mapping

from guidedq.artifacts.diagnostic import Diagnostic
from guidedq.artifacts.forecast import Forecast
from guidedq.artifacts.report import LatencyFacts, Report
from guidedq.artifacts.runtime import RuntimeFacts, RuntimeNode
from guidedq.quant.formats import EntropyFormat, FloatFormat, parse_format
from guidedq.quant.nested import NestedFormat, widths_text

BYTE_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
SMALLEST_PLAIN = 1e-3
"""Losses below this are spelled with a power of ten."""
LEAST_COUNT = 1000
"""A diagnostic's numbers from here on are spelled out."""
LIBRARY_BYTES = 400_000_000
"""What Python and its libraries take in memory before any model is loaded."""
LARGEST_EXPONENT = 700.0
"""`exp` of more is beyond float64."""


def bytes_text(size: int) -> str:
    """`3.412 MB`, in powers of ten as `ls -l` divided by a million would say."""
    for unit, name in BYTE_UNITS:
        if size >= unit:
            return f"{size / unit:.3f} {name}"
    return f"{size} B"


def loss_text(loss: float) -> str:
    """A loss or divergence with three significant digits: `0.0123`, `3.4e-05`, `infinite`."""
    if not math.isfinite(loss):
        return "infinite" if loss > 0 else "undefined"
    if loss == 0:
        return "0"
    return f"{loss:.1e}" if abs(loss) < SMALLEST_PLAIN else f"{loss:#.3g}".removesuffix(".")


def signed_text(loss: float) -> str:
    """A change of loss with its sign: `+0.0123`."""
    return ("+" if loss >= 0 else "") + loss_text(loss)


def seconds_text(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `3 min 20 s`, `1 h 05 min`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_text(report: Report) -> str:
    """The whole compile's time, and how often the model's own passes would fit in it: `13 min 02 s, 2.3 times ...`.

    Only where the guidance was collected by this run: a workspace that already has it makes the ratio meaningless.
    """
    total = sum(report.seconds.values(), 0.0)
    passes = report.guidance.get("forward_backward_seconds", 0.0)
    if not 0.0 < passes <= report.seconds.get("guidance", 0.0):
        return seconds_text(total)
    return (
        f"{seconds_text(total)}, {total / passes:.1f} times the model's own forward and backward passes "
        f"({seconds_text(passes)})"
    )


def memory_text(report: Report) -> str:
    """Peak memory; for a model that weighs more than the libraries also in units of its own float32 size."""
    size = 4 * report.model.parameters
    times = f", {report.peak_memory_bytes / size:.1f} times the model in fp32" if size > LIBRARY_BYTES else ""
    return f"{bytes_text(report.peak_memory_bytes)} at most{times}"


def interval_text(forecast: Forecast) -> str:
    """The predicted divergence with its interval: `0.0123 (0.0110 to 0.0140)`."""
    return f"{loss_text(forecast.kl)} ({loss_text(forecast.kl_low)} to {loss_text(forecast.kl_high)})"


def increase_text(forecast: Forecast) -> str:
    """The predicted increase of the loss with its interval: `+0.0123 (+0.0110 to +0.0140)`."""
    low, high = signed_text(forecast.loss_increase_low), signed_text(forecast.loss_increase_high)
    return f"{signed_text(forecast.loss_increase)} ({low} to {high})"


def accuracy_text(forecast: Forecast) -> str:
    """The predicted change of the accuracy with its interval: `-1.2% (-2.0% to -0.4%)`; empty without labels."""
    changes = (forecast.accuracy_drop, forecast.accuracy_drop_high, forecast.accuracy_drop_low)
    expected, low, high = (None if drop is None else f"{-100 * drop:+.1f}%" for drop in changes)
    return "" if expected is None else f"{expected} ({low} to {high})"


def forecast_text(forecast: Forecast, size: int, parameters: int, unit: str) -> str:
    """The promise in one line, made before anything is written."""
    return (
        f"forecast at {8 * size / parameters:.3f} bits per weight ({bytes_text(size)}): "
        f"KL {interval_text(forecast)}, loss {increase_text(forecast)} {unit}, 90% intervals"
    )


def refined_text(forecast: Forecast, unit: str) -> str:
    """The promise once more, after the whole model's codes were corrected and tuned."""
    return (
        f"forecast after refining: KL {interval_text(forecast)}, loss {increase_text(forecast)} {unit}, 90% intervals"
    )


def perplexity(loss: float) -> float:
    """`exp` of a loss in nats per token; infinite beyond float64."""
    return math.exp(loss) if loss < LARGEST_EXPONENT else math.inf


def share_text(share: float) -> str:
    """`93.2%`."""
    return f"{100 * share:.1f}%"


def node_text(node: RuntimeNode) -> str:
    """One operator as it is run: `MatMulNBits 4 bits block 64 level 4`, `Conv float`."""
    words = [node.operator, f"{node.bits} bits" if node.bits else "float"]
    words += [f"block {node.block_size}"] if node.block_size else []
    words += [f"level {node.accuracy_level}"] if node.accuracy_level is not None else []
    return " ".join(words) + (", dequantized at every call" if node.weight == "each call" else "")


def runtime_text(facts: RuntimeFacts) -> str:
    """What the runtime makes of the model, in one line."""
    kinds = ", ".join(f"{count} x {node_text(node)}" for node, count in facts.kinds.items())
    return f"{kinds}; {folded_text(facts)}"


def latency_text(facts: LatencyFacts) -> str:
    """What a call takes, in one line."""
    threads = f"{facts.threads} thread" + "s" * (facts.threads > 1)
    return (
        f"{facts.predicted_ratio:.3f} times the original's forecast; {facts.measured_ratio:.3f} measured, "
        f"{1e3 * facts.original_seconds:.3g} to {1e3 * facts.seconds:.3g} ms (one sample, {threads})"
    )


def folded_text(facts: RuntimeFacts) -> str:
    """How many of the nodes that unpack weights are gone once the model is loaded."""
    folded = facts.unpacking_nodes - facts.unfolded_nodes
    left = f", {facts.unfolded_nodes} left" if facts.unfolded_nodes else ""
    return (
        f"{folded} of {facts.unpacking_nodes} unpacking nodes folded at load{left}"
        if facts.unpacking_nodes
        else ("nothing to unpack")
    )


def agreement_name(objective: str) -> str:
    """What a measurement's `agreement` is, by the objective's text."""
    return "cosine similarity" if objective in ("values", "joint_values") else "top-1 agreement"


def format_text(format: str) -> str:
    """A format's text made short: `3-bit/64`, `4-bit per row symmetric`, `2.5-bit coded`, `fp16`.

    Raises:
        FormatError: `format` is not the text of one.
    """
    parsed = parse_format(format)
    if isinstance(parsed, FloatFormat):
        return str(parsed)
    if isinstance(parsed, NestedFormat):
        read = "" if parsed.precision == parsed.widest else f" read at {parsed.precision}"
        return f"nested {widths_text(parsed.widths)}-bit/{parsed.group_size}{read}"
    if isinstance(parsed, EntropyFormat):
        return f"{parsed.bits:g}-bit coded"
    words = f"{parsed.bits}-bit" + (f"/{parsed.group_size}" if parsed.group_size else " per row")
    return (
        words + (" symmetric" if parsed.symmetric else "") + (f" +{parsed.outliers} outliers" * bool(parsed.outliers))
    )


def mixture_text(rows: Mapping[str, int]) -> str:
    """Formats with the rows that have them: `3-bit/64: 20, 4-bit/64: 12`; the format alone if it is the only one."""
    if len(rows) == 1:
        return format_text(next(iter(rows)))
    return ", ".join(f"{format_text(format)}: {count}" for format, count in rows.items())


def verdict(report: Report) -> str:
    """Whether the measurement kept the promise, in one sentence; at each precision, where there are several."""
    if report.precisions:
        kept = [(one.bits, one.forecast.kl_low <= one.measured.kl <= one.forecast.kl_high) for one in report.precisions]
        missed = ", ".join(str(bits) for bits, inside in kept if not inside)
        where, side = (f"At {missed} bits", "outside") if missed else ("At each precision", "inside")
        return f"{where} the measured KL lies {side} the forecast's 90% interval."
    low, measured, high = report.forecast.kl_low, report.measured.kl, report.forecast.kl_high
    if low <= measured <= high:
        return "The measured KL lies inside the forecast's 90% interval."
    side = "below" if measured < low else "above"
    return f"The measured KL lies {side} the forecast's 90% interval."


def checked_text(check: Diagnostic) -> str:
    """A diagnostic's number beside its threshold: `0.93, at least 0.7`."""
    number, threshold = (
        f"{value:,.0f}" if abs(value) >= LEAST_COUNT else f"{value:.3g}" for value in (check.number, check.threshold)
    )
    return f"{number}, {check.bound} {threshold}"


def warning_text(check: Diagnostic) -> str:
    """What a diagnostic found and what to do: `tokens per parameter: 14800, at most 1000. Expect ...`."""
    return f"{check.meaning}: {checked_text(check)}. {check.advice}"
