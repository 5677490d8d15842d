"""The values that flow through the program: histories, queries, memories, text, grids, noise."""
