"""What follows from the latents of a take: pixels, LR latents and memory, segment by segment.

Three streams run over the take, and each segment enters them once: the codec's decoder, which sees
no joins; the LR encoders, on the uint8 frames that it gives; and φ, a step a segment. What they
give lies in cache/. Their states are not kept, but for that of φ: a stream that is begun in the
middle is first fed with as much of the take before as it can see (`Codec.decode_reach`,
`encode_reach`), in the same chunks, so that it gives the same, bit for bit.

A codec that is not causal holds back the last frames. φ then steps over the latents whose LR
latents are final; what is not goes through steps that are thrown away (`Past.memory`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, frozen
from einops import rearrange
from torch import Tensor

from ..cache.encode import LowResEncoder
from ..errors import UserError
from ..interfaces.codec import Codec, from_bytes, to_bytes
from ..interfaces.compressor import MemoryEncoder, Needs, State
from ..interfaces.spec import CodecSpec
from ..tools.files import open_tensors, read_header, write_tensors
from ..values.grid import Rate
from ..values.history import History, lr_between
from ..values.memory import Memory, merge
from ..video.decode import Pixels as Frame
from ..video.write import comment_of, count_frames, write_video
from .folder import TakeFolder, hash_of_all, read_derived, write_derived
from .order import Order
from .serial import memory_tensors, on_device, read_memory, read_states, state_tensors

log = logging.getLogger(__name__)
CRF = 18
TAIL = "lr_tail.safetensors"
# What clips of a source show: its own frames, the codec's of them, or those because it is gone.
RECODED, STANDS_IN = "recoded", "its own frames are gone"
SHOWS = ("", RECODED, STANDS_IN)


@frozen(kw_only=True)
class Link:
    """A segment in the chain of a take.

    Attributes:
        number: of it, from 1.
        id: name of its folder.
        first, count: its latents in the take.
        source: whether it is of the user's own video.
        cut: whether it begins with a hard cut.
        chain: hash of the take's spec and of all latents up to its last.
    """

    number: int
    id: str
    first: int
    count: int
    source: bool
    cut: bool
    chain: str

    @property
    def end(self) -> int:
        """Latents of the take up to its last."""
        return self.first + self.count


def links_of(folder: TakeFolder, order: Order) -> list[Link]:
    """Return the chain of the segments that are made, up to the first that is not.

    Raises:
        UserError: a segment is gone or damaged.
    """
    links: list[Link] = []
    hashes: list[str] = []
    for number, entry in enumerate(order.entries[: order.made], start=1):
        assert entry.id is not None
        hashes.append(folder.segment_of(order, number).latents_hash)
        links.append(
            Link(
                number=number,
                id=entry.id,
                first=order.first(number),
                count=entry.latents,
                source=entry.source,
                cut=entry.cut,
                chain=folder.chain(hashes),
            )
        )
    return links


@define
class Frames:
    """Decoded frames in a row: uint8 `[1, 3, n, P, Q]`, and the number of the first in the take."""

    pixels: Tensor
    first: int

    @property
    def end(self) -> int:
        """Number of the frame behind the last."""
        return self.first + int(self.pixels.shape[2])

    def since(self, frame: int) -> Frames:
        """Return the frames from number `frame` on."""
        skip = min(max(0, frame - self.first), self.pixels.shape[2])
        return Frames(self.pixels[:, :, skip:], self.first + skip)

    def pictures(self) -> Iterator[Frame]:
        """Yield the frames as pictures, uint8 `[P, Q, 3]`."""
        for picture in rearrange(self.pixels[0], "c n p q -> n p q c"):
            yield picture.contiguous().numpy()


@define
class Decoding:
    """The one decoder stream of a take.

    Attributes:
        codec: of the take.
        links: its segments.
        read: latents of a segment, by its place in `links`.
        device: where the codec runs.
        at: how many latents it has seen; None before it has begun.
        state: of the codec, then.
        next: number of the frame that comes next.
    """

    codec: Codec[CodecSpec]
    links: list[Link]
    read: Callable[[int], Tensor]
    device: torch.device
    at: int | None = None
    state: State | None = None
    next: int = 0

    def frames(self, index: int) -> Frames:
        """Return the frames that a segment makes final."""
        link = self.links[index]
        if self.at != link.first:
            self._begin_at(index)
        return self._push(self.read(index))

    def rest(self) -> Frames | None:
        """Return the provisional frames that the codec holds back; None where there are none."""
        if self.state is None:
            return None
        pixels = self.codec.decode_rest(on_device(self.state, self.device))
        if pixels is None or not pixels.shape[2]:
            return None
        return Frames(to_bytes(pixels).cpu(), self.next)

    def go_to(self, index: int) -> None:
        """Be where segment `index` begins (behind the last: where the take ends)."""
        first = self.links[index].first if index < len(self.links) else self.links[-1].end
        if self.at != first:
            self._begin_at(index)

    def rest_state(self) -> None:
        """Move the state off the device until it is needed."""
        if self.state is not None:
            self.state = {key: x.cpu() for key, x in self.state.items()}

    def _begin_at(self, index: int) -> None:
        """Feed as much of what lies before segment `index` as the decoder can see."""
        first = self.links[index].first if index < len(self.links) else self.links[-1].end
        reach = self.codec.decode_reach
        start = 0 if reach is None else max(0, first - reach)
        start = start // self.codec.boundary * self.codec.boundary
        self.at, self.state, self.next = start, None, self.codec.stride.time * start
        for place in range(index):
            link = self.links[place]
            if link.end > start:
                self._push(self.read(place)[:, :, max(0, start - link.first) :])
        assert self.at == first

    def _push(self, latents: Tensor) -> Frames:
        state = None if self.state is None else on_device(self.state, self.device)
        pixels, self.state = self.codec.decode(latents.to(self.device), state)
        made = Frames(to_bytes(pixels).cpu(), self.next)
        self.at = (self.at or 0) + latents.shape[2]
        self.next = made.end
        return made


@define
class LowTail:
    """The last LR frames of a source, by which its LR streams go on without it.

    Attributes:
        frames: LR frames `[1, 3, n, p, q]` by rate.
        first: number of the first of them, by rate.
        end: frames of the source.
    """

    frames: dict[Rate, Tensor]
    first: dict[Rate, int]
    end: int

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        tensors = {str(rate): x for rate, x in self.frames.items()}
        first = {str(rate): n for rate, n in self.first.items()}
        header = {"first": first, "end": self.end, "sha256": hash_of_all(tensors)}
        write_tensors(path, tensors, header)

    @classmethod
    def open(cls, path: Path, rates: tuple[Rate, ...]) -> LowTail:
        """Read it; `rates` must be there.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            with open_tensors(path) as file:
                header = read_header(file, path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            first = {Rate.parse(name): int(n) for name, n in header["first"].items()}
            frames = {Rate.parse(name): x for name, x in tensors.items()}
            tail = cls({rate: frames[rate] for rate in rates}, first, int(header["end"]))
        except UserError:
            raise
        except Exception as error:  # whatever damage does to reading
            raise UserError(f"{path} is damaged ({error})") from None
        # tails that older versions wrote have no hash, and are not checked
        if header.get("sha256", hashed := hash_of_all(tensors)) != hashed:
            raise UserError(f"{path} is not what was written (sha256)")
        return tail


@define
class LowStreams:
    """The LR encoders of a take, one a rate, on the frames that its decoder gives.

    Attributes:
        codec: of the take.
        rates: of LR latents.
        device: where the codec runs.
        next: number of the frame that comes next; None before they have begun.
        states: of the encoders.
        tail: of the source, where there is one.
    """

    codec: Codec[CodecSpec]
    rates: tuple[Rate, ...]
    device: torch.device
    next: int | None = None
    states: dict[Rate, State] = field(factory=dict)
    tail: LowTail | None = None

    def push(self, frames: Frames) -> dict[Rate, Tensor]:
        """Return the LR latents that the next frames complete; frames seen before are dropped."""
        new = frames.since(self.next or 0)
        assert new.first == (self.next or 0)
        self.next = new.end
        return {rate: self._push(rate, new) for rate in self.rates}

    def provisional(self, frames: Frames | None) -> dict[Rate, Tensor]:
        """Return the LR latents as if the take ended behind `frames`; the streams stay."""
        kept = dict(self.states)
        made: dict[Rate, list[Tensor]] = {rate: [] for rate in self.rates}
        new = None if frames is None else frames.since(self.next or 0)
        for rate in self.rates:
            if new is not None and new.pixels.shape[2]:
                made[rate].append(self._push(rate, new))
            rest = LowResEncoder(self.codec, rate).rest(on_device(self.states[rate], self.device))
            made[rate] += [] if rest is None else [rest.cpu()]
        self.states = kept
        return {rate: torch.cat(x, dim=2) for rate, x in made.items() if x}

    def _push(self, rate: Rate, frames: Frames) -> Tensor:
        encoder = LowResEncoder(self.codec, rate)
        state = self.states.get(rate)
        if not frames.pixels.shape[2]:
            size = self._size(encoder, frames)
            return torch.zeros(1, self.codec.channels, 0, *size)
        pixels = from_bytes(frames.pixels.to(self.device))
        moved = None if state is None else on_device(state, self.device)
        latents, self.states[rate] = encoder.push(pixels, moved)
        return latents.cpu()

    def _size(self, encoder: LowResEncoder, frames: Frames) -> tuple[int, int]:
        stride, rate = self.codec.stride, encoder.lowres.rate
        height, width = frames.pixels.shape[-2:]
        rows, columns = rate.height * stride.height, rate.width * stride.width
        return -(-height // rows), -(-width // columns)

    def rest_state(self) -> None:
        """Move the states off the device until they are needed."""
        self.states = {r: {k: x.cpu() for k, x in s.items()} for r, s in self.states.items()}

    def begins(self, frame: int, rate: Rate) -> int:
        """Return the LR frame to begin with, so that the state before video frame `frame` is exact.

        `frame` is the number of the frame that comes next.
        """
        stride, reach = self.codec.stride.time, self.codec.encode_reach
        lowres = 1 + (frame - 1) // rate.time if frame > 0 else 0
        latents = 1 + (lowres - 1) // stride if lowres else 0
        first = 0 if reach is None else max(0, latents - reach)
        return stride * (first // self.codec.boundary * self.codec.boundary)

    def first_frame(self, frame: int) -> int:
        """Return the first video frame that must be decoded again to go on at frame `frame`."""
        starts = [r.time * (self.begins(frame, r) - 1) + 1 for r in self.rates]
        first = max(0, min(starts, default=frame))
        return first if self.tail is None else max(first, self.tail.end)

    def begin_at(self, frame: int, before: Iterator[Frames]) -> None:
        """Be where frame `frame` comes next.

        Args:
            frame: its number.
            before: the frames from `first_frame` on up to it, or from one before.
        """
        small: dict[Rate, list[Tensor]] = {rate: [] for rate in self.rates}
        states: dict[Rate, State] = {}
        since = 0 if self.tail is None else self.tail.end
        for frames in before:
            for rate in self.rates:
                encoder = LowResEncoder(self.codec, rate)
                begin = rate.time * (self.begins(frame, rate) - 1) + 1
                new = frames.since(max(begin, since, 0))
                if not new.pixels.shape[2]:
                    continue
                pixels = from_bytes(new.pixels.to(self.device))
                state = states.get(rate)
                if state is None and new.first > 0:
                    state = encoder.lowres.between(pixels)
                made, states[rate] = encoder.lowres.push(pixels, state)
                small[rate].append(made)
        for rate in self.rates:
            encoder, begin = LowResEncoder(self.codec, rate), self.begins(frame, rate)
            parts = small[rate]
            if self.tail is not None:
                first = self.tail.first[rate]
                own = self.tail.frames[rate][:, :, max(0, begin - first) :].to(self.device)
                parts = [own, *parts] if own.shape[2] else parts
            joined = torch.cat(parts, dim=2)
            lowres = states.get(rate)
            lowres = {"waiting": joined[:, :, :0]} if lowres is None else lowres
            self.states[rate] = encoder.begin_at(joined, lowres)
        self.next = frame


@define
class Past:
    """The past of a take: its segments in their order, and all that follows from them.

    Attributes:
        folder: of the take.
        codec: of the take.
        encoder: gives φ, which is loaded when it is first needed; None: the run has no memory.
        needs: of φ.
        device: where codec and φ run.
        links: the segments, as far as they are made.
        own_frames: the frames of the source, from its file, by the place of their segment; None
            where they cannot be had.
        recodes: whether the source's frames are shown as the codec gives them back.
        source: latents of the source by the order, encoded or not; 0: there is none.
        stand_ins: places of the source's segments whose clips show the codec's frames, since their
            own cannot be had.
        settled: memory that never changes, by segment; None: it is on the disk alone.
        lengths: tokens of it, by segment.
        state: of φ behind the last segment.
        stepped: latents that φ has seen.
        followed: segments of which all that follows is made.
        decoding: the stream of their frames.
        lowres: the streams of their LR latents.
        recent: latents of the last segments that were read, by the place of the segment.
        spent: seconds by what they were spent on, by the place of the segment.
        clock: that they are told by.
    """

    folder: TakeFolder
    codec: Codec[CodecSpec]
    encoder: Callable[[], MemoryEncoder] | None
    needs: Needs
    device: torch.device
    links: list[Link] = field(factory=list)
    own_frames: Callable[[int], Iterator[Frame] | None] = lambda index: None
    recodes: bool = False
    source: int = 0
    stand_ins: list[int] = field(factory=list)
    settled: list[Memory | None] = field(factory=list)
    lengths: list[int] = field(factory=list)
    state: list[State] | None = None
    stepped: int = 0
    followed: int = 0
    decoding: Decoding = field(init=False)
    lowres: LowStreams = field(init=False)
    recent: dict[int, Tensor] = field(factory=dict)
    spent: dict[int, dict[str, float]] = field(factory=dict)
    clock: Callable[[], float] = time.monotonic

    def __attrs_post_init__(self) -> None:
        self.decoding = Decoding(self.codec, self.links, self.latents, self.device)
        self.lowres = LowStreams(self.codec, tuple(sorted(self.needs.rates)), self.device)
        self.lowres.tail = self._tail()
        if self.needs.pixels and not self.codec.causal:
            raise UserError("a memory of pixels needs a causal codec: a take cannot be made")

    def _tail(self) -> LowTail | None:
        """Return the tail of the source; None where there is none, or it is of no use.

        That is where an edit has ended the source before its own end, where not all of it is
        encoded yet, or where the file is damaged: LR latents behind it are then made from what its
        latents decode to, as those of any other segment are.

        Raises:
            UserError: it is gone or damaged, and the codec holds back frames: it is needed.
        """
        given = sum(link.count for link in self.links if link.source)
        if not self.needs.rates or not given or given < self.source:
            return None
        path = self.folder.root / "source" / TAIL
        try:
            tail = LowTail.open(path, self.lowres.rates)
        except UserError as error:
            if not self.codec.causal:
                raise UserError(f"{error}: put it back, or begin a new take") from None
            log.warning(
                "%s: LR latents that are still to be made behind the video that the take begins "
                "with come from its decoded latents",
                error,
            )
            return None
        return tail if tail.end == 1 + self.codec.stride.time * (given - 1) else None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a latent frame."""
        return self.folder.size.height, self.folder.size.width

    @property
    def end(self) -> int:
        """Latents of the segments that it has."""
        return self.links[-1].end if self.links else 0

    def latents(self, index: int) -> Tensor:
        """Return the latents of a segment by its place, checked; the last ones stay in memory."""
        if index not in self.recent:
            link = self.links[index]
            self.recent[index] = self.folder.latents(link.id, link.number)
            for old in sorted(self.recent)[:-4]:
                del self.recent[old]
        return self.recent[index]

    def add(self, link: Link) -> None:
        """Take another segment; `follow` makes what follows from it."""
        self.links.append(link)

    @torch.no_grad()
    def follow(self) -> list[int]:
        """Make what is missing of all segments; return the places of those that have new clips."""
        made = []
        while self.followed < len(self.links):
            made += [self.followed] if self._follow(self.followed) else []
            self.followed += 1
        self._release()
        return made

    def _release(self) -> None:
        self.decoding.rest_state()
        self.lowres.rest_state()
        self.codec.unload()

    def clip(self, index: int) -> Path:
        """Return where the clip of a segment lies."""
        return self.folder.cache_path(self.links[index].id) / "clip.mp4"

    def _follow(self, index: int) -> bool:
        """Make what is missing of a segment; return whether its clip was made."""
        link = self.links[index]
        cache = self.folder.cache_path(link.id)
        clip = self.clip(index)
        has_clip, comment = self._find_clip(index)
        memory = read_derived(self._memory_file(link), link.chain) if self.encoder else None
        lr = self._read_lr(link, cache)
        if self.encoder is not None and memory is None:
            self._say_damaged(self._memory_file(link))
        others = {clip_comment(link.chain, shows) for shows in SHOWS} - {comment}
        if not has_clip and comment_of(clip) not in others:  # those were asked for otherwise
            self._say_damaged(clip)
        frames: Frames | None = None
        want_lr = bool(self.needs.rates) and lr is None
        want_pixels = self.needs.pixels and memory is None
        if not has_clip or want_lr or want_pixels:
            with self._timed(index, "decoding"):
                frames = self.decoding.frames(index)
        if want_lr:
            assert frames is not None
            with self._timed(index, "LR latents"):
                lr = self._new_lr(index, frames)
            if not link.source:
                tensors = {str(rate): x for rate, x in lr.items()}
                write_derived(cache / "lr.safetensors", tensors, {"past": link.chain})
        if not has_clip:
            assert frames is not None
            with self._timed(index, "writing"):
                self._write_clip(index, frames, comment)
        if self.encoder is not None:
            if memory is None:
                with self._timed(index, "memory"):
                    self._step(link, lr or {}, frames)
            else:
                self._take_memory(memory)
        return not has_clip

    def _find_clip(self, index: int) -> tuple[bool, str]:
        """Return whether the clip of a segment is there as it is to be, and its comment.

        The file of the source is looked for only where its clip is not there.
        """
        link, clip = self.links[index], self.clip(index)
        given = link.source and not self.recodes
        comment = clip_comment(link.chain, RECODED if link.source and self.recodes else "")
        if clip.is_file() and count_frames(clip, comment) is not None:
            return True, comment
        if given and self.own_frames(index) is None:
            self.stand_ins.append(index)
            comment = clip_comment(link.chain, STANDS_IN)
            return clip.is_file() and count_frames(clip, comment) is not None, comment
        return False, comment

    @contextmanager
    def _timed(self, index: int, name: str) -> Iterator[None]:
        """Add the seconds of what is done meanwhile to those of a segment."""
        began = self.clock()
        yield
        spent = self.spent.setdefault(index, {})
        spent[name] = round(spent.get(name, 0.0) + self.clock() - began, 4)

    def _say_damaged(self, path: Path) -> None:
        if path.exists():
            log.warning("%s is damaged, or of another past: it is made again", path)

    def _read_lr(self, link: Link, cache: Path) -> dict[Rate, Tensor] | None:
        if not self.needs.rates:
            return {}
        if link.source:
            return self.folder.lr(link.id, link.number)
        found = read_derived(cache / "lr.safetensors", link.chain)
        if found is None:
            self._say_damaged(cache / "lr.safetensors")
            return None
        return {Rate.parse(name): x for name, x in found[0].items()}

    def _new_lr(self, index: int, frames: Frames) -> dict[Rate, Tensor]:
        """Return the LR latents that a segment's frames complete; the streams are begun before."""
        if self.lowres.next is None and frames.first == 0:
            self.lowres.next = 0
        expected = frames.first
        if self.lowres.tail is not None:
            expected = max(expected, self.lowres.tail.end)
        if self.lowres.next != expected:
            self.lowres.begin_at(expected, self._frames_before(index, expected))
            self.decoding.go_to(index + 1)
        return self.lowres.push(frames)

    def _frames_before(self, index: int, frame: int) -> Iterator[Frames]:
        """Yield the frames before segment `index` that its LR streams must see, by segment."""
        first, stride = self.lowres.first_frame(frame), self.codec.stride.time
        if first >= frame:
            return
        latent = -(-first // stride)
        lag = 0 if self.codec.causal else self.codec.margin + self.codec.boundary
        for place in range(index):
            if self.links[place].end > latent - lag:
                yield self.decoding.frames(place)

    def _write_clip(self, index: int, frames: Frames, comment: str) -> None:
        pictures = frames.pictures()
        source = sum(link.count for link in self.links if link.source)
        if self.recodes:
            pass
        elif self.links[index].source:
            pictures = self.own_frames(index) or pictures
        elif source:
            pictures = frames.since(1 + self.codec.stride.time * (source - 1)).pictures()
        write_video(self.clip(index), pictures, self.folder.fps, CRF, comment, repeatable=True)

    def _step(self, link: Link, lr: Mapping[Rate, Tensor], frames: Frames | None) -> None:
        """Step φ over a segment, and write what it gives."""
        chunk = self._chunk(link.number - 1, link.end, {}, frames, own=lr)
        memory = Memory()
        if chunk is not None:
            self.state, memory = self._phi(self.state, chunk)
            self.stepped += chunk.size.time
        self._settle(memory)
        tensors, header = memory_tensors(memory)
        header |= {"past": link.chain, "stepped": self.stepped, "states": len(self.state or [])}
        tensors |= state_tensors(self.state or [])
        write_derived(self._memory_file(link), tensors, header)

    def _memory_file(self, link: Link) -> Path:
        return self.folder.cache_path(link.id) / "memory.safetensors"

    def _settle(self, memory: Memory) -> None:
        self.settled.append(memory)
        self.lengths.append(memory.length)

    def _phi(self, state: list[State] | None, chunk: History) -> tuple[list[State], Memory]:
        assert self.encoder is not None
        return self.encoder().step(state, chunk.to(self.device))

    def _take_memory(self, found: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        tensors, header = found
        self._settle(read_memory(tensors, header, self.device))
        count = int(header["states"])
        self.state = read_states(tensors, count, self.device) if count else None
        self.stepped = int(header["stepped"])

    def _chunk(
        self,
        index: int,
        total: int,
        more: Mapping[Rate, Tensor],
        frames: Frames | None,
        own: Mapping[Rate, Tensor] | None = None,
    ) -> History | None:
        """Return the latents that φ has not seen and whose LR latents are there; None: none.

        Args:
            index: place of the last segment that counts.
            total: latents of the take up to its end.
            more: provisional LR latents behind the final ones.
            frames: of the last segment, for memory of pixels.
            own: final LR latents of that segment, where they are at hand.
        """
        low: dict[Rate, Tensor] = {}
        last, ready = self.stepped, total
        for rate in self.needs.rates:
            parts, count = self._final_lr(index, rate, own)
            if rate in more:
                parts.append(more[rate])
                count += more[rate].shape[2]
            low[rate] = torch.cat(parts, dim=2)
            ready = min(ready, rate.time * count)
            low[rate] = low[rate][:, :, low[rate].shape[2] - (count - -(-last // rate.time)) :]
        if ready <= last:
            return None
        latents = torch.cat([self.latents(i) for i in self._places(index, last)], dim=2)
        begin = last - self.links[self._places(index, last)[0]].first
        latents = latents[:, :, begin : begin + ready - last]
        lr = {}
        for rate, x in low.items():
            wanted = lr_between(rate, last, ready)
            lr[rate] = x[:, :, : wanted.stop - wanted.start]
        times = self._cuts(index)
        return History(
            latents=latents,
            lr=lr,
            offset=last,
            pixels=frames.pixels if self.needs.pixels and frames is not None else None,
            cuts=(times,),
        )

    def _places(self, index: int, since: int) -> list[int]:
        return [i for i in range(index + 1) if self.links[i].end > since]

    def _final_lr(
        self, index: int, rate: Rate, own: Mapping[Rate, Tensor] | None
    ) -> tuple[list[Tensor], int]:
        """Return LR latents, the last one that is final last, and how many are final in all."""
        if self.codec.causal:  # a segment brings all that it asks for
            link = self.links[index]
            assert own is not None
            return [own[rate]], -(-link.first // rate.time) + own[rate].shape[2]
        parts, count = [], 0
        for place in range(index + 1):
            link = self.links[place]
            found = own if own is not None and place == index else None
            found = found or self._read_lr(link, self.folder.cache_path(link.id))
            assert found is not None
            parts.append(found[rate])
            count += found[rate].shape[2]
        return parts, count

    def _cuts(self, index: int) -> tuple[float, ...]:
        stride, fps = self.codec.stride.time, self.folder.fps
        firsts = [link.first for link in self.links[: index + 1] if link.cut and link.first]
        return tuple((1 + stride * (first - 1)) / fps for first in firsts)

    @torch.no_grad()
    def memory(self, *, cut: bool = False, since: int = 0) -> tuple[list[Memory], Memory]:
        """Return what has settled, by segment, and what may still change, behind the last segment.

        Merged they are the memory of the whole take.

        Args:
            cut: whether another shot begins behind it, so that what ends at a cut is dropped.
            since: place of the first segment whose settled memory is wanted.

        Raises:
            UserError: a file of memory that was let go is gone.
        """
        if self.encoder is None or not self.links:
            return [], Memory()
        state, extra = self.state, []
        if self.stepped < self.end:
            index = len(self.links) - 1
            chunk = self._chunk(index, self.end, self._provisional(), None)
            if chunk is not None:
                state, settled = self._phi(state, chunk)
                extra.append(settled)
            self._release()
        if state is not None and cut:
            state = self.encoder().cut(state)
        pending = Memory() if state is None else self.encoder().pending(state)
        known = [self._settled(index) for index in range(since, len(self.settled))]
        return known, merge([*extra, pending])

    def let_go(self, count: int) -> None:
        """Hold the settled memory of the first `count` segments on the disk alone."""
        self.settled[:count] = [None] * min(count, len(self.settled))

    def _settled(self, index: int) -> Memory:
        """Return the settled memory of a segment, read again where it was let go."""
        held = self.settled[index]
        if held is not None:
            return held
        path, link = self._memory_file(self.links[index]), self.links[index]
        found = read_derived(path, link.chain)
        if found is None:
            raise UserError(f"{path} is gone or damaged: run the same command, it is made again")
        return read_memory(*found, self.device)

    def _provisional(self) -> dict[Rate, Tensor]:
        """Return the provisional LR latents behind the last segment."""
        index = len(self.links)
        self.decoding.go_to(index)
        expected = self.decoding.next
        if self.lowres.tail is not None:
            expected = max(expected, self.lowres.tail.end)
        if self.needs.rates and self.lowres.next != expected:
            self.lowres.begin_at(expected, self._frames_before(index, expected))
            self.decoding.go_to(index)
        return self.lowres.provisional(self.decoding.rest())

    @torch.no_grad()
    def rest(self) -> Frames | None:
        """Return the provisional frames behind the last clip; None for a causal codec."""
        if self.codec.causal or not self.links:
            return None
        self.decoding.go_to(len(self.links))
        rest = self.decoding.rest()
        self._release()
        return rest


def clip_comment(chain: str, shows: str = "") -> str:
    """Return the comment in a clip's metadata: what it was made from, and how.

    `shows` is how a clip of a source differs from the source's own frames, one of `SHOWS`.
    """
    return f"longtake clip of {chain[:32]}, x264 crf {CRF}{shows and f', {shows}'}"


def stands_in(folder: TakeFolder, links: Sequence[Link]) -> bool:
    """Return whether a clip of the source shows the codec's frames, since its own were gone."""
    return any(
        comment_of(folder.cache_path(link.id) / "clip.mp4") == clip_comment(link.chain, STANDS_IN)
        for link in links
        if link.source
    )


def whole_memory(settled: Sequence[Memory], pending: Memory) -> Memory:
    """Return one memory of what has settled and what may still change."""
    memories = [m for m in (*settled, pending) if m.parts or m.size is not None]
    return merge(memories) if memories else Memory()
