"""Takes: a long video made segment by segment, each out of the memory of all before it.

    take = Take.create("out/walk", run="runs/5b", seed=7)
    for event in take.run("story.json"):
        ...

`run` is a plain generator of events: whoever stops asking stops the work, and what exists stays.
Edits (`redo`, `undo`, `drop_after`, `branch`) change the order of the take and return; `run` makes.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import define, field
from torch import Tensor

from ..data.texts import PromptEmbedder, prompt_path, read_embeddings
from ..errors import LongtakeError, UserError
from ..experiment import Experiment
from ..interfaces.backbone import Cache
from ..interfaces.codec import Codec
from ..interfaces.compressor import Needs
from ..interfaces.spec import CodecSpec
from ..model import Model, compressor_needs, memory_limit
from ..registry import build
from ..tools.device import pick_device
from ..tools.files import claimed_folder, disk_errors, remove_folder
from ..tools.pictures import side_by_side
from ..values.grid import MemoryLimit
from ..values.memory import Memory
from ..values.text import Text
from ..video.decode import Pixels
from ..video.write import count_frames, join_videos, write_video
from .events import Done, Event, PixelsMade, SegmentMade, Told
from .findings import TakeReport, summary_lines
from .folder import Recipe, Segment, TakeFolder, facts_of
from .order import Entry, Order, draw_seed, spans
from .past import CRF, Frames, Past, links_of, whole_memory
from .plan import Defaults, Plan, appended, gone_on, grid_of, replanned
from .report import report_segment, write_report
from .sampling import Pace, Remembering, Task, colours, is_memory_error, sample_segment
from .setup import Opened, Run, check_identity, new_spec, open_take, take_size
from .snapping import TakeGrid
from .source import (
    Source,
    SourceEncoder,
    find_source,
    read_source,
    source_frames,
    source_is_there,
    split_source,
    write_source,
)
from .storyboard import Section, Storyboard, read_storyboard

SLACK_BYTES = 64_000_000  # of the disk that are left free
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
class Take:
    """A take: a folder, the run that makes it, and what is in memory of both.

    Make one with `create` or `open`.
    """

    folder: TakeFolder
    source_run: Run
    device: torch.device
    notes: list[str] = field(factory=list)
    lora_files: tuple[tuple[str, str], ...] = ()
    _opened: Opened | None = None
    _model: Model | None = None
    _loras: tuple[str, ...] | None = None
    _remembering: Remembering | None = None

    @classmethod
    def create(
        cls,
        out: Path | str,
        run: Path | str | None = None,
        *,
        model: Model | None = None,
        size: str | None = None,
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
            like: a video or picture whose aspect is taken where no size is named.
            seed: base of its seeds; None: one is drawn.
            negative: the negative prompt of sections that have none.
            sets: changes of the run's experiment, such as `generate.sampler.steps=20`.
            device: where it is made; None: the best one here.

        Raises:
            UserError, SpecError: there is a take already, no such run, or no such size.
        """
        from ..video.decode import probe
        from .setup import WIDE

        root, given = Path(out), model if model is not None else run
        if given is None:
            raise UserError("a take needs the run that makes it: run=, or model=")
        if (root / "spec.json").exists():
            raise UserError(f"{root} is a take already: open it, or name another folder")
        made_by = Run.of(given, list(sets))
        shape = WIDE
        if like is not None:
            info = probe(Path(like))
            shape = (info.width, info.height)
        asked = size is not None or made_by.experiment.generate.size is not None
        pixels = take_size(made_by.experiment, size, shape)
        base = draw_seed() if seed is None else seed
        spec = new_spec(made_by, pixels, seed=base, negative=negative, asked_size=asked)
        grid_of(made_by.experiment, period=spec["period"], source=0, segment_seconds=None)
        with claimed_folder(root):
            folder = TakeFolder.create(root, spec)
        return cls(folder, made_by, _device(device))

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
        return count * int(self.folder.spec["stride"]) - (0 if first else self._stride - 1)

    @property
    def _stride(self) -> int:
        return int(self.folder.spec["stride"])

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

    def frames(self, number: int | None = None) -> Iterator[Pixels]:
        """Yield the frames of a segment, or of all, uint8 `[P, Q, 3]`, from its latents.

        A codec that is not causal gives the frames that each segment makes final, and what it
        holds back with the last one.
        """
        past = self._past(memory=False)
        wanted = range(len(past.links)) if number is None else [number - 1]
        with torch.no_grad():
            for index in wanted:
                yield from past.decoding.frames(index).pictures()
            if wanted and wanted[-1] == len(past.links) - 1 and (rest := past.rest()) is not None:
                yield from rest.pictures()

    def memory(self, after: int | None = None) -> Memory:
        """Return the memory of the take behind segment `after`; None: behind the last one made."""
        past = self._past(until=after)
        past.follow()
        return whole_memory(*past.memory())

    # Edits

    def begin(
        self,
        video: Path | str | None = None,
        *,
        image: Path | str | None = None,
        until: float | None = None,
    ) -> str:
        """Begin with a user's own video or picture; return what is taken of it, in one line.

        It is encoded by the next `run`. Given again, the same one is as it was.

        Args:
            video: the file.
            image: a picture instead; of a video its first frame.
            until: seconds of the video after which it is cut.

        Raises:
            UserError: the file cannot be read or is too short, or the take has segments already.
        """
        if (video is None) == (image is None):
            raise UserError("a take begins with one video or one picture")
        path = Path(image if video is None else video)  # type: ignore[arg-type]
        with self._held():
            return self._begin(path, picture=video is None, until=until)

    def _begin(self, path: Path, *, picture: bool, until: float | None) -> str:
        order = self.order
        source = find_source(path, self.folder, stride=self._stride, until=until, picture=picture)
        line, before = source.line(self.folder.fps), read_source(self.folder)
        if order.source and before is not None and _facts(before) == _facts(source):
            return line
        if order.entries:
            raise UserError(
                f"{self.root} has segments already: another beginning needs another take"
            )
        write_source(self.folder, source)
        latents = 1 + (source.frames - 1) // self._stride
        period = int(self.folder.spec["period"])
        lengths = split_source(latents, period, self.folder.fps, self._stride)
        self.folder.edit(Order(entries=tuple(Entry(latents=n, source=True) for n in lengths)))
        return line

    def plan(self, story: Story, *, seconds: float | None = None, seed: int | None = None) -> Plan:
        """Return the order that a storyboard, or one more section, would make; nothing is written.

        Args:
            story: a storyboard or the path of one (compared with what is there), or a section.
            seconds: length of the sections of a plain text.
            seed: base of the seeds; None: the storyboard's, or the take's.

        Raises:
            UserError: what is wrong with the storyboard.
        """
        order = self.order
        if isinstance(story, Section):
            grid, defaults = self._grid(order, None), self._defaults(None, seed)
            return appended(order, story, grid, defaults)
        board = self._board(story, seconds)
        grid = self._grid(order, board.segment_seconds)
        return replanned(order, board.complete(), grid, self._defaults(board.seed, seed))

    def take_plan(self, plan: Plan, *, original: Path | None = None) -> Order:
        """Write a planned order, if it is another than the one that is there.

        Args:
            plan: of `plan`.
            original: the storyboard's file, of which a copy is kept.
        """
        with self._held():
            return self._take_plan(plan, original)

    def _take_plan(self, plan: Plan, original: Path | None) -> Order:
        order = self.order
        if plan.order.entries == order.entries:
            return order
        if original is not None:
            name = f"story.orig{original.suffix}"
            with disk_errors(self.root / name):
                shutil.copyfile(original, self.root / name)
        return self.folder.edit(plan.order)

    def redo(
        self,
        number: int,
        *,
        prompt: str | None = None,
        seed: int | None = None,
        keep_seed: bool = False,
    ) -> Order:
        """Order segment `number` anew, and all behind it, which read it.

        Args:
            number: of the segment.
            prompt: another one for it; those behind it keep theirs.
            seed: another one for it; None: one is drawn.
            keep_seed: keep its seed.

        Raises:
            UserError: there is no such segment, or it is of the user's own video.
        """
        with self._held():
            order = self.order
            order.check_number(number, "--redo")
            entry = order.entries[number - 1]
            if entry.source:
                raise UserError(f"--redo {number}: it is of the video that the take begins with")
            changes: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
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
        """End the take behind segment `number`.

        Raises:
            UserError: there is no such segment.
        """
        with self._held():
            order = self.order
            order.check_number(number, "--drop-after", least=0)
            return order if number == len(order.entries) else self.folder.edit(order.ended(number))

    def branch(self, out: Path | str, *, at: int | None = None) -> Take:
        """Make a new take that begins with the first `at` segments of this one, and return it.

        Args:
            out: its folder, which must be new.
            at: how many; None: all that are made.

        Raises:
            UserError: there are not so many made, or the folder is not new.
        """
        order = self.order
        count = order.made if at is None else at
        order.check_number(count, "--at")
        if count > order.made:
            raise UserError(f"--at {count}: only {order.made} segments are made")
        place = Path(out)
        self.folder.branch(place, Order(entries=order.entries[:count]))
        return Take(TakeFolder.open(place), self.source_run, self.device)

    def discard(self) -> None:
        """Remove the folder of a take that has nothing yet.

        Raises:
            UserError: it has segments, or orders of them.
        """
        if self.order.entries or (self.root / "history").exists():
            raise UserError(f"{self.root} is not empty: it is not removed")
        remove_folder(self.root)

    def garbage(self) -> list[Path]:
        """Return the folders and files that no order names, and those that can be made again."""
        named = {entry.id for entry in self.order.entries if entry.id is not None}
        found = [
            path
            for name in ("segments", "cache")
            for path in sorted((self.root / name).glob("*"))
            if path.name not in named and not path.name.startswith(".")
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

    def make(self, story: Story | Section | None = None, **options: Any) -> Iterator[MadeSegment]:
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
        original: Path | None = None,
    ) -> Iterator[Event]:
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
            original: the file that a storyboard was read from, of which a copy is kept.

        Raises:
            UserError: what is wrong with the storyboard; it changes what is made; the take is in
                use; a segment is damaged.
            LongtakeError: the disk is full, memory is short, latents are not numbers.
        """
        began = time.monotonic()
        with self._held() as dead:
            for line in (*self.notes, *(f"taken over from {one}, which ended" for one in dead)):
                yield self._tell(line)
            self.folder.clear_parts()
            worker = _Worker(self, limit=segments)
            if isinstance(story, Iterator):
                for section in story:
                    self._take_plan(self.plan(section, seed=seed), None)
                    yield from self._logged(worker.all_to_be_made())
                    if worker.limit == 0:
                        break
            else:
                if story is not None:
                    yield from self._take_story(story, seconds, seed, replace, original)
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
            picture = board.image or board.sections[0].image
            if (beginning := board.source or picture) is not None:
                yield self._tell(self._begin(beginning, picture=board.source is None, until=None))
        plan = self.plan(board, seed=seed)
        if plan.lost and not replace:
            name = board.name if isinstance(board, Storyboard) and board.name else "the storyboard"
            raise UserError(
                f"sections of {name} differ from what {self.root} has made: --yes remakes "
                f"segments {spans(plan.lost)}, or another --out"
            )
        self._take_plan(plan, path)
        for row in plan.rows:
            yield self._tell(row)

    def _logged(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if event.kind != "preview":
                self.folder.log({"at": _now(), **event.to_json()})
            yield event

    def _tell(self, text: str) -> Told:
        event = Told(text=text)
        self.folder.log({"at": _now(), **event.to_json()})
        return event

    def deliver(self, path: Path | str | None = None) -> tuple[Path, ...]:
        """Write what is made as mp4, without encoding again; return the files.

        take.mp4 is all of it; new.mp4, where the take begins with a video, what is new.

        Args:
            path: another place for the first of them.

        Raises:
            UserError: nothing is made yet, or the disk refuses.
            LongtakeError: another number of frames came than the latents have.
        """
        with self._held():
            past = self._past(memory=False)
            past.follow()
            return self._deliver(past, None if path is None else Path(path))

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
        return Storyboard(sections=tuple(story))

    def _grid(self, order: Order, segment_seconds: float | None) -> TakeGrid:
        source = sum(entry.latents for entry in order.entries if entry.source)
        period = int(self.folder.spec["period"])
        return grid_of(
            self.experiment, period=period, source=source, segment_seconds=segment_seconds
        )

    def _defaults(self, board_seed: int | None, seed: int | None) -> Defaults:
        sampler = self.experiment.generate.sampler
        base = next(x for x in (seed, board_seed, int(self.folder.spec["seed"])) if x is not None)
        return Defaults(
            negative=str(self.folder.spec.get("negative", "")),
            steps=sampler.steps,
            guidance=sampler.guidance,
            seed=base,
            loras=self.lora_files,
        )

    def use_loras(self, texts: Sequence[str]) -> None:
        """Use LoRA files, `file` or `file@scale`, in the sections that are asked for from now on.

        Raises:
            UserError: a file cannot be read.
        """
        found = []
        for text in texts:
            path = Path(text.rpartition("@")[0] or text)
            try:
                with path.open("rb") as file:
                    found.append((text, hashlib.file_digest(file, "sha256").hexdigest()))
            except OSError as error:
                raise UserError(f"--lora {text}: {error.strerror or error}") from None
        self.lora_files = tuple(found)

    def model_of(self, loras: tuple[str, ...] = ()) -> Model:
        """Return the model, loaded now if it was not."""
        if self._model is None or self._loras != loras:
            self._model = self._remembering = None
            if self._opened is not None:
                check_identity(self._opened)
            self._model = self.source_run.load(loras).to(self.device)
            self._loras = loras
        return self._model

    def _past(self, *, memory: bool = True, until: int | None = None) -> Past:
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
            begin = 1 + self._stride * (first - 1) if first else 0
            count = self.frames_of(first, entries[index].latents)
            return _slice(source_frames(source, self.folder.fps), begin, count)

        return frames

    def _delivered(self, past: Past, began: float) -> Iterator[Event]:
        order = self.order
        files: tuple[Path, ...] = ()
        lines: tuple[str, ...] = ()
        if order.made:
            files = self._deliver(past, None)
            lines = tuple(summary_lines(self.report())[1:])
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
            snapped=sum(self.frames_of(self._first(order, e), e.latents) for e in new)
            / self.folder.fps,
            delivered=fresh / self.folder.fps,
            took=round(time.monotonic() - began, 3),
            report=lines,
        )

    def _first(self, order: Order, entry: Entry) -> int:
        place = next(i for i, e in enumerate(order.entries) if e is entry)
        return sum(e.latents for e in order.entries[:place])

    def _deliver(self, past: Past, path: Path | None) -> tuple[Path, ...]:
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
            count = self._stride * (past.end - source)
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


@define
class _Worker:
    """Makes what has no id, one segment after the other.

    Attributes:
        take: that is made.
        limit: new segments that are still to be made; None: all.
    """

    take: Take
    limit: int | None
    pace: Pace = field(factory=Pace)
    _past: Past | None = None
    told: bool = False

    @property
    def past(self) -> Past:
        """What is made, and what follows from it."""
        if self._past is None:
            self._past = self.take._past()
        return self._past

    def all_to_be_made(self) -> Iterator[Event]:
        """Make all segments that are still to be made, within the limit."""
        take = self.take
        order = take.order
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
                grid = take._grid(order, None)
                more = gone_on(order, grid, take._defaults(None, None))
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
                take._deliver(self.past, None)
                take.report()

    def _check_made(self, order: Order) -> None:
        """Read all latents once: an edited or damaged segment is found before anything is made."""
        for number, entry in enumerate(order.entries, start=1):
            if entry.id is not None:
                self.take.folder.latents(entry.id, number)

    def _embed(self, order: Order) -> None:
        """Embed the prompts of what is to be made; the encoder is loaded only for new ones."""
        wanted = [x for e in order.entries if e.id is None and not e.source
                  for x in (e.prompt, e.negative)]  # fmt: skip
        if not wanted:
            return
        take = self.take
        encoder = build(take.experiment.backbone.text_encoder).to(take.device)
        with _safe(order.made):
            PromptEmbedder(take.root, encoder).embed_missing(wanted)

    def _text(self, prompt: str) -> Text:
        return read_embeddings(prompt_path(self.take.root, prompt))

    def _follow(self) -> Iterator[Event]:
        """Make what follows from the segments that are made, and tell of new clips."""
        began, past = time.monotonic(), self.past
        try:
            with _safe(len(past.links)):
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
        model = take.model_of(tuple(text for text, _ in entry.loras))
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
            tokens = int(segment.made.get("tokens", 0))
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
            settled, pending = self.past.memory()
            read_from = time.monotonic()
            memory, tokens = self._remembering(model, limit).held(settled, pending, task)
            remembering = time.monotonic() - read_from
            read = memory.memory if isinstance(memory, Cache) else memory
            whole = sum(m.length for m in settled) + pending.length
            limited = entry.memory == "all" and not entry.cut
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
                "at": _now(), "seconds": round(time.monotonic() - began, 3), "tokens": tokens,
                "parts": {part.name: int(part.tokens.shape[1]) for part in read.parts},
                "dropped": whole - tokens if limited else 0, "remembering": round(remembering, 3),
                "device": str(take.device), "threads": torch.get_num_threads(),
                "peak_memory": _peak(take.device),
            }  # fmt: skip
            picture = None if rgb is None else _strip(colours(latents, rgb))
            with _safe(number - 1):
                segment = take.folder.commit(
                    recipe, latents, made, header=self._header(), preview=picture
                )
        with _safe(number):
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

    def _limit(self) -> MemoryLimit | None:
        take = self.take
        if not take.experiment.remembers:
            return None
        return memory_limit(take.experiment, take.experiment.generate.budget, take.folder.size)

    def _remembering(self, model: Model, limit: MemoryLimit | None) -> Remembering:
        take = self.take
        if take._remembering is None:
            attention = getattr(take.experiment.backbone, "attention", "full")
            appends = model.backbone.caches and attention == "isolated-causal"
            take._remembering = Remembering(model.backbone, limit, appends)
        return take._remembering

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
        pixels = self.take._stride * entry.latents * height * width // 4
        needed = 2 * (3 * latents + pixels) + SLACK_BYTES
        free = shutil.disk_usage(self.take.root).free
        if free < needed:
            raise LongtakeError(
                f"{free / 1e9:.1f} GB free, segment {number} needs {needed / 1e9:.1f} GB: "
                f"{number - 1} segments are safe; free space and run the same command"
            )

    @torch.no_grad()
    def _source(self, order: Order) -> Iterator[Event]:
        """Encode the source and commit its segments, those that are not there yet."""
        take = self.take
        source = read_source(take.folder)
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
            if tail is not None and rates:
                path = take.root / "source" / "lr_tail.safetensors"
                with _safe(number - 1):
                    tail.write(path)
                self.past.lowres.tail = tail
            if take.folder.has(recipe.id):
                segment = take.folder.segment(recipe.id, number)
            else:
                with _safe(number - 1):
                    segment = take.folder.commit(
                        recipe, latents, {"at": _now()}, header=self._header(),
                        lr=lr if rates else None,
                    )  # fmt: skip
            with _safe(number):
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
        yield from self._follow()


@contextmanager
def _safe(made: int) -> Iterator[None]:
    """Turn a full disk into one line that says that what is made is safe.

    Raises:
        LongtakeError: in place of the disk's error.
    """
    try:
        yield
    except UserError as error:
        cause = error.__cause__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left" not in str(error):
            raise
        place = str(error).removeprefix("cannot write ").partition(": ")[0]
        raise LongtakeError(
            f"no space left writing {place}: {made} segments are safe; free space and run the "
            "same command"
        ) from error


def _device(device: torch.device | str | None) -> torch.device:
    return pick_device() if device is None else torch.device(device)


def _facts(source: Source) -> tuple[str, int, int]:
    return source.hash, source.skip, source.frames


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _strip(pictures: Tensor) -> Tensor:
    """Return first, middle and last of small pictures side by side, uint8 `[3, P, Q]`."""
    chosen = sorted({0, len(pictures) // 2, len(pictures) - 1})
    return side_by_side([pictures[i] for i in chosen])


def _slice(chunks: Iterator[Pixels], begin: int, count: int) -> Iterator[Pixels]:
    """Yield frames begin … begin + count − 1 of chunks `[n, P, Q, 3]`, one by one."""
    at = 0
    for chunk in chunks:
        yield from chunk[max(0, begin - at) : max(0, begin + count - at)]
        at += len(chunk)
        if at >= begin + count:
            return
