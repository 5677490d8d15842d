"""What making a take tells, event by event: frozen values, each a line of JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
from attrs import field, frozen
from torch import Tensor


@frozen(eq=False, kw_only=True)
class Event:
    """Base of all events; `kind` says which it is."""

    kind: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """Return the event as plain JSON, `kind` first."""
        values = {
            a.name: getattr(self, a.name) for a in attrs.fields(type(self)) if a.metadata != HIDDEN
        }
        plain = {name: _plain(value) for name, value in values.items()}
        return {"kind": self.kind, **plain}


HIDDEN = {"json": False}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(member) for member in value] if isinstance(value, tuple | list) else value


@frozen(eq=False, kw_only=True)
class Told(Event):
    """Something that a person should know.

    Attributes:
        text: one line.
    """

    kind: ClassVar[str] = "note"
    text: str


@frozen(eq=False, kw_only=True)
class Step(Event):
    """A pass of the model was made.

    Attributes:
        segment, segments: which segment, and how many the take is to have.
        done, total: passes of this segment.
        eta: seconds until it is sampled.
        eta_all: seconds until all that is asked for is made; None: not known.
    """

    kind: ClassVar[str] = "step"
    segment: int
    segments: int
    done: int
    total: int
    eta: float
    eta_all: float | None


@frozen(eq=False, kw_only=True)
class Preview(Event):
    """What the model takes a segment for by now; only computed where `rgb` is called.

    Attributes:
        segment, done, total: as of `Step`.
    """

    kind: ClassVar[str] = "preview"
    segment: int
    done: int
    total: int
    make: Callable[[], Tensor] = field(metadata=HIDDEN, repr=False)

    def rgb(self) -> Tensor:
        """Return one small picture a latent frame, uint8 `[K, 3, H, W]`."""
        return self.make()


@frozen(eq=False, kw_only=True)
class SegmentMade(Event):
    """A segment exists from now on.

    Attributes:
        segment, segments: which, and how many the take is to have.
        id: name of its folder.
        prompt, seed: that it was made with.
        first, latents: where in the take it lies.
        frames, duration: video frames and seconds of it.
        tokens: context length of the memory that it read.
        took: seconds that it took to sample.
        adopted: whether it was there already, from a run that was killed.
    """

    kind: ClassVar[str] = "segment"
    segment: int
    segments: int
    id: str
    prompt: str
    seed: int
    first: int
    latents: int
    frames: int
    duration: float
    tokens: int
    took: float
    adopted: bool = False


@frozen(eq=False, kw_only=True)
class PixelsMade(Event):
    """The clip of a segment is there.

    Attributes:
        segment: which.
        clip: the mp4 file.
        took: seconds that pixels, LR latents and memory took.
        spent: of them by what they were spent on.
    """

    kind: ClassVar[str] = "pixels"
    segment: int
    clip: Path
    took: float
    spent: Mapping[str, float] = field(factory=dict)


@frozen(eq=False, kw_only=True)
class Done(Event):
    """All that was asked for is made and delivered.

    Attributes:
        segments: that the take has, made.
        to_make: segments that are still to be made (`--segments`).
        frames, duration: of the video that was delivered, source included.
        files: take.mp4, and new.mp4 where there is a source.
        asked, snapped, delivered: seconds of new video; asked is None where it was until stopped.
        took: seconds of this run.
        report: what the take says of itself, as lines (`Take.report` has all of it).
    """

    kind: ClassVar[str] = "done"
    segments: int
    to_make: int
    frames: int
    duration: float
    files: tuple[Path, ...]
    asked: float | None
    snapped: float
    delivered: float
    took: float
    report: tuple[str, ...] = ()
