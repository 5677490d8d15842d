"""Errors whose message is meant for the person at the keyboard, and names that can be printed."""

from __future__ import annotations

import unicodedata

# Controls, halves of characters (bytes that are no UTF-8), ends of lines and of paragraphs.
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


class LongtakeError(Exception):
    """A failure that the program reports as one line, without a traceback (exit code 1)."""

    exit_code = 1


class UserError(LongtakeError):
    """Input that cannot be used: the message says what, where and what would be right (exit 2)."""

    exit_code = 2


def printable(name: str) -> str:
    """Return a file's name on one line and in UTF-8, whatever bytes the disk has in it.

    Each character that cannot be printed becomes "�".
    """
    if name.isprintable():
        return name
    return "".join("\ufffd" if unicodedata.category(c) in UNPRINTABLE else c for c in name)
