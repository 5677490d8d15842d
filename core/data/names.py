"""File names as they can be printed and stored, whatever bytes the disk has in them."""

from __future__ import annotations

import unicodedata

# Controls, halves of characters (bytes that are no UTF-8), ends of lines and paragraphs.
UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})


def printable(name: str) -> str:
    """Give `name` on one line and in UTF-8: what cannot be printed becomes "�"."""
    if name.isprintable():
        return name
    return "".join("\ufffd" if unicodedata.category(c) in UNSEEN else c for c in name)
