"""Tolerances by dtype and purpose, each with its reason."""

SUM_FLOAT32 = 1e-4
"""Relative: sums of some hundred float32 products in another order differ by about sqrt(n) ulp."""
GRADIENT_INT8 = 0.02
"""Relative to the largest: gradients are kept as int8 rows, half a step is 1/254 of a row's largest value."""
UNIT_FLOAT32 = 2.0**-24
"""Relative: what one float32 addition rounds away at most."""
