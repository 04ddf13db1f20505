"""Kernels in C for packed weights, and how they are called. Without a compiler there are none, and torch does it all."""
