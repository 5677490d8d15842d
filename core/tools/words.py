"""Numbers with their nouns."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 frame`, `2 frames` and `1,200 frames`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
