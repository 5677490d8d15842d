"""The contract of backbones: what every G must keep, checked on a small one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..interfaces.backbone import Backbone, Cache
from ..interfaces.spec import LoRA
from ..values.memory import Memory, Part
from ..values.text import Text
from .samples import copied, require, require_close, require_shape, require_unchanged

# ⟦core/contract/trial.py⟧ A backbone under trial: random inputs of its shapes, and what it makes of them.


BATCH = 2
TOLERANCE = 1e-4  # of the greatest value, between two ways that only round differently


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

    def memory(self, tokens: int = 6, features: Mapping[str, int] | None = None) -> Memory:
        """Random memory at places between cells, with features of these widths."""
        shape = (BATCH, tokens)
        places = self.draw(*shape, 3, salt=4).double().abs() * 2
        named = {n: self.draw(*shape, w, salt=6) for n, w in (features or {}).items()}
        part = Part(
            name="trial",
            tokens=self.draw(*shape, self.backbone.geometry.width, salt=5),
            positions=places,
            extents=torch.ones_like(places),
            valid=torch.ones(shape, dtype=torch.bool, device=places.device),
            features=named,
        )
        return Memory(parts=(part,))

    def velocity(
        self,
        memory: Memory | Cache | None,
        order: tuple[int, ...] = (0, 1),
        first: int = 9,
        salt: int = 2,
        times: tuple[float, float] = (0.3, 0.8),
    ) -> Tensor:
        """The velocity of the samples `order`, whose memory is given, at their `times`."""
        index = list(order)
        context = self.backbone.context(self.text(salt).select(index), memory)
        noisy, frames = self.latents()[index], self.frames(first)[index]
        t = torch.tensor(times, device=noisy.device)[index]
        return self.backbone.velocity(noisy, t, frames, context)


def apart(x: Tensor, y: Tensor) -> bool:
    """Whether two outputs differ by more than rounding."""
    return float((x - y).abs().max()) > 1e-6 * max(1e-3, float(y.abs().max()))


# ⟦core/contract/recall.py⟧ The contract of backbones, where they remember: caches, caches that grow, features.


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
    """Return the tokens at rising times, over many blocks."""
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
