"""The DiT's own tokens: of full-size latents (`OwnTokens`), and of a small video (`LrBranch`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.base import Interface
from ...core.interfaces.compressor import Fit, State, pad_to, project
from ...core.interfaces.streaming import appended, own_copy
from ...core.values.grid import Rate, Rounding, Size3
from ...core.values.history import History
from .frames import repeat_own_last

UNCOMPRESSED = Rate(height=1, width=1, time=1)


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
        """Return patches `[B, T, H', W', F]` of latents `[B, C, T, H, W]`; odd sizes round up."""
        rows, columns = (int(n) for n in self.weight.shape[3:])
        return rearrange(
            pad_to(latents.to(self.weight.dtype), rows, columns),
            "b c t (h rows) (w columns) -> b t h w (c rows columns)",
            rows=rows, columns=columns,
        )  # fmt: skip

    def project(self, patches: Tensor) -> Tensor:
        """Return the tokens `[..., D]` of patches `[..., F]`."""
        return F.linear(patches, self.weight.flatten(1), self.bias)


def mean_patches(patches: Tensor, rate: Rate) -> Tensor:
    """Return means of patches `[B, T, H', W', F]` over the rows and columns of a rate.

    What is left at the bottom and at the right is the mean of fewer.
    """
    return block_means(block_means(patches, 2, rate.height), 3, rate.width)


def block_means(x: Tensor, dim: int, step: int) -> Tensor:
    """Return means of `step` neighbours along `dim`; the last block is of what is left."""
    count = x.shape[dim] // step
    rest = x.narrow(dim, count * step, x.shape[dim] - count * step)
    means = x.narrow(dim, 0, count * step).unflatten(dim, (count, step)).mean(dim + 1)
    return torch.cat([means, rest.mean(dim, keepdim=True)], dim) if rest.shape[dim] else means


class LrBranch(Interface):
    """LR latents → the DiT's own tokens `[B, T', S, D]`; nothing is trained.

    Public: any compressor may build one. Its state is `lr`, the last LR latent; with `keep_all` all
    of them.

    Args:
        name: of the compressor's part, for messages.
        rate: of the LR latents.
        fit: of the backbone.
        rounding: what incomplete cells at the right and the bottom do.
        keep_all: whether the state keeps every LR latent, because nothing settles.
    """

    patch_weight: Tensor
    patch_bias: Tensor

    def __init__(
        self,
        name: str,
        rate: Rate,
        fit: Fit,
        *,
        rounding: Rounding = "ceil",
        keep_all: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.rate = rate
        self.geometry = fit.geometry
        self.rounding = rounding
        self.keep_all = keep_all
        self.register_buffer("patch_weight", fit.patch_weight.clone(), persistent=False)
        self.register_buffer("patch_bias", fit.patch_bias.clone(), persistent=False)

    def whole(self, history: History, frames: int) -> Tensor:
        """Return the LR latents of `frames` memory frames of a window, the last one repeated."""
        length = torch.tensor([self.rate.settled_tokens(int(n)) for n in history.length])
        return repeat_own_last(self._checked(history), length, frames)

    def take(self, state: State, chunk: History) -> Tensor:
        """Put the LR latents of a chunk into `state`, and return them."""
        lr = self._checked(chunk)
        so_far = appended(state.get("lr"), lr, dim=2)
        state["lr"] = own_copy(so_far if self.keep_all else so_far[:, :, -1:])
        return lr

    def rest(self, state: State, missing: int) -> Tensor:
        """Return the last LR latent again for the incomplete block; with `keep_all` all before."""
        lr = state["lr"]
        again = lr[:, :, -1:].expand(-1, -1, missing, -1, -1)
        return torch.cat([lr, again], dim=2) if self.keep_all else again

    def tokens(self, lr: Tensor, size: Size3) -> Tensor:
        """Return the DiT's tokens of LR latents of a history of `size`, on the memory's grid."""
        grid = self.rate.token_grid(size, self.geometry.patch, self.rounding)
        tokens = project(lr.to(self.patch_weight.dtype), self.patch_weight, self.patch_bias)
        return rearrange(tokens[:, :, : grid.height, : grid.width], "b t h w d -> b t (h w) d")

    def _checked(self, history: History) -> Tensor:
        """Return the LR latents of a window or chunk.

        Raises:
            ValueError: there are none of this rate, or not as many as must travel with it.
        """
        rate, before = self.rate, history.offset
        after = before + history.size.time
        if rate not in history.lr:
            raise ValueError(f"{self.name} needs LR latents of rate {rate}; the history has none")
        due = rate.settled_tokens(after) - rate.settled_tokens(before)
        if history.lr[rate].shape[2] != due:
            raise ValueError(
                f"latents {before} to {after - 1} travel with {due} LR latents of rate {rate}, "
                f"not {history.lr[rate].shape[2]}"
            )
        return history.lr[rate]
