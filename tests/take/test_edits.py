"""Edits of a take: where it ends, what of a source stays, and what is refused before it is written.

A video of 12.5 s at 8 fps is two segments of a source: 81 and 16 frames.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from longtake.core.errors import UserError
from longtake.core.take.events import Told
from longtake.core.take.source import read_source
from longtake.core.take.storyboard import Section
from longtake.core.take.take import Take
from longtake.core.tools.files import open_tensors
from longtake.core.video.write import count_frames

from ..program import run as longtake
from .kit import begun, clip, copy, done, heard, opened, same, with_sound

LONG = 12.5
OPEN = (Section(prompt="a dog", seconds=1.0), Section(prompt="on and on"))
ONE = Section(prompt="x", seconds=1.0)
PRODUCTS = ("take.mp4", "new.mp4", "report.json", "report.html")


def products(take: Take) -> list[str]:
    return [name for name in PRODUCTS if (take.root / name).exists()]


@pytest.fixture(scope="module")
def after_video(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Take:
    """A take of a video of two segments with sound, and one section; no test changes it."""
    folder = tmp_path_factory.mktemp("after")
    take = begun(folder / "take", run)
    take.begin(with_sound(folder / "mine.mp4", seconds=LONG))
    assert done(take.run([ONE]))["segments"] == 3
    return take


def lr_count(take: Take, number: int) -> int:
    """How many LR latents a segment has."""
    with open_tensors(take.folder.cache_path(take.segment(number).id) / "lr.safetensors") as file:
        (name,) = file.keys()
        return int(file.get_tensor(name).shape[2])


@pytest.mark.slow
def test_a_section_without_end_ends_where_an_edit_says(run: Path, tmp_path: Path) -> None:
    """Edits make what their order names; only who asks for the section again lets it go on."""
    take = begun(tmp_path / "take", run)
    assert done(take.run(list(OPEN), segments=3))["segments"] == 3
    three = [entry.id for entry in take.order.entries]
    code, _, err = longtake("generate", "--out", take.root, "--drop-after", 2, "--yes")
    assert code == 0 and count_frames(take.root / "take.mp4") == take.frames_of(
        0, take.order.latents
    ), err
    assert [entry.id for entry in take.order.entries] == three[:2]
    for words in ((), ("--redo", 2, "--keep-seed")):
        assert longtake("generate", "--out", take.root, *words)[0] == 0
        assert [entry.id for entry in take.order.entries] == three[:2]
    branch = take.branch(tmp_path / "branch")
    assert done(branch.run())["segments"] == 2
    for _ in range(2):  # of the redo, of the drop
        assert longtake("generate", "--out", take.root, "--undo")[0] == 0
    assert [entry.id for entry in take.order.entries] == three  # and it was not gone on with
    assert done(take.branch(tmp_path / "first", at=2).run())["segments"] == 2
    take.drop_after(3)  # behind the last one, too
    assert done(opened(take.root).run())["segments"] == 3
    take.drop_after(2)
    assert done(take.run(list(OPEN), segments=1))["segments"] == 3
    assert [entry.id for entry in take.order.entries] == three
    assert done(take.run(segments=1))["segments"] == 4


@pytest.mark.slow
def test_a_source_that_left_the_take_is_no_part_of_it(
    after_video: Take, run: Path, tmp_path: Path
) -> None:
    take = copy(after_video, tmp_path / "take")
    assert products(take) == list(PRODUCTS)
    take.drop_after(2)
    list(take.run())
    assert products(take) == [name for name in PRODUCTS if name != "new.mp4"]
    code, _, err = longtake("generate", "--out", take.root, "--drop-after", 0, "--yes")
    assert code == 0 and products(take) == [], err
    with pytest.raises(UserError, match=r"began with mine.mp4, which --undo brings back"):
        take.begin(clip(tmp_path / "other.mp4"))
    with pytest.raises(UserError, match="begins with no video"):
        take.deliver_source("recode")
    list(take.run(iter([ONE, ONE])))
    alone = begun(tmp_path / "alone", run)
    list(alone.run(iter([ONE, ONE])))
    same(take, alone)
    assert heard(take.root / "take.mp4") is None and products(take) == products(alone)
    while take.order.before is not None:
        take.undo()
        if len(take.order.entries) == 3:
            break
    list(take.run())
    same(take, after_video)
    # once nothing brings it back, another one may come; nothing of the first goes along
    fresh = begun(tmp_path / "fresh", run)
    fresh.begin(with_sound(tmp_path / "loud.mp4"))
    fresh.undo()
    fresh.begin(clip(tmp_path / "silent.mp4", seed=6))
    list(fresh.run())
    assert heard(fresh.root / "take.mp4") is None


@pytest.mark.slow
def test_a_take_may_end_within_its_source(after_video: Take, tmp_path: Path) -> None:
    source = read_source(after_video.folder)
    assert source is not None and source.frames == 97
    branch, cut = after_video.branch(tmp_path / "b", at=1), copy(after_video, tmp_path / "cut")
    cut.drop_after(1)
    for take in (branch, cut):
        told = done(take.run(iter([ONE, ONE])))
        assert told["segments"] == 3 and told["frames"] == 81 + 16
        assert [lr_count(take, number) for number in (2, 3)] == [lr_count(after_video, 3)] * 2
    same(branch, cut)
    tone = heard(branch.root / "take.mp4")
    assert tone is not None and 81 / 8 - 0.2 < tone[1] < 81 / 8
    line = branch.begin(source.path)
    assert "97 frames" in line and line.endswith("keeps the first 81 frames, as it was edited")
    memory = branch.memory().joined()
    shutil.rmtree(branch.root / "cache")
    (branch.root / "source" / "lr_tail.safetensors").unlink()
    again = opened(branch.root).memory().joined()
    assert memory is not None and again is not None and torch.equal(memory.tokens, again.tokens)
    # the rest of the source comes back, with its tail
    cut.undo()
    cut.undo()
    cut.undo()
    list(cut.run())
    same(cut, after_video)
    # a codec that holds back frames has no border there
    branch.folder.spec["causal"] = False
    cut.folder.spec["causal"] = False
    for refused in (lambda: cut.drop_after(1), lambda: cut.branch(tmp_path / "c", at=1)):
        with pytest.raises(UserError, match=r"1: it lies within the video .* name 2 or more"):
            refused()
    assert len(cut.order.entries) == 3 and not (tmp_path / "c").exists()


@pytest.mark.slow
def test_a_damaged_source_is_told_and_encoded_again(
    after_video: Take, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    take = copy(after_video, tmp_path / "take")
    folder = take.folder.segment_path(take.segment(1).id)
    file, good = folder / "lr.safetensors", (folder / "lr.safetensors").read_bytes()
    way = rf"put it back, remove segments/{folder.name} and run the same command"
    for bad in (good[:-8] + b"12345678", good[:200]):
        file.write_bytes(bad)
        with pytest.raises(UserError, match=rf"lr.safetensors.*{way}"):
            list(opened(take.root).run())
    file.unlink()
    with pytest.raises(UserError, match=way):
        list(opened(take.root).run())
    for name in ("latents.safetensors", "segment.json"):
        other = copy(after_video, tmp_path / name)
        (other.root / "segments" / folder.name / name).write_bytes(b"{}")
        with pytest.raises(UserError, match=rf"{name}.*{way}"):
            list(other.run())
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="which is gone: put it back, or run the same command"):
        opened(take.root).memory()
    list(opened(take.root).run())
    same(opened(take.root), after_video)
    # segments of before had no hash of their LR latents
    path = take.folder.segment_path(take.segment(1).id) / "segment.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({k: v for k, v in data.items() if k != "lr_sha256"}))
    list(opened(take.root).run())
    # the tail of its LR frames can be done without
    tail = take.root / "source" / "lr_tail.safetensors"
    good = tail.read_bytes()
    for bad in (good[:-8] + b"12345678", good[:100], b""):
        tail.write_bytes(bad)
        caplog.clear()
        assert done(opened(take.root).run(iter([ONE]), segments=0))["segments"] >= 3
        assert "come from its decoded latents" in caplog.text


@pytest.mark.slow
def test_frames_of_the_codec_in_place_of_a_sources_own_are_told(
    after_video: Take, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    take = copy(after_video, tmp_path / "take")
    path = take.root / "source" / "source.json"
    there = path.read_text(encoding="utf-8")
    path.write_text(there.replace("mine.mp4", "gone.mp4"), encoding="utf-8")
    code, _, err = longtake("generate", "--out", take.root)
    assert code == 0 and "gone.mp4" not in err  # its clips are there
    shutil.rmtree(take.root / "cache")
    for _ in range(2):
        code, out, err = longtake("generate", "--out", take.root)
        assert code == 0 and "gone.mp4 has changed since the take began, or is gone" in err
        assert "warning" in out and "gone.mp4 has changed, or is gone" in out
    opened(take.root).deliver()
    assert "gone.mp4 has changed since the take began, or is gone" in caplog.text
    found = json.loads((take.root / "report.json").read_text(encoding="utf-8"))
    assert [one["check"] for one in found["findings"]].count("source") == 1
    assert found["joins"][0]["psnr"] is None
    other = (take.root / "take.mp4").read_bytes()
    path.write_text(there, encoding="utf-8")
    caplog.clear()
    code, out, err = longtake("generate", "--out", take.root)
    assert code == 0 and "is gone" not in err + out
    same(opened(take.root), after_video)
    assert (take.root / "take.mp4").read_bytes() != other
    mine, kept = (json.loads((t.root / "report.json").read_text()) for t in (take, after_video))
    assert mine["joins"][0]["psnr"] == kept["joins"][0]["psnr"] is not None
    assert longtake("generate", "--out", take.root, "--deliver", "recode")[0] == 0
    assert "damaged" not in caplog.text  # none of these clips is


@pytest.mark.slow
def test_what_is_refused_leaves_the_take_as_it_was(
    whole: Take, after_video: Take, run: Path, tmp_path: Path
) -> None:
    take = copy(whole, tmp_path / "take")
    order = (take.root / "order.json").read_bytes()
    no_lora = tmp_path / "no.safetensors"
    no_lora.write_text("{}", encoding="utf-8")
    good = run / "checkpoint-3" / "lora.safetensors"
    more = ("--prompt", "b", "--seconds", 1)
    inside = take.root / "segments" / "zz"
    refused: list[tuple[tuple[object, ...], str]] = [
        ((*more, "--lora", no_lora), "no.safetensors is no safetensors file"),
        ((*more, "--lora", f"{good}@1e999"), "1e999 is no scale"),
        (("--branch", inside), "lies in the take"),
        (("--branch", take.root / "b" / "c"), "lies in the take"),
    ]
    for words, told in refused:
        code, _, err = longtake("generate", "--out", take.root, *words)
        assert code == 2 and told in err and len(err.strip().splitlines()) == 1, err
    code, _, err = longtake("generate", run, "--out", inside, *more)
    assert code == 2 and "lies in the take" in err and not inside.exists(), err
    code, _, err = longtake("generate", "--out", after_video.root, "--redo", 1)
    assert code == 2 and err.startswith("longtake: --redo 1: it is of the video"), err
    for call in (
        lambda: list(take.frames(0)), lambda: list(take.frames(-1)), lambda: list(take.frames(99)),
        lambda: list(take.run(5)), lambda: list(take.run(iter([5]))),  # type: ignore[arg-type, list-item]
        lambda: list(take.run(ONE, segments=0.5)),  # type: ignore[arg-type]
        lambda: take.redo("1"), lambda: take.drop_after(True), lambda: take.segment(1.0),  # type: ignore[arg-type]
        lambda: take.deliver(take.root / "order.json"), lambda: take.deliver(tmp_path),
        lambda: take.deliver(take.root / "segments" / "a.mp4"),
        lambda: take.deliver(take.root / "new.mp4"),
        lambda: after_video.deliver(after_video.root.parent / "mine.mp4"),
    ):  # fmt: skip
        with pytest.raises(UserError):
            call()
    assert (take.root / "order.json").read_bytes() == order
    assert not (take.root / "segments" / "a.mp4").exists()
    assert take.deliver(take.root / "walk.mp4") and take.deliver(tmp_path / "walk.mp4")
    # a stranger's folder is not the take's to remove
    (take.root / "segments" / "mine").mkdir()
    assert take.garbage() == whole.garbage() or all("mine" not in p.name for p in take.garbage())


@pytest.mark.slow
def test_the_copy_of_a_storyboard_can_be_edited_and_given(run: Path, tmp_path: Path) -> None:
    board = {"format": 1, "sections": [{"duration": 1.0, "prompt": "a"}]}
    given, out = tmp_path / "s.json", tmp_path / "take"
    given.write_text(json.dumps(board), encoding="utf-8")
    words = ("generate", run, "--out", out, "--seed", 3)
    assert longtake(*words, "--story", given)[0] == 0
    board["sections"] = [*board["sections"], {"duration": 1.0, "prompt": "b"}]  # type: ignore[misc]
    own = out / "story.orig.json"
    own.write_text(json.dumps(board), encoding="utf-8")
    code, _, err = longtake(*words, "--story", own)
    assert code == 0 and len(opened(out).order.entries) == 2, err
    assert json.loads(own.read_text(encoding="utf-8")) == board


SPOILT: list[tuple[str, tuple[str | int, ...], object, str]] = [
    ("segment", ("recipe",), {}, "segment.json: recipe is no recipe of a segment: it lacks first"),
    ("segment", ("recipe",), 5, "segment.json: recipe must be an object, not 5"),
    (
        "segment",
        ("recipe", "count"),
        "4",
        "recipe.count must be a whole number, 1 or more",
    ),
    ("segment", ("made",), [], "segment.json: made must be an object"),
    ("segment", ("made", "tokens"), "x", "made.tokens must be a whole number"),
    ("segment", ("latents_sha256",), 5, "latents_sha256 must be text, not 5"),
    ("order", ("entries", 1, "latents"), "4", "entries[1].latents must be a whole number"),
    ("order", ("entries", 0, "latents"), 6, "entries[0] is of 6 latents from 0 on"),
    ("order", ("entries", 1, "id"), "../x", "entries[1].id must be the name of a segment's folder"),
    ("order", ("entries", 1), 5, "entries[1] must be an object"),
    ("order", ("entries",), {}, "order.json: entries must be a list"),
    ("order", ("entries", 1, "loras"), [["a"]], "entries[1].loras must be a list of pairs"),
    ("order", ("entries", 0, "source"), False, "entries of a source stand at the beginning"),
    ("order", ("entries", 1, "promt"), "a", "entries[1].promt is unknown"),
    ("spec", ("size",), 5, "spec.json: size must be a list of two whole numbers"),
    ("spec", ("run",), 5, "spec.json: run must be text or null, not 5"),
    ("spec", ("fps",), "8", "spec.json: fps must be a number more than 0"),
    ("source", ("path",), 5, "source.json: path must be text, not 5"),
    ("source", ("frames",), None, "source.json: frames must be a whole number"),
]


@pytest.mark.slow
def test_json_of_another_kind_is_one_line(after_video: Take, tmp_path: Path) -> None:
    take = copy(after_video, tmp_path / "take")
    files = {name: take.root / f"{name}.json" for name in ("order", "spec")}
    files["source"] = take.root / "source" / "source.json"
    files["segment"] = take.folder.segment_path(take.segment(3).id) / "segment.json"
    for name, path, value, told in SPOILT:
        good = files[name].read_text(encoding="utf-8")
        data = json.loads(good)
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        files[name].write_text(json.dumps(data), encoding="utf-8")
        verbs = [("generate", "--out", take.root), ("show", take.root)]
        for words in verbs[: 1 if name == "source" else 2]:
            code, out, err = longtake(*words)
            assert told in err + out and "Traceback" not in err, (name, path, err)
            assert code == 2 or words[0] == "show", (name, path, err)
        files[name].write_text(good, encoding="utf-8")
    for name in ("order", "spec"):
        good = files[name].read_text(encoding="utf-8")
        files[name].unlink()
        code, _, err = longtake("show", take.root)
        assert code == 2 and f"{name}.json is missing" in err, err
        files[name].write_text(good, encoding="utf-8")
    assert longtake("generate", "--out", take.root)[0] == 0


@pytest.mark.slow
def test_a_beginning_again_is_delivered_as_it_was_and_said_before(
    after_video: Take, tmp_path: Path
) -> None:
    take = copy(after_video, tmp_path / "take")
    source = read_source(take.folder)
    assert source is not None
    take.deliver_source("recode")
    dry = ("generate", "--out", take.root, "--extend", source.path, "--dry-run")
    take.drop_after(1)
    code, _, err = longtake(*dry)
    assert code == 0 and "; the take keeps the first 81 frames, as it was edited" in err
    take.drop_after(0)
    other = clip(tmp_path / "other.mp4")
    code, _, err = longtake("generate", "--out", take.root, "--extend", other, "--dry-run")
    assert code == 2 and "which --undo brings back: another beginning" in err
    code, _, err = longtake(*dry)
    assert code == 0 and str(tmp_path / "take") not in err.replace(str(take.root), "")
    take.begin(source.path)
    again = read_source(take.folder)
    assert again is not None and again.recode, "None: as it was"
    order = take.order
    (take.root / "source" / "source.json").unlink()
    with pytest.raises(UserError, match=r"source\.json, which names it, is gone: put it back"):
        list(take.run())
    assert take.order == order


def test_what_cannot_be_made_is_refused_before_it_is_written(run: Path, tmp_path: Path) -> None:
    story = tmp_path / "story.json"
    board = {"format": 1, "title": "a\0b", "sections": [{"duration": 1, "prompt": "a"}]}
    story.write_text(json.dumps(board))
    out = tmp_path / "out"
    words = ("generate", run, "--out", out, "--story", story)
    code, _, err = longtake(*words)
    assert code == 2 and "title must be text without control characters" in err
    story.write_text(json.dumps(board | {"title": "ab"}))
    code, _, err = longtake(*words, "--lora", story)
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    code, _, err = longtake(*words[:4], "--prompt", "a", "--seconds", 1, "--guidance", 1e300)
    assert code == 2 and "must be at most 1000" in err
    with pytest.raises(UserError, match="device 'foo': name one of torch's"):
        begun(out, run, device="foo")
    assert not out.exists()
    take = begun(out, run)
    for story_of_another_kind in (["a"], b"ab", {"a": 1}):
        with pytest.raises(UserError, match="sections are wanted, not"):
            list(take.run(story_of_another_kind))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a storyboard, its path, a section"):
        take.plan(5)  # type: ignore[arg-type]
    assert not take.order.entries


@pytest.mark.slow
def test_a_section_of_an_iterator_says_what_a_section_says(run: Path, tmp_path: Path) -> None:
    take = begun(tmp_path / "take", run)
    long = Section(prompt="a", seconds=8.0)
    said = [e.text for e in take.run(iter([long]), segments=1, seed=5) if isinstance(e, Told)]
    plan = begun(tmp_path / "other", run).plan(long, seed=5)
    assert [row for row in plan.rows if row in said] == list(plan.rows) != []
