"""Figures to files and to inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guidedq.errors import OutputError
from guidedq.report.palette import PAPER, THEMED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Size = tuple[float, float]
"""Width and height in inches; a page shows an inch as at least 72 pixels."""

PICTURES = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 160
"""Of a PNG: sharp on a dense screen."""
SVG_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "guidedq"}
"""Text stays text, and the same figure gives the same SVG."""


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before any long work.

    Raises:
        OutputError: its suffix is no kind of picture, or its folder does not exist.
    """
    if path.suffix.lower() not in PICTURES:
        raise OutputError(f"{path}: pictures are written as {', '.join(PICTURES)}. Name such a file with --plot.")
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: expected a file in a folder that exists.")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix, on white.

    Raises:
        OutputError: it cannot be written.
    """
    import matplotlib as mpl

    check_picture(path)
    try:
        with mpl.rc_context(SVG_STYLE):
            figure.savefig(path, dpi=DOTS_PER_INCH, facecolor=PAPER)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}.") from error


def for_page(draw: Callable[[Size], Figure], name: str, description: str, wide: Size, small: Size) -> Mapping[str, str]:
    """A figure as `<svg>` elements for a desktop, under its name, and for a phone, as `small_` and its name."""
    sizes = {name: wide, f"small_{name}": small}
    return {key: inline_svg(draw(size), key.replace("_", "-"), description) for key, size in sizes.items()}


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an `<svg>` element for a page.

    It scales with the page, takes the page's font, and its neutral colours are the page's variables.

    Args:
        figure: What to draw.
        name: Prefix of all ids, unique on the page.
        description: For those who do not see it.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(SVG_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: [^;\"]*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in THEMED.items():
        text = text.replace(colour, variable)
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1).strip()
