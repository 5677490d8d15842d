"""One frame of one clip as each memory gives it back, for the picture of a table."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...core.codec import Codec, frames_of
from ...core.data.store import Store
from ...core.measure.quality import Kept
from ...core.measure.result import MeasureResult
from ...core.model import Model
from ...core.pictures import save_png
from ...core.registry import build
from ...core.retriever import LatentFrames
from ...core.scene import last_frames
from ...core.spec import CodecSpec

SHOWN = 3  # clips in a strip
ORIGINAL = "original.png"
PLACE = 0.5  # of the history, where the frame is taken


@torch.no_grad()
def save_strip(path: Path, model: Model, store: Store, result: MeasureResult, kept: Kept) -> None:
    """Write the same frames of the same clips, as the main retriever gave them, side by side."""
    codec: Codec[CodecSpec] = build(model.experiment.backbone.codec)
    shown = [_shown(codec, store, result, kept, place) for place in chosen(result)]
    save_png(path, torch.cat([given for given, _ in shown], dim=-1))
    save_png(path.with_name(ORIGINAL), torch.cat([true for _, true in shown], dim=-1))


def chosen(result: MeasureResult) -> list[int]:
    """Give the places of clips that are shown: spread over the list, of the commonest size."""
    sizes = [clip.size for clip in result.clips]
    common = max(set(sizes), key=sizes.count)
    alike = [place for place, size in enumerate(sizes) if size == common]
    count = min(SHOWN, len(alike))
    return [alike[k * len(alike) // count] for k in range(count)]


def _shown(
    codec: Codec[CodecSpec], store: Store, result: MeasureResult, kept: Kept, place: int
) -> tuple[Tensor, Tensor]:
    """Give the frame as it came back and as it was, uint8 `[3, P, Q]`."""
    clip = result.clips[place]
    record = next(found for found in store.records if found.id == clip.id)
    given = kept[clip.id, result.main]  # [C, T, H, W]
    length = given.shape[1]
    at = int(PLACE * length)
    window, omega = store.window(record, 0, length, [], True), torch.tensor([[at]])
    back = LatentFrames(latents=given[None, :, at : at + 1])
    assert window.pixels is not None  # it was asked for
    true = window.pixels[0, :, frames_of(at, codec.stride.time)[-1]]
    return last_frames(codec, window.latents, omega, back), true
