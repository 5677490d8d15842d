"""Shipped experiments as specs in Python, and the scripts that make their weights and tables."""
