"""What a run writes down: metrics.jsonl, TensorBoard, and pictures of what it retrieves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import append_line, read_lines, whole_file


class RunLog:
    """Logs scalars and pictures of a run; on resume, what came after the checkpoint is dropped."""

    def __init__(self, run: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / "metrics.jsonl"
        self._rewind(step)
        self.board: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def _rewind(self, step: int) -> None:
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        with whole_file(self.path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log figures of a step."""
        append_line(self.path, {"step": step, **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Log a picture, uint8 `[3, P, Q]`."""
        self.board.add_image(name, image, step)

    def close(self) -> None:
        """Flush and close."""
        self.board.close()
