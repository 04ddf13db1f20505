"""The model-local functions that turn stored bytes into ONNX Runtime's containers.

They are made of stock operators on constants only, so that the runtime inlines them and folds them away while it
loads the model. One function is stored once and called at every site, which keeps small models small. All sizes that
can be had from the shape of a constant or from `K` (columns), `b` (container bits) and `g` (block) are computed inside:
an attribute at a call costs a dozen bytes at every site, a node in a body costs them once.

Before opset 18 there are no bitwise operators: codes are then unpacked one to a byte by shifts alone, and packed into
the container by an integer matrix product.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import onnx.parser
from onnx import FunctionProto

from guidedq.quant.integer import REDUCED_CODE

from .functions import BITWISE, COMMON, SHIFTS_ONLY
from .integer_functions import integer_functions
from .spare_bits import ODD_WIDTHS, function_text

DOMAIN = "gq"
RUNTIME_DOMAIN = "com.microsoft"
SMALLEST_OPSET = 13
"""Below it, Unsqueeze and Squeeze take their axes as attributes, and much else differs."""
BITWISE_OPSET = 18

AXES_OPSET = 18
"""From it on, ReduceMax takes its axes as an input."""


def library(
    names: Iterable[str], *, opset: int, element_type: int, accuracy_level: int, largest_code: int = REDUCED_CODE
) -> tuple[FunctionProto, ...]:
    """The functions called `names` and those that they call, sorted by name.

    Args:
        names: Names of functions of the domain `gq`.
        opset: Of the model; functions have the model's own.
        element_type: ONNX data type of the model's activations, float or float16.
        accuracy_level: What MatMulNBits is asked for.
        largest_code: Of int8 weights: their codes are from its negative to this.
    """
    sources = _sources(opset)
    wanted: set[str] = set()
    waiting = sorted(set(names))
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting.extend(re.findall(rf"{DOMAIN}\.(\w+)", sources[name][1]))
    values = {"{element}": str(element_type), "{level}": str(accuracy_level), "{largest}": str(largest_code)}
    return tuple(_function(*sources[name], opset=opset, values=values) for name in sorted(wanted))


def _sources(opset: int) -> Mapping[str, tuple[str, str]]:
    """Signature and body of every function, by name."""
    bodies = COMMON | (
        BITWISE | dict(function_text(*widths) for widths in ODD_WIDTHS) if opset >= BITWISE_OPSET else SHIFTS_ONLY
    )
    bodies |= integer_functions(axes_are_inputs=opset >= AXES_OPSET)
    return {signature.split()[0]: (signature, body) for signature, body in bodies.items()}


def _function(signature: str, body: str, *, opset: int, values: Mapping[str, str]) -> FunctionProto:
    imports = [f'"" : {opset}']
    imports += [f'"{domain}" : 1' for domain in (DOMAIN, RUNTIME_DOMAIN) if f"{domain}." in body]
    for placeholder, value in values.items():
        body = body.replace(placeholder, value)
    header = f'<domain: "{DOMAIN}", opset_import: [{", ".join(imports)}]>'
    function = onnx.parser.parse_function(f"{header}\n{signature}\n{{{body}\n}}")
    for node in function.node:
        if not node.domain:
            node.ClearField("domain")
    return function
