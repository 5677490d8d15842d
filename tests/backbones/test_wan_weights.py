"""Weights of Wan from every place that users have them, to the bits that diffusers loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.texts.specs import Bytes, Umt5
from longtake.backbones.wan import specs
from longtake.backbones.wan.published import PublishedWanBackbone, config_from_tensors
from longtake.backbones.wan.specs import TinyWan
from longtake.core.errors import UserError
from longtake.core.registry import registry
from longtake.core.train.checkpoint import read_run

from .wan_names import original

SMALL: dict[str, Any] = dict(heads=2, head_width=12, layers=2, ffn=16, text_encoder=Umt5(width=8))


def spec(kind: Any = specs.Wan22Dense5B, **changes: Any) -> Any:
    return kind(**({**SMALL, "weights": None} | changes))


def reference(small: Any, seed: int = 3) -> Any:
    """diffusers' own model of a spec, with weights that are not zero anywhere."""
    torch.manual_seed(seed)
    model = WanTransformer3DModel(**small.config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def state(model: Any, rename: Callable[[str], str] = str) -> dict[str, Tensor]:
    return {rename(name): x.contiguous() for name, x in model.state_dict().items()}


def folder_of(root: Path, small: Any) -> Path:
    reference(small).save_pretrained(root)
    return root


def load(small: Any, weights: Any, **changes: Any) -> PublishedWanBackbone:
    return PublishedWanBackbone.load(attrs.evolve(small, weights=str(weights), **changes))


def same(model: Any, root: Path, dtype: str = "bfloat16") -> None:
    """The model has the tensors that diffusers loads from the folder, types included."""
    theirs = WanTransformer3DModel.from_pretrained(root, torch_dtype=getattr(torch, dtype))
    wanted, found = theirs.state_dict(), model.state_dict()
    assert list(wanted) == list(found)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert not model.training and model.geometry.width == 24


def refused(small: Any, weights: Any, words: str, **changes: Any) -> str:
    with pytest.raises(UserError, match=words) as caught:
        load(small, weights, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_folder_loads_as_diffusers_loads_it(tmp_path: Path, dtype: str) -> None:
    root = folder_of(tmp_path / "model", spec())
    model = load(spec(), root, dtype=dtype)
    same(model, root, dtype)
    assert model.blocks[0].scale_shift_table.dtype == torch.float32
    assert model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("kind", [specs.Wan22Dense5B, specs.Wan21Small])
def test_bfloat16_predicts_as_diffusers_does(tmp_path: Path, kind: Any) -> None:
    small = spec(kind)
    root = folder_of(tmp_path / "model", small)
    ours = load(small, root)
    theirs = WanTransformer3DModel.from_pretrained(root, torch_dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, small.codec.channels, 3, 4, 6, generator=generator)
    text, t = torch.randn(1, 4, 8, generator=generator), torch.tensor([0.7])
    prompt = ours.blank_text(1, 4)
    context = ours.context(attrs.evolve(prompt, embeddings=text))
    tokens = 3 * 2 * 3
    times = (t * 1000).expand(1, tokens) if small.time == "token" else t * 1000
    with torch.no_grad():
        out = ours.velocity(x, t, torch.arange(3)[None], context)
        wanted = theirs(x.bfloat16(), times, text.bfloat16()).sample
    assert torch.equal(out, wanted)


def test_a_pipeline_gives_its_transformer(tmp_path: Path) -> None:
    folder_of(tmp_path / "pipe" / "transformer", spec())
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    same(load(spec(), tmp_path / "pipe"), tmp_path / "pipe" / "transformer")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model_index.json").write_text("{}")
    refused(spec(), tmp_path / "empty", "are a pipeline without transformer/")


def test_shards_load_and_a_missing_one_is_named(tmp_path: Path) -> None:
    root = tmp_path / "model"
    reference(spec()).save_pretrained(root, max_shard_size="10KB")
    shards = sorted(root.glob("*-of-*.safetensors"))
    assert len(shards) > 2
    same(load(spec(), root), root)
    (index,) = root.glob("*.index.json")
    written = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": written["weight_map"]}))  # as other programs do
    model = load(spec(), root)
    index.write_text(json.dumps(written))
    same(model, root)
    shards[1].unlink()
    words = f"lack 1 of {len(shards)} shards, such as {shards[1].name}: copy or download"
    refused(spec(), root, words)


@pytest.mark.parametrize(
    ("prefix", "rename"),
    [("", original), ("model.diffusion_model.", original), ("diffusion_model.", str), ("", str)],
    ids=["original", "comfyui", "prefixed", "diffusers"],
)
def test_a_single_file_equals_the_folder(
    tmp_path: Path, prefix: str, rename: Callable[[str], str]
) -> None:
    root = folder_of(tmp_path / "model", spec())
    tensors = state(reference(spec()), rename)
    assert rename is str or "blocks.0.cross_attn.norm_q.weight" in tensors
    save_file({prefix + name: x for name, x in tensors.items()}, tmp_path / "wan.safetensors")
    for dtype in ("bfloat16", "float32"):
        same(load(spec(), tmp_path / "wan.safetensors", dtype=dtype), root, dtype)


def test_the_original_release_s_folder_loads(tmp_path: Path) -> None:
    root, release = folder_of(tmp_path / "model", spec()), tmp_path / "release"
    release.mkdir()
    save_file(state(reference(spec()), original), release / "diffusion_pytorch_model.safetensors")
    (release / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 24}))
    same(load(spec(), release), root)


def test_a_float8_file_is_cast(tmp_path: Path) -> None:
    small = state(reference(spec()), original)
    eight = {name: x.to(torch.float8_e4m3fn) for name, x in small.items()}
    save_file(eight, tmp_path / "eight.safetensors")
    model = load(spec(), tmp_path / "eight.safetensors")
    wanted = eight["blocks.1.ffn.0.weight"].to(torch.bfloat16)
    assert torch.equal(model.blocks[1].ffn.net[0].proj.weight, wanted)
    save_file(eight | {"scaled_fp8": torch.zeros(2)}, tmp_path / "scaled.safetensors")
    refused(spec(), tmp_path / "scaled.safetensors", "are scaled to fp8 .scaled_fp8.")


def test_what_a_single_file_lacks_or_has_too_much_is_said(tmp_path: Path) -> None:
    path, tensors = tmp_path / "wan.safetensors", state(reference(spec()), original)
    save_file({n: x for n, x in tensors.items() if n != "head.head.bias"}, path)
    refused(spec(), path, "lack 1 tensors, such as proj_out.bias")
    save_file(tensors | {"vace_blocks.0.weight": torch.zeros(2)}, path)
    refused(spec(), path, "hold more than this model has: 1 tensors, such as vace_blocks")
    save_file({"lora_unet_x": torch.zeros(2)}, path)
    refused(spec(), path, "no WanTransformer3DModel: they hold lora_unet_x; a LoRA goes into")
    save_file({"double_blocks.0.img_attn_qkv.weight": torch.zeros(6, 2)}, path)
    refused(spec(), path, "no WanTransformer3DModel: they hold double_blocks.0.img_attn_qkv.weight")


def test_damaged_files_are_said(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "model", spec())
    weights = root / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:100], b""):
        weights.write_bytes(cut)
        refused(spec(), root, f"cannot be read: {weights.name} is cut short or no safetensors")
        refused(spec(), weights, f"cannot be read: {weights.name} is cut short or no safetensors")


@pytest.mark.slow
def test_weights_that_mean_nothing_are_said(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "model", spec())
    weights = root / "diffusion_pytorch_model.safetensors"
    tensors, name = load_file(weights), "blocks.0.attn1.to_q.weight"
    path = tmp_path / "wan.safetensors"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, path)
    refused(spec(), path, f"quantised in a way that is not read .{name} holds whole")
    save_file(tensors | {f"model.diffusion_model.{n}": x.clone() for n, x in tensors.items()}, path)
    refused(spec(), path, "hold a model twice, .* and model.diffusion_model")
    tensors[name][3, 5] = torch.nan
    save_file(tensors, path)
    save_file(tensors, weights, metadata={"format": "pt"})
    for place in (path, root):
        refused(spec(), place, f"are damaged: {name} holds values that are not finite")


def test_other_models_are_told_by_name(tmp_path: Path) -> None:
    """Real configs against real specs: the weights behind them are never read."""
    five, old = specs.Wan22Dense5B(), specs.Wan21Small()
    root = tmp_path / "model"
    root.mkdir()
    (root / "diffusion_pytorch_model.safetensors").write_bytes(b"never read")

    def told(wanted: Any, words: str, **config: Any) -> None:
        (root / "config.json").write_text(json.dumps(config))
        refused(wanted, root, words)

    wan: dict[str, Any] = {"_class_name": "WanTransformer3DModel"}
    big = specs.Wan21Large().config
    told(five, "in_channels is 16, not 48, .*they look like wan21-1.3b$", **wan, **old.config)
    told(five, "they look like wan21-14b or wan22-14b$", **wan, **big)
    told(old, "num_layers is 40, not 30; they look like wan21-14b", **wan, **big)
    told(old, "out_channels is 48, not 16.*they look like wan22-5b$", **wan, **five.config)
    image = "in_channels is 36, not 16.*look like an image-to-video model, and text-to-video is"
    told(specs.Wan22Moe14B(), image, **wan | big | {"in_channels": 36})
    told(specs.Wan21Large(), "image_dim is 1280, not None", **wan | big | {"image_dim": 1280})
    told(five, "are of HunyuanVideoTransformer3DModel, not of WanTransformer3DModel",
         _class_name="HunyuanVideoTransformer3DModel")  # fmt: skip
    told(five, "are of None, not of WanTransformer3DModel", what="no model")


def header_alone(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file of these shapes whose values take no room on the disk."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        offsets = [end, end + tensor.numel()]
        header[name] = {"dtype": "U8", "shape": list(tensor.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_a_single_file_of_another_model_is_told_by_its_shapes(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = WanTransformer3DModel(**specs.Wan21Small().config)
    path = tmp_path / "wan2.1_t2v_1.3B.safetensors"
    header_alone(path, {original(n): x for n, x in model.state_dict().items()})
    words = "in_channels is 16, not 48, .*ffn_dim is 8960, not 14336.*they look like wan21-1.3b$"
    refused(specs.Wan22Dense5B(), path, words)
    assert config_from_tensors({}) == {"num_layers": 0, "image_dim": None}


def test_odd_places_are_said(tmp_path: Path) -> None:
    for name in ("model.ckpt", "model.pt", "model.pth"):
        (tmp_path / name).write_bytes(b"x")
        refused(spec(), tmp_path / name, "are pickled, which can run code: safetensors are read")
    (tmp_path / "model.txt").write_bytes(b"x")
    refused(spec(), tmp_path / "model.txt", "a single file is .safetensors or .gguf")
    refused(spec(), tmp_path / "nothing", "no such folder or file")
    (tmp_path / "bare").mkdir()
    refused(spec(), tmp_path / "bare", "config.json is missing: this is no diffusers checkpoint")
    (tmp_path / "bare" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    refused(spec(), tmp_path / "bare", "hold no safetensors files")


def test_extras_that_are_missing_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    from longtake.backbones.weights import load as quantize

    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    (tmp_path / "wan.gguf").write_bytes(b"GGUF")
    refused(spec(), tmp_path / "wan.gguf", r'needs gguf: pip install "longtake\[gguf\]"')
    said = refused(spec(), folder_of(tmp_path / "model", spec()), "nf4 needs", quantize="nf4")
    assert 'pip install "longtake[bitsandbytes]"' in said
    with pytest.raises(ValueError, match="no weights to quantise"):
        spec(quantize="nf4")
    refused(spec(), tmp_path / "wan.gguf", "are quantised already", quantize="int8")


def test_what_quantisation_reads_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    from longtake.backbones.weights import load as quantize

    monkeypatch.setattr(quantize, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    save_file(state(reference(spec()), original), tmp_path / "wan.safetensors")
    words = "quantize int8 reads diffusers folders alone; of single files, take a GGUF"
    refused(spec(), tmp_path / "wan.safetensors", words, quantize="int8")


def test_quantisation_is_asked_of_diffusers(tmp_path: Path, monkeypatch: Any) -> None:
    """Without bitsandbytes here: what `from_pretrained` is told, and that the rest goes on."""
    from longtake.backbones.weights import load as quantize

    monkeypatch.setattr(quantize, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    real, told = PublishedWanBackbone.from_pretrained, list[Any]()

    def listen(folder: str, **options: Any) -> Any:
        told.append(options.pop("quantization_config"))
        return real(folder, **options)

    monkeypatch.setattr(PublishedWanBackbone, "from_pretrained", listen)
    load(spec(), folder_of(tmp_path / "model", spec()), quantize="int8")
    assert [(config.load_in_4bit, config.load_in_8bit) for config in told] == [(False, True)]


def test_quantisation_needs_a_gpu(tmp_path: Path, monkeypatch: Any) -> None:
    from longtake.backbones.weights import load as quantize

    monkeypatch.setattr(quantize, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    root = folder_of(tmp_path / "model", spec())
    refused(spec(), root, "backbone.quantize int8 needs a GPU, and there is none", quantize="int8")


def test_random_weights_have_the_type_and_the_random_state_stays() -> None:
    before = torch.get_rng_state()
    one, two = (PublishedWanBackbone.load(spec(), seed=seed) for seed in (1, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.proj_out.weight, two.proj_out.weight)
    assert one.dtype == torch.bfloat16 and one.scale_shift_table.dtype == torch.float32


def test_loading_leaves_the_random_state(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "model", spec())
    save_file(state(reference(spec()), original), tmp_path / "wan.safetensors")
    before = torch.get_rng_state()
    for weights in (root, tmp_path / "wan.safetensors"):
        load(spec(), weights)
        assert torch.equal(before, torch.get_rng_state())


def test_saved_weights_come_back_from_a_single_file(tmp_path: Path) -> None:
    save_file(state(reference(spec()), original), tmp_path / "wan.safetensors")
    model = load(spec(), tmp_path / "wan.safetensors")
    model.save_weights(tmp_path / "saved")
    same(load(spec(), tmp_path / "saved"), tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(x, saved[n]) for n, x in model.state_dict().items())


def test_a_tiny_wan_reads_such_files_too(tmp_path: Path) -> None:
    tiny = TinyWan(
        heads=2, head_width=12, layers=2, ffn=16, text_encoder=Bytes(width=8), codec=Dct()
    )
    save_file(state(reference(tiny), original), tmp_path / "wan.safetensors")
    named = attrs.evolve(tiny, weights=str(tmp_path / "wan.safetensors"))
    model = registry().load(named).load(named)
    assert torch.equal(model.proj_out.weight, reference(tiny).proj_out.weight)


def test_shipped_weights_and_their_specs_still_load() -> None:
    folders = {name: path for name, path in registry().weights.items() if "wan" in name}
    assert folders
    for folder in folders.values():
        experiment, _ = read_run(folder)
        assert isinstance(experiment.backbone, TinyWan)
    base = registry().weights["tiny-wan-2x2x2"]
    experiment, _ = read_run(base)
    model = (
        registry()
        .load(experiment.backbone)
        .load(attrs.evolve(experiment.backbone, weights="tiny-wan-2x2x2"))
    )
    plain = WanTransformer3DModel.from_pretrained(base / "backbone", torch_dtype=torch.float32)
    assert all(torch.equal(x, plain.state_dict()[n]) for n, x in model.state_dict().items())


def test_another_spec_is_refused() -> None:
    with pytest.raises(UserError, match="needs a PublishedWan spec, not TinyWan"):
        PublishedWanBackbone.load(TinyWan())
