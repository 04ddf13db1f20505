"""How many bytes packed codes take; no tensors, so that formats can be told about without a framework."""

from __future__ import annotations


def packed_width(columns: int, bits: int) -> int:
    """Bytes of one packed row of `columns` codes of `bits` bits."""
    return -(-columns * bits // 8)
