"""What all work on a take shares: its folder, the run that makes it, its model and its past."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from attrs import define, field

from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.codec import Codec
from ..interfaces.compressor import Needs
from ..interfaces.spec import CodecSpec
from ..model import Model, compressor_needs
from ..registry import build
from ..video.decode import Pixels
from .folder import TakeFolder
from .order import Order
from .past import Past, links_of
from .plan import Defaults, grid_of
from .setup import Opened, Run, check_identity
from .snapping import TakeGrid
from .source import Source, SourceReader, read_source, sound_of


@define(eq=False)
class TakeBase:
    """A folder, the run that makes it, and what is in memory of both.

    Attributes:
        folder: of the take.
        source_run: where its model comes from.
        device: where it is made.
        notes: what differs from when it began, in words.
        lora_files: LoRA of the sections that are asked for from now on, with their hashes.
    """

    folder: TakeFolder
    source_run: Run
    device: torch.device
    notes: list[str] = field(factory=list)
    lora_files: tuple[tuple[str, str], ...] = ()
    _opened: Opened | None = None
    _model: Model | None = None
    _loras: tuple[str, ...] | None = None

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

    def source(self) -> Source | None:
        """Return the user's own video that the take begins with; None where it does not (any more).

        Its files stay when an edit drops it, so that `undo` brings it back.

        Raises:
            UserError: what says of it is gone or damaged.
        """
        if not self.order.source:
            return None
        source = read_source(self.folder)
        if source is None:
            raise UserError(
                f"{self.root} begins with a video, and source/source.json, which names it, is "
                "gone: put it back"
            )
        return source

    def sound(self) -> Path | None:
        """Return the file of the source's sound; None where there is none."""
        return sound_of(self.folder) if self.order.source else None

    def check_border(self, order: Order, number: int, option: str) -> None:
        """Raise UserError where a take cannot end behind segment `number`.

        A codec that holds back frames gives no border within the user's own video.
        """
        if 0 < number < order.source and not self.folder.spec["causal"]:
            raise UserError(
                f"{option} {number}: it lies within the video that the take begins with (segments "
                f"1-{order.source}), and this run's codec holds back frames, so that it has no "
                f"border there; name {order.source} or more"
            )

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

    def has_loaded(self, loras: tuple[str, ...]) -> bool:
        """Return whether the model with these LoRA files is in memory."""
        return self._model is not None and self._loras == loras

    def model_of(self, loras: tuple[str, ...] = ()) -> Model:
        """Return the model, loaded now if it was not."""
        if self._model is None or not self.has_loaded(loras):
            self._model = None
            if self._opened is not None:
                check_identity(self._opened)
            self._model = self.source_run.load(loras).to(self.device)
            self._loras = loras
        return self._model

    def past(self, *, memory: bool = True, until: int | None = None) -> Past:
        """Return what follows from the segments that are made.

        Args:
            memory: whether memory is asked for; the model is loaded where some of it is not there.
            until: number of the last segment that counts; None: all.
        """
        order = self.order
        links = links_of(self.folder, order)
        if until is not None:
            order.check_number(until, "segment")
            self.check_border(order, until, "segment")
            links = links[:until]
        codec: Codec[CodecSpec] = build(self.experiment.backbone.codec).to(self.device)
        remembers = memory and self.experiment.remembers
        return Past(
            folder=self.folder,
            codec=codec,
            encoder=(lambda: self.model_of(self._loras or ()).encoder) if remembers else None,
            needs=compressor_needs(self.experiment) if remembers else Needs(hr=False),
            device=self.device,
            links=links,
            own_frames=self._own_frames(order),
            recodes=(source := self.source()) is not None and source.recode,
            source=sum(entry.latents for entry in order.entries if entry.source),
        )

    def frames(self, number: int | None = None) -> Iterator[Pixels]:
        """Yield the frames of a segment, or of all, uint8 `[P, Q, 3]`, from its latents.

        A codec that is not causal gives the frames that each segment makes final, and what it
        holds back with the last one.

        Raises:
            UserError: there is no such segment, or it is not made yet.
        """
        past = self.past(memory=False)
        if number is not None:
            self.order.check_number(number, "segment")
            if number > len(past.links):
                raise UserError(f"segment {number} is not made yet")
        wanted = range(len(past.links)) if number is None else [number - 1]
        with torch.no_grad():
            for index in wanted:
                yield from past.decoding.frames(index).pictures()
            if wanted and wanted[-1] == len(past.links) - 1 and (rest := past.rest()) is not None:
                yield from rest.pictures()

    def _own_frames(self, order: Order) -> Callable[[int], Iterator[Pixels] | None]:
        """Return what gives the original frames of a source's segment, where its file is there."""
        source = self.source()
        reader = None if source is None else SourceReader(source, self.folder.fps)

        def frames(index: int) -> Iterator[Pixels] | None:
            if reader is None or not reader.is_there:
                return None
            first = order.first(index + 1)
            begin = self.frames_of(0, first) if first else 0
            return reader.frames(begin, self.frames_of(first, order.entries[index].latents))

        return frames
