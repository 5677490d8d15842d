"""The change probe: things that change, in view or out of it, and what is asked of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image

from longtake.core.video.builtin_clip import CREDITS, open_credited
from longtake.core.video.camera import film
from longtake.experiments.change import __main__ as change
from longtake.experiments.change import clips as change_clips
from longtake.experiments.change.ask import ChangeResult, over_clips
from longtake.experiments.change.clips import (
    NEW,
    OLD,
    SEEN,
    TIMES,
    WHAT,
    WHEN,
    build_clips,
    region,
    script,
    states,
)
from longtake.experiments.change.page import ChangeDescription, page
from longtake.experiments.returns.ask import ANSWERS, CEILING, LAST, OWN
from longtake.experiments.returns.clips import LEFT, SECONDS, likeness
from longtake.plugins.compressors.specs import ContactSheet, Window

from .small import small
from .test_returns import save_run

SMALL = (128, 72)


@pytest.fixture(autouse=True)
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_clips, "SIZE", SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("what", WHAT)
def test_both_states_are_seen_then_neither_then_the_newer(when: str, what: str) -> None:
    own, first, second = (open_credited(credit.photo) for credit in CREDITS[:3])
    pictures = states(own, (first, second), what)
    frames = list(film(script(when), pictures, SECONDS, 8.0, SMALL))
    rows, columns = region(SMALL[1], SMALL[0])
    old, new = (frames[round(sum(SEEN[when][state]) / 2 * 8)] for state in (OLD, NEW))
    assert likeness(old[rows, columns], new[rows, columns]) < LEFT
    around = np.ones(old.shape[:2], bool)
    around[rows.start - 3 : rows.stop + 3, columns.start - 3 : columns.stop + 3] = False
    assert likeness(old[around], new[around]) > 45  # nothing but the thing changes
    for state, (begin, end) in SEEN[when].items():
        still = frames[math.ceil(8 * begin) : math.floor(8 * end) + 1]
        assert all(likeness(still[0], frame) > 60 for frame in still), state
    seen, asked = TIMES.seen(8.0, 4, 21), TIMES.asked(8.0, 4, 21)
    assert seen == 15 and asked == (16, 17, 18, 19)
    last = frames[4 * (seen - 1)]
    assert likeness(last, new) < LEFT and likeness(last, old) < LEFT
    for frame in frames[4 * asked[0] - 3 : 4 * asked[-1] + 1]:
        assert likeness(frame[rows, columns], new[rows, columns]) > 60


def result(name: str, memory: tuple[float, float]) -> ChangeResult:
    ways = (*ANSWERS[1:4], LAST, CEILING)
    when, what, _ = name.split("-")
    return ChangeResult(
        name=name, when=when, what=what, seen=15, asked=(16, 19), apart=9.0, shown={},
        newer={"memory": memory[0], **dict.fromkeys(ways, 12.0)},
        older={"memory": memory[1], **dict.fromkeys(ways, 11.0)},
    )  # fmt: skip


def test_leads_are_of_the_newer_state_over_the_older() -> None:
    clips = [result("watched-swap-a", (15.0, 10.0)), result("behind-swap-a", (9.0, 12.0))]
    over = over_clips(clips)
    assert set(over) == {"all", "watched", "behind", "swap"}
    assert over["all"]["lead"]["memory"]["mean"] == 1.0 and over["watched"]["clips"] == 1
    assert over["all"]["gives_newer"]["memory"]["mean"] == 0.5
    assert over["behind"]["memory_over"]["none"]["mean"] == -4.0
    description = ChangeDescription(
        run="runs/x", window="w", beside=("sheet",), experiment="x", fps=8.0, photos=None
    )
    text = page(description, clips, over)
    assert "asked of runs/x" in text and "+1.00 [" in text and "50 %" in text
    assert f"`{OWN}` is w" in text and "`sheet`" in text and "## behind, 1 clips" in text


def test_clips_are_six_of_each_photograph_and_of_one_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clips"
    monkeypatch.setattr(change_clips, "CREDITS", CREDITS[:3])
    folder_made: list[str] = []
    monkeypatch.setattr(change_clips, "write_video", lambda path, *_: folder_made.append(path.name))
    clips = build_clips(folder)
    assert len(clips) == 18 == len(set(folder_made))
    kinds = {tuple(clip.stem.split("-")[:2]) for clip in clips}
    assert kinds == {(a, b) for a in WHEN for b in WHAT}
    folder.mkdir()
    assert build_clips(folder) == clips  # the same plan, as it was written
    monkeypatch.setattr(change_clips, "THING", (0.2, 0.2, 0.8, 0.8))
    with pytest.raises(change_clips.UserError, match="clips of another version"):
        build_clips(folder)
    with pytest.raises(change_clips.UserError, match="three photographs or more"):
        build_clips(tmp_path / "other", folder)


@pytest.mark.parametrize(
    ("names", "size", "says"),
    [
        (("a.jpg", "a.k.jpg", "a.png"), (160, 120), "a.jpg and a.png would share their clips"),
        (("a.png", "b.png", "c.png"), (5, 4), "a.png is 5×4 pixels, 64 or more a side"),
    ],
)
def test_photographs_that_give_no_clips_of_their_own_are_refused(
    names: tuple[str, ...], size: tuple[int, int], says: str, tmp_path: Path
) -> None:
    for name in names:
        Image.new("RGB", size, "red").save(tmp_path / name)
    with pytest.raises(change_clips.UserError, match=says):
        build_clips(tmp_path / "out" / "clips", tmp_path)
    assert not (tmp_path / "out").exists()


def test_clips_of_other_photographs_of_the_same_names_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_clips, "write_video", lambda *_: None)
    photos, folder = tmp_path / "photos", tmp_path / "clips"
    photos.mkdir()
    for name in "abc":
        Image.new("RGB", (160, 120), "red").save(photos / f"{name}.png")
    folder.mkdir()
    with pytest.raises(change_clips.UserError, match="clips of another version"):
        build_clips(folder, photos)
    folder.rmdir()
    clips = build_clips(folder, photos)
    folder.mkdir()
    assert build_clips(folder, photos) == clips
    Image.new("RGB", (160, 120), "blue").save(photos / "b.png")
    with pytest.raises(change_clips.UserError, match="or of other photographs"):
        build_clips(folder, photos)
    Image.new("RGB", (160, 120)).save(photos / "a.jpg")
    with pytest.raises(change_clips.UserError, match=r"a.jpg and a.png would share their clips"):
        build_clips(tmp_path / "others", photos)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with runs, and `out` of a probe over three photographs of one kind of change."""
    root, own = tmp_path_factory.mktemp("change"), small()
    save_run(root / "own", own)
    save_run(root / "window", attrs.evolve(own, compressors=(Window(latents=20),)))
    save_run(root / "sheet", attrs.evolve(own, compressors=(ContactSheet(),)))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SIZE", SMALL), ("CREDITS", CREDITS[:3]), ("WHAT", ("swap",))):
            patch.setattr(change_clips, name, value)
        assert change.main(asked(root)) == 0
        yield root


def asked(root: Path) -> list[str]:
    given = [str(root / "own"), "--out", str(root / "out"), "--window-run", str(root / "window")]
    return [*given, "--beside", str(root / "sheet")]


@pytest.mark.slow
def test_every_way_answers_and_all_is_written(made: Path) -> None:
    found = json.loads((made / "out" / "change.json").read_text())
    assert len(found["clips"]) == 6 and found["beside"] == ["sheet"]
    for clip in found["clips"]:
        assert set(clip["newer"]) == set(clip["older"]) == {*ANSWERS, "sheet", LAST, CEILING}
        assert all(math.isfinite(value) for value in clip["newer"].values())
        assert clip["newer"][CEILING] > clip["older"][CEILING] + 5
        assert clip["apart"] < LEFT + 3 and "shown" not in clip
    assert set(found["over"]) == {"all", "watched", "behind", "swap"}
    assert found["over"]["all"]["gives_newer"][CEILING]["mean"] == 1.0
    assert (made / "out" / "change.png").stat().st_size > 1000
    text = (made / "out" / "change.md").read_text()
    assert "`watched`" in text and "ends before; asked are latents 16 to 19" in text


@pytest.mark.slow
def test_bad_runs_are_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "memory", small())
    for given, says in (
        (["--beside", str(made / "nonesuch")], "no such run"),
        (["--beside", str(tmp_path / "memory")], "another answer is called memory"),
        (["--photos", str(made / "nonesuch")], "no such folder"),
    ):
        assert change.main([str(made / "own"), *given, "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err.strip()
        assert says in told and len(told.splitlines()) == 1


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert change.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip()
    assert "no such run" in told and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()
