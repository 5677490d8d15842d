"""Files that other programs wrote: small ones made here, and those of `shared/cases/files`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import AutoencoderKLWan, HunyuanVideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.backbones.codecs.specs import Dct, WanVae
from longtake.backbones.codecs.wan import WanVaeCodec
from longtake.backbones.codecs.wan import config as wan_vae_config
from longtake.backbones.codecs.wan22_release import MEAN, STD, to_diffusers
from longtake.backbones.hunyuan.model import FramePackBackbone, HunyuanBackbone
from longtake.backbones.hunyuan.specs import FramePack, TinyHunyuan
from longtake.backbones.texts.specs import Bytes, LlamaClip
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.backbones.wan.specs import TinyWan, Wan22Moe14B
from longtake.backbones.weights import load as weights_load
from longtake.core.contract.samples import sample_fit
from longtake.core.errors import UserError
from longtake.core.tools import hub
from longtake.core.tools.files import TensorFile
from longtake.core.values.grid import Size3
from longtake.plugins.compressors.patchifier import PatchifierCompressor
from longtake.plugins.compressors.specs import Patchifier

from .hunyuan_kit import HunyuanKit
from .hunyuan_names import comfyui, original
from .lora_kit import exported, trained, velocity
from .vaes import lively, normal, video

ROOT = Path(__file__).resolve().parents[2]
RANK, ALPHA = 3, 7.0


@pytest.fixture(scope="module")
def cases() -> Path:
    """Files of other programs (weights/, lora/)."""
    place = Path(os.environ.get("LONGTAKE_CASES", ROOT.parent / "shared" / "cases")) / "files"
    if not (place / "lora").is_dir():
        pytest.skip(f"the files of other programs are not at {place}; set LONGTAKE_CASES")
    return place


def near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 2e-5 * b.abs().max())


def refused(words: str, load: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load()
    assert len(str(caught.value).splitlines()) == 1


# LoRA files, made of one in ComfyUI's layout: original names, A and B, alpha


def flat(name: str) -> str:
    return name.replace(".", "_")


def as_diffsynth(linear: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    scaled = b * (ALPHA / RANK)  # it writes no alpha
    return {f"{linear}.lora_A.default.weight": a, f"{linear}.lora_B.default.weight": scaled}


def as_peft(linear: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    name = f"base_model.model.{linear}"
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


def as_kohya(prefix: str) -> Callable[[str, Tensor, Tensor], dict[str, Tensor]]:
    def named(linear: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        name = prefix + flat(linear)
        alpha = torch.tensor(ALPHA / RANK * a.shape[0])  # of joined linears the ranks add up
        return {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": alpha}

    return named


def as_target_other(linear: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """musubi-tuner's convert_lora.py: the root of the scale in each matrix."""
    root = (ALPHA / RANK) ** 0.5
    name = f"diffusion_model.{linear}"
    return {f"{name}.lora_A.weight": a * root, f"{name}.lora_B.weight": b * root}


def as_prefixed(prefix: str, ends: tuple[str, str] = ("lora_A.weight", "lora_B.weight")) -> Any:
    def named(linear: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        scaled = b * (ALPHA / RANK)
        return {f"{prefix}{linear}.{ends[0]}": a, f"{prefix}{linear}.{ends[1]}": scaled}

    return named


LAYOUTS = {
    "diffsynth": as_diffsynth,
    "peft": as_peft,
    "fun": as_kohya("lora_unet__"),
    "musubi": as_kohya("lora_unet_"),
    "lycoris": as_kohya("lycoris_"),
    "target other": as_target_other,
    "bare": as_prefixed(""),
    "whole": as_prefixed("model.diffusion_model."),
    "diffusion-pipe": as_prefixed("transformer."),
    "old diffusers": as_prefixed("diffusion_model.", ("lora.down.weight", "lora.up.weight")),
}


def linears_of(model: Any, kit: Any, path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by original names, without a scale."""
    tensors = load_file(exported(model, kit, "comfyui", path))
    scale = ALPHA / RANK if isinstance(kit, HunyuanKit) else 1.0  # there it went into B
    ends = (".lora_A.weight", ".lora_B.weight")
    found = {}
    for name in tensors:
        if name.endswith(ends[0]):
            linear = name.removesuffix(ends[0]).removeprefix("diffusion_model.")
            up = tensors[name.replace(*ends)]
            found[linear] = tensors[name], up / scale
    return found


def write(path: Path, parts: list[dict[str, Tensor]]) -> str:
    save_file({n: x.contiguous() for part in parts for n, x in part.items()}, path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_program_s_lora_of_wan_acts_as_ours(wan: Any, layout: str, tmp_path: Path) -> None:
    model = trained(wan, rank=RANK, alpha=ALPHA)
    linears = linears_of(model, wan, tmp_path / "x.safetensors")
    named = [LAYOUTS[layout](linear, a, b) for linear, (a, b) in linears.items()]
    path = write(tmp_path / "adapter_model.safetensors", named)
    if layout == "peft":
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q"]}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert near(velocity(wan.small(loras=(path,)), wan), velocity(model, wan))
    if layout == "peft":
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
        refused("DoRA is not read", lambda: wan.small(loras=(path,)))


@pytest.mark.slow
def test_no_adapter_of_a_file_is_dropped_in_silence(wan: Any, tmp_path: Path) -> None:
    linear, a, b = "blocks.0.self_attn.q", torch.ones(2, 40), torch.ones(40, 2)
    ours = as_prefixed("diffusion_model.")
    style = {name.replace(".weight", ".style.weight"): x for name, x in ours(linear, a, b).items()}
    down = as_prefixed("diffusion_model.", ("lora_down.weight", "lora_up.weight"))
    for other, words in (
        (as_kohya("lora_unet_")(linear, a, b), "holds blocks.0.self_attn.q twice, once as"),
        (as_prefixed("")(linear, a, b), "holds blocks.0.self_attn.q twice, once as"),
        (down(linear, a, b), "holds several adapters of one module"),
        (style, "holds several adapters of one module"),
    ):
        both = ours(linear, a.clone(), b.clone())
        path = write(tmp_path / "x.safetensors", [both, other])
        refused(words, lambda p=path: wan.small(loras=(p,)))
    alpha = {"diffusion_model.blocks.0.self_attn.q.alpha": torch.tensor(True)}
    path = write(tmp_path / "x.safetensors", [ours(linear, a.clone(), b.clone()), alpha])
    refused("is damaged: .*alpha is True", lambda: wan.small(loras=(path,)))


@pytest.mark.slow
def test_alpha_is_read_where_it_is_and_its_absence_is_said(
    wan: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = torch.randn(RANK, 40), torch.randn(40, RANK)
    config = tmp_path / "adapter_config.json"

    def file(name: str, prefix: str, b: Tensor, meta: dict[str, str] | None = None) -> Path:
        linear = f"{prefix}blocks.0.self_attn.q"
        tensors = {f"{linear}.lora_A.weight": a, f"{linear}.lora_B.weight": b}
        save_file(tensors, tmp_path / name, metadata=meta)
        return tmp_path / name

    def seen(path: Path) -> Tensor:
        return velocity(wan.small(loras=(str(path),)), wan)

    full = seen(file("full.safetensors", "diffusion_model.", b * (ALPHA / RANK)))
    plain = seen(file("plain.safetensors", "diffusion_model.", b))
    assert not near(full, plain) and not caplog.text
    meta = {"ss_network_dim": str(RANK), "ss_network_alpha": f"{ALPHA:g}"}
    stripped = file("stripped.safetensors", "diffusion_model.", b, meta)
    assert near(seen(stripped), plain) and "no tensor of alpha, and its metadata" in caplog.text
    bare = file("x.safetensors", "base_model.model.", b)
    assert near(seen(bare), plain) and "adapter_config.json with alpha is not beside" in caplog.text
    config.write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    assert near(seen(bare), full)
    for prefix in ("diffusion_model.", ""):  # diffusion-pipe's, in peft's folder
        assert near(seen(file("adapter_model.safetensors", prefix, b)), full)
    assert near(seen(tmp_path / "plain.safetensors"), plain), "the config is of another file"
    elsewhere = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": ALPHA})}
    path = file("unet.safetensors", "transformer.", b, elsewhere)
    refused("it has unet.lora_alpha, not transformer.lora_alpha", lambda: seen(path))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["comfyui", "musubi", "target other", "comfyui flat"])
def test_every_program_s_lora_of_hunyuan_acts_as_ours(layout: str, tmp_path: Path) -> None:
    kit = HunyuanKit()
    model = trained(kit, rank=RANK, alpha=ALPHA, targets=("attention", "feed-forward"))
    parts = []
    for linear, (a, b) in linears_of(model, kit, tmp_path / "x.safetensors").items():
        there = comfyui(f"{linear}.").removesuffix(".")
        if layout == "comfyui":
            parts.append(as_prefixed("diffusion_model.")(there, a, b))
        elif layout == "comfyui flat":
            parts.append(as_kohya("lora_unet_")(there, a, b))
        elif layout == "musubi":
            parts.append(as_kohya("lora_unet_")(linear, a, b))
        else:
            parts.append(as_target_other(linear, a, b))
    path = write(tmp_path / "lora.safetensors", parts)
    assert near(velocity(kit.small(loras=(path,)), kit), velocity(model, kit))


@pytest.mark.parametrize("other", [False, True])
def test_musubi_s_framepack_lora_has_diffusers_names(other: bool, tmp_path: Path) -> None:
    kit, parts = HunyuanKit(), []
    model = trained(kit, rank=RANK, alpha=ALPHA)
    tensors = {name: x.detach() for name, x in model.adapters().items()}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            linear, b = name.removesuffix(".lora_A.weight"), tensors[name.replace("_A.", "_B.")]
            if other:  # its converter makes a dot of nearly every `_`
                mangled = flat(linear).replace("_", ".").replace("attn.", "attn_")
                parts.append(as_target_other(mangled, a, b))
            else:
                parts.append(as_kohya("lora_unet_")(linear, a, b))
    path = write(tmp_path / "lora.safetensors", parts)
    assert near(velocity(kit.small(loras=(path,)), kit), velocity(model, kit))


# weights of HunyuanVideo and FramePack


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("rename", [str, comfyui], ids=["original", "comfyui"])
def test_a_hunyuan_of_any_width_loads_by_other_names(
    prefix: str, rename: Callable[[str], str], tmp_path: Path
) -> None:
    kit = HunyuanKit()
    torch.manual_seed(3)
    theirs = HunyuanVideoTransformer3DModel(**kit.spec().config)
    state = theirs.state_dict()
    named = {prefix + rename(n): x for n, x in original(state).items()}
    assert not set(named) & set(state) and (prefix + rename("img_in.proj.bias")) in named
    save_file(named, tmp_path / "hunyuan.safetensors")
    model = HunyuanBackbone.load(kit.spec(weights=str(tmp_path / "hunyuan.safetensors")))
    found = model.state_dict()
    assert set(found) == set(state) and all(torch.equal(found[n], x) for n, x in state.items())


def framepack(weights: Path, **changes: Any) -> FramePackBackbone:
    numbers: dict[str, Any] = dict(
        heads=2, head_width=32, rope=(8, 12, 12), layers=2, single_layers=2, refiner_layers=1,
        mlp_ratio=2.0, image_width=20, dtype="float32", text_encoder=LlamaClip(width=24, pooled=12),
    )  # fmt: skip
    return FramePackBackbone.load(FramePack(**(numbers | changes), weights=str(weights)))


def test_framepack_refuses_foreign_files_in_one_line(wan: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    kit = HunyuanKit()
    wan.small().save_weights(tmp_path / "wan")
    for tensors, words in (
        (original(kit.small().state_dict()), "do not fit the spec|lack .* tensors"),
        (load_file(next((tmp_path / "wan").glob("*.safetensors"))), "they hold blocks.0.attn1"),
        ({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "a LoRA goes into backbone.loras"),
        ({"conv1.weight": torch.ones(2, 2)}, "no HunyuanVideoFramepack.*: they hold conv1.weight"),
        ({}, "they hold no tensors"),
    ):
        save_file(tensors, path)
        refused(words, lambda: framepack(path))


@pytest.mark.slow
def test_hunyuan_refuses_what_its_converter_cannot_cut(tmp_path: Path) -> None:
    tensors = original(HunyuanKit().small().state_dict())
    for name in ("single_blocks.0.linear1.weight", "double_blocks.0.img_attn_qkv.weight"):
        save_file(tensors | {name: torch.ones(1, 32)}, tmp_path / "x.safetensors")
        spec = HunyuanKit().spec(weights=str(tmp_path / "x.safetensors"))
        refused("weights .* (is|lack|of no)", lambda s=spec: HunyuanBackbone.load(s))


def patchifier(weights: Any, width: int = 64) -> PatchifierCompressor:
    spec = Patchifier(schedule=((1, 1), (2, 2), (4, 16)), weights=str(weights))
    geometry = evolve(
        HunyuanKit().spec().geometry, width=width, patch=Size3(time=1, height=2, width=2)
    )
    return PatchifierCompressor(spec, sample_fit(geometry))


@pytest.mark.parametrize("place", ["file", "prefixed", "root", "pipeline", "hub", "hub file"])
def test_the_patchifier_takes_what_framepack_takes(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = {"proj": (1, 2), "proj_2x": (2, 4), "proj_4x": (4, 8)}
    state = {
        f"clean_x_embedder.{name}.{end}": torch.randn(*shape)
        for name, (time, side) in kernels.items()
        for end, shape in (("weight", (8, 16, time, side, side)), ("bias", (8,)))
    } | {"x_embedder.proj.bias": torch.randn(8)}
    prefix = "model.diffusion_model." if place == "prefixed" else ""
    folder = tmp_path / ("transformer" if place == "pipeline" else ".")
    folder.mkdir(exist_ok=True)
    name = "diffusion_pytorch_model-00001-of-00001.safetensors"
    save_file({prefix + n: x for n, x in state.items()}, folder / name)
    weights: Any = {"file": folder / name, "prefixed": folder / name}.get(place, tmp_path)
    if place.startswith("hub"):
        monkeypatch.setattr(hub, "download", lambda repo, patterns, label: tmp_path)
        weights = FramePack().weights  # the backbone's default
        weights = f"{weights}/{name}" if place == "hub file" else weights
    made = dict(patchifier(weights, 8).named_parameters())
    wanted = state["clean_x_embedder.proj_4x.weight"]
    assert torch.equal(made["inner.projections.4.weight"].float(), wanted)


# the config of an original release's folder


def test_an_original_folder_s_config_is_compared(wan: Any, tmp_path: Path) -> None:
    wan.small().save_weights(tmp_path)
    written: dict[str, Any] = {
        "_class_name": "WanModel", "dim": 40, "num_heads": 2, "ffn_dim": 48, "num_layers": 2,
        "in_dim": 16, "out_dim": 16, "text_dim": 12, "freq_dim": 256, "eps": 1e-6,
        "patch_size": [1, 2, 2], "qk_norm": True, "cross_attn_norm": True, "text_len": 512,
    }  # fmt: skip
    right = wan.spec(weights=str(tmp_path))
    for key, value, words in (
        ("num_heads", 4, "num_attention_heads is 4, not 2, attention_head_dim is 10, not 20"),
        ("eps", 1e-5, "eps is 1e-05, not 1e-06"),
        ("freq_dim", 128, "freq_dim is 128, not 256"),
        ("patch_size", [1, 1, 1], "patch_size is .1, 1, 1., not"),
        ("qk_norm", False, "qk_norm is None, not"),
        ("num_layers", 3, "num_layers is 3, not 2"),
        ("in_dim", 36, "in_channels is 36, not 16"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(written | {key: value}))
        refused(words, lambda: TinyWanBackbone.load(right))
    (tmp_path / "config.json").write_text(json.dumps(written))
    TinyWanBackbone.load(right)


# files larger than memory


def sparse(path: Path, size: int) -> None:
    """A file whose tensors take no room on the disk: `big` of `size` bytes, `small` behind it."""
    header = {
        "big": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]},
        "small": {"dtype": "F32", "shape": [2, 3], "data_offsets": [size, size + 24]},
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(8 + len(text) + size)
        file.write(torch.arange(6.0).numpy().tobytes())


def test_a_file_larger_than_memory_opens_and_gives_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    sparse(path, 1 << 42)  # 4 TB
    file = TensorFile(path)
    assert file.shape("big") == (1 << 41,)
    assert torch.equal(file.read("small"), torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8])
def test_tensors_are_read_as_safetensors_reads_them(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(3, 5).to(dtype), "b": torch.zeros(0, 4).to(dtype)}
    tensors["c"] = torch.ones(()).to(dtype)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "x.safetensors")
    for name, x in load_file(tmp_path / "x.safetensors").items():
        read = file.read(name)
        assert read.dtype == x.dtype and read.shape == x.shape == file.shape(name)
        assert torch.equal(read.float(), x.float())


@pytest.mark.slow
def test_a_model_larger_than_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wan 2.2 14B in one file of 28.6 GB that takes no disk."""
    with torch.device("meta"):
        from diffusers import WanTransformer3DModel

        model = WanTransformer3DModel(**Wan22Moe14B().config)
    path, header, end = tmp_path / "wan22_high.safetensors", {}, 0
    for name, x in model.state_dict().items():
        offsets = [end, end + 2 * x.numel()]
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    monkeypatch.setattr(weights_load, "free_memory", lambda: 24 * 10**9)
    from longtake.backbones.wan.experts import Wan22MoeBackbone

    words = "take 28.6 GB of memory, and 24.0 GB are free here"
    refused(words, lambda: Wan22MoeBackbone.load(Wan22Moe14B(weights=str(path))))


def test_a_folder_larger_than_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TinyWan(heads=2, head_width=12, layers=1, ffn=16, weights=None)
    TinyWanBackbone.load(spec).save_weights(tmp_path / "own")
    named = evolve(spec, weights=str(tmp_path / "own"))
    TinyWanBackbone.load(named)
    monkeypatch.setattr(weights_load, "free_memory", lambda: 1000)
    refused("GB of memory, and 0.0 GB are free here", lambda: TinyWanBackbone.load(named))


# Wan 2.2's VAE by its original names

LONE = WanVae(version="2.2", channels=48, width=8, decoder_width=16)


def original_vae_names() -> list[str]:
    """Of the release, from the structure of its classes (wan/modules/vae2_2.py)."""
    blocks = [f"{side}.middle.{i}" for side in ("encoder", "decoder") for i in (0, 2)]
    blocks += [f"encoder.downsamples.{i}.downsamples.{j}" for i in range(4) for j in range(2)]
    blocks += [f"decoder.upsamples.{i}.upsamples.{j}" for i in range(4) for j in range(3)]
    convs = [f"{block}.residual.{i}" for block in blocks for i in (2, 6)]
    convs += [f"encoder.downsamples.{i}.downsamples.0.shortcut" for i in (1, 2)]
    convs += [f"decoder.upsamples.{i}.upsamples.0.shortcut" for i in (2, 3)]
    convs += [f"encoder.downsamples.{i}.downsamples.2.resample.1" for i in range(3)]
    convs += [f"encoder.downsamples.{i}.downsamples.2.time_conv" for i in (1, 2)]
    convs += [f"decoder.upsamples.{i}.upsamples.3.resample.1" for i in range(3)]
    convs += [f"decoder.upsamples.{i}.upsamples.3.time_conv" for i in (0, 1)]
    convs += ["conv1", "conv2"]
    for side in ("encoder", "decoder"):
        convs += [f"{side}.conv1", f"{side}.head.2", f"{side}.middle.1.to_qkv"]
        convs += [f"{side}.middle.1.proj"]
    norms = [f"{block}.residual.{i}" for block in blocks for i in (0, 3)]
    norms += [f"{side}.{x}" for side in ("encoder", "decoder") for x in ("middle.1.norm", "head.0")]
    return [f"{c}.{x}" for c in convs for x in ("weight", "bias")] + [f"{n}.gamma" for n in norms]


def small_vae() -> Any:
    torch.manual_seed(0)
    means = {"latents_mean": list(MEAN), "latents_std": list(STD)}
    return lively(AutoencoderKLWan(**wan_vae_config(LONE), **means))


def test_wan22_s_vae_loads_by_original_names(tmp_path: Path) -> None:
    vae, names = small_vae(), original_vae_names()
    state = vae.state_dict()
    there = {next(iter(to_diffusers({name: torch.empty(0)}))): name for name in names}
    assert len(names) == 196 and set(there) == set(state)
    path, pixels = tmp_path / "wan2.2_vae.safetensors", video(5, 32, 32)
    for renamed in (there, {name: name for name in state}):
        save_file({renamed[n]: x.contiguous() for n, x in state.items()}, path)
        coded, _ = WanVaeCodec(evolve(LONE, weights=str(path))).encode(pixels)
        assert torch.allclose(coded, normal(vae, pixels), atol=1e-5)
    assert len(MEAN) == len(STD) == 48 and min(STD) > 0


# what stands in shared/cases/files

CASE_WAN: dict[str, Any] = dict(
    heads=1, head_width=128, layers=2, ffn=192, text_encoder=Bytes(width=4096, length=8),
    codec=Dct(channels=48),
)  # fmt: skip
CASE_HUNYUAN: dict[str, Any] = dict(
    heads=2, head_width=32, rope=(8, 12, 12), layers=1, single_layers=1, refiner_layers=2,
    codec=Dct(channels=16), text_encoder=Bytes(width=24, length=8, pooled=12),
)  # fmt: skip


def with_lora(cases: Path, name: str, **changes: Any) -> Any:
    path = cases / "lora" / f"{name}.safetensors"
    if name.startswith(("musubi", "hunyuan")):
        return HunyuanBackbone.load(TinyHunyuan(**CASE_HUNYUAN, loras=(str(path),), **changes))
    return TinyWanBackbone.load(TinyWan(**CASE_WAN, loras=(str(path),), **changes))


def added(model: Any, linear: str) -> Tensor:
    """What a frozen LoRA adds to a linear's weight."""
    layer = model.get_submodule(linear)
    scale = layer.scaling["extra_0"]
    return scale * (layer.lora_B["extra_0"].weight @ layer.lora_A["extra_0"].weight).detach()


@pytest.mark.parametrize(
    "name,prefix,ends",
    [
        ("diffsynth", "", ("lora_A.default", "lora_B.default")),
        ("peft", "base_model.model.", ("lora_A", "lora_B")),
        ("lightx2v_like_with_norm_diffs", "diffusion_model.", ("lora_down", "lora_up")),
    ],
)
def test_case_loras_of_wan(cases: Path, name: str, prefix: str, ends: tuple[str, str]) -> None:
    model, file = with_lora(cases, name), load_file(cases / "lora" / f"{name}.safetensors")
    a, b = (file[f"{prefix}blocks.1.cross_attn.v.{end}.weight"] for end in ends)
    assert near(added(model, "blocks.1.attn2.to_v"), b @ a)
    if "norm" not in name:
        return
    plain = dict(TinyWanBackbone.load(TinyWan(**CASE_WAN)).named_parameters())
    assert len(model.changed) == 14
    wanted = plain["patch_embedding.weight"] + file[f"{prefix}patch_embedding.diff"]
    assert torch.equal(model.patch_embedding.weight, wanted)
    wanted = plain["blocks.0.norm2.bias"] + file[f"{prefix}blocks.0.norm3.diff_b"]
    assert torch.equal(model.blocks[0].norm2.bias, wanted)


def test_case_lora_of_wan_fun(cases: Path) -> None:
    model, file = with_lora(cases, "fun"), load_file(cases / "lora" / "fun.safetensors")
    name = "lora_unet__blocks_0_ffn_0"
    a, b = (file[f"{name}.{end}.weight"] for end in ("lora_down", "lora_up"))
    assert near(added(model, "blocks.0.ffn.net.0.proj"), b @ a * (file[f"{name}.alpha"] / 4))


def test_case_dora_is_named(cases: Path) -> None:
    refused("DoRA is not read; take a plain LoRA", lambda: with_lora(cases, "dora"))


def test_case_lora_of_framepack(cases: Path) -> None:
    model = with_lora(cases, "musubi_framepack", mlp_ratio=2.0)
    file = load_file(cases / "lora" / "musubi_framepack.safetensors")
    name = "lora_unet_single_transformer_blocks_0_proj_mlp"
    a, b = (file[f"{name}.{end}.weight"] for end in ("lora_down", "lora_up"))
    assert near(
        added(model, "single_transformer_blocks.0.proj_mlp"), b @ a * (file[f"{name}.alpha"] / 4)
    )


def test_case_lora_of_hunyuan_in_comfyui(cases: Path) -> None:
    model = with_lora(cases, "hunyuan_comfyui_names")
    file = load_file(cases / "lora" / "hunyuan_comfyui_names.safetensors")
    name = "diffusion_model.single_blocks.0.linear1"
    whole = file[f"{name}.lora_up.weight"] @ file[f"{name}.lora_down.weight"]
    rows = whole.split([64, 64, 64, 256])
    for linear, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), rows, strict=True):
        assert near(added(model, f"single_transformer_blocks.0.{linear}"), part)


def test_case_weights_of_hunyuan(cases: Path) -> None:
    path = cases / "weights" / "hunyuan_official_width64.safetensors"
    numbers = CASE_HUNYUAN | {"layers": 2, "single_layers": 2, "weights": str(path)}
    model, file = HunyuanBackbone.load(TinyHunyuan(**numbers)), load_file(path)
    last = model.single_transformer_blocks[1]
    whole = torch.cat([last.attn.to_q.weight, last.attn.to_k.weight, last.attn.to_v.weight])
    whole = torch.cat([whole, last.proj_mlp.weight])
    assert torch.equal(whole, file["single_blocks.1.linear1.weight"])
    refused("lack 10 tensors, such as clean_x_embedder", lambda: framepack(path, refiner_layers=2))


@pytest.mark.slow
def test_case_weights_of_framepack(cases: Path) -> None:
    path = cases / "weights" / "framepack_prefixed_tiny.safetensors"
    model = framepack(path)
    kernel = dict(patchifier(path).named_parameters())["inner.projections.2.weight"].float()
    assert torch.equal(kernel, model.clean_x_embedder.proj_2x.weight)
    vae = cases / "weights" / "wan2.2_vae_original_tiny.safetensors"
    for other in (*sorted((cases / "lora").glob("*.safetensors")), vae):
        refused("are of no HunyuanVideoFramepack.*: they hold", lambda o=other: framepack(o))


def test_case_config_of_an_original_folder(cases: Path) -> None:
    folder = cases / "weights" / "wan_original_folder_num_heads_2"
    numbers = dict(layers=2, ffn=192, text_encoder=Bytes(width=96, length=8))

    def load(heads: int) -> TinyWanBackbone:
        spec = TinyWan(
            heads=heads, head_width=128 // heads, codec=Dct(channels=16), weights=str(folder),
            **numbers,
        )  # fmt: skip
        return TinyWanBackbone.load(spec)

    refused("num_attention_heads is 2, not 1", lambda: load(1))
    assert load(2).geometry.width == 128


def test_case_vae_of_wan22(cases: Path) -> None:
    path = cases / "weights" / "wan2.2_vae_original_tiny.safetensors"
    vae = small_vae()
    vae.load_state_dict(to_diffusers(load_file(path)), strict=True)
    codec, pixels = WanVaeCodec(evolve(LONE, weights=str(path))), video(5, 32, 32)
    assert torch.allclose(codec.encode(pixels)[0], normal(vae, pixels), atol=1e-4)
