"""TODO table1."""
