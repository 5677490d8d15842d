"""The return probe: frames that come back to a view, from memory, from a window, from nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from ...core.cache.encode import encode_rates
from ...core.data.store import Record, Store
from ...core.interfaces.codec import (
    Codec,
    decode_among,
    encode_whole,
    frames_of,
    from_bytes,
    to_unit,
)
from ...core.interfaces.retriever import LatentFrames, Scene
from ...core.interfaces.spec import CodecSpec
from ...core.measure.result import Interval, interval
from ...core.model import Model, build_retriever, compressor_needs
from ...core.registry import build
from ...core.values.draws import step_generator
from ...core.values.history import History
from ...core.values.memory import Memory
from ...plugins.compressors.specs import Window
from ...plugins.metrics.specs import Psnr
from ...plugins.retrievers.specs import Flow
from .clips import TIMES, first_seen

# ⟦experiments/tables/return_figures.py⟧ The figures of the return probe: PSNR by way of each clip, and means by kind of clip.


MEMORY, BOTH, ALONE, NONE = "memory", "memory and window", "window", "none"
OWN = "window model"
LAST, FIRST, CEILING = "last frame", "first seen", "ceiling"
ANSWERS = (MEMORY, BOTH, ALONE, NONE, OWN)
TRUTH = "returned"  # of pictures: the frame itself


@frozen(kw_only=True)
class Returned:
    """One clip that came back.

    Attributes:
        name: of the clip.
        seen: latents of the history, the clip's first.
        asked: the latents that were asked.
        psnr: of the returned frames in dB, by way.
        shown: one of those frames by way, and itself, uint8 `[3, P, Q]`.
    """

    name: str
    seen: int
    asked: tuple[int, ...]
    psnr: Mapping[str, float]
    shown: Mapping[str, Tensor] = field(eq=False, repr=False)

    @property
    def kind(self) -> str:
        """How the clip comes back: pan, cut or back."""
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """Return how a clip of that name comes back."""
    return name.split("-")[0]


def over_clips(clips: Sequence[Returned]) -> dict[str, dict[str, Any]]:
    """Return by kind of clip, and over all, each way's mean and what memory has over the others."""
    kinds = ("all", *dict.fromkeys(clip.kind for clip in clips))
    return {kind: _table([clip for clip in clips if kind in ("all", clip.kind)]) for kind in kinds}


def _table(clips: Sequence[Returned]) -> dict[str, Any]:
    ways = clips[0].psnr
    means = {way: interval([clip.psnr[way] for clip in clips]) for way in ways}
    over = {way: _over(clips, way) for way in ways if way not in (MEMORY, FIRST, CEILING)}
    return {
        "clips": len(clips),
        "psnr": {way: attrs.asdict(found) for way, found in means.items()},
        "memory_over": {way: attrs.asdict(found) for way, found in over.items()},
    }


def _over(clips: Sequence[Returned], way: str) -> Interval:
    return interval([clip.psnr[MEMORY] - clip.psnr[way] for clip in clips])


WINDOW = 3  # latents of the sliding window (method.md §5)


@frozen(eq=False, kw_only=True)
class Asker:
    """Who is asked, and of what.

    Attributes:
        model: answers from its own memory, from a window and from nothing.
        codec: of its latents, on its device.
        store: clips with their pixels.
        window: a model trained with a sliding window as its memory; None: is not asked.
    """

    model: Model
    codec: Codec[CodecSpec]
    store: Store
    window: Model | None = None

    @classmethod
    def of(cls, model: Model, store: Store, window: Model | None = None) -> Asker:
        """Build the codec once for all clips."""
        device = next(model.backbone.parameters()).device
        codec: Codec[CodecSpec] = build(model.experiment.backbone.codec).to(device).eval()
        store.teach(codec)
        return cls(model=model, codec=codec, store=store, window=window)


@torch.no_grad()
def returned(asker: Asker, record: Record, seed: int = 0) -> Returned:
    """Return how well each way gives back the frames of a return, which none has seen.

    The history ends before the return begins, and only latents wholly after it are asked, all of
    the same noise and text. `last frame` repeats the newest frame of the history; `first seen` are
    the frames of the history that show the same; `ceiling` is the codec's own reconstruction.
    """
    store, stride = asker.store, asker.codec.stride.time
    times = TIMES[kind_of(record.name)]
    seen = times.seen(store.fps, stride, record.latents)
    asked = times.asked(store.fps, stride, record.latents)
    scene = _scene(asker, record, seen)
    truth = torch.cat([_frames(scene, frames_of(index, stride)) for index in asked])
    found = {
        **_answers(asker, scene, _past(asker, record, seen), asked, f"return {record.id}", seed),
        LAST: _frames(scene, frames_of(seen - 1, stride)[-1:]).expand_as(truth),
        FIRST: _frames(scene, _first(record, asked, stride, store.fps)),
        CEILING: _decoded(scene, asked, scene.history.latents[:, :, list(asked)]),
    }
    psnr = {way: float(build(Psnr())(truth, frames).mean()) for way, frames in found.items()}
    shown = {way: _picture(frames) for way, frames in {**found, TRUTH: truth}.items()}
    return Returned(name=record.name, seen=seen, asked=asked, psnr=psnr, shown=shown)


def _scene(asker: Asker, record: Record, seen: int) -> Scene:
    model, store = asker.model, asker.store
    device = next(model.backbone.parameters()).device
    whole = store.window(record, 0, record.latents, (), True).to(device)
    return Scene(
        memory=Memory(),
        history=whole,
        size=whole.size,
        text=store.text(record, 0, seen).to(device),
        null_text=store.null_text().to(device),
        backbone=model.backbone,
        codec=asker.codec,
        shift=model.experiment.backbone.shift,
    )


def _past(asker: Asker, record: Record, seen: int) -> History:
    models = [asker.model, *([asker.window] if asker.window else [])]
    rates = frozenset().union(*(compressor_needs(model.experiment).rates for model in models))
    past = asker.store.window(record, 0, seen, sorted(rates), True)
    past = past.to(next(asker.model.backbone.parameters()).device)
    return past if asker.codec.causal else ended(asker.codec, past)


def ended(codec: Codec[CodecSpec], past: History) -> History:
    """Return a history encoded from its frames alone, as of a video that ends there.

    Latents of a codec that is not causal were made with frames of the return in sight.
    """
    assert past.pixels is not None  # windows are read with their pixels
    lr = encode_rates(codec, [past.pixels], past.lr)
    latents = encode_whole(codec, from_bytes(past.pixels))
    return attrs.evolve(past, latents=latents, lr={r: x.to(latents) for r, x in lr.items()})


def _answers(
    asker: Asker, scene: Scene, past: History, asked: Sequence[int], salt: str, seed: int
) -> dict[str, Tensor]:
    omega = torch.tensor([list(asked)], device=past.latents.device)
    found = {}
    for way, model, memory in _memories(asker, past):
        own = attrs.evolve(
            scene,
            memory=memory,
            backbone=model.backbone,
            shift=model.experiment.backbone.shift,
        )
        given = build_retriever(Flow(steps=1))(own, omega, step_generator(seed, 0, 0, salt))
        assert isinstance(given, LatentFrames)  # as Flow gives
        found[way] = _decoded(scene, asked, given.latents)
    return found


def _memories(asker: Asker, past: History) -> list[tuple[str, Model, Memory]]:
    model, memory = asker.model, asker.model.encoder(past)
    window: Memory = build(Window(latents=WINDOW), model.backbone.fit()).to(past.latents.device)(
        past
    )
    names = {part.name for part in memory.parts}  # of a memory that is a window itself
    further = [part for part in window.parts if part.name not in names]
    both = attrs.evolve(memory, parts=(*memory.parts, *further))
    memories = {MEMORY: memory, BOTH: both, ALONE: window, NONE: Memory()}
    found = [(way, model, one) for way, one in memories.items()]
    return [*found, *([(OWN, asker.window, asker.window.encoder(past))] if asker.window else [])]


def _decoded(scene: Scene, asked: Sequence[int], latents: Tensor) -> Tensor:
    """Return the frames of latents, decoded among true predecessors: `[F, 3, P, Q]` in [0, 1]."""
    true = scene.history.latents
    each = zip(asked, latents.to(true.dtype).split(1, dim=2), strict=True)
    parts = [decode_among(scene.codec, true, index, one)[0] for index, one in each]
    return torch.cat([to_unit(part.float()).movedim(1, 0) for part in parts])


def _first(record: Record, asked: Sequence[int], stride: int, fps: float) -> list[int]:
    frames = [frame for index in asked for frame in frames_of(index, stride)]
    kind = kind_of(record.name)
    return [max(0, round(first_seen(kind, frame / fps) * fps)) for frame in frames]


def _frames(scene: Scene, frames: Sequence[int]) -> Tensor:
    """Return true frames, `[F, 3, P, Q]` in [0, 1]."""
    assert scene.history.pixels is not None  # windows are read with their pixels
    return scene.history.pixels[0, :, list(frames)].movedim(1, 0).float() / 255


def _picture(frames: Tensor) -> Tensor:
    return (frames[len(frames) // 2] * 255).round().to(torch.uint8).cpu()
