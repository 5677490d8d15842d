"""Takes: a long video made segment by segment, each out of the memory of all before it.

    take = Take.create("out/walk", run="runs/5b", seed=7)
    for event in take.run("story.json"):
        ...

`run` is a plain generator of events: whoever stops asking stops the work, and what exists stays.
Edits (`redo`, `undo`, `drop_after`, `branch`) change the order of the take and return; `run` makes.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import define
from torch import Tensor

from ..data.subtitles import read_whole_file
from ..errors import UserError, check_utf8
from ..model import Model
from ..registry import build
from ..tools.device import pick_device
from ..tools.files import (
    check_out_file,
    claimed_folder,
    disk_errors,
    hash_file,
    open_tensors,
    remove_folder,
    whole_file,
)
from ..tools.hub import expand_path
from ..tools.words import counted
from ..values.memory import Memory
from ..video.decode import Pixels, probe
from .base import TakeBase
from .delivery import NEW_VIDEO, VIDEO, deliver, remove_products
from .events import Done, Event, PixelsMade, Told
from .findings import TakeReport, summary_lines
from .folder import Segment, TakeFolder, is_take
from .order import Entry, Order, draw_seed, is_id, is_whole
from .past import Past, whole_memory
from .plan import Plan, appended, grid_of, ignored_length, ignored_seed, replanned
from .prompts import unread_lines
from .report import report_segment, write_report
from .setup import WIDE, Run, check_identity, lora_path, new_spec, open_take, take_size
from .source import (
    DELIVER,
    RECODE,
    Source,
    find_source,
    forget_files,
    keep_its_sound,
    read_source,
    split_source,
    write_source,
)
from .storyboard import Section, Storyboard, read_given, read_storyboard
from .work import Worker, now

log = logging.getLogger(__name__)
Story = Storyboard | Path | str | Iterable[Section]


@define(eq=False)
class MadeSegment:
    """A segment of a take that exists.

    Attributes:
        take: that it is of.
        number: of it, from 1.
        entry: what was asked for.
        stored: what its folder says.
    """

    take: Take
    number: int
    entry: Entry
    stored: Segment

    @property
    def id(self) -> str:
        """Name of its folder."""
        return self.stored.id

    @property
    def first(self) -> int:
        """Its first latent in the take."""
        return self.stored.first

    @property
    def prompt(self) -> str:
        """The prompt that it was made with."""
        return self.entry.prompt

    @property
    def seed(self) -> int:
        """The seed of its noise."""
        return self.entry.seed

    @property
    def seconds(self) -> float:
        """Seconds of video that it has."""
        return self.take.frames_of(self.first, self.stored.count) / self.take.folder.fps

    @property
    def latents(self) -> Tensor:
        """Its latents, float32 `[1, C, K, H, W]`."""
        return self.take.folder.latents(self.id, self.number)

    @property
    def memory(self) -> Memory:
        """The memory of the take up to its end."""
        return self.take.memory(after=self.number)

    @property
    def report(self) -> TakeReport:
        """What there is to say of it: how it joins the one before, its memory and its time."""
        return report_segment(self.take, self.number)

    def frames(self) -> Iterator[Pixels]:
        """Yield its frames, uint8 `[P, Q, 3]`, decoded among those before it."""
        return self.take.frames(self.number)


@define(eq=False)
class Take(TakeBase):
    """A take; make one with `create` or `open`."""

    @classmethod
    def create(
        cls,
        out: Path | str,
        run: Path | str | None = None,
        *,
        model: Model | None = None,
        size: str | None = None,
        size_named: str = "--size",
        like: Path | str | None = None,
        seed: int | None = None,
        negative: str = "",
        sets: Sequence[str] = (),
        device: torch.device | str | None = None,
    ) -> Take:
        """Begin a take in a new folder.

        Args:
            out: its folder.
            run: folder of the run that makes it; or `model`.
            model: a model in memory.
            size: `WIDTHxHEIGHT`, one of the run's sizes; None: the run's own.
            size_named: where that is asked for, for messages.
            like: a video or picture whose aspect is taken where no size is named.
            seed: base of its seeds; None: one is drawn.
            negative: the negative prompt of sections that have none.
            sets: changes of the run's experiment, such as `generate.sampler.steps=20`.
            device: where it is made; None: the best one here.

        Raises:
            UserError, SpecError: there is a take already, or something else; no such run, size or
                seed.
        """
        root, given = Path(out), model if model is not None else run
        if given is None:
            raise UserError("a take needs the run that makes it: run=, or model=")
        if (root / "spec.json").exists():
            raise UserError(f"{root} is a take already: open it, or name another folder")
        seed, negative = read_given("seed", seed), read_given("negative", negative) or ""
        TakeFolder.check_new(root)
        if not isinstance(given, Model):
            check_utf8(Path(given).absolute(), "RUN")
        made_by = Run.of(given, list(sets))
        shape = WIDE
        if like is not None:
            info = probe(Path(like))
            shape = (info.width, info.height)
        asked = size is not None or made_by.experiment.generate.size is not None
        pixels = take_size(made_by.experiment, size, shape, size_named)
        base = draw_seed() if seed is None else seed
        spec = new_spec(made_by, pixels, seed=base, negative=negative, asked_size=asked)
        grid_of(made_by.experiment, period=spec["period"], source=0, segment_seconds=None)
        made_on = _device(device)
        with claimed_folder(root):
            folder = TakeFolder.create(root, spec)
        return cls(folder, made_by, made_on)

    @classmethod
    def open(
        cls,
        out: Path | str,
        run: Path | str | Model | None = None,
        *,
        sets: Sequence[str] = (),
        device: torch.device | str | None = None,
    ) -> Take:
        """Open a take.

        Args:
            out: its folder.
            run: the run that made it, where it is no longer where it was.
            sets: changes for this time, such as `codec.tile=256`.
            device: where it goes on; None: the best one here.

        Raises:
            UserError: it is no take, is of a newer format, or its run is gone.
        """
        opened = open_take(Path(out), run, list(sets))
        if run is not None:
            check_identity(opened)
        return cls(opened.folder, opened.run, _device(device), list(opened.notes), opened=opened)

    # What a take says of itself

    def segment(self, number: int) -> MadeSegment:
        """Return a segment by its number, from 1.

        Raises:
            UserError: there is none, or it is not made yet.
        """
        order = self.order
        order.check_number(number, "segment")
        entry = order.entries[number - 1]
        if entry.id is None:
            raise UserError(f"segment {number} is not made yet")
        return MadeSegment(self, number, entry, self.folder.segment(entry.id, number))

    def segments(self) -> list[MadeSegment]:
        """Return the segments that are made, in order."""
        return [self.segment(number) for number in range(1, self.order.made + 1)]

    def latents(self) -> Tensor:
        """Return the latents of the whole take, float32 `[1, C, T, H, W]`, checked.

        Raises:
            UserError: nothing is made yet, or a segment is damaged.
        """
        made = self.segments()
        if not made:
            raise UserError(f"{self.root} has no segment yet")
        return torch.cat([segment.latents for segment in made], dim=2)

    def memory(self, after: int | None = None) -> Memory:
        """Return the memory of the take behind segment `after`; None: behind the last one made."""
        past = self.past(until=after)
        past.follow()
        return whole_memory(*past.memory())

    # Edits

    def begin(
        self,
        video: Path | str | None = None,
        *,
        image: Path | str | None = None,
        until: float | None = None,
        deliver: str | None = None,
    ) -> str:
        """Begin with a user's own video or picture; return what is taken of it, in one line.

        It is encoded by the next `run`. Given again, the same one is as it was.

        Args:
            video: the file.
            image: a picture instead; of a video its first frame.
            until: seconds of the video after which it is cut.
            deliver: `keep`: its own frames, then new ones; `recode`: all as the codec gives them
                back, so that no step is seen; None: as it was, at first `keep`.

        Raises:
            UserError: the file cannot be read or is too short, or the take has segments already.
        """
        if (video is None) == (image is None):
            raise UserError("a take begins with one video or one picture")
        path = Path(image if video is None else video)  # type: ignore[arg-type]
        with self._held():
            return self._begin(path, picture=video is None, until=until, deliver=deliver)

    def deliver_source(self, deliver: str) -> None:
        """Say how the frames of the source are delivered from now on: `keep` or `recode`.

        Raises:
            UserError: it is neither, the codec holds back frames, or the take has no source.
        """
        with self._held():
            source = self.check_deliver(deliver)
            if source.recode != (deliver == RECODE):
                write_source(self.folder, attrs.evolve(source, recode=deliver == RECODE))

    def check_deliver(self, deliver: str) -> Source:
        """Return the source of which frames would be delivered so; nothing is written.

        Raises:
            UserError: as `deliver_source`.
        """
        self._check_deliver(deliver)
        source = self.source()
        if source is None:
            raise UserError(f"--deliver: {self.root} begins with no video, all of it is new")
        return source

    def _check_deliver(self, deliver: str) -> None:
        if deliver not in DELIVER:
            raise UserError(f"--deliver {deliver}: {' or '.join(DELIVER)}")
        if deliver == RECODE and not self.folder.spec["causal"]:
            raise UserError(
                "--deliver recode: this run's codec holds back frames, so that no border lies "
                "where the video ends; only keep"
            )

    def _begin(
        self, path: Path, *, picture: bool, until: float | None, deliver: str | None = None
    ) -> str:
        source = self.check_beginning(path, picture=picture, until=until, deliver=deliver)
        line, before, order = self.beginning_line(source), read_source(self.folder), self.order
        same = before is not None and _facts(before) == _facts(source)
        recode = deliver == RECODE
        if deliver is None and before is not None and same:
            recode = before.recode
        if order.source and before is not None:
            if before.recode != recode:
                write_source(self.folder, attrs.evolve(before, recode=recode))
            return line
        if before is not None and not same:
            forget_files(self.folder)
        write_source(self.folder, attrs.evolve(source, recode=recode))
        line += keep_its_sound(self.folder, source)
        latents = 1 + (source.frames - 1) // self.stride
        period = int(self.folder.spec["period"])
        lengths = split_source(latents, period, self.folder.fps, self.stride)
        entries = tuple(Entry(latents=n, source=True) for n in lengths)
        self.folder.edit(attrs.evolve(order, entries=entries, ended=False))
        return line

    def beginning_line(self, source: Source) -> str:
        """Return what to say of a source that the take begins with, or would."""
        line, order = source.line(self.folder.fps), self.order
        kept = self.frames_of(0, order.first(order.source + 1)) if order.source else source.frames
        if kept < source.frames:
            line += f"; the take keeps the first {counted(kept, 'frame')}, as it was edited"
        return line

    def check_beginning(
        self,
        path: Path,
        *,
        picture: bool,
        until: float | None = None,
        deliver: str | None = None,
    ) -> Source:
        """Return what of a file the take would begin with; nothing is written.

        Args:
            path: of the video, or of the picture.
            picture: whether only its first frame is taken.
            until: as for `begin`.
            deliver: as for `begin`.

        Raises:
            UserError: as `begin`.
        """
        if deliver is not None:
            self._check_deliver(deliver)
        check_utf8(path.absolute(), "--image" if picture else "--extend")
        until = read_given("duration", until, "--extend-from")
        order = self.order
        source = find_source(path, self.folder, stride=self.stride, until=until, picture=picture)
        before = read_source(self.folder)
        same = order.source and before is not None and _facts(before) == _facts(source)
        if order.entries and not same:
            raise UserError(
                f"{self.root} has segments already: another beginning needs another take"
            )
        if before is not None and _facts(before) != _facts(source):
            if any(one.source for one in self.folder.orders_before(order)):
                raise UserError(
                    f"{self.root} began with {before.path.name}, which --undo brings back: another "
                    "beginning needs another take"
                )
        return source

    def plan(
        self, story: Story | Section, *, seconds: float | None = None, seed: int | None = None
    ) -> Plan:
        """Return the order that a storyboard, or one more section, would make; nothing is written.

        Args:
            story: a storyboard or the path of one (compared with what is there), or a section.
            seconds: length of the sections of a plain text.
            seed: base of the seeds; None: the storyboard's, or the take's.

        Raises:
            UserError: what is wrong with the storyboard, or its size is not the take's.
        """
        order, seed = self.order, read_given("seed", seed)
        _check_asked(story)
        if isinstance(story, Section):
            return self._plan_more(order, story, seed)
        board = self._board(story, seconds)
        height, width = self.folder.spec["size"]
        if board.size not in (None, f"{width}x{height}"):
            name = board.name or "the storyboard"
            raise UserError(f"{name} asks for {board.size}, {self.root} is {width}x{height}")
        try:
            grid = self.grid(order, board.segment_seconds)
        except UserError as error:
            if board.segment_seconds is None:
                raise
            where = board.place("segment_seconds").removesuffix("segment_seconds")
            raise UserError(f"{where}{error}") from None
        plan = replanned(order, board.complete(), grid, self.defaults(board.seed, seed))
        notes: tuple[str, ...] = ()
        if (base := board.seed if seed is None else seed) is not None:
            own = {i for i, section in enumerate(board.sections) if section.seed is not None}
            notes += ignored_seed(order, plan.order, own, base)
        if board.segment_seconds is not None:
            notes += ignored_length(order, plan.order, grid, board.segment_seconds)
        return attrs.evolve(plan, notes=notes, title=board.title or "")

    def unread(self, order: Order | None = None, *, fetch: bool = True) -> list[str]:
        """Return what the text encoder does not read of prompts that are to be made, line by line.

        Args:
            order: whose; None: the take's own.
            fetch: whether what says so may be downloaded; else there are no lines without it.

        Raises:
            UserError: the encoder's tokenizer is missing or damaged.
        """
        encoder = build(self.experiment.backbone.text_encoder)
        if not fetch and not encoder.available_offline:
            return []
        return unread_lines(self.order if order is None else order, encoder)

    def _plan_more(self, order: Order, section: Section, seed: int | None) -> Plan:
        grid, defaults = self.grid(order, None), self.defaults(None, seed)
        plan = appended(order, section, grid, defaults)
        if plan.rows or seed is None or section.seed is not None:
            return plan
        last = order.entries[-1].section
        others = {e.section for e in order.entries if e.section not in (None, last)}
        return attrs.evolve(plan, notes=ignored_seed(order, order, others, seed))

    def take_plan(self, plan: Plan, *, original: Path | None = None) -> Order:
        """Write a planned order, if it is another than the one that is there.

        Args:
            plan: of `plan`.
            original: the storyboard's file, of which a copy is kept.
        """
        with self._held():
            return self._take_plan(plan, original)

    def _take_plan(self, plan: Plan, original: Path | None, text: bytes = b"") -> Order:
        """Write a planned order; `text` is what the original held when it was read."""
        order = self.order
        title = order.title if plan.title is None else plan.title
        if (plan.order.entries, title) == (order.entries, order.title) and not order.ended:
            return order
        if original is not None:
            data = text or read_whole_file(original)
            with whole_file(self.root / f"story.orig{original.suffix}") as part:
                part.write_bytes(data)
        return self.folder.edit(attrs.evolve(plan.order, ended=False, title=title))

    def redo(
        self,
        number: int,
        *,
        prompt: str | None = None,
        seed: int | None = None,
        keep_seed: bool = False,
        negative: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Order:
        """Order segment `number` anew, and all behind it, which read it.

        It has the LoRA files of `use_loras`, where some were named, else its own.

        Args:
            number: of the segment.
            prompt: another one for it; those behind it keep theirs.
            seed: another one for it; None: one is drawn.
            keep_seed: keep its seed.
            negative: another negative prompt for it; None: its own.
            steps: other sampling steps for it; None: its own.
            guidance: another weight of the prompt for it; None: its own.

        Raises:
            UserError: there is no such segment, it is of the user's own video, or a value is none.
        """
        with self._held():
            order = self.order
            order.check_redo(number)
            entry = order.entries[number - 1]
            prompt, negative = read_given("prompt", prompt), read_given("negative", negative)
            seed, steps = read_given("seed", seed), read_given("steps", steps)
            guidance = read_given("guidance", guidance)
            named = {
                "prompt": prompt, "negative": negative, "steps": steps, "guidance": guidance,
                "loras": self.lora_files or None,
            }  # fmt: skip
            changes: dict[str, Any] = {k: v for k, v in named.items() if v is not None}
            if not keep_seed:
                changes["seed"] = draw_seed() if seed is None else seed
            if entry.id is None and attrs.evolve(entry, **changes) == entry:
                return order  # the same command, after it was stopped
            return self.folder.edit(order.redone(number, **changes))

    def undo(self) -> Order:
        """Return to the order before the last edit.

        Raises:
            UserError: there was none.
        """
        with self._held():
            return self.folder.undo()

    def drop_after(self, number: int) -> Order:
        """End the take behind segment `number`, also where its last section has no end.

        Raises:
            UserError: there is no such segment, or the take cannot end there.
        """
        with self._held():
            order = self.order
            order.check_number(number, "--drop-after", least=0)
            self.check_border(order, number, "--drop-after")
            edited = order.ended_behind(number)
            if (edited.entries, edited.ended) == (order.entries, order.ended):
                return order
            return self.folder.edit(edited)

    def branch(self, out: Path | str, *, at: int | None = None) -> Take:
        """Make a new take that begins with the first `at` segments of this one, and return it.

        Args:
            out: its folder, which must be new.
            at: how many; None: all that are made.

        Raises:
            UserError: there are not so many made, the take cannot end there, or the folder is not
                new or lies in a take.
        """
        order, place = self.order, Path(out)
        count = self.check_branch(place, at=at)
        if count < len(order.entries):
            order = order.ended_behind(count)
        own = Order(entries=order.entries, ended=order.ended, title=order.title)
        self.folder.branch(place, own)
        return Take(TakeFolder.open(place), self.source_run, self.device)

    def check_branch(self, out: Path, *, at: int | None = None) -> int:
        """Return how many segments `branch` would take over; nothing is written.

        Raises:
            UserError: as `branch`.
        """
        order = self.order
        count = order.made if at is None else at
        order.check_number(count, "--at")
        if count > order.made:
            raise UserError(f"--at {count}: only {counted(order.made, 'segment')} made")
        self.check_border(order, count, "--at")
        self.folder.check_branch(out)
        return count

    def discard(self) -> None:
        """Remove the folder of a take of which nothing is made yet.

        Raises:
            UserError: segments of it are made.
        """
        if any((self.root / "segments").glob("*")):
            raise UserError(f"{self.root} has segments: it is not removed")
        remove_folder(self.root)

    def garbage(self) -> list[Path]:
        """Return the folders and files that no order names, and those that can be made again."""
        named = {entry.id for entry in self.order.entries if entry.id is not None}
        found = [
            path
            for name in ("segments", "cache")
            for path in sorted((self.root / name).glob("*"))
            if path.name not in named and is_id(path.name)
        ]
        last = [entry.id for entry in self.order.entries if entry.id is not None][-1:]
        states = (self.root / "cache").glob("*/memory.safetensors")
        found += [p for p in sorted(states) if p.parent.name in named.difference(last)]
        return found

    def tidy(self) -> list[Path]:
        """Remove what `garbage` lists; return it. An undone edit is then made again."""
        with self._held():
            found = self.garbage()
            for path in found:
                if path.is_dir():
                    remove_folder(path)
                else:
                    with disk_errors(path):
                        path.unlink(missing_ok=True)
            return found

    # Making

    def make(
        self, story: Story | Section | None = None, **options: Any
    ) -> Generator[MadeSegment, None, None]:
        """Yield each segment as it is made; arguments as of `run`."""
        for event in self.run(story, **options):
            if isinstance(event, PixelsMade):
                yield self.segment(event.segment)

    def run(
        self,
        story: Story | Section | None = None,
        *,
        segments: int | None = None,
        seconds: float | None = None,
        seed: int | None = None,
        replace: bool = False,
        gain: int = 0,
        original: Path | None = None,
        grow: bool = True,
    ) -> Generator[Event, None, None]:
        """Make what is asked for, and yield an event for all that happens.

        A storyboard, its path or a list of sections is all of the take: given again, what is as it
        was stays. Sections that come from an iterator are appended one by one, each asked for when
        the one before is made. None: what is still to be made.

        Args:
            story: what is asked for.
            segments: stop after so many new ones.
            seconds: length of the sections of a plain text.
            seed: base of the seeds of new sections.
            replace: make segments again that the storyboard changes; else that is refused.
            gain: draws of time and noise by which the report says what its memory does to the loss
                of each new segment; 0: that is not measured. A draw costs two passes of the model.
            original: the file that a storyboard was read from, of which a copy is kept.
            grow: whether a last section that has no end goes on until it is stopped; else only
                what the order names is made.

        Raises:
            UserError: what is wrong with the arguments or the storyboard; it changes what is made;
                the take is in use; a segment is damaged.
            LongtakeError: the disk is full, memory is short, latents are not numbers.
        """
        began, seed = time.monotonic(), read_given("seed", seed)
        _check_asked(story, segments, gain)
        with self._held() as dead:
            for line in (*self.notes, *(f"taken over from {one}, which ended" for one in dead)):
                yield self._tell(line)
            self.folder.clear_parts()
            worker = Worker(self, limit=segments, grow=grow, gain=gain)
            if isinstance(story, Iterator):
                for index, section in enumerate(story):
                    if not isinstance(section, Section):
                        raise UserError(f"run: sections are wanted, not {section!r}")
                    order = self.order
                    if index:  # one more, also where it asks for the same as the one before
                        order = attrs.evolve(order, open=False)
                    plan = self._plan_more(order, section, seed)
                    self._take_plan(plan, None)
                    yield from map(self._tell, (*plan.rows, *plan.notes, *self.unread()))
                    yield from self._logged(worker.all_to_be_made())
                    if worker.limit == 0:
                        break
            else:
                if story is not None:
                    yield from self._take_story(story, seconds, seed, replace, original)
                yield from map(self._tell, self.unread())
                yield from self._logged(worker.all_to_be_made())
            yield from self._logged(self._delivered(worker.past, began))

    def _take_story(
        self,
        story: Story | Section,
        seconds: float | None,
        seed: int | None,
        replace: bool,
        original: Path | None,
    ) -> Iterator[Event]:
        path = Path(story) if isinstance(story, str | Path) else original
        board = story if isinstance(story, Section) else self._board(story, seconds)
        if isinstance(board, Storyboard):
            for remark in board.remarks:
                yield self._tell(remark)
            if board.beginning is not None:
                file, picture = board.beginning
                yield self._tell(self._begin(file, picture=picture, until=None))
        plan = self.plan(board, seed=seed)
        if plan.lost and not replace:
            name = board.name if isinstance(board, Storyboard) and board.name else "the storyboard"
            raise UserError(
                f"sections of {name} differ from what {self.root} has made: --yes "
                f"{plan.losses()}, or another --out"
            )
        text = board.original if isinstance(board, Storyboard) else b""
        self._take_plan(plan, path, text)
        for row in (*plan.rows, *plan.notes):
            yield self._tell(row)

    def _logged(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if event.kind != "preview":
                self.folder.log({"at": now(), **event.to_json()})
            yield event

    def _tell(self, text: str) -> Told:
        event = Told(text=text)
        self.folder.log({"at": now(), **event.to_json()})
        return event

    def deliver(self, path: Path | str | None = None) -> tuple[Path, ...]:
        """Write what is made as mp4, without encoding again; return the files.

        take.mp4 is all of it; new.mp4, where the take begins with a video, what is new.

        Args:
            path: another place for the first of them; of the take's own files only `*.mp4` beside
                take.mp4.

        Raises:
            UserError: nothing is made yet, `path` is something that is to stay, or the disk
                refuses.
            LongtakeError: the disk is full, or another number of frames came than the latents have.
        """
        with self._held():
            place = None if path is None else Path(path)
            if place is not None:
                self._check_delivery(place)
            past = self.past(memory=False)
            past.follow()
            if past.stand_ins and (source := self.source()) is not None:
                log.warning("%s", source.gone)
            return deliver(self, past, place)

    def _check_delivery(self, path: Path) -> None:
        """Refuse a place for a video where something lies that is to stay."""
        check_out_file(path, "deliver")
        place, source = path.absolute().resolve(), read_source(self.folder)
        if source is not None and path.exists() and source.path.exists():
            if path.samefile(source.path):
                raise UserError(f"deliver {path}: it is the video that the take begins with")
        for above in place.parents:
            beside = above == place.parent and path.suffix == ".mp4" and path.name != NEW_VIDEO
            if is_take(above) and not beside:
                raise UserError(
                    f"deliver {path}: it lies among the files of the take {above}; name an .mp4 "
                    "beside its take.mp4, or a place outside"
                )

    def report(self) -> TakeReport:
        """Write report.json and report.html beside the video, and return what they say.

        Raises:
            UserError: a segment is gone or damaged, or the disk refuses.
        """
        return write_report(self)

    # Parts

    @contextmanager
    def _held(self) -> Iterator[list[str]]:
        with claimed_folder(self.root) as dead:
            yield dead

    def _board(self, story: Story, seconds: float | None) -> Storyboard:
        if isinstance(story, Storyboard):
            return story
        if isinstance(story, str | Path):
            return read_storyboard(Path(story), seconds)
        sections = tuple(story)
        for section in sections:
            if not isinstance(section, Section):
                raise UserError(f"run: sections are wanted, not {section!r}")
        return Storyboard(sections=sections)

    def use_loras(self, texts: Sequence[str]) -> None:
        """Use LoRA files in the sections that are asked for from now on.

        Args:
            texts: `file` or `file@scale`; `high:file` and `low:file` for one expert of two.

        Raises:
            UserError: a file cannot be read, or is for an expert that the run has not.
        """
        found = []
        for text in texts:
            check_utf8(text, "--lora")
            path = lora_path(text, self.experiment)
            try:
                with open_tensors(path) as file:
                    if not list(file.keys()):
                        raise UserError(f"{path} holds no tensors: it is no LoRA")
                found.append((text, hash_file(path)))
            except UserError as error:
                raise UserError(f"--lora {error}") from None
            scale = re.search(r"@([-+\d.eE]+)$", text)
            if scale and path != expand_path(text) and not _is_scale(scale[1]):
                raise UserError(f"--lora {text}: write file or file@0.8, {scale[1]} is no scale")
        self.lora_files = tuple(found)

    def _delivered(self, past: Past, began: float) -> Iterator[Event]:
        order = self.order
        files: tuple[Path, ...] = ()
        lines: tuple[str, ...] = ()
        if order.made:
            files = deliver(self, past)
            lines = tuple(summary_lines(self.report())[1:])
        else:  # what was made has left the take
            remove_products(self, VIDEO, NEW_VIDEO, "report.json", "report.html")
        if order.made == len(order.entries) and order.open:
            order = attrs.evolve(order, open=False)
            self.folder.write_order(order)
        total = sum(entry.latents for entry in order.entries[: order.made])
        source = sum(entry.latents for entry in order.entries if entry.source)
        frames = self.frames_of(0, total) if total else 0
        new = [e for e in order.entries[: order.made] if not e.source]
        fresh = frames - (self.frames_of(0, source) if source else 0)
        ends = [e.end for e in new[-1:] if e.place == e.places - 1]
        yield Done(
            segments=order.made,
            to_make=len(order.entries) - order.made,
            frames=frames,
            duration=frames / self.folder.fps,
            files=files,
            asked=ends[0] if ends else None,
            snapped=sum(
                self.frames_of(order.first(number), entry.latents)
                for number, entry in enumerate(order.entries[: order.made], start=1)
                if not entry.source
            )
            / self.folder.fps,
            delivered=fresh / self.folder.fps,
            took=round(time.monotonic() - began, 3),
            report=lines,
        )


def _device(device: torch.device | str | None) -> torch.device:
    try:
        return pick_device() if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device {device!r}: name one of torch's, such as cpu or cuda") from None


def _is_scale(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_asked(story: Any, segments: Any = None, gain: Any = None) -> None:
    """Refuse arguments of `run` and `plan` before anything is written."""
    if story is not None and not isinstance(story, Storyboard | Section | Path | str | Iterable):
        raise UserError(
            f"run: a storyboard, its path, a section or an iterable of sections is wanted, not "
            f"{story!r}"
        )
    for name, value in (("segments", segments), ("gain", gain)):
        if value is not None and not (is_whole(value) and value >= 0):
            raise UserError(f"run: {name} must be a whole number, 0 or more, not {value!r}")


def _facts(source: Source) -> tuple[str, int, int]:
    return source.hash, source.skip, source.frames
