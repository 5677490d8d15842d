"""Retriever `probe`: how much of the past is in the tokens, whatever the generator makes of it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.backbone import target_positions
from ...core.train.probe import FitSettings, FittedRetriever, ProbeHead
from ...core.values.grid import Geometry, Size3, ceil_div
from ...core.values.memory import Memory, Part
from ...core.values.shapes import Counts, Frames, Targets
from .specs import Probe

PERIODS = (2.0, 512.0)  # shortest and longest of the waves that encode places, in cells
WAVES = 10  # an axis
LEAST = 1e-3  # of the tokens' spread, that a dimension is divided by at least
NEAR = 30.0  # logit by which a fresh head prefers a token at its own place to a far one


class ProbeRetriever(FittedRetriever[Probe]):
    """Retrieves Ω by a small cross-attention head, fitted on the frozen memory.

    `longtake probe RUN --data STORE` fits it on the memories of clean windows, by the mean squared
    error of latents, so what it gives is a mean, not a sample. It can do less than the DiT: a low
    figure says that this head finds little, a high one that the tokens hold much.
    """

    @classmethod
    def build_head(cls, spec: Probe, geometry: Geometry) -> CrossHead:
        """Return a fresh head."""
        return CrossHead(spec, geometry)

    @classmethod
    def fit_settings(cls, spec: Probe) -> FitSettings:
        """Return what the head is fitted with."""
        return FitSettings(steps=spec.steps, batch=spec.batch, rate=spec.rate, seed=spec.seed)

    @classmethod
    def weights_file(cls, spec: Probe) -> str | None:
        """Return the file of the fitted head, or None."""
        return spec.weights


class CrossHead(ProbeHead):
    """One query a patch cell of the frames Ω, made of its place; 1 or 2 layers; linear out.

    Places go in as sines and cosines of (time in the window, row, column). Queries and keys share
    one projection of them, so that a fresh head looks near its own place first. Tokens are brought
    to mean 0 and variance 1 in each of their dimensions, by the first memory that is seen: what all
    tokens have in common is most of their length.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, spec: Probe, geometry: Geometry) -> None:
        super().__init__()
        if geometry.patch.time != 1:
            raise UserError("probe needs a DiT whose patches hold one latent frame")
        self.geometry = geometry
        patch = geometry.patch
        self.register_buffer("centre", torch.zeros(geometry.width))
        self.register_buffer("scale", torch.ones(geometry.width))
        self.read = nn.Linear(geometry.width, spec.width)
        self.ask = nn.Linear(6 * WAVES, spec.width)
        self.layers = nn.ModuleList(_Layer(spec.width, spec.heads) for _ in range(spec.layers))
        self.out = nn.Linear(spec.width, geometry.channels * patch.height * patch.width)
        nn.init.zeros_(self.out.weight)

    @torch.no_grad()
    def calibrate(self, memory: Memory) -> None:
        """Take mean and standard deviation of each dimension of the real tokens."""
        part = memory.joined()
        if part is None or int(part.valid.sum()) < 2:
            return
        tokens = part.tokens[part.valid.to(part.tokens.device)].to(self.centre)
        self.centre.copy_(tokens.mean(dim=0))
        spread = tokens.std(dim=0).clamp_min(LEAST * float(tokens.std()))
        self.scale.copy_(torch.where(spread > 0, spread, 1.0))  # a dead memory: all tokens alike

    def forward(self, memory: Memory, omega: Frames, start: Counts, size: Size3) -> Targets:
        """Return the latents of frames Ω `[B, C, K, H, W]`, float32."""
        patch, weight = self.geometry.patch, self.out.weight
        rows, columns = ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)
        targets = waves(target_positions(omega.to(weight.device), rows, columns)).to(weight.dtype)
        x = self.ask(targets)
        part = memory.joined()
        if part is not None:
            tokens, places, mask = self._keys(part, start)
            for layer in self.layers:
                x = layer(x, targets, tokens, places, mask)
        cells: Tensor = self.out(F.layer_norm(x, x.shape[-1:]))
        latents = rearrange(
            cells,
            "b (k rows columns) (c h w) -> b c k (rows h) (columns w)",
            rows=rows, columns=columns, h=patch.height, w=patch.width,
        )  # fmt: skip
        return latents[..., : size.height, : size.width].float()

    def _keys(self, part: Part, start: Counts) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return tokens `[B, N, width]`, their places as waves, and a mask if some are padding."""
        weight = self.read.weight
        origin = torch.zeros(len(start), 1, 3, dtype=torch.float64)
        origin[:, 0, 0] = start.cpu().double()
        places = waves((part.positions.cpu() - origin).to(weight.device)).to(weight.dtype)
        valid = part.valid.to(weight.device)
        tokens = (part.tokens.to(self.centre) - self.centre) / self.scale
        read = self.read(tokens.masked_fill(~valid[..., None], 0.0))
        # a sample without any token sees its padding, all zeros, so that softmax stays finite
        visible = valid | ~valid.any(dim=1, keepdim=True)
        return read, places, None if bool(valid.all()) else visible[:, None, None]


class _Layer(nn.Module):
    """x + attention(x, memory), then x + mlp(x), both on normed input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.place = nn.Linear(6 * WAVES, width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )
        _look_near(self.place.weight, width // heads)

    def forward(
        self, x: Tensor, targets: Tensor, tokens: Tensor, places: Tensor, mask: Tensor | None
    ) -> Tensor:
        query = self.query(F.layer_norm(x, x.shape[-1:])) + self.place(targets)
        key = self.key(tokens) + self.place(places)
        q, k, v = (
            rearrange(y, "b n (heads d) -> b heads n d", heads=self.heads)
            for y in (query, key, self.value(tokens))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        x = x + self.mlp(F.layer_norm(x, x.shape[-1:]))
        return x


def _look_near(weight: Tensor, head_width: int) -> None:
    """Scale a random projection so that equal places meet at a logit of `NEAR` on average."""
    gain = (NEAR * math.sqrt(head_width) / (head_width * 3 * WAVES)) ** 0.5
    nn.init.normal_(weight, std=gain)


def waves(positions: Tensor) -> Tensor:
    """Return sines and cosines `[B, N, 6 · WAVES]` of positions `[B, N, 3]`, float64."""
    low, high = PERIODS
    steps = torch.arange(WAVES, dtype=torch.float64, device=positions.device) / (WAVES - 1)
    speeds = 2 * math.pi / (low * (high / low) ** steps)
    angles = rearrange(positions[..., None] * speeds, "b n place waves -> b n (place waves)")
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
