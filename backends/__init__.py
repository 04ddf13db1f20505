"""Writes: the artifacts, and what their runtimes need."""
