"""The report of a take that was made, from its folder and its mp4."""

from __future__ import annotations

import json

import attrs
import pytest
import torch

from longtake.core.errors import UserError
from longtake.core.experiment import GenerateSpec
from longtake.core.model import build_model
from longtake.core.sample.spec import Sampler
from longtake.core.take import figures
from longtake.core.take import report as report_file
from longtake.core.take.report import every_frame, take_facts, write_report
from longtake.core.take.storyboard import Section
from longtake.core.take.take import Take
from longtake.core.video.write import count_frames, write_video

from ..program import run as longtake
from ..small import moving, small

BOARD = (Section(prompt="a dog", seconds=2), Section(prompt="a cat", seconds=1, cut=True))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sampler = Sampler(scheduler="euler", steps=1, guidance=1.0)
    generate = GenerateSpec(sampler=sampler, size="48x32", segment_seconds=1.2)
    return build_model(attrs.evolve(small(), generate=generate), adapters=True)


@pytest.fixture(scope="module")
def take(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("takes")
    write_video(folder / "mine.mp4", moving(1), 8)
    take = Take.create(folder / "walk", model=model, seed=3)
    take.begin(folder / "mine.mp4")
    for _ in take.run(BOARD):
        pass
    return take


@pytest.mark.slow
def test_it_says_what_was_asked_made_and_delivered(take):
    report = write_report(take, network=False)
    facts = report.facts
    assert (facts.name, facts.fps, facts.source_frames) == ("walk", 8, 17)
    assert [(s.asked, s.snapped, s.delivered, s.made) for s in report.sections] == [
        (2.0, 16, 16, 2),
        (1.0, 8, 8, 1),
    ]
    assert report.frames == count_frames(take.root / "take.mp4") == 41
    assert not report.failed
    assert [(j.segment, j.frame, j.stream, j.cut) for j in report.joins] == [
        (2, 17, "source", False),
        (3, 25, "continued", False),
        (4, 33, "continued", True),
    ]
    assert [one.tokens for one in facts.new] == [
        s.stored.made["tokens"] for s in take.segments()[1:]
    ]
    assert all(one.tokens > 0 for one in facts.new)
    beside = {"decoding", "LR latents", "writing", "memory"}
    given, *made = (set(one.seconds) for one in facts.segments)
    assert given == beside - {"LR latents"}, "a source's LR latents come from its own pixels"
    assert made == [beside | {"sampling", "remembering"}] * 3
    page = (take.root / "report.html").read_text(encoding="utf-8")
    assert "a dog" in page and page.count("data:image/jpeg;base64,") == 6
    data = json.loads((take.root / "report.json").read_text(encoding="utf-8"))
    assert data["sections"][0]["delivered"] == 16


@pytest.mark.slow
def test_a_segment_says_how_it_joins_the_one_before(take, monkeypatch):
    monkeypatch.setattr(figures, "has_cut_network", lambda: False)
    whole = write_report(take)
    for join in whole.joins:
        own = take.segment(join.segment).report
        (found,) = own.joins
        assert (found.segment, found.stream, found.cut) == (join.segment, join.stream, join.cut)
        assert found.motion.step == join.motion.step, "of the same frames"
        assert found.colour.step == join.colour.step and found.psnr == join.psnr
        assert not own.failed
    assert take.segment(1).report.joins == ()


def test_the_codecs_loss_is_that_of_the_last_second_before_the_join(take):
    psnr = take_facts(take).segments[1].psnr
    shown = torch.stack([torch.tensor(f) for f in every_frame(take.root / "take.mp4")])[9:17]
    coded = torch.stack([torch.tensor(f) for f in take.frames(1)])[9:17]
    error = (shown.float() - coded.float()).square().mean()
    assert psnr == pytest.approx(float(10 * torch.log10(255**2 / error)), abs=1e-3)
    assert take_facts(take).segments[1].psnr == psnr, "kept, and the same"


def test_a_video_of_other_segments_is_not_measured(take):
    video = take.root / "take.mp4"
    data = video.read_bytes()
    write_video(video, moving(1), 8)
    try:
        report = write_report(take, network=False)
        assert report.frames is None and not report.failed
        assert all(join.colour is None for join in report.joins)
    finally:
        video.write_bytes(data)


def test_a_take_without_segments_has_a_report(model, tmp_path):
    report = write_report(Take.create(tmp_path / "new", model=model, seed=3), network=False)
    assert (report.frames, report.sections, report.joins) == (None, (), ())
    assert (tmp_path / "new" / "report.html").is_file()


@pytest.mark.slow
def test_the_verb_ends_with_what_the_take_says_of_itself(run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "has_cut_network", lambda: False)
    story = tmp_path / "story.txt"
    story.write_text("a dog\n\na cat\n", encoding="utf-8")
    asked = ("generate", run, "--out", tmp_path / "walk", "--story", story, "--seconds", 1)
    code, out, err = longtake(*asked, "--seed", 3, "--steps", 1)
    assert code == 0, err
    lines = out.splitlines()
    assert any(line.startswith("joins: 1 (1 continued)") for line in lines)
    assert any(line.startswith("seconds: ") for line in lines)
    assert (tmp_path / "walk" / "report.html").is_file()

    monkeypatch.setattr(report_file, "every_frame", lambda path: iter(list(every_frame(path))[1:]))
    code, out, err = longtake("generate", "--out", tmp_path / "walk", "--json")
    last = json.loads(out.splitlines()[-1])
    assert (code, last["kind"]) == (1, "done"), "fewer frames are in the video than were promised"
    data = json.loads((tmp_path / "walk" / "report.json").read_text(encoding="utf-8"))
    states = [one["state"] for one in data["findings"]]
    assert [line.partition(": ")[0] for line in last["report"]][-len(states) :] == states
    assert "error" in states and "not what was promised" in err


def test_a_damaged_video_is_said_with_the_way_out(take):
    video = take.root / "take.mp4"
    data = video.read_bytes()
    try:
        broken = bytearray(data)
        for at in range(len(data) // 3, len(data) // 2):
            broken[at] ^= 0x5A
        video.write_bytes(broken)
        with pytest.raises(UserError, match=r"take.mp4.*(remove it|cannot)"):
            write_report(take, network=False)
    finally:
        video.write_bytes(data)
