"""One step in its own process: runs it and writes how it ended."""

from __future__ import annotations

import importlib
import sys
import traceback
from datetime import UTC, datetime

from .day import DONE, FAILED, OPEN, Book, Day, TimeIsUp
from .facts import commit, facts

MODULES = {
    "tests": "checks",
    "bench": "benches",
    "backbones": "backbones",
    "memory-cap": "cap",
    "train": "training",
    "table": "table",
}


def work(step: str, day: Day) -> int:
    """Run a step and write `<step>.json`; give 0 unless it failed."""
    head = {
        "step": step,
        "tiny": day.tiny,
        "at": commit(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        "machine": facts(),
    }
    book = Book.open(day.out / f"{step}.json", head, day)
    book.write(OPEN)
    try:
        importlib.import_module(f".{MODULES[step]}", __package__).run(day, book)
    except (TimeIsUp, KeyboardInterrupt):
        book.end(OPEN)
        return 0
    except Exception as error:  # the file says it, and the log has where
        traceback.print_exc()
        book.end(FAILED, f"{type(error).__name__}: {error}")
        return 1
    book.end(DONE)
    return 0
