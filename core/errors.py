"""Errors whose message is meant for the person at the keyboard."""

from __future__ import annotations

import unicodedata


class LongtakeError(Exception):
    """A failure that the program reports as one line, without a traceback (exit code 1)."""

    exit_code = 1


class UserError(LongtakeError):
    """Input that cannot be used: the message says what, where and what would be right (exit 2)."""

    exit_code = 2


# ⟦core/data/names.py⟧ File names as they can be printed and stored, whatever bytes the disk has in them.


# Controls, halves of characters (bytes that are no UTF-8), ends of lines and paragraphs.
UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})


def printable(name: str) -> str:
    """Return `name` on one line and in UTF-8: what cannot be printed becomes "�"."""
    if name.isprintable():
        return name
    return "".join("\ufffd" if unicodedata.category(c) in UNSEEN else c for c in name)
