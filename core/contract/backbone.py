"""The contract of backbones: what every G must keep, checked on a small one.

Velocities have the shape of the targets and depend on prompt, memory and frames; samples do not
depend on each other or on padding; caches, also ones that grow, give what their memory gives; new
adapters and enhancers change nothing at first, and all that is trained has a gradient.
"""

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

BATCH = 2
TOLERANCE = 1e-4  # of the greatest value, between two ways that only round differently
FEATURES = {"hint": 6}  # widths by name, as `BackboneTest.memory` takes them
WIDTHS = {"test.hint": 6}  # the same by part and name, as `add_enhancer` takes them


def check_backbone(backbone: Backbone, *, seed: int = 0, cached: float = 0.0) -> None:
    """Check that a backbone keeps the contract of `core.interfaces.backbone.Backbone`.

    Give it a small one whose weights are random rather than zero, without adapters; it is left as
    it was. Caches that
    grow and features of a memory are checked where the backbone offers them. `cached` is how far a
    velocity with a cache may be from the one without, of the greatest value: more than 0 only
    where shapes differ between the two, as in a backbone that splits its batch.

    Raises:
        AssertionError: it does not; one line says what.
    """
    test = BackboneTest(backbone=backbone, seed=seed)
    with torch.no_grad():
        _check_shapes(test)
        _check_memory(test)
        _check_ragged(test)
        check_cache(test, cached)
        check_append(test)
        _check_adapters(test)
    check_enhancer(test, cached)
    _check_gradients(test)


@frozen(kw_only=True)
class BackboneTest:
    """A backbone and random inputs of its shapes."""

    backbone: Backbone
    seed: int

    def draw(self, *shape: int, salt: int = 0) -> Tensor:
        """Return random normal numbers where the backbone is."""
        random = torch.Generator().manual_seed(self.seed * 1000 + salt)
        like = next(self.backbone.parameters())
        return torch.randn(shape, generator=random).to(like.device)

    def latents(self) -> Tensor:
        """Return noisy targets of odd height and width, `[B, C, K, H, W]`."""
        shapes = self.backbone.geometry
        patch = shapes.patch
        size = (2 * patch.time, 2 * patch.height + 1, 3 * patch.width + 1)
        return self.draw(BATCH, shapes.channels, *size, salt=1)

    def frames(self, first: int = 9) -> Tensor:
        """Return the absolute frames of the targets, `[B, K]`, with a gap in sample 1."""
        count = 2 * self.backbone.geometry.patch.time
        frames = torch.arange(first, first + count).repeat(BATCH, 1)
        frames[1] += 3
        return frames.to(self.latents().device)

    def text(self, salt: int = 2) -> Text:
        """Return random prompts."""
        blank = self.backbone.blank_text(BATCH, 5)
        noise = self.draw(*blank.embeddings.shape, salt=salt).to(blank.embeddings.dtype)
        pooled = blank.pooled
        if pooled is not None:
            pooled = self.draw(*pooled.shape, salt=salt + 1).to(pooled.dtype)
        return attrs.evolve(blank, embeddings=noise, pooled=pooled)

    def memory(self, tokens: int = 6, features: Mapping[str, int] | None = None) -> Memory:
        """Return a random memory at places between cells, with features of these widths."""
        shape = (BATCH, tokens)
        places = self.draw(*shape, 3, salt=4).double().abs() * 2
        named = {n: self.draw(*shape, w, salt=6) for n, w in (features or {}).items()}
        part = Part(
            name="test",
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
        """Return the velocity of the samples `order`, whose memory is given, at their `times`."""
        index = list(order)
        context = self.backbone.context(self.text(salt).select(index), memory)
        noisy, frames = self.latents()[index], self.frames(first)[index]
        t = torch.tensor(times, device=noisy.device)[index]
        return self.backbone.velocity(noisy, t, frames, context)


def differ(x: Tensor, y: Tensor) -> bool:
    """Say whether two outputs differ by more than rounding."""
    return float((x - y).abs().max()) > 1e-6 * max(1e-3, float(y.abs().max()))


def _check_shapes(test: BackboneTest) -> None:
    require_shape(test.velocity(None), tuple(test.latents().shape), "velocity of odd sizes")
    require_shape(test.velocity(test.memory()), tuple(test.latents().shape), "with memory, it")
    one, two = test.velocity(None), test.velocity(None, salt=3)
    require(differ(one, two), "the prompt does not change the velocity")


def _check_memory(test: BackboneTest) -> None:
    none = test.velocity(None)
    for empty, name in ((Memory(), "an empty memory"), (test.memory(0), "a part of no tokens")):
        require_close(test.velocity(empty), none, 0.0, f"{name} against no memory")
    memory = test.memory()
    seen = test.velocity(memory)
    require(differ(seen, none), "memory does not change the velocity")
    swapped = test.velocity(memory.select([1, 0]))
    require(differ(seen, swapped), "another sample's memory gives the same velocity")
    far = test.velocity(memory, first=30)
    require(differ(seen, far), "with memory, the targets' frames do not change the velocity")
    halves = [test.velocity(memory.select([i]), (i,)) for i in range(BATCH)]
    require_close(torch.cat(halves), seen, TOLERANCE, "a sample alone and in a batch")


def _check_ragged(test: BackboneTest) -> None:
    part = test.memory().parts[0]
    count = part.tokens.shape[1] // 2
    valid = part.valid.clone()
    valid[1, count:] = False
    spoiled = torch.where(valid[..., None], part.tokens, torch.nan)
    ragged = test.velocity(Memory(parts=(attrs.evolve(part, tokens=spoiled, valid=valid),)))
    short = Memory(parts=(part.take(torch.arange(count).repeat(BATCH, 1)),)).select([1])
    line = "with padding behind it, a sample's velocity against that of its real tokens"
    require_close(ragged[1:], test.velocity(short, (1,)), TOLERANCE, line)
    full = test.velocity(test.memory().select([0]), (0,))
    require_close(ragged[:1], full, TOLERANCE, "beside a ragged sample, a full one")
    hidden = attrs.evolve(part, valid=torch.zeros_like(valid))
    line = "a memory of padding alone against none"
    require_close(test.velocity(Memory(parts=(hidden,))), test.velocity(None), TOLERANCE, line)


def check_cache(test: BackboneTest, tolerance: float = 0.0) -> None:
    """Check that a cache gives what its memory gives, for every prompt.

    `tolerance` is of the greatest value; 0: to the bit.
    """
    memory = test.memory()
    try:
        cache = test.backbone.remember(memory)
    except ValueError:
        return  # `full` attention: memory sees targets, so nothing can be kept
    require(cache.length == memory.length, f"cache: {cache.length} of {memory.length} tokens kept")
    for salt in (2, 3):  # two prompts, one cache
        cached, plain = test.velocity(cache, salt=salt), test.velocity(memory, salt=salt)
        require_close(cached, plain, tolerance, "the velocity with a cache against the one without")
    nothing = test.backbone.remember(Memory())
    line = "the cache of an empty memory against no memory"
    require_close(test.velocity(nothing), test.velocity(None), 0.0, line)


def check_append(test: BackboneTest) -> None:
    """Check that a cache made longer is the cache of the whole; the shorter one stays as it is."""
    first, second = _in_pieces(test)
    remember, whole = test.backbone.remember, _spread(test.memory())
    try:
        cache = remember(first)
        before = copied(_tensors(cache))
        grown = remember(second, cache)
    except ValueError:
        return  # not `isolated-causal`: memory sees later memory, too
    require_unchanged(_tensors(cache), before, "a cache that something was appended to")
    line = "a cache that grew against its memory at once"
    require(grown.length == whole.length, f"{line}: {grown.length} of {whole.length} tokens kept")
    require_close(test.velocity(grown), test.velocity(whole), TOLERANCE, line)
    other = test.velocity(remember(second.select([1, 0]), cache))
    again = test.velocity(remember(second, cache))
    line = "after another memory was appended and thrown away, the same one"
    require_close(again, test.velocity(grown), 0.0, line)
    require(differ(other, again), "what is appended to a cache does not change the velocity")
    same = test.backbone.remember(Memory(), cache)
    line = "a cache that an empty memory was appended to against itself"
    require_close(test.velocity(same), test.velocity(cache), 0.0, line)


def _spread(memory: Memory) -> Memory:
    """Return the tokens at rising times, over many blocks."""
    part = memory.parts[0]
    places = part.positions.clone()
    places[..., 0] = torch.arange(places.shape[1], dtype=places.dtype, device=places.device) * 5
    return Memory(parts=(attrs.evolve(part, positions=places),))


def _in_pieces(test: BackboneTest) -> tuple[Memory, Memory]:
    part = _spread(test.memory()).parts[0]
    batch, count = part.valid.shape
    cuts = torch.arange(count).repeat(batch, 1).split([count // 2, count - count // 2], dim=1)
    first, second = (Memory(parts=(part.take(cut),)) for cut in cuts)
    return first, second


def _tensors(cache: Cache) -> dict[str, Tensor]:
    named = {"keys": cache.keys, "values": cache.values}
    return {f"{name} {i}": x for name, held in named.items() for i, x in enumerate(held)}


def _check_adapters(test: BackboneTest) -> None:
    require(not test.backbone.adapters(), "the backbone has adapters: give one without")
    changed = attrs.evolve(test, backbone=copy.deepcopy(test.backbone))
    changed.backbone.add_lora(LoRA(rank=2, alpha=2.0))
    adapters = changed.backbone.adapters()
    require(bool(adapters), "add_lora adds no adapters")
    trained = {id(p) for p in changed.backbone.parameters() if p.requires_grad}
    require(trained == {id(p) for p in adapters.values()}, "adapters: not they alone are trained")
    memory = test.memory()
    before, after = test.velocity(memory), changed.velocity(memory)
    require_close(after, before, 0.0, "the velocity with new adapters against the one before")


def check_enhancer(test: BackboneTest, cached: float = 0.0) -> None:
    """Check that features change nothing at first; then they are read, and all weights learn."""
    changed = attrs.evolve(test, backbone=copy.deepcopy(test.backbone))
    model, memory = changed.backbone, test.memory(features=FEATURES)
    try:
        model.add_enhancer(WIDTHS)
    except ValueError:
        return  # this backbone reads no features
    adapters = model.adapters()
    require(bool(adapters), "add_enhancer adds no adapters")
    with torch.no_grad():
        line = "the velocity with a new enhancer against the one before"
        require_close(changed.velocity(memory), test.velocity(memory), 0.0, line)
        for place, weight in enumerate(adapters.values()):
            weight.add_(test.draw(*weight.shape, salt=20 + place).to(weight.dtype) * 0.2)
        _check_features(changed, memory, cached)
        line = "without memory, the velocity with an enhancer against the one before"
        require_close(changed.velocity(None), test.velocity(None), 0.0, line)
    _check_learns(changed, memory)


def _check_features(test: BackboneTest, memory: Memory, cached: float) -> None:
    part, seen = memory.parts[0], test.velocity(memory)
    other = {name: x.flip(0) for name, x in part.features.items()}
    swapped = Memory(parts=(attrs.evolve(part, features=other),))
    require(differ(seen, test.velocity(swapped)), "features do not change the velocity")
    valid = part.valid.clone()
    valid[1, 1:] = False
    spoiled = {n: torch.where(valid[..., None], x, torch.nan) for n, x in part.features.items()}
    ragged = Memory(parts=(attrs.evolve(part, features=spoiled, valid=valid),))
    short = Memory(parts=(part.take(torch.zeros(len(valid), 1, dtype=torch.int64)),)).select([1])
    line = "with padding behind it, a sample's velocity with features against that of its real ones"
    require_close(test.velocity(ragged)[1:], test.velocity(short, (1,)), TOLERANCE, line)
    try:
        cache = test.backbone.remember(memory)
    except ValueError:
        return  # `full` attention
    line = "with features, the velocity with a cache against the one without"
    require_close(test.velocity(cache), seen, cached, line)


def _check_learns(test: BackboneTest, memory: Memory) -> None:
    read, unread = (_gradients(test, each) for each in (memory, Memory()))
    none = sorted(name for grads in (read, unread) for name, x in grads.items() if x is None)
    line = "weights of enhancers have no gradient, with memory or without (give them one of zero)"
    require(not none, f"{len(none)} {line}: {', '.join(none[:3])}")
    dead = sorted(name for name, x in read.items() if x is not None and not bool(x.any()))
    require(not dead, f"{len(dead)} weights of enhancers learn nothing: {', '.join(dead[:3])}")


def _gradients(test: BackboneTest, memory: Memory) -> dict[str, Tensor | None]:
    test.backbone.zero_grad(set_to_none=True)
    for times in ((0.02, 0.98), (0.3, 0.8)):  # where a model has several experts, all of them
        test.velocity(memory, times=times).square().sum().backward()
    return {name: weight.grad for name, weight in test.backbone.adapters().items()}


def _check_gradients(test: BackboneTest) -> None:
    part = test.memory().parts[0]
    tokens = part.tokens.clone().requires_grad_(True)
    memory = Memory(parts=(attrs.evolve(part, tokens=tokens),))
    loss = test.velocity(memory).square().sum()
    (gradient,) = torch.autograd.grad(loss, tokens)
    require(bool(gradient.isfinite().all()), "the gradient of memory is not finite")
    dead = int((gradient.abs().amax(dim=-1) == 0).sum())
    require(dead == 0, f"{dead} of {BATCH * part.tokens.shape[1]} memory tokens get no gradient")
