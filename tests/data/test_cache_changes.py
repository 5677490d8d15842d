"""A store notices what changed, and changes no more of itself than that."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from attrs import evolve

from longtake.backbones.texts.bytes import ByteEncoder
from longtake.core.cache import cache as module
from longtake.core.cache import tasks as perform
from longtake.core.cache.cache import CacheResult, Progress, cache
from longtake.core.data.captions import Caption
from longtake.core.data.sources import find_sources
from longtake.core.data.store import Store
from longtake.core.data.windows import collate
from longtake.core.errors import UserError
from longtake.core.experiment import Experiment
from longtake.core.values.grid import Rate
from longtake.core.video.decode import VideoError
from longtake.core.video.write import write_video

from ..small import RATE, moving, small, write_clips

OTHER = Rate(height=4, width=4, time=1)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_clips(tmp_path / "videos", seeds=(1, 2))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the encoder is given."""
    prompts: list[str] = []
    real = ByteEncoder.encode

    def encode(self: ByteEncoder, given: list[str]) -> object:
        prompts.extend(given)
        return real(self, given)

    monkeypatch.setattr(ByteEncoder, "encode", encode)
    return prompts


def run(
    videos: Path,
    rates: frozenset[Rate] = frozenset({RATE}),
    progress: Progress | None = None,
    prune: bool = False,
    **changes: object,
) -> CacheResult:
    return cache(
        changed(**changes), videos, videos.parent / "s",
        rates=rates, pixels=False, device=torch.device("cpu"), progress=progress,
        prune=prune,
    )  # fmt: skip


def changed(**changes: object) -> Experiment:
    experiment = small()
    return evolve(experiment, cache=evolve(experiment.cache, **changes))


def opened(videos: Path) -> Store:
    return Store.open(videos.parent / "s")


def hashes(videos: Path) -> dict[str, str]:
    clips = (videos.parent / "s" / "clips").iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in clips}


def counts(result: CacheResult) -> tuple[int, int, int]:
    return result.count("cached"), result.count("updated"), result.count("kept")


def embedded(text: str) -> torch.Tensor:
    return ByteEncoder(small().backbone.text_encoder).encode([text]).embeddings


def test_a_prompt_is_embedded_once_for_all_clips_and_runs(videos: Path, asked: list[str]) -> None:
    for name in ("clip-1", "clip-2"):
        (videos / f"{name}.txt").write_text("a square")
    run(videos, mirror=True)
    assert sorted(asked) == ["", "a square"]
    assert len(list((videos.parent / "s" / "texts").iterdir())) == 2
    write_video(videos / "late.mp4", moving(9), 8)
    (videos / "late.txt").write_text("a square")
    assert counts(run(videos, mirror=True)) == (1, 0, 2) and len(asked) == 2
    assert all(torch.equal(opened(videos).text(r).embeddings, embedded("a square"))
               for r in opened(videos).records)  # fmt: skip


def test_a_changed_caption_leaves_the_latents_alone(videos: Path, asked: list[str]) -> None:
    run(videos, mirror=True)
    before = hashes(videos)
    asked.clear()
    (videos / "clip-1.txt").write_text("a square walks right")
    assert counts(run(videos, mirror=True)) == (0, 1, 1) and asked == ["a square walks right"]
    assert hashes(videos) == before
    told = {r.id: opened(videos).text(r).embeddings for r in opened(videos).records}
    new = [torch.equal(text, embedded("a square walks right")) for text in told.values()]
    assert new == [True, True, False, False]
    assert counts(run(videos, mirror=True)) == (0, 0, 2)


def test_a_changed_video_is_cached_again(videos: Path) -> None:
    run(videos)
    before = hashes(videos)
    write_video(videos / "clip-2.mp4", moving(7), 8)
    assert counts(run(videos)) == (1, 0, 1)
    assert sum(before[name] != new for name, new in hashes(videos).items()) == 1
    assert counts(run(videos)) == (0, 0, 2)


def test_a_video_that_went_is_told_and_kept(videos: Path) -> None:
    run(videos, mirror=True)
    (videos / "clip-2.mp4").unlink()
    result = run(videos, mirror=True)
    assert result.gone == ["clip-2.mp4"] and counts(result) == (0, 0, 1)
    assert len(opened(videos).records) == 4


def test_what_was_deleted_or_renamed_is_known_and_can_be_pruned(videos: Path) -> None:
    write_video(videos / "clip-3.mp4", moving(3), 8)
    run(videos)
    assert opened(videos).gone() == {}
    (videos / "clip-2.mp4").rename(videos / "walk.mp4")
    (videos / "clip-3.mp4").unlink()
    run(videos)
    store = opened(videos)
    assert store.gone() == {"clip-2.mp4": "walk.mp4", "clip-3.mp4": ""} and len(store.records) == 4
    result = run(videos, prune=True)
    assert result.gone == ["clip-2.mp4", "clip-3.mp4"] and result.pruned
    assert [r.source for r in opened(videos).records] == ["clip-1.mp4", "walk.mp4"]
    assert opened(videos).gone() == {} and run(videos).gone == []
    (videos / "walk.mp4").rename(videos / "clip-2.mp4")
    assert counts(run(videos, prune=True)) == (1, 0, 1), "a video that is back is cached anew"
    assert [r.source for r in opened(videos).records] == ["clip-1.mp4", "clip-2.mp4"]


@pytest.mark.parametrize("pixels", [True, False])
def test_a_rate_is_added_without_touching_the_latents(videos: Path, pixels: bool) -> None:
    run(videos, mirror=True, pixels=pixels)
    before = hashes(videos)
    both = frozenset({RATE, OTHER})
    with pytest.raises(UserError, match="has no LR latents at 4x4x1: add them, run `longtake ca"):
        opened(videos).check(identity={}, rates=both)
    assert counts(run(videos, both, mirror=True, pixels=pixels)) == (0, 2, 0)
    assert hashes(videos) == before
    opened(videos).check(identity={}, rates=both)
    assert opened(videos).rates == both
    assert counts(run(videos, frozenset({OTHER}), mirror=True, pixels=pixels)) == (0, 0, 2)
    fresh = cache(
        changed(mirror=True, pixels=pixels), videos, videos.parent / "fresh",
        rates=both, pixels=False, device=torch.device("cpu"),
    )  # fmt: skip
    for one, other in zip(Store.open(fresh.store).records, opened(videos).records, strict=True):
        for start, length in ((0, 3), (2, 3)):
            wanted = Store.open(fresh.store).window(one, start, length, both)
            found = opened(videos).window(other, start, length, both)
            assert torch.equal(wanted.latents, found.latents)
            assert all(torch.equal(wanted.lr[rate], found.lr[rate]) for rate in both)


def test_new_clips_get_the_rates_of_the_others_and_a_lost_rate_is_named(videos: Path) -> None:
    run(videos)
    run(videos, frozenset({RATE, OTHER}))
    write_video(videos / "late.mp4", moving(9), 8)
    assert counts(run(videos)) == (1, 0, 2)
    assert opened(videos).rates == {RATE, OTHER}
    side = next((videos.parent / "s" / "rates").rglob("clip-1*"))
    side.write_bytes(side.read_bytes()[:50])
    with pytest.raises(UserError, match="clip-1.*no safetensors file"):
        opened(videos).window(opened(videos).records[0], 0, 1, [OTHER])
    assert counts(run(videos)) == (0, 1, 2)
    opened(videos).window(opened(videos).records[0], 0, 1, [OTHER])


def test_clips_that_lack_a_rate_are_named(videos: Path) -> None:
    run(videos)
    (videos / "clip-2.mp4").rename(videos.parent / "away.mp4")
    run(videos, frozenset({RATE, OTHER}))
    with pytest.raises(UserError, match=r"4x4x1 of 1 of 2 clips \(clip-2-"):
        opened(videos).check(identity={}, rates=[OTHER])


def test_a_changed_video_takes_its_added_rates_into_its_file(videos: Path) -> None:
    run(videos)
    run(videos, frozenset({RATE, OTHER}))
    write_video(videos / "clip-2.mp4", moving(7, seconds=3.5), 8)
    assert counts(run(videos)) == (1, 0, 1)
    assert len(list((videos.parent / "s" / "rates").rglob("*.safetensors"))) == 1
    record = opened(videos).records[1]
    assert record.added == () and record.latents == 7
    assert opened(videos).window(record, 0, 7, [OTHER]).lr[OTHER].shape[2] == 7


def test_frames_that_are_kept_go_on_being_kept(videos: Path) -> None:
    run(videos, pixels=True)
    write_video(videos / "late.mp4", moving(9), 8)
    assert counts(run(videos, pixels=False)) == (1, 0, 2)
    for record in opened(videos).records:
        assert opened(videos).window(record, 0, 2, [RATE], pixels=True).pixels is not None


def found_at(*cuts: float) -> object:
    return lambda path: cuts


def test_cuts_are_found_once_and_name_the_shots(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perform, "detect_cuts", found_at(1.0))
    run(videos)
    store, before = opened(videos), hashes(videos)
    assert store.window(store.records[0], 0, 3, [RATE]).cuts == ()
    assert counts(run(videos, cuts=True)) == (0, 2, 0) and hashes(videos) == before
    store, record = opened(videos), opened(videos).records[0]
    assert [c.text for c in record.captions] == ["clip 1, shot 1", "clip 1, shot 2"]
    # at 8 fps latents 0 and 1 hold frames 0 to 4, latents 2 and 3 frames 5 to 12: 0.625 to 1.625 s
    windows = [store.window(record, start, 2, [RATE]) for start in (0, 2, 0)]
    assert [w.cuts for w in windows] == [((),), ((1.0,),), ((),)]
    assert collate(windows, [store.text(record)] * 3, ["a", "b", "c"]).history.cuts == (
        (), (1.0,), (),
    )  # fmt: skip
    for start, shot in ((0, 1), (2, 2)):
        text = store.text(record, start, 2).embeddings
        assert torch.equal(text, embedded(f"clip 1, shot {shot}"))
    monkeypatch.setattr(perform, "detect_cuts", None)
    assert counts(run(videos, cuts=True)) == counts(run(videos, cuts=False)) == (0, 0, 2)
    assert opened(videos).records[0].cuts == (1.0,)


def test_the_search_for_cuts_is_counted(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos with captions wait for no cuts: they are no part of the count."""
    told: list[tuple[int, int, str]] = []
    monkeypatch.setattr(perform, "detect_cuts", found_at(1.0))
    write_clips(videos, seeds=(3,))
    (videos / "clip-2.txt").write_text("a square")
    run(videos, cuts=True, progress=lambda *call: told.append(call))
    assert told[:4] == [
        (0, 2, "looking for cuts"),
        (1, 2, "cuts of clip-1.mp4"),
        (2, 2, "cuts of clip-3.mp4"),
        (0, 3, "prompts"),
    ]
    told.clear()
    run(videos, cuts=True, progress=lambda *call: told.append(call))
    assert [call[:2] for call in told] == [(3, 3), (3, 3)], "nothing is left to look for"


def test_a_video_whose_cuts_cannot_be_found_is_listed(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(path: Path) -> tuple[float, ...]:
        if path.stem == "clip-1":
            raise VideoError(path, "no cut")
        return ()

    monkeypatch.setattr(perform, "detect_cuts", none)
    result = run(videos, cuts=True)
    assert [o.status for o in result.outcomes] == ["bad", "cached"]
    assert opened(videos).records[0].cuts == () and len(opened(videos).records) == 1


def test_what_finds_cuts_is_missing_once_and_not_for_every_video(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: Path) -> tuple[float, ...]:
        raise UserError("install longtake[cuts]")

    run(videos)
    monkeypatch.setattr(perform, "detect_cuts", missing)
    with pytest.raises(UserError, match="^install longtake"):
        run(videos, cuts=True)


def test_timed_captions_go_to_the_windows_that_they_cover(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = (
        Caption(start=0.0, end=1.0, text="it begins"), Caption(start=1.0, end=2.0, text="it ends")
    )  # fmt: skip

    def sources(path: Path) -> list[object]:
        return [evolve(source, captions=timed) for source in find_sources(path)]

    monkeypatch.setattr(module, "find_sources", sources)
    run(videos)
    store, record = opened(videos), opened(videos).records[0]
    assert record.captions == timed
    for start, length, said in ((0, 3, "it begins"), (3, 2, "it ends")):
        assert torch.equal(store.text(record, start, length).embeddings, embedded(said))
    bare = evolve(record, captions=timed[:1])
    assert torch.equal(store.text(bare, 4, 1).embeddings, embedded(""))
    assert torch.equal(store.null_text().embeddings, embedded(""))


def test_a_name_of_odd_bytes_is_cached_and_kept(videos: Path) -> None:
    odd = videos / b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    (videos / "clip-1.mp4").rename(odd)
    assert counts(run(videos)) == (2, 0, 0) and counts(run(videos)) == (0, 0, 2)
    json.dumps([o.source for o in run(videos).outcomes], ensure_ascii=False).encode()


@pytest.mark.parametrize("version", [1, 3])
def test_a_store_of_another_format_is_refused(videos: Path, version: int) -> None:
    run(videos)
    path = videos.parent / "s" / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": version}))
    for use in (lambda: opened(videos), lambda: run(videos)):
        with pytest.raises(UserError, match=f"of format {version}; this version reads 2"):
            use()
