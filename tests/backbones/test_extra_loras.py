"""LoRAs beside ours (`backbone.loras`): frozen, scaled, in any layout, never saved with ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.backbones.lora.adapters import add_frozen, parse_scaled
from longtake.backbones.lora.read import parameters
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.errors import UserError
from longtake.core.interfaces.backbone import LAYOUTS
from longtake.core.interfaces.spec import LoRA

from .hunyuan_kit import HunyuanKit
from .lora_kit import exported, pipeline, stir, theirs, trained, velocity

pytestmark = pytest.mark.slow  # files of other programs; test_export has ours

Q = "diffusion_model.blocks.0.self_attn.q"


def near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-6 * b.abs().max())


def spec_of(path: Path, scale: float | None = None) -> dict[str, Any]:
    return {"loras": (str(path) if scale is None else f"{path}@{scale}",)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stacked_lora_acts_as_in_diffusers(wan: Any, layout: str, tmp_path: Path) -> None:
    path = exported(trained(wan), wan, layout, tmp_path / "x.safetensors")
    pipe = pipeline(wan, wan.small())
    pipe.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="x")
    for scale in (1.0, -0.4):
        pipe.set_adapters(["x"], [scale])
        model = wan.small(**spec_of(path, scale))
        assert near(velocity(model, wan), theirs(pipe.transformer, wan))
        assert not model.adapters()
    assert near(velocity(wan.small(**spec_of(path)), wan), velocity(trained(wan), wan))


def test_two_beside_ours_add_up_as_in_diffusers(wan: Any, tmp_path: Path) -> None:
    first = exported(trained(wan, rank=2), wan, "kohya", tmp_path / "a.safetensors")
    second = exported(
        trained(wan, targets=("attention",)), wan, "comfyui", tmp_path / "b.safetensors"
    )
    model = wan.small(loras=(f"{first}@0.5", str(second)))
    model.add_lora(LoRA(rank=4, alpha=2.0))
    before = velocity(model, wan)
    ours = exported(stir(model, seed=9), wan, "diffusers", tmp_path / "c.safetensors")
    pipe = pipeline(wan, wan.small())
    for path in (first, second, ours):
        pipe.load_lora_weights(tmp_path, weight_name=path.name, adapter_name=path.stem)
    pipe.set_adapters(["a", "b", "c"], [0.5, 1.0, 1.0])
    assert near(velocity(model, wan), theirs(pipe.transformer, wan))
    pipe.set_adapters(["a", "b"], [0.5, 1.0])
    assert near(before, theirs(pipe.transformer, wan))  # ours adds nothing at the start


def test_ours_alone_trains_and_is_saved(wan: Any, tmp_path: Path) -> None:
    other = exported(trained(wan, rank=2), wan, "diffusers", tmp_path / "other.safetensors")
    model = wan.small(**spec_of(other))
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)
    model.add_lora(LoRA(rank=3, alpha=7.0))
    stir(model)
    trains = {id(p) for p in model.parameters() if p.requires_grad}
    assert trains == {id(p) for p in model.adapters().values()}
    context = model.context(wan.text(1), wan.memory(1, 3))
    x, t = wan.noise(1, 16, 2, 4, 4), torch.tensor([0.5])
    model.velocity(x, t, wan.frames(0, 2), context).square().sum().backward()
    grads = {id(p) for p in model.parameters() if p.grad is not None and p.grad.any()}
    assert grads == trains
    path = tmp_path / "ours.safetensors"
    model.save_adapters(path)
    assert set(load_file(path)) == {f"transformer.{name}" for name in model.adapters()}
    again = wan.small(**spec_of(other))
    again.load_adapters(path)
    assert torch.equal(velocity(again, wan, True), velocity(model, wan, True))
    plain = wan.small()
    plain.load_adapters(path)
    assert not torch.equal(velocity(plain, wan, True), velocity(model, wan, True))
    late = wan.small()  # in the other order
    late.load_adapters(path)
    add_frozen(late, [str(other)])
    assert near(velocity(late, wan, True), velocity(model, wan, True))
    assert {p for p in late.parameters() if p.requires_grad} == set(late.adapters().values())


def test_hunyuan_stacks_joined_linears(tmp_path: Path) -> None:
    kit = HunyuanKit()
    for layout in LAYOUTS:
        path = exported(trained(kit), kit, layout, tmp_path / f"{layout}.safetensors")
        assert near(velocity(kit.small(**spec_of(path)), kit), velocity(trained(kit), kit))


def like_lightx2v(wan: Any, path: Path) -> dict[str, Tensor]:
    """Ranks that differ, alphas, biases, and the norms that such files carry."""
    good = load_file(exported(trained(wan, targets=("attention",)), wan, "comfyui", path))
    more = {
        f"{Q}.lora_A.weight": wan.noise(5, 40),
        f"{Q}.lora_B.weight": wan.noise(40, 5),
        f"{Q}.alpha": torch.tensor(2.0),
        f"{Q}.diff_b": wan.noise(40),
        "diffusion_model.blocks.1.self_attn.k.diff_b": wan.noise(40),
        "diffusion_model.blocks.1.cross_attn.k.diff_b": wan.noise(40),  # without A and B
        "diffusion_model.blocks.0.norm3.diff": torch.ones(40),
        "diffusion_model.blocks.0.norm3.diff_b": torch.zeros(40),
    }
    return good | more


def test_biases_act_as_in_diffusers(wan: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = like_lightx2v(wan, path)
    lone = "diffusion_model.blocks.1.cross_attn.k.diff_b"  # diffusers fails on a bias alone
    # and leaves changes of norms out
    fewer = {n: x for n, x in tensors.items() if n != lone and "norm3" not in n}
    save_file(fewer, path)
    pipe = pipeline(wan, wan.small())
    pipe.load_lora_weights(
        tmp_path, weight_name=path.name, adapter_name="x", low_cpu_mem_usage=False
    )
    pipe.set_adapters(["x"], [0.5])
    without = wan.small(**spec_of(path, 0.5))
    assert near(velocity(without, wan), theirs(pipe.transformer, wan)) and not without.changed
    save_file(tensors, path)
    assert not near(velocity(wan.small(**spec_of(path, 0.5)), wan), velocity(without, wan))


FULL = {  # all that a full LoRA may change beside linears, and what diffusers calls it
    "patch_embedding.diff": "patch_embedding.weight",
    "patch_embedding.diff_b": "patch_embedding.bias",
    "blocks.0.norm3.diff": "blocks.0.norm2.weight",
    "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
    "blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight",
    "blocks.1.self_attn.q.diff": "blocks.1.attn1.to_q.weight",  # of a linear with A and B
    "blocks.1.modulation.diff": "blocks.1.scale_shift_table",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_lora_changes_what_comfyui_changes(
    wan: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    """weight += diff · scale, bias += diff_b · scale; and a saved base holds nothing of it."""
    path = tmp_path / "x.safetensors"
    plain = TinyWanBackbone.load(wan.spec(dtype=str(dtype)[6:]))
    own = dict(plain.named_parameters())
    tensors = load_file(exported(trained(wan, targets=("attention",)), wan, "comfyui", path))
    changes = {n: wan.noise(*own[t].shape, seed=i) for i, (n, t) in enumerate(FULL.items())}
    save_file(tensors | {f"diffusion_model.{n}": x for n, x in changes.items()}, path)
    loras = (f"{path}@0.5", f"{path}@-0.25")
    model = TinyWanBackbone.load(wan.spec(dtype=str(dtype)[6:], loras=loras))
    found = parameters(model)
    assert set(found) == set(own) and set(model.changed) == set(FULL.values())
    for name, target in FULL.items():
        wide = own[target].float() + 0.5 * changes[name] - 0.25 * changes[name]
        assert torch.equal(found[target], wide.to(own[target].dtype)), target
    before = velocity(model, wan)
    model.save_weights(tmp_path / "with")
    plain.save_weights(tmp_path / "without")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("with", "without")]
        assert files[0] == files[1]
    assert torch.equal(velocity(model, wan), before)
    with pytest.raises(UserError, match="has changes of other parameters.*backbone.loras"):
        wan.small().load_adapters(path)


def test_what_was_trained_over_a_change_stays_in_a_saved_base(wan: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"diffusion_model.blocks.0.norm3.diff": torch.ones(40)}, path)
    model = wan.small(**spec_of(path))
    weight = model.blocks[0].norm2.weight
    with torch.no_grad():
        weight += 0.5
    model.save_weights(tmp_path / "base")
    saved = load_file(tmp_path / "base" / "diffusion_pytorch_model.safetensors")
    assert torch.allclose(saved["blocks.0.norm2.weight"], weight - 1.0)


def test_changes_that_do_not_fit_are_one_line(
    wan: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.safetensors"

    def refused(words: str, name: str, tensor: Tensor) -> None:
        save_file({name: tensor}, path)
        with pytest.raises(UserError, match=words) as caught:
            wan.small(**spec_of(path))
        assert "\n" not in str(caught.value)

    norm = "diffusion_model.blocks.0.norm3.diff"
    refused("change of blocks.0.norm2.weight is .3,., not .40,.", norm, torch.ones(3))
    refused("not have", "diffusion_model.blocks.0.norm9.diff", torch.ones(40))
    refused("changes blocks.0.norm1.weight, which this model does not have",
            "diffusion_model.blocks.0.norm1.diff", torch.ones(40))  # fmt: skip
    more = {"diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 40)}
    save_file({norm: torch.ones(40)} | more, path)
    with caplog.at_level(logging.WARNING):
        wan.small(**spec_of(path))
    (said,) = [record.getMessage() for record in caplog.records if "LoRA" in record.getMessage()]
    assert "blocks.0.diff_m, are left out" in said and "1 of them are not zero" in said


@given(st.floats(allow_nan=False, allow_infinity=False), st.text("ab@.é/", min_size=1))
def test_scales_are_what_stands_behind_the_last_at(scale: float, name: str) -> None:
    path, found = parse_scaled(f"{name}@{scale!r}")
    assert (path, found) == (Path(name), scale)


def test_bad_loras_say_so_in_one_line(wan: Any, tmp_path: Path) -> None:
    path = exported(trained(wan), wan, "kohya", tmp_path / "x.safetensors")

    def refused(words: str, text: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=words) as caught:
            wan.small(loras=(text,), **changes)
        assert "\n" not in str(caught.value)

    refused("no safetensors file", str(tmp_path / "none.safetensors"))
    refused("'much' is no scale", f"{path}@much")
    refused("'inf' is no scale", f"{path}@inf")
    refused("'' is no scale", f"{path}@")
    refused("does not fit: .*, .* has 60", str(path), heads=3)
    refused("blocks.1.*which this model does not have", str(path), layers=1)
    odd = tmp_path / "a@b.safetensors"
    odd.write_bytes(path.read_bytes())
    assert parse_scaled(str(odd)) == (odd, 1.0)
