"""Checking: an artifact measured anew, verified against its report, compared with uniform quantization."""
