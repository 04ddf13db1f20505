"""Kernels in C for packed weights, and how to call them. Without a compiler there are none, and torch does it all."""
