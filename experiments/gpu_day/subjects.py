"""Which published backbones are measured and on how much video; their random weights and inputs."""

from __future__ import annotations

import attrs
import torch
from accelerate import init_empty_weights
from attrs import frozen
from torch import Tensor

from ...backbones.hunyuan.specs import Hunyuan
from ...backbones.specs import DiTSpec
from ...backbones.texts.specs import LlamaClip, Umt5
from ...backbones.wan.specs import PublishedWan
from ...core.errors import LongtakeError
from ...core.experiment import Experiment
from ...core.interfaces.backbone import Backbone
from ...core.interfaces.spec import LoRA
from ...core.registry import registry
from ...core.values.grid import Rate, Size3, ceil_div
from ...core.values.history import History
from ...core.values.memory import Memory, Part, token_places
from ...plugins.compressors.specs import Conv
from ...plugins.maskers.specs import Noise
from ..paper import paper
from ..sizes import published

INITIAL_STD = 0.02  # of weights, as transformers begin
LARGE_STRIDE = 16  # stride of a VAE whose latents the paper compresses by 2×2×2 instead of 4×4×2


@frozen(kw_only=True)
class Extent:
    """How much every backbone is given to do.

    Attributes:
        seconds: of video that one denoising step works on, beside its first frame.
        height: of a frame, pixels.
        width: of a frame, pixels.
        tokens: lengths of memory.
        targets: latents that a Stage I step retrieves, K.
        rank: of its LoRA.
        encoder: what Stage I trains, at the rate of the backbone.
        repeats: timed runs of every measurement.
    """

    seconds: float = 5.0
    height: int = 480
    width: int = 832
    tokens: tuple[int, ...] = (5_000, 20_000)
    targets: int = 4
    rank: int = 128
    encoder: Conv = Conv()
    repeats: int = 3


TINY = Extent(
    seconds=0.5,
    height=64,
    width=96,
    tokens=(10, 40),
    targets=2,
    rank=2,
    encoder=Conv(channels=(4, 6), heads=2, head_width=4),
    repeats=1,
)


@frozen(kw_only=True)
class Subject:
    """A published backbone without its weights, and how much it is given to do."""

    name: str
    spec: DiTSpec
    extent: Extent = Extent()

    @property
    def rate(self) -> Rate:
        """The paper's rate, at which 20 s of 480×832 are 5k to 6k tokens."""
        wide = self.spec.geometry.vae_stride.height >= LARGE_STRIDE
        return Rate.parse("2x2x2" if wide else "4x4x2")

    @property
    def segment(self) -> Size3:
        """The latents of one segment: 21 for 5 s at 16 fps (81 frames), 31 at 24 (121 frames)."""
        shapes = self.spec.geometry
        return self.latents(1 + round(self.extent.seconds * shapes.fps / shapes.vae_stride.time))

    @property
    def cells(self) -> int:
        """How many tokens one memory frame has."""
        return self.rate.token_grid(self.latents(1), self.spec.geometry.patch).cells

    @property
    def tokens_a_second(self) -> int:
        """How many memory tokens a second of video adds, in whole memory frames."""
        shapes = self.spec.geometry
        frames = round(shapes.fps / shapes.vae_stride.time / self.rate.time)
        return self.cells * max(1, frames)

    @property
    def text_length(self) -> int:
        """How many tokens a prompt of full length has.

        Raises:
            LongtakeError: the text encoder's spec says none.
        """
        text = self.spec.text_encoder
        if not isinstance(text, Umt5 | LlamaClip):
            raise LongtakeError(f"{type(text).__name__} says no length of a prompt")
        return text.length

    def latents(self, time: int) -> Size3:
        """Return the size of so many latents of these frames."""
        extent = self.extent
        size = self.spec.geometry.latent_size(frames=1, height=extent.height, width=extent.width)
        return attrs.evolve(size, time=time)

    def past(self, tokens: int) -> Size3:
        """Return the latents of the shortest history with so many tokens, its last block whole."""
        return self.latents(1 + (max(1, ceil_div(tokens, self.cells)) - 1) * self.rate.time)

    def isolated(self, attention: str) -> DiTSpec:
        """Return the spec with a memory that can be cached, and so has a time of its own."""
        time = self.spec.memory_time or 0.0
        return attrs.evolve(self.spec, attention=attention, memory_time=time)

    def experiment(self, *, remembers: bool) -> Experiment:
        """Return the paper's Stage I on this backbone with one sample a step, or LoRA alone."""
        whole, extent = paper(self.name, self.spec, self.rate), self.extent
        encoder = attrs.evolve(extent.encoder, rate=self.rate)
        lora = LoRA(rank=extent.rank, alpha=float(extent.rank))
        return attrs.evolve(
            whole,
            compressors=(encoder,) if remembers else (),
            masker=Noise(counts=(extent.targets,), low=0.2, clean=0.0),
            train=attrs.evolve(whole.train, batch=1, adapter=lora, precision="bf16"),
        )


def subjects(*, tiny: bool) -> list[Subject]:
    """Return the published backbones; of those whose shapes are alike, the last by name."""
    specs = published()
    alike = {spec.geometry: name for name, spec in sorted(specs.items())}
    chosen = {name: spec for name, spec in specs.items() if name in alike.values()}
    if tiny:
        return [Subject(name=n, spec=thin(spec), extent=TINY) for n, spec in chosen.items()]
    return [Subject(name=n, spec=spec) for n, spec in chosen.items()]


def thin(spec: DiTSpec) -> DiTSpec:
    """Return a spec of the same class whose model has a few thousand parameters.

    Raises:
        LongtakeError: its class is not one of those below.
    """
    if isinstance(spec, PublishedWan):
        short = attrs.evolve(spec.text_encoder, width=8, length=8)
        return attrs.evolve(spec, heads=2, head_width=12, layers=2, ffn=16, text_encoder=short)
    if isinstance(spec, Hunyuan):
        return attrs.evolve(
            spec,
            heads=2,
            head_width=12,
            layers=1,
            single_layers=1,
            refiner_layers=1,
            rope=(4, 4, 4),
            text_encoder=attrs.evolve(spec.text_encoder, width=8, length=8, pooled=8),
        )
    raise LongtakeError(f"{type(spec).__name__} has no small form")


def random_backbone(spec: DiTSpec, device: torch.device, seed: int = 0) -> Backbone:
    """Return the real model of a spec with random weights, drawn on the device in their own types.

    It is loaded on the meta device first, where types are settled (what diffusers keeps in
    float32 stays so) and nothing is filled. Buffers are computed as ever.

    Raises:
        LongtakeError: a parameter or buffer was left without values.
    """
    with init_empty_weights():
        backbone: Backbone = registry().load(spec).load(spec)
    generator = torch.Generator(device).manual_seed(seed)
    state = {
        name: _random_weight(name, x, device, generator) if x.is_meta else x
        for name, x in backbone.state_dict().items()
    }
    backbone.load_state_dict(state, assign=True)
    named = (*backbone.named_parameters(), *backbone.named_buffers())
    empty = [name for name, x in named if x.is_meta]
    if empty:
        raise LongtakeError(f"{type(backbone).__name__}: {len(empty)} empty, such as {empty[0]}")
    return backbone.to(device).eval()


def _random_weight(
    name: str, like: Tensor, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Return small normal numbers, around one for the scale of a norm."""
    empty = torch.empty(like.shape, dtype=like.dtype, device=device)
    scale = like.dim() == 1 and name.endswith(".weight")
    return empty.normal_(mean=1.0 if scale else 0.0, std=INITIAL_STD, generator=generator)


def random_latents(subject: Subject, size: Size3, device: torch.device) -> Tensor:
    """Return standard normal latents `[1, C, T, H, W]`, float32."""
    shape = (1, subject.spec.geometry.channels, size.time, size.height, size.width)
    return normal(shape, device, torch.float32)


def random_history(subject: Subject, tokens: int, device: torch.device) -> History:
    """Return a history that makes so many tokens or a few more, with its LR latents."""
    size, rate = subject.past(tokens), subject.rate
    lr = random_latents(subject, rate.lr_size(size), device)
    return History(latents=random_latents(subject, size, device), lr={rate: lr})


def random_memory(
    subject: Subject, tokens: int, device: torch.device, dtype: torch.dtype
) -> Memory:
    """Return exactly so many tokens, where an encoder puts the newest ones of such a history."""
    if not tokens:
        return Memory()
    size, shapes, rate = subject.past(tokens), subject.spec.geometry, subject.rate
    places = token_places(
        rate,
        size,
        shapes.patch,
        rate.token_grid(size, shapes.patch),
        start=torch.zeros(1, dtype=torch.int64),
        length=torch.tensor([size.time]),
        skip=0,
    )
    positions, extents, valid = (x[:, -tokens:] for x in places)
    part = Part(
        name=f"random-{rate}",
        tokens=normal((1, tokens, shapes.width), device, dtype),
        positions=positions,
        extents=extents,
        valid=valid,
    )
    return Memory(parts=(part,), size=size)


def normal(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return standard normal numbers of a fixed seed, made on the device."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)
