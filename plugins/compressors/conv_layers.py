"""The HR branch's convs: causal in time, streaming exactly by a tail of frames a layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.codec import from_bytes
from ...core.values.grid import Geometry, Rate, Rounding, Size3
from ...core.values.history import History
from ...kernels.reference import conv3d_act
from .specs import Conv

Triple = tuple[int, int, int]
SILU_GAIN = 1.68  # 1 / rms of SiLU(z), z ~ N(0, 1): without norms the signal keeps its size


@frozen(kw_only=True)
class Stage:
    """Shape of one conv: widths, kernel and stride in (time, height, width)."""

    inputs: int
    outputs: int
    kernel: Triple
    stride: Triple


def halvings(rate: Rate, patch: Size3) -> list[Triple]:
    """Return the strides of the strided convs, time first: together (T, 2H, 2W) for a 2×2 patch.

    Raises:
        UserError: rate × patch is no power of two, so that halving cannot reach it.
    """
    time = _log2(rate.time)
    height, width = _log2(rate.height * patch.height), _log2(rate.width * patch.width)
    space = [(1, 1 + (i < height), 1 + (i < width)) for i in range(max(height, width))]
    return [(2, 1, 1)] * time + space


def _log2(cells: int) -> int:
    if cells & (cells - 1):
        raise UserError(f"conv halves: rate × patch must be a power of two, not {cells}")
    return cells.bit_length() - 1


def stages(spec: Conv, geometry: Geometry) -> list[Stage]:
    """Return the convs: conv_in, one a halving; stride 1 to the last width where halvings are few.

    Source: method.md §2 (64→128→256→512, time strides first, then space).
    """
    first = geometry.channels if spec.stem == "latents" else spec.channels[0]
    strides = halvings(spec.rate, geometry.patch)
    last = len(spec.channels) - 1
    widths = [spec.channels[min(i, last)] for i in range(len(strides) + 1)]
    if len(strides) < last:
        widths.append(spec.channels[last])
    steps = [(1, 1, 1), *strides, (1, 1, 1)][: len(widths)]
    return [
        Stage(inputs=a, outputs=b, kernel=_kernel(stride, spec.kernel), stride=stride)
        for a, b, stride in zip([first, *widths[:-1]], widths, steps, strict=True)
    ]


def _kernel(stride: Triple, space: int) -> Triple:
    return 3, space if stride[1] == 2 else 3, space if stride[2] == 2 else 3


class CausalConv(nn.Module):
    """One conv with SiLU: output j of a stride-s conv reads inputs up to s·j, never later ones."""

    def __init__(self, stage: Stage, *, norm: bool, replicate: bool) -> None:
        super().__init__()
        self.stage = stage
        self.replicate = replicate
        self.weight = nn.Parameter(torch.empty(stage.outputs, stage.inputs, *stage.kernel))
        self.bias = nn.Parameter(torch.zeros(stage.outputs))
        self.norm = nn.Parameter(torch.ones(stage.outputs)) if norm else None
        fan_in = self.weight[0].numel()
        nn.init.normal_(self.weight, std=SILU_GAIN / fan_in**0.5)

    def forward(self, x: Tensor, tail: Tensor | None) -> Tensor:
        """Return the outputs of new frames `[B, C, T, H, W]`; tail None: they start the video."""
        before = self._start(x) if tail is None else tail
        return conv3d_act(
            x, self.weight, self.bias, stride=self.stage.stride, tail=before, norm=self.norm
        )

    def tail(self, x: Tensor, tail: Tensor | None) -> Tensor:
        """Return the k − s frames that the next output will read again, as a copy of their own."""
        count = self.stage.kernel[0] - self.stage.stride[0]
        if x.shape[2] < count:
            x = torch.cat([self._start(x) if tail is None else tail, x], dim=2)
        return x[:, :, x.shape[2] - count :].clone(memory_format=torch.contiguous_format)

    def _start(self, x: Tensor) -> Tensor:
        first = x[:, :, :1] if self.replicate else torch.zeros_like(x[:, :, :1])
        return first.expand(-1, -1, self.stage.kernel[0] - 1, -1, -1)


class ConvTrunk(nn.Module):
    """All convs of the HR branch; its state is one tail a layer, of constant size."""

    def __init__(self, spec: Conv, geometry: Geometry) -> None:
        super().__init__()
        replicate = spec.time_padding == "replicate"
        self.layers = nn.ModuleList(
            CausalConv(stage, norm=spec.norm == "rms", replicate=replicate)
            for stage in stages(spec, geometry)
        )

    def forward(self, x: Tensor, past: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features `[B, C', T', H', W']` of new frames, and the tails to go on from.

        Args:
            x: `[B, C, T, H, W]`, H and W multiples of the strides' product; T completes blocks.
            past: the tails that the call before gave; empty at the start of a video.
        """
        tails: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, CausalConv)
            name = f"conv.{index}"
            tails[name] = layer.tail(x, past.get(name))
            x = layer(x, past.get(name))
        return x, tails


def token_grid(spec: Conv, geometry: Geometry, size: Size3) -> Size3:
    """Return the grid of memory tokens of a history of `size` latents."""
    rounding: Rounding = "floor" if spec.rounding == "floor" else "ceil"
    return spec.rate.token_grid(size, geometry.patch, rounding)


# ⟦plugins/compressors/conv_attention.py⟧ Attention over memory frames: block-causal in a window (exact to append), or full.


class FrameAttention(nn.Module):
    """One layer: x + out(attention(qkv(norm(x)))), the frames of a window seen as a whole."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        # Softmax cancels a bias of keys: it would be a parameter that never moves.
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)

    def forward(
        self, x: Tensor, past: Tensor | None, window: int | None, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return new features of frames, and the keys and values to go on from.

        Args:
            x: `[B, T, S, C]`: T frames of S cells.
            past: keys and values `[2, B, n, S, heads, d]` of the n ≤ window − 1 frames before.
            window: frames that a frame sees, itself the last of them; None: all, also later ones.
            keys: which frames are real, `[B, T]`; only for window None, None: all are.
        """
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(3)
        if window is None:
            seen, kept = full(query, key, value, keys), key.new_zeros(0)
        else:
            pair = torch.stack([key, value])
            pair = pair if past is None else torch.cat([past, pair], dim=2)
            seen = windowed(query, pair[0], pair[1], window)
            kept = pair[:, :, max(pair.shape[2] - window + 1, 0) :]
            kept = kept.clone(memory_format=torch.contiguous_format)
        return x + self.out(seen.flatten(-2)), kept


class AttentionStack(nn.Module):
    """The attention layers of an encoder; the state holds a window's keys and values a layer."""

    def __init__(self, spec: Conv) -> None:
        super().__init__()
        self.window = None if spec.attention == "full" else spec.window
        count = 0 if spec.attention == "none" else spec.layers
        self.layers = nn.ModuleList(
            FrameAttention(spec.channels[-1], spec.heads, spec.head_width) for _ in range(count)
        )

    def forward(
        self, x: Tensor, past: Mapping[str, Tensor], keys: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features `[B, T, S, C]` of new frames, and the state to go on from."""
        state: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            name = f"attention.{index}"
            x, state[name] = layer(x, past.get(name), self.window, keys)
        return x, {} if self.window is None else state


def full(query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None) -> Tensor:
    """Return attention of all cells on all cells, `[B, T, S, heads, d]`.

    Args:
        query: `[B, T, S, heads, d]`, as key and value.
        key: see query.
        value: see query.
        keys: real frames `[B, T]`; a sample with none sees all, so that its padding stays finite.
    """
    mask = None
    if keys is not None:
        open_ = (keys | ~keys.any(dim=1, keepdim=True)).to(query.device)
        mask = open_.repeat_interleave(query.shape[2], dim=1)[:, None, None]  # [B, 1, 1, T·S]
    q, k, v = (x.flatten(1, 2) for x in (query, key, value))
    return _attend(q, k, v, mask).reshape(query.shape)


def windowed(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Return attention in which each frame sees `window` frames, itself the last, without a mask.

    Frames with fewer before them go one by one, the others as one batch.

    Args:
        query: of the new frames, `[B, T, S, heads, d]`.
        key: of n frames before them and of the new ones, `[B, n + T, S, heads, d]`.
        value: as key.
        window: ≥ 1.
    """
    new, before = query.shape[1], key.shape[1] - query.shape[1]
    short = min(max(window - 1 - before, 0), new)
    parts = []
    for i in range(short):
        last = before + i + 1
        past = [x[:, :last].flatten(1, 2) for x in (key, value)]
        parts.append(_attend(query[:, i], *past)[:, None])
    if short < new:
        parts.append(_batched(query[:, short:], key, value, window))
    return torch.cat(parts, dim=1)


def _batched(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    def gather(x: Tensor) -> Tensor:
        spans = x[:, x.shape[1] - query.shape[1] - window + 1 :].unfold(1, window, 1)
        return spans.movedim(-1, 2).flatten(2, 3).flatten(0, 1)  # [B·T, window·S, heads, d]

    seen = _attend(query.flatten(0, 1), gather(key), gather(value))
    return seen.reshape(query.shape)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return attention of `[B, L, heads, d]` on `[B, M, heads, d]`."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


# ⟦plugins/compressors/conv_stem.py⟧ The pixel stem of `conv`: frames instead of latents into the HR branch.


class PixelStem(nn.Module):
    """Frames to one feature cell a latent cell: a conv whose kernel and stride are the VAE's.

    With a 4×8×8 VAE that is 4 frames of 8×8 pixels a cell; frame 0, alone in its latent, is
    repeated. Each cell sees its own pixels only, so that any chunk of a history gives its cells.
    """

    def __init__(self, width: int, geometry: Geometry) -> None:
        super().__init__()
        stride = geometry.vae_stride
        self.kernel = (stride.time, stride.height, stride.width)
        self.weight = nn.Parameter(torch.empty(width, 3, *self.kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def forward(self, history: History) -> Tensor:
        """Return features `[B, C, T, H, W]` of a window or chunk.

        An empty window gives one frame that is no one's, so that the graph holds the parameters.

        Raises:
            ValueError: the history has no pixels, or not those of its latents.
        """
        frames = from_bytes(self._frames(history), self.weight.dtype)
        return F.conv3d(frames, self.weight, self.bias, stride=self.kernel)

    def _frames(self, history: History) -> Tensor:
        """Return whole cells of frames, uint8 `[B, 3, t·T, h·H, w·W]`."""
        pixels, size, first = history.pixels, history.size, history.offset == 0
        if pixels is None:
            raise ValueError("conv with stem=pixels needs the pixels; the history has none")
        time, height, width = self.kernel
        rows, columns = size.height * height, size.width * width
        if not size.time:
            return pixels.new_zeros(history.batch, 3, time, rows, columns)
        due = time * size.time - (time - 1 if first else 0)
        if pixels.shape[2] != due or pixels.shape[3] > rows or pixels.shape[4] > columns:
            found = "×".join(map(str, pixels.shape[2:]))
            raise ValueError(f"latents {size} come with {due}×{rows}×{columns} pixels, not {found}")
        if first:
            pixels = torch.cat([pixels[:, :, :1].expand(-1, -1, time - 1, -1, -1), pixels], dim=2)
        return _filled(pixels, rows, columns)


def _filled(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """Return frames of `rows` × `columns`: the last row and column are repeated where some lack."""
    down, right = rows - pixels.shape[3], columns - pixels.shape[4]
    below = pixels[..., -1:, :].expand(*pixels.shape[:3], down, pixels.shape[4])
    pixels = torch.cat([pixels, below], dim=3) if down else pixels
    beside = pixels[..., -1:].expand(*pixels.shape[:4], right)
    return torch.cat([pixels, beside], dim=4) if right else pixels
