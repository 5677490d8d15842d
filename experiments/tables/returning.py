"""The return probe: frames that come back to a view, from memory, from a window, from nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ...core.codec import Codec, decode_among, frames_of, to_unit
from ...core.data.record import Record
from ...core.data.store import Store
from ...core.draws import step_generator
from ...core.grid import Rate
from ...core.history import History
from ...core.measure.figures import Interval, interval
from ...core.memory import Memory
from ...core.model import Model, all_needs, build_retriever
from ...core.registry import build
from ...core.retriever import LatentFrames, Scene
from ...core.spec import CodecSpec
from ...plugins.specs import Flow, Psnr, Window

ASKED = 4  # latents at the end of a clip that are given back
WINDOW = 3  # latents of the sliding window (method.md §5)
WAYS = ("memory", "memory and window", "window", "none", "last frame", "ceiling")


@frozen(kw_only=True)
class Returned:
    """One clip: PSNR of its returned frames in dB, by way."""

    name: str
    psnr: Mapping[str, float]

    @property
    def kind(self) -> str:
        """How the clip comes back: pan, cut or back."""
        return self.name.split("-")[0]


@torch.no_grad()
def returned(model: Model, store: Store, record: Record, seed: int = 0) -> Returned:
    """Give how well each way gives back the last latents of a clip, which no way has seen.

    All ways are asked by the same model, noise and text. `last frame` repeats the newest frame of
    the history; `ceiling` is the codec's own reconstruction.
    """
    device = next(model.backbone.parameters()).device
    codec: Codec[CodecSpec] = build(model.experiment.backbone.codec).to(device).eval()
    whole = _window(model, store, record, record.latents).to(device)
    seen = record.latents - ASKED
    omega = torch.arange(seen, record.latents, device=device)[None]
    scene = Scene(
        memory=Memory(),
        history=whole,
        size=whole.size,
        text=store.text(record, 0, seen).to(device),
        null_text=store.null_text().to(device),
        backbone=model.backbone,
        codec=codec,
        shift=model.experiment.backbone.shift,
    )
    past = _window(model, store, record, seen).to(device)
    found = {}
    for way, memory in _memories(model, past).items():
        generator = step_generator(seed, 0, 0, f"return {record.id}")
        given = build_retriever(Flow(steps=1))(attrs.evolve(scene, memory=memory), omega, generator)
        assert isinstance(given, LatentFrames)  # as Flow gives
        found[way] = _psnr(scene, omega, given.latents)
    found["last frame"] = _psnr_of_still(scene, omega, seen)
    found["ceiling"] = _psnr(scene, omega, whole.latents[:, :, omega[0]])
    return Returned(name=record.name, psnr=found)


def over_clips(clips: Sequence[Returned]) -> dict[str, dict[str, Any]]:
    """Give by kind of clip, and over all, each way's mean and what memory has over the others."""
    kinds = ("all", *dict.fromkeys(clip.kind for clip in clips))
    return {kind: _table([clip for clip in clips if kind in ("all", clip.kind)]) for kind in kinds}


def _table(clips: Sequence[Returned]) -> dict[str, Any]:
    means = {way: interval([clip.psnr[way] for clip in clips]) for way in WAYS}
    over = {way: _over(clips, way) for way in WAYS if way not in ("memory", "ceiling")}
    return {
        "clips": len(clips),
        "psnr": {way: attrs.asdict(found) for way, found in means.items()},
        "memory_over": {way: attrs.asdict(found) for way, found in over.items()},
    }


def _over(clips: Sequence[Returned], way: str) -> Interval:
    return interval([clip.psnr["memory"] - clip.psnr[way] for clip in clips])


def _memories(model: Model, past: History) -> dict[str, Memory]:
    memory = model.encoder(past)
    fit = model.backbone.fit()
    window: Memory = build(Window(latents=WINDOW), fit).to(past.latents.device)(past)
    both = attrs.evolve(memory, parts=(*memory.parts, *window.parts))
    return {"memory": memory, "memory and window": both, "window": window, "none": Memory()}


def _window(model: Model, store: Store, record: Record, latents: int) -> History:
    rates: list[Rate] = sorted(all_needs(model.experiment).rates)
    return store.window(record, 0, latents, rates, True)


def _psnr(scene: Scene, omega: Tensor, latents: Tensor) -> float:
    """Give the mean PSNR of given latents, decoded among their true predecessors."""
    values = []
    for place, index in enumerate(omega[0].tolist()):
        one = latents[:, :, place : place + 1].to(scene.history.latents.dtype)
        pixels = decode_among(scene.codec, scene.history.latents, index, one)
        values.append(_score(_true(scene, index), to_unit(pixels[0].float()).movedim(1, 0)))
    return float(torch.cat(values).mean())


def _psnr_of_still(scene: Scene, omega: Tensor, seen: int) -> float:
    still = _true(scene, seen - 1)[-1:]
    truths = [_true(scene, index) for index in omega[0].tolist()]
    return float(torch.cat([_score(true, still.expand_as(true)) for true in truths]).mean())


def _true(scene: Scene, index: int) -> Tensor:
    """Give the true frames of a latent, `[F, 3, P, Q]` in [0, 1]."""
    assert scene.history.pixels is not None  # windows are read with their pixels
    at = frames_of(index, scene.codec.stride.time)
    return scene.history.pixels[0, :, at.start : at.stop].movedim(1, 0).float() / 255


def _score(reference: Tensor, result: Tensor) -> Tensor:
    found: Tensor = build(Psnr())(reference, result)
    return found
