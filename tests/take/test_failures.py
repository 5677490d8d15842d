"""What goes wrong while a take is made: one line, an exit code, and nothing made is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longtake.core.take import past as past_file
from longtake.core.take import sampling as sampling_file
from longtake.core.take import work as work_file
from longtake.core.take.take import Take
from longtake.core.tools.files import claimed_folder

from ..program import run as longtake
from ..small import small
from ..test_export_verb import make_run
from .kit import clip, copy, opened

Patch = pytest.MonkeyPatch
MORE = ("--prompt", "b", "--seconds", 3)


@pytest.fixture
def own(whole: Take, tmp_path: Path) -> Take:
    return copy(whole, tmp_path / "walk")


def edited(take: Take, patch: Patch) -> None:
    path = take.folder.segment_path(take.segment(2).id) / "latents.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")


def gone(take: Take, patch: Patch) -> None:
    shutil.rmtree(take.folder.segment_path(take.segment(2).id))


def newer(take: Take, patch: Patch) -> None:
    spec = json.loads((take.root / "spec.json").read_text(encoding="utf-8"))
    (take.root / "spec.json").write_text(json.dumps(spec | {"format": 2}), encoding="utf-8")


def no_room(take: Take, patch: Patch) -> None:
    patch.setattr(work_file.shutil, "disk_usage", lambda _: type("U", (), {"free": 1e7}))


def full(take: Take, patch: Patch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr("longtake.core.take.folder.write_tensors", refused)


def short(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def short_sampling(take: Take, patch: Patch) -> None:
    patch.setattr(sampling_file.Contexts, "of", short)


def short_decoding(take: Take, patch: Patch) -> None:
    patch.setattr(past_file.Decoding, "frames", short)


def no_numbers(take: Take, patch: Patch) -> None:
    real = sampling_file.draw_noise
    patch.setattr(sampling_file, "draw_noise", lambda *a: real(*a) * torch.nan)


FAILURES: list[tuple[Callable[[Take, Patch], None], str, int]] = [
    (edited, "segments/0002-", 2),
    (gone, "which is gone: put it back, --redo 2, or --drop-after 1", 2),
    (newer, "has take format 2, this longtake reads 1: update longtake", 2),
    (no_room, "0.0 GB free, segment 3 needs", 1),
    (full, "2 segments safe", 1),
    (short_sampling, "out of memory at segment 3, step 1 (", 1),
    (short_decoding, "segment 3 is sampled and safe; decoding ran out of memory: --set", 1),
    (no_numbers, "segment 3 came out as not a number at step 1", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "told", "exit_code"), FAILURES)
def test_it_ends_as_said_and_what_was_made_stays(
    own: Take,
    whole: Take,
    monkeypatch: Patch,
    spoil: Callable[[Take, Patch], None],
    told: str,
    exit_code: int,
) -> None:
    first = own.folder.segment_path(whole.segment(1).id) / "latents.safetensors"
    before = first.read_bytes()
    with monkeypatch.context() as patch:
        spoil(own, patch)
        code, _, err = longtake("generate", "--out", own.root, *MORE)
    line = err.strip().splitlines()[-1]
    assert code == exit_code and line.startswith("longtake: ") and told in line, err
    assert first.read_bytes() == before
    assert not list((own.root / "segments").glob("*.part"))
    if exit_code == 1:  # nothing stands in the way of going on
        code, _, err = longtake("generate", "--out", own.root)
        assert code == 0, err
        assert torch.equal(opened(own.root).latents()[:, :, : whole.order.latents], whole.latents())


@pytest.mark.slow
def test_a_take_that_is_in_use_and_one_of_another_encoder(own: Take, tmp_path: Path) -> None:
    with claimed_folder(own.root):
        code, _, err = longtake("generate", "--out", own.root, *MORE)
    assert code == 2 and "is in use by" in err
    make_run(tmp_path / "other", small(trains="lora", seed=1))
    file = tmp_path / "other" / "checkpoint-3" / "memory.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    code, _, err = longtake("generate", tmp_path / "other", "--out", own.root, *MORE)
    assert code == 2 and "memory would not fit; begin a new take" in err


@pytest.mark.slow
def test_a_source_that_changed_is_said_only_where_it_is_needed(run: Path, tmp_path: Path) -> None:
    video, out = clip(tmp_path / "mine.mp4"), tmp_path / "take"
    words = ("generate", "--out", out, "--prompt", "x", "--seconds", 1)
    code, _, err = longtake(*words[:1], run, *words[1:], "--extend", video, "--segments", 0)
    assert code == 0, err
    video.unlink()
    code, _, err = longtake(*words)
    assert code == 0, err
    other = tmp_path / "other"
    video = clip(tmp_path / "mine.mp4")
    take = Take.create(other, run=run, seed=1, device="cpu")
    take.begin(video)
    clip(video, seed=8)
    code, _, err = longtake("generate", "--out", other, "--prompt", "x", "--seconds", 1)
    assert code == 2 and "changed since the take began, or is gone (sha256)" in err


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(own: Take, monkeypatch: Patch) -> None:
    from longtake.core.cli import generate as verb_file

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verb_file, "_show", stopped)
        patch.setattr(Take, "deliver", stopped)
        code, _, err = longtake("generate", "--out", own.root, *MORE)
    assert code == 130 and err.strip().splitlines()[-1] == "longtake: stopped"
    assert longtake("generate", "--out", own.root)[0] == 0


def test_bridges_are_no_options_yet(own: Take) -> None:
    for words in (("--redo", 2, "--only"), ("--insert", 1)):
        code, _, err = longtake("generate", "--out", own.root, *words)
        assert code == 2 and "No such option" in err
