"""Cross-attention to a memory's features in every block (method.md §5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks.group_offloading import ModuleGroup
from safetensors.torch import load_file
from torch import Tensor

from longtake.backbones.blocks.enhancer import Enhancer
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.errors import UserError
from longtake.core.interfaces.backbone import Cache, Feature
from longtake.core.interfaces.spec import LoRA
from longtake.core.sample.loop import Conditioning, Contexts, guided
from longtake.core.sample.spec import Sampler
from longtake.core.train.checkpoint import checkpoints, load_run
from longtake.core.train.pretrain import pretrain
from longtake.core.values.grid import MemoryLimit
from longtake.core.values.memory import Memory, Part, drop_oldest

from ..small import make_store
from ..small import small as small_experiment

WIDTHS = {"one.last": 12, "two.last": 6, "two.first": 5}
ATTENTIONS = ("full", "isolated", "isolated-causal")


def small(wan: Any, attention: str = "full", **changes: Any) -> TinyWanBackbone:
    numbers = {"attention": attention, "memory_time": 0.0, "cache_block": 4}
    model: TinyWanBackbone = wan.small(**(numbers | changes))
    return model


def enhanced(wan: Any, attention: str = "full", **changes: Any) -> TinyWanBackbone:
    """A model whose enhancers do something."""
    model = small(wan, attention, **changes)
    model.add_enhancer(WIDTHS)
    random = torch.Generator().manual_seed(4)
    for name, weight in model.adapters().items():
        if ".to_out." in name:
            torch.nn.init.normal_(weight, std=0.3, generator=random)
    return model


def memory(wan: Any, batch: int = 2, tokens: int = 5, seed: int = 3) -> Memory:
    """Two parts with the features of `WIDTHS`, tokens at whole latents."""
    parts = []
    for name in ("one", "two"):
        part = wan.memory(batch, tokens, seed=seed).parts[0]
        places = part.positions.clone()
        places[..., 0] = torch.arange(tokens).double()
        features = {
            feature.partition(".")[2]: wan.noise(batch, tokens, width, seed=seed + width)
            for feature, width in WIDTHS.items()
            if feature.startswith(name)
        }
        parts.append(attrs.evolve(part, name=name, positions=places, features=features))
    return Memory(parts=tuple(parts))


def changed(held: Memory, **features: Tensor) -> Memory:
    parts = tuple(attrs.evolve(p, features={**p.features, **features}) for p in held.parts)
    return attrs.evolve(held, parts=parts)


def velocity(
    model: TinyWanBackbone, wan: Any, held: Memory | Cache | None, rows: tuple[int, ...] = (0, 1)
) -> Tensor:
    index = list(rows)
    context = model.context(wan.text(2).select(index), held)
    x, t = wan.noise(2, 16, 2, 4, 4)[index], torch.tensor([0.3, 0.8])[index]
    return model.velocity(x, t, wan.frames(7, 2, len(index)), context)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_step_zero_is_unchanged_to_the_bit(wan: Any, attention: str) -> None:
    plain, model, held = small(wan, attention), small(wan, attention), memory(wan)
    state = torch.get_rng_state()
    model.add_enhancer(WIDTHS)
    assert torch.equal(torch.get_rng_state(), state)
    for shown in (held, Memory(), None):
        assert torch.equal(velocity(model, wan, shown), velocity(plain, wan, shown))
    if attention != "full":
        cache = model.remember(held)
        assert torch.equal(velocity(model, wan, cache), velocity(plain, wan, held))


def test_the_seed_says_all(wan: Any) -> None:
    models = [small(wan, layers=1) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.add_enhancer(WIDTHS, seed)
    one, two, other = ([p.detach() for p in m.adapters().values()] for m in models)
    assert all(map(torch.equal, one, two))
    assert not all(map(torch.equal, one, other))
    with pytest.raises(ValueError, match="already"):
        models[0].add_enhancer(WIDTHS)
    none = small(wan)
    none.add_enhancer({})
    assert not none.adapters()


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_targets_read_features_and_memory_does_not(wan: Any, attention: str) -> None:
    model, held = enhanced(wan, attention), memory(wan)
    seen = velocity(model, wan, held)
    assert not torch.equal(seen, velocity(small(wan, attention), wan, held))
    for name, width in (("last", 12), ("last", 6), ("first", 5)):
        parts = [
            changed(Memory(parts=(p,)), **{name: wan.noise(2, 5, width, seed=60)}).parts[0]
            if name in p.features and p.features[name].shape[-1] == width
            else p
            for p in held.parts
        ]
        other = Memory(parts=tuple(parts))
        assert not torch.equal(seen, velocity(model, wan, other))
        if attention != "full":  # its keys do not know of them
            kept = model.remember(held), model.remember(other)
            assert all(map(torch.equal, kept[0].keys, kept[1].keys))
    if attention != "full":
        assert torch.equal(velocity(model, wan, model.remember(held)), seen)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_both_branches_of_guidance_read_features(wan: Any, attention: str) -> None:
    model, held = enhanced(wan, attention), memory(wan)
    conditioning = Conditioning(text=wan.text(2), null_text=wan.text(1, seed=8), memory=held)
    contexts = Contexts.of(model, Sampler(guidance=3.0), conditioning)
    assert contexts.negative is not None
    x, t, frames = wan.noise(2, 16, 2, 4, 4), torch.tensor(0.6), wan.frames(7, 2, 2)
    found = guided(model, 3.0, x, t, frames, contexts)
    texts = (wan.text(1, seed=8).select([0, 0]), wan.text(2))
    negative, prompt = (
        model.velocity(x, t.expand(2), frames, model.context(text, held)) for text in texts
    )
    assert torch.equal(found, negative + 3.0 * (prompt - negative))
    bare = Memory(
        parts=tuple(attrs.evolve(p, features={}, name=f"no-{p.name}") for p in held.parts)
    )
    without = attrs.evolve(conditioning, memory=bare)
    less = Contexts.of(model, Sampler(guidance=3.0), without)
    assert not torch.equal(guided(model, 3.0, x, t, frames, less), found)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_features_go_with_the_tokens_that_a_budget_drops(wan: Any, attention: str) -> None:
    model, held, limit = enhanced(wan, attention), memory(wan), MemoryLimit(block=1, latents=3)
    kept: Any = drop_oldest(held, limit)
    assert all(x.shape[1] == 3 for x in kept.features.values())
    if attention == "isolated-causal":
        cache = model.remember(held).drop_oldest(limit)
        assert all(map(torch.equal, cache.memory.features.values(), kept.features.values()))
        kept = cache
    context = model.context(wan.text(2), kept)
    assert {name: x.values.shape[1] for name, x in context.features.items()} == dict.fromkeys(
        WIDTHS, 3
    )
    assert not torch.equal(velocity(model, wan, kept), velocity(model, wan, held))


@torch.no_grad()
def test_features_come_along_when_a_cache_grows(wan: Any) -> None:
    model, held = enhanced(wan, "isolated-causal"), memory(wan, tokens=9)
    first, rest = (
        attrs.evolve(held, parts=tuple(p.take(torch.arange(*cut).repeat(2, 1)) for p in held.parts))
        for cut in ((0, 5), (5, 9))
    )
    grown = model.remember(rest, model.remember(first))
    gap = (velocity(model, wan, grown) - velocity(model, wan, held)).abs().max()
    assert float(gap) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_parameter_moves_in_two_steps(wan: Any, attention: str) -> None:
    model, held = small(wan, attention), memory(wan)
    model.add_enhancer(WIDTHS)
    model.add_lora(LoRA(rank=2))
    weights = model.adapters()
    assert {n for n, p in model.named_parameters() if p.requires_grad and "enhancer" in n} == {
        n for n in weights if "enhancer" in n
    }
    assert {p for p in model.parameters() if p.requires_grad} == set(weights.values())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        velocity(model, wan, held).square().sum().backward()
        optimizer.step()
    still = [name for name, weight in weights.items() if torch.equal(weight, before[name])]
    assert not still and len([name for name in weights if "enhancer" in name]) == 2 * 8


@pytest.mark.parametrize("shown", ["nothing", "one part", "dropped"])
def test_no_rank_waits_for_a_gradient(wan: Any, shown: str) -> None:
    """Where memory brings no features, their weights have gradients of zero, not none."""
    model, held = enhanced(wan), memory(wan)
    gone = {"nothing": None, "one part": Memory(parts=held.parts[:1]), "dropped": Memory()}[shown]
    velocity(model, wan, gone).square().sum().backward()
    assert all(weight.grad is not None for weight in model.adapters().values())
    read = {n for n, p in model.adapters().items() if bool(p.grad.any())}
    idle = [n for n in model.adapters() if "two" in n or shown != "one part"]
    assert bool(read) == (shown == "one part") and not read & set(idle)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_checkpointing_keeps_gradients(wan: Any, attention: str) -> None:
    model, found = enhanced(wan, attention), []
    for on in (False, True):
        model.set_checkpointing(on)
        values = wan.noise(2, 5, 12, seed=9).requires_grad_(True)
        held = memory(wan)
        one = attrs.evolve(held.parts[0], features={"last": values})
        shown = Memory(parts=(one, held.parts[1]))
        model.zero_grad(set_to_none=True)
        (velocity(model, wan, shown) + velocity(model, wan, held)).square().sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append(grads | {"features": values.grad})
    plain, saved = found
    assert plain.keys() == saved.keys() and bool((plain["features"].abs().amax(-1) > 0).all())
    assert all(torch.equal(plain[name], saved[name]) for name in plain)


@torch.no_grad()
def test_ragged_is_alone(wan: Any) -> None:
    model, held = enhanced(wan), memory(wan)
    for count in (0, 2):
        real = torch.tensor([[True] * 5, [True] * count + [False] * (5 - count)])
        ragged = Memory(parts=tuple(_padded(part, real) for part in held.parts))
        outs = velocity(model, wan, ragged)
        cut = tuple(p.select([1]).take(torch.arange(count)[None]) for p in held.parts)
        alone = [velocity(model, wan, held.select([0]), (0,)),
                 velocity(model, wan, Memory(parts=cut), (1,))]  # fmt: skip
        assert float((outs - torch.cat(alone)).abs().max()) < 1e-5


def _padded(part: Part, real: Tensor) -> Part:
    def spoiled(x: Tensor) -> Tensor:
        return x.masked_fill(~real[..., None], torch.nan)

    features = {name: spoiled(x) for name, x in part.features.items()}
    return attrs.evolve(part, tokens=spoiled(part.tokens), features=features, valid=real)


def test_files_bring_it_back(wan: Any, tmp_path: Path) -> None:
    model, path, held = enhanced(wan), tmp_path / "lora.safetensors", memory(wan)
    model.save_adapters(path)  # without LoRA
    again = small(wan)
    again.add_enhancer(WIDTHS, seed=5)
    again.load_adapters(path)
    with torch.no_grad():
        assert torch.equal(velocity(again, wan, held), velocity(model, wan, held))
    keys = set(load_file(path))
    assert "memory.enhancer.blocks.0.to_k.two/first.weight" in keys and len(keys) == 2 * 8
    model.add_lora(LoRA(rank=2, alpha=3.0))
    for weight in model.adapters().values():
        torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(6))
    model.save_adapters(path)
    fresh, ready = small(wan), small(wan)
    for other in (fresh, ready):
        other.add_enhancer(WIDTHS, seed=5)
    ready.add_lora(LoRA(rank=2, alpha=3.0))
    for other in (fresh, ready):
        other.load_adapters(path)
        trained = {p for p in other.parameters() if p.requires_grad}
        assert trained == set(other.adapters().values())
        with torch.no_grad():
            assert torch.equal(velocity(other, wan, held), velocity(model, wan, held))
    again.save_adapters(tmp_path / "other.safetensors")
    assert [p.name for p in sorted(tmp_path.iterdir())] == [path.name, "other.safetensors"]


def test_weights_of_the_base_hold_none_of_it(wan: Any, tmp_path: Path) -> None:
    model, plain = enhanced(wan), small(wan)
    model.save_weights(tmp_path / "base")
    assert len(model.adapters()) == 2 * 8  # and they are still there
    diffusers = WanTransformer3DModel.from_pretrained(tmp_path / "base", local_files_only=True)
    assert set(diffusers.state_dict()) == set(plain.state_dict())
    model.add_lora(LoRA(rank=2))
    with pytest.raises(ValueError, match="adapters"):
        model.save_weights(tmp_path / "no")
    assert len([n for n in model.adapters() if "enhancer" in n]) == 2 * 8


def test_what_does_not_fit_is_one_clear_line(wan: Any, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    enhanced(wan).save_adapters(path)
    before = path.read_bytes()

    def refused(words: str, widths: dict[str, int], file: Path = path) -> None:
        model = small(wan)
        model.add_enhancer(widths)
        kept = [p.detach().clone() for p in model.adapters().values()]
        with pytest.raises(UserError, match=words) as caught:
            model.load_adapters(file)
        assert "\n" not in str(caught.value)
        assert all(map(torch.equal, kept, model.adapters().values()))

    refused("to_k.one/last.weight is .40, 12., here it is .40, 9.", WIDTHS | {"one.last": 9})
    refused("other features .* has .*two/first", {"one.last": 12, "two.last": 6})
    refused("other features .* lacks .*three/x", WIDTHS | {"three.x": 4})
    refused("no compressor here brings any", {})
    lora = small(wan)
    lora.add_lora(LoRA(rank=2))
    lora.save_adapters(tmp_path / "plain.safetensors")
    refused("holds no memory.enhancer", WIDTHS, tmp_path / "plain.safetensors")
    refused("no safetensors file", WIDTHS, tmp_path / "nothing.safetensors")
    assert path.read_bytes() == before


def test_memories_without_the_features_are_refused(wan: Any) -> None:
    model, held, text = enhanced(wan), memory(wan), wan.text(2)
    with pytest.raises(ValueError, match="two.last has width 3, this backbone reads 6"):
        narrow = attrs.evolve(
            held.parts[1], features=held.parts[1].features | {"last": torch.ones(2, 5, 3)}
        )
        model.context(text, Memory(parts=(held.parts[0], narrow)))
    with pytest.raises(ValueError, match="lacks two.first"):
        bare = attrs.evolve(held.parts[1], features={"last": held.parts[1].features["last"]})
        model.context(text, Memory(parts=(held.parts[0], bare)))


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_features_of_absent_parts_add_nothing(wan: Any, attention: str) -> None:
    """Parts that have none are read by a model of features as by one of none."""
    model, text = enhanced(wan, attention), wan.text(2)
    plain = small(wan, attention)
    noisy, frames, t = wan.noise(2, 16, 2, 4, 6), wan.frames(9, 2, 2), torch.tensor([0.5, 0.9])
    other = attrs.evolve(memory(wan).parts[0], name="other", features={})
    outs = []
    for backbone in (model, plain):
        bare = Memory(parts=(other,))
        held = backbone.remember(bare) if backbone.caches else bare
        outs.append(backbone.velocity(noisy, t, frames, backbone.context(text, held)))
    assert torch.equal(*outs)
    held = memory(wan)
    both = Memory(parts=(other, *held.parts))
    read = [model.context(text, x).features for x in (both, Memory(parts=held.parts[:1]))]
    assert [set(x) for x in read] == [set(WIDTHS), {"one.last"}]


@torch.no_grad()
def test_several_features_add_up(wan: Any) -> None:
    module, random = Enhancer(8, 2, {"a.x": 3, "b.y": 4}).double(), torch.Generator()
    for weight in module.parameters():
        weight.normal_(generator=random.manual_seed(2))
    hidden = wan.noise(2, 6, 8).double()
    a, b = wan.noise(2, 5, 3).double(), wan.noise(2, 4, 4, seed=2).double()
    both = module(hidden, {"a.x": Feature(a, None), "b.y": Feature(b, None)})
    apart = module(hidden, {"a.x": Feature(a, None)}) + module(hidden, {"b.y": Feature(b, None)})
    assert float((both - apart).abs().max()) < 1e-12
    masked = Feature(torch.cat([a, a], dim=1), torch.tensor([True] * 5 + [False] * 5).repeat(2, 1))
    gap = module(hidden, {"a.x": masked}) - module(hidden, {"a.x": Feature(a, None)})
    assert float(gap.abs().max()) < 1e-12
    swapped = module(hidden, {"a.x": Feature(a.flip(1), None)})
    assert float((swapped - module(hidden, {"a.x": Feature(a, None)})).abs().max()) < 1e-12


@torch.no_grad()
def test_offload_and_casting_see_it(wan: Any, monkeypatch: Any) -> None:
    held, cpu = memory(wan), torch.device("cpu")
    plain, onloads, onload = velocity(enhanced(wan), wan, held), [], ModuleGroup.onload_
    monkeypatch.setattr(ModuleGroup, "onload_", lambda self: (onloads.append(1), onload(self)))
    for kind in ("block_level", "leaf_level"):
        model = enhanced(wan)
        groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        model.enable_group_offload(
            onload_device=cpu, offload_device=cpu, offload_type=kind, **groups
        )
        assert torch.equal(velocity(model, wan, held), plain) and onloads
    cast = enhanced(wan)
    cast.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert {p.dtype for n, p in cast.adapters().items()} == {torch.float32}
    assert float((velocity(cast, wan, held) - plain).abs().max()) < 0.1 * float(plain.abs().max())


@torch.no_grad()
def test_beside_a_bf16_base_it_is_fp32(wan: Any) -> None:
    model = small(wan).bfloat16()
    model.add_enhancer(WIDTHS)
    assert {p.dtype for p in model.adapters().values()} == {torch.float32}
    for name, module in model.named_modules():
        if name.split(".")[-1] in ("time_embedder", "norm2"):
            module.float()
    assert velocity(model, wan, memory(wan)).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("trains", ["lora", pytest.param("all", marks=pytest.mark.slow)])
def test_a_run_trains_and_keeps_it(tmp_path: Path, trains: str) -> None:
    """From the spec of a compressor to the files: even where batches drop their memory."""
    plain = small_experiment(trains=trains, memory_dropout=0.3)
    experiment = attrs.evolve(
        plain,
        compressors=(attrs.evolve(plain.compressors[0], features=True),),
        backbone=attrs.evolve(plain.backbone, attention="isolated-causal", memory_time=0.0),
    )
    run = tmp_path / "run"
    pretrain(experiment, make_store(tmp_path, experiment), run)
    adapters = load_run(run).backbone.adapters()
    moved = [name for name, weight in adapters.items() if ".to_out." in name and bool(weight.any())]
    assert len([name for name in moved if "enhancer" in name]) == 2
    base = checkpoints(run)[-1] / "backbone" / "diffusion_pytorch_model.safetensors"
    assert base.exists() == (trains == "all")
    assert not base.exists() or not [name for name in load_file(base) if "enhancer" in name]
