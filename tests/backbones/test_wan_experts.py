"""Wan 2.2 14B: either expert, or both with a switch by time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from longtake.backbones.texts.specs import Umt5
from longtake.backbones.wan.experts import ExpertCache, Experts, take_rows
from longtake.backbones.wan.specs import Wan22Moe14B
from longtake.core.contract.backbone import check_backbone
from longtake.core.errors import UserError
from longtake.core.interfaces.backbone import Backbone, Context
from longtake.core.interfaces.spec import LoRA
from longtake.core.registry import registry
from longtake.core.values.grid import MemoryLimit
from longtake.core.values.memory import Memory, Part

MODES: list[dict[str, Any]] = [
    dict(attention="full"),
    dict(attention="isolated", memory_time=0.0),
    dict(attention="isolated-causal", memory_time=0.0),
]


def spec(**changes: Any) -> Wan22Moe14B:
    numbers: dict[str, Any] = dict(
        heads=2, head_width=20, layers=2, ffn=48, text_encoder=Umt5(width=12), dtype="float32",
        weights=None, expert="both",
    )  # fmt: skip
    return Wan22Moe14B(**(numbers | changes))


def build(small: Wan22Moe14B, seed: int = 0) -> Any:
    return registry().load(small).load(small, seed=seed)


def lively(**changes: Any) -> Experts:
    """Both experts with weights that are nowhere zero."""
    model = build(spec(**changes))
    generator = torch.Generator().manual_seed(7)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=generator)
    return model  # type: ignore[no-any-return]


def close(x: Tensor, y: Tensor) -> bool:
    return float((x - y).detach().abs().max()) < 1e-5


def pipeline(root: Path, model: Experts) -> Path:
    model.save_weights(root)
    return root


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory(batch: int, tokens: int = 5) -> Memory:
    places = noise(batch, tokens, 3, seed=3).abs().double() * 3
    places[..., 0] = torch.arange(tokens)
    part = Part(
        name="test",
        tokens=noise(batch, tokens, 40, seed=4),
        positions=places,
        extents=torch.ones_like(places),
        valid=torch.ones(batch, tokens, dtype=torch.bool),
    )
    return Memory(parts=(part,))


def velocity(model: Backbone, t: list[float], held: Any = None, rows: list[int] | None = None):
    index = rows if rows is not None else list(range(len(t)))
    text = model.blank_text(4, 3)
    text = attrs.evolve(text, embeddings=noise(4, 3, 12, seed=5)).select(index)
    x, frames = noise(4, 16, 2, 4, 4, seed=6)[index], torch.tensor([[7, 9]]).expand(4, -1)[index]
    held = held.select(index) if isinstance(held, Memory) else held
    times = torch.tensor(t)[index] if rows is not None else torch.tensor(t)
    return model.velocity(x, times, frames, model.context(text, held))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["attention"])
@torch.no_grad()
def test_each_sample_has_the_expert_of_its_time(mode: dict[str, Any]) -> None:
    model, t, held = lively(**mode), [0.9, 0.2, 0.875, 0.874], memory(4)
    both = velocity(model, t, held)
    for expert, rows in ((model.transformer, [0, 2]), (model.transformer_2, [1, 3])):
        assert close(both[rows], velocity(expert, t, held, rows))  # other batches round otherwise
    high = [0.875, 1.0, 0.9, 0.95]
    assert torch.equal(velocity(model, high, held), velocity(model.transformer, high, held))
    low = [0.1, 0.2, 0.3, 0.8]
    assert torch.equal(velocity(model, low, held), velocity(model.transformer_2, low, held))
    assert not torch.equal(both[0], velocity(model.transformer_2, t, held)[0])


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode["attention"])
@torch.no_grad()
def test_a_cache_holds_both(mode: dict[str, Any]) -> None:
    model, t = lively(**mode), [0.9, 0.2, 0.9, 0.5]
    cache = model.remember(memory(4))
    assert cache.length == 5
    assert close(velocity(model, t, cache), velocity(model, t, memory(4)))
    high = [0.9, 1.0, 0.9, 0.9]
    assert torch.equal(velocity(model, high, cache), velocity(model, high, memory(4)))
    if mode["attention"] == "isolated":
        return
    half = [memory(4).parts[0].take(torch.arange(a, b).expand(4, -1)) for a, b in ((0, 2), (2, 5))]
    first = model.remember(Memory(parts=(half[0],)))
    grown = model.remember(Memory(parts=(half[1],)), first)
    assert isinstance(grown, ExpertCache)
    assert grown.length == 5 and close(velocity(model, t, grown), velocity(model, t, cache))
    dropped = grown.drop_oldest(MemoryLimit(block=1, latents=2))
    assert isinstance(dropped, ExpertCache) and dropped.length == dropped.low.length == 2
    assert torch.equal(dropped.low.keys[0], grown.low.keys[0][:, -2:])


@pytest.mark.parametrize(
    ("attention", "boundary"),
    [
        pytest.param("full", 0.5, marks=pytest.mark.slow),
        pytest.param("isolated", 0.25, marks=pytest.mark.slow),
        pytest.param("isolated", 0.5, marks=pytest.mark.slow),
        pytest.param("isolated-causal", 0.5, marks=pytest.mark.slow),
    ],
)
def test_contract(attention: str, boundary: float) -> None:
    # at 0.5 each expert runs half of the batch, but remembers all of it
    cached = 1e-5 if boundary == 0.5 else 0.0
    check_backbone(lively(attention=attention, memory_time=0.25, boundary=boundary), cached=cached)


def test_one_fit_that_of_the_high_noise_expert() -> None:
    model = lively()
    fit = model.fit()
    assert torch.equal(fit.patch_weight, model.transformer.patch_embedding.weight)
    assert not torch.equal(fit.patch_weight, model.transformer_2.patch_embedding.weight)
    assert model.fitted() == list(model.transformer.patch_embedding.parameters())
    assert model.geometry == spec().geometry


@pytest.mark.slow
def test_a_pipeline_gives_either_expert_or_both(tmp_path: Path) -> None:
    model = lively()
    root = str(pipeline(tmp_path / "pipe", model))
    one = {name: build(spec(weights=root, expert=name)) for name in ("high", "low")}
    both = build(spec(weights=root))
    pairs = ((one["high"], model.transformer), (one["low"], model.transformer_2))
    for found, wanted in (*pairs, (both, model)):
        wanted_state = wanted.state_dict()
        assert list(found.state_dict()) == list(wanted_state)
        assert all(torch.equal(x, wanted_state[n]) for n, x in found.state_dict().items())
    for name in ("transformer", "transformer_2"):
        plain = WanTransformer3DModel.from_pretrained(tmp_path / "pipe" / name)
        assert torch.equal(plain.proj_out.weight, model.get_submodule(name).proj_out.weight)
    named = spec(weights=f"{root}/transformer, {root}/transformer_2")
    assert torch.equal(build(named).transformer_2.proj_out.bias, model.transformer_2.proj_out.bias)


def test_one_model_is_refused_where_both_are_asked_for(tmp_path: Path) -> None:
    root = pipeline(tmp_path / "pipe", lively())
    with pytest.raises(UserError, match="hold one model, and expert both needs two") as caught:
        build(spec(weights=str(root / "transformer")))
    assert "\n" not in str(caught.value)
    (root / "model_index.json").write_text("{}")
    for file in (root / "transformer_2").iterdir():
        file.unlink()
    (root / "transformer_2").rmdir()
    for expert in ("both", "low"):
        with pytest.raises(UserError, match="are a pipeline without transformer_2/"):
            build(spec(weights=str(root), expert=expert))
    build(spec(weights=str(root), expert="high"))


def trained(**changes: Any) -> Experts:
    model = lively(**changes)
    model.add_lora(LoRA(rank=2, alpha=3.0))
    generator = torch.Generator().manual_seed(8)
    for weight in model.adapters().values():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return model


@pytest.mark.slow
def test_adapters_of_both_come_back_from_one_file(tmp_path: Path) -> None:
    model, t, path = trained(), [0.9, 0.2], tmp_path / "lora.safetensors"
    model.save_adapters(path)
    with safe_open(path, "pt") as file:
        names, kept = set(file.keys()), file.metadata()["lora_adapter_metadata"]
    assert names == {n for n in model.adapters()}
    assert {n.partition(".")[0] for n in names} == {"transformer", "transformer_2"}
    assert '"transformer_2.lora_alpha": 3' in kept and '"transformer.r": 2' in kept
    fresh, ready = lively(), lively()
    ready.add_lora(LoRA(rank=2, alpha=3.0))
    for other in (fresh, ready):
        other.load_adapters(path)
        assert torch.equal(velocity(other, t, memory(2)), velocity(model, t, memory(2)))
        trains = {p for p in other.parameters() if p.requires_grad}
        assert trains == set(other.adapters().values())
    assert not torch.equal(velocity(fresh, t), velocity(lively(), t))


@pytest.mark.parametrize(
    "layout",
    [
        "diffusers",
        pytest.param("comfyui", marks=pytest.mark.slow),
        pytest.param("kohya", marks=pytest.mark.slow),
    ],
)
def test_an_export_is_one_file_an_expert(tmp_path: Path, layout: str) -> None:
    model, path, t = trained(), tmp_path / "lora.safetensors", [0.9, 0.2]
    model.save_adapters(path)
    small = spec()
    files = registry().load(small).export_adapters(small, path, layout)
    assert list(files) == ["high", "low"]
    plain = lively().experts
    for (name, expert), file in zip(model.experts.items(), files.values(), strict=True):
        fresh = plain[name]
        kept = {"longtake": json.dumps({"lora": dict(file.facts)}), **file.metadata}
        save_file({n: x.contiguous() for n, x in file.tensors.items()}, path, metadata=kept)
        fresh.load_adapters(path)
        assert close(velocity(fresh, t), velocity(expert, t))


def test_bad_adapters_name_the_file_and_the_expert(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    trained().save_adapters(path)
    other = lively()
    other.add_lora(LoRA(rank=4, alpha=3.0))
    with pytest.raises(UserError, match="lora.safetensors .transformer. has rank 2") as caught:
        other.load_adapters(path)
    assert "\n" not in str(caught.value) and "/tmp" not in str(caught.value).replace(str(path), "")
    trained().transformer.save_adapters(path)
    with pytest.raises(UserError, match="nothing for transformer_2: it is of one expert"):
        lively().load_adapters(path)


def test_gradients_go_to_the_experts_that_were_asked() -> None:
    model = trained()
    velocity(model, [0.9, 0.95]).square().sum().backward()
    given = {n.partition(".")[0] for n, p in model.adapters().items() if p.grad.any()}
    assert given == {"transformer"}
    velocity(model, [0.9, 0.2], memory(2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.adapters().values())


@pytest.mark.slow
def test_with_several_processes_the_idle_expert_has_zero_gradients(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    model, alone = trained(), trained()
    out = velocity(model, [0.9, 0.95])
    monkeypatch.undo()
    assert torch.equal(out, velocity(alone, [0.9, 0.95]))
    out.square().sum().backward()
    idle = model.transformer_2.adapters().values()
    assert all(p.grad is not None and not p.grad.any() for p in idle)


@pytest.mark.slow
def test_loras_beside_go_to_the_expert_that_they_name(tmp_path: Path) -> None:
    high, low = tmp_path / "high.safetensors", tmp_path / "low.safetensors"
    trained().transformer.save_adapters(high)
    trained().transformer_2.save_adapters(low)
    made = build(spec(loras=(f"high:{high}", f"low:{low}@0.5")))
    plain, t = build(spec()), [0.9, 0.2]
    for name in ("high", "low"):
        assert not torch.equal(velocity(made, t), velocity(plain, t)), name
    only = build(spec(loras=(f"low:{low}",)))
    assert torch.equal(velocity(only, [0.9, 0.95]), velocity(plain, [0.9, 0.95]))
    assert not made.adapters()


def test_both_read_features_of_a_memory_and_keep_them_apart(tmp_path: Path) -> None:
    held = memory(2)
    part = attrs.evolve(held.parts[0], features={"last": noise(2, 5, 6, seed=9)})
    held, t = attrs.evolve(held, parts=(part,)), [0.9, 0.2]
    models = [lively() for _ in range(2)]
    for model in models:
        model.add_enhancer({"test.last": 6}, seed=1)
    generator = torch.Generator().manual_seed(10)
    for weight in models[0].adapters().values():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    models[0].save_adapters(tmp_path / "adapters.safetensors")
    with safe_open(tmp_path / "adapters.safetensors", "pt") as file:
        first = {name.partition(".blocks.")[0] for name in file.keys()}  # noqa: SIM118
    assert first == {"memory.enhancer", "memory.enhancer_2"}
    assert not close(velocity(models[1], t, held), velocity(models[0], t, held))
    models[1].load_adapters(tmp_path / "adapters.safetensors")
    assert torch.equal(velocity(models[1], t, held), velocity(models[0], t, held))


@pytest.mark.slow
def test_checkpointing_reaches_both() -> None:
    model, t = trained(), [0.9, 0.2]
    plain = velocity(model, t, memory(2))
    model.set_checkpointing(True)
    assert all(e.is_gradient_checkpointing for e in model.experts.values())
    assert torch.equal(velocity(model, t, memory(2)), plain)


def test_rows_are_taken_out_of_anything() -> None:
    rows = torch.tensor([2, 0])
    held = Context(text=lively().blank_text(3, 2), memory=memory(3).parts[0])
    some = take_rows(held, rows)
    assert torch.equal(some.memory.tokens, held.memory.tokens[[2, 0]])
    assert some.memory.name == "test" and some.cache is None and some.text.pooled is None
    assert take_rows((1, "a"), rows) == (1, "a")


def test_an_expert_that_is_not_asked_has_zero_gradients_in_one_process_too() -> None:
    model = trained()
    velocity(model, [0.2, 0.1]).square().sum().backward()
    idle = model.transformer.adapters().values()
    assert all(p.grad is not None and not p.grad.any() for p in idle)


@pytest.mark.parametrize("sharded", [True, False])
def test_where_weights_are_sharded_all_ranks_run_both(monkeypatch: Any, sharded: bool) -> None:
    """Without gradients, too: the other ranks wait for this one's part of the weights."""
    model, ran = trained(), []
    for name, expert in model.experts.items():
        expert.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    wanted = velocity(model, [0.9, 0.95])  # its context is both experts'
    ran.clear()
    monkeypatch.setattr("longtake.backbones.wan.experts._is_sharded", lambda expert: sharded)
    with torch.no_grad():
        assert torch.equal(velocity(model, [0.9, 0.95]), wanted)
    assert ran.count("transformer_2") - ran.count("transformer") == (0 if sharded else -1)
