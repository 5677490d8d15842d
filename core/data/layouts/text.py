"""Text and JSON that users bring: UTF-8, or one line that says what is wrong and where."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..names import printable

BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: Path) -> str:
    """Give the text of a file in UTF-8 (or UTF-16 with its mark), with line ends as newlines.

    Raises:
        UserError: it cannot be read, is not text, or is in another encoding; with file and line.
    """
    name = printable(path.name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    coding = next((BOMS[mark] for mark in BOMS if data.startswith(mark)), "utf-8")
    if coding != "utf-16" and b"\0" in data:
        raise UserError(f"{name}: is binary data, not text")
    try:
        text = data.decode(coding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x} is not {coding.upper().removesuffix('-SIG')}"
        raise UserError(f"{name}, line {line}: {found}; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, name: str, first: int = 1) -> Any:
    """Give what JSON holds.

    Args:
        text: the JSON.
        name: of its file, for the message.
        first: number of the text's first line in that file.

    Raises:
        UserError: it is none, is nested beyond all use, or holds half a character; with its line.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"{name}, line {first + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{where}: no JSON: {error.msg}") from None
    except UnicodeEncodeError:
        raise UserError(f"{name}: holds half a character (a lone \\ud800 ... escape)") from None
    except (RecursionError, ValueError):
        raise UserError(f"{name}, line {first}: no JSON that can be read") from None
    return value
