"""Measures: calibration sets, and guidance taken from the model's own gradients."""
