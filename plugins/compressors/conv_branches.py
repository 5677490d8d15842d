"""The two branches of `conv`, each as a whole, chunk by chunk, and for what is still pending."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...core.compressor import State
from ...core.fit import Fit, pad_to, project
from ...core.grid import Geometry, Size3
from ...core.history import History
from ...core.streams import joined, own
from ..specs import Conv
from .conv_attention import AttentionStack
from .conv_layers import ConvTrunk, token_grid
from .conv_stem import PixelStem


class HrBranch(nn.Module):
    """Full-size latents → convs → attention: features `[B, T', S, C]` of S = rows × columns.

    With a pixel stem, its features of frames stand for the latents.

    State: `waiting`, the latents of the incomplete block; `conv.i`, a tail a conv; `attention.i`,
    keys and values of the last window − 1 memory frames. With full attention `hidden`, the convs'
    features of all complete memory frames, instead.
    """

    def __init__(self, spec: Conv, geometry: Geometry) -> None:
        super().__init__()
        self.spec = spec
        self.geometry = geometry
        self.full = spec.attention == "full"
        self.stem = PixelStem(spec.channels[0], geometry) if spec.stem == "pixels" else None
        self.trunk = ConvTrunk(spec, geometry)
        self.attention = AttentionStack(spec)
        self.out = nn.Linear(spec.channels[-1], geometry.width)
        if spec.lr:  # step 0 is Only-LR; alone, zero tokens would blow up under the DiT's norms
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def whole(self, history: History, frames: int) -> Tensor:
        """Give the features of `frames` memory frames of a window."""
        rate = self.spec.rate
        latents = extended(self.read(history), history.length, 1 + (frames - 1) * rate.time)
        hidden, _ = self.convolve(latents, {})
        keys = None
        if history.ragged:
            counts = torch.tensor([rate.time_tokens(int(n)) for n in history.length])
            keys = torch.arange(frames)[None] < counts[:, None]
        return self.attend(hidden, {}, keys)[0]

    def read(self, history: History) -> Tensor:
        """Give what the convs read `[B, C, T, H, W]`: the latents, or the stem's features."""
        return history.latents if self.stem is None else self.stem(history)

    def take(self, state: State, chunk: History, ready: int) -> Tensor | None:
        """Put a chunk into `state`; give the features that the first `ready` of all complete."""
        waiting = joined(state.get("waiting"), self.read(chunk), dim=2)
        state["waiting"] = own(waiting[:, :, ready:])
        if not ready:
            return None
        hidden, tails = self.convolve(waiting[:, :, :ready], state)
        if self.full:
            state.update(tails, hidden=own(joined(state.get("hidden"), hidden, dim=1)))
            return None
        hidden, windows = self.attend(hidden, state)
        state.update(tails | windows)
        return hidden

    def rest(self, state: State, missing: int) -> Tensor:
        """Give the features of the incomplete block, if `missing`; full attention: of all."""
        parts = [state["hidden"]] if self.full else []
        if missing:
            waiting = state["waiting"]
            length = torch.full_like(state["start"], waiting.shape[2])
            block = extended(waiting, length, self.spec.rate.time)
            parts.append(self.convolve(block, state)[0])
        return self.attend(torch.cat(parts, dim=1), state)[0]

    def convolve(
        self, latents: Tensor, past: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the convs' features `[B, T', S, C]` of complete blocks, and the convs' tails."""
        rate, patch = self.spec.rate, self.geometry.patch
        time, height, width = latents.shape[2:]
        grid = token_grid(self.spec, self.geometry, Size3(time=time, height=height, width=width))
        latents = pad_to(latents, rate.height * patch.height, rate.width * patch.width)
        hidden, tails = self.trunk(latents.to(self.out.weight.dtype), past)
        return hidden[..., : grid.height, : grid.width].flatten(3).permute(0, 2, 3, 1), tails

    def attend(
        self, hidden: Tensor, past: Mapping[str, Tensor], keys: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the features after attention, and its window to go on from."""
        seen: tuple[Tensor, dict[str, Tensor]] = self.attention(hidden, past, keys)
        return seen


class LrBranch(nn.Module):
    """LR latents → the DiT's own tokens `[B, T', S, D]`; nothing is trained.

    State: `lr`, the last LR latent; with full attention all of them.
    """

    patch_weight: Tensor
    patch_bias: Tensor

    def __init__(self, spec: Conv, fit: Fit) -> None:
        super().__init__()
        self.spec = spec
        self.geometry = fit.geometry
        self.keep = spec.hr and spec.attention == "full"
        self.register_buffer("patch_weight", fit.patch_weight.clone(), persistent=False)
        self.register_buffer("patch_bias", fit.patch_bias.clone(), persistent=False)

    def whole(self, history: History, frames: int) -> Tensor:
        """Give the LR latents of `frames` memory frames of a window, the last one repeated."""
        rate = self.spec.rate
        length = torch.tensor([rate.settled_tokens(int(n)) for n in history.length])
        return extended(self.latents(history, 0), length, frames)

    def take(self, state: State, chunk: History, before: int) -> Tensor:
        """Put the LR latents of a chunk into `state`, and give them."""
        lr = self.latents(chunk, before)
        kept = joined(state.get("lr"), lr, dim=2)
        state["lr"] = own(kept if self.keep else kept[:, :, -1:])
        return lr

    def rest(self, state: State, missing: int) -> Tensor:
        """Give the last LR latent again for the incomplete block; full attention: all before."""
        lr = state["lr"]
        again = lr[:, :, -1:].expand(-1, -1, missing, -1, -1)
        return torch.cat([lr, again], dim=2) if self.keep else again

    def tokens(self, lr: Tensor, size: Size3) -> Tensor:
        """Give the DiT's tokens of LR latents of a history of `size`, on the memory's grid."""
        grid = token_grid(self.spec, self.geometry, size)
        tokens = project(lr.to(self.patch_weight.dtype), self.patch_weight, self.patch_bias)
        return tokens[:, :, : grid.height, : grid.width].flatten(2, 3)

    def latents(self, history: History, before: int) -> Tensor:
        """Give the LR latents of a history that follows `before` latents.

        Raises:
            ValueError: there are none of this rate, or not as many as must travel with it.
        """
        rate, after = self.spec.rate, before + history.size.time
        if rate not in history.lr:
            raise ValueError(f"conv-{rate} needs LR latents of rate {rate}; the history has none")
        due = rate.settled_tokens(after) - rate.settled_tokens(before)
        if history.lr[rate].shape[2] != due:
            raise ValueError(
                f"latents {before} to {after - 1} travel with {due} LR latents of rate {rate}, "
                f"not {history.lr[rate].shape[2]}"
            )
        return history.lr[rate]


def extended(latents: Tensor, length: Tensor, total: int) -> Tensor:
    """Give `total` frames: of each sample its first `length`, then its last one repeated.

    A sample without frames gives zeros.
    """
    batch, channels, time, height, width = latents.shape
    if time == 0:
        return latents.new_zeros(batch, channels, total, height, width)
    if bool((length == time).all()):
        more = latents[:, :, -1:].expand(-1, -1, max(total - time, 0), -1, -1)
        return torch.cat([latents[:, :, :total], more], dim=2) if total != time else latents
    index = torch.minimum(torch.arange(total)[None], length.cpu()[:, None] - 1).clamp(min=0)
    rows = torch.arange(batch)[:, None]
    frames = latents.transpose(1, 2)[rows, index].transpose(1, 2)  # [B, C, total, H, W]
    empty = (length == 0).to(latents.device)
    return frames.masked_fill(empty[:, None, None, None, None], 0.0)
