"""Photographs become films, films become ordinary clips; every clip's variants know its video."""

from __future__ import annotations

import json
import random
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve
from PIL import Image

from longtake.core.cache.cache import CacheResult, cache
from longtake.core.data import sources
from longtake.core.data.captions import Caption
from longtake.core.data.films import TEXT, TEXTURE, Film, check_photo, open_photo
from longtake.core.data.sources import find_films, notes_on_photos
from longtake.core.data.store import Store, read_gone
from longtake.core.data.variants import Variant, variants
from longtake.core.errors import UserError
from longtake.core.experiment import CacheSpec, Experiment, FilmSpec, Motions
from longtake.core.values.grid import Rate
from longtake.core.video.camera import Framing, look, upright_size, view_box

from ..small import RATE, small, write_clips

SIZE, FPS = (48, 32), 8.0
SHORT = FilmSpec(clips=2, seconds=2.5, shot=(0.5, 1.0), textures=0.0, texts=0.0, aspect=1.5)


def photograph(path: Path, seed: int, size: tuple[int, int] = (160, 120)) -> Path:
    """A picture of smooth random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(("hill.png", "lake.jpg", "more/mill.webp")):
        photograph(tmp_path / "photos" / name, seed)
    (tmp_path / "photos" / "hill.txt").write_text("a green hill")
    return tmp_path / "photos"


def films(photos: Path, spec: FilmSpec = SHORT) -> dict[str, Film]:
    return {one.name: one.film for one in find_films(photos, spec) if one.film}


def pixels(film: Film) -> np.ndarray:
    return np.stack(list(film.frames(SIZE, FPS)))


def run(
    photos: Path | None, videos: Path | None = None, rates: frozenset[Rate] = frozenset({RATE}),
    prune: bool = False, **changes: object,
) -> CacheResult:  # fmt: skip
    out = next(path for path in (photos, videos) if path).parent / "s"
    return cache(
        changed(**changes), videos, out, photos=photos, rates=rates, pixels=False,
        device=torch.device("cpu"), prune=prune,
    )  # fmt: skip


def changed(**changes: object) -> Experiment:
    experiment = small()
    return evolve(experiment, cache=evolve(experiment.cache, **({"film": SHORT} | changes)))


def test_a_film_follows_from_names_and_seed(photos: Path) -> None:
    once, again = films(photos), films(photos)
    assert list(once) == sorted(
        f"{name} film {n}" for name in ("hill.png", "lake.jpg", "more/mill.webp") for n in (1, 2)
    )
    assert all(np.array_equal(pixels(once[name]), pixels(again[name])) for name in once)
    first, second = once["hill.png film 1"], once["hill.png film 2"]
    assert not np.array_equal(pixels(first), pixels(second))
    other = films(photos, evolve(SHORT, seed=1))["hill.png film 1"]
    assert not np.array_equal(pixels(first), pixels(other))
    assert first.fingerprint() != other.fingerprint()
    more = films(photos, evolve(SHORT, clips=5))
    assert {name: more[name].fingerprint() for name in once} == {
        name: film.fingerprint() for name, film in once.items()
    }


def test_a_further_photograph_changes_only_films_it_gets_into(photos: Path) -> None:
    before = {name: film.fingerprint() for name, film in films(photos).items()}
    for seed in range(4):
        photograph(photos / f"new-{seed}.png", 10 + seed)
    after = films(photos)
    mark = after["hill.png film 1"].fingerprint()
    kept = [name for name in before if after[name].fingerprint() == before[name]]
    got = [n for n in before if any("new" in photo.name for photo in after[n].photos)]
    assert sorted([*kept, *got]) == sorted(before) and kept and got
    photograph(photos / "hill.png", 99)  # another picture under the same name
    assert films(photos)["hill.png film 1"].fingerprint() != mark


def test_cuts_captions_and_returns_are_as_filmed(photos: Path) -> None:
    spec = evolve(SHORT, clips=6, seconds=6.0, cuts=0.6, returns=0.6, motions=Motions(still=9.0))
    found = films(photos, spec)
    hard, soft = [], []
    for film in found.values():
        frames = pixels(film).astype(float)
        steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
        at = {int(np.ceil(cut * FPS - 1e-6)) for cut in film.cuts()}
        hard += [step for k, step in enumerate(steps, start=1) if k in at]
        soft += [step for k, step in enumerate(steps, start=1) if k not in at]
        shots, captions = film.script(), film.captions()
        assert shots[0].start == 0 and shots[-1].end == 6.0
        assert all(a.end == b.start for a, b in zip(shots, shots[1:], strict=False))
        assert captions[0].start == 0 and captions[-1].end is None
        for shot in shots:
            text = next(p.caption for p in film.pictures if p.name == shot.photo)
            middle = (shot.start + shot.end) / 2
            assert [c.text for c in captions if c.covers(middle, middle)] == [text]
    assert np.median(hard) > 5 * np.median(soft)
    assert any("a green hill" in [c.text for c in film.captions()] for film in found.values())
    back = [shot for film in found.values() for shot in film.script() if shot.move == "back"]
    assert back
    every = [shot for film in found.values() for shot in film.script()]
    assert all(1 <= s.first.zoom <= 3.5 and abs(s.last.turn) <= 15 for s in every)


def test_textures_and_text_are_among_the_pictures(photos: Path) -> None:
    spec = evolve(SHORT, clips=8, photos=4, textures=0.5, texts=0.5, cuts=1.0, returns=0.0)
    found = films(photos, spec).values()
    kinds = {picture.caption for film in found for picture in film.pictures[1:]}
    assert kinds == {TEXTURE, TEXT}
    for kind in kinds:
        film = next(f for f in found if kind in [c.text for c in f.captions()])
        caption = next(c for c in film.captions() if c.text == kind)
        frame = pixels(film)[int(caption.start * FPS) + 1]
        assert frame.std() > 3
    none = films(photos, evolve(spec, textures=0.0, texts=0.0)).values()
    assert all(picture.path for film in none for picture in film.pictures)


def test_the_turned_view_is_level_sampled_and_inside(tmp_path: Path) -> None:
    ramp = np.mgrid[0:400, 0:600].astype(np.float64)
    picture = np.stack([ramp[0] * 0.5, ramp[1] * 0.4, np.full((400, 600), 90.0)], axis=-1)
    photo = Image.fromarray(picture.round().astype(np.uint8))
    for turn in (0.0, 1e-6, 10.0, -30.0):
        framing = Framing(0.3, 0.6, 2.0, turn)
        seen = look(photo, framing, (96, 64)).astype(float)
        box, scale = view_box(framing, photo.size, (96, 64))
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= 600 and box[3] <= 400
        assert np.abs(seen[..., 2] - 90).max() <= 1  # no corner is outside
        y, x = np.mgrid[0:64, 0:96] - np.array([31.5, 47.5])[:, None, None]
        radians = np.radians(turn)
        cos, sin = np.cos(radians), np.sin(radians)
        across = (box[0] + box[2]) / 2 - 0.5 + scale * (cos * x + sin * y)
        down = (box[1] + box[3]) / 2 - 0.5 + scale * (cos * y - sin * x)
        inner = (slice(3, -3), slice(3, -3))
        assert np.abs(seen[..., 1] - 0.4 * across)[inner].max() < 2
        assert np.abs(seen[..., 0] - 0.5 * down)[inner].max() < 2


def test_the_view_is_inside_pictures_of_every_size() -> None:
    drawn = random.Random(0)
    for number in range(3000):
        size = drawn.choice(((48, 32), (160, 96)))
        photo = drawn.randint(1, 300), drawn.randint(1, 300)
        turn = drawn.choice((0.0, drawn.uniform(-90, 90)))
        wide, high = upright_size(size, turn)
        most = max(1.0, min(photo[0] / wide, photo[1] / high))
        framing = Framing(drawn.random(), drawn.random(), min(drawn.uniform(1, 3.5), most), turn)
        box, scale = view_box(framing, photo, size)
        assert 0 <= box[0] < box[2] <= photo[0] + 1e-9 and 0 <= box[1] < box[3] <= photo[1] + 1e-9
        assert (box[2] - box[0]) / scale == pytest.approx(wide)
        if number % 20 == 0:
            assert look(Image.new("RGB", photo, "white"), framing, size).min() == 255


def test_small_photographs_are_filmed(tmp_path: Path) -> None:
    drawn = random.Random(1)
    for seed in range(12):
        size = drawn.randint(60, 180), drawn.randint(60, 180)
        photograph(tmp_path / "photos" / f"{seed}.png", seed, size)
    spec = FilmSpec(clips=2, seconds=2.0)
    for film in films(tmp_path / "photos", spec).values():
        assert len(list(film.frames((160, 96), 4.0))) == 8


def test_films_are_ordinary_clips_of_a_store(photos: Path) -> None:
    result = run(photos)
    store = Store.open(photos.parent / "s")
    assert result.count("cached") == 6 and [r.name for r in store.records][:1] == [
        "hill.png film 1"
    ]
    assert str(result.captions) == "captions: 2 of 6, from .txt files; the others go by their names"
    for record in store.records:
        film = films(photos)[record.source]
        window = store.window(record, 0, record.latents, [RATE], pixels=True)
        assert window.pixels is not None and record.latents == 5 and record.fps == FPS
        filmed = np.moveaxis(pixels(film)[: record.frames], -1, 0)
        assert np.array_equal(window.pixels[0].numpy(), filmed)
        assert record.cuts == film.cuts() and record.captions == film.captions()
        assert record.placement == "filmed at 48x32"
        assert record.photos == tuple(p.name for p in film.photos)
        assert record.origins == frozenset(film.origins()) and len(record.origins) == 2
    assert run(photos).count("kept") == 6
    photograph(photos / "new.png", 50)
    again = run(photos)
    assert again.count("cached") + again.count("kept") == 8 and again.count("cached") >= 2
    (photos / "hill.txt").write_text("a hill")
    assert {o.status for o in run(photos).outcomes if "hill" in o.source} == {"updated"}
    (photos / "lake.srt").write_text("1\n00:00:01,000 --> 00:00:01,000\na lake\n")
    assert run(photos).notes == ["lake.srt, line 2: a cue of no length, passed over"]


def test_films_and_videos_share_a_store_and_are_judged_apart(photos: Path) -> None:
    videos = write_clips(photos.parent / "videos", seeds=(1, 2))
    root = photos.parent / "s"
    run(photos, videos)
    assert run(photos).gone == [] and run(None, videos).gone == [] and not read_gone(root)
    (videos / "clip-1.mp4").unlink()
    assert run(None, videos).gone == ["clip-1.mp4"]
    assert run(photos).gone == [] and read_gone(root) == ["clip-1.mp4"]
    (photos / "lake.jpg").unlink()
    gone = run(photos, prune=True).gone
    assert gone == ["lake.jpg film 1", "lake.jpg film 2"] and read_gone(root) == ["clip-1.mp4"]
    names = {record.source for record in Store.open(root).records}
    assert "clip-1.mp4" in names and not any("lake" in name for name in names)


def test_what_cannot_be_filmed_is_listed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "broken.jpg").write_text("no picture")
    whole = photograph(photos / "cut.png", 7).read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    result = run(photos)
    bad = {one.source: one.detail for one in result.outcomes if one.status == "bad"}
    assert set(bad) == {"broken.jpg", "cut.png"}
    assert all(f"{name}: cannot be read as a picture" in bad[name] for name in bad)
    assert result.count("cached") == 6, "no film of the others shows them"
    with monkeypatch.context() as late:
        late.setattr(sources, "check_photo", lambda path, notes: "")  # as if it broke meanwhile
        details = [one.detail for one in run(photos).outcomes if one.status == "bad"]
    assert any(one.startswith("cut.png film 1: cut.png: cannot be read") for one in details)
    (photos / "empty").mkdir()
    for given, reason in ((photos / "empty", "no photograph in it"), (photos / "x", "no such")):
        with pytest.raises(UserError, match=f"--photos .*{reason}"):
            find_films(given, SHORT)
    with pytest.raises(UserError, match="--videos PATH, --photos FOLDER, or both"):
        cache(
            small(), None, photos.parent / "t",
            rates=frozenset(), pixels=False, device=torch.device("cpu"),
        )  # fmt: skip
    for name in ("broken.jpg", "cut.png"):
        (photos / name).unlink()
    with pytest.raises(UserError, match=r"films of 2.5 s .* are too short: 4 s"):
        run(photos, film=evolve(SHORT, seed=9), min_seconds=4.0)


def test_films_of_a_photograph_that_cannot_be_read_now_stay(photos: Path) -> None:
    root, lake = photos.parent / "s", photos / "lake.jpg"
    run(photos)
    whole = lake.read_bytes()
    lake.write_bytes(whole[: len(whole) // 2])
    for prune in (False, True):
        result = run(photos, prune=prune)
        assert result.gone == [] and read_gone(root) == [] and result.count("bad") == 1
    names = {record.source for record in Store.open(root).records}
    assert {"lake.jpg film 1", "lake.jpg film 2"} <= names
    lake.unlink()
    assert run(photos, prune=True).gone == ["lake.jpg film 1", "lake.jpg film 2"]


def test_what_is_no_photograph_and_what_pillow_warns_of_is_noted(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.jpe", "c.jfif"):
        (photos / name).write_bytes((photos / "lake.jpg").read_bytes())
    for name in ("anim.gif", "raw.NEF", "x.heic", "more/old.mpg", "y.svg", "notes.md"):
        (photos / name).write_text("anything")
    (photos / "seen").mkdir()
    (photos / "seen" / "a.mp4").write_text("a video that --videos reads")
    found = find_films(photos, SHORT)
    assert {"b.jpe film 1", "c.jfif film 1"} <= {one.name for one in found}
    videos = sources.find_sources(photos / "seen")
    notes = notes_on_photos(photos, videos, found)
    kinds = ".avif, .bmp, .jfif, .jpe, .jpeg, .jpg, .png, .tif, .tiff, .webp"
    assert notes == [
        f"pictures, not filmed: raw.NEF, x.heic, y.svg; photographs are {kinds}",
        "may be videos, not filmed: anim.gif, old.mpg; --videos takes videos",
    ]
    (photos / "seen" / "a.mp4").unlink()
    photograph(photos / "large.png", 5, (300, 200))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with warnings.catch_warnings(action="error"):  # none of them reaches the user raw
        result = run(photos)
    assert result.notes[1:] == notes and result.count("bad") == 0
    assert result.notes[0].startswith("large.png: read, with a warning (DecompressionBombWarning: ")


def test_odd_pictures_are_upright_rgb(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    deep = np.asarray(open_photo(tmp_path / "deep.png"))
    assert deep.shape == (48, 64, 3) and deep.min() == 0 and deep.max() == 255
    assert abs(float(deep.mean()) - 127) < 2
    turned = Image.fromarray(np.zeros((48, 64, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_photo(tmp_path / "turned.jpg").size == (48, 64)


def test_greys_of_any_range_are_scaled_or_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64 * 48).reshape(48, 64)
    path = tmp_path / "grey.tif"
    for dtype, white in (
        (np.int32, 255), (np.int32, 65535), (np.uint16, 65535), (np.float32, 1), (np.float32, 255),
    ):  # fmt: skip
        Image.fromarray((white * ramp).astype(dtype)).save(path)
        assert check_photo(path, []) == ""
        seen = np.asarray(open_photo(path)).astype(float)
        assert seen.shape == (48, 64, 3) and np.abs(seen - 255 * ramp[..., None]).max() <= 1
    for low, high, dtype in (
        (0, 70_000, np.int32),
        (-9, 200, np.int32),
        (0, 1.5, np.float32),
        (-0.1, 1, np.float32),
        (0, 9000, np.float32),
        (0, np.nan, np.float32),
    ):
        Image.fromarray((low + (high - low) * ramp).astype(dtype)).save(path)
        why = check_photo(path, [])
        assert "grey.tif: cannot be read as a picture: its greys are" in why and "16 bits" in why
        with pytest.raises(UserError, match=f"^{re.escape(why)}$"):
            open_photo(path)


def test_variants_are_all_combinations_with_the_original_first() -> None:
    spec = CacheSpec(mirror=True, reverse=True, speeds=(2.0, 0.5))
    every = variants(spec)
    assert len(every) == 12 and every[0] == Variant() and len(set(every)) == 12
    assert variants(CacheSpec()) == [Variant()]
    for speeds, reason in (
        ((1.0,), "0.1 to 10"), ((2.0, 2.0), "twice"), ((20.0,), "0.1 to 10"),
        ((1.0000001,), "not 1: not 1.0000001"), ((2.0, 2.0000001), "twice .six digits count"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            CacheSpec(speeds=speeds)


def test_variants_show_the_frames_turned_and_timed(photos: Path) -> None:
    videos = write_clips(photos.parent / "videos", seeds=(1,), seconds=4.25)
    (videos / "clip-1.json").write_text(json.dumps({"segments": [
        {"time_range_s": [0, 1], "prompt": "begins"}, {"time_range_s": [1, 3], "prompt": "goes on"},
    ]}))  # fmt: skip
    run(None, videos, mirror=True, reverse=True, speeds=(2.0,), pixels=True)
    store = Store.open(photos.parent / "s")
    by_variant = {Variant.of(record): record for record in store.records}
    assert len(by_variant) == 8 == len(store.records)

    def shown(variant: Variant) -> torch.Tensor:
        record = by_variant[variant]
        window = store.window(record, 0, record.latents, [RATE], pixels=True)
        assert window.pixels is not None
        return window.pixels[0]

    own = shown(Variant())
    assert own.shape[1] == 33
    assert torch.equal(shown(Variant(reverse=True)), own.flip(1))
    assert torch.equal(shown(Variant(mirror=True)), own.flip(-1))
    assert torch.equal(shown(Variant(speed=2.0)), own[:, ::2])
    both = shown(Variant(speed=2.0, reverse=True, mirror=True))
    assert torch.equal(both, own[:, ::2].flip(1, 3))
    assert {(r.source, r.fingerprint) for r in store.records} == {
        ("clip-1.mp4", by_variant[Variant()].fingerprint)
    }
    assert len({origin for r in store.records for origin in r.origins}) == 1
    assert [r.id for r in store.records if r.original] == [by_variant[Variant()].id]
    assert {r.original_id for r in store.records} == {by_variant[Variant()].id}
    turned = by_variant[Variant(reverse=True)].captions
    assert {(c.start, c.end, c.text) for c in turned} == {
        (33 / 8 - 1, None, "begins"), (33 / 8 - 3, 33 / 8 - 1, "goes on"),
    }  # fmt: skip
    fast = by_variant[Variant(speed=2.0)].captions
    assert {(c.start, c.end) for c in fast} == {(0.0, 0.5), (0.5, 1.5)}


@pytest.mark.slow
def test_variants_resume_take_rates_and_bind_the_store(photos: Path) -> None:
    how: dict[str, object] = {
        "reverse": True,
        "speeds": (2.0,),
        "pixels": False,
        "min_seconds": 2.0,
    }
    result = run(photos, None, **how)
    assert result.count("cached") == 6
    store = Store.open(photos.parent / "s")
    assert len(store.records) == 12  # 2.1 s at twice the speed are too short
    assert {one.note for one in result.outcomes} == {
        "x2 would be too short; x2-reverse would be too short"
    }
    assert run(photos, None, **how).count("kept") == 6
    other = Rate(height=4, width=4, time=1)
    both = frozenset({RATE, other})
    assert run(photos, None, both, **how).count("updated") == 6
    fresh = photos.parent / "fresh"
    cache(
        changed(**how), None, fresh, photos=photos, rates=both, pixels=False,
        device=torch.device("cpu"),
    )  # fmt: skip
    one, two = Store.open(photos.parent / "s"), Store.open(fresh)
    for a, b in zip(one.records, two.records, strict=True):
        x, y = (s.window(r, 0, 5, [RATE, other]) for s, r in ((one, a), (two, b)))
        assert a.captions == b.captions and a.cuts == b.cuts
        assert all(torch.equal(x.lr[rate], y.lr[rate]) for rate in both)
    with pytest.raises(UserError, match="cached with reverse True"):
        run(photos, pixels=False, min_seconds=2.0, speeds=(2.0,))


def test_variants_that_are_too_short_now_go(photos: Path) -> None:
    videos, how = photos.parent / "videos", {"speeds": (2.0,), "min_seconds": 2.0}
    for seconds, expected in ((4.25, {1.0, 2.0}), (2.25, {1.0})):
        write_clips(videos, seeds=(1,), seconds=seconds)
        assert run(None, videos, **how).count("cached") == 1
        assert {record.speed for record in Store.open(photos.parent / "s").records} == expected


def test_times_of_a_variant() -> None:
    back = Variant(reverse=True, speed=2.0)
    assert back.cuts((1.0, 3.0), 4.0) == (0.5, 1.5)
    whole = (Caption(start=0.0, end=None, text="all"),)
    assert back.captions(whole, 4.0) == whole
    assert back.captions((Caption(start=3.0, end=None, text="end"),), 4.0) == (
        Caption(start=0.0, end=0.5, text="end"),
    )
    assert Variant(speed=0.5).frames(9, 4) == 17 and back.frames(9, 4) == 5
