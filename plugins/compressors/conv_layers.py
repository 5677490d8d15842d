"""Layers of the encoders' HR branches: causal convs, attention over memory frames, a pixel stem.

All of them stream: a conv goes on from the frames that it will read again (`conv.<i>` in the
state), windowed attention from the keys and values of its window (`attention.<i>`).

Convs run by the reference or by Triton (`Conv.kernels`). By Triton they hand each other frame
buffers, channels last, the tail in front; states are the same either way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from attrs import frozen
from einops import rearrange, repeat
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.base import Interface
from ...core.interfaces.codec import from_bytes
from ...core.interfaces.streaming import own_copy
from ...core.values.grid import Geometry, Rate, Size3
from ...core.values.history import History
from ...kernels import conv3d_act as fused
from ...kernels import out_tokens as fused_tokens
from ...kernels.chunk_attention import chunk_attention
from ...kernels.dispatch import KernelError, call_dtype
from ...kernels.reference import AttentionWeights, attend, conv3d_act, out_tokens, split_heads
from .frames import checked_pixels, fill_frames, repeat_ends
from .specs import Conv
from .tokens import LrBranch

Triple = tuple[int, int, int]
SILU_GAIN = 1.68  # 1 / rms of SiLU(z), z ~ N(0, 1): without norms the signal keeps its size


@frozen(kw_only=True)
class ConvShape:
    """Shape of one conv: widths, kernel and stride in (time, height, width)."""

    inputs: int
    outputs: int
    kernel: Triple
    stride: Triple


def conv_shapes(spec: Conv, geometry: Geometry) -> list[ConvShape]:
    """Return the convs: conv_in, one a halving; stride 1 to the last width where halvings are few.

    Raises:
        UserError: rate × patch is no power of two, so that halving cannot reach it.

    Source: method.md §2 (64→128→256→512, time strides first, then space).
    """
    first = geometry.channels if spec.stem == "latents" else spec.channels[0]
    strides = _halvings(spec.rate, geometry.patch)
    last = len(spec.channels) - 1
    widths = [spec.channels[min(i, last)] for i in range(len(strides) + 1)]
    if len(strides) < last:
        widths.append(spec.channels[last])
    steps = [(1, 1, 1), *strides, (1, 1, 1)][: len(widths)]
    return [
        ConvShape(inputs=a, outputs=b, kernel=_kernel(stride, spec.kernel), stride=stride)
        for a, b, stride in zip([first, *widths[:-1]], widths, steps, strict=True)
    ]


def _halvings(rate: Rate, patch: Size3) -> list[Triple]:
    """Return the strides of the strided convs, time first: together (T, 2H, 2W) for a 2×2 patch."""
    time = _log2(rate.time)
    height, width = _log2(rate.height * patch.height), _log2(rate.width * patch.width)
    space = [(1, 1 + (i < height), 1 + (i < width)) for i in range(max(height, width))]
    return [(2, 1, 1)] * time + space


def _log2(cells: int) -> int:
    if cells & (cells - 1):
        raise UserError(f"conv halves: rate × patch must be a power of two, not {cells}")
    return cells.bit_length() - 1


def _kernel(stride: Triple, space: int) -> Triple:
    return 3, space if stride[1] == 2 else 3, space if stride[2] == 2 else 3


class CausalConv(Interface):
    """One conv with SiLU: output j of a stride-s conv reads inputs up to s·j, never later ones."""

    def __init__(self, shape: ConvShape, *, norm: bool, replicate: bool) -> None:
        super().__init__()
        self.shape = shape
        self.replicate = replicate
        self.weight = nn.Parameter(torch.empty(shape.outputs, shape.inputs, *shape.kernel))
        self.bias = nn.Parameter(torch.zeros(shape.outputs))
        self.norm = nn.Parameter(torch.ones(shape.outputs)) if norm else None
        self._packed: tuple[tuple[int, int, torch.dtype], Tensor] | None = None
        fan_in = self.weight[0].numel()
        nn.init.normal_(self.weight, std=SILU_GAIN / fan_in**0.5)

    def forward(self, x: Tensor, tail: Tensor | None) -> Tensor:
        """Return the outputs of new frames `[B, C, T, H, W]`; tail None: they start the video."""
        before = self._start(x) if tail is None else tail
        return conv3d_act(
            x, self.weight, self.bias, stride=self.shape.stride, tail=before, norm=self.norm
        )

    def next_tail(self, x: Tensor, tail: Tensor | None) -> Tensor:
        """Return the k − s frames that the next output will read again, as a copy of their own."""
        count = self.shape.kernel[0] - self.shape.stride[0]
        if x.shape[2] < count:
            x = torch.cat([self._start(x) if tail is None else tail, x], dim=2)
        return own_copy(x[:, :, x.shape[2] - count :])

    def buffer(self, x: Tensor, tail: Tensor | None) -> Tensor:
        """Return new frames with the frames before them in front, channels last in memory."""
        before = self._start(x) if tail is None else tail
        frames = torch.cat([before.to(x.dtype), x], dim=2)
        return frames.contiguous(memory_format=torch.channels_last_3d)

    def ahead(self, tail: Tensor | None) -> fused.Ahead:
        """Return what stands in front of the new frames in the buffer of this conv."""
        count = self.shape.kernel[0] - 1 if tail is None else tail.shape[2]
        return fused.Ahead(frames=count, replicate=self.replicate, tail=tail)

    def tail_of(self, buffer: Tensor) -> Tensor:
        """Return the k − s frames of a buffer that the next output will read again, a copy."""
        count = self.shape.kernel[0] - self.shape.stride[0]
        tail = buffer[:, :, buffer.shape[2] - count :]
        return tail.clone(memory_format=torch.channels_last_3d)

    def into_buffer(
        self, buffer: Tensor, ahead: fused.Ahead | None, kernels: str, *, half_sums: bool = False
    ) -> Tensor:
        """Return the buffer of the next conv, of this one's; `ahead` None: this is the last."""
        return fused.conv3d_act(
            buffer, self._packed_weight(call_dtype(buffer)), self.bias, stride=self.shape.stride,
            norm=self.norm, ahead=ahead, half_sums=half_sums, kernels=kernels,
        )  # fmt: skip

    def _packed_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as the kernel reads it; what is not trained is packed once."""
        weight = self.weight
        trained = weight.requires_grad and torch.is_grad_enabled()
        # inference tensors do not say whether they changed
        if trained or torch.compiler.is_compiling() or weight.is_inference():
            return weight.to(dtype)
        key = (weight.data_ptr(), weight._version, dtype)
        if self._packed is None or self._packed[0] != key:
            packed = weight.detach().to(dtype, memory_format=torch.channels_last_3d)
            self._packed = key, packed
        return self._packed[1]

    def _start(self, x: Tensor) -> Tensor:
        """Return the frames before a video's first: copies of it, or zeros."""
        first = x[:, :, :1] if self.replicate else torch.zeros_like(x[:, :, :1])
        return first.expand(-1, -1, self.shape.kernel[0] - 1, -1, -1)


class ConvTrunk(Interface):
    """All convs of the HR branch; its state is one tail a layer, of constant size.

    Public: any compressor may build one of a `Conv` spec and a geometry, and gets its kernels.
    """

    def __init__(self, spec: Conv, geometry: Geometry) -> None:
        super().__init__()
        self.kernels = spec.kernels
        self.half_sums = spec.sums == "float16"
        replicate = spec.time_padding == "replicate"
        self.layers = nn.ModuleList(
            CausalConv(shape, norm=spec.norm == "rms", replicate=replicate)
            for shape in conv_shapes(spec, geometry)
        )

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which kernels that were asked for cannot run.

        Raises:
            UserError: `kernels` is triton, and it cannot run there; the message says why.
        """
        with _as_user_error():
            fused.check_device(self.kernels, device)

    @property
    def convs(self) -> list[CausalConv]:
        """The convs, first to last."""
        return [layer for layer in self.layers if isinstance(layer, CausalConv)]

    def by_triton(self, x: Tensor) -> bool:
        """Return whether frames like x `[B, C, T, H, W]` go through Triton, in frame buffers.

        Raises:
            UserError: `kernels` is triton, and it cannot run on the device of x.
        """
        with _as_user_error():
            return fused.runs(self.kernels, x.device, call_dtype(x))

    def forward(self, x: Tensor, past: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features `[B, C', T', H', W']` of new frames, and the tails to go on from.

        Args:
            x: `[B, C, T, H, W]`, H and W multiples of the strides' product; T completes blocks.
            past: the tails that the call before returned; empty at the start of a video.

        Raises:
            UserError: `kernels` is triton, and it cannot run on the device of x.
        """
        if self.by_triton(x):
            return self._in_buffers(x, past)
        tails: dict[str, Tensor] = {}
        for index, layer in enumerate(self.convs):
            name = f"conv.{index}"
            tails[name] = layer.next_tail(x, past.get(name))
            x = layer(x, past.get(name))
        return x, tails

    def _in_buffers(
        self, x: Tensor, past: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `forward` returns; each conv writes the buffer that the next one reads."""
        dtype = call_dtype(x)
        if not (self.half_sums and fused.halves(x.device)):
            return self._through(x.to(dtype), past)
        with torch.autocast(x.device.type, enabled=False):
            features, tails = self._through(x.half(), past)
            return features.to(dtype), {name: tail.to(dtype) for name, tail in tails.items()}

    def _through(self, x: Tensor, past: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        tails: dict[str, Tensor] = {}
        buffer = self.convs[0].buffer(x, past.get("conv.0"))
        for index, layer in enumerate(self.convs):
            tails[f"conv.{index}"] = layer.tail_of(buffer)
            following = self.convs[index + 1 : index + 2]
            ahead = following[0].ahead(past.get(f"conv.{index + 1}")) if following else None
            buffer = layer.into_buffer(buffer, ahead, self.kernels, half_sums=self.half_sums)
        return buffer, tails


@contextlib.contextmanager
def _as_user_error() -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        raise UserError(f"compressor.{error}") from error


class PixelStem(nn.Module):
    """Frames to one feature cell a latent cell: a conv whose kernel and stride are the VAE's.

    With a 4×8×8 VAE that is 4 frames of 8×8 pixels a cell; frame 0, alone in its latent, is
    repeated. Each cell sees its own pixels only, so that any chunk of a history gives its cells.
    """

    def __init__(self, width: int, geometry: Geometry) -> None:
        super().__init__()
        self.stride = geometry.vae_stride
        self.kernel = (self.stride.time, self.stride.height, self.stride.width)
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
        pixels = checked_pixels(history, self.stride, "conv with stem=pixels")
        time, height, width = self.kernel
        rows, columns = history.size.height * height, history.size.width * width
        if not history.size.time:
            return pixels.new_zeros(history.batch, 3, time, rows, columns)
        if history.offset == 0:
            pixels = repeat_ends(pixels, before=time - 1)
        return fill_frames(pixels, rows, columns)


class FrameAttention(Interface):
    """One layer: x + out(attention(qkv(norm(x)))), the frames of a window seen as a whole.

    Public: any compressor may build one, and gets its kernel for chunks of few frames.

    Args:
        width: C, of the features.
        heads: of the attention.
        head_width: of each of them.
        kernels: what runs it where frames see a window: auto, reference or triton.
    """

    def __init__(self, width: int, heads: int, head_width: int, kernels: str = "auto") -> None:
        super().__init__()
        self.heads = heads
        self.kernels = kernels
        self.norm = nn.LayerNorm(width)
        # Softmax cancels a bias of keys: it would be a parameter that never moves.
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)

    def forward(
        self, x: Tensor, past: Tensor | None, window: int | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return new features of frames, and the keys and values to go on from.

        Args:
            x: `[B, T, S, C]`: T frames of S cells.
            past: keys and values `[2, B, n, S, heads, d]` of the n ≤ window − 1 frames before.
            window: frames that a frame sees, itself the last of them; None: all, also later ones.
            real: which frames are real, `[B, T]`; only for window None, None: all are.

        Raises:
            UserError: `kernels` is triton, and it cannot run on the device of x.
        """
        if window is None:
            query, key, value = split_heads(self.qkv(self.norm(x)), self.heads)
            mixed = full_attention(query, key, value, real)
            return x + self.out(mixed.flatten(-2)), key.new_zeros(0)
        weights = AttentionWeights(
            norm=self.norm.weight, norm_bias=self.norm.bias, qkv=self.qkv.weight,
            out=self.out.weight, out_bias=self.out.bias,
        )  # fmt: skip
        with _as_user_error():
            return chunk_attention(
                x, past, weights, heads=self.heads, window=window, kernels=self.kernels
            )


class AttentionStack(Interface):
    """The attention layers of an encoder; the state holds a window's keys and values a layer.

    Public: any compressor may build one of a `Conv` spec, for features of its last width, and gets
    its kernels.
    """

    def __init__(self, spec: Conv) -> None:
        super().__init__()
        self.window = None if spec.attention == "full" else spec.window
        count = 0 if spec.attention == "none" else spec.layers
        self.layers = nn.ModuleList(
            FrameAttention(spec.channels[-1], spec.heads, spec.head_width, spec.kernels)
            for _ in range(count)
        )

    def forward(
        self, x: Tensor, past: Mapping[str, Tensor], real: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features `[B, T, S, C]` of new frames, and the state to go on from.

        Args:
            x: features of new frames, `[B, T, S, C]`.
            past: the state that the call before returned; empty at the start of a video.
            real: which frames are real, `[B, T]`; only for full attention, None: all are.

        Raises:
            UserError: `kernels` is triton, and it cannot run on the device of x.
        """
        state: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            name = f"attention.{index}"
            x, state[name] = layer(x, past.get(name), self.window, real)
        return x, {} if self.window is None else state


def full_attention(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
    """Return attention of all cells on all cells, `[B, T, S, heads, d]`.

    Args:
        query: `[B, T, S, heads, d]`, as key and value.
        key: see query.
        value: see query.
        real: real frames `[B, T]`; a sample with none sees all, so that its padding stays finite.
    """
    mask = None
    if real is not None:
        seen = (real | ~real.any(dim=1, keepdim=True)).to(query.device)
        mask = repeat(seen, "b t -> b 1 1 (t s)", s=query.shape[2])
    q, k, v = (rearrange(x, "b t s heads d -> b (t s) heads d") for x in (query, key, value))
    return attend(q, k, v, mask).reshape(query.shape)


class TokenHead(Interface, nn.Linear):
    """The last linear of an encoder, features to tokens, and the DiT's own tokens added to them.

    Public: any compressor may build one beside an `LrBranch`, and gets its kernel, in which both
    sums are one.

    Args:
        width: C, of the features.
        fit_width: D, of the tokens.
        zero: it starts at zero, so that a new encoder gives the DiT's own tokens alone.
        kernels: what runs it beside LR latents: auto, reference or triton.
    """

    def __init__(self, width: int, fit_width: int, *, zero: bool, kernels: str = "auto") -> None:
        super().__init__(width, fit_width)
        self.kernels = kernels
        if zero:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    def with_lr(self, hidden: Tensor, branch: LrBranch, lr: Tensor, size: Size3) -> Tensor:
        """Return the tokens `[B, T', S, D]` of features, plus those of the LR latents.

        Args:
            hidden: features `[B, T', S, C]`, S = rows × columns of the memory's grid.
            branch: of the LR latents.
            lr: LR latents `[B, L, T', h, w]`, one a memory frame.
            size: of the history.

        Raises:
            UserError: `kernels` is triton, and it cannot run on the device of the features.
        """
        with _as_user_error():
            triton = fused_tokens.runs(self.kernels, hidden.device, call_dtype(hidden))
        if not triton:
            return out_tokens(hidden, self.weight, self.bias, branch.tokens(lr, size))
        grid = branch.rate.token_grid(size, branch.geometry.patch, branch.rounding)
        return fused_tokens.out_tokens(
            hidden, self.weight, self.bias, lr.to(branch.patch_weight.dtype),
            branch.patch_weight, branch.patch_bias,
            grid=(grid.height, grid.width), kernels=self.kernels,
        )  # fmt: skip
