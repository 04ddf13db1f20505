"""The colours of the plots and of the report's page.

Plots are drawn in the light theme's colours; on the page, the neutral ones become CSS variables, so that one drawing
serves both themes. Colours of data are of middling lightness and stand out from white and from near-black.
"""

from __future__ import annotations

from collections.abc import Mapping

INK = "#1d2733"
MUTED = "#66717f"
LINES = "#d9dfe6"
PAPER = "#ffffff"
ACCENT = "#2f74d0"
MEASURED = "#d9622b"
LOSS = "#1f9a80"
PART_COLOURS = ("#8d7ad6", "#2f74d0", "#3b93b4", "#3aa58f", "#9aa5b1")
"""Of the parts of a file: embeddings, the thirds of the other weights, the rest."""

THEMED: Mapping[str, str] = {INK: "var(--ink)", MUTED: "var(--muted)", LINES: "var(--lines)", PAPER: "var(--paper)"}
"""Neutral colours and the page's variables for them."""

WIDTH_COLOURS: Mapping[int, str] = {
    1: "#f2c14e",
    2: "#f29e4c",
    3: "#ea7256",
    4: "#d4567b",
    5: "#b04b98",
    6: "#8750b2",
    7: "#6259bf",
    8: "#416cc6",
    16: "#3b93b4",
    32: "#7b8794",
}
"""By bits of a code, warm where little is kept, cool where much is."""

VARIANT_COLOURS = ("#7b8794", "#3b93b4", "#8750b2", "#d9622b", "#ea9a4c")
"""For variants that are compared, in order."""
