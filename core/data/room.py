"""Room on the disk for the rest of a store, judged by what its videos have taken so far."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from attrs import define

GIGABYTE = 1e9


@define
class Room:
    """Counts videos that were cached into the store at `root`, and their bytes."""

    root: Path
    videos: int = 0
    written: int = 0

    def add(self, clips: Iterable[Path]) -> None:
        """Count one more video, by the files of its clips."""
        self.videos += 1
        self.written += sum(path.stat().st_size for path in clips)

    def lacking(self, left: int) -> str:
        """Say what so many more videos need, where that is more than is free; "" where it is not.

        They are taken to be as large as those before, so the word is of use, and no promise.
        """
        if not self.videos:
            return ""
        wanted, free = self.written / self.videos * left, shutil.disk_usage(self.root).free
        if wanted <= free:
            return ""
        return f"the rest needs about {wanted / GIGABYTE:.1f} GB of {free / GIGABYTE:.1f} GB free"
