"""Errors whose message is meant for the person at the keyboard, and names that can be printed."""

from __future__ import annotations

import sys
import unicodedata

# Controls, halves of characters (bytes that are no UTF-8), ends of lines and of paragraphs.
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


class LongtakeError(Exception):
    """A failure that the program reports as one line, without a traceback (exit code 1)."""

    exit_code = 1


class UserError(LongtakeError):
    """Input that cannot be used: the message says what, where and what would be right (exit 2)."""

    exit_code = 2


class PluginError(LongtakeError):
    """A plugin that breaks its contract or fails: the message names it, its file and the fault."""


class ContractError(PluginError, AssertionError):
    """A plugin returned what its interface does not allow; `core.contract` asserts the same."""


PLUGIN_NAMES: dict[type, str] = {}  # what a class is registered as; `core.hooks.Plugin.load` adds


def plugin_label(plugin: object) -> str:
    """Return what messages call a plugin (or its class): kind, name and file.

    A class that torch made of it at run time, as FSDP does, goes by its own; a subclass that is
    registered nowhere, by its class.
    """
    cls = plugin if isinstance(plugin, type) else type(plugin)
    made = (base for base in cls.__mro__ if base.__module__.partition(".")[0] != "torch")
    own = next(made, cls)
    file = getattr(sys.modules.get(own.__module__), "__file__", None) or own.__module__
    return f"{PLUGIN_NAMES.get(own, own.__qualname__)} ({file})"


def is_utf8(text: str) -> bool:
    """Return whether text can be written in UTF-8: what a shell gives in other bytes cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def check_utf8(path: object, option: str) -> None:
    """Refuse a path that no JSON or text file could name.

    Args:
        path: of a file or folder.
        option: that names it, for messages.

    Raises:
        UserError: its bytes are no UTF-8.
    """
    if not is_utf8(text := str(path)):
        raise UserError(f"{option} {printable(text)}: its name is not in UTF-8: rename it")


def printable(name: str) -> str:
    """Return a file's name on one line and in UTF-8, whatever bytes the disk has in it.

    Each character that cannot be printed becomes "�".
    """
    if name.isprintable():
        return name
    return "".join("\ufffd" if unicodedata.category(c) in UNPRINTABLE else c for c in name)
