"""Interfaces of longtake, and what is written only against them."""
