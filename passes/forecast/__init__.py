"""Forecast: the loss of an allocation before it exists."""
