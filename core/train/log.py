"""What a run writes down: metrics.jsonl, pace.jsonl, TensorBoard scalars and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import append_line, read_lines, whole_file

METRICS = "metrics.jsonl"  # the same to the byte, however often the run was stopped
PACE = "pace.jsonl"  # seconds, which are never the same


class RunLog:
    """Logs scalars and pictures of a run; on resume, what came after the checkpoint is dropped."""

    def __init__(self, run: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        for name in (METRICS, PACE):
            _rewind(run / name, step)
        self.board: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log figures of a step that follow from the experiment alone."""
        self._write(METRICS, step, values)

    def pace(self, step: int, values: dict[str, float]) -> None:
        """Log how fast this machine went."""
        self._write(PACE, step, values)

    def _write(self, file: str, step: int, values: dict[str, float]) -> None:
        append_line(self.run / file, {"step": step, **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Log a picture, uint8 `[3, P, Q]`."""
        self.board.add_image(name, image, step)

    def close(self) -> None:
        """Flush and close."""
        self.board.close()


def _rewind(path: Path, step: int) -> None:
    kept = [line for line in read_lines(path) if line["step"] <= step]
    with whole_file(path) as part:
        part.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8"
        )
