"""Rate-distortion curves."""
