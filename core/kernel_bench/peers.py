"""What the encoder is measured beside: itself in plain torch, other memories, the VAE of its input.

`PlainEncoder` is the paper's encoder as one writes it down in torch, without a line of ours in it:
it takes the weights of the plugin `conv` by their names, and gives the same tokens.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from ..graphed import GraphedStep, cannot_record
from ..interfaces.compressor import Compressor, State
from ..interfaces.spec import CompressorSpec
from ..interfaces.streaming import TwoPartStep
from ..values.grid import Size3
from ..values.history import History
from ..values.memory import Memory
from .setups import EncoderSetup

Call = Callable[[], object]
Triple = tuple[int, int, int]
WINDOW = 4  # memory frames that the encoder's attention sees
ATTENTION = "hr.attention.layers.0"  # of the plugin `conv`
PUBLISHED = (16, 48)  # channels of latents of the VAEs of Wan 2.1 and HunyuanVideo, and of Wan 2.2
LARGE_PATCH = (2, 8, 8)  # latents that one token of FramePack's large patchifier stands for
FRAMEPACK = {"latents_clean": 1, "latents_clean_2x": 2, "latents_clean_4x": 16}  # latents read
HELIOS = {"patch_short": 1, "patch_mid": 2, "patch_long": 16}


class CannotRun(Exception):
    """A peer does not run here; the message says why, for whoever reads the result."""


@frozen(kw_only=True)
class Peer:
    """A way to do the encoder's work, or other work that stands for a history.

    Attributes:
        name: in the result.
        make: returns the call to time, of a history; raises CannotRun where it does not run.
        same: whether it gives the encoder's tokens, so that its error can be told.
    """

    name: str
    make: Callable[[EncoderSetup, History], Call]
    same: bool = True


class PlainEncoder(nn.Module):
    """The paper's encoder in plain torch: pad, conv, SiLU; attention of a window; 1×1; LR tokens.

    Args:
        setup: an encoder of the plugin `conv` with its default fields, at any widths.
        weights: the state of such an encoder.
    """

    patch_weight: Tensor
    patch_bias: Tensor

    def __init__(self, setup: EncoderSetup, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.setup = setup
        self.strides = _strides(setup)
        self.convs = nn.ModuleList(
            _conv(weights, f"hr.trunk.layers.{i}", stride) for i, stride in enumerate(self.strides)
        )
        self.norm = nn.LayerNorm(self.convs[-1].out_channels)
        self.qkv = _linear(weights, f"{ATTENTION}.qkv")
        self.mix = _linear(weights, f"{ATTENTION}.out")
        self.out = _linear(weights, "hr.out")
        self.norm.load_state_dict(_named(weights, f"{ATTENTION}.norm"))
        fit = setup.fit()
        self.register_buffer("patch_weight", fit.patch_weight.to(self.out.weight))
        self.register_buffer("patch_bias", fit.patch_bias.to(self.out.weight))
        self.heads: int = getattr(setup.spec, "heads")  # noqa: B009  # the spec is a plugin's
        self.eval()

    @classmethod
    def of(cls, setup: EncoderSetup, device: torch.device, dtype: torch.dtype) -> PlainEncoder:
        """Return the plain form of the encoder that a setup builds, of the same weights."""
        weights = setup.encoder(torch.device("cpu"), torch.float32).state_dict()
        return cls(setup, weights).to(device, dtype)

    def forward(self, latents: Tensor, lr: Tensor) -> Tensor:
        """Return the tokens `[B, T'·S, D]` of whole blocks of latents and their LR latents."""
        patch, rate = self.setup.geometry.patch, self.setup.rate
        x = _filled(latents, rate.height * patch.height, rate.width * patch.width)
        for conv in self.convs:
            assert isinstance(conv, nn.Conv3d)
            x = F.silu(conv(_led(x, conv.kernel_size[0] - 1)))
        x = x.flatten(3).permute(0, 2, 3, 1)  # [B, T', S, C]
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.mix(windowed(query, key, value, self.heads))
        tokens: Tensor = self.out(x)
        low = _filled(lr, patch.height, patch.width)
        own = F.conv3d(low, self.patch_weight, self.patch_bias, stride=self.patch_weight.shape[2:])
        return (tokens + own.flatten(3).permute(0, 2, 3, 1)).flatten(1, 2)


def _strides(setup: EncoderSetup) -> list[Triple]:
    """Return the strides of the convs: one at full size, then time halved, then space."""
    rate, patch = setup.rate, setup.geometry.patch
    time = rate.time.bit_length() - 1
    space = (rate.height * patch.height).bit_length() - 1
    return [(1, 1, 1), *[(2, 1, 1)] * time, *[(1, 2, 2)] * space]


def _conv(weights: dict[str, Tensor], name: str, stride: Triple) -> nn.Conv3d:
    weight = weights[f"{name}.weight"]
    kernel = (weight.shape[2], weight.shape[3], weight.shape[4])
    conv = nn.Conv3d(weight.shape[1], weight.shape[0], kernel, stride, padding=(0, 1, 1))
    conv.load_state_dict(_named(weights, name))
    return conv


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    own = _named(weights, name)
    linear = nn.Linear(own["weight"].shape[1], own["weight"].shape[0], bias="bias" in own)
    linear.load_state_dict(own)
    return linear


def _named(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return what stands behind a name, `weight` and such."""
    return {key[len(name) + 1 :]: x for key, x in weights.items() if key.startswith(f"{name}.")}


def _filled(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return latents whose last row and column are repeated up to multiples."""
    down, right = -x.shape[3] % rows, -x.shape[4] % columns
    return F.pad(x, (0, right, 0, down, 0, 0), mode="replicate") if down or right else x


def _led(x: Tensor, count: int) -> Tensor:
    """Return frames led by so many copies of the first, as a causal conv pads."""
    return torch.cat([x[:, :, :1].expand(-1, -1, count, -1, -1), x], dim=2)


def windowed(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return attention `[B, T, S, C]` in which a frame sees itself and the 3 before it."""
    frames = query.shape[1]

    def split(x: Tensor) -> Tensor:
        parted: Tensor = x.unflatten(-1, (heads, -1))
        return parted.transpose(-2, -3)  # [..., heads, S, d]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(-2, -3)

    first = min(WINDOW - 1, frames)
    parts = [
        attend(query[:, i], key[:, : i + 1].flatten(1, 2), value[:, : i + 1].flatten(1, 2))[:, None]
        for i in range(first)
    ]
    if first < frames:
        spans = [
            x.unfold(1, WINDOW, 1).permute(0, 1, 4, 2, 3).flatten(0, 1).flatten(1, 2)
            for x in (key, value)
        ]
        rest = attend(query[:, first:].flatten(0, 1), *spans)
        parts.append(rest.unflatten(0, (query.shape[0], -1)))
    return torch.cat(parts, dim=1).flatten(-2)


def encoder_peers(device: torch.device, *, compiles: bool, tiny: bool) -> list[Peer]:
    """Return the ways to run the encoder in plain torch that are of interest on a device.

    Args:
        device: that it runs on.
        compiles: whether to compile it, which takes a minute and more.
        tiny: compile to nothing but what was traced.
    """
    peers = [
        Peer(name="eager NCDHW", make=eager),
        Peer(name="eager channels_last_3d", make=channels_last),
    ]
    if device.type == "cuda":
        peers.append(Peer(name="channels_last_3d, CUDA graph", make=graphed))
    if compiles:
        peers.append(Peer(name="torch.compile max-autotune", make=traced if tiny else autotuned))
    return peers


def eager(setup: EncoderSetup, history: History) -> Call:
    """Return the call in torch's default layout."""
    plain, latents, lr = _plain(setup, history)
    return lambda: plain(latents, lr)


def channels_last(setup: EncoderSetup, history: History) -> Call:
    """Return the call with channels last in weights and latents, each conv's bias inside it."""
    plain, latents, lr = _plain(setup, history, torch.channels_last_3d)
    return lambda: plain(latents, lr)


def graphed(setup: EncoderSetup, history: History) -> Call:
    """Return the replay of a CUDA graph of the call with channels last."""
    return cuda_graph(channels_last(setup, history))


def cuda_graph(call: Call) -> Call:
    """Return the replay of a CUDA graph of a call.

    Raises:
        CannotRun: the call cannot be captured, such as one that reads a value on the host.
    """
    aside = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(aside):
            for _ in range(3):
                call()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            kept = call()
    except RuntimeError as error:
        raise CannotRun(f"it cannot be captured: {str(error).splitlines()[0]}") from error

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def graphed_step(encoder: Compressor[CompressorSpec], state: State, chunk: History) -> Call:
    """Return the next step of a stream by `GraphedStep`, its chunks all of the same numbers.

    Args:
        encoder: that made the state.
        state: whose window is full.
        chunk: that follows it.

    Raises:
        CannotRun: there are no CUDA graphs here, or the step cannot be recorded as one.
    """
    if why := cannot_record(chunk.latents.device):
        raise CannotRun(f"there is no CUDA graph: {why}")
    if not isinstance(encoder, TwoPartStep):
        raise CannotRun("its step is not in two parts")
    graphed = GraphedStep(encoder, chunk.size.time)
    state, _ = graphed.step(state, chunk)
    if not graphed.recorded:
        raise CannotRun("its step was not recorded; the log says why")

    def following() -> Memory:
        nonlocal state
        state, memory = graphed.step(state, attrs.evolve(chunk, offset=int(state["seen"][0])))
        return memory

    return following


def by_reference(
    setup: EncoderSetup, device: torch.device, dtype: torch.dtype
) -> Compressor[CompressorSpec]:
    """Return the encoder of a setup, of the same weights, with plain torch for its kernels.

    Raises:
        CannotRun: without a GPU it is the reference as it stands.
    """
    if device.type != "cuda":
        raise CannotRun("kernels are for GPUs, ours is the reference here")
    plain: dict[str, Any] = {"kernels": "reference"}
    changed = attrs.evolve(setup, spec=attrs.evolve(setup.spec, **plain))
    return changed.encoder(device, dtype).eval()


def autotuned(setup: EncoderSetup, history: History) -> Call:
    """Return the call as torch.compile makes it under max-autotune, channels last.

    Raises:
        CannotRun: there is no compiler.
    """
    if history.latents.device.type == "cuda":
        if find_spec("triton") is None:
            raise CannotRun("torch.compile needs Triton on a GPU, and it is not here")
    elif not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        raise CannotRun("torch.compile needs a C++ compiler on a CPU, and there is none")
    return _compiled(setup, history, mode="max-autotune-no-cudagraphs", backend="inductor")


def traced(setup: EncoderSetup, history: History) -> Call:
    """Return the call traced by torch.compile, and run as it was traced."""
    return _compiled(setup, history, mode=None, backend="aot_eager")


def _compiled(setup: EncoderSetup, history: History, mode: str | None, backend: str) -> Call:
    torch.compiler.reset()
    plain, latents, lr = _plain(setup, history, torch.channels_last_3d)
    fast = torch.compile(plain, mode=mode, backend=backend, dynamic=False)
    return lambda: fast(latents, lr)


def _plain(
    setup: EncoderSetup, history: History, layout: torch.memory_format = torch.contiguous_format
) -> tuple[PlainEncoder, Tensor, Tensor]:
    latents = history.latents
    plain = PlainEncoder.of(setup, latents.device, latents.dtype)
    plain.convs.to(memory_format=layout)  # type: ignore[call-overload]
    return plain, latents.contiguous(memory_format=layout), history.lr[setup.rate]


def other_peers() -> list[Peer]:
    """Return other memories of a history, and the VAE that makes the LR latents of a second."""
    return [
        Peer(name="FramePack's history patches", make=framepack, same=False),
        Peer(name="Helios's history patches", make=helios, same=False),
        Peer(name="large patchifier of all history", make=large_patchifier, same=False),
        Peer(name="its GEMM alone", make=patchifier_gemm, same=False),
        Peer(name="VAE of a second of LR video", make=lr_vae, same=False),
    ]


def framepack(setup: EncoderSetup, history: History) -> Call:
    """Return diffusers' patches of FramePack on the newest 1 + 2 + 16 latents."""
    from diffusers.models.transformers import transformer_hunyuan_video_framepack as released

    shapes, latents = setup.geometry, history.latents
    embed = released.HunyuanVideoHistoryPatchEmbed(shapes.channels, shapes.width)
    embed = embed.to(latents.device, latents.dtype)
    chunks = dict(zip(FRAMEPACK, _newest(latents, list(FRAMEPACK.values())), strict=True))
    return lambda: embed(**chunks)


def helios(setup: EncoderSetup, history: History) -> Call:
    """Return the three convs of diffusers' Helios that make tokens of the newest 19 latents."""
    from diffusers import HeliosTransformer3DModel

    shapes, latents = setup.geometry, history.latents
    with torch.device("meta"):
        model = HeliosTransformer3DModel(
            num_attention_heads=1,
            attention_head_dim=shapes.width,
            in_channels=shapes.channels,
            text_dim=8,
            ffn_dim=8,
            num_layers=0,
            rope_dim=(2, 2, 2),
        )
    convs = [_filled_conv(getattr(model, name), latents) for name in HELIOS]
    chunks = [
        _padded(chunk, conv.stride)  # type: ignore[arg-type]
        for conv, chunk in zip(convs, _newest(latents, list(HELIOS.values())), strict=True)
    ]
    return lambda: [conv(chunk) for conv, chunk in zip(convs, chunks, strict=True)]


def _newest(latents: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return chunks of so many latents, the newest first; fewer where a history has no more."""
    end, chunks = latents.shape[2], []
    for count in counts:
        begin = max(0, end - count)
        chunks.append(latents[:, :, begin:end] if end else latents[:, :, :1])
        end = begin
    return chunks


def _filled_conv(conv: nn.Conv3d, like: Tensor) -> nn.Conv3d:
    conv = conv.to_empty(device=like.device).to(like.dtype)
    for parameter in conv.parameters():
        nn.init.normal_(parameter, std=0.02)
    return conv


def _padded(x: Tensor, stride: Triple) -> Tensor:
    """Return latents that a stride divides, their last ones repeated."""
    time, rows, columns = (-n % s for n, s in zip(x.shape[2:], stride, strict=True))
    return F.pad(x, (0, columns, 0, rows, 0, time), mode="replicate")


def large_patchifier(setup: EncoderSetup, history: History) -> Call:
    """Return one conv of 2×8×8 latents over all history, FramePack's large patchifier."""
    shapes, x = setup.geometry, _padded(history.latents, LARGE_PATCH)
    conv = nn.Conv3d(shapes.channels, shapes.width, LARGE_PATCH, LARGE_PATCH).to(x.device, x.dtype)
    return lambda: conv(x)


def patchifier_gemm(setup: EncoderSetup, history: History) -> Call:
    """Return the product that the large patchifier is, of patches that lie ready."""
    shapes, x = setup.geometry, _padded(history.latents, LARGE_PATCH)
    high, wide, deep = LARGE_PATCH[1], LARGE_PATCH[2], LARGE_PATCH[0]
    cells = x.shape[2] // deep * (x.shape[3] // high) * (x.shape[4] // wide)
    patches = x.reshape(cells, shapes.channels * deep * high * wide)  # order does not matter
    linear = nn.Linear(patches.shape[1], shapes.width).to(x.device, x.dtype)
    return lambda: linear(patches)


def lr_vae(setup: EncoderSetup, history: History) -> Call:
    """Return the encoding of as many LR frames as a second brings, by the backbone's VAE class.

    Random weights of the published sizes; a small one where the latents are no published VAE's.

    Raises:
        CannotRun: the VAE is of a published size, and this is a CPU.
    """
    latents = history.latents
    if latents.device.type == "cpu" and setup.geometry.channels in PUBLISHED:
        raise CannotRun("a VAE of the published size takes minutes a run on a CPU")
    vae: Any = nn.Module.to(_vae(setup), latents.device, latents.dtype)
    vae.eval()
    frames = 1 + setup.geometry.vae_stride.time * (setup.second // setup.rate.time - 1)
    low = setup.rate.lr_size(history.size)
    stride = setup.geometry.vae_stride
    shape = (1, 3, frames, low.height * stride.height, low.width * stride.width)
    pixels = torch.rand(shape, device=latents.device).to(latents.dtype) * 2 - 1
    return lambda: vae.encode(pixels).latent_dist.mean


def _vae(setup: EncoderSetup) -> Any:
    from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan

    channels, space = setup.geometry.channels, setup.geometry.vae_stride.height
    if setup.name.startswith("hunyuan"):
        return AutoencoderKLHunyuanVideo()
    if channels == 16:
        return AutoencoderKLWan()
    if channels == 48:
        return AutoencoderKLWan(
            base_dim=160,
            decoder_base_dim=256,
            z_dim=48,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=space,
            latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48,
        )
    return AutoencoderKLWan(base_dim=4, z_dim=channels, num_res_blocks=1)


def same_tokens(encoder: Compressor[CompressorSpec], history: History) -> Call:
    """Return the call of the plugin itself: its own path, whatever that is."""
    return lambda: encoder(history).parts[0].tokens


def plain_convs(setup: EncoderSetup, history: History) -> Iterator[tuple[nn.Conv3d, Tensor]]:
    """Yield each conv alone with its input as it reads it, led in time, channels last."""
    plain, x, _ = _plain(setup, history, torch.channels_last_3d)
    patch, rate = setup.geometry.patch, setup.rate
    x = _filled(x, rate.height * patch.height, rate.width * patch.width)
    for conv in plain.convs:
        assert isinstance(conv, nn.Conv3d)
        x = _led(x, conv.kernel_size[0] - 1).contiguous(memory_format=torch.channels_last_3d)
        yield conv, x
        x = F.silu(conv(x))


def two_largest(setup: EncoderSetup, size: Size3, width_of: Sequence[int], item: int) -> int:
    """Return the bytes of the two largest activations that must live together.

    Args:
        setup: the encoder.
        size: of the history's latents.
        width_of: output channels of each conv.
        item: bytes of a number.
    """
    patch, rate = setup.geometry.patch, setup.rate
    high = size.height + -size.height % (rate.height * patch.height)
    wide = size.width + -size.width % (rate.width * patch.width)
    time, sizes = size.time, [setup.geometry.channels * size.time * high * wide]
    for width, (t, h, w) in zip(width_of, _strides(setup), strict=True):
        time, high, wide = 1 + (time - 1) // t, high // h, wide // w
        sizes.append(width * time * high * wide)
    return item * max(a + b for a, b in zip(sizes, sizes[1:], strict=False))
