"""The return probe: frames that come back to a view, from memory, from a window, from nothing.

Each way to answer is compared by the PSNR of its frames: clip by clip, and as means over clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from attrs import field, frozen
from einops import rearrange
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

MEMORY, BOTH, ALONE, NONE = "memory", "memory and window", "window", "none"
OWN = "window model"
LAST, FIRST, CEILING = "last frame", "first seen", "ceiling"
ANSWERS = (MEMORY, BOTH, ALONE, NONE, OWN)
TRUTH = "returned"  # of pictures: the frame itself
WINDOW = 3  # latents of the sliding window (method.md §5)


@frozen(eq=False, kw_only=True)
class ReturnProbe:
    """The models that answer, and the clips they are asked about.

    Attributes:
        model: answers from its own memory, from a window, from both and from nothing.
        codec: of its latents, on its device.
        store: clips with their pixels.
        window: a model trained with a sliding window as its memory; None: there is none.
        beside: further models that answer from their own memory, by the names of their answers.
    """

    model: Model
    codec: Codec[CodecSpec]
    store: Store
    window: Model | None = None
    beside: Mapping[str, Model] = field(factory=dict)

    @property
    def others(self) -> dict[str, Model]:
        """The models beside its own, by the names of their answers."""
        return {**({OWN: self.window} if self.window else {}), **self.beside}

    @classmethod
    def of(
        cls,
        model: Model,
        store: Store,
        window: Model | None = None,
        beside: Mapping[str, Model] | None = None,
    ) -> ReturnProbe:
        """Build the codec once for all clips."""
        device = next(model.backbone.parameters()).device
        codec: Codec[CodecSpec] = build(model.experiment.backbone.codec).to(device).eval()
        store.apply_margin(codec)
        return cls(model=model, codec=codec, store=store, window=window, beside=beside or {})


@frozen(kw_only=True)
class ReturnResult:
    """How well each way answered for one clip.

    Attributes:
        name: of the clip.
        seen: latents of the history, the clip's first.
        asked: the latents that were asked.
        psnr: of the returned frames in dB, by way to answer.
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


@torch.no_grad()
def probe_clip(probe: ReturnProbe, record: Record, seed: int = 0) -> ReturnResult:
    """Return how well each way predicts the frames of a return, which none has seen.

    The history ends before the return begins, and only latents wholly after it are asked, all of
    the same noise and text. `last frame` repeats the newest frame of the history; `first seen` are
    the frames of the history that show the same; `ceiling` is the codec's own reconstruction.
    """
    store, stride = probe.store, probe.codec.stride.time
    times = TIMES[kind_of(record.name)]
    seen = times.seen(store.fps, stride, record.latents)
    asked = times.asked(store.fps, stride, record.latents)
    scene = scene_of(probe, record, seen)
    truth = torch.cat([true_frames(scene, frames_of(index, stride)) for index in asked])
    frames_by_way = {
        **answers(probe, scene, past_of(probe, record, seen), asked, f"return {record.id}", seed),
        LAST: true_frames(scene, frames_of(seen - 1, stride)[-1:]).expand_as(truth),
        FIRST: true_frames(scene, _first(record, asked, stride, store.fps)),
        CEILING: decoded(scene, asked, scene.history.latents[:, :, list(asked)]),
    }
    psnr = {
        way: float(build(Psnr())(truth, frames).mean()) for way, frames in frames_by_way.items()
    }
    shown = {way: middle_frame(frames) for way, frames in {**frames_by_way, TRUTH: truth}.items()}
    return ReturnResult(name=record.name, seen=seen, asked=asked, psnr=psnr, shown=shown)


def scene_of(probe: ReturnProbe, record: Record, seen: int) -> Scene:
    """Return the scene of a whole clip, whose memory is yet to be put in.

    Args:
        probe: whose model and codec it has.
        record: the clip.
        seen: latents of the history, whose caption is read.
    """
    model, store = probe.model, probe.store
    device = next(model.backbone.parameters()).device
    whole = store.window(record, 0, record.latents, (), True).to(device)
    return Scene(
        memory=Memory(),
        history=whole,
        size=whole.size,
        text=store.text(record, 0, seen).to(device),
        null_text=store.null_text().to(device),
        backbone=model.backbone,
        codec=probe.codec,
        shift=model.experiment.backbone.shift,
    )


def past_of(probe: ReturnProbe, record: Record, seen: int) -> History:
    """Return the history of a clip's first `seen` latents, with all that the models read."""
    models = [probe.model, *probe.others.values()]
    rates = frozenset().union(*(compressor_needs(model.experiment).rates for model in models))
    past = probe.store.window(record, 0, seen, sorted(rates), True)
    past = past.to(next(probe.model.backbone.parameters()).device)
    return past if probe.codec.causal else encode_as_whole(probe.codec, past)


def encode_as_whole(codec: Codec[CodecSpec], past: History) -> History:
    """Return a history encoded anew from its frames alone, as a video that ends there.

    Latents of a codec that is not causal were made with frames of the return in sight.
    """
    assert past.pixels is not None  # windows are read with their pixels
    lr = encode_rates(codec, [past.pixels], past.lr)
    latents = encode_whole(codec, from_bytes(past.pixels))
    return attrs.evolve(past, latents=latents, lr={r: x.to(latents) for r, x in lr.items()})


def answers(
    probe: ReturnProbe, scene: Scene, past: History, asked: Sequence[int], salt: str, seed: int
) -> dict[str, Tensor]:
    """Return the frames of latents `asked` by way to answer, `[F, 3, P, Q]` in [0, 1].

    Args:
        probe: the models.
        scene: of the clip.
        past: what their memories are made of.
        asked: latent frames of the clip.
        salt: with `seed`, what the noise follows from, the same for all ways.
        seed: the same.
    """
    omega = torch.tensor([list(asked)], device=past.latents.device)
    frames_by_way = {}
    for way, model, memory in _memories(probe, past):
        model_scene = attrs.evolve(
            scene,
            memory=memory,
            backbone=model.backbone,
            shift=model.experiment.backbone.shift,
        )
        random = step_generator(seed, 0, 0, salt)
        result = build_retriever(Flow(steps=1))(model_scene, omega, random)
        assert isinstance(result, LatentFrames)  # as Flow gives
        frames_by_way[way] = decoded(scene, asked, result.latents)
    return frames_by_way


def _memories(probe: ReturnProbe, past: History) -> list[tuple[str, Model, Memory]]:
    model, memory = probe.model, probe.model.encoder(past)
    window: Memory = build(Window(latents=WINDOW), model.backbone.fit()).to(past.latents.device)(
        past
    )
    names = {part.name for part in memory.parts}  # of a memory that is a window itself
    further = [part for part in window.parts if part.name not in names]
    both = attrs.evolve(memory, parts=(*memory.parts, *further))
    memories = {MEMORY: memory, BOTH: both, ALONE: window, NONE: Memory()}
    own = [(way, model, one) for way, one in memories.items()]
    return [*own, *((way, other, other.encoder(past)) for way, other in probe.others.items())]


def decoded(scene: Scene, asked: Sequence[int], latents: Tensor) -> Tensor:
    """Return the frames of latents, decoded among true predecessors: `[F, 3, P, Q]` in [0, 1]."""
    true = scene.history.latents
    each = zip(asked, latents.to(true.dtype).split(1, dim=2), strict=True)
    parts = [decode_among(scene.codec, true, index, one)[0] for index, one in each]
    return torch.cat([rearrange(to_unit(part.float()), "c f h w -> f c h w") for part in parts])


def _first(record: Record, asked: Sequence[int], stride: int, fps: float) -> list[int]:
    frames = [frame for index in asked for frame in frames_of(index, stride)]
    kind = kind_of(record.name)
    return [max(0, round(first_seen(kind, frame / fps) * fps)) for frame in frames]


def true_frames(scene: Scene, frames: Sequence[int]) -> Tensor:
    """Return true frames, `[F, 3, P, Q]` in [0, 1]."""
    assert scene.history.pixels is not None  # windows are read with their pixels
    pixels = scene.history.pixels[0, :, list(frames)]
    return rearrange(pixels, "c f h w -> f c h w").float() / 255


def middle_frame(frames: Tensor) -> Tensor:
    """Return the frame in the middle, uint8 `[3, P, Q]`."""
    return (frames[len(frames) // 2] * 255).round().to(torch.uint8).cpu()


def over_clips(clips: Sequence[ReturnResult]) -> dict[str, dict[str, Any]]:
    """Return by kind of clip, and over all, the mean PSNR of each way and memory's lead over it."""
    kinds = ("all", *dict.fromkeys(clip.kind for clip in clips))
    return {kind: _table([clip for clip in clips if kind in ("all", clip.kind)]) for kind in kinds}


def _table(clips: Sequence[ReturnResult]) -> dict[str, Any]:
    ways = clips[0].psnr
    means = {way: interval([clip.psnr[way] for clip in clips]) for way in ways}
    over = {way: _over(clips, way) for way in ways if way not in (MEMORY, FIRST, CEILING)}
    return {
        "clips": len(clips),
        "psnr": {way: attrs.asdict(mean) for way, mean in means.items()},
        "memory_over": {way: attrs.asdict(lead) for way, lead in over.items()},
    }


def _over(clips: Sequence[ReturnResult], way: str) -> Interval:
    return interval([clip.psnr[MEMORY] - clip.psnr[way] for clip in clips])
