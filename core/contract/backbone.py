"""The contract of backbones: what every G must keep, checked on a small one."""

from __future__ import annotations

import copy

import attrs
import torch

from ..backbone import Backbone
from ..lora import LoRA
from ..memory import Memory
from .expect import require, require_close, require_shape
from .recall import check_append, check_cache, check_enhancer
from .trial import BATCH, TOLERANCE, Trial, apart


def check_backbone(backbone: Backbone, *, seed: int = 0, cached: float = 0.0) -> None:
    """Pass where the backbone keeps its word; it is left as it was.

    Give it a small one whose weights are random rather than zero, without adapters. Caches that
    grow and features of a memory are checked where the backbone offers them. `cached` is how far a
    velocity with a cache may be from the one without, of the greatest value: more than 0 only
    where shapes differ between the two, as in a backbone that splits its batch.

    Raises:
        AssertionError: it does not; one line says what.
    """
    trial = Trial(backbone=backbone, seed=seed)
    with torch.no_grad():
        _check_shapes(trial)
        _check_memory(trial)
        _check_ragged(trial)
        check_cache(trial, cached)
        check_append(trial)
        _check_adapters(trial)
    check_enhancer(trial, cached)
    _check_gradients(trial)


def _check_shapes(trial: Trial) -> None:
    require_shape(trial.velocity(None), tuple(trial.latents().shape), "velocity of odd sizes")
    require_shape(trial.velocity(trial.memory()), tuple(trial.latents().shape), "with memory, it")
    one, two = trial.velocity(None), trial.velocity(None, salt=3)
    require(apart(one, two), "the prompt does not change the velocity")


def _check_memory(trial: Trial) -> None:
    none = trial.velocity(None)
    for empty, name in ((Memory(), "an empty memory"), (trial.memory(0), "a part of no tokens")):
        require_close(trial.velocity(empty), none, 0.0, f"{name} against no memory")
    memory = trial.memory()
    seen = trial.velocity(memory)
    require(apart(seen, none), "memory does not change the velocity")
    swapped = trial.velocity(memory.select([1, 0]))
    require(apart(seen, swapped), "another sample's memory gives the same velocity")
    far = trial.velocity(memory, first=30)
    require(apart(seen, far), "with memory, the targets' frames do not change the velocity")
    halves = [trial.velocity(memory.select([i]), (i,)) for i in range(BATCH)]
    require_close(torch.cat(halves), seen, TOLERANCE, "a sample alone and in a batch")


def _check_ragged(trial: Trial) -> None:
    part = trial.memory().parts[0]
    count = part.tokens.shape[1] // 2
    valid = part.valid.clone()
    valid[1, count:] = False
    spoiled = torch.where(valid[..., None], part.tokens, torch.nan)
    ragged = trial.velocity(Memory(parts=(attrs.evolve(part, tokens=spoiled, valid=valid),)))
    short = Memory(parts=(part.take(torch.arange(count).repeat(BATCH, 1)),)).select([1])
    line = "with padding behind it, a sample's velocity against that of its real tokens"
    require_close(ragged[1:], trial.velocity(short, (1,)), TOLERANCE, line)
    full = trial.velocity(trial.memory().select([0]), (0,))
    require_close(ragged[:1], full, TOLERANCE, "beside a ragged sample, a full one")
    hidden = attrs.evolve(part, valid=torch.zeros_like(valid))
    line = "a memory of padding alone against none"
    require_close(trial.velocity(Memory(parts=(hidden,))), trial.velocity(None), TOLERANCE, line)


def _check_adapters(trial: Trial) -> None:
    require(not trial.backbone.adapters(), "the backbone has adapters: give one without")
    changed = attrs.evolve(trial, backbone=copy.deepcopy(trial.backbone))
    changed.backbone.add_lora(LoRA(rank=2, alpha=2.0))
    adapters = changed.backbone.adapters()
    require(bool(adapters), "add_lora adds no adapters")
    trained = {id(p) for p in changed.backbone.parameters() if p.requires_grad}
    require(trained == {id(p) for p in adapters.values()}, "adapters: not they alone are trained")
    memory = trial.memory()
    before, after = trial.velocity(memory), changed.velocity(memory)
    require_close(after, before, 0.0, "the velocity with new adapters against the one before")


def _check_gradients(trial: Trial) -> None:
    part = trial.memory().parts[0]
    tokens = part.tokens.clone().requires_grad_(True)
    memory = Memory(parts=(attrs.evolve(part, tokens=tokens),))
    loss = trial.velocity(memory).square().sum()
    (gradient,) = torch.autograd.grad(loss, tokens)
    require(bool(gradient.isfinite().all()), "the gradient of memory is not finite")
    dead = int((gradient.abs().amax(dim=-1) == 0).sum())
    require(dead == 0, f"{dead} of {BATCH * part.tokens.shape[1]} memory tokens get no gradient")
