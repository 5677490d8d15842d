"""Prompts are embedded before the first video, and the encoder is freed before the codec runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.backbones.codecs.dct import DctCodec
from longtake.backbones.texts.bytes import ByteEncoder
from longtake.backbones.texts.specs import Bytes
from longtake.core.cache import tasks as perform
from longtake.core.cache.cache import cache
from longtake.core.data.store import Store
from longtake.core.data.texts import PromptEmbedder, prompt_path, read_embeddings
from longtake.core.values.text import Text
from longtake.core.video.decode import VideoError

from ..small import small, write_clips


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs, in order, each kind once where it repeats."""
    said: list[str] = []

    def telling(word: str, run: Callable[..., object]) -> Callable[..., object]:
        def tell(*args: object, **kwargs: object) -> object:
            said.extend([word] if said[-1:] != [word] else [])
            return run(*args, **kwargs)

        return tell

    monkeypatch.setattr(ByteEncoder, "encode", telling("text", ByteEncoder.encode))
    monkeypatch.setattr(ByteEncoder, "release", telling("released", ByteEncoder.release))
    monkeypatch.setattr(DctCodec, "encode", telling("video", DctCodec.encode))
    return said


def run(folder: Path, **changes: object) -> Store:
    experiment = small()
    experiment = attrs.evolve(experiment, cache=attrs.evolve(experiment.cache, **changes))
    cache(
        experiment, folder / "v", folder / "s",
        rates=frozenset(), pixels=False, device=torch.device("cpu"),
    )  # fmt: skip
    return Store.open(folder / "s")


def test_texts_come_before_the_first_video(tmp_path: Path, told: list[str]) -> None:
    write_clips(tmp_path / "v", seeds=(1, 2, 3))
    run(tmp_path)
    assert told == ["released", "text", "released", "video"]  # `to(device)` releases, too


def test_texts_that_hang_on_cuts_do_too(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def cuts(path: Path) -> tuple[float, ...]:
        asked.append(path.stem)
        if path.stem == "clip-2":
            raise VideoError(path, "no cut")
        return (1.0,)

    monkeypatch.setattr(perform, "detect_cuts", cuts)
    write_clips(tmp_path / "v", seeds=(1, 2, 3))
    (tmp_path / "v" / "clip-3.txt").write_text("a caption of its own")
    store = run(tmp_path, cuts=True)
    assert told == ["released", "text", "released", "video"]
    assert sorted(asked) == ["clip-1", "clip-2", "clip-2", "clip-3"]  # the bad one is told why
    texts = [[caption.text for caption in record.captions] for record in store.records]
    assert texts == [["clip 1, shot 1", "clip 1, shot 2"], ["a caption of its own"]]


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), pooled=st.booleans())
def test_zeros_after_the_last_token_are_not_stored(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], pooled: bool
) -> None:
    root = tmp_path_factory.mktemp("texts")
    prompts = [f"{i}" * length for i, length in enumerate(lengths)]
    encoder = Counted(lengths, pooled)
    assert PromptEmbedder(root, encoder).embed_missing(prompts) == len(prompts)
    for row, prompt in enumerate(prompts):
        found, wanted = read_embeddings(prompt_path(root, prompt)), encoder.text.select([row])
        assert torch.equal(found.embeddings, wanted.embeddings)
        assert torch.equal(found.mask, wanted.mask)
        assert (found.pooled is None) == (not pooled)


class Counted(ByteEncoder):
    """Random embeddings of so many tokens a prompt, of six."""

    def __init__(self, lengths: list[int], pooled: bool) -> None:
        mask = torch.arange(6) < torch.tensor(lengths)[:, None]
        vectors = torch.randn(len(lengths), 6, 3) * mask[..., None]
        extra = torch.randn(len(lengths), 4) if pooled else None
        self.text = Text(embeddings=vectors, mask=mask, pooled=extra)

    def encode(self, prompts: object) -> Text:
        return self.text


def test_a_long_encoder_has_small_files(tmp_path: Path) -> None:
    encoder = ByteEncoder(Bytes(width=64, length=511))
    PromptEmbedder(tmp_path, encoder).embed_missing(["a cat"])
    assert prompt_path(tmp_path, "a cat").stat().st_size < 4096
