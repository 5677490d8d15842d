"""The contract of backbones: what every G must keep, checked on a small one."""

from __future__ import annotations

import copy

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..backbone import Backbone, Cache
from ..lora import LoRA
from ..memory import Memory, Part
from ..text import Text
from .expect import require, require_close, require_shape

BATCH = 2
TOLERANCE = 1e-4  # of the greatest value, between two ways that only round differently


def check_backbone(backbone: Backbone, *, seed: int = 0) -> None:
    """Pass where the backbone keeps its word; it is left as it was.

    Give it a small one whose weights are random rather than zero, without adapters.

    Raises:
        AssertionError: it does not; one line says what.
    """
    trial = Trial(backbone=backbone, seed=seed)
    with torch.no_grad():
        _check_shapes(trial)
        _check_memory(trial)
        _check_ragged(trial)
        _check_cache(trial)
        _check_adapters(trial)
    _check_gradients(trial)


@frozen(kw_only=True)
class Trial:
    """A backbone and random inputs of its shapes."""

    backbone: Backbone
    seed: int

    def draw(self, *shape: int, salt: int = 0) -> Tensor:
        """Random normal numbers where the backbone is."""
        random = torch.Generator().manual_seed(self.seed * 1000 + salt)
        like = next(self.backbone.parameters())
        return torch.randn(shape, generator=random).to(like.device)

    def latents(self) -> Tensor:
        """Noisy targets of odd height and width, `[B, C, K, H, W]`."""
        shapes = self.backbone.geometry
        patch = shapes.patch
        size = (2 * patch.time, 2 * patch.height + 1, 3 * patch.width + 1)
        return self.draw(BATCH, shapes.channels, *size, salt=1)

    def frames(self, first: int = 9) -> Tensor:
        """Absolute frames of the targets, `[B, K]`, with a gap in sample 1."""
        count = 2 * self.backbone.geometry.patch.time
        frames = torch.arange(first, first + count).repeat(BATCH, 1)
        frames[1] += 3
        return frames.to(self.latents().device)

    def text(self, salt: int = 2) -> Text:
        """Random prompts."""
        blank = self.backbone.blank_text(BATCH, 5)
        noise = self.draw(*blank.embeddings.shape, salt=salt).to(blank.embeddings.dtype)
        pooled = blank.pooled
        if pooled is not None:
            pooled = self.draw(*pooled.shape, salt=salt + 1).to(pooled.dtype)
        return attrs.evolve(blank, embeddings=noise, pooled=pooled)

    def memory(self, tokens: int = 6) -> Memory:
        """Random memory at places between cells."""
        shape = (BATCH, tokens)
        places = self.draw(*shape, 3, salt=4).double().abs() * 2
        part = Part(
            name="trial",
            tokens=self.draw(*shape, self.backbone.geometry.width, salt=5),
            positions=places,
            extents=torch.ones_like(places),
            valid=torch.ones(shape, dtype=torch.bool, device=places.device),
        )
        return Memory(parts=(part,))

    def velocity(
        self,
        memory: Memory | Cache | None,
        order: tuple[int, ...] = (0, 1),
        first: int = 9,
        salt: int = 2,
    ) -> Tensor:
        """The velocity of the samples `order`, whose memory is given."""
        index = list(order)
        context = self.backbone.context(self.text(salt).select(index), memory)
        noisy, frames = self.latents()[index], self.frames(first)[index]
        t = torch.tensor([0.3, 0.8], device=noisy.device)[index]
        return self.backbone.velocity(noisy, t, frames, context)


def _check_shapes(trial: Trial) -> None:
    require_shape(trial.velocity(None), tuple(trial.latents().shape), "velocity of odd sizes")
    require_shape(trial.velocity(trial.memory()), tuple(trial.latents().shape), "with memory, it")
    one, two = trial.velocity(None), trial.velocity(None, salt=3)
    require(_apart(one, two), "the prompt does not change the velocity")


def _check_memory(trial: Trial) -> None:
    none = trial.velocity(None)
    for empty, name in ((Memory(), "an empty memory"), (trial.memory(0), "a part of no tokens")):
        require_close(trial.velocity(empty), none, 0.0, f"{name} against no memory")
    memory = trial.memory()
    seen = trial.velocity(memory)
    require(_apart(seen, none), "memory does not change the velocity")
    swapped = trial.velocity(memory.select([1, 0]))
    require(_apart(seen, swapped), "another sample's memory gives the same velocity")
    far = trial.velocity(memory, first=30)
    require(_apart(seen, far), "with memory, the targets' frames do not change the velocity")
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


def _check_cache(trial: Trial) -> None:
    memory = trial.memory()
    try:
        cache = trial.backbone.remember(memory)
    except ValueError:
        return  # `full` attention: memory sees targets, so nothing can be kept
    require(cache.length == memory.length, f"cache: {cache.length} of {memory.length} tokens kept")
    for salt in (2, 3):  # two prompts, one cache
        kept, made = trial.velocity(cache, salt=salt), trial.velocity(memory, salt=salt)
        require_close(kept, made, 0.0, "the velocity with a cache against the one without")
    nothing = trial.backbone.remember(Memory())
    line = "the cache of an empty memory against no memory"
    require_close(trial.velocity(nothing), trial.velocity(None), 0.0, line)


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


def _apart(x: Tensor, y: Tensor) -> bool:
    return float((x - y).abs().max()) > 1e-6 * max(1e-3, float(y.abs().max()))
