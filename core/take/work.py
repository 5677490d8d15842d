"""The one loop that makes what has no id, a segment after the other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import attrs
import torch
from attrs import define, field
from torch import Tensor

from ..data.texts import PromptEmbedder, prompt_path, read_embeddings
from ..errors import LongtakeError, UserError
from ..interfaces.backbone import Cache
from ..model import Model, memory_limit
from ..registry import build
from ..tools.files import hash_file
from ..tools.pictures import side_by_side
from ..tools.words import counted
from ..values.grid import MemoryLimit
from ..values.text import Text
from .base import TakeBase
from .delivery import deliver
from .events import Event, PixelsMade, SegmentMade, Told
from .folder import Recipe, Segment, facts_of, safe_disk
from .order import Entry, Order
from .past import TAIL, Past, links_of
from .plan import gone_on
from .report import write_report
from .sampling import (
    Pace,
    Remembering,
    Task,
    colours,
    is_memory_error,
    memory_gain,
    sample_segment,
)
from .setup import lora_path
from .source import SourceEncoder, source_frames, source_is_there

SLACK_BYTES = 64_000_000  # of the disk that are left free


@define
class Worker:
    """Makes what has no id, one segment after the other.

    Attributes:
        take: that is made.
        limit: new segments that are still to be made; None: all.
        grow: whether a last section that has no end goes on.
        gain: draws by which the gain of a segment's memory is measured; 0: it is not.
        pace: how long things take.
        remembering: what the segments read of the past; None before the first one.
        told: whether it was said that there are no previews.
        told_gone: whether it was said that the source is gone.
    """

    take: TakeBase
    limit: int | None
    grow: bool = True
    gain: int = 0
    pace: Pace = field(factory=Pace)
    remembering: Remembering | None = None
    _past: Past | None = None
    told: bool = False
    told_gone: bool = False

    @property
    def past(self) -> Past:
        """What is made, and what follows from it."""
        if self._past is None:
            self._past = self.take.past()
        return self._past

    def all_to_be_made(self) -> Iterator[Event]:
        """Make all segments that are still to be made, within the limit."""
        take = self.take
        order = self._with_source(take.order)
        self._check_made(order)
        self._embed(order)
        yield from self._follow()
        while True:
            order = take.order
            number = order.made + 1
            if number <= len(order.entries) and order.entries[number - 1].source:
                yield from self._source(order)
                continue
            if self.limit is not None and self.limit <= 0:
                return
            if number > len(order.entries):
                if order.ended or not self.grow:
                    return
                grid = take.grid(order, None)
                more = gone_on(order, grid, take.defaults(None, None))
                if more is None:
                    return
                order = attrs.evolve(more, open=True)
                take.folder.write_order(order)
            yield from self._segment(order, number)
            if self.limit is not None:
                self.limit -= 1
            yield from self._follow()
            every = take.experiment.generate.deliver_every
            if every and number % every == 0:
                deliver(take, self.past)
                write_report(take)

    def _with_source(self, order: Order) -> Order:
        """Return the order in which a source, of which a segment is gone, is to be encoded again.

        It gives the same segments. Where its file is not there, the order stays as it is.
        """
        folder, source = self.take.folder, self.take.source()
        given = order.entries[: order.source]
        gone = any(entry.id is not None and not folder.has(entry.id) for entry in given)
        if not gone or source is None or not source_is_there(source):
            return order
        for number in range(1, order.source + 1):
            order = order.with_id(number, None)
        folder.write_order(order)
        return order

    def _check_made(self, order: Order) -> None:
        """Read what is primary once: what is edited or damaged is found before anything is made."""
        folder = self.take.folder
        for number, entry in enumerate(order.entries, start=1):
            if entry.id is not None:
                folder.segment_of(order, number)
                self._check_segment(entry.id, number, source=entry.source)

    def _check_segment(self, id: str, number: int, *, source: bool) -> None:
        folder = self.take.folder
        folder.latents(id, number)
        if source and self.past.needs.rates:
            folder.lr(id, number)

    def _embed(self, order: Order) -> None:
        """Embed the prompts of what is to be made; the encoder is loaded only for new ones."""
        wanted = [x for e in order.entries if e.id is None and not e.source
                  for x in (e.prompt, e.negative)]  # fmt: skip
        if not wanted:
            return
        take = self.take
        encoder = build(take.experiment.backbone.text_encoder).to(take.device)
        with safe_disk(order.made):
            PromptEmbedder(take.root, encoder).embed_missing(wanted)

    def _text(self, prompt: str) -> Text:
        return read_embeddings(prompt_path(self.take.root, prompt))

    def _follow(self) -> Iterator[Event]:
        """Make what follows from the segments that are made, and tell of new clips."""
        began, past = time.monotonic(), self.past
        try:
            with safe_disk(len(past.links)):
                made = past.follow()
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
            raise LongtakeError(
                f"segment {past.followed + 1} is sampled and safe; decoding ran out of memory: "
                "--set backbone.codec.tile=256 and run it again"
            ) from error
        took = time.monotonic() - began
        for index in made:
            yield PixelsMade(
                segment=index + 1,
                clip=past.clip(index),
                took=round(took / len(made), 3),
                spent=past.spent.pop(index, {}),
            )
        if made:
            self.pace.beside.append(took / len(made))
        if past.stand_ins and not self.told_gone and (source := self.take.source()) is not None:
            self.told_gone = True
            yield Told(text=source.gone)

    def _add(self, order: Order, number: int, segment: Segment) -> None:
        """Name a segment in the order, and put it behind the past."""
        order = order.with_id(number, segment.id)
        self.take.folder.write_order(order)
        self.past.add(links_of(self.take.folder, order)[number - 1])

    def _recipe(self, order: Order, number: int, facts: dict[str, Any]) -> Recipe:
        entry = order.entries[number - 1]
        folder, past = self.take.folder, self.past
        chain = past.links[-1].chain if past.links else folder.chain([])
        return Recipe(
            number=number, first=order.first(number), count=entry.latents, past=chain, facts=facts
        )

    def _segment(self, order: Order, number: int) -> Iterator[Event]:
        """Make segment `number`: sample it, or adopt it where it is there already."""
        take, entry = self.take, order.entries[number - 1]
        sampler = take.experiment.generate.sampler
        sampler = attrs.evolve(
            sampler,
            steps=entry.steps or sampler.steps,
            guidance=sampler.guidance if entry.guidance is None else entry.guidance,
        )
        model = self._model(entry)
        shift = sampler.shift or take.experiment.backbone.shift
        limit = self._limit()
        facts = facts_of(entry) | {
            "sampler": attrs.asdict(sampler) | {"shift": shift},
            "limit": None if limit is None else attrs.asdict(limit),
        }
        recipe = self._recipe(order, number, facts)
        began, tokens, adopted = time.monotonic(), 0, take.folder.has(recipe.id)
        if adopted:
            take.folder.latents(recipe.id, number)
            segment = take.folder.segment(recipe.id, number)
            tokens = int(segment.made.get("tokens") or 0)
        else:
            self._check_room(order, number)
            shot = max((link.first for link in self.past.links if link.cut), default=0)
            task = Task(
                number=number,
                segments=len(order.entries),
                entry=entry,
                first=recipe.first,
                size=take.folder.size,
                sampler=sampler,
                shift=shift,
                text=self._text(entry.prompt),
                null_text=self._text(entry.negative),
                shot=recipe.first if entry.cut else shot,
            )
            read_from = self.past.clock()
            remembers = self._remembering(model, limit)
            settled, pending = self.past.memory(cut=entry.cut, since=remembers.taken)
            memory, tokens = remembers.held(settled, pending, task)
            self.past.let_go(remembers.taken)
            remembering = round(self.past.clock() - read_from, 4)
            read = memory.memory if isinstance(memory, Cache) else memory
            whole = sum(self.past.lengths) + pending.length
            limited = entry.memory == "all"
            self._count_rest(order, number)
            latents: Tensor | None = None
            rgb = self.past.codec.rgb
            if rgb is None and not self.told:
                self.told = True
                yield Told(text="no previews: this codec has no matrix from latents to colours")
            for one in sample_segment(model.backbone, task, memory, take.device, self.pace, rgb):
                if isinstance(one, Event):
                    yield one
                else:
                    latents = one
            assert latents is not None
            made = {
                "at": now(), "seconds": round(time.monotonic() - began, 3), "tokens": tokens,
                "parts": {part.name: int(part.tokens.shape[1]) for part in read.parts},
                "dropped": whole - tokens if limited else 0, "remembering": remembering,
                "device": str(take.device), "threads": torch.get_num_threads(),
                "peak_memory": _peak(take.device),
            }  # fmt: skip
            if self.gain and tokens:
                train = take.experiment.train
                made["gain"] = memory_gain(
                    model.backbone, task, memory, latents, self.gain, train
                )  # fmt: skip
            picture = None if rgb is None else _strip(colours(latents, rgb))
            with safe_disk(number - 1):
                segment = take.folder.commit(
                    recipe, latents, made, header=self._header(), preview=picture
                )
        with safe_disk(number):
            self._add(order, number, segment)
        frames = take.frames_of(recipe.first, entry.latents)
        yield SegmentMade(
            segment=number,
            segments=len(order.entries),
            id=segment.id,
            prompt=entry.prompt,
            seed=entry.seed,
            first=recipe.first,
            latents=entry.latents,
            frames=frames,
            duration=frames / take.folder.fps,
            tokens=tokens,
            took=round(time.monotonic() - began, 3),
            adopted=adopted,
        )

    def _header(self) -> dict[str, Any]:
        """Return the header of latents: whose they are, and how they are normalised."""
        codec = self.past.codec
        found: dict[str, Any] = {"codec": self.take.folder.spec["identity"]["codec"]}
        for name in ("mean", "std"):
            value = getattr(codec, name, None)
            if isinstance(value, Tensor):
                found[name] = value.flatten().tolist()
        return found

    def _model(self, entry: Entry) -> Model:
        """Return the model with an entry's LoRA files, which must be as they were asked for.

        Raises:
            UserError: a file is gone, or has changed.
        """
        texts = tuple(text for text, _ in entry.loras)
        if not self.take.has_loaded(texts):
            for text, digest in entry.loras:
                path = lora_path(text, self.take.experiment)
                if hash_file(path) != digest:
                    raise UserError(
                        f"--lora {path} has changed since the section was asked for (sha256): put "
                        "it back, or redo the section with --lora"
                    )
        try:
            return self.take.model_of(texts)
        except UserError as error:
            named = {x for t in texts for x in (t, str(lora_path(t, self.take.experiment)))}
            if not any(name in str(error) for name in named):
                raise
            raise UserError(f"{error}: --undo takes back what was asked for with it") from None

    def _limit(self) -> MemoryLimit | None:
        take = self.take
        if not take.experiment.remembers:
            return None
        return memory_limit(take.experiment, take.experiment.generate.budget, take.folder.size)

    def _remembering(self, model: Model, limit: MemoryLimit | None) -> Remembering:
        """Return what segments read of the past; begun again where a LoRA changed the model."""
        if self.remembering is None or self.remembering.backbone is not model.backbone:
            attention = getattr(self.take.experiment.backbone, "attention", "full")
            appends = model.backbone.caches and attention == "isolated-causal"
            self.remembering = Remembering(model.backbone, limit, appends)
        return self.remembering

    def _count_rest(self, order: Order, number: int) -> None:
        """Count what is to be made behind segment `number`, for the time that is left."""
        steps = self.take.experiment.generate.sampler.steps
        rest = order.entries[number:]
        if self.limit is not None:
            rest = rest[: self.limit - 1]
        self.pace.left = sum(entry.latents * (entry.steps or steps) for entry in rest)
        self.pace.segments_left = len(rest)

    def _check_room(self, order: Order, number: int) -> None:
        """Refuse to sample what the disk could not hold.

        Raises:
            LongtakeError: less is free than twice a segment and what follows from it.
        """
        spec, entry = self.take.folder.spec, order.entries[number - 1]
        rows, columns = spec["latent_size"]
        latents = 4 * int(spec["channels"]) * entry.latents * rows * columns
        height, width = spec["size"]
        pixels = self.take.stride * entry.latents * height * width // 4
        needed = 2 * (3 * latents + pixels) + SLACK_BYTES
        free = shutil.disk_usage(self.take.root).free
        if free < needed:
            raise LongtakeError(
                f"{free / 1e9:.1f} GB free, segment {number} needs {needed / 1e9:.1f} GB: "
                f"{counted(number - 1, 'segment')} safe; free space and run the same command"
            )

    @torch.no_grad()
    def _source(self, order: Order) -> Iterator[Event]:
        """Encode the source and commit its segments, those that are not there yet."""
        take = self.take
        source = take.source()
        if source is None:
            raise UserError(f"{take.root}: source/source.json is gone: put it back")
        lengths = [entry.latents for entry in order.entries if entry.source]
        rates = tuple(sorted(self.past.needs.rates))
        encoder = SourceEncoder(self.past.codec, rates, take.device)
        chunks = source_frames(source, take.folder.fps)
        for number, (latents, lr, tail) in enumerate(encoder.segments(chunks, lengths), start=1):
            facts = {
                "source": source.hash, "skip": source.skip, "frames": source.frames,
                "placement": str(source.placement),
            }  # fmt: skip
            if order.entries[number - 1].id is not None:
                continue
            began = time.monotonic()
            recipe = self._recipe(order, number, facts)
            whole = take.frames_of(0, sum(lengths)) == source.frames
            if tail is not None and rates and whole:  # an edit may have ended it earlier
                path = take.root / "source" / TAIL
                with safe_disk(number - 1):
                    tail.write(path)
                self.past.lowres.tail = tail
            if take.folder.has(recipe.id):
                self._check_segment(recipe.id, number, source=True)
                segment = take.folder.segment(recipe.id, number)
            else:
                with safe_disk(number - 1):
                    segment = take.folder.commit(
                        recipe, latents, {"at": now()}, header=self._header(),
                        lr=lr if rates else None,
                    )  # fmt: skip
            with safe_disk(number):
                self._add(order, number, segment)
            order = take.order
            frames = take.frames_of(recipe.first, recipe.count)
            yield SegmentMade(
                segment=number,
                segments=len(order.entries),
                id=segment.id,
                prompt="",
                seed=0,
                first=recipe.first,
                latents=recipe.count,
                frames=frames,
                duration=frames / take.folder.fps,
                tokens=0,
                took=round(time.monotonic() - began, 3),
            )
        if order.made > len(self.past.links):  # it was encoded again, and others lie behind it
            self._past = None
        yield from self._follow()


def now() -> str:
    """Return the time, as logs have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _strip(pictures: Tensor) -> Tensor:
    """Return first, middle and last of small pictures side by side, uint8 `[3, P, Q]`."""
    chosen = sorted({0, len(pictures) // 2, len(pictures) - 1})
    return side_by_side([pictures[i] for i in chosen])
