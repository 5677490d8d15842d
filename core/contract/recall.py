"""The contract of backbones, where they remember: caches, caches that grow, features."""

from __future__ import annotations

import copy

import attrs
import torch
from torch import Tensor

from ..calls import Cache
from ..memory import Memory
from .expect import copied, require, require_close, require_unchanged
from .trial import TOLERANCE, Trial, apart

FEATURES = {"hint": 6}
WIDTHS = {"trial.hint": 6}


def check_cache(trial: Trial, tolerance: float = 0.0) -> None:
    """A cache gives what its memory gives, to the bit unless told otherwise, for every prompt."""
    memory = trial.memory()
    try:
        cache = trial.backbone.remember(memory)
    except ValueError:
        return  # `full` attention: memory sees targets, so nothing can be kept
    require(cache.length == memory.length, f"cache: {cache.length} of {memory.length} tokens kept")
    for salt in (2, 3):  # two prompts, one cache
        kept, made = trial.velocity(cache, salt=salt), trial.velocity(memory, salt=salt)
        require_close(kept, made, tolerance, "the velocity with a cache against the one without")
    nothing = trial.backbone.remember(Memory())
    line = "the cache of an empty memory against no memory"
    require_close(trial.velocity(nothing), trial.velocity(None), 0.0, line)


def check_append(trial: Trial) -> None:
    """A cache made longer is the cache of the whole, and the shorter one stays as it is."""
    first, second = _in_pieces(trial)
    remember, whole = trial.backbone.remember, _spread(trial.memory())
    try:
        cache = remember(first)
        before = copied(_tensors(cache))
        grown = remember(second, cache)
    except ValueError:
        return  # not `isolated-causal`: memory sees later memory, too
    require_unchanged(_tensors(cache), before, "a cache that something was appended to")
    line = "a cache that grew against its memory at once"
    require(grown.length == whole.length, f"{line}: {grown.length} of {whole.length} tokens kept")
    require_close(trial.velocity(grown), trial.velocity(whole), TOLERANCE, line)
    other = trial.velocity(remember(second.select([1, 0]), cache))
    again = trial.velocity(remember(second, cache))
    line = "after another memory was appended and thrown away, the same one"
    require_close(again, trial.velocity(grown), 0.0, line)
    require(apart(other, again), "what is appended to a cache does not change the velocity")
    same = trial.backbone.remember(Memory(), cache)
    line = "a cache that an empty memory was appended to against itself"
    require_close(trial.velocity(same), trial.velocity(cache), 0.0, line)


def _spread(memory: Memory) -> Memory:
    """Give the tokens at rising times, over many blocks."""
    part = memory.parts[0]
    places = part.positions.clone()
    places[..., 0] = torch.arange(places.shape[1], dtype=places.dtype, device=places.device) * 5
    return Memory(parts=(attrs.evolve(part, positions=places),))


def _in_pieces(trial: Trial) -> tuple[Memory, Memory]:
    part = _spread(trial.memory()).parts[0]
    batch, count = part.valid.shape
    cuts = torch.arange(count).repeat(batch, 1).split([count // 2, count - count // 2], dim=1)
    first, second = (Memory(parts=(part.take(cut),)) for cut in cuts)
    return first, second


def _tensors(cache: Cache) -> dict[str, Tensor]:
    named = {"keys": cache.keys, "values": cache.values}
    return {f"{name} {i}": x for name, held in named.items() for i, x in enumerate(held)}


def check_enhancer(trial: Trial, cached: float = 0.0) -> None:
    """Features change nothing at first; then targets read them, and every weight learns."""
    changed = attrs.evolve(trial, backbone=copy.deepcopy(trial.backbone))
    model, memory = changed.backbone, trial.memory(features=FEATURES)
    try:
        model.add_enhancer(WIDTHS)
    except ValueError:
        return  # this backbone reads no features
    adapters = model.adapters()
    require(bool(adapters), "add_enhancer adds no adapters")
    with torch.no_grad():
        line = "the velocity with a new enhancer against the one before"
        require_close(changed.velocity(memory), trial.velocity(memory), 0.0, line)
        for place, weight in enumerate(adapters.values()):
            weight.add_(trial.draw(*weight.shape, salt=20 + place).to(weight.dtype) * 0.2)
        _check_features(changed, memory, cached)
        line = "without memory, the velocity with an enhancer against the one before"
        require_close(changed.velocity(None), trial.velocity(None), 0.0, line)
    _check_learns(changed, memory)


def _check_features(trial: Trial, memory: Memory, cached: float) -> None:
    part, seen = memory.parts[0], trial.velocity(memory)
    other = {name: x.flip(0) for name, x in part.features.items()}
    swapped = Memory(parts=(attrs.evolve(part, features=other),))
    require(apart(seen, trial.velocity(swapped)), "features do not change the velocity")
    valid = part.valid.clone()
    valid[1, 1:] = False
    spoiled = {n: torch.where(valid[..., None], x, torch.nan) for n, x in part.features.items()}
    ragged = Memory(parts=(attrs.evolve(part, features=spoiled, valid=valid),))
    short = Memory(parts=(part.take(torch.zeros(len(valid), 1, dtype=torch.int64)),)).select([1])
    line = "with padding behind it, a sample's velocity with features against that of its real ones"
    require_close(trial.velocity(ragged)[1:], trial.velocity(short, (1,)), TOLERANCE, line)
    try:
        cache = trial.backbone.remember(memory)
    except ValueError:
        return  # `full` attention
    line = "with features, the velocity with a cache against the one without"
    require_close(trial.velocity(cache), seen, cached, line)


def _check_learns(trial: Trial, memory: Memory) -> None:
    read, unread = (_gradients(trial, shown) for shown in (memory, Memory()))
    none = sorted(name for found in (read, unread) for name, x in found.items() if x is None)
    line = "weights of enhancers have no gradient, with memory or without (give them one of zero)"
    require(not none, f"{len(none)} {line}: {', '.join(none[:3])}")
    dead = sorted(name for name, x in read.items() if x is not None and not bool(x.any()))
    require(not dead, f"{len(dead)} weights of enhancers learn nothing: {', '.join(dead[:3])}")


def _gradients(trial: Trial, memory: Memory) -> dict[str, Tensor | None]:
    trial.backbone.zero_grad(set_to_none=True)
    for times in ((0.02, 0.98), (0.3, 0.8)):  # where a model has several experts, all of them
        trial.velocity(memory, times=times).square().sum().backward()
    return {name: weight.grad for name, weight in trial.backbone.adapters().items()}
