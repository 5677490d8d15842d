"""The margins of a store's codec, measured once and kept in its header."""

from __future__ import annotations

from itertools import islice

import attrs
import numpy as np
import torch
from torch import Tensor

from ..codec import from_bytes
from ..demo.clip import SECONDS, builtin_clip
from ..files import read_object, write_json
from ..margins import measure_margins
from .claim import Job
from .record import WHAT

SIDE = 64  # pixels of the clip that is measured on: enough, and fast on a CPU


def note_margins(job: Job) -> None:
    """Measure the margins of a codec that knows a bound only, where the header lacks them.

    The header then says `measured: {margin, encode_margin, pixels, latents}`. Weights that were
    loaded for this are let go of: workers load their own.

    Raises:
        UserError: the codec's weights cannot be loaded, or the disk refuses.
    """
    if not job.codec.margin_is_bound:
        return
    path = job.root / "store.json"
    if "measured" in read_object(path, WHAT):
        return
    codec = job.codec.to(job.device)
    video = _clip(job).to(job.device)
    found = measure_margins(codec, video)
    codec.unload()
    write_json(path, {**read_object(path, WHAT), "measured": attrs.asdict(found)})


def _clip(job: Job) -> Tensor:
    """Give photographs under a moving camera, `[1, 3, F, P, Q]`, longer than the codec's bound."""
    fps = job.experiment.backbone.geometry.fps
    count = 1 + job.codec.stride.time * (job.codec.margin + 1)
    frames = builtin_clip(max(SECONDS, (count + 1) / fps), fps, SIDE, SIDE)
    clip = torch.from_numpy(np.stack(list(islice(frames, count))))
    return from_bytes(clip).movedim(-1, 0)[None]
