"""Schedules: at how many bits a nested model is read for each token."""
