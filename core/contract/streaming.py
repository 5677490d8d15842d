"""Laws of `step`, `pending` and the state between them."""

from __future__ import annotations

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..compressor import State
from ..grid import Size3
from ..history import History
from ..memory import Memory, merge
from .case import AnyCompressor, Case, equal, snapshot
from .expect import require

LONG = 65  # latents that must fill any window: 1 + 8·8, eight blocks of the coarsest rate


def check_law(case: Case, compressor: AnyCompressor, history: History) -> None:
    """Hold all that `step` gave, merged with `pending`, to `forward`, after every chunk."""
    for lengths in chunkings(history.size.time, case.seed):
        state, settled, copies = None, [], []
        seen = 0
        for chunk in history.chunks(lengths):
            state, memory = compressor.step(state, chunk)
            pending = check_pending(compressor, state)
            settled.append(memory)
            copies.append(snapshot(memory))
            seen += chunk.size.time
            check_settled(compressor, memory, pending, seen)
            whole = compressor(history.chunk(0, seen))
            line = f"law: step over chunks of {lengths} latents, then pending, is not forward"
            require(case.same(merge([*settled, pending]), whole), f"{line} at {seen} latents")
        kept = all(equal(snapshot(m), copy) for m, copy in zip(settled, copies, strict=True))
        require(kept, "settled: what step gave was changed later")


def chunkings(latents: int, seed: int) -> list[list[int]]:
    """Give ways to cut latents into chunks: by ones, whole, the first alone, two at random."""
    random = torch.Generator().manual_seed(seed)
    ways = [[1] * latents, [latents], [1, latents - 1]]
    for _ in range(2):
        cuts = torch.randperm(latents - 1, generator=random)[: latents // 3].sort().values + 1
        edges = [0, *cuts.tolist(), latents]
        ways.append([b - a for a, b in zip(edges, edges[1:], strict=False)])
    return ways


def check_pending(compressor: AnyCompressor, state: State) -> Memory:
    """Give what is pending; the state must be plain tensors, and left as it was."""
    plain = all(isinstance(x, Tensor) for x in state.values())
    require(isinstance(state, dict) and plain, "state: it is not a dict of tensors")
    before = {name: x.clone() for name, x in state.items()}
    memory = compressor.pending(state)
    require(equal(before, state), "pending: it changed the state")
    return memory


def check_settled(compressor: AnyCompressor, memory: Memory, pending: Memory, seen: int) -> None:
    """Hold a step to its size, and a compressor that never settles to empty steps."""
    for name, given in (("step", memory), ("pending", pending)):
        told = given.size.time if given.size else None
        require(told == seen, f"size: {name} says {told} latents of {seen} seen")
    quiet = compressor.settles or not memory.length
    require(quiet, "settles: it is False, but step gave tokens")


def check_state(case: Case, compressor: AnyCompressor) -> None:
    """Hold the state to a constant size, and to a safetensors file and back."""
    history = case.history(Size3(time=2 * LONG - 1, height=4, width=4), batch=1)
    state, sizes = None, {}
    for chunk in history.chunks([1, *[8] * (LONG // 4)]):
        state, _ = compressor.step(state, chunk)
        sizes[chunk.offset + chunk.size.time] = sum(x.numel() for x in state.values())
    small, large = sizes[LONG], sizes[2 * LONG - 1]
    constant = small == large or not compressor.settles
    require(constant, f"state: {small} numbers after {LONG} latents, {large} after {2 * LONG - 1}")
    check_file(case, compressor)


def check_file(case: Case, compressor: AnyCompressor) -> None:
    """Hold a state that was saved and loaded to what the first would give."""
    history = case.history(Size3(time=10, height=6, width=10))
    state, _ = compressor.step(None, history.chunk(0, 6))
    try:
        loaded = load(save(state))
    except (RuntimeError, ValueError) as error:
        raise AssertionError(f"file: safetensors cannot write the state: {error}") from error
    for one, other in zip(
        _next(compressor, state, history), _next(compressor, loaded, history), strict=True
    ):
        require(case.same(one, other), "file: a saved state goes on otherwise")


def _next(compressor: AnyCompressor, state: State, history: History) -> list[Memory]:
    pending = compressor.pending(state)
    state, memory = compressor.step(state, history.chunk(6, 10))
    return [pending, memory, compressor.pending(state)]
