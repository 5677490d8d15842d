"""What all work on a take shares: its folder, the run that makes it, its model, and delivery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import define, field

from ..errors import LongtakeError, UserError
from ..experiment import Experiment
from ..interfaces.codec import Codec
from ..interfaces.compressor import Needs
from ..interfaces.spec import CodecSpec
from ..model import Model, compressor_needs
from ..registry import build
from ..video.decode import Pixels
from ..video.write import count_frames, join_videos, write_video
from .folder import TakeFolder
from .order import Order
from .past import CRF, Frames, Past, links_of
from .plan import Defaults, grid_of
from .sampling import Remembering
from .setup import Opened, Run, check_identity
from .snapping import TakeGrid
from .source import (
    read_source,
    source_frames,
    source_is_there,
)


@define(eq=False)
class TakeBase:
    """A folder, the run that makes it, and what is in memory of both.

    Attributes:
        folder: of the take.
        source_run: where its model comes from.
        device: where it is made.
        notes: what differs from when it began, in words.
        lora_files: LoRA of the sections that are asked for from now on, with their hashes.
        remembering: the memory of the segment that was made last.
    """

    folder: TakeFolder
    source_run: Run
    device: torch.device
    notes: list[str] = field(factory=list)
    lora_files: tuple[tuple[str, str], ...] = ()
    _opened: Opened | None = None
    _model: Model | None = None
    _loras: tuple[str, ...] | None = None
    remembering: Remembering | None = None

    @property
    def root(self) -> Path:
        """Its folder."""
        return self.folder.root

    @property
    def experiment(self) -> Experiment:
        """What makes it."""
        return self.source_run.experiment

    @property
    def order(self) -> Order:
        """Its segments, made or not, as they are on the disk now."""
        return self.folder.order()

    def frames_of(self, first: int, count: int) -> int:
        """Return how many video frames latents first … first + count − 1 have."""
        return count * int(self.folder.spec["stride"]) - (0 if first else self.stride - 1)

    @property
    def stride(self) -> int:
        """Video frames to a latent."""
        return int(self.folder.spec["stride"])

    def grid(self, order: Order, segment_seconds: float | None) -> TakeGrid:
        """Return where sections may end; errors as `grid_of`."""
        source = sum(entry.latents for entry in order.entries if entry.source)
        period = int(self.folder.spec["period"])
        return grid_of(
            self.experiment, period=period, source=source, segment_seconds=segment_seconds
        )

    def defaults(self, board_seed: int | None, seed: int | None) -> Defaults:
        """Return what holds for sections that say nothing else; the first seed that is given."""
        sampler = self.experiment.generate.sampler
        base = next(x for x in (seed, board_seed, int(self.folder.spec["seed"])) if x is not None)
        return Defaults(
            negative=str(self.folder.spec.get("negative", "")),
            steps=sampler.steps,
            guidance=sampler.guidance,
            seed=base,
            loras=self.lora_files,
        )

    def model_of(self, loras: tuple[str, ...] = ()) -> Model:
        """Return the model, loaded now if it was not."""
        if self._model is None or self._loras != loras:
            self._model = self.remembering = None
            if self._opened is not None:
                check_identity(self._opened)
            self._model = self.source_run.load(loras).to(self.device)
            self._loras = loras
        return self._model

    def past(self, *, memory: bool = True, until: int | None = None) -> Past:
        """Return what follows from the segments that are made.

        Args:
            memory: whether memory is asked for; without it no model is loaded.
            until: number of the last segment that counts; None: all.
        """
        order = self.order
        links = links_of(self.folder, order)
        if until is not None:
            order.check_number(until, "segment")
            links = links[:until]
        codec: Codec[CodecSpec] = build(self.experiment.backbone.codec).to(self.device)
        remembers = memory and self.experiment.remembers
        return Past(
            folder=self.folder,
            codec=codec,
            encoder=self.model_of(self._loras or ()).encoder if remembers else None,
            needs=compressor_needs(self.experiment) if remembers else Needs(hr=False),
            device=self.device,
            links=links,
            own_frames=self._own_frames(order),
        )

    def _own_frames(self, order: Order) -> Any:
        """Return what gives the original frames of a source's segment, where its file is there."""
        source = read_source(self.folder)

        def frames(index: int) -> Iterator[Pixels] | None:
            if source is None or not source_is_there(source):
                return None
            entries = order.entries
            first = sum(entry.latents for entry in entries[:index])
            begin = 1 + self.stride * (first - 1) if first else 0
            count = self.frames_of(first, entries[index].latents)
            return _slice(source_frames(source, self.folder.fps), begin, count)

        return frames

    def deliver_past(self, past: Past, path: Path | None) -> tuple[Path, ...]:
        """Join the clips to take.mp4 (or `path`) and new.mp4, and count their frames.

        Raises:
            UserError: nothing is made yet, or the disk refuses.
            LongtakeError: another number of frames came than the latents have.
        """
        if not past.links:
            raise UserError(f"{self.root} has no segment yet: nothing to deliver")
        rest = self._rest_clip(past)
        clips = [past.clip(i) for i in range(len(past.links))] + rest
        source = sum(link.count for link in past.links if link.source)
        new = [past.clip(i) for i, link in enumerate(past.links) if not link.source] + rest
        comment = f"longtake take of {past.links[-1].chain[:32]}"
        whole = path or self.root / "take.mp4"
        files = [self._joined(whole, clips, comment, self.frames_of(0, past.end))]
        if source and len(past.links) > sum(link.source for link in past.links):
            count = self.stride * (past.end - source)
            files.append(self._joined(self.root / "new.mp4", new, comment, count))
        return tuple(files)

    def _joined(self, path: Path, clips: list[Path], comment: str, expected: int) -> Path:
        if count_frames(path, comment) != expected:
            frames = join_videos(path, clips, comment)
            if frames != expected:
                raise LongtakeError(
                    f"{path} has {frames} frames, its latents have {expected}: delivered is not "
                    "snapped; remove cache/ and run the same command"
                )
        return path

    def _rest_clip(self, past: Past) -> list[Path]:
        """Write the provisional frames behind the last clip, where the codec holds some back."""
        rest: Frames | None = past.rest()
        if rest is None:
            return []
        source = sum(link.count for link in past.links if link.source)
        rest = rest.since(self.frames_of(0, source) if source else 0)
        if not rest.pixels.shape[2]:
            return []
        path = past.clip(len(past.links) - 1).with_name("rest.mp4")
        write_video(path, rest.pictures(), self.folder.fps, CRF, comment="provisional")
        return [path]


def _slice(chunks: Iterator[Pixels], begin: int, count: int) -> Iterator[Pixels]:
    """Yield frames begin … begin + count − 1 of chunks `[n, P, Q, 3]`, one by one."""
    at = 0
    for chunk in chunks:
        yield from chunk[max(0, begin - at) : max(0, begin + count - at)]
        at += len(chunk)
        if at >= begin + count:
            return
