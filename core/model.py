"""A model: the backbone G and the encoder φ of an experiment, built together; and its sizes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import attrs
import torch
from attrs import define, frozen
from torch import Tensor, nn

from .data.windows import Batch
from .errors import UserError
from .experiment import Experiment
from .interfaces.backbone import Backbone
from .interfaces.checks import check_shape, check_type
from .interfaces.codec import Codec, decode_among, frames_of, to_bytes
from .interfaces.compressor import Compressor, Fit, MemoryEncoder, Needs
from .interfaces.retriever import LatentFrames, Retrieved, Retriever, Scene
from .interfaces.spec import BackboneSpec, CodecSpec, CompressorSpec, RetrieverSpec
from .registry import build, registry
from .sample.spec import MemoryBudget
from .values.grid import Geometry, MemoryLimit, Size3
from .values.text import Text


@define
class Model:
    """φ and G of an experiment."""

    experiment: Experiment
    backbone: Backbone
    encoder: MemoryEncoder

    def to(self, device: torch.device | str) -> Model:
        """Move both to `device`.

        Raises:
            UserError: a compressor's spec asks for what does not run there.
        """
        self.encoder.check_device(torch.device(device))
        self.backbone.to(device)
        self.encoder.to(device)
        return self

    def eval(self) -> Model:
        """Switch both to evaluation, without gradients."""
        self.backbone.eval().requires_grad_(False)
        self.encoder.eval().requires_grad_(False)
        return self


def build_model(experiment: Experiment, *, adapters: bool = False) -> Model:
    """Build a model as an experiment starts: the backbone's weights, a fresh encoder.

    Args:
        experiment: what to build; its `train.seed` seeds all that is random.
        adapters: add the LoRA of `train.adapter` where the experiment trains one.
    """
    seed = experiment.train.seed
    backbone = registry().load(experiment.backbone).load(experiment.backbone, seed=seed)
    fit = attrs.evolve(fit_of(backbone), codec=experiment.backbone.codec)
    encoder = build_encoder(experiment, fit, seed=seed)
    backbone.add_enhancer(encoder.features, seed=seed)
    if adapters and experiment.train.trains == "lora":
        backbone.add_lora(experiment.train.adapter)
    return Model(experiment, backbone, encoder)


def fit_of(backbone: Backbone) -> Fit:
    """Return what compressors may know of a backbone, after its shapes were checked.

    Raises:
        ContractError: the projection does not have the shapes that the geometry says.
    """
    fit, geometry = backbone.fit(), backbone.geometry
    check_type(backbone, "fit()", fit, Fit)
    patch = (geometry.patch.time, geometry.patch.height, geometry.patch.width)
    weight = (geometry.width, geometry.channels, *patch)
    check_shape(backbone, "fit().patch_weight", fit.patch_weight, weight, "D C p_t p_h p_w")
    check_shape(backbone, "fit().patch_bias", fit.patch_bias, (geometry.width,), "D")
    return fit


def build_encoder(experiment: Experiment, fit: Fit, *, seed: int) -> MemoryEncoder:
    """Build the fresh encoder of an experiment for a backbone's `fit`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        built: list[Compressor[CompressorSpec]] = [build(s, fit) for s in experiment.compressors]
    for compressor in built:
        check_type(compressor, "what it builds", compressor, Compressor)
    return MemoryEncoder(built)


def compressor_needs(experiment: Experiment) -> Needs:
    """Return what the compressors of an experiment must find in a history."""
    needs = [registry().load(spec).needs(spec) for spec in experiment.compressors]
    return functools.reduce(operator.or_, needs, Needs(hr=False))


def all_needs(experiment: Experiment) -> Needs:
    """Return what must be cached to train and to measure: for compressors and retrievers."""
    retrievers = [registry().load(spec).needs(spec) for spec in experiment.retrievers]
    return functools.reduce(operator.or_, retrievers, compressor_needs(experiment))


def memory_limit(
    experiment: Experiment, budget: MemoryBudget, size: Size3, *, trained: float | None = None
) -> MemoryLimit:
    """Return what a take's memory may be at most, in latents and tokens.

    Args:
        experiment: whose compressors and backbone they are.
        budget: in seconds and tokens.
        size: of the latents (only height and width are read).
        trained: seconds of the longest history that was trained; None: of `train.seconds`.

    Raises:
        UserError: the budget does not hold the first seconds and one block more.
    """
    geometry = experiment.backbone.geometry
    seconds = experiment.train.seconds[1] if trained is None else trained
    limit = budget.limit(geometry, experiment.memory_block, trained=seconds)
    if limit.tokens is None:
        return limit
    # The first blocks, the newest complete one, and that which is not complete.
    needed = attrs.evolve(size, time=limit.first_covered + 2 * limit.block)
    specs = experiment.compressors
    lengths = [registry().load(spec).context_length(spec, geometry, needed) for spec in specs]
    least = sum(length.tokens for length in lengths)
    if limit.tokens < least:
        raise UserError(
            f"max_memory_tokens {limit.tokens:,} is too few: keep_first_seconds "
            f"{budget.keep_first_seconds:g} and two blocks of {limit.block} latents at "
            f"{size.height}×{size.width} latent cells have {least:,} tokens, give as many or more"
        )
    return limit


def build_retriever(spec: RetrieverSpec) -> Retriever[RetrieverSpec]:
    """Build the retriever of a spec."""
    retriever: Retriever[RetrieverSpec] = build(spec)
    return retriever


def learned_retriever(experiment: Experiment) -> RetrieverSpec:
    """Return the first retriever of the experiment that reads memory.

    Raises:
        UserError: none does; all are baselines without memory.
    """
    for spec in experiment.retrievers:
        if registry().load(spec).learned:
            return spec
    raise UserError(f"{experiment.name}: none of its retrievers reads memory; add one, as flow")


def make_scene(
    model: Model, codec: Codec[CodecSpec], batch: Batch, null_text: Text, index: int = 0
) -> Scene:
    """Return the scene of one sample, with the memory of its clean history."""
    history = batch.history.select([index])
    return Scene(
        memory=model.encoder(history),
        history=history,
        size=history.size,
        text=batch.text.select([index]),
        null_text=null_text.to(history.latents.device),
        backbone=model.backbone,
        codec=codec,
        shift=model.experiment.backbone.shift,
    )


def last_frames(
    codec: Codec[CodecSpec], latents: Tensor, omega: Tensor, result: Retrieved
) -> Tensor:
    """Return the last video frame of each latent of Ω side by side, uint8 `[3, P, K·Q]`."""
    pixels = frames_by_latent(codec, latents, omega, result)
    return torch.cat([to_bytes(frames[0, :, -1]).cpu() for frames in pixels], dim=-1)


def frames_by_latent(
    codec: Codec[CodecSpec], latents: Tensor, omega: Tensor, result: Retrieved
) -> list[Tensor]:
    """Return the pixels `[1, 3, f, P, Q]` in [−1, 1] of every latent of Ω, in order.

    Latents are decoded among their true predecessors; pixels are only split.
    """
    indices = [int(i) for i in omega[0]]
    if isinstance(result, LatentFrames):
        single = result.latents.to(latents.dtype).split(1, dim=2)
        return [decode_among(codec, latents, i, x) for i, x in zip(indices, single, strict=True)]
    counts = [len(frames_of(i, codec.stride.time)) for i in indices]
    return list(result.pixels.clamp(-1, 1).split(counts, dim=2))


@frozen(kw_only=True)
class ModelSizes:
    """How many parameters a backbone and encoders on it have.

    Attributes:
        geometry: of the backbone, as built.
        parameters: of the backbone.
        encoders: parameters of each encoder that was asked for.
    """

    geometry: Geometry
    parameters: int
    encoders: tuple[int, ...]


def model_sizes(spec: BackboneSpec, compressors: Sequence[CompressorSpec] = ()) -> ModelSizes:
    """Return the sizes of a backbone and of encoders on it, built on the meta device.

    Nothing is read, and no memory is taken but for the modules themselves: Wan 14B takes seconds.

    Args:
        spec: whose weights are random; weights that it named would be read.
        compressors: each counted as an encoder of its own.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        backbone = registry().load(spec).load(spec)
        fit = attrs.evolve(_with_zeros(backbone.fit()), codec=spec.codec)
        encoders = [MemoryEncoder([build(each, fit)]) for each in compressors]
    return ModelSizes(
        geometry=backbone.geometry,
        parameters=count_parameters(backbone),
        encoders=tuple(count_parameters(encoder) for encoder in encoders),
    )


def _with_zeros(fit: Fit) -> Fit:
    """Return the fit with zeros for weights, off the meta device: encoders hash them."""
    weight, bias = (torch.zeros(x.shape, device="cpu") for x in (fit.patch_weight, fit.patch_bias))
    return Fit(geometry=fit.geometry, patch_weight=weight, patch_bias=bias)


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module; what two places share counts once."""
    return sum(parameter.numel() for parameter in module.parameters())
