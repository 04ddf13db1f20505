"""The text of the functions around integer operators, in ONNX's own notation (see `functions.py`).

`s` and `z` are scale and zero point of an activation. Scales of weights are not stored: they follow from the rows.
"""

from __future__ import annotations

_LARGEST = {
    True: "m = ReduceMax <keepdims = 0> (a, {axes})",
    False: "m = ReduceMax <axes = [{axis}], keepdims = 0> (a)",
}
"""By whether the opset takes axes as an input, which it does from 18."""
_SCALES = """
    l = Constant <value_float = {largest}.0> ()
    i = Div(m, l)
    t = Constant <value_float = 1.2e-38> ()
    r = Max(i, t)
    n = Sub(r, r)
    z = Cast <to = 3> (n)"""


def integer_functions(*, axes_are_inputs: bool) -> dict[str, str]:
    """Bodies by signature."""
    rows = f"""
    e = Constant <value_ints = [0, -1]> ()
    f = Reshape(w, e)
    a = Abs(f)
    x = Constant <value_ints = [1]> ()
    {_LARGEST[axes_are_inputs].format(axes="x", axis=1)}{_SCALES}
    q = QuantizeLinear <axis = 0> (w, r, z)"""
    columns = f"""
    a = Abs(w)
    x = Constant <value_ints = [0]> ()
    {_LARGEST[axes_are_inputs].format(axes="x", axis=0)}{_SCALES}
    q = QuantizeLinear <axis = 1> (w, r, z)"""
    return {
        # an activation, rounded
        "Round <s, z> (x) => (y)": """
    r = Constant <value_float: float = @s> ()
    i = Constant <value_int: int = @z> ()
    c = Cast <to = 2> (i)
    q = QuantizeLinear(x, r, c)
    y = DequantizeLinear(q, r, c)""",
        # a weight whose rows lie along its first axis, or along its second, as int8 codes, scales and zeros: the
        # runtime makes no integer kernel of a Gemm whose weight has no stated zero points
        "Rows8 (w) => (q, r, z)": rows,
        "Columns8 (w) => (q, r, z)": columns,
        "Rows8F (w) => (y)": """
    q, r, z = gq.Rows8(w)
    y = DequantizeLinear <axis = 0> (q, r, z)""",
        "Columns8F (w) => (y)": """
    q, r, z = gq.Columns8(w)
    y = DequantizeLinear <axis = 1> (q, r, z)""",
        # products whose left side is rounded to the grid of its own values
        "Dynamic (x, w) => (y)": """
    q, r, z = gq.Columns8(w)
    y = gq.Product(x, q, r)""",
        "DynamicT (x, w) => (y)": """
    t, r, z = gq.Rows8(w)
    q = Transpose <perm = [1, 0]> (t)
    y = gq.Product(x, q, r)""",
        "Product (x, q, r) => (y)": """
    c, s, z = DynamicQuantizeLinear(x)
    a = MatMulInteger(c, q, z)
    f = Cast <to = 1> (a)
    m = Mul(s, r)
    y = Mul(f, m)""",
    }
