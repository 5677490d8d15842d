"""The learned codec of the tiny backbones: exact in any chunks, its weights, and its training."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file

from longtake.backbones.codecs.autoencoder import FILE, TinyAutoencoderCodec
from longtake.backbones.codecs.specs import TinyAutoencoder
from longtake.core.contract import check_codec
from longtake.core.errors import UserError
from longtake.core.interfaces.codec import encode_whole
from longtake.core.tools.files import read_json
from longtake.core.train.checkpoint import checkpoints
from longtake.core.video.write import write_video
from longtake.experiments import fit_autoencoder
from longtake.experiments.fit_autoencoder import (
    FPS,
    Clips,
    begin_as_components,
    normalise,
    smaller,
)

SMALL = TinyAutoencoder(weights=None, channels=4, width=8, layers=2)


def small() -> TinyAutoencoderCodec:
    torch.manual_seed(0)
    return TinyAutoencoderCodec(SMALL)


def video(frames: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1


def test_it_keeps_the_contract() -> None:
    check_codec(small(), trained=False)


@pytest.mark.parametrize("size", [(16, 24), (13, 17), (1, 1)])
def test_chunks_are_equal_to_one_pass_to_the_bit(size: tuple[int, int]) -> None:
    codec, pixels = small(), video(17, *size)
    whole = encode_whole(codec, pixels)
    first, state = codec.encode(pixels[:, :, :5])
    rest, _ = codec.encode(pixels[:, :, 5:], state)
    assert torch.equal(torch.cat([first, rest], dim=2), whole)
    shown, _ = codec.decode(whole)
    begun, state = codec.decode(whole[:, :, :2])
    ended, _ = codec.decode(whole[:, :, 2:], state)
    assert torch.equal(torch.cat([begun, ended], dim=2), shown)


def test_a_latent_reads_its_own_four_frames_alone() -> None:
    codec, pixels = small(), video(9, 16, 16)
    other = pixels.clone()
    other[:, :, 5:] = 0
    one, two = encode_whole(codec, pixels), encode_whole(codec, other)
    assert torch.equal(one[:, :, :2], two[:, :, :2]) and not torch.equal(one[:, :, 2], two[:, :, 2])


def test_linear_maps_begin_as_the_best_linear_code() -> None:
    codec = small()
    generator = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(768, 4, generator=generator)).Q
    strength = torch.tensor([8.0, 4.0, 2.0, 1.0])
    code = torch.randn(16, 4, 5, 5, generator=generator) * strength[:, None, None]
    blocks = torch.einsum("dc,bchw->bdhw", axes, code) + 0.5
    begin_as_components(codec, blocks)
    back = codec.decode_blocks(codec.encode_blocks(blocks))
    assert torch.allclose(back, blocks, atol=1e-4), "four axes hold what four axes made"
    normalise(codec, blocks)
    latents = codec.encode_blocks(blocks)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
    expected = strength / strength.mean()
    assert torch.allclose(codec.channel_reach, expected, rtol=0.1), "strongest first"


def test_weights_come_back_by_folder_and_by_file(tmp_path: Path) -> None:
    codec, folder = small(), tmp_path / "codec"
    fit_autoencoder.ship(codec, folder, {})
    for text in (str(folder), str(folder / FILE)):
        spec = TinyAutoencoder(weights=text, channels=4, width=8, layers=2)
        again = TinyAutoencoderCodec(spec)
        assert again.identity == codec.identity
        pixels = video(5, 16, 16)
        assert torch.equal(encode_whole(again, pixels), encode_whole(codec, pixels))
    other = TinyAutoencoderCodec(TinyAutoencoder(weights=None, channels=4, width=8, layers=2))
    assert other.identity != codec.identity


def test_other_weights_are_refused_in_a_line(tmp_path: Path) -> None:
    fit_autoencoder.ship(small(), tmp_path, {})
    with pytest.raises(UserError, match=r"must be those of these weights"):
        TinyAutoencoderCodec(TinyAutoencoder(weights=str(tmp_path)))
    with pytest.raises(UserError, match=r"has no codec\.safetensors"):
        TinyAutoencoderCodec(TinyAutoencoder(weights=str(tmp_path.parent)))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is no tiny-ae codec"):
        TinyAutoencoderCodec(TinyAutoencoder(weights=str(tmp_path / "other.safetensors")))
    with pytest.raises(UserError, match="no such folder or file; name a folder with"):
        TinyAutoencoderCodec(TinyAutoencoder(weights="nowhere"))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b"):
        frames = torch.randint(256, (9, 96, 160, 3), dtype=torch.uint8)
        write_video(folder / f"{name}.mp4", frames.numpy(), fps=FPS)
    return folder


@pytest.fixture
def small_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AREAS", (96 * 160,)), ("COMPONENTS", 16), ("NORMALISED", 16)):
        monkeypatch.setattr(fit_autoencoder, name, value)
    monkeypatch.setattr(fit_autoencoder, "SPEC", SMALL)


def test_a_clip_is_made_smaller_with_its_aspect_kept() -> None:
    clip = torch.full((3, 192, 320, 3), 77, dtype=torch.uint8)
    made = smaller(clip, 96 * 160)
    assert made.shape == (3, 96, 160, 3) and bool((made == 77).all())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--layers", "0"], "--layers 0: 1 or more"),
        (["--decoder-width", "-1"], "--decoder-width -1: 1 or more"),
        (["--steps", "-3"], "--steps -3: 1 or more"),
        (["--rate", "-1"], "--rate -1: a learning rate above 0"),
        (["--rate", "nan"], "--rate nan"),
        (["--check", "nothere"], "--check nothere: no such file or folder"),
        (["--decoder-of", "nothere"], "nothere"),
    ],
)
def test_what_cannot_train_is_refused_before_it_begins(
    more: list[str],
    says: str,
    clips: Path,
    small_fit: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--videos", str(clips), "--out", str(tmp_path / "run"), "--steps", "2", "--polish"]
    assert fit_autoencoder.main([*words, "1", *more]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and says in told[0]
    assert not (tmp_path / "run").exists(), "the corrected command may use the folder"


@pytest.mark.slow
def test_training_resumes_exactly_and_its_weights_are_found(
    clips: Path, small_fit: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--videos", str(clips), "--steps", "2", "--polish", "1", "--check", str(clips)]
    assert fit_autoencoder.main([*command, "--out", str(tmp_path / "whole")]) == 0
    step = fit_autoencoder.train_step

    def stopped(*args: object) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_autoencoder, "train_step", stopped)
    parts = [*command, "--out", str(tmp_path / "parts")]
    assert fit_autoencoder.main(parts) == 130
    assert [p.name for p in checkpoints(tmp_path / "parts")] == ["checkpoint-1"]
    monkeypatch.setattr(fit_autoencoder, "train_step", step)
    assert fit_autoencoder.main([*parts[:3], "4", *parts[4:]]) == 2, "other steps: another run"
    assert fit_autoencoder.main(parts) == 0
    facts = json.loads((tmp_path / "parts" / "training.json").read_text())
    minutes = json.loads((tmp_path / "parts" / "minutes.json").read_text())["minutes"]
    unchecked = [*parts[:6], *parts[8:]]  # without --check
    assert fit_autoencoder.main(unchecked) == 0
    after = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert after["check"] == facts["check"] and after["minutes"] >= facts["minutes"]
    again_minutes = json.loads((tmp_path / "parts" / "minutes.json").read_text())["minutes"]
    assert again_minutes >= minutes > 0, "minutes of all sessions"
    whole, again = (load_file(tmp_path / run / FILE) for run in ("whole", "parts"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
    spec = TinyAutoencoder(weights=str(tmp_path / "parts"), channels=4, width=8, layers=2)
    codec = TinyAutoencoderCodec(spec)
    assert fit_autoencoder.check(codec, fit_autoencoder.read_checked(clips)).keys() == {
        "a.mp4",
        "b.mp4",
    }


def test_crops_are_drawn_from_all_clips_and_some_are_still() -> None:
    clips = Clips(
        tuple(torch.full((5, 64, 64, 3), v, dtype=torch.uint8) for v in (0, 255)), ("", "")
    )
    drawn = clips.crops(64, torch.Generator().manual_seed(0), still=0.5)
    assert drawn.shape == (64, 768, 8, 8) and set(drawn.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.slow
def test_another_decoder_leaves_the_encoder_to_the_bit(
    clips: Path, small_fit: None, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--videos", str(clips), "--steps", "2", "--polish", "1"]
    assert fit_autoencoder.main([*words, "--out", str(first)]) == 0
    more = ["--decoder-of", str(first), "--layers", "3", "--decoder-width", "12"]
    assert fit_autoencoder.main([*words, *more, "--out", str(second)]) == 0
    one, two = load_file(first / FILE), load_file(second / FILE)
    for key in one:
        if not key.startswith(("decoder.", "reach")):
            assert torch.equal(one[key], two[key]), key
    spec = evolve(SMALL, weights=str(second), layers=3, decoder_width=12)
    assert TinyAutoencoderCodec(spec).decode(torch.zeros(1, 4, 1, 2, 2))[0].isfinite().all()
    assert "--decoder-of" in read_json(second / "training.json", "run")["command"]
