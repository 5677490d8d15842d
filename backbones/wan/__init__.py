"""Wan as a backbone: 2.1, 2.2, and the real class with small numbers."""
