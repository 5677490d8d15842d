"""TODO returns."""
