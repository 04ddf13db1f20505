"""The torch backend: a folder with packed weights, which plain torch arithmetic runs."""
