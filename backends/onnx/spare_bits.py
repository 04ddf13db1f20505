"""Large weights of odd widths: rows lie in the container as they are, and its spare bits hold further rows.

A slot of 4 or 8 bits has bits to spare above a code of 3, 5, 6 or 7. So `b` rows of container bytes have room for
`container - b` rows more: their codes, cut into pieces, stand in the spare bits of the others. One mask restores the
first rows, a mask and a right shift each piece, and one Concat puts the last rows below the first: some five times the
container is held while the runtime folds it, and every odd width has one function of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import final

import numpy as np
from jaxtyping import UInt8

BYTE = 8
ODD_WIDTHS = ((3, 4), (5, 8), (6, 8), (7, 8))
"""Widths that fill no container, and the container of each."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bits of a hidden part's codes, `length` from `target` on, which lie in stored part `row`, from `source` on."""

    hidden: int
    row: int
    source: int
    target: int
    length: int


def carriers(bits: int, container: int) -> int:
    """Parts into which the stored rows are divided; part k carries pieces for the hidden parts."""
    return bits // gcd(bits, container)


def parts_of_all(bits: int, container: int) -> int:
    """Parts into which all rows are divided, the hidden ones last; their number must divide that of the rows."""
    return container // gcd(bits, container)


def pieces(bits: int, container: int) -> Iterator[Piece]:
    """Where the hidden parts lie, in order."""
    spare, stored = container - bits, carriers(bits, container)
    for hidden in range(parts_of_all(bits, container) - stored):
        target = 0
        while target < bits:
            row, within = divmod(hidden * bits + target, spare)
            length = min(spare - within, bits - target)
            yield Piece(hidden=hidden, row=row, source=bits + within, target=target, length=length)
            target += length


def slots_mask(container: int, first: int, length: int) -> int:
    """A byte with ones at these bits of every slot."""
    return sum((2**length - 1) << (slot + first) for slot in range(0, BYTE, container))


def hide(rows: UInt8[np.ndarray, "n ..."], bits: int, container: int) -> UInt8[np.ndarray, "m ..."]:
    """Container bytes whose codes have so many bits, with the last rows put into the spare bits of the others."""
    stored, whole = carriers(bits, container), parts_of_all(bits, container)
    parts = rows.reshape(whole, -1, *rows.shape[1:])
    kept = parts[:stored].copy()
    for piece in pieces(bits, container):
        cut = parts[stored + piece.hidden] & slots_mask(container, piece.target, piece.length)
        kept[piece.row] |= (cut << (piece.source - piece.target)).astype(np.uint8)
    return kept.reshape(-1, *rows.shape[1:])


def function_name(bits: int) -> str:
    """The function that restores the rows."""
    return f"Wide{bits}"


def function_text(bits: int, container: int) -> tuple[str, str]:
    """Its signature and body, in ONNX's own notation."""
    parts = [f"a{part}" for part in range(carriers(bits, container))]
    lines = [
        f"{', '.join(parts)} = Split <axis = 0, num_outputs = {len(parts)}> (t)",
        f"m = Constant <value = uint8 {{{slots_mask(container, 0, bits)}}}> ()",
        "l = BitwiseAnd(t, m)",
    ]
    hidden: dict[int, str] = {}
    for number, piece in enumerate(pieces(bits, container)):
        lines += [
            f"m{number} = Constant <value = uint8 {{{slots_mask(container, piece.source, piece.length)}}}> ()",
            f"s{number} = Constant <value = uint8 {{{piece.source - piece.target}}}> ()",
            f"c{number} = BitwiseAnd(a{piece.row}, m{number})",
            f'p{number} = BitShift <direction = "RIGHT"> (c{number}, s{number})',
        ]
        before = hidden.get(piece.hidden)
        hidden[piece.hidden] = f"p{number}" if before is None else f"o{number}"
        if before is not None:
            lines.append(f"o{number} = BitwiseOr({before}, p{number})")
    lines.append(f"u = Concat <axis = 0> ({', '.join(('l', *hidden.values()))})")
    return f"{function_name(bits)} (t) => (u)", "\n    " + "\n    ".join(lines)
