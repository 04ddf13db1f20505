"""The text of the model-local functions, in ONNX's own notation: signatures and bodies.

A name before `<` is the function's; between `<` and `>` are its attributes (`K` columns, `N` rows, `b` bits of the
container, `g` block, `G` group, `d` shape), then its inputs and outputs. The functions for sites of several segments
take sizes as inputs instead: such sites are large, and the time to load a model grows faster than its number of nodes.
"""

from __future__ import annotations

_SIZES = """
    k = Constant <value_int: int = @K> ()
    q = Constant <value_int: int = @b> ()
    c = Constant <value_ints = [7]> ()
    d = Constant <value_ints = [8]> ()
    e = Mul(k, q)
    f = Add(e, c)
    j = Div(f, d)"""
_CODES_END = """
    k = Constant <value_int: int = @K> ()
    c = Constant <value_ints = [1]> ()
    j = Mul(k, c)"""
_GROUPS = """
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    sh = Shape(r)
    n = Slice(sh, one, two)"""

COMMON = {
    # the second part of a code, below the first
    "Pair (p, s, m, q, v, w, k) => (t)": """
    a = gq.Part(p, s, m)
    t = gq.Join(a, q, v, w, k)""",
    # as many rows as r has, of w bytes each
    "Cut (t, r, w) => (u)": """
    a = Constant <value_ints = [0]> ()
    b = Constant <value_ints = [1]> ()
    s = Shape(r)
    n = Slice(s, a, b)
    e = Mul(n, w)
    c = Slice(t, a, e)
    d = Concat <axis = 0> (n, w)
    u = Reshape(c, d)""",
    # bytes of b-bit slots to one value a byte, [n, bytes] to [n, values]
    "Lanes <b> (z) => (t)": """
    o = Constant <value_int = 8> ()
    e = Constant <value_int = -1> ()
    i = Constant <value_ints = [2]> ()
    q = Constant <value_int: int = @b> ()
    s = Sub(o, q)
    h = Neg(q)
    l = Range(s, e, h)
    m = Cast <to = 2> (l)
    w = Cast <to = 2> (s)
    u = Unsqueeze(z, i)
    a = BitShift <direction = "LEFT"> (u, m)
    c = BitShift <direction = "RIGHT"> (a, w)
    f = Constant <value_ints = [0, -1]> ()
    t = Reshape(c, f)""",
    "Linear <K, N, b, g> (x, t, r) => (y)": """
    u, z = gq.Rows <K: int = @K, b: int = @b> (t, r)
    B = gq.Blob <b: int = @b, g: int = @g> (u, r)
    y = gq.Matrix <K: int = @K, N: int = @N, b: int = @b, g: int = @g> (x, B, r, z)""",
    # symmetric: codes shifted to the top of the container, whose middle is then their own
    "LinearS <K, N, b, g> (x, t, r, k, f) => (y)": """
    a = BitShift <direction = "LEFT"> (t, k)
    u = gq.RowsS <K: int = @K, b: int = @b> (a, r)
    B = gq.Blob <b: int = @b, g: int = @g> (u, r)
    c = Cast <to = 1> (r)
    h = Mul(c, f)
    s = Cast <to = {element}> (h)
    y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = @b, block_size: int = @g,
        accuracy_level = {level}> (x, B, s)""",
    "Matrix <K, N, b, g> (x, B, r, z) => (y)": """
    s = Cast <to = {element}> (r)
    y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = @b, block_size: int = @g,
        accuracy_level = {level}> (x, B, s, z)""",
    "MatrixS <K, N, b, g> (x, B, r) => (y)": """
    s = Cast <to = {element}> (r)
    y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = @b, block_size: int = @g,
        accuracy_level = {level}> (x, B, s)""",
    # zero points for a gather whose data have one block a row: one a byte, [n, groups, 1]
    "Tied <b> (z, r) => (t)": _GROUPS
    + """
    l = gq.Lanes <b: int = @b> (z)
    o = Constant <value_ints = [0]> ()
    t = Slice(l, o, n, one)""",
    "SegmentS (t, r, o, e, f, m, i, j) => (c, z, s)": """
    g = Slice(t, o, e)
    c = Reshape(g, f)
    q = Gather <axis = 1> (r, j)
    d = Shape(q)
    z = Expand(m, d)
    x = Gather <axis = 1> (r, i)
    s = Cast <to = {element}> (x)""",
    # the numbers that the unary parts say: zeros before each one
    "Highs (p, s, m, n) => (h)": """
    t = gq.Part(p, s, m)
    i = Cast <to = 6> (t)
    v, w = TopK (i, n)
    q = Cast <to = 6> (w)
    z = Constant <value_ints = [0]> ()
    e = Constant <value_ints = [-1]> ()
    b = Cast <to = 6> (e)
    c = Slice(q, z, e)
    d = Concat <axis = 0> (b, c)
    f = Sub(q, d)
    h = Add(f, b)""",
    "Unary (p, s, m, n, T) => (t)": """
    h = gq.Highs(p, s, m, n)
    t = Gather(T, h)""",
    # and with low parts beside them
    "Rice (p, s, m, n, T, a, k) => (t)": """
    h = gq.Highs(p, s, m, n)
    z = Constant <value_ints = [0]> ()
    b = Slice(a, z, n)
    c = Cast <to = 6> (b)
    d = Mul(h, k)
    e = Add(d, c)
    t = Gather(T, e)""",
    # scales that are eighth powers of two
    "Powers (e, a, b, F, P) => (r)": """
    c = BitShift <direction = "RIGHT"> (e, a)
    d = Cast <to = 6> (c)
    f = BitShift <direction = "LEFT"> (e, b)
    g = BitShift <direction = "RIGHT"> (f, b)
    h = Cast <to = 6> (g)
    i = Gather(P, d)
    j = Gather(F, h)
    r = Mul(i, j)""",
    # rows of all segments, put back in order, their zero points packed
    "Mix (C, Z, S, o, y, w, a) => (t, z, s)": """
    t = Gather <axis = 0> (C, o)
    s = Gather <axis = 0> (S, o)
    u = Gather <axis = 0> (Z, o)
    j = Reshape(u, y)
    k = MatMulInteger(j, w)
    v = Cast <to = 2> (k)
    z = Squeeze(v, a)""",
    # two bits a row say its segment: where the row lies after the segments are joined
    "Order (i, a, h, k, f, o, n) => (q)": """
    u = Unsqueeze(i, a)
    l = BitShift <direction = "LEFT"> (u, h)
    m = BitShift <direction = "RIGHT"> (l, k)
    g = Reshape(m, f)
    c = Slice(g, o, n)
    d = Cast <to = 6> (c)
    v, w = TopK <largest = 0> (d, n)
    x, q = TopK <largest = 0> (w, n)""",
    # float weights of any group size, shaped as the operator reads them
    "Dense <K, G, d> (t, z, r) => (w)": _GROUPS
    + """
    k = Constant <value_int: int = @K> ()
    h = Constant <value_int: int = @G> ()
    j = Mul(k, one)
    o = Constant <value_ints = [0]> ()
    c = Slice(t, o, j, one)
    e = Mul(n, h)
    p = Sub(e, j)
    x = Constant <value_ints = [0, 0, 0]> ()
    y = Concat <axis = 0> (x, p)
    f = Pad(c, y)
    i = Constant <value_ints = [-1]> ()
    m = Concat <axis = 0> (sh, i)
    l = Reshape(f, m)
    a = Cast <to = 1> (l)
    b = Cast <to = 1> (z)
    q = Unsqueeze(b, two)
    g = Sub(a, q)
    s = Cast <to = 1> (r)
    u = Unsqueeze(s, two)
    v = Mul(g, u)
    A = Constant <value_ints = [0, -1]> ()
    B = Reshape(v, A)
    C = Slice(B, o, j, one)
    D = Constant <value_ints: ints = @d> ()
    w = Reshape(C, D)""",
}

BITWISE = {
    "Part (p, s, m) => (t)": """
    a = BitShift <direction = "RIGHT"> (p, s)
    c = BitwiseAnd(a, m)
    f = Constant <value_ints = [-1]> ()
    t = Reshape(c, f)""",
    "Join (a, q, v, w, k) => (t)": """
    b = gq.Part(q, v, w)
    o = Constant <value_ints = [0]> ()
    d = Shape(a)
    c = Slice(b, o, d)
    e = BitShift <direction = "LEFT"> (a, k)
    t = BitwiseOr(e, c)""",
    # container bytes to the matrix product's [n, groups, bytes of a block]
    "Blob <b, g> (t, r) => (B)": """
    sh = Shape(r)
    n = Shape <start = 1> (r)
    h = Constant <value_int: int = @g> ()
    q = Constant <value_int: int = @b> ()
    d = Constant <value_int = 8> ()
    e = Mul(h, q)
    f = Div(e, d)
    w = Mul(n, f)
    c = Shape <start = 1> (t)
    p = Sub(w, c)
    x = Constant <value_ints = [0, 0, 0]> ()
    y = Concat <axis = 0> (x, p)
    l = Pad(t, y)
    i = Constant <value_ints = [-1]> ()
    m = Concat <axis = 0> (sh, i)
    B = Reshape(l, m)""",
    # the flat bytes as rows, [n, bytes], and the zero points at their ends
    "Rows <K, b> (t, r) => (u, z)": _SIZES
    + """
    one = Constant <value_ints = [1]> ()
    n = Shape <start = 1> (r)
    g = Mul(n, q)
    h = Add(g, c)
    i = Div(h, d)
    l = Add(j, i)
    u = gq.Cut(t, r, l)
    z = Slice(u, j, l, one)""",
    "RowsS <K, b> (t, r) => (u)": _SIZES
    + """
    u = gq.Cut(t, r, j)""",
    # a segment of rows: codes, zero points one a byte, scales, all at the site's block
    "Segment (t, r, o, e, f, p, a, h, k, y, i, j) => (c, z, s)": """
    g = Slice(t, o, e)
    u = Reshape(g, f)
    c, w = Split <axis = 1> (u, p)
    n = Unsqueeze(w, a)
    l = BitShift <direction = "LEFT"> (n, h)
    m = BitShift <direction = "RIGHT"> (l, k)
    q = Reshape(m, y)
    z = Gather <axis = 1> (q, j)
    x = Gather <axis = 1> (r, i)
    s = Cast <to = {element}> (x)""",
    "Codes <K, b> (t) => (h)": _SIZES
    + """
    o = Constant <value_ints = [0]> ()
    i = Constant <value_ints = [1]> ()
    h = Slice(t, o, j, i)""",
    "Data <K, b> (t) => (h)": """
    h = gq.Codes <K: int = @K, b: int = @b> (t)""",
}

SHIFTS_ONLY = {
    # one value a byte to bytes of b-bit slots, the last byte padded with zeros
    "Pack <b> (z) => (t)": """
    a = Constant <value_int = 0> ()
    o = Constant <value_int = 8> ()
    c = Constant <value_ints = [1]> ()
    i = Constant <value_ints = [2]> ()
    q = Constant <value_int: int = @b> ()
    l = Range(a, o, q)
    m = Cast <to = 2> (l)
    e = Cast <to = 2> (c)
    w = BitShift <direction = "LEFT"> (e, m)
    v = Unsqueeze(w, c)
    s = Shape(m)
    sh = Shape(z)
    n = Slice(sh, c, i)
    h = Neg(n)
    p = Mod(h, s)
    x = Constant <value_ints = [0, 0, 0]> ()
    y = Concat <axis = 0> (x, p)
    d = Pad(z, y)
    f = Constant <value_ints = [0, -1]> ()
    g = Concat <axis = 0> (f, s)
    j = Reshape(d, g)
    k = MatMulInteger(j, v)
    r = Cast <to = 2> (k)
    t = Squeeze(r, i)""",
    "Part (p, s, m) => (t)": """
    a = BitShift <direction = "LEFT"> (p, s)
    c = BitShift <direction = "RIGHT"> (a, m)
    f = Constant <value_ints = [-1]> ()
    t = Reshape(c, f)""",
    "Join (a, q, v, w, k) => (t)": """
    b = gq.Part(q, v, w)
    o = Constant <value_ints = [0]> ()
    d = Shape(a)
    c = Slice(b, o, d)
    e = BitShift <direction = "LEFT"> (a, k)
    f = Cast <to = 6> (e)
    g = Cast <to = 6> (c)
    h = Add(f, g)
    t = Cast <to = 2> (h)""",
    "Blob <b, g> (t, r) => (B)": _GROUPS
    + """
    h = Constant <value_int: int = @g> ()
    w = Mul(n, h)
    a = Shape(t)
    c = Slice(a, one, two)
    p = Sub(w, c)
    x = Constant <value_ints = [0, 0, 0]> ()
    y = Concat <axis = 0> (x, p)
    l = Pad(t, y)
    d = gq.Pack <b: int = @b> (l)
    i = Constant <value_ints = [-1]> ()
    m = Concat <axis = 0> (sh, i)
    B = Reshape(d, m)""",
    "Rows <K, b> (t, r) => (u, z)": _CODES_END
    + _GROUPS
    + """
    e = Add(j, n)
    u = gq.Cut(t, r, e)
    l = Slice(u, j, e, one)
    z = gq.Pack <b: int = @b> (l)""",
    "RowsS <K, b> (t, r) => (u)": _CODES_END
    + """
    u = gq.Cut(t, r, j)""",
    "Segment (t, r, o, e, f, p, a, h, k, y, i, j) => (c, z, s)": """
    g = Slice(t, o, e)
    u = Reshape(g, f)
    c, w = Split <axis = 1> (u, p)
    z = Gather <axis = 1> (w, j)
    x = Gather <axis = 1> (r, i)
    s = Cast <to = {element}> (x)""",
    "Codes <K, b> (t) => (h)": _CODES_END
    + """
    o = Constant <value_ints = [0]> ()
    h = Slice(t, o, j, c)""",
    "Data <K, b> (t) => (h)": """
    c = gq.Codes <K: int = @K, b: int = @b> (t)
    h = gq.Pack <b: int = @b> (c)""",
}
