"""A user's own video, or picture, as the beginning of a take.

It is read at the backbone's frame rate and placed as `cache` does, encoded by one streaming encoder
and committed in segments of about ten seconds. Its end is kept to the frame: the last frame that is
taken is the last of a latent, and the latents are 1 mod R, so that the join is exact; what that
leaves over stays out at the beginning. LR latents come from its own pixels, as in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from attrs import define, frozen
from einops import rearrange
from torch import Tensor

from ..cache.encode import LowResEncoder, regroup
from ..errors import UserError
from ..interfaces.codec import Codec, from_bytes
from ..interfaces.compressor import State
from ..interfaces.spec import CodecSpec
from ..tools.files import disk_errors, hash_file, read_object, write_json
from ..tools.words import counted
from ..values.grid import Rate
from ..video.decode import Pixels, VideoError, probe
from ..video.placement import Placement, cover
from ..video.read import iter_frames
from ..video.sound import keep_sound
from .folder import TakeFolder
from .order import COUNT, FLAG, FROM_ZERO, TEXT, Rule, check_types
from .past import TAIL, LowTail

SECONDS = 10.0  # of a source's segment
KEEP, RECODE = DELIVER = ("keep", "recode")  # its own frames, or the codec's of them
SOUND = "sound.mp4"
CHUNK = 32  # frames that are decoded at once
_SOURCE: dict[str, Rule] = {
    "path": TEXT, "sha256": TEXT, "size": FROM_ZERO, "skip": FROM_ZERO, "frames": COUNT,
    "picture": FLAG,
}  # fmt: skip
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@frozen(kw_only=True)
class Source:
    """What of a video a take begins with.

    Attributes:
        path: of the file; `hash` is its sha256, `size` its bytes.
        skip: frames at the beginning, at the take's rate, that are left out.
        frames: that are taken: 1 + 4k.
        placement: how they are fitted into the take's size.
        picture: whether it is one picture.
        recode: whether its frames are delivered as the codec gives them back, so that no step is
            seen where it ends; else they are its own.
        note: what was wrong with the file, "" where nothing was.
    """

    path: Path
    hash: str
    size: int
    skip: int
    frames: int
    placement: Placement
    picture: bool
    recode: bool = False
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what source/source.json holds."""
        return {
            "path": str(self.path.absolute()), "sha256": self.hash, "size": self.size,
            "skip": self.skip, "frames": self.frames, "placement": str(self.placement),
            "picture": self.picture, "deliver": RECODE if self.recode else KEEP,
        }  # fmt: skip

    def line(self, fps: float) -> str:
        """What is taken of it, in one line."""
        if self.picture:
            return f"{self.path.name}: {self.placement}, the first frame"
        left = f", {counted(self.skip, 'frame')} at its beginning left out" if self.skip else ""
        return (
            f"{self.path.name}: {self.placement}, {counted(self.frames, 'frame')} at {fps:g} fps "
            f"({self.frames / fps:.2f} s){left}{f'; {self.note}' if self.note else ''}"
        )

    @property
    def gone(self) -> str:
        """What is said where its file is not there, and its frames are to be delivered."""
        return (
            f"{self.path} has changed since the take began, or is gone (sha256): in place of its "
            "own frames the codec's are delivered; put it back and run the same command"
        )


def find_source(
    path: Path, folder: TakeFolder, *, stride: int, until: float | None, picture: bool
) -> Source:
    """Return what of a video file a take begins with.

    Args:
        path: of the video, or of the picture.
        folder: of the take, for size, frame rate and period.
        stride: video frames to a latent.
        until: seconds of the video after which it is cut; None: all of it.
        picture: whether only its first frame is taken.

    Raises:
        UserError: it is no video or picture, or shorter than needed.
    """
    info = probe(path)
    height, width = folder.spec["size"]
    placement = cover(info.width, info.height, (height, width))
    hashed, size = hash_file(path), path.stat().st_size
    if picture:
        return Source(
            path=path, hash=hashed, size=size, skip=0, frames=1, placement=placement, picture=True
        )
    if until is not None and not until > 0:
        raise UserError(f"--extend-from {until:g}: a time in the video is wanted, more than 0")
    most = None if until is None else max(1, round(until * folder.fps))
    read = iter_frames(path, fps=folder.fps, size=placement, count=most)
    total = sum(len(chunk) for chunk in read)
    if until is not None and most is not None and total < most and total / folder.fps < until - 0.5:
        raise UserError(f"--extend-from {until:g}: {path.name} has {total / folder.fps:.2f} s")
    step = stride * int(folder.spec["period"])
    if total < 1 + stride:
        few = counted(total, "frame")
        raise VideoError(path, f"has {few} at {folder.fps:g} fps: {1 + stride} or more")
    frames = 1 + (total - 1) // step * step
    return Source(
        path=path,
        hash=hashed,
        size=size,
        skip=total - frames,
        frames=frames,
        placement=placement,
        picture=False,
        note=read.warning,
    )


def read_source(folder: TakeFolder) -> Source | None:
    """Return the source of a take; None where it has none.

    Raises:
        UserError: source.json is damaged.
    """
    path = folder.root / "source" / "source.json"
    if not path.exists():
        return None
    data = read_object(path, "source of a take")
    check_types(data, _SOURCE, str(path), "source of a take")
    file = Path(data["path"])
    height, width = folder.spec["size"]
    try:
        info = probe(file)
        placement = cover(info.width, info.height, (height, width))
    except UserError:  # it is only needed as long as its segments are not made
        placement = cover(width, height, (height, width))
    return Source(
        path=file,
        hash=data["sha256"],
        size=data["size"],
        skip=data["skip"],
        frames=data["frames"],
        placement=placement,
        picture=data["picture"],
        recode=data.get("deliver") == RECODE,
    )


def write_source(folder: TakeFolder, source: Source) -> None:
    """Write source.json."""
    write_json(folder.root / "source" / "source.json", source.to_json())


def forget_files(folder: TakeFolder) -> None:
    """Remove what was kept of a source beside source.json, before there is another one."""
    for path in (folder.root / "source" / SOUND, folder.root / "source" / TAIL):
        with disk_errors(path):
            path.unlink(missing_ok=True)


def sound_of(folder: TakeFolder) -> Path | None:
    """Return the sound of a take's source; None where it has none."""
    path = folder.root / "source" / SOUND
    return path if path.is_file() else None


def keep_its_sound(folder: TakeFolder, source: Source) -> str:
    """Keep the sound of what is taken of a source beside source.json; return what to say, or ""."""
    begin, end = (n / folder.fps for n in (source.skip, source.skip + source.frames))
    path = folder.root / "source" / SOUND
    if source.picture:
        return ""
    try:
        codec = keep_sound(source.path, path, begin, end)
    except UserError as error:
        path.unlink(missing_ok=True)
        return f"; {error}: none is delivered"
    return f"; its sound ({codec}) goes along" if codec else ""


def source_is_there(source: Source) -> bool:
    """Return whether the file of a source is what it was when the take began."""
    try:
        return source.path.is_file() and hash_file(source.path) == source.hash
    except UserError:
        return False


def source_frames(source: Source, fps: float) -> Iterator[Pixels]:
    """Yield the frames that are taken, uint8 `[n, P, Q, 3]`.

    Raises:
        UserError: the file changed since the take began, or cannot be read.
    """
    if not source_is_there(source):
        raise UserError(
            f"{source.path} changed since the take began, or is gone (sha256): it is still "
            "needed; put it back, or begin a new take"
        )
    return _taken(source, fps)


def _taken(source: Source, fps: float) -> Iterator[Pixels]:
    count = source.skip + source.frames
    read = iter_frames(source.path, fps=fps, size=source.placement, count=count, chunk=CHUNK)
    return _cut(read, source.skip, source.frames)


@define
class SourceReader:
    """Reads the frames of a source by segment; the file is hashed once, and read on in order.

    Attributes:
        source: whose file it is.
        fps: of the take.
    """

    source: Source
    fps: float
    _there: bool | None = None
    _stream: Iterator[Pixels] | None = None
    _at: int = 0

    @property
    def is_there(self) -> bool:
        """Whether the file is what it was when the take began."""
        if self._there is None:
            self._there = source_is_there(self.source)
        return self._there

    def frames(self, begin: int, count: int) -> Iterator[Pixels]:
        """Yield `count` frames from number `begin` on, uint8 `[P, Q, 3]`."""
        if self._stream is None or self._at != begin:
            frames = chain.from_iterable(_taken(self.source, self.fps))
            self._stream, self._at = islice(frames, begin, None), begin
        for frame in islice(self._stream, count):
            self._at += 1
            yield frame


def _cut(chunks: Iterable[Pixels], skip: int, count: int) -> Iterator[Pixels]:
    """Yield frames skip … skip + count − 1; counted from the first, as they were when measured."""
    at = 0
    for chunk in chunks:
        part = chunk[max(0, skip - at) : max(0, skip + count - at)]
        at += len(chunk)
        if len(part):
            yield part


def split_source(latents: int, period: int, fps: float, stride: int) -> list[int]:
    """Return the latents of each segment of a source: about ten seconds each."""
    longest = max(period, int(SECONDS * fps) // stride // period * period)
    lengths = [min(latents, 1 + longest)]
    while left := latents - sum(lengths):
        lengths.append(min(left, longest))
    return lengths


@define
class SourceEncoder:
    """Encodes a source segment by segment, with its LR latents and their tail.

    Attributes:
        codec: of the take.
        rates: of LR latents.
        device: where the codec runs.
    """

    codec: Codec[CodecSpec]
    rates: tuple[Rate, ...]
    device: torch.device

    @torch.no_grad()
    def segments(
        self, chunks: Iterator[Pixels], lengths: list[int]
    ) -> Iterator[tuple[Tensor, dict[Rate, Tensor], LowTail | None]]:
        """Yield latents and LR latents of each segment; with the last one, the tail of LR frames.

        LR latents of a segment are those that its frames complete.
        """
        stride = self.codec.stride.time
        tensors = (rearrange(torch.from_numpy(c), "n p q c -> 1 c n p q") for c in chunks)
        state: State | None = None
        lowres = {rate: LowResEncoder(self.codec, rate) for rate in self.rates}
        states: dict[Rate, State] = {}
        lows: dict[Rate, State] = {}
        small: dict[Rate, list[Tensor]] = {rate: [] for rate in self.rates}
        waiting: list[Tensor] = []
        low: dict[Rate, list[Tensor]] = {rate: [] for rate in self.rates}
        frames_seen, left = 0, list(lengths)
        total = 1 + stride * (sum(lengths) - 1)
        for chunk in regroup(_borders(tensors, lengths, stride), stride):
            frames = from_bytes(chunk.to(self.device))
            latents, state = self.codec.encode(frames, state)
            waiting.append(latents.cpu())
            for rate, encoder in lowres.items():
                made, states[rate] = encoder.push(frames, states.get(rate))
                low[rate].append(made.cpu())
                few, lows[rate] = encoder.lowres.push(frames, lows.get(rate))
                small[rate].append(few.cpu())
            frames_seen += chunk.shape[2]
            if frames_seen == total:
                rest = self.codec.encode_rest(state)
                waiting += [] if rest is None else [rest.cpu()]
            have = sum(x.shape[2] for x in waiting)
            while left and have >= left[0] and (len(left) > 1 or frames_seen == total):
                joined = torch.cat(waiting, dim=2)
                count = left.pop(0)
                waiting, have = [joined[:, :, count:]], have - count
                parts = {rate: torch.cat(x, dim=2) for rate, x in low.items()}
                low = {rate: [x[:, :, :0]] for rate, x in parts.items()}
                tail = self._tail(small, total) if not left else None
                yield joined[:, :, :count], parts, tail
        if left:
            raise UserError(f"the source ended after {frames_seen} of {total} frames")

    def _tail(self, small: dict[Rate, list[Tensor]], end: int) -> LowTail:
        frames, firsts = {}, {}
        for rate, parts in small.items():
            joined = torch.cat(parts, dim=2)
            stride, reach = self.codec.stride.time, self.codec.encode_reach
            latents = 1 + (joined.shape[2] - 1) // stride
            begin = 0 if reach is None else max(0, latents - reach)
            first = stride * (begin // self.codec.boundary * self.codec.boundary)
            frames[rate], firsts[rate] = joined[:, :, first:].clone(), first
        return LowTail(frames, firsts, end)


def _borders(chunks: Iterator[Tensor], lengths: list[int], stride: int) -> Iterator[Tensor]:
    """Yield chunks cut where segments end, so that those of a resumed run are the same."""
    left = [stride * n for n in lengths]
    left[0] -= stride - 1
    for chunk in chunks:
        while chunk.shape[2]:
            count = min(chunk.shape[2], left[0] if left else chunk.shape[2])
            yield chunk[:, :, :count]
            chunk = chunk[:, :, count:]
            if left:
                left[0] -= count
                if not left[0]:
                    left.pop(0)
