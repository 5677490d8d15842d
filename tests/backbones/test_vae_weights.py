"""Weights of VAEs: found, named without loading, loaded when needed, refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file, save_file

from longtake.backbones.codecs.hunyuan import HunyuanVaeCodec
from longtake.backbones.codecs.hunyuan import config as hunyuan_config
from longtake.backbones.codecs.specs import WAN21, WAN22, HunyuanVae, WanVae
from longtake.backbones.codecs.wan import WanVaeCodec
from longtake.backbones.codecs.wan import config as wan_config
from longtake.core.errors import UserError
from longtake.core.tools import hub

from .vaes import HUNYUAN, NEW, OLD, diffusers_hunyuan, diffusers_wan, normal, video

NAME = "diffusion_pytorch_model.safetensors"
LONE = WanVae(width=4, levels=(1, 2, 4, 4))  # of the published shape, but narrow


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders by name: old, new, hunyuan, and lone, whose latents have 16 channels."""
    place = tmp_path_factory.mktemp("weights")
    for name, spec in {"old": OLD, "new": NEW, "lone": LONE}.items():
        diffusers_wan(spec).save_pretrained(place / name)
    diffusers_hunyuan(HUNYUAN).save_pretrained(place / "hunyuan")
    return place


def codec(place: Path | str, spec: WanVae = OLD) -> WanVaeCodec:
    return WanVaeCodec(evolve(spec, weights=str(place)))


def refused(place: Path | str, spec: Any = OLD) -> str:
    """The line that says why weights cannot be used."""
    cls = HunyuanVaeCodec if isinstance(spec, HunyuanVae) else WanVaeCodec
    made = cls(evolve(spec, weights=str(place)))
    with pytest.raises(UserError) as caught:
        made.encode(torch.zeros(1, 3, 1, 16, 16))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_weights_are_loaded_by_the_first_chunk_where_the_codec_is(saved: Path) -> None:
    made = codec(saved / "old")
    assert made.channels == 4 and made.stride.height == 8 and made.margin == 30
    assert made.identity.startswith("wan-vae-2.1-") and made.model is None
    assert not list(made.parameters())
    before = torch.random.get_rng_state()
    coded, state = made.encode(video(5, 16, 16))
    assert torch.equal(before, torch.random.get_rng_state()), "loading drew random numbers"
    assert made.model is not None and not any(p.requires_grad for p in made.parameters())
    made.unload()
    assert not list(made.parameters())
    again, _ = made.encode(video(5, 16, 16))
    assert torch.equal(again, coded)
    elsewhere = codec(saved / "old").to("meta")
    assert {p.device.type for p in elsewhere.vae.parameters()} == {"meta"}
    assert elsewhere.mean.device.type == "meta" and elsewhere.to("meta").model is not None


@pytest.mark.slow
def test_names_and_shapes_need_no_diffusers(saved: Path) -> None:
    code = (
        "import sys\n"
        "from longtake.core.registry import build\n"
        "from longtake.backbones.codecs.specs import WanVae\n"
        f"codec = build({evolve(OLD, weights=str(saved / 'old'))!r})\n"
        "print(codec.channels, codec.margin, codec.identity)\n"
        "assert 'diffusers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == codec(saved / "old").identity


def test_the_identity_is_of_the_weights_and_not_of_their_place(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "old", tmp_path / "pipe" / "vae")
    known = codec(saved / "old").identity
    assert codec(tmp_path / "pipe").identity == known
    assert codec(tmp_path / "pipe" / "vae").identity == known
    assert codec(tmp_path / "pipe" / "vae" / NAME).identity == known
    tensors = load_file(tmp_path / "pipe" / "vae" / NAME)
    tensors["decoder.conv_out.bias"] += 0.5
    save_file(tensors, tmp_path / "pipe" / "vae" / NAME, metadata={"format": "pt"})
    assert codec(tmp_path / "pipe").identity != known
    shutil.copy(saved / "old" / NAME, tmp_path / "pipe" / "vae" / NAME)
    config = json.loads((saved / "old" / "config.json").read_text())
    config |= {"_diffusers_version": "9", "what_else": 1}
    (tmp_path / "pipe" / "vae" / "config.json").write_text(json.dumps(config))
    assert codec(tmp_path / "pipe").identity == known, "that says nothing of latents"
    config["latents_std"][0] += 1
    (tmp_path / "pipe" / "vae" / "config.json").write_text(json.dumps(config))
    assert codec(tmp_path / "pipe").identity != known


def original_names() -> list[str]:
    """The names of Wan 2.1's own VAE file."""
    parts = [f"{side}.conv1" for side in ("encoder", "decoder")] + ["conv1", "conv2"]
    blocks = [f"encoder.downsamples.{i}" for i in (0, 1, 3, 4, 6, 7, 9, 10)]
    blocks += [f"decoder.upsamples.{i}" for i in (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14)]
    blocks += [f"{side}.middle.{i}" for side in ("encoder", "decoder") for i in (0, 2)]
    parts += [f"{block}.residual.{i}" for block in blocks for i in (2, 6)]
    parts += [f"{block}.shortcut" for block in (*blocks[2:5:2], "decoder.upsamples.4")]
    parts += [f"encoder.downsamples.{i}.{x}" for i in (5, 8) for x in ("resample.1", "time_conv")]
    parts += [f"decoder.upsamples.{i}.{x}" for i in (3, 7) for x in ("resample.1", "time_conv")]
    parts += ["encoder.downsamples.2.resample.1", "decoder.upsamples.11.resample.1"]
    sides = [f"{side}.middle.1" for side in ("encoder", "decoder")]
    parts += [f"{side}.{x}" for side in sides for x in ("to_qkv", "proj")]
    parts += [f"{side}.head.2" for side in ("encoder", "decoder")]
    norms = [f"{block}.residual.{i}" for block in blocks for i in (0, 3)]
    norms += [f"{side}.norm" for side in sides] + ["encoder.head.0", "decoder.head.0"]
    return [f"{p}.{x}" for p in parts for x in ("weight", "bias")] + [f"{n}.gamma" for n in norms]


def test_one_file_of_either_layout_gives_the_same(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / "lone" / NAME)
    names = convert_wan_vae_to_diffusers({name: name for name in original_names()})
    assert set(names) == set(tensors)
    save_file({names[k]: x for k, x in tensors.items()}, tmp_path / "Wan2.1_VAE.safetensors")
    save_file(tensors, tmp_path / "mine.safetensors")
    vae, pixels = diffusers_wan(LONE), video(1, 16, 16)
    for file in ("Wan2.1_VAE.safetensors", "mine.safetensors"):
        coded, _ = codec(tmp_path / file, LONE).encode(pixels)
        assert torch.equal(coded, normal(vae, pixels)), file
    del tensors["decoder.conv_out.bias"]
    save_file(tensors, tmp_path / "part.safetensors")
    said = refused(tmp_path / "part.safetensors", LONE)
    assert said.endswith("part.safetensors lack 1 tensors, such as decoder.conv_out.bias")
    (tmp_path / "mine.safetensors").write_bytes(b"x" * 20)
    assert "is no safetensors file that can be read" in refused(tmp_path / "mine.safetensors", LONE)


def test_a_hub_id_takes_the_vae_alone(saved: Path, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[Any] = []
    shutil.copytree(saved / "old", tmp_path / "vae")

    def fetched(name: str, patterns: list[str], label: str) -> Path:
        asked.append((name, patterns))
        return tmp_path

    monkeypatch.setattr(hub, "download", fetched)
    made = codec("some-one/Some.Model")
    assert made.channels == 4 and not asked
    assert made.identity == codec(saved / "old").identity
    assert asked == [("some-one/Some.Model", ["vae/*.json", "vae/*.safetensors"])]


def test_what_is_no_weights_is_refused_in_one_line(saved: Path, tmp_path: Path) -> None:
    assert "no such folder or file; name a hub id" in refused(tmp_path / "none")
    assert "no such folder or file; name a hub id" in refused("models/vae.safetensors")
    (tmp_path / "empty").mkdir()
    assert "no VAE is there (config.json); name" in refused(tmp_path / "empty")
    said = refused(tmp_path / "Wan2.1_VAE.pth")
    assert "are pickled, which can run code: safetensors are read; name a hub id" in said
    assert said.endswith("such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert "are of AutoencoderKLHunyuanVideo, not of AutoencoderKLWan" in refused(saved / "hunyuan")
    assert "are of AutoencoderKLWan, not of AutoencoderKLHunyuanVideo" in refused(
        saved / "old", HUNYUAN
    )
    wide = evolve(HUNYUAN, widths=(4, 4, 4, 8))
    assert "block_out_channels is [4, 4, 4, 4], not [4, 4, 4, 8]" in refused(
        saved / "hunyuan", wide
    )
    said = refused(saved / "old", evolve(NEW, channels=48))
    assert "do not fit the spec: " in said and "z_dim is 4, not 48" in said
    assert "is_residual is False, not True" in said
    said = refused(saved / "new")
    assert "patch_size is 2, not None" in said


def test_one_file_of_another_vae_is_refused(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "wan2.2_vae.safetensors"
    save_file({"conv1.bias": torch.zeros(96)}, file)
    assert "make latents of 48 channels, not 16" in refused(file, WanVae())
    assert "one file does not say all that this VAE needs" in refused(file, NEW)
    assert "name the vae folder of hunyuanvideo" in refused(file, HUNYUAN)
    save_file({"x": torch.zeros(1)}, file)
    assert "are of no AutoencoderKLWan" in refused(file, WanVae())


def test_damaged_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    place = tmp_path / "vae"
    shutil.copytree(saved / "old", place)
    whole = (place / NAME).read_bytes()
    (place / NAME).write_bytes(whole[:-100])
    assert "is no safetensors file that can be read" in refused(place)
    tensors = load_file(saved / "old" / NAME)
    del tensors["quant_conv.bias"]
    save_file(tensors, place / NAME, metadata={"format": "pt"})
    assert "lack 1 tensors, such as quant_conv.bias" in refused(place)
    tensors["quant_conv.bias"] = torch.zeros(3)
    save_file(tensors, place / NAME, metadata={"format": "pt"})
    assert "cannot be read" in refused(place)
    (place / NAME).rename(place / "diffusion_pytorch_model.bin")
    assert "hold no diffusion_pytorch_model.safetensors (pickles" in refused(place)
    (place / "config.json").write_text("{")
    assert "cannot be read as the JSON" in refused(place)
    diffusers_wan(OLD, latents_mean=[0.0] * 16).save_pretrained(tmp_path / "means")
    assert "latents_mean has 16 values for 4 channels" in refused(tmp_path / "means")


def test_the_published_shapes_are_those_of_the_published_weights() -> None:
    """127 M, 705 M and 246 M numbers, as the files on the hub have."""
    old, hunyuan = AutoencoderKLWan, AutoencoderKLHunyuanVideo
    means = {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    with torch.device("meta"):
        made = (old(**wan_config(WAN21)), old(**wan_config(WAN22) | means))
        made += (hunyuan(**hunyuan_config(HunyuanVae())),)
        plain = (old(), None, hunyuan())
    counts = [sum(p.numel() for p in vae.parameters()) for vae in made]
    assert counts == [126_892_531, 704_688_668, 246_478_803]
    for vae, default in zip(made, plain, strict=True):
        assert default is None or vae.state_dict().keys() == default.state_dict().keys()


@pytest.mark.slow
def test_shards_are_read(saved: Path, tmp_path: Path) -> None:
    diffusers_wan(OLD).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    pixels = video(1, 16, 16)
    assert torch.equal(codec(tmp_path).encode(pixels)[0], codec(saved / "old").encode(pixels)[0])
    for shard in sorted(tmp_path.glob("*.safetensors"))[:1]:
        shard.unlink()
    assert "cannot be read" in refused(tmp_path)
