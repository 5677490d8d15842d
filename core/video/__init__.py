"""TODO video."""
