"""Numbers with their nouns, and which of many names may be meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

WHOLE, SHOWN = 8, 5  # names that are all listed; of more, so many are


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 frame`, `2 frames` and `1,200 frames`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names, those most like `name` first.

    Those that begin with it come before all others; hyphens and the like do not count.
    """
    asked = _letters(name)

    def unlike(other: str) -> tuple[bool, float, str]:
        letters = _letters(other)
        begins = bool(asked) and letters.startswith(asked)
        return not begins, -SequenceMatcher(None, asked, letters).ratio(), other

    return sorted(known, key=unlike)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one stands for, None where none is much like it."""
    return next(iter(get_close_matches(name, list(known), n=1)), None)


def names_like(name: str, known: Iterable[str], command: str = "") -> str:
    """Return the known names for a message, those most like an unknown one first.

    Args:
        name: that is none of them.
        known: all there are; of more than eight the first five are named, the rest is counted.
        command: which lists them all, such as `longtake list`; empty: there is none.
    """
    names = nearest(name, known)
    if len(names) <= WHOLE:
        return ", ".join(names) or "none"
    more = f" (`{command}` lists all)" if command else ""
    return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN:,} more{more}"
