"""What verbs share: finding runs, and printing results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..registry import nearest, registry


def find_run(text: str) -> Path:
    """Give the folder that RUN names: a run, a checkpoint, or shipped weights by name.

    Raises:
        UserError: there is no such folder and no weights of that name ship.
    """
    if Path(text).is_dir():
        return Path(text)
    shipped = registry().weights
    if text in shipped:
        return shipped[text]
    known = ", ".join(nearest(text, shipped)) or "none"
    raise UserError(f"{text}: no such run; weights that ship: {known}")


def emit(data: Any, lines: list[str], *, as_json: bool) -> None:
    """Print the result: JSON, or lines to read."""
    print(json.dumps(data, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))
