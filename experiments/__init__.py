"""Shipped experiments: specs in Python, one module a family."""
