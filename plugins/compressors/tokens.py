"""The DiT's own tokens of full-size latents, and where whole frames of them sit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.compressor import Fit, State, pad_to, project
from ...core.interfaces.streaming import joined, own
from ...core.values.grid import Rate, Size3, ceil_div
from ...core.values.history import History
from ...core.values.memory import spans
from .conv_layers import token_grid
from .specs import Conv


class OwnTokens(nn.Module):
    """The DiT's first projection in two steps: cells to patches, patches to tokens.

    The second is linear, so that means of tokens are the tokens of mean patches, at a fraction of
    the width. Nothing is trained.

    Raises:
        UserError: the DiT's patch spans several latent frames.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        if fit.geometry.patch.time != 1:
            raise UserError(f"a patch of one latent frame is needed, not of {fit.geometry.patch}")
        self.register_buffer("weight", fit.patch_weight.clone(), persistent=False)
        self.register_buffer("bias", fit.patch_bias.clone(), persistent=False)

    def cut(self, latents: Tensor) -> Tensor:
        """Return the patches `[B, T, H', W', F]` of latents `[B, C, T, H, W]`; odd sizes round up."""
        rows, columns = (int(n) for n in self.weight.shape[3:])
        whole = pad_to(latents.to(self.weight.dtype), rows, columns)
        batch, channels, time, height, width = whole.shape
        shape = (batch, channels, time, height // rows, rows, width // columns, columns)
        return whole.reshape(shape).permute(0, 2, 3, 5, 1, 4, 6).flatten(4)

    def project(self, patches: Tensor) -> Tensor:
        """Return the tokens `[..., D]` of patches `[..., F]`."""
        return F.linear(patches, self.weight.flatten(1), self.bias)


def block_means(x: Tensor, dim: int, step: int) -> Tensor:
    """Return means of `step` neighbours along `dim`; the last block is of what is left."""
    count = x.shape[dim] // step
    rest = x.narrow(dim, count * step, x.shape[dim] - count * step)
    means = x.narrow(dim, 0, count * step).unflatten(dim, (count, step)).mean(dim + 1)
    return torch.cat([means, rest.mean(dim, keepdim=True)], dim) if rest.shape[dim] else means


def frame_places(frames: Tensor, size: Size3, patch: Size3, rate: Rate) -> tuple[Tensor, Tensor]:
    """Return positions and extents `[B, n·S, 3]` of the tokens of single latents.

    Args:
        frames: absolute latent frames, `[B, n]`.
        size: of the latents (only height and width are read).
        patch: of the DiT; rows and columns are counted in its cells.
        rate: how many rows and columns a token covers; its time is 1.
    """
    rows, columns = ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)
    h0, h1 = spans(rows, rate.height, ceil_div(rows, rate.height))
    w0, w1 = spans(columns, rate.width, ceil_div(columns, rate.width))
    t = frames.to(torch.float64)[:, :, None, None]
    grid = torch.broadcast_tensors(t, ((h0 + h1) / 2)[:, None], ((w0 + w1) / 2)[None, :])
    shares = torch.broadcast_tensors(torch.ones_like(t), (h1 - h0 + 1)[:, None], w1 - w0 + 1)
    return torch.stack(grid, dim=-1).flatten(1, 3), torch.stack(shares, dim=-1).flatten(1, 3)


# ⟦plugins/compressors/conv_branches.py⟧ The two branches of `conv`, each as a whole, chunk by chunk, and for what is still pending.


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
        """Return the LR latents of `frames` memory frames of a window, the last one repeated."""
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
        """Return the last LR latent again for the incomplete block; full attention: all before."""
        lr = state["lr"]
        again = lr[:, :, -1:].expand(-1, -1, missing, -1, -1)
        return torch.cat([lr, again], dim=2) if self.keep else again

    def tokens(self, lr: Tensor, size: Size3) -> Tensor:
        """Return the DiT's tokens of LR latents of a history of `size`, on the memory's grid."""
        grid = token_grid(self.spec, self.geometry, size)
        tokens = project(lr.to(self.patch_weight.dtype), self.patch_weight, self.patch_bias)
        return tokens[:, :, : grid.height, : grid.width].flatten(2, 3)

    def latents(self, history: History, before: int) -> Tensor:
        """Return the LR latents of a history that follows `before` latents.

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
    """Return `total` frames: of each sample its first `length`, then its last one repeated.

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
