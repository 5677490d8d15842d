"""Frames are retrieved with the caption of their time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longtake.backbones.texts.bytes import ByteEncoder
from longtake.core.retrieve import Captions

from ..small import small

SUBTITLES = """1
00:00:00,000 --> 00:00:01,000
a square

2
00:00:01,000 --> 00:00:02,000
a circle
"""


def captions(video: Path, *frames: int) -> Captions:
    return Captions.of(small(), video, frames, torch.device("cpu"))


def test_each_latent_has_the_caption_of_its_time(tmp_path: Path) -> None:
    (tmp_path / "v.srt").write_text(SUBTITLES)
    # at 8 fps latent 1 holds frames 1 to 4, latent 3 frames 9 to 12, latent 5 what comes after 2 s
    found = captions(tmp_path / "v.mp4", 12, 0, 1, 9, 17)
    assert found.latents == {"a square": [0, 1], "a circle": [3], "": [5]}
    assert set(found.texts) == {"", "a square", "a circle"}
    encoder = ByteEncoder(small().backbone.text_encoder)
    for prompt, text in found.texts.items():
        assert torch.equal(text.embeddings, encoder.encode([prompt]).embeddings)


def test_one_caption_or_the_name_serves_all(tmp_path: Path) -> None:
    assert captions(tmp_path / "big_buck.mp4", 0, 40).latents == {"big buck": [0, 10]}
    (tmp_path / "big_buck.txt").write_text("a rabbit")
    assert captions(tmp_path / "big_buck.mp4", 0, 40).latents == {"a rabbit": [0, 10]}


def test_the_encoder_is_asked_once_and_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    encode = ByteEncoder.encode
    monkeypatch.setattr(
        ByteEncoder, "encode", lambda self, p: (told.append(list(p)), encode(self, p))[1]
    )
    monkeypatch.setattr(ByteEncoder, "release", lambda self: told.append("released"))
    (tmp_path / "v.srt").write_text(SUBTITLES)
    captions(tmp_path / "v.mp4", 0, 16)
    assert told[-2:] == [["", "a circle", "a square"], "released"]
