"""A day on a GPU: where it writes, how long it may take, and the book of one step."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, frozen

from ...core.errors import LongtakeError
from ...core.tools.device import pick_device
from ...core.tools.files import read_json, write_json
from ..common import commit, facts

DONE, FAILED, OPEN = "done", "failed", "to go on"
SHORT = 45.0  # seconds that are left when nothing new is begun any more
TINY_SHORT = 2.0


class TimeIsUp(Exception):
    """The step has more to do, and no time for it in this run."""


@frozen(kw_only=True)
class Day:
    """What every step is told.

    Attributes:
        out: folder of the results, one JSON file a step.
        keep: folder of what is big and worth keeping between runs: stores and training runs.
        videos: folder with `train` and `val` videos; None: a tiny day, which makes its own.
        tiny: run everything in a tiny form, on whatever device there is.
        end: moment (seconds since the epoch) at which this run should be over.
    """

    out: Path
    keep: Path
    videos: Path | None
    tiny: bool
    end: float

    @property
    def left(self) -> float:
        """Seconds until nothing new should be begun."""
        return self.end - time.time() - (TINY_SHORT if self.tiny else SHORT)

    @property
    def device(self) -> torch.device:
        """Where it runs: CUDA, or for a tiny day whatever there is."""
        return pick_device()


@define
class Book:
    """The result of a step, written again whenever something is added.

    A step that was not finished, or failed in parts, goes on from the figures that are there.
    """

    path: Path
    head: dict[str, Any]
    day: Day
    figures: dict[str, Any] = field(factory=dict)
    began: float = field(factory=time.time)
    faults: list[str] = field(factory=list)

    @classmethod
    def open(cls, path: Path, head: dict[str, Any], day: Day) -> Book:
        """Return the book of a step; figures of an unfinished run of the same code are kept."""
        old = read_json(path, "result of a GPU day") if path.exists() else {}
        same = old.get("state") != DONE and all(old.get(key) == head[key] for key in ("tiny", "at"))
        return cls(path, head, day, figures=old.get("figures", {}) if same else {})

    def write(self, state: str, error: str | None = None, *, ended: float = 0.0) -> None:
        """Write the file, whole or not at all; `ended` is 0 while the step runs."""
        body = {
            "state": state,
            "error": error,
            "seconds": round(time.time() - self.began, 1),
            "ended": ended,
            "figures": self.figures,
        }
        write_json(self.path, {**self.head, **body})

    def end(self, state: str, error: str | None = None) -> None:
        """Write the last word."""
        self.write(state, error, ended=time.time())

    def note(self, name: str, value: Any) -> None:
        """Put down one figure."""
        self.figures[name] = value
        self.write(OPEN)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a figure that is there, or make it; what fails is noted, and the rest goes on.

        Raises:
            TimeIsUp: too little time is left to begin.
        """
        if name in self.figures:
            return self.figures[name]
        if self.day.left <= 0:
            raise TimeIsUp
        print(f"  {name} ...", flush=True)
        try:
            self.note(name, make())
        except Exception as error:  # whatever one part does, the others are worth their time
            traceback.print_exc()
            self.faults.append(f"{name}: {type(error).__name__}: {error}")
            return None
        return self.figures[name]

    def close(self) -> None:
        """End the step.

        Raises:
            LongtakeError: parts of it failed; the message names them.
        """
        if self.faults:
            raise LongtakeError("; ".join(self.faults))


# ⟦experiments/gpu_steps/child.py⟧ One step in its own process: runs it and writes how it ended.


STEPS = {  # each step's module and function here
    "tests": "checks:run",
    "bench": "bench:run",
    "backbones": "backbones:run",
    "memory-cap": "cap:run",
    "train": "training:run",
    "table": "training:run_table",
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
        module, _, function = STEPS[step].partition(":")
        getattr(importlib.import_module(f".{module}", __package__), function)(day, book)
    except (TimeIsUp, KeyboardInterrupt):
        book.end(OPEN)
        return 0
    except Exception as error:  # the file says it, and the log has where
        traceback.print_exc()
        book.end(FAILED, f"{type(error).__name__}: {error}")
        return 1
    book.end(DONE)
    return 0
