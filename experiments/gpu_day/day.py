"""What every step of a GPU day gets: where it writes, how long it may take, and its result file."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, frozen

from ...core.errors import LongtakeError
from ...core.tools.device import pick_device
from ...core.tools.files import read_json, write_json

DONE, FAILED, OPEN = "done", "failed", "to go on"
RESERVE = 45.0  # seconds before the end of a run from which nothing new is begun
TINY_RESERVE = 2.0


class TimeIsUp(Exception):
    """The step has more to do, and no time for it in this run."""


@frozen(kw_only=True)
class Session:
    """One run of the command, as its steps see it.

    Attributes:
        out: folder of the results, one JSON file a step.
        keep: folder of what is big and worth keeping between runs: stores and training runs.
        videos: folder with `train` and `val` videos; None: a tiny run, which makes its own.
        tiny: do everything in a tiny form, on whatever device there is.
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
        return self.end - time.time() - (TINY_RESERVE if self.tiny else RESERVE)

    @property
    def device(self) -> torch.device:
        """The device that steps run on: CUDA, or in a tiny run whatever there is."""
        return pick_device()


@define
class StepResult:
    """The result of a step, a JSON file that is written again whenever a figure is added.

    A step that was not finished, or failed in parts, goes on from the figures that are there.

    Attributes:
        path: of the file.
        head: what the file says of the step beside its figures.
        session: the run that the step is part of.
        figures: what was measured, by name.
        began: moment (seconds since the epoch) at which the step began.
        faults: one line for each part that failed.
    """

    path: Path
    head: dict[str, Any]
    session: Session
    figures: dict[str, Any] = field(factory=dict)
    began: float = field(factory=time.time)
    faults: list[str] = field(factory=list)

    @classmethod
    def open(cls, path: Path, head: dict[str, Any], session: Session) -> StepResult:
        """Return the result of a step; figures of an unfinished run of the same code are kept."""
        old = read_json(path, "result of a GPU day") if path.exists() else {}
        same = old.get("state") != DONE and all(old.get(key) == head[key] for key in ("tiny", "at"))
        return cls(path, head, session, figures=old.get("figures", {}) if same else {})

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

    def finish(self, state: str, error: str | None = None) -> None:
        """Write the file for the last time."""
        self.write(state, error, ended=time.time())

    def add(self, name: str, value: Any) -> None:
        """Add a figure."""
        self.figures[name] = value
        self.write(OPEN)

    def measure(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a figure that is there, or make it; what fails is noted, and the rest goes on.

        Raises:
            TimeIsUp: too little time is left to begin.
        """
        if name in self.figures:
            return self.figures[name]
        if self.session.left <= 0:
            raise TimeIsUp
        print(f"  {name} ...", flush=True)
        try:
            self.add(name, make())
        except Exception as error:  # whatever one part does, the others are worth their time
            traceback.print_exc()
            self.faults.append(f"{name}: {type(error).__name__}: {error}")
            return None
        return self.figures[name]

    def raise_faults(self) -> None:
        """Raise an error that names the parts that failed, if any did.

        Raises:
            LongtakeError: parts of the step failed.
        """
        if self.faults:
            raise LongtakeError("; ".join(self.faults))
