"""What a stored number is: formats, grids, packed layouts, and the reference dequantization."""
