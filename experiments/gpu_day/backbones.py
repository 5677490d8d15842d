"""`backbones`: published backbones at their true sizes with random weights, memory beside none.

Every case is a figure of its own, so that a slice goes on where the last one stopped.
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
from ...core.model import Model, build_encoder, count
from ...core.registry import build
from ...core.train.loss import StageOne
from ...core.train.optim import freeze, make_optimizer
from ...core.values.draws import Draws
from ...core.values.memory import Memory, Part
from .cost import FAULT, MIB, Bench, Shelf, fitting, limits, paced
from .day import Book, Day, TimeIsUp
from .subjects import Subject, normal, random_history, random_latents, random_memory, subjects

# ⟦experiments/gpu_steps/backbones_attention.py⟧ The attention of a segment alone, by each of torch's kernels: half of a step and more.


KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@torch.no_grad()
def attention(subject: Subject, bench: Bench) -> dict[str, Any]:
    """Return seconds and share of the limit of one block's self-attention without memory.

    By kernel, and as torch chooses (`chosen`); null where the device has no such kernel.
    """
    config, patch = subject.spec.config, subject.spec.geometry.patch
    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    count = subject.segment.cells // patch.cells
    asked = normal((3, 1, heads, count, width), bench.device, torch.bfloat16)
    flops = 4 * heads * width * count**2
    found = {"chosen": _timed(asked, flops, nullcontext(), bench)}
    for name, kernel in KERNELS.items():
        found[name] = _timed(asked, flops, sdpa_kernel(kernel), bench)
    return {"blocks": subject.spec.geometry.blocks, "tflop": flops / 1e12, **found}


def _timed(
    asked: Tensor, flops: int, way: AbstractContextManager[None], bench: Bench
) -> dict[str, Any] | None:
    query, key, value = asked
    try:
        with way:
            times = paced(
                lambda: F.scaled_dot_product_attention(query, key, value),
                bench.device,
                bench.repeats,
                warm=1,
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # torch: no available kernel
        return None
    return {**times, "share_of_limit": bench.share(flops, times["seconds"])}


# ⟦experiments/gpu_steps/backbones_steps.py⟧ A denoising step under a memory of some length, and what its cache takes to make and to grow.


HALF = 0.5  # time of the step, where all of the model takes part


@torch.no_grad()
def step(subject: Subject, backbone: Backbone, tokens: int, bench: Bench) -> dict[str, Any]:
    """Return the cost of one velocity of a segment that follows a memory of so many tokens.

    With `isolated` the cache is made before, and its cost is told apart.
    """
    memory = random_memory(subject, tokens, bench.device, _dtype(subject.spec))
    text = backbone.blank_text(1, subject.text_length)
    if not (tokens and backbone.caches):
        context = backbone.context(text, memory)
        return {"tokens": tokens, **_velocity(subject, backbone, context, tokens, bench)}
    made = bench.cost(lambda: backbone.remember(memory))
    cache = backbone.remember(memory)
    held = sum(x.nbytes for x in (*cache.keys, *cache.values)) / MIB
    context = backbone.context(text, cache)
    found = _velocity(subject, backbone, context, tokens, bench)
    return {"tokens": tokens, **found, "cache_mib": held, "remember": made}


def _velocity(
    subject: Subject, backbone: Backbone, context: Context, tokens: int, bench: Bench
) -> dict[str, Any]:
    size, device = subject.segment, bench.device
    noisy = random_latents(subject, size, device).to(_dtype(subject.spec))
    first = subject.past(tokens).time if tokens else 0
    frames = first + torch.arange(size.time, device=device)[None]
    t = torch.full((1,), HALF, device=device)
    return bench.cost(lambda: backbone.velocity(noisy, t, frames, context))


@torch.no_grad()
def append(subject: Subject, backbone: Backbone, tokens: int, bench: Bench) -> dict[str, Any]:
    """Return the cost of a second more in an `isolated-causal` cache of so many tokens in the end."""
    memory = random_memory(subject, tokens, bench.device, _dtype(subject.spec))
    new = min(subject.tokens_a_second, tokens - 1)
    before, after = _cut(memory, tokens - new)
    cache = backbone.remember(before)
    return {
        "tokens": tokens,
        "appended": new,
        **bench.cost(lambda: backbone.remember(after, cache)),
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
    found: torch.dtype = getattr(torch, spec.dtype)
    return found


# ⟦experiments/gpu_steps/backbones_train.py⟧ A Stage I step of a published backbone: the real stage, encoder, LoRA and optimizer.


def stage_one(subject: Subject, shelf: Shelf, tokens: int, bench: Bench) -> dict[str, Any]:
    """Return the cost of a Stage I step on a history of about so many tokens; 0: of LoRA alone.

    Without memory the targets are cut out of the shorter history.
    """
    experiment = subject.experiment(remembers=bool(tokens))
    backbone = shelf.take(subject.spec, experiment.train.adapter)
    stage = stage_of(subject, experiment, backbone, bench.device)
    batch = batch_of(subject, backbone, tokens or min(subject.extent.tokens), bench.device)
    step, trained = step_of(stage, batch)
    masking = paced(lambda: _mask(stage, batch), bench.device, bench.repeats, warm=0)
    return {
        "tokens": _tokens(stage, batch) if tokens else 0,
        "history": str(batch.history.size),
        "targets": subject.extent.targets,
        "samples": batch.history.batch,
        "trained_parameters": trained,
        **bench.cost(step),
        "masking": masking,
    }


def stage_of(
    subject: Subject, experiment: Experiment, backbone: Backbone, device: torch.device
) -> StageOne:
    """Return the stage of an experiment as training builds it, on a backbone with its adapters."""
    encoder = build_encoder(experiment, backbone.fit(), seed=0)
    model = Model(experiment, backbone, encoder).to(device)
    freeze(model)
    backbone.set_checkpointing(experiment.train.checkpointing)
    null = backbone.blank_text(1, subject.text_length)
    return StageOne(model, build(experiment.masker), experiment.train, null).to(device)


def batch_of(subject: Subject, backbone: Backbone, tokens: int, device: torch.device) -> Batch:
    """Return one random sample of a history of about so many tokens."""
    text = backbone.blank_text(1, subject.text_length)
    return Batch(history=random_history(subject, tokens, device), text=text, names=("random",))


def step_of(stage: StageOne, batch: Batch) -> tuple[Callable[[], torch.Tensor], int]:
    """Return a step, which gives its loss, and the number of parameters that it trains."""
    spec, optimizer = stage.spec, make_optimizer(stage, stage.spec)
    weights = [p for p in stage.parameters() if p.requires_grad]

    def step() -> torch.Tensor:
        loss: torch.Tensor = stage(batch, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, spec.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step, sum(p.numel() for p in weights)


def _mask(stage: StageOne, batch: Batch) -> None:
    stage.masker(batch.history, batch.text, Draws.of(stage.spec.seed, 0, batch.places, "loss"))


@torch.no_grad()
def _tokens(stage: StageOne, batch: Batch) -> int:
    return int(stage.within(lambda: stage.encoder(batch.history)).length)


SPARE = 45.0  # seconds that a case may take beside those that are kept back at the end

Figure = dict[str, Any]


@frozen(kw_only=True)
class Case:
    """One figure, and the name of the one without memory that it is told beside."""

    name: str
    make: Callable[[], Figure]
    beside: str | None = None


def run(day: Day, book: Book) -> None:
    """Note limits, and of every backbone its denoising and Stage I steps by length of memory.

    Raises:
        LongtakeError: some of it failed, or did not fit.
        TimeIsUp: the rest is for the next run.
    """
    found = book.once("limits", lambda: limits(day.device, tiny=day.tiny))
    shelf = Shelf(day.device)
    for subject in subjects(tiny=day.tiny):
        bench = Bench(device=day.device, repeats=subject.extent.repeats, limits=found)
        for case in cases(subject, shelf, bench):
            if case.name not in book.figures and not day.tiny and day.left < SPARE:
                raise TimeIsUp
            book.once(case.name, partial(figure, case, shelf, book))
    book.faults += list(faults(book))
    book.close()


def figure(case: Case, shelf: Shelf, book: Book) -> Figure:
    """Return the figures of a case, its time beside the one without memory where there is one."""
    found = fitting(case.make, shelf)
    yardstick = book.figures.get(case.beside or "", {}).get("seconds")
    if yardstick and "seconds" in found:
        found["over_no_memory"] = found["seconds"] / yardstick
    return found


def faults(book: Book) -> Iterator[str]:
    """Yield a line for every figure that says what was missing."""
    for name, found in book.figures.items():
        if FAULT in found:
            yield f"{name}: {found[FAULT]}, asked for {found['asked_mib']} MiB more"


def cases(subject: Subject, shelf: Shelf, bench: Bench) -> Iterator[Case]:
    """Yield all cases of a backbone, those that share a model one behind the other."""
    name, most = subject.name, max(subject.extent.tokens)
    yield Case(name=name, make=partial(facts, subject, shelf))
    yield Case(name=f"{name}, attention", make=partial(attention, subject, bench))
    yield from _steps(subject, shelf, bench)
    grown = partial(_append, subject, most, shelf, bench)
    yield Case(name=f"{name}, a second more, isolated-causal, {most:,}", make=grown)
    bare = f"{name}, Stage I, no memory"
    yield Case(name=bare, make=partial(stage_one, subject, shelf, 0, bench))
    for tokens in subject.extent.tokens:
        make = partial(stage_one, subject, shelf, tokens, bench)
        yield Case(name=f"{name}, Stage I, {tokens:,}", make=make, beside=bare)


def _steps(subject: Subject, shelf: Shelf, bench: Bench) -> Iterator[Case]:
    bare = f"{subject.name}, step, no memory"
    yield Case(name=bare, make=partial(_step, subject, subject.spec, 0, shelf, bench))
    for way, spec in (("full", subject.spec), ("isolated", subject.isolated("isolated"))):
        for tokens in subject.extent.tokens:
            make = partial(_step, subject, spec, tokens, shelf, bench)
            yield Case(name=f"{subject.name}, step, {way}, {tokens:,}", make=make, beside=bare)


def facts(subject: Subject, shelf: Shelf) -> Figure:
    """Return what is timed: the model's size, and the latents and tokens of a segment."""
    began = time.perf_counter()
    backbone = shelf.take(subject.spec)
    if shelf.device.type == "cuda":
        torch.cuda.synchronize()
    took, segment = time.perf_counter() - began, subject.segment
    return {
        "build_seconds": took,
        "parameters": count(backbone),
        "weights_mib": sum(p.nbytes for p in backbone.parameters()) / MIB,
        "dtype": subject.spec.dtype,
        "segment_seconds": subject.extent.seconds,
        "segment_latents": str(segment),
        "segment_tokens": segment.cells // subject.spec.geometry.patch.cells,
        "text_tokens": subject.text_length,
        "rate": str(subject.rate),
        "tokens_a_second": subject.tokens_a_second,
    }


def _step(subject: Subject, spec: DiTSpec, tokens: int, shelf: Shelf, bench: Bench) -> Figure:
    return step(subject, shelf.take(spec), tokens, bench)


def _append(subject: Subject, tokens: int, shelf: Shelf, bench: Bench) -> Figure:
    return append(subject, shelf.take(subject.isolated("isolated-causal")), tokens, bench)
