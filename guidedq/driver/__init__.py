"""The driver: from a job and a limit to rounded weights, with a forecast; it knows stages by their interfaces alone."""
