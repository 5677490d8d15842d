"""`backbones`: published backbones at their true sizes with random weights, memory beside none.

Every case is a figure of its own, so that a slice goes on where the last one stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from attrs import frozen

from ...backbones.dit.specs import DiTSpec
from ...core.sizes import count
from .backbones_attention import attention
from .backbones_cost import FAULT, Bench, Shelf, fitting
from .backbones_plan import Subject, subjects
from .backbones_steps import append, step
from .backbones_train import stage_one
from .day import Book, Day, TimeIsUp
from .timing import MIB, limits

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
    """Give the figures of a case, its time beside the one without memory where there is one."""
    found = fitting(case.make, shelf)
    yardstick = book.figures.get(case.beside or "", {}).get("seconds")
    if yardstick and "seconds" in found:
        found["over_no_memory"] = found["seconds"] / yardstick
    return found


def faults(book: Book) -> Iterator[str]:
    """Give a line for every figure that says what was missing."""
    for name, found in book.figures.items():
        if FAULT in found:
            yield f"{name}: {found[FAULT]}, asked for {found['asked_mib']} MiB more"


def cases(subject: Subject, shelf: Shelf, bench: Bench) -> Iterator[Case]:
    """Give all cases of a backbone, those that share a model one behind the other."""
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
    """Give what is timed: the model's size, and the latents and tokens of a segment."""
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
