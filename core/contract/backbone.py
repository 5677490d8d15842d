"""The contract of backbones: what every G must keep, checked on a small one.

Velocities have the shape of the targets and depend on prompt, time, memory, its places and frames;
samples do not depend on each other or on padding; without memory they are the reference's; memory
that is the model's own tokens of earlier frames is those frames of a longer video; caches, also
ones that grow, give what their memory gives; new adapters and enhancers change nothing at first,
and all that is trained has a gradient, the same under checkpointing; files give back what was
saved.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from attrs import frozen
from einops import rearrange
from torch import Tensor

from ..config.recipe import check_recipe
from ..errors import UserError
from ..interfaces.backbone import Backbone, Cache, Reference, target_positions
from ..interfaces.spec import BackboneSpec, LoRA
from ..values.memory import Memory, Part
from ..values.text import Text
from .samples import (
    copied,
    names_plugin,
    require,
    require_close,
    require_shape,
    require_unchanged,
)

BATCH = 2
TOLERANCE = 1e-4  # of the greatest value, between two ways that only round differently
FEATURES = {"hint": 6}  # widths by name, as `BackboneTest.memory` takes them
WIDTHS = {"test.hint": 6}  # the same by part and name, as `add_enhancer` takes them


@names_plugin
def check_backbone(
    backbone: Backbone,
    *,
    seed: int = 0,
    cached: float = 0.0,
    reference: Reference | None = None,
    spec: BackboneSpec | None = None,
) -> tuple[str, ...]:
    """Check that a backbone keeps the contract of `core.interfaces.backbone.Backbone`.

    Give it a small one without adapters; it is left as it was: what is checked is a copy whose
    matrices are drawn anew, so that nothing starts at zero and attention counts. Caches that grow
    and features of a memory are checked where the backbone offers them.

    Args:
        backbone: the model.
        seed: of the random inputs.
        cached: how far a velocity with a cache may be from the one without, of the greatest value:
            more than 0 only where shapes differ between the two, as in a backbone that splits its
            batch.
        reference: the velocity of the same weights by other code, which says what sign and scale of
            time are right; default: the backbone's own `reference()`.
        spec: what the backbone was built of; its recipe is checked, and with its field `weights`
            saved weights are loaded.

    Returns:
        What could not be checked, a line each.

    Raises:
        AssertionError: it does not; one line says what.
    """
    if spec is not None:
        _check_recipe(spec)
    test = BackboneTest(backbone=_lively(backbone, seed), seed=seed)
    given = attrs.evolve(test, backbone=backbone)
    with torch.no_grad():
        _check_shapes(test)
        _check_time(test)
        _check_fit(test)
        _check_memory(test)
        _check_ragged(test)
        unchecked = _check_reference(test if reference is None else given, reference)
        unchecked += _check_longer_video(test)
        check_cache(test, cached)
        check_append(test)
        _check_adapters(test)
    check_enhancer(test, cached)
    _check_gradients(test)
    _check_checkpointing(test)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        _check_adapter_files(test, Path(folder))
        unchecked += _check_weight_files(test, Path(folder), spec)
    return tuple(unchecked)


def _check_recipe(spec: BackboneSpec) -> None:
    """Check that all of the recipe of a backbone's spec is read, and taken, by some field."""
    try:
        check_recipe(type(spec))
    except UserError as error:
        raise AssertionError(str(error)) from error


def _lively(backbone: Backbone, seed: int) -> Backbone:
    """Return a copy whose matrices are random at unit gain, and whose vectors are not zero."""
    model, random = copy.deepcopy(backbone), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=random)
                weight.copy_(noise / (weight.numel() / weight.shape[0]) ** 0.5)
            elif not bool(weight.any()):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=random))
    return model


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
    for axis, name in enumerate(("time", "row", "column")):
        moved = test.velocity(_moved(memory, axis))
        require(
            differ(seen, moved), f"the {name} of a memory's places does not change the velocity"
        )
    halves = [test.velocity(memory.select([i]), (i,)) for i in range(BATCH)]
    require_close(torch.cat(halves), seen, TOLERANCE, "a sample alone and in a batch")


def _moved(memory: Memory, axis: int) -> Memory:
    """Return the memory with every second token elsewhere on one axis of its places."""
    part = memory.parts[0]
    places = part.positions.clone()
    places[:, ::2, axis] += 3
    return Memory(parts=(attrs.evolve(part, positions=places),))


def _check_time(test: BackboneTest) -> None:
    for one, two in ((0.3, 0.8), (0.95, 1.0)):  # where a model has two experts, one of them, too
        first, second = test.velocity(None, times=(one, two)), test.velocity(None, times=(two, one))
        for row in range(BATCH):
            line = "the time t does not change the velocity"
            require(differ(first[row], second[row]), line)
    noisy = test.latents()
    context = test.backbone.context(test.text(), None)
    t = torch.tensor([0.3, 0.8], device=noisy.device)
    outs = [test.backbone.velocity(x, t, test.frames(), context) for x in (noisy, noisy.flip(2))]
    require(differ(*outs), "the noisy latents do not change the velocity")


def _check_fit(test: BackboneTest) -> None:
    """Check that `fit` is a copy of the parameters that `fitted` names, in the right shapes."""
    fit, shapes = test.backbone.fit(), test.backbone.geometry
    patch = shapes.patch
    size = (shapes.width, shapes.channels, patch.time, patch.height, patch.width)
    require(fit.geometry == shapes, "fit: its geometry is not the backbone's")
    require_shape(fit.patch_weight, size, "fit: patch_weight")
    require_shape(fit.patch_bias, (shapes.width,), "fit: patch_bias")
    require(bool(fit.patch_weight.any()), "fit: patch_weight is all zero")
    ours = [fit.patch_weight, fit.patch_bias]
    fitted = test.backbone.fitted()
    require(bool(fitted), "fitted: it names no parameters")
    shared = {x.untyped_storage().data_ptr() for x in test.backbone.parameters()}
    copied_all = all(x.untyped_storage().data_ptr() not in shared for x in ours)
    require(copied_all, "fit: it shares the backbone's weights, must be a copy")
    require(not any(x.requires_grad for x in ours), "fit: it carries gradients, must be detached")
    numbers = [x.flatten().float().sort().values for x in ours]
    for weight in fitted:
        own = weight.detach().flatten().float().sort().values
        held = any(torch.equal(own, each) for each in numbers)
        require(
            held, f"fit: the numbers of a weight {tuple(weight.shape)} of fitted() are not in it"
        )


def _check_reference(test: BackboneTest, reference: Reference | None) -> list[str]:
    """Check velocities without memory, so sign and scale of time; return what could not be."""
    given, backbone = reference is not None, test.backbone
    reference = reference or backbone.reference()
    if reference is None:
        return ["sign and time scale not checked: there is no reference"]
    shapes = backbone.geometry
    patch = shapes.patch
    size = (2 * patch.time, 2 * patch.height, 3 * patch.width)
    noisy = test.draw(BATCH, shapes.channels, *size, salt=7)
    frames, text = torch.arange(size[0]).repeat(BATCH, 1).to(noisy.device), test.text()
    context = backbone.context(text, None)
    for times in ((0.3, 0.8), (1.0, 0.02)):
        t = torch.tensor(times, device=noisy.device)
        ours = backbone.velocity(noisy, t, frames, context)
        try:
            theirs = reference(noisy, t, text)
        except Exception as error:  # of a stranger's model, which may want other arguments
            if given:
                raise
            why = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
            return [f"sign and time scale not checked: the reference failed ({why})"]
        require(theirs.shape == ours.shape, f"the reference gives {tuple(theirs.shape)}")
        negated = _gap(-ours, theirs) <= TOLERANCE
        require(not negated, "the velocity is the negative of the reference's: it must be ε − X₀")
        gap = _gap(ours, theirs)
        line = f"without memory, the velocity is not the reference's at t {times}: off by {gap:.3g}"
        require(gap <= TOLERANCE, f"{line} of the greatest value (is t scaled as the model's?)")
    return []


def _gap(x: Tensor, y: Tensor) -> float:
    """Return the greatest difference, of the greatest value of `y`."""
    return float((x.double() - y.double()).abs().max() / y.double().abs().max().clamp_min(1e-9))


def _check_longer_video(test: BackboneTest) -> list[str]:
    """Check the longer-video law; return what could not be checked."""
    shared = test.backbone.joint()
    if shared is None:
        return ["longer-video law not checked: the backbone has no `joint` copy"]
    # 1: of several experts, the one whose first projection is in `fit`
    _check_longer(attrs.evolve(test, backbone=shared), None)
    own = test.backbone.joint(memory_time=0.25)
    if own is not None:
        _check_longer(attrs.evolve(test, backbone=own), 0.25)
    return []


def _check_longer(test: BackboneTest, memory_time: float | None) -> None:
    """Check that B in [A, B] has the velocity of B with the memory `fit().tokens(A)`.

    Args:
        test: of a `joint` copy.
        memory_time: the time of A; None: that of B. Passed over where the backbone knows one time
            a sample.
    """
    model, later = test.backbone, test.latents()
    earlier = test.draw(*later.shape, salt=8)
    count = later.shape[2]
    first, then = test.frames(9), test.frames(9 + 2 * count)
    t = torch.ones(BATCH, device=later.device)
    times = t
    if memory_time is not None:
        times = t[:, None].repeat(1, 2 * count)
        times[:, :count] = memory_time
    both, frames = torch.cat([earlier, later], dim=2), torch.cat([first, then], dim=1)
    text = test.text()
    try:
        whole = model.velocity(both, times, frames, model.context(text))[:, :, count:]
    except ValueError:
        if memory_time is None:
            raise
        return
    memory = _tokens_as_memory(model, earlier, first)
    seen = model.velocity(later, t, then, model.context(text, memory))
    alone = model.velocity(later, t, then, model.context(text))
    require(_gap(alone, whole) > TOLERANCE, "earlier frames of a video do not change later ones")
    gap = _gap(seen, whole)
    line = "longer-video law: the velocity of B in [A, B] is not that of B with memory"
    where = "" if memory_time is None else f" at the time {memory_time:g}"
    require(
        gap <= TOLERANCE,
        f"{line} fit().tokens(A) at A's places{where}: off by {gap:.3g} of the greatest value",
    )


def _tokens_as_memory(model: Backbone, latents: Tensor, frames: Tensor) -> Memory:
    """Return the memory that is the model's own tokens of latents, at their places."""
    grid = model.fit().tokens(latents)  # [B, T', H', W', D]
    patch = model.geometry.patch
    places = target_positions(frames[:, :: patch.time], *grid.shape[2:4])
    places[..., 0] += (patch.time - 1) / 2
    extents = torch.ones_like(places)
    extents[..., 0] = patch.time
    part = Part(
        name="tokens",
        tokens=rearrange(grid, "b t h w d -> b (t h w) d"),
        positions=places,
        extents=extents,
        valid=torch.ones(places.shape[:2], dtype=torch.bool, device=places.device),
    )
    return Memory(parts=(part,))


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
    before, after = _frozen(test).velocity(memory), changed.velocity(memory)
    require_close(after, before, 0.0, "the velocity with new adapters against the one before")


def _frozen(test: BackboneTest) -> BackboneTest:
    """Return a copy whose weights are frozen, as adapters freeze them: torch rounds them so."""
    return attrs.evolve(test, backbone=copy.deepcopy(test.backbone).requires_grad_(False))


def _is_frozen(test: BackboneTest) -> bool:
    """Return whether all but the adapters is frozen."""
    own = {id(p) for p in test.backbone.adapters().values()}
    return all(id(p) in own or not p.requires_grad for p in test.backbone.parameters())


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
        before = _frozen(test) if _is_frozen(changed) else test
        line = "the velocity with a new enhancer against the one before"
        require_close(changed.velocity(memory), before.velocity(memory), 0.0, line)
        for place, weight in enumerate(adapters.values()):
            weight.add_(test.draw(*weight.shape, salt=20 + place).to(weight.dtype) * 0.2)
        _check_features(changed, memory, cached)
        line = "without memory, the velocity with an enhancer against the one before"
        require_close(changed.velocity(None), before.velocity(None), 0.0, line)
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


def _adapted(
    test: BackboneTest, *, features: bool = True, seed: int = 0
) -> tuple[BackboneTest, Memory]:
    """Return a copy with adapters at their start, of LoRA and enhancers; and a memory for it."""
    changed, widths = attrs.evolve(test, backbone=copy.deepcopy(test.backbone)), None
    if features:
        try:
            changed.backbone.add_enhancer(WIDTHS, seed=seed)
            widths = FEATURES
        except ValueError:
            pass  # this backbone reads no features
    changed.backbone.add_lora(LoRA(rank=2, alpha=4.0, seed=seed))
    return changed, test.memory(features=widths)


def _trained(test: BackboneTest, *, features: bool = True) -> tuple[BackboneTest, Memory]:
    """Return a copy with adapters as training leaves them, none zero; and a memory for it."""
    changed, memory = _adapted(test, features=features)
    with torch.no_grad():
        for place, weight in enumerate(changed.backbone.adapters().values()):
            weight.add_(test.draw(*weight.shape, salt=60 + place).to(weight) * 0.2)
    return changed, memory


def _check_checkpointing(test: BackboneTest) -> None:
    """Check that checkpointing changes neither the velocity nor any gradient."""
    changed, memory = _trained(test)
    changed.backbone.train()
    plain = _all_gradients(changed, memory)
    changed.backbone.set_checkpointing(True)
    tolerance = 0.0 if plain["memory"].device.type == "cpu" else TOLERANCE
    for name, gradient in _all_gradients(changed, memory).items():
        line = f"with checkpointing, the gradient of {name} against the one without"
        require_close(gradient, plain[name], tolerance, line)


def _all_gradients(test: BackboneTest, memory: Memory) -> dict[str, Tensor]:
    """Return the gradients of a memory's tokens and of all adapters."""
    test.backbone.zero_grad(set_to_none=True)
    part = memory.parts[0]
    tokens = part.tokens.clone().requires_grad_(True)
    read = Memory(parts=(attrs.evolve(part, tokens=tokens),))
    for times in ((0.02, 0.98), (0.3, 0.8)):
        test.velocity(read, times=times).square().sum().backward()
    adapters = test.backbone.adapters().items()
    grads = {name: weight.grad for name, weight in adapters if weight.grad is not None}
    require(tokens.grad is not None, "memory gets no gradient")
    return grads | ({} if tokens.grad is None else {"memory": tokens.grad})


def _check_adapter_files(test: BackboneTest, folder: Path) -> None:
    """Check that adapters go through a file: into those that are there, and LoRA as new ones."""
    path = folder / "adapters.safetensors"
    trained, memory = _trained(test)
    trained.backbone.save_adapters(path)
    require(path.is_file(), "save_adapters writes no file")
    _check_loaded(_adapted(test, seed=1)[0], trained, path, memory, "adapters loaded into others")
    trained, memory = _trained(test, features=False)
    trained.backbone.save_adapters(path)
    fresh = attrs.evolve(test, backbone=copy.deepcopy(test.backbone))
    _check_loaded(fresh, trained, path, memory, "adapters loaded where there were none")
    try:
        trained.backbone.save_weights(folder / "adapted")
    except ValueError:
        return
    raise AssertionError("save_weights writes a model with adapters, must raise ValueError")


def _check_loaded(
    to: BackboneTest, trained: BackboneTest, path: Path, memory: Memory, what: str
) -> None:
    to.backbone.load_adapters(path)
    ours, theirs = to.backbone.adapters(), trained.backbone.adapters()
    lost = sorted(ours.keys() ^ theirs.keys())
    require(not lost, f"{what}: {len(lost)} are not the same ones: {', '.join(lost[:3])}")
    require_close(to.velocity(memory), trained.velocity(memory), 0.0, f"the velocity of {what}")


def _check_weight_files(test: BackboneTest, folder: Path, spec: BackboneSpec | None) -> list[str]:
    """Check that weights go through a folder; return what could not be checked."""
    weights = folder / "weights"
    test.backbone.save_weights(weights)
    for name in ("config.json", "*.safetensors"):
        require(any(weights.rglob(name)), f"save_weights writes no {name}")
    if spec is None or "weights" not in attrs.fields_dict(type(spec)):
        return ["loading of saved weights not checked: no spec with a field `weights` was given"]
    named = attrs.evolve(spec, weights=str(weights))  # type: ignore[call-arg]
    loaded = type(test.backbone).load(named, seed=1).to(test.latents().device)
    loaded.train(test.backbone.training)
    memory = test.memory()
    line = "the velocity of saved and loaded weights against that of the saved ones"
    again = attrs.evolve(test, backbone=loaded).velocity(memory)
    require_close(again, test.velocity(memory), 0.0, line)
    return []
