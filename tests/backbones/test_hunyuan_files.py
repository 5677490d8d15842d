"""Files of HunyuanVideo: LoRA and weights that diffusers reads to the same outputs (§7.8)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.backbones.hunyuan.model import HunyuanBackbone, config_from_tensors
from longtake.backbones.hunyuan.specs import Hunyuan as Published
from longtake.backbones.weights import load as single_file
from longtake.backbones.weights.check import skeleton
from longtake.core.errors import UserError
from longtake.core.interfaces.spec import LoRA

ALL = ("attention", "cross-attention", "feed-forward")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def trained(hunyuan: Any, **changes: Any) -> HunyuanBackbone:
    """A small model whose adapters do something."""
    model: HunyuanBackbone = hunyuan.small(**changes)
    model.add_lora(LoRA(rank=3, alpha=7.0, targets=ALL))
    random = torch.Generator().manual_seed(2)
    for weight in model.adapters().values():
        torch.nn.init.normal_(weight, std=0.3, generator=random)
    return model


@torch.no_grad()
def velocity(model: HunyuanBackbone, hunyuan: Any, memory: bool = True) -> Tensor:
    context = model.context(hunyuan.text(1), hunyuan.memory(1, 3) if memory else None)
    x = hunyuan.noise(1, 16, 2, 4, 4)
    return model.velocity(x, torch.tensor([0.5]), hunyuan.frames(0, 2), context)


def theirs(model: Any, hunyuan: Any) -> Tensor:
    x, t = hunyuan.noise(1, 16, 2, 4, 4), torch.tensor([0.5])
    out: Tensor = hunyuan.reference(model, x, t, hunyuan.text(1))
    return out


@pytest.mark.parametrize("attention", ["full", "isolated"])
def test_adapters_start_at_zero_on_a_frozen_base(hunyuan: Any, attention: str) -> None:
    model = hunyuan.small(attention=attention, memory_time=0.0)
    plain = velocity(model, hunyuan)
    model.add_lora(LoRA(rank=2, targets=ALL))
    assert torch.equal(velocity(model, hunyuan), plain)
    assert {p for p in model.parameters() if p.requires_grad} == set(model.adapters().values())


@pytest.mark.slow
def test_lora_comes_back_and_diffusers_reads_it(hunyuan: Any, tmp_path: Path) -> None:
    model, path = trained(hunyuan), tmp_path / "lora.safetensors"
    model.save_adapters(path)
    fresh, ready = hunyuan.small(), hunyuan.small()
    ready.add_lora(LoRA(rank=3, alpha=7.0, targets=ALL))
    for other in (fresh, ready):
        other.load_adapters(path)
        assert torch.equal(velocity(other, hunyuan), velocity(model, hunyuan))
    plain = hunyuan.twin(hunyuan.small())
    plain.load_lora_adapter(
        tmp_path, prefix="transformer", use_safetensors=True, weight_name=path.name
    )
    assert torch.equal(theirs(plain, hunyuan), velocity(model, hunyuan, memory=False))
    assert not torch.equal(velocity(model, hunyuan), velocity(hunyuan.small(), hunyuan))
    with safe_open(path, "pt") as file:
        assert "transformer.single_transformer_blocks.1.proj_mlp.lora_A.weight" in set(file.keys())


def test_adapters_come_back_with_an_enhancer(hunyuan: Any, tmp_path: Path) -> None:
    model, path = trained(hunyuan), tmp_path / "lora.safetensors"
    model.add_enhancer({"test.look": 6}, seed=4)
    model.save_adapters(path)
    with pytest.raises(UserError, match="features of a memory"):
        hunyuan.small().load_adapters(path)
    other = hunyuan.small()
    other.add_enhancer({"test.look": 6}, seed=5)
    other.load_adapters(path)
    found, wanted = other.adapters(), model.adapters()
    assert found.keys() == wanted.keys() and len(wanted) > 4 * 4
    assert all(torch.equal(found[name], x) for name, x in wanted.items())


def test_weights_round_trip_through_diffusers(hunyuan: Any, tmp_path: Path) -> None:
    model, folder = HunyuanBackbone.load(hunyuan.spec(), seed=4), tmp_path / "base"
    model.add_enhancer({"test.look": 6})
    model.save_weights(folder)
    plain = HunyuanVideoTransformer3DModel.from_pretrained(folder, local_files_only=True)
    assert all(torch.equal(x, model.state_dict()[n]) for n, x in plain.state_dict().items())
    again = HunyuanBackbone.load(hunyuan.spec(weights=str(folder)))
    assert torch.equal(theirs(plain, hunyuan), velocity(again, hunyuan, memory=False))
    again.save_weights(tmp_path / "again")
    for name in ("config.json", WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "HunyuanVideoTransformer3DModel"
    with pytest.raises(ValueError, match="adapters"):
        trained(hunyuan).save_weights(tmp_path / "no")


def test_a_single_file_is_the_folder(hunyuan: Any, tmp_path: Path) -> None:
    hunyuan.small().save_weights(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / WEIGHTS)
    path = tmp_path / "one.safetensors"
    save_file({f"model.diffusion_model.{n}": x for n, x in tensors.items()}, path)
    model = HunyuanBackbone.load(hunyuan.spec(weights=str(path)))
    assert all(torch.equal(x, tensors[n]) for n, x in model.state_dict().items())
    assert model.state_dict().keys() == tensors.keys()
    with pytest.raises(UserError, match="guidance_embeds is True, not False"):
        HunyuanBackbone.load(hunyuan.spec(weights=str(path), guidance=None))


def test_bf16_weights_load_as_the_spec_says(hunyuan: Any, tmp_path: Path) -> None:
    hunyuan.small(torch.bfloat16).save_weights(tmp_path / "base")
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        model = HunyuanBackbone.load(hunyuan.spec(weights=str(tmp_path / "base"), dtype=name))
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert velocity(model, hunyuan).dtype == dtype


def test_bad_weights_say_so_in_one_line(hunyuan: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    hunyuan.small().save_weights(base)

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=words) as caught:
            HunyuanBackbone.load(hunyuan.spec(weights=str(base), **changes))
        assert "\n" not in str(caught.value)

    refused("num_single_layers is 2, not 3", single_layers=3)
    refused("image_condition_type is None, not token_replace", image_condition="token_replace")
    refused("rope_axes_dim is .4, 6, 6., not .8, 4, 4.", rope=(8, 4, 4))
    tensors = load_file(base / WEIGHTS)
    save_file({n: x for n, x in tensors.items() if n != "proj_out.weight"}, base / WEIGHTS)
    refused("lack 1 tensors, such as proj_out.weight")


def test_facts_of_tensors_are_those_of_the_config(hunyuan: Any) -> None:
    for spec in (hunyuan.spec(), hunyuan.spec(guidance=None, layers=1, single_layers=3)):
        found = config_from_tensors(skeleton(HunyuanBackbone, spec.config).state_dict())
        assert len(found) == 11 and found.items() <= spec.config.items()
    assert config_from_tensors({"x": torch.zeros(1)})["num_layers"] == 0


def original_release(layers: int, singles: int, refiners: int) -> dict[str, Tensor]:
    """The original release's tensors on the meta device, by name, from its source code's sizes."""
    d, found = 3072, {}

    def linear(name: str, leave: int, enter: int) -> None:
        found[f"{name}.weight"] = torch.empty(leave, enter, device="meta")
        found[f"{name}.bias"] = torch.empty(leave, device="meta")

    def two(name: str, enter: int, ends: tuple[str, str], wide: int = d) -> None:
        linear(f"{name}.{ends[0]}", wide, enter)
        linear(f"{name}.{ends[1]}", d, wide)

    found["img_in.proj.weight"] = torch.empty(d, 16, 1, 2, 2, device="meta")
    found["img_in.proj.bias"] = torch.empty(d, device="meta")
    for name in ("time_in", "guidance_in", "txt_in.t_embedder"):
        two(name, 256, ("mlp.0", "mlp.2"))
    two("vector_in", 768, ("in_layer", "out_layer"))
    two("txt_in.c_embedder", 4096, ("linear_1", "linear_2"))
    linear("txt_in.input_embedder", d, 4096)
    for i in range(refiners):
        block = f"txt_in.individual_token_refiner.blocks.{i}"
        for norm in ("norm1", "norm2"):
            found[f"{block}.{norm}.weight"] = torch.empty(d, device="meta")
            found[f"{block}.{norm}.bias"] = torch.empty(d, device="meta")
        linear(f"{block}.self_attn_qkv", 3 * d, d)
        linear(f"{block}.self_attn_proj", d, d)
        linear(f"{block}.adaLN_modulation.1", 2 * d, d)
        two(f"{block}.mlp", d, ("fc1", "fc2"), 4 * d)
    for i, side in ((i, side) for i in range(layers) for side in ("img", "txt")):
        block = f"double_blocks.{i}.{side}"
        linear(f"{block}_mod.linear", 6 * d, d)
        linear(f"{block}_attn_qkv", 3 * d, d)
        linear(f"{block}_attn_proj", d, d)
        two(f"{block}_mlp", d, ("fc1", "fc2"), 4 * d)
        for norm in ("q", "k"):
            found[f"{block}_attn_{norm}_norm.weight"] = torch.empty(128, device="meta")
    for i in range(singles):
        block = f"single_blocks.{i}"
        linear(f"{block}.linear1", 7 * d, d)
        linear(f"{block}.linear2", d, 5 * d)
        linear(f"{block}.modulation.linear", 3 * d, d)
        for norm in ("q", "k"):
            found[f"{block}.{norm}_norm.weight"] = torch.empty(128, device="meta")
    linear("final_layer.linear", 64, d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    return found


def test_names_of_the_original_release_are_read() -> None:
    """As ComfyUI's single files have them: all together (headers) and one by one (tensors)."""
    spec = Published(layers=2, single_layers=2)
    names = original_release(2, 2, 2)
    model, prefix = skeleton(HunyuanBackbone, spec.config), "model.diffusion_model."
    shapes = {prefix + name: tensor for name, tensor in names.items()}
    convert = single_file._checked_converter(
        "one.safetensors", model, shapes, spec.config, config_from_tensors
    )
    alone = [name for key, tensor in shapes.items() for name in convert({key: tensor})]
    assert sorted(alone) == sorted(model.state_dict())
    other = Published(layers=2, single_layers=3).config
    with pytest.raises(UserError, match="num_single_layers is 2, not 3"):
        single_file._checked_converter("one.safetensors", model, shapes, other, config_from_tensors)


@pytest.mark.slow
def test_the_published_model_is_diffusers_by_name_and_shape() -> None:
    """12.8 thousand million parameters, on the meta device."""
    spec = Published()
    ours = skeleton(HunyuanBackbone, spec.config).state_dict()
    with torch.device("meta"):
        plain = HunyuanVideoTransformer3DModel(**spec.config).state_dict()
    assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in plain.items()}
    assert round(sum(x.numel() for x in ours.values()) / 1e9, 1) == 12.8
    assert config_from_tensors(ours).items() <= spec.config.items()
