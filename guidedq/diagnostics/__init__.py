"""Diagnostics: when not to trust a compile. One check a file, each a function of artifacts; `diagnosis.py` runs all."""
