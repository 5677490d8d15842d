"""`longtake generate` and `longtake show TAKE` as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import av
import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file

from longtake.backbones.codecs.specs import WanVae
from longtake.backbones.wan.specs import Wan21Small, Wan22Moe14B
from longtake.core.errors import UserError
from longtake.core.take.setup import lora_path, refuse_changes
from longtake.core.take.take import Take

from ..program import run as longtake
from ..small import small
from ..test_export_verb import make_run
from .kit import clip, experiment, opened

SECONDS = ("--seconds", 1.5)


def made(out: Path, run: Path, *words: object) -> None:
    code, told, err = longtake("generate", run, "--out", out, "--seed", 3, *words)
    assert code == 0, err
    assert str(out / "take.mp4") in told


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """A take of two segments, made by the program; which no test changes."""
    out = tmp_path_factory.mktemp("program") / "walk"
    made(out, run, "--prompt", "a dog", "--seconds", 2.5)
    return out


@pytest.fixture
def own(take: Path, tmp_path: Path) -> Path:
    shutil.copytree(take, tmp_path / "walk")
    return tmp_path / "walk"


def test_it_is_made_and_shown(take: Path) -> None:
    code, told, _ = longtake("show", take)
    assert code == 0 and "'a dog', seed 4" in told and "to make" not in told
    data = json.loads(longtake("show", take, "--json")[1])
    assert [row["frames"] for row in data["segments"]] == [17, 8]
    assert (take / "report.html").exists() and (take / "report.json").exists()
    assert longtake("show", take, "--fields")[0] == 2


@pytest.mark.slow
def test_events_are_lines_of_json(own: Path) -> None:
    code, told, _ = longtake("generate", "--out", own, "--prompt", "b", *SECONDS, "--json")
    events = [json.loads(line) for line in told.splitlines()]
    assert code == 0 and [e["kind"] for e in events if e["kind"] not in ("step", "note")] == [
        "segment", "pixels", "done",
    ]  # fmt: skip
    steps = [e for e in events if e["kind"] == "step"]
    assert [(e["done"], e["total"], e["segment"]) for e in steps] == [(1, 2, 3), (2, 2, 3)]
    assert {"eta", "eta_all"} <= steps[0].keys()
    lengths = {name: events[-1][name] for name in ("asked", "snapped", "delivered")}
    assert lengths == {"asked": 4.0, "snapped": 4.125, "delivered": 4.125}


def test_a_dry_run_writes_nothing(run: Path, take: Path, tmp_path: Path) -> None:
    out = tmp_path / "none"
    words = ("--prompt", "x", "--seconds", 5, "--dry-run")
    code, told, _ = longtake("generate", run, "--out", out, *words)
    assert code == 0 and not out.exists()
    assert "asked 0–5.00 s → 0–5.12 s, 41 frames" in told and "memory tokens" in told
    before = (take / "order.json").read_bytes()
    code, told, _ = longtake("generate", "--out", take, *words, "--json")
    data = json.loads(told)
    assert code == 0 and (take / "order.json").read_bytes() == before
    assert [row["segment"] for row in data["to_make"]] == [3, 4, 5] and data["seconds"] > 0
    code, told, _ = longtake("generate", "--out", take, "--redo", 1, "--dry-run")
    assert code == 0 and "segments 1-2 are made again" in told


def test_a_dry_run_says_and_refuses_what_a_run_does(run: Path, take: Path, tmp_path: Path) -> None:
    story, out = tmp_path / "a.srt", tmp_path / "none"
    cue = "{}\n00:00:0{},000 --> 00:00:0{},000\n{}\n\n"
    rows = [(1, 1, 2, "A dog runs"), (2, 2, 3, ""), (3, 4, 6, "Cats")]
    story.write_text("".join(cue.format(*row) for row in rows))
    words = ("generate", run, "--out", out, "--seed", 1, "--story", story, "--dry-run")
    code, _, err = longtake(*words)
    notes = err.splitlines()
    assert code == 0 and "a.srt, line 6: cue 2 has no text, passed over" in notes, err
    assert "a.srt, line 2: cue 1 goes on to 4 s, the next one's start" in notes
    cut = "section 1: the text encoder does not read the last 2 characters of the prompt: 'ns'"
    assert cut in notes and not out.exists()
    assert json.loads(longtake(*words, "--json")[1])["notes"] == notes
    code, _, err = longtake(*words[:-1], "--segments", 0)
    assert code == 0 and set(notes) <= set(err.splitlines())
    # of a take that is there, the beginning is checked, too; and the place of one that is not
    new = ("--prompt", "x", *SECONDS, "--dry-run")
    clip(tmp_path / "mine.mp4")
    for place, words, match in (
        (take, ("--extend", tmp_path / "nope.mp4", *new), "nope.mp4: no such file"),
        (take, ("--extend", tmp_path / "mine.mp4", *new), "has segments already"),
        (take, ("--deliver", "recode", *new), "begins with no video, all of it is new"),
        (take, ("--branch", run, "--dry-run"), "something is there already"),
        (take, ("--branch", out, "--at", 9, "--dry-run"), "--at 9: this take has segments 1 to 2"),
        (story, (run, *new), "a.srt is a file; name a folder"),
        (story / "take", (run, *new), "a.srt is a file; name a folder"),
        (tmp_path, (run, *new), "is a folder with other files in it, and no take"),
    ):
        code, _, err = longtake("generate", "--out", place, *words)
        assert code == 2 and match in err, err
    order = (out / "order.json").read_bytes()
    assert longtake("generate", "--out", out, "--undo")[0] == 0  # a take of no segments
    words = ("--extend", tmp_path / "mine.mp4", *new)
    code, told, err = longtake("generate", "--out", out, *words)
    assert code == 0 and "33 frames at 8 fps" in err and "segments 2 to make" in told
    assert (out / "order.json").read_bytes() != order and not opened(out).order.entries


def test_what_no_segment_can_have_leaves_the_order_as_it_was(own: Path) -> None:
    before = (own / "order.json").read_bytes()
    for words, match in (
        (("--seed", 10**20), "--seed must be 0 or more and less than 2^63"),
        (("--guidance", "inf"), "--guidance must be a finite number, not inf"),
        (("--prompt", " "), "--prompt is blank: say what the section shows"),
        (("--prompt", "a\udcff"), "--prompt must be text in UTF-8"),
        (("--negative", "a\udcff"), "--negative must be text in UTF-8"),
        (("--steps", 10_001), "--steps must be at most 10000, not 10001"),
    ):
        code, told, err = longtake("generate", "--out", own, "--redo", 1, *words)
        assert code == 2 and match in err and not told, err
    walk = opened(own)
    for values, match in (
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"seed": -5}, "seed must be 0 or more"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"prompt": 5}, "prompt must be text, not 5"),
    ):
        with pytest.raises(UserError, match=match):
            walk.redo(1, **values)
    with pytest.raises(UserError, match="seed must be 0 or more"):
        next(walk.run(seed=-5))
    with pytest.raises(UserError, match="seed must be a whole number, not 'x'"):
        Take.create(own / "other", run=own, seed="x")  # type: ignore[arg-type]
    assert (own / "order.json").read_bytes() == before


def test_sets_that_change_what_latents_depend_on_are_refused(take: Path, tmp_path: Path) -> None:
    before = (take / "order.json").read_bytes()
    for change, match in (
        ("compressors.0.layers=2", "compressors.0.layers: {} began with 1, not 2, and its latents"),
        ("backbone.memory_time=0.5", "backbone.memory_time: {} began with 0.0, not 0.5"),
        ("backbone.text_encoder.length=80", "backbone.text_encoder.length: {} began with 8"),
        ("backbone.weights=tiny-wan-2x2x2", "backbone.weights: {} began with None"),
    ):
        words = ("--prompt", "x", *SECONDS, "--set", change)
        code, _, err = longtake("generate", "--out", take, *words)
        assert code == 2 and match.format(take).replace("None", "null") in err, err
    assert (take / "order.json").read_bytes() == before
    for steps, differs in ((3, True), (2, False)):  # it began with 2: the same command goes on
        words = ("--set", f"generate.sampler.steps={steps}", "--dry-run")
        code, _, err = longtake("generate", "--out", take, *words)
        assert code == 0 and ("differs from what" in err) == differs, err
    # tiles are for a machine; and weights may lie elsewhere, if they are the same
    walk = experiment()
    vae = WanVae(weights=str(tmp_path / "vae"))
    published = Wan21Small(codec=vae, weights=str(tmp_path / "one"))
    base = evolve(walk, backbone=published)

    def changed(**fields: object) -> list[str]:
        return refuse_changes(take, base, evolve(walk, backbone=evolve(published, **fields)))

    assert changed(codec=evolve(vae, tile=256)) == []
    for name, text in (("one", "a"), ("same", "a"), ("other", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(text)
    assert changed(weights=str(tmp_path / "same")) == []
    with pytest.raises(UserError, match=r"backbone\.weights: .* began with .*one"):
        changed(weights=str(tmp_path / "other"))
    shutil.rmtree(tmp_path / "one")
    assert "nobody can tell whether" in changed(weights=str(tmp_path / "same"))[0]


@pytest.mark.slow
def test_a_story_is_read_once_and_its_copy_may_be_given(run: Path, tmp_path: Path) -> None:
    out, pipe = tmp_path / "walk", tmp_path / "pipe"
    board = {"format": 1, "title": "Täg", "seed": 2, "sections": [{"duration": 2, "prompt": "x"}]}
    board["sections"] += [{"duration": 1.5, "prompt": "a long one"}]  # type: ignore[operator]
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(json.dumps(board),), daemon=True)
    writer.start()
    made(out, run, "--story", pipe)
    assert json.loads((out / "story.orig").read_text()) == board
    assert av.open(str(out / "take.mp4")).metadata["title"] == "Täg"
    story = out / "story.orig.json"
    story.write_text(json.dumps(board | {"title": "Night"}))
    written, first = out / "take.mp4", (out / "take.mp4").read_bytes()
    entries = json.loads((out / "order.json").read_text())["entries"]
    assert longtake("generate", "--out", out, "--story", story)[0] == 0
    assert json.loads((out / "order.json").read_text())["entries"] == entries
    assert av.open(str(written)).metadata["title"] == "Night"
    assert longtake("generate", "--out", out, "--branch", tmp_path / "branch")[0] == 0
    assert longtake("generate", "--out", tmp_path / "branch")[0] == 0
    assert av.open(str(tmp_path / "branch" / "take.mp4")).metadata["title"] == "Night"
    assert longtake("generate", "--out", out, "--undo")[0] == 0
    assert written.read_bytes() == first, "a title is an edit, too"
    assert longtake("generate", "--out", out, "--story", story)[0] == 0
    changed = written.stat().st_mtime_ns
    code, _, err = longtake("generate", "--out", out, "--story", story, "--seed", 99)
    assert code == 0 and "seed 99 does not count for segments 1-2, planned with" in err
    story.write_text(json.dumps(board | {"title": "Night", "segment_seconds": 1.3}))
    code, _, err = longtake("generate", "--out", out, "--story", story, "--seed", 3)
    assert code == 0 and "segment_seconds 1.3 does not count for segments 1-2" in err
    assert "seed 3 does not" not in err and written.stat().st_mtime_ns == changed
    one = board | {"title": "Night", "sections": board["sections"][:1]}  # type: ignore[index]
    story.write_text(json.dumps(one))
    code, _, err = longtake("generate", "--out", out, "--story", story)
    assert code == 2 and "--yes drops segment 2, or another --out" in err
    one["sections"] = [{"duration": 2, "prompt": "y"}]
    story.write_text(json.dumps(one))
    code, told, _ = longtake("generate", "--out", out, "--story", story, "--dry-run", "--json")
    assert code == 0 and [json.loads(told)[x] for x in ("remakes", "drops")] == [[1], [2]]
    code, told, _ = longtake("generate", "--out", out, "--story", story, "--dry-run")
    assert "remakes segment 1, drops segment 2" in told
    one["sections"] += [{"duration": 1, "prompt": "z"}]
    story.write_text(json.dumps(one))
    assert longtake("generate", "--out", out, "--story", story, "--yes")[0] == 0
    assert json.loads(story.read_text()) == one
    for key, value, match in (
        ("size", "9999x9999", "line 3: size 9999x9999: this run has other sizes"),
        ("segment_seconds", 99, "line 3: segment_seconds 99: this run makes at most"),
    ):
        text = json.dumps({"format": 1, key: value, "sections": one["sections"]}, indent=1)
        (tmp_path / "big.json").write_text(text)
        words = ("--out", tmp_path / "new", "--story", tmp_path / "big.json", "--seed", 1)
        code, _, err = longtake("generate", run, *words)
        assert code == 2 and f"big.json, {match}" in err and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_redo_stop_undo(own: Path) -> None:
    code, told, err = longtake("generate", "--out", own, "--redo", 1, "--seed", 9, "--stop")
    assert code == 0 and "segments 1-2 are made again" in err and "1 segment to make" in told
    assert longtake("generate", "--out", own)[0] == 0
    code, told, err = longtake("generate", "--out", own, "--undo")
    assert code == 0 and "back to 2 segments, 0 of them to make" in err
    code, told, _ = longtake("generate", "--out", own, "--tidy")
    assert code == 2
    code, told, _ = longtake("generate", "--out", own, "--tidy", "--yes", "--json")
    assert code == 0 and len(json.loads(told)["paths"]) == 5
    assert {p.name for p in (own / "segments").iterdir()} == {
        e.id for e in opened(own).order.entries
    }


@pytest.mark.slow
def test_a_segment_that_is_gone_is_made_again(own: Path) -> None:
    shutil.rmtree(own / "segments" / opened(own).segment(2).id)
    code, _, err = longtake("generate", "--out", own)
    assert code == 2 and "--redo 2" in err
    code, _, err = longtake("generate", "--out", own, "--redo", 2)
    assert code == 0 and opened(own).order.made == 2, err


@pytest.mark.slow
def test_a_branch_a_drop_and_an_extension(own: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "branch"
    assert longtake("generate", "--out", own, "--branch", out, "--at", 1)[0] == 0
    assert opened(out).order.made == 1
    code, told, err = longtake("generate", "--out", own, "--drop-after", 1)
    assert code == 0 and "segments 2 leave the take" in err and "17 frames" in told
    video, extended = clip(tmp_path / "mine.mp4"), tmp_path / "extended"
    words = ("--extend", video, "--extend-from", 2.2, "--prompt", "on", *SECONDS)
    made(extended, run, *words)
    made(extended, run, *words)  # the same command, when all is done, goes on with one more
    assert [e.source for e in opened(extended).order.entries] == [True, False, False]
    assert (extended / "new.mp4").exists()


@pytest.mark.slow
def test_a_lora_of_ones_own(run: Path, tmp_path: Path) -> None:
    """It acts, by its scale; going on keeps it; a file that changed meanwhile is refused."""
    lora, out = tmp_path / "style.safetensors", tmp_path / "take"
    shutil.copy(run / "checkpoint-3" / "lora.safetensors", lora)
    words = ("--prompt", "a dog", "--seconds", 2.5, "--lora")
    made(tmp_path / "none", run, *words[:-1], "--segments", 1)
    made(tmp_path / "half", run, *words, f"{lora}@0.5", "--segments", 1)
    made(out, run, *words, lora, "--segments", 1)
    takes = [opened(tmp_path / "none"), opened(tmp_path / "half"), opened(out)]
    latents = [take.latents() for take in takes]
    assert not torch.equal(latents[0], latents[1]) and not torch.equal(latents[1], latents[2])
    assert "lora " in longtake("show", out)[1] and opened(out).order.entries[1].loras
    good = lora.read_bytes()
    lora.write_bytes(good[:-4] + b"abcd")
    code, _, err = longtake("generate", "--out", out)
    assert code == 2 and "has changed since the section was asked for (sha256)" in err
    lora.write_bytes(good)
    code, _, err = longtake("generate", "--out", out, "--gain", 2)
    assert code == 0, err
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [one["gain"] is None for one in report["memory"]] == [True, False]
    stored = opened(out).segment(2).stored
    assert "gain" in stored.made and "gain" not in stored.recipe
    code, _, err = longtake("generate", "--out", out, "--redo", 2, "--steps", 1, "--keep-seed")
    assert code == 0 and opened(out).order.entries[1].steps == 1, err


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_an_export_makes_takes(run: Path, tmp_path: Path, layout: str) -> None:
    """It is a RUN as good as the run's folder, known of the take; another one is refused."""
    file, out = tmp_path / "x.safetensors", tmp_path / "take"
    assert longtake("export", run, "--to", layout, "--out", file)[0] == 0
    words = ("--prompt", "a dog", "--seconds", 2.5)
    made(tmp_path / "own", run, *words)
    made(out, file, *words, "--segments", 1)
    code, _, err = longtake("generate", "--out", out)
    assert code == 0, err
    assert torch.equal(opened(out).latents(), opened(tmp_path / "own").latents())
    make_run(tmp_path / "other", small(trains="lora", seed=1))
    tensors = load_file(tmp_path / "other" / "checkpoint-3" / "lora.safetensors")
    save_file({k: x + 1 for k, x in tensors.items()},
              tmp_path / "other" / "checkpoint-3" / "lora.safetensors")  # fmt: skip
    code, _, err = longtake("generate", tmp_path / "other", "--out", out, *words)
    assert code == 2 and "was made with" in err


def test_a_lora_names_its_expert(tmp_path: Path) -> None:
    """`low:` is for runs that have that expert; elsewhere it would be left out in silence."""
    spec = experiment()
    both = evolve(spec, backbone=Wan22Moe14B(expert="both", weights=None))
    file = tmp_path / "a@b.safetensors"
    file.write_bytes(b"x")
    for text in (f"low:{file}@0.5", f"high:{file}", f"{file}@-1e-3", str(file)):
        assert lora_path(text, both) == file
    assert lora_path(f"{file}@0.5", spec) == file
    high = evolve(spec, backbone=Wan22Moe14B(expert="high", weights=None))
    assert lora_path(f"high:{file}", high) == file
    for text, one, told in (
        (f"low:{file}", high, "makes all steps with the high-noise expert"),
        (f"middle:{file}", both, "wan22-14b has the experts high and low"),
        (f"low:{file}", spec, "tiny-wan has no experts; write file or file@0.8"),
    ):
        with pytest.raises(UserError, match=told):
            lora_path(text, one)


@pytest.mark.slow
def test_a_storyboard_of_each_kind(run: Path, tmp_path: Path) -> None:
    board = tmp_path / "story.srt"
    board.write_text(
        "1\n00:00:00,000 --> 00:00:02,000\na dog\n\n2\n00:00:02,000 --> 00:00:03,000\nb"
    )
    made(tmp_path / "srt", run, "--story", board)
    take = opened(tmp_path / "srt")
    assert [e.prompt for e in take.order.entries] == ["a dog", "b"]
    assert (take.root / "story.orig.srt").read_text() == board.read_text()
    board.write_text(board.read_text().replace("a dog", "a wolf"))
    code, _, err = longtake("generate", "--out", take.root, "--story", board)
    assert code == 2 and "--yes remakes segments 1-2" in err
    assert longtake("generate", "--out", take.root, "--story", board, "--yes")[0] == 0


@pytest.mark.slow
def test_a_storyboard_that_begins_with_a_file(run: Path, take: Path, tmp_path: Path) -> None:
    """A dry run counts its frames, and the take has its shape, wherever the file is named."""
    clip(tmp_path / "tall.mp4", seconds=1.2, size=(72, 40))
    section = {"duration": 2.0, "prompt": "a dog"}
    for name, board in (
        ("source", {"source": "tall.mp4", "sections": [section]}),
        ("picture", {"sections": [section | {"image": "tall.mp4"}]}),
    ):
        story, out = tmp_path / f"{name}.json", tmp_path / name
        story.write_text(json.dumps({"format": 1, "seed": 1, **board}))
        code, told, err = longtake("generate", run, "--out", out, "--story", story, "--dry-run")
        assert code == 0 and "16 frames, 1 segment of 4 latents, seed 3" in told, err
        code, _, err = longtake("generate", run, "--out", out, "--story", story, "--segments", 0)
        assert code == 0, err
        assert opened(out).folder.spec["size"] == [64, 32]
    story.write_text(json.dumps({"format": 1, "size": "32x64", "sections": [section]}))
    code, _, err = longtake("generate", "--out", take, "--story", story)
    assert code == 2 and "picture.json asks for 32x64" in err and "is 64x32" in err


BAD = [
    (("--prompt", "x"), "--prompt goes with --seconds"),
    (("--seconds", 3), "--seconds goes with"),
    (("--prompt", "x", "--seconds", 0), "--seconds 0: more than 0"),
    (("--prompt", "x", "--seconds", 0.02), "less than one step"),
    (("--fps", 24, "--prompt", "x", "--seconds", 3), "the frame rate is the backbone's"),
    (("--redo", 1), "is no take"),
    (("--redo", 1, "--undo"), "one of them at a time"),
    (("--stop",), "--stop goes with --redo"),
    (("--at", 1), "--at goes with --branch"),
    (("--image", "a.png", "--extend", "b.mp4"), "begins with one of the two"),
    (("--extend-from", 2), "--extend-from goes with --extend"),
    (("--extend", "none.mp4"), "none.mp4"),
    (("--size", "64x33", "--prompt", "x", "--seconds", 3), "this run has other sizes"),
    (("--lora", "low:x.safetensors", "--prompt", "x", "--seconds", 3), "tiny-wan has no experts"),
    (("--deliver", "recode", "--prompt", "x", "--seconds", 3), "--deliver goes with --extend"),
    (("--lora", "none.safetensors", "--prompt", "x", "--seconds", 3), "--lora none.safetensors"),
    ((), "nothing to make"),
    (("--story", "none.json"), "none.json"),
    (("--prompt", "x", "--seconds", 3, "--seed", 10**26), "--seed must be 0 or more and less than"),
    (("--prompt", "x", "--seconds", 3, "--guidance", "inf"), "--guidance must be a finite number"),
    (("--prompt", "x", "--seconds", 3, "--steps", 10**30), "--steps must be at most 10000"),
    (("--prompt", "a\udcff", "--seconds", 3), "--prompt must be text in UTF-8, not 'a\ufffd'"),
    (("--prompt", "x", "--seconds", 3, "--size", "²x³"), "--size must be WIDTHxHEIGHT"),
    (("--extend", "none.mp4", "--extend-from", "inf"), "--extend-from must be a finite number"),
    (("--extend", "none.mp4", "--extend-from", "1e300"), "at most 86400 s, not 1e+300 s"),
    (("--image", "a\udcff.png"), "a\ufffd.png"),
]


@pytest.mark.parametrize(("words", "match"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: tuple[object, ...], match: str, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "take"
    code, told, err = longtake("generate", run, "--out", out, *words)
    assert code == 2 and match in err and err.count("\n") <= 2, err
    assert not told and not out.exists()


def test_what_is_refused_of_a_beginning_leaves_nothing(run: Path, tmp_path: Path) -> None:
    out, video = tmp_path / "take", clip(tmp_path / "mine.mp4", seconds=1.2)
    story, section = tmp_path / "story.json", {"duration": 1, "prompt": "x"}
    story.write_text(json.dumps({"format": 1, "segment_seconds": 99, "sections": [section]}))
    code, _, err = longtake("generate", run, "--out", out, "--extend", video, "--story", story)
    assert code == 2 and "this run makes at most" in err and not out.exists()
    clip(video, seconds=0.3)
    story.write_text(json.dumps({"format": 1, "source": "mine.mp4", "sections": [section]}))
    code, _, err = longtake("generate", run, "--out", out, "--story", story)
    assert code == 2 and "5 or more" in err and not out.exists()


def test_what_does_not_fit_a_take(take: Path, tmp_path: Path) -> None:
    for words, match in (
        (("--redo", 7), "--redo 7: this take has segments 1 to 2"),
        (("--drop-after", 7), "this take has segments 0 to 2"),
        (("--size", "32x32"), "is 64x32"),
        (("--steps", 3), "--steps: there are no new sections, and those of"),
        (("--drop-after", 1, "--seed", 3), "--seed: --drop-after makes no new sections"),
        (("--deliver", "recode"), "begins with no video, all of it is new"),
    ):
        code, _, err = longtake("generate", "--out", take, *words)
        assert code == 2 and match in err
    code, _, err = longtake("generate", "--out", tmp_path / "none", "--prompt", "x", *SECONDS)
    assert code == 2 and "name the RUN that makes it" in err


@pytest.mark.slow
def test_ctrl_c_between_two_events(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longtake.core.cli import generate as verb_file

    def stopped(*args: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb_file, "_show", stopped)
    code, _, err = longtake("generate", "--out", own)
    assert code == 130 and "2 segments (3.1 s) in" in err


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_made(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longtake.core.take import work as work_file

    def stopped(*args: object) -> object:
        yield next(before(*args))  # type: ignore[call-overload]
        raise KeyboardInterrupt

    before = work_file.sample_segment
    with monkeypatch.context() as patch:
        patch.setattr(work_file, "sample_segment", stopped)
        code, _, err = longtake("generate", "--out", own, "--prompt", "b", *SECONDS)
    assert code == 130
    assert "longtake: stopped in segment 3 at step 1 of 2; 2 segments (3.1 s) in" in err
    assert f"go on: longtake generate --out {own}" in err
    assert longtake("generate", "--out", own)[0] == 0
    take: Take = opened(own)
    assert take.order.made == 3
