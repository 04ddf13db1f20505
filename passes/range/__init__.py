"""Range: the grid of an activation, from its histogram."""
