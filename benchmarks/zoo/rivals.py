"""The other tools and their settings: what each row of the comparison asks for. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .entries import Facts

Tool = Literal["onnxruntime", "nncf", "olive"]


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One setting of a tool.

    Attributes:
        tool: Whose environment and script run it.
        label: For people; unique within a tool.
        words: What the script is told, `name=value` each.
        static: Whether activations are rounded on fixed grids: tried on CNN and OCR models.
        first: Whether it belongs to the short list, which is run on every model before the others.
    """

    tool: Tool
    label: str
    words: str
    static: bool = False
    first: bool = False

    def fits(self, facts: Facts) -> bool:
        """Whether the model is of the kind that this is for."""
        return not self.static or facts.family in ("cnn", "ocr")


def _ort(label: str, words: str, *, static: bool = False, first: bool = False) -> Rival:
    return Rival(tool="onnxruntime", label=label, words=words, static=static, first=first)


def _nncf(label: str, words: str, *, static: bool = False, first: bool = False) -> Rival:
    return Rival(tool="nncf", label=label, words=words, static=static, first=first)


def _olive(label: str, words: str, *, static: bool = False, first: bool = False) -> Rival:
    return Rival(tool="olive", label=label, words=words, static=static, first=first)


RIVALS: tuple[Rival, ...] = (
    _ort("MatMulNBits default, 4 bits, blocks of 32", "nbits=default bits=4 block=32 level=4", first=True),
    _ort("MatMulNBits default, 4 bits, blocks of 32, inputs in float", "nbits=default bits=4 block=32 level=0"),
    _ort("MatMulNBits default, 4 bits, blocks of 128", "nbits=default bits=4 block=128 level=4"),
    _ort("MatMulNBits default, 4 bits, blocks of 32, look-ups too", "nbits=default bits=4 block=32 level=4 gather=1"),
    _ort("MatMulNBits default, 2 bits, blocks of 32", "nbits=default bits=2 block=32 level=4"),
    _ort("MatMulNBits HQQ, 4 bits, blocks of 32", "nbits=hqq bits=4 block=32", first=True),
    _ort("MatMulNBits k-quant, 4 bits, blocks of 32", "nbits=k-quant bits=4 block=32 level=4", first=True),
    _ort("MatMulNBits RTN, 4 bits, blocks of 32", "nbits=rtn bits=4 block=32 level=4", first=True),
    _ort("MatMulNBits GPTQ, 4 bits, blocks of 32", "nbits=gptq bits=4 block=32"),
    _ort("MatMulNBits default, 8 bits, blocks of 128", "nbits=default bits=8 block=128 level=4"),
    _ort("quantize_dynamic", "dynamic=all", first=True),
    _ort("quantize_dynamic, matrix products only", "dynamic=matrix"),
    _ort("quantize_static MinMax", "static=MinMax", static=True, first=True),
    _ort("quantize_static MinMax, reduce_range", "static=MinMax reduce=1", static=True),
    _ort("quantize_static Percentile", "static=Percentile", static=True, first=True),
    _ort("quantize_static Entropy", "static=Entropy", static=True, first=True),
    _ort("quantize_static MinMax, weights in 4 bits", "static=MinMax weights=4", static=True),
    _nncf("compress_weights, int4", "mode=INT4_SYM"),
    _nncf("compress_weights, int4, AWQ and scale estimation", "mode=INT4_SYM awq=1 scale=1", first=True),
    _nncf("compress_weights, int4, all layers", "mode=INT4_SYM all=1"),
    _nncf("compress_weights, half int4, half int8", "mode=INT4_SYM ratio=0.5"),
    _nncf("compress_weights, int8", "mode=INT8_ASYM", first=True),
    _nncf("quantize", "static=1", static=True, first=True),
    _nncf("quantize, accurate bias correction", "static=1 accurate=1", static=True),
    _olive("OnnxBlockWiseRtnQuantization, 4 bits", "pass=OnnxBlockWiseRtnQuantization block=32"),
    _olive("OnnxHqqQuantization, 4 bits", "pass=OnnxHqqQuantization block=32"),
    _olive("OnnxKQuantQuantization, 4 bits", "pass=OnnxKQuantQuantization block=32"),
    _olive(
        "OnnxKQuantQuantization, 4 bits, every third layer 8",
        "pass=OnnxKQuantQuantization block=32 mixed=3",
        first=True,
    ),
)
