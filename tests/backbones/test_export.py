"""LoRA in the layouts of other programs: diffusers and we read it to the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.errors import UserError
from longtake.core.interfaces.backbone import LAYOUTS, Backbone
from longtake.core.interfaces.spec import LoRA

from .hunyuan_kit import HunyuanKit
from .lora_kit import ALL, exported, pipeline, stir, theirs, trained, velocity

SOME = ("attention", "feed-forward")  # without what diffusers' reader of kohya's wants besides


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> bool:
    """Whether they differ by less than 1e-6 of the largest."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("targets", [ALL, SOME])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_reads_wan(
    wan: Any, layout: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    model, base = trained(wan, targets=targets), wan.small()
    path = exported(model, wan, layout, tmp_path / "x.safetensors")
    pipe = pipeline(wan, base)
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    mine = velocity(model, wan)
    assert close(theirs(pipe.transformer, wan), mine)
    assert not close(velocity(base, wan), mine)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_diffusers_reads_hunyuan(layout: str, tmp_path: Path) -> None:
    kit = HunyuanKit()
    model, path = trained(kit), tmp_path / "x.safetensors"
    pipe = pipeline(kit, kit.small())
    if layout == "comfyui":  # diffusers splits single-stream blocks of width 3072 only
        for name, weight in model.adapters().items():
            weight.data *= 0.0 if "single" in name and "lora_B" in name else 1.0
        tensors = load_file(exported(model, kit, layout, path))
        save_file({name: x for name, x in tensors.items() if "single" not in name}, path)
    else:
        exported(model, kit, layout, path)
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    mine = velocity(model, kit)
    assert close(theirs(pipe.transformer, kit), mine)
    assert not close(velocity(kit.small(), kit), mine)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "family,targets",
    [
        ("wan", SOME),
        pytest.param("hunyuan", ALL, marks=pytest.mark.slow),
        ("hunyuan", ("feed-forward",)),
    ],
)
def test_we_read_every_layout_as_it_was(
    wan: Any, family: str, layout: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    kit = wan if family == "wan" else HunyuanKit()
    model = trained(kit, targets=targets)
    path = exported(model, kit, layout, tmp_path / "x.safetensors")
    ready, fresh = kit.small(), kit.small()
    ready.add_lora(LoRA(rank=3, alpha=7.0, targets=targets))
    for other in (ready, fresh):
        other.load_adapters(path)
        assert set(other.adapters()) == set(model.adapters())
        for name, weight in model.adapters().items():
            assert close(other.adapters()[name], weight), name
        # alpha was folded into the diffusers file, and out again: each weight was rounded twice
        rounding = 4e-6 if layout == "diffusers" else 1e-6
        assert close(velocity(other, kit, True), velocity(model, kit, True), rounding)
        trains = {id(p) for p in other.parameters() if p.requires_grad}
        assert trains == {id(p) for p in other.adapters().values()}
    config = fresh.peft_config["default"]
    assert (config.r, config.lora_alpha) == (3, 7.0)


def test_weights_are_not_needed(wan: Any, tmp_path: Path) -> None:
    model = trained(wan)
    missing = {"weights": str(tmp_path / "nowhere")}
    for layout in LAYOUTS:
        exported(model, wan, layout, tmp_path / "x.safetensors", **missing)


def lora_of(model: TinyWanBackbone, kit: Any, path: Path) -> dict[str, torch.Tensor]:
    """A LoRA of others in ComfyUI's layout: lora_down, lora_up, no alpha, no word of ours."""
    tensors = load_file(exported(model, kit, "comfyui", path))
    spelled = {n.replace("lora_A", "lora_down").replace("lora_B", "lora_up") for n in tensors}
    assert len(spelled) == len(tensors)
    return {
        n.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): x for n, x in tensors.items()
    }


def test_a_lora_of_others_keeps_alpha_and_rank(wan: Any, tmp_path: Path) -> None:
    model, path = trained(wan, targets=("attention",)), tmp_path / "x.safetensors"
    tensors = lora_of(model, wan, path)
    save_file(tensors, path)
    fresh = wan.small()
    fresh.load_adapters(path)
    assert fresh.peft_config["default"].lora_alpha == 7.0
    for name, weight in model.adapters().items():
        assert torch.equal(fresh.adapters()[name], weight)
    flat = {_flat(name): x for name, x in tensors.items()}  # without half of the linears
    save_file(flat, path)
    again = wan.small()
    again.load_adapters(path)
    assert torch.equal(velocity(again, wan), velocity(fresh, wan))
    without = {name: x for name, x in tensors.items() if not name.endswith(".alpha")}
    save_file(without, path)
    plain = wan.small()
    plain.load_adapters(path)
    assert plain.peft_config["default"].lora_alpha == 3


def _flat(name: str) -> str:
    linear, _, end = name.removeprefix("diffusion_model.").partition(".lora_")
    linear, alpha = linear.removesuffix(".alpha"), linear.endswith(".alpha")
    return f"lora_unet_{linear.replace('.', '_')}.{'alpha' if alpha else 'lora_' + end}"


def test_original_names_behind_the_prefix_of_diffusers(tmp_path: Path) -> None:
    kit = HunyuanKit()  # diffusion-pipe writes such files
    model, path = trained(kit), tmp_path / "x.safetensors"
    tensors = load_file(exported(model, kit, "comfyui", path))
    names = {n: n.replace("diffusion_model.", "transformer.") for n in tensors}
    save_file({names[n]: x for n, x in tensors.items()}, path)
    fresh = kit.small()
    with pytest.raises(UserError, match="ranks 3, 9.*backbone.loras"):  # joined q, k and v
        fresh.load_adapters(path)


@pytest.mark.slow
def test_bad_files_of_other_layouts_say_so_in_one_line(wan: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    good = lora_of(trained(wan), wan, path)
    first = "diffusion_model.blocks.0.self_attn.q"

    def refused(words: str, tensors: dict[str, Any], other: Backbone | None = None) -> None:
        save_file(tensors, path)
        with pytest.raises(UserError, match=words) as caught:
            (other or wan.small()).load_adapters(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400

    refused("is empty", {})
    refused("keys such as other.x", good | {"other.x": torch.zeros(1)})
    refused("rank 3, the adapters here have rank 2", good, trained(wan, rank=2))
    refused("alpha 7, the adapters here have 5", good, trained(wan, alpha=5.0))
    refused("does not fit: .*lora_A.weight is .3, 40., .* has 60", good, wan.small(heads=3))
    refused("blocks.1.*which this model does not have", good, wan.small(layers=1))
    refused("adapts other linears", good, trained(wan, targets=("attention",)))
    refused("alphas 3, 7", good | {f"{first}.alpha": torch.tensor(3.0)})
    lame = {n: x for n, x in good.items() if n != f"{first}.lora_up.weight"}
    refused("lacks blocks.0.attn1.to_q.lora_B.weight: A and B", lame)
    refused("biases, such as of blocks.0.attn1.to_q", good | {f"{first}.diff_b": torch.zeros(40)})
    more = {"diffusion_model.x.lora_down.weight": torch.ones(3, 40)}
    refused("adapts diffusion_model.x, which this model does not have", good | more)
    flat = "lora_unet_blocks_0_attn_q"
    refused(f"such as {flat}.*not have", {f"{flat}.lora_down.weight": torch.ones(2, 2)})
    for kind, end in (
        ("LoHa", "hada_w1_a"), ("LoKr", "lokr_w1"), ("DoRA", "dora_scale"), ("OFT", "oft_blocks"),
        ("DoRA", "lora_magnitude_vector"),
    ):  # fmt: skip
        refused(f"{kind} is not read; take a plain LoRA", good | {f"{first}.{end}": torch.ones(2)})


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan", "hunyuan"])
def test_diffusers_files_are_right_without_their_metadata(
    wan: Any, family: str, tmp_path: Path
) -> None:
    """Loaders that read no metadata scale by 1, as diffusers does of a bare dict."""
    kit = wan if family == "wan" else HunyuanKit()
    model, path = trained(kit, alpha=7.0), tmp_path / "x.safetensors"
    exported(model, kit, "diffusers", path)
    plain = kit.twin(kit.small())
    plain.load_lora_adapter(load_file(path), prefix="transformer")
    assert close(theirs(plain, kit), velocity(model, kit))
    with safe_open(path, "pt") as file:
        kept, ours = (json.loads(file.metadata()[k]) for k in ("lora_adapter_metadata", "longtake"))
    assert (kept["transformer.r"], kept["transformer.lora_alpha"]) == (3, 3)
    assert (ours["lora"]["rank"], ours["lora"]["alpha"]) == (3, 7.0)
    stripped = {"lora_adapter_metadata": json.dumps(kept)}
    save_file(load_file(path), path, metadata=stripped)  # without our header the scale stays in B
    assert close(velocity(kit.small(loras=(str(path),)), kit), velocity(model, kit))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [6.0, 7.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_goes_on_from_an_exported_file(
    wan: Any, layout: str, alpha: float, tmp_path: Path
) -> None:
    """The same numbers where alpha / rank is a power of 2, else to the last bit of float32."""
    model = trained(wan, alpha=alpha)
    path = exported(model, wan, layout, tmp_path / "x.safetensors")
    ready = wan.small()
    ready.add_lora(LoRA(rank=3, alpha=alpha, targets=ALL))
    ready.load_adapters(path)
    for name, x in ready.adapters().items():
        wanted, exact = model.adapters()[name], layout != "diffusers" or alpha == 6.0
        assert torch.equal(x, wanted) if exact else torch.allclose(x, wanted, rtol=3e-7, atol=0)
    assert ready.peft_config["default"].lora_alpha == alpha


def test_exported_files_say_what_they_are(wan: Any, tmp_path: Path) -> None:
    path = exported(trained(wan), wan, "kohya", tmp_path / "x.safetensors")
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("3", "7")
    assert said["ss_network_module"] == "networks.lora_wan"
    assert "lora_adapter_metadata" not in said  # diffusers would scale twice


@pytest.mark.slow
def test_enhancers_travel_beside_the_lora(wan: Any, tmp_path: Path) -> None:
    def model() -> Any:
        made = wan.small()
        made.add_enhancer({"one.last": 12}, seed=1)
        made.add_lora(LoRA(rank=3, alpha=7.0))
        return made

    first, path, bundle = stir(model()), tmp_path / "lora.safetensors", tmp_path / "x.safetensors"
    first.save_adapters(path)
    for layout in LAYOUTS:
        (file,) = TinyWanBackbone.export_adapters(wan.spec(), path, layout).values()
        assert not any(name.startswith("memory.") for name in file.tensors)
        assert all(name.startswith("memory.enhancer.blocks.") for name in file.besides)
        encoder = {"memory.compressors.0.weight": torch.zeros(1)}
        texts = {"longtake": json.dumps({"lora": dict(file.facts)}), **file.metadata}
        save_file({**file.tensors, **file.besides, **encoder}, bundle, metadata=texts)
        other = model()
        other.load_adapters(bundle)
        assert other.adapters().keys() == first.adapters().keys()
        for name, x in other.adapters().items():  # B of diffusers' went through alpha / rank
            wanted = first.adapters()[name]
            exact = layout != "diffusers" or "lora_B" not in name
            assert torch.equal(x, wanted) if exact else torch.allclose(x, wanted, rtol=3e-7, atol=0)
    save_file({**file.besides, **encoder}, bundle)  # of a run that trained the whole DiT
    alone = wan.small()
    alone.add_enhancer({"one.last": 12})
    alone.load_adapters(bundle)
    assert all(torch.equal(x, first.adapters()[n]) for n, x in alone.adapters().items())
