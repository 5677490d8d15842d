"""Files of Wan: LoRA and weights that diffusers reads to the same outputs (design §7.8)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longtake.backbones.lora.folded import FoldedLinear, pays
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.errors import UserError
from longtake.core.interfaces.backbone import Backbone
from longtake.core.interfaces.spec import LoRA

from .hunyuan_kit import HunyuanKit
from .lora_kit import ALL, stir, theirs, trained, velocity


def contents(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    with safe_open(path, "pt") as file:
        kept = json.loads(file.metadata()["lora_adapter_metadata"])
        return kept, {n: file.get_tensor(n).numpy().tobytes() for n in file.keys()}


def test_adapters_start_at_zero_and_by_seed(wan: Any) -> None:
    plain, models = velocity(wan.small(), wan, True), [wan.small() for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.add_lora(LoRA(rank=2, alpha=4.0, seed=seed))
        assert torch.equal(velocity(model, wan, True), plain)
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = ([x.detach() for x in m.adapters().values()] for m in models)
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other))
    with pytest.raises(ValueError, match="already"):
        models[0].add_lora(LoRA(rank=2))


@pytest.mark.parametrize(("rank", "folds"), [(16, True), (1, False)])
def test_a_folded_lora_is_pefts_but_for_rounding(
    wan: Any, monkeypatch: pytest.MonkeyPatch, rank: int, folds: bool
) -> None:
    model = wan.small()
    model.add_lora(LoRA(rank=rank, alpha=2.0 * rank))
    stir(model)
    layer = model.blocks[0].attn1.to_q
    x = wan.noise(2, 64, wan.width).requires_grad_()
    assert isinstance(layer, FoldedLinear) and layer._plain("default", x) == folds
    assert not layer._plain("default", x.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not layer._plain("default", x)
    weights = [layer.lora_A.default.weight, layer.lora_B.default.weight]
    ways = []
    for fold in (True, False):
        monkeypatch.setattr(FoldedLinear, "_plain", lambda *_, fold=fold: fold)
        out = layer(x)
        ways.append((out, *torch.autograd.grad(out.square().sum(), [x, *weights])))
    for ours, pefts in zip(*ways, strict=True):
        assert (ours - pefts).norm() < 1e-5 * pefts.norm()
    monkeypatch.undo()
    model.disable_adapters()
    assert torch.equal(layer(x), layer.base_layer(x))


def test_folding_pays_for_ranks_that_are_large_beside_the_width() -> None:
    assert pays(4000, 384, 384, 128) and pays(4000, 384, 1536, 128)
    assert not pays(40_000, 3072, 3072, 128) and not pays(4000, 384, 384, 32)
    assert not pays(60, 384, 384, 128)  # few tokens, such as those of a prompt


def test_frozen_weights_have_no_gradient_and_keep_no_activations(wan: Any) -> None:
    """What a step saves for its backward pass: frozen linears save no inputs of their own."""
    model, kept = wan.small(), []
    model.add_lora(LoRA(rank=2, targets=("attention",)))
    frozen = model.blocks[0].ffn.net[2]

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept.append(saved)
        return saved

    x = wan.noise(2, 8, 48).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        frozen(x).sum().backward()
    assert x.data_ptr() not in {saved.data_ptr() for saved in kept}
    context = model.context(wan.text(1), wan.memory(1, 3))
    noisy = wan.noise(1, 16, 2, 4, 4)
    model.velocity(noisy, torch.ones(1), wan.frames(0, 2), context).square().mean().backward()
    given = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert given == {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_names_and_targets(wan: Any) -> None:
    model = wan.small(layers=1)
    model.add_lora(LoRA(rank=2, targets=("attention",)))
    linears = ("to_q", "to_k", "to_v", "to_out.0")
    assert set(model.adapters()) == {
        f"blocks.0.attn1.{linear}.lora_{ab}.weight" for linear in linears for ab in "AB"
    }
    assert {p for p in model.parameters() if p.requires_grad} == set(model.adapters().values())


def test_targets_of_hunyuan_are_its_blocks_alone() -> None:
    kit, found = HunyuanKit(), {}
    for target in ALL:
        model = kit.small()
        model.add_lora(LoRA(rank=2, targets=(target,)))
        found[target] = {name.partition(".lora_")[0] for name in model.adapters()}
    dual, single = ("transformer_blocks.1.", "single_transformer_blocks.1.")
    ours = ("attn.to_q", "attn.to_k", "attn.to_v")
    assert {n for n in found["attention"] if n.startswith(single)} == {single + n for n in ours}
    assert {dual + n for n in (*ours, "attn.to_out.0")} < found["attention"]
    text = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
    assert {n for n in found["cross-attention"] if "1." in n} == {dual + n for n in text}
    feed = {n for n in found["feed-forward"] if n.startswith(single)}
    assert feed == {f"{single}proj_mlp", f"{single}proj_out"}
    assert {f"{dual}ff.net.0.proj", f"{dual}ff_context.net.2"} < found["feed-forward"]
    everything = set().union(*found.values())
    assert all(name.startswith((dual[:-2], single[:-2])) for name in everything)  # no head, no text
    model = kit.small()
    model.add_lora(LoRA(rank=2, targets=ALL))
    assert {name.partition(".lora_")[0] for name in model.adapters()} == everything


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_have_their_own_type(wan: Any, base: torch.dtype, dtype: torch.dtype) -> None:
    model, name = wan.small(base), str(dtype).removeprefix("torch.")
    before = velocity(model, wan)
    model.add_lora(LoRA(rank=2, dtype=name))
    assert {x.dtype for x in model.adapters().values()} == {dtype}
    assert model.blocks[0].attn1.to_q.base_layer.weight.dtype == base
    assert torch.equal(velocity(model, wan), before)


def test_bf16_adapters_come_back(wan: Any, tmp_path: Path) -> None:
    path, spec = tmp_path / "lora.safetensors", LoRA(rank=2, dtype="bfloat16")
    first, ready, fresh = (wan.small() for _ in range(3))
    first.add_lora(spec)
    ready.add_lora(spec)
    stir(first).save_adapters(path)
    ready.load_adapters(path)
    assert torch.equal(velocity(ready, wan), velocity(first, wan))
    fresh.load_adapters(path)  # no spec says that they should be narrow
    assert {x.dtype for x in fresh.adapters().values()} == {torch.float32}
    assert all(torch.equal(x, first.adapters()[n].float()) for n, x in fresh.adapters().items())
    assert load_file(path)["transformer.blocks.0.attn1.to_q.lora_A.weight"].dtype == torch.bfloat16


def test_lora_comes_back(wan: Any, tmp_path: Path) -> None:
    model, path = trained(wan), tmp_path / "run" / "lora.safetensors"
    model.save_adapters(path)
    fresh, ready = wan.small(), wan.small()
    ready.add_lora(LoRA(rank=3, alpha=7.0, targets=ALL))
    for other in (fresh, ready):
        other.load_adapters(path)
        assert torch.equal(velocity(other, wan, True), velocity(model, wan, True))
        trainable = {p for p in other.parameters() if p.requires_grad}
        assert trainable == set(other.adapters().values())
    assert not torch.equal(velocity(fresh, wan), velocity(wan.small(), wan))
    fresh.save_adapters(tmp_path / "again.safetensors")
    assert contents(tmp_path / "again.safetensors") == contents(path)
    assert [p.name for p in path.parent.iterdir()] == ["lora.safetensors"]


def test_diffusers_reads_our_lora(wan: Any, tmp_path: Path) -> None:
    model, path = trained(wan), tmp_path / "lora.safetensors"
    model.save_adapters(path)
    for source in (tmp_path, WanPipeline.lora_state_dict(tmp_path, weight_name=path.name)):
        plain = wan.twin(wan.small())
        named = {"weight_name": path.name} if source is tmp_path else {}
        plain.load_lora_adapter(source, prefix="transformer", use_safetensors=True, **named)
        if source is tmp_path:  # a bare dict has no metadata, and then alpha is the rank
            assert torch.equal(theirs(plain, wan), velocity(model, wan))
        assert set(plain.peft_config) == {"default_0"}
    with safe_open(path, "pt") as file:
        kept = json.loads(file.metadata()["lora_adapter_metadata"])
        assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in set(file.keys())
    assert (kept["transformer.r"], kept["transformer.lora_alpha"]) == (3, 7.0)


@pytest.mark.slow
def test_bad_lora_files_say_so_in_one_line(wan: Any, tmp_path: Path) -> None:
    path, model = tmp_path / "lora.safetensors", trained(wan)
    model.save_adapters(path)

    def refused(words: str, other: Backbone, file: Path = path) -> None:
        with pytest.raises(UserError, match=words) as caught:
            other.load_adapters(file)
        assert "\n" not in str(caught.value)

    refused("rank 3, the adapters here have rank 2", trained(wan, rank=2))
    refused("alpha 7, the adapters here have 5", trained(wan, alpha=5.0))
    refused("does not fit: .* is .3, 40., .* has 60", wan.small(heads=3))
    refused("blocks.1.*which this model does not have", wan.small(layers=1))
    narrow = wan.small()
    narrow.add_lora(LoRA(rank=3, alpha=7.0))
    refused("adapts other linears", narrow)
    refused("no safetensors file", wan.small(), tmp_path / "nothing.safetensors")
    save_file({"lora_te_layers_0.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "te.safetensors")
    refused("keys such as lora_te_layers_0", wan.small(), tmp_path / "te.safetensors")
    bad = tmp_path / "bad.safetensors"
    save_file(load_file(path), bad, metadata={"lora_adapter_metadata": "{"})
    refused("metadata is no JSON object", wan.small(), bad)
    (tmp_path / "text.safetensors").write_text("not tensors")
    refused("no safetensors file", wan.small(), tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="no adapters"):
        wan.small().save_adapters(path)


def test_weights_round_trip_through_diffusers(wan: Any, tmp_path: Path) -> None:
    model, folder = TinyWanBackbone.load(wan.spec(), seed=4), tmp_path / "base"
    model.save_weights(folder)
    plain = WanTransformer3DModel.from_pretrained(folder, local_files_only=True)
    assert torch.equal(theirs(plain, wan), velocity(model, wan))
    again = TinyWanBackbone.load(wan.spec(weights=str(folder)))
    assert torch.equal(velocity(again, wan, True), velocity(model, wan, True))
    again.save_weights(tmp_path / "again")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "WanTransformer3DModel" and "_name_or_path" not in config
    with pytest.raises(ValueError, match="adapters"):
        trained(wan).save_weights(tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_bf16_weights_load_as_fp32(wan: Any, tmp_path: Path) -> None:
    wan.small(torch.bfloat16).save_weights(tmp_path / "base")
    model = TinyWanBackbone.load(wan.spec(weights=str(tmp_path / "base")))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_loading_leaves_the_random_state(wan: Any, tmp_path: Path) -> None:
    wan.small().save_weights(tmp_path / "base")
    before = torch.get_rng_state()
    TinyWanBackbone.load(wan.spec(weights=str(tmp_path / "base")))
    assert torch.equal(before, torch.get_rng_state())


def test_bad_weights_say_so_in_one_line(wan: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    wan.small().save_weights(base)

    def refused(words: str, folder: Path = base, **changes: Any) -> None:
        with pytest.raises(UserError, match=words) as caught:
            TinyWanBackbone.load(wan.spec(weights=str(folder), **changes))
        assert "\n" not in str(caught.value)

    refused("no such folder", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refused("config.json is missing: this is no diffusers checkpoint", tmp_path / "empty")
    refused("num_attention_heads is 2, not 3", heads=3)
    refused("text_dim is 12, not 64", text_encoder=type(wan.spec().text_encoder)())
    refused("in_channels is 16, not 48", codec=type(wan.spec().codec)(channels=48))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"_class_name": "FluxTransformer2DModel"})
    )
    refused("are of FluxTransformer2DModel, not of WanTransformer3DModel")
    (base / "config.json").write_text(json.dumps(config))
    weights = base / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({n: x for n, x in tensors.items() if n != "proj_out.weight"}, weights)
    refused("lack 1 tensors, such as proj_out.weight")
    save_file(tensors | {"proj_out.weight": torch.zeros(1, 2)}, weights)
    refused("cannot be read")
    weights.write_bytes(b"x" * 100)
    refused("cannot be read")
    weights.unlink()
    refused("hold no safetensors")
