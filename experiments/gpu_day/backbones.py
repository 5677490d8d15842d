"""`backbones`: published backbones at their true sizes with random weights, memory beside none.

For each: a denoising step under a memory of some length, what its cache takes to make and to grow,
a Stage I step with the real stage, encoder, LoRA and optimizer, and the attention of a segment
alone by each of torch's kernels, which is half of a step and more. Every measurement has a name of
its own in the result, so that a run goes on where the last one stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...backbones.specs import DiTSpec
from ...core.data.windows import Batch
from ...core.experiment import Experiment
from ...core.interfaces.backbone import Backbone, Context
from ...core.model import Model, build_encoder, count_parameters
from ...core.tools.timing import MIB, time_calls
from ...core.train.loss import StageOne
from ...core.train.step import StageOneStep
from ...core.values.draws import Draws
from ...core.values.memory import Memory, Part
from .cost import FAULT_KEY, BackboneSlot, CostMeter, limits, measure_or_fault
from .day import Session, StepResult, TimeIsUp
from .subjects import Subject, normal, random_history, random_latents, random_memory, subjects

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
STEP_TIME = 0.5  # t of the denoising step, where all of the model takes part
SPARE = 45.0  # seconds that a measurement may take beside those that are reserved at the end

Figures = dict[str, Any]


def run(session: Session, results: StepResult) -> None:
    """Note limits, and of every backbone its denoising and Stage I steps by length of memory.

    Raises:
        LongtakeError: some of it failed, or did not fit.
        TimeIsUp: the rest is for the next run.
    """
    device_limits = results.measure("limits", lambda: limits(session.device, tiny=session.tiny))
    slot = BackboneSlot(session.device)
    for subject in subjects(tiny=session.tiny):
        meter = CostMeter(
            device=session.device, repeats=subject.extent.repeats, limits=device_limits
        )
        for one in measurements(subject, slot, meter):
            if one.name not in results.figures and not session.tiny and session.left < SPARE:
                raise TimeIsUp
            results.measure(one.name, partial(figure, one, slot, results))
    results.faults += list(faults(results))
    results.raise_faults()


@frozen(kw_only=True)
class Measurement:
    """One measurement of a backbone.

    Attributes:
        name: of its figures in the result.
        make: measures, and returns the figures.
        beside: name of the one without memory whose time it is compared with; None: none.
    """

    name: str
    make: Callable[[], Figures]
    beside: str | None = None


def measurements(subject: Subject, slot: BackboneSlot, meter: CostMeter) -> Iterator[Measurement]:
    """Yield all measurements of a backbone, those that share a model one behind the other."""
    name, most = subject.name, max(subject.extent.tokens)
    yield Measurement(name=name, make=partial(describe_backbone, subject, slot))
    yield Measurement(name=f"{name}, attention", make=partial(attention, subject, meter))
    yield from _steps(subject, slot, meter)
    grown = partial(_append, subject, most, slot, meter)
    yield Measurement(name=f"{name}, a second more, isolated-causal, {most:,}", make=grown)
    bare = f"{name}, Stage I, no memory"
    yield Measurement(name=bare, make=partial(stage_one, subject, slot, 0, meter))
    for tokens in subject.extent.tokens:
        make = partial(stage_one, subject, slot, tokens, meter)
        yield Measurement(name=f"{name}, Stage I, {tokens:,}", make=make, beside=bare)


def _steps(subject: Subject, slot: BackboneSlot, meter: CostMeter) -> Iterator[Measurement]:
    bare = f"{subject.name}, step, no memory"
    yield Measurement(name=bare, make=partial(_step, subject, subject.spec, 0, slot, meter))
    for way, spec in (("full", subject.spec), ("isolated", subject.isolated("isolated"))):
        for tokens in subject.extent.tokens:
            make = partial(_step, subject, spec, tokens, slot, meter)
            yield Measurement(
                name=f"{subject.name}, step, {way}, {tokens:,}", make=make, beside=bare
            )


def figure(measurement: Measurement, slot: BackboneSlot, results: StepResult) -> Figures:
    """Return what a measurement gives, its time compared with the one without memory, if any."""
    figures = measure_or_fault(measurement.make, slot)
    yardstick = results.figures.get(measurement.beside or "", {}).get("seconds")
    if yardstick and "seconds" in figures:
        figures["over_no_memory"] = figures["seconds"] / yardstick
    return figures


def faults(results: StepResult) -> Iterator[str]:
    """Yield a line for every measurement that did not fit."""
    for name, figures in results.figures.items():
        if FAULT_KEY in figures:
            yield f"{name}: {figures[FAULT_KEY]}, asked for {figures['asked_mib']} MiB more"


def describe_backbone(subject: Subject, slot: BackboneSlot) -> Figures:
    """Return what is timed: the model's size, and the latents and tokens of a segment."""
    began = time.perf_counter()
    backbone = slot.load(subject.spec)
    if slot.device.type == "cuda":
        torch.cuda.synchronize()
    took, segment = time.perf_counter() - began, subject.segment
    return {
        "build_seconds": took,
        "parameters": count_parameters(backbone),
        "weights_mib": sum(p.nbytes for p in backbone.parameters()) / MIB,
        "dtype": subject.spec.dtype,
        "segment_seconds": subject.extent.seconds,
        "segment_latents": str(segment),
        "segment_tokens": segment.cells // subject.spec.geometry.patch.cells,
        "text_tokens": subject.text_length,
        "rate": str(subject.rate),
        "tokens_a_second": subject.tokens_a_second,
    }


@torch.no_grad()
def step(subject: Subject, backbone: Backbone, tokens: int, meter: CostMeter) -> dict[str, Any]:
    """Return the cost of one velocity of a segment that follows a memory of so many tokens.

    With `isolated` the cache is made before, and its cost is measured by itself.
    """
    memory = random_memory(subject, tokens, meter.device, _dtype(subject.spec))
    text = backbone.blank_text(1, subject.text_length)
    if not (tokens and backbone.caches):
        context = backbone.context(text, memory)
        return {"tokens": tokens, **_velocity(subject, backbone, context, tokens, meter)}
    remember = meter.cost(lambda: backbone.remember(memory))
    cache = backbone.remember(memory)
    cache_mib = sum(x.nbytes for x in (*cache.keys, *cache.values)) / MIB
    context = backbone.context(text, cache)
    cost = _velocity(subject, backbone, context, tokens, meter)
    return {"tokens": tokens, **cost, "cache_mib": cache_mib, "remember": remember}


def _velocity(
    subject: Subject, backbone: Backbone, context: Context, tokens: int, meter: CostMeter
) -> dict[str, Any]:
    size, device = subject.segment, meter.device
    noisy = random_latents(subject, size, device).to(_dtype(subject.spec))
    first = subject.past(tokens).time if tokens else 0
    frames = first + torch.arange(size.time, device=device)[None]
    t = torch.full((1,), STEP_TIME, device=device)
    return meter.cost(lambda: backbone.velocity(noisy, t, frames, context))


@torch.no_grad()
def append(subject: Subject, backbone: Backbone, tokens: int, meter: CostMeter) -> dict[str, Any]:
    """Return the cost of adding a second to an `isolated-causal` cache, of so many tokens then."""
    memory = random_memory(subject, tokens, meter.device, _dtype(subject.spec))
    new = min(subject.tokens_a_second, tokens - 1)
    before, after = _cut(memory, tokens - new)
    cache = backbone.remember(before)
    return {
        "tokens": tokens,
        "appended": new,
        **meter.cost(lambda: backbone.remember(after, cache)),
    }


def _cut(memory: Memory, count: int) -> tuple[Memory, Memory]:
    """Return the first `count` tokens, and the others."""
    part, total = memory.parts[0], memory.length
    rows = torch.arange(total)[None]
    first, rest = (_with(memory, part.take(x)) for x in (rows[:, :count], rows[:, count:]))
    return first, rest


def _with(memory: Memory, part: Part) -> Memory:
    return attrs.evolve(memory, parts=(part,))


def _dtype(spec: DiTSpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return dtype


def stage_one(
    subject: Subject, slot: BackboneSlot, tokens: int, meter: CostMeter
) -> dict[str, Any]:
    """Return the cost of a Stage I step on a history of about so many tokens; 0: of LoRA alone.

    Without memory the targets are cut out of the shorter history.
    """
    experiment = subject.experiment(remembers=bool(tokens))
    backbone = slot.load(subject.spec, experiment.train.adapter)
    train = train_step_of(subject, experiment, backbone, meter.device)
    batch = batch_of(subject, backbone, tokens or min(subject.extent.tokens), meter.device)
    stage = train.stage
    masking = time_calls(lambda: _mask(stage, batch), meter.device, meter.repeats, warm=0)
    return {
        "tokens": _tokens(stage, batch) if tokens else 0,
        "history": str(batch.history.size),
        "targets": subject.extent.targets,
        "samples": batch.history.batch,
        "trained_parameters": train.trained_parameters,
        **meter.cost(lambda: train(batch)),
        "masking": masking,
    }


def train_step_of(
    subject: Subject, experiment: Experiment, backbone: Backbone, device: torch.device
) -> StageOneStep:
    """Return the training step of an experiment on a backbone that has its adapters."""
    encoder = build_encoder(experiment, backbone.fit(), seed=0)
    null = backbone.blank_text(1, subject.text_length)
    return StageOneStep.of(Model(experiment, backbone, encoder), null, device)


def batch_of(subject: Subject, backbone: Backbone, tokens: int, device: torch.device) -> Batch:
    """Return one random sample of a history of about so many tokens."""
    text = backbone.blank_text(1, subject.text_length)
    return Batch(history=random_history(subject, tokens, device), text=text, names=("random",))


def _mask(stage: StageOne, batch: Batch) -> None:
    stage.masker(batch.history, batch.text, Draws.of(stage.spec.seed, 0, batch.places, "loss"))


@torch.no_grad()
def _tokens(stage: StageOne, batch: Batch) -> int:
    return int(stage.as_forward(lambda: stage.encoder(batch.history)).length)


@torch.no_grad()
def attention(subject: Subject, meter: CostMeter) -> dict[str, Any]:
    """Return seconds and share of the limit of one block's self-attention without memory.

    By kernel, and as torch chooses (`chosen`); null where the device has no such kernel.
    """
    config, patch = subject.spec.config, subject.spec.geometry.patch
    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    count = subject.segment.cells // patch.cells
    qkv = normal((3, 1, heads, count, width), meter.device, torch.bfloat16)
    flops = 4 * heads * width * count**2
    times = {"chosen": _timed(qkv, flops, nullcontext(), meter)}
    for name, kernel in KERNELS.items():
        times[name] = _timed(qkv, flops, sdpa_kernel(kernel), meter)
    return {"blocks": subject.spec.geometry.blocks, "tflop": flops / 1e12, **times}


def _timed(
    qkv: Tensor, flops: int, kernel: AbstractContextManager[None], meter: CostMeter
) -> dict[str, Any] | None:
    query, key, value = qkv
    try:
        with kernel:
            times = time_calls(
                lambda: F.scaled_dot_product_attention(query, key, value),
                meter.device,
                meter.repeats,
                warm=1,
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # torch: no available kernel
        return None
    return {**times, "share_of_limit": meter.share(flops, times["seconds"])}


def _step(
    subject: Subject, spec: DiTSpec, tokens: int, slot: BackboneSlot, meter: CostMeter
) -> Figures:
    return step(subject, slot.load(spec), tokens, meter)


def _append(subject: Subject, tokens: int, slot: BackboneSlot, meter: CostMeter) -> Figures:
    return append(subject, slot.load(subject.isolated("isolated-causal")), tokens, meter)
