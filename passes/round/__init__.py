"""Rounding: from a weight to grids and codes."""
