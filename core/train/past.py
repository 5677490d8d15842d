"""The end of a past as it is known when the video has only come so far.

A codec that is not causal (HunyuanVideo's) has seen later frames when it settles a latent, so that
in a store the last latents of a past hold part of the target: the answer. Here they are encoded
anew from the frames up to the cut, with the codec's provisional `rest`, HR and LR alike; that is
what a take has at its end, too.
"""

from __future__ import annotations

from typing import Self

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..cache.encode import LowRes
from ..data.store import Record, Store
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.codec import Codec, encode_whole, from_bytes
from ..interfaces.spec import CodecSpec
from ..registry import build, registry
from ..values.grid import Rate
from ..values.history import History


@frozen(eq=False)
class PastEncoder:
    """Encodes the ends of pasts anew, from the frames of a store.

    Attributes:
        store: whose clips they are of.
        codec: of the store, on the device that is to encode.
    """

    store: Store
    codec: Codec[CodecSpec]

    @classmethod
    def of(cls, experiment: Experiment, store: Store, device: torch.device) -> Self | None:
        """Return what encodes the pasts of Stage II, or None where the store's latents will do.

        Raises:
            UserError: it is needed, and the store has no frames.
        """
        codec: Codec[CodecSpec] = build(experiment.backbone.codec)
        if experiment.finetune is None or codec.causal:
            return None
        try:
            store.frames(store.records[0], 0, 0)
        except UserError as error:
            name = registry().find(codec.spec).name
            raise UserError(
                f"{store.root}: the codec {name} looks beyond the end of a past, which is encoded "
                f"anew from frames, but {error}"
            ) from error
        return cls(store, codec.to(device).eval())

    @torch.no_grad()
    def __call__(self, record: Record, history: History, past: int) -> History:
        """Return a window of a clip whose first `past` latents know nothing of what follows.

        Args:
            record: the clip.
            history: the window, of one sample.
            past: latents of it that are past.
        """
        start = int(history.start[0])
        cut = start + past  # latents of the video so far
        latents = _with_end(history.latents, self._end(record, cut), start, cut)
        lr = {}
        for rate, x in history.lr.items():
            count = (cut - 1) // rate.time + 1
            lr[rate] = _with_end(x, self._lr_end(record, rate, count), start // rate.time, count)
        return attrs.evolve(history, latents=latents, lr=lr)

    def _end(self, record: Record, count: int) -> Tensor:
        """Return the last of `count` latents, those that later frames would change."""
        begin, settled = self._reach(count)
        step = self.codec.stride.time
        frames = self.store.frames(record, step * begin, step * (count - 1))
        return self._encoded(from_bytes(frames))[:, :, settled - begin :]

    def _lr_end(self, record: Record, rate: Rate, count: int) -> Tensor:
        """Return the last of `count` LR latents, those that later frames would change."""
        begin, settled = self._reach(count)
        step, lowres = self.codec.stride.time, LowRes(rate, self.codec.stride)
        first = rate.time * (step * begin - 1) + 1 if begin else 0
        read = self.store.frames(record, first, rate.time * step * (count - 1))
        frames = from_bytes(read)
        # behind the video's first frame, every LR frame is the mean of whole groups
        before = {"waiting": lowres.shrink(frames[:, :, :1])[:, :, :0]} if begin else None
        return self._encoded(lowres.push(frames, before)[0])[:, :, settled - begin :]

    def _encoded(self, frames: Tensor) -> Tensor:
        tensors = [*self.codec.parameters(), *self.codec.buffers()]
        device = tensors[0].device if tensors else frames.device
        return encode_whole(self.codec, frames.to(device)).float().cpu()

    def _reach(self, count: int) -> tuple[int, int]:
        """Return where a video of `count` latents is to be encoded from, and how many are final.

        What lies a tile before its end is final, and is exact behind the boundary before that.
        """
        boundary, seen = self.codec.boundary, count - 1 - self.codec.margin_after
        if seen < 0:
            return 0, 0
        last = seen // boundary * boundary
        return max(0, last - boundary), last + 1


def _with_end(latents: Tensor, end: Tensor, start: int, count: int) -> Tensor:
    """Return a window's latents with others in place of the last ones before a cut.

    Args:
        latents: `[1, C, T, H, W]`, from latent `start` of the video on.
        end: the last of the first `count` latents of the video, `[1, C, n, H, W]`.
        start: of the window.
        count: latents of the video before the cut.
    """
    first = max(start, count - end.shape[2])
    new = latents.clone()
    new[:, :, first - start : count - start] = end[:, :, end.shape[2] - (count - first) :]
    return new
