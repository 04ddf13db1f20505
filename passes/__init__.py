"""Decides: rewrites of the graph, curves, allocation, rounding and forecast."""
