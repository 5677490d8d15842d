"""Measuring: oracles give what they must, intervals are honest, and misses are called misses."""

from __future__ import annotations

import json
import re

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.data.store import Store
from longtake.core.errors import LongtakeError, PluginError, UserError
from longtake.core.measure.compare import compare_rates
from longtake.core.measure.measure import measure
from longtake.core.measure.prepare import MeasureSetup, unique_names
from longtake.core.measure.quality import ceiling, clean_query, clip_scene, decode_one_by_one
from longtake.core.measure.result import (
    Distance,
    FrameScores,
    Interval,
    interval,
    interval_or_none,
    join_scores,
    quality_over_clips,
)
from longtake.core.measure.strips import evenly_spaced, make_sliders, make_strips
from longtake.core.measure.verdict import as_data, verdict
from longtake.core.model import build_model
from longtake.core.pages.report import Page, render
from longtake.core.values.draws import Draws
from longtake.core.values.grid import Rate
from longtake.plugins.compressors.specs import Conv, Window
from longtake.plugins.metrics.pixels import ROUNDING, high_band
from longtake.plugins.metrics.specs import MsSsim, Psnr
from longtake.plugins.retrievers.specs import Flow, MeanFrame

from .conftest import Broken, Crooked, Failing, Oracle, Wanting

finite = st.floats(-100, 100)


def test_an_oracle_gives_the_ceiling_exactly(result):
    for metric in result.metrics:
        best = result.retrieval("ceiling").unmasked.figures[metric.name]
        assert result.retrieval("oracle").unmasked.figures[metric.name] == best
    assert {d.figures["psnr"].mean for d in result.distances if d.kind == "ceiling"} == {0.0}


def test_noise_is_below_the_mean_frame_and_all_below_the_ceiling(result):
    psnr = {r.name: r.unmasked.figures["psnr"].mean for r in result.retrievals}
    assert psnr["snow"] < psnr["mean-frame"] < psnr["ceiling"]
    assert psnr["flow"] < psnr["upsample"] < psnr["ceiling"]


def test_detail_is_the_ratio_of_sums_over_a_clip(model, store, result):
    """The mean of the frames' ratios would be another figure."""
    at = MeasureSetup.build(model, store)
    record = at.records()[1]
    scene = clip_scene(at, record)
    omega = torch.arange(scene.size.time)[None]
    pixels = torch.cat(list(decode_one_by_one(scene, omega, ceiling(scene, omega))), dim=2)
    shown, true = ((x[0].movedim(1, 0).float()) for x in (pixels, scene.history.pixels))
    above, below = (
        (high_band(x, 4).square().mean(dim=(1, 2, 3)) + ROUNDING)
        for x in ((shown + 1) / 2, true / 255)
    )
    found = result.clips[1].unmasked["ceiling"]["high-band"]
    assert found == pytest.approx(float(above.sum() / below.sum()), rel=1e-4)
    assert found != pytest.approx(float((above / below).mean()), rel=1e-3)


def test_a_metric_that_cannot_run_is_null_and_says_why(result):
    assert [metric.name for metric in result.metrics] == ["psnr", "ssim", "high-band"]
    assert [(m.name, m.needs) for m in result.missing] == [("wanting", "a <b>crystal</b> ball")]
    data = as_data(result)
    assert data["missing"][0]["needs"] and data["retrievals"][1]["masked"]["figures"]["psnr"]
    rows = [*data["retrievals"][1]["masked"]["ages"], *data["distances"]]
    rows += [one["unmasked"] for one in data["retrievals"]]
    assert {row["figures"]["wanting"] for row in rows} == {None}
    figures = [clip["unmasked"]["flow"] for clip in (*data["clips"], *data["long"])]
    assert {figure["wanting"] for figure in figures} == {None}
    assert any("WANTED was not measured" in line["text"] for line in data["verdict"])


def test_only_metrics_that_cannot_run_are_refused(experiment, store):
    lacking = build_model(attrs.evolve(experiment, metrics=(Wanting(),)))
    with pytest.raises(UserError, match="none of the experiment's metrics .*crystal"):
        MeasureSetup.build(lacking, store)


def test_frames_too_small_for_a_metric_are_one_line_before_any_work(experiment, store):
    five = build_model(attrs.evolve(experiment, metrics=(Psnr(), MsSsim(scales=5))))
    with pytest.raises(UserError, match="ms-ssim needs frames of 176x176 .* a has 64x96"):
        MeasureSetup.build(five, store)


def test_a_model_without_memory_is_refused(experiment, store):
    with pytest.raises(UserError, match="no memory to measure"):
        MeasureSetup.build(build_model(attrs.evolve(experiment, compressors=())), store)


def test_long_clips_are_measured_a_second_time_one_by_one(result):
    assert [row.name for row in result.long] == ["a", "b", "c"]  # d is too short
    for row, clip in zip(result.long, result.clips, strict=False):
        assert row.size == "6x8x12" and row.seconds == 21 / 8 and row.tokens > clip.tokens
        assert row.unmasked["oracle"] == row.unmasked["ceiling"]
        assert set(row.unmasked) == set(clip.unmasked)
        assert row.unmasked["mean-frame"] != clip.unmasked["mean-frame"]
    lines = [str(line) for line in verdict(result) if "clip by clip" in line.text]
    assert len(lines) == 2 and "oracle at 2.7 s" in lines[0] and "(upsample " in lines[0]


def test_a_greater_length_can_be_off_or_reached_by_none(experiment, store):
    off = attrs.evolve(experiment.measure, long_seconds=0.0)
    at = MeasureSetup.build(build_model(attrs.evolve(experiment, measure=off)), store)
    assert at.longer() is None
    assert attrs.evolve(at, length=99).longer() is None  # the main length covers it


def test_no_clip_of_the_greater_length_is_said(result):
    text = "\n".join(map(str, verdict(attrs.evolve(result, long=()))))
    assert "No clip lasts 2.7 s" in text


def test_what_was_retrieved_is_shown_and_not_asked_again(measure_setup, result):
    retrieved = measure_setup.retrieved
    names = {(clip.id, name) for clip in result.clips for name in ("oracle", "flow")}
    assert set(retrieved) == names
    black = {key: torch.full_like(latents, -9.0) for key, latents in retrieved.items()}
    shown, asked = (
        make_strips(attrs.evolve(measure_setup, retrieved=r), result, clips=1, frames=2)[0]
        for r in (black, {})
    )
    rows = [{row.label: row.frames for row in strip.rows} for strip in (shown, asked)]
    assert not torch.equal(rows[0]["oracle"], rows[1]["oracle"])
    assert torch.equal(rows[0]["upsample"], rows[1]["upsample"])
    same = make_strips(measure_setup, result, clips=1, frames=2)[0]
    assert torch.equal(same.rows[2].frames, rows[1]["oracle"])


def test_strips_of_named_clips(measure_setup):
    assert [s.title for s in make_strips(measure_setup, names=("d", "a"), frames=1)] == ["d", "a"]
    with pytest.raises(UserError, match="no clip 'e'; it has"):
        make_strips(measure_setup, names=("e",))


@pytest.mark.slow
def test_every_part_of_a_memory_is_measured_alone(experiment, store):
    spec, (conv,) = attrs.evolve(experiment.measure, long_seconds=0.0), experiment.compressors
    two = attrs.evolve(
        experiment, compressors=(conv, attrs.evolve(conv, window=2)), measure=spec,
        retrievers=(Flow(), MeanFrame()), metrics=(Psnr(),),
    )  # fmt: skip
    few = Store(store.root, store.header, store.records[:1])
    found = measure(MeasureSetup.build(build_model(two), few))
    parts = [one for one in found.retrievals if one.kind == "part"]
    assert [one.name for one in parts] == ["flow of 0.conv-2x2x2", "flow of 1.conv-2x2x2"]
    assert sum(found.clips[0].parts.values()) == found.clips[0].tokens
    rows = {row.name: row.tokens for row in compare_rates(found).rows}
    assert rows["flow"] == 2 * rows["flow of 0.conv-2x2x2"] == found.clips[0].tokens
    assert found.rates == ("2x2x2",) and not any(d.kind == "part" for d in found.distances)


def test_learned_retrievers_are_masked_too_and_floors_once(result):
    assert {r.name for r in result.retrievals if r.masked} == {"oracle", "flow"}
    kinds = {r.name: r.kind for r in result.retrievals}
    assert kinds["thumbnail"] == "guide" and kinds["upsample"] == "floor"


def test_floors_say_how_many_numbers_they_keep(result):
    numbers = {r.name: r.numbers for r in result.retrievals}
    # 4 latents are 13 frames: 7 LR frames of 32x48 pixels, 2 LR latents of 4x6 cells
    assert numbers["thumbnail"] == 3 * 7 * 32 * 48
    assert numbers["upsample"] == 48 * 2 * 4 * 6
    assert numbers["mean-frame"] == 3 * 64 * 96
    assert numbers["oracle"] == result.clips[0].tokens * 24 and numbers["snow"] is None


def test_mirrors_are_left_out_and_lengths_are_said(result):
    assert [clip.name for clip in result.clips] == ["a", "b", "c", "d"] and result.mirrored == 4
    assert [clip.short for clip in result.clips] == [False, False, False, True]
    assert [clip.cut for clip in result.clips] == [True, True, True, False]
    assert [clip.size for clip in result.clips] == ["4x8x12"] * 3 + ["3x8x12"]
    assert result.clips[0].uncompressed == 4 * 4 * 6 and result.clips[0].tokens == 3 * 2 * 3
    assert result.clips[0].seconds == 13 / 8


def test_figures_are_means_of_the_rows(result):
    for name in ("oracle", "upsample", "flow"):
        rows = [clip.unmasked[name]["psnr"] for clip in result.clips]
        found = result.retrieval(name).unmasked.figures["psnr"]
        assert found.mean == pytest.approx(sum(rows) / 4) and found.n == 4
    gains = [clip.gain for clip in result.clips]
    assert result.gain.gain.mean == pytest.approx(sum(gains) / 4)


def test_shuffled_memory_is_of_another_clip_of_the_size(result):
    a, b, c, d = result.clips
    assert c.specific == pytest.approx(0.0, abs=5e-5)  # its next one is a, of the same frames
    assert abs(a.specific) > 5e-4 and abs(b.specific) > 5e-4
    assert d.specific is None and d.gain is not None
    assert result.gain.alone == 1 and result.gain.specific.n == 3
    assert a.foreign == pytest.approx(a.specific - a.gain)


def test_masked_and_unmasked_are_compared_on_the_same_frames(result):
    """The oracle, which needs no memory, is as good on both."""
    for clip in result.clips:
        assert set(clip.same) == {"oracle", "flow"}
        assert clip.same["oracle"] == pytest.approx(clip.masked["oracle"])
        assert clip.same["oracle"] != clip.unmasked["oracle"]  # all frames, each once


def test_ages_of_a_clip_are_of_all_its_frames(result):
    for clip in result.clips[:3]:  # 13 frames at 8 a second
        newer, older = clip.ages["0"]["psnr"], clip.ages["1"]["psnr"]
        assert (8 * newer + 5 * older) / 13 == pytest.approx(clip.unmasked["oracle"]["psnr"])


@pytest.mark.slow
def test_another_clips_memory_is_what_is_retrieved_from(model, store):
    asked = attrs.evolve(model.experiment, retrievers=(Flow(),), metrics=(Psnr(),))
    found = measure(MeasureSetup.build(attrs.evolve(model, experiment=asked), store))
    a, b, c, d = found.clips
    same = pytest.approx(c.unmasked["flow"]["psnr"], rel=1e-5)  # of the same frames
    assert c.swapped["psnr"] == same
    assert abs(b.swapped["psnr"] - b.unmasked["flow"]["psnr"]) > 1e-6
    assert d.swapped is None
    told = [line for line in verdict(found) if line.text.startswith("From another clip's memory")]
    assert len(told) == 1


@pytest.mark.parametrize(("lost", "state"), [(2.0, "reached"), (0.0, "unclear"), (-2.0, "missed")])
def test_memory_that_another_clips_can_stand_for_is_no_memory(result, lost, state):
    clips = [
        attrs.evolve(c, swapped={**c.unmasked["oracle"], "psnr": c.unmasked["oracle"]["psnr"] - x})
        for c, x in zip(result.clips, (lost - 0.5, lost, lost + 0.5), strict=False)
    ]
    found = states(result, clips=tuple(clips))
    assert [s for text, s in found.items() if text.startswith("From another clip's")] == [state]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures_and_another_seed_others(model, store, result):
    few = Store(store.root, store.header, store.records[:1])
    calls = []
    again, other = (
        measure(MeasureSetup.build(model, few, seed=s), progress=lambda *call: calls.append(call))
        for s in (0, 1)
    )
    alone = {"specific": None, "foreign": None, "swapped": None}
    assert again.clips[0] == attrs.evolve(result.clips[0], **alone)
    assert other.clips[0].masked != again.clips[0].masked
    assert calls[0][1] == calls[-1][0] == calls[-1][1] and len(calls) == 2 * calls[0][1]
    assert again.gain.foreign is None and again.gain.gain.low is None


def test_measuring_leaves_the_model_as_it_was(model, store):
    model.backbone.train()
    make_strips(MeasureSetup.build(model, store), clips=1, frames=1)
    assert model.backbone.training and all(p.requires_grad for p in model.backbone.parameters())


def test_the_result_is_plain_json(result):
    data = json.loads(json.dumps(as_data(result), allow_nan=False))
    assert data["clips"][3]["short"] is True and data["step"] == 12
    assert data["spec"]["measure"]["draws"] == 2 and data["verdict"][0]["state"]


def test_a_retriever_that_breaks_is_named(experiment, store):
    broken = build_model(attrs.evolve(experiment, retrievers=(Broken(),)))
    with pytest.raises(LongtakeError, match="broken, a: psnr is not finite"):
        measure(MeasureSetup.build(broken, store))
    with pytest.raises(LongtakeError, match=r"retriever 'broken' \(.*\) made it so"):
        measure(MeasureSetup.build(broken, store))


def test_a_retriever_of_other_sizes_is_named(experiment, store):
    crooked = build_model(attrs.evolve(experiment, retrievers=(Crooked(),)))
    with pytest.raises(PluginError) as error:
        measure(MeasureSetup.build(crooked, store))
    assert re.match(r"retriever 'crooked' \(.*conftest.py\): its latents: ", str(error.value))
    assert "[1, 48, 4, 7, 12], but [B C K H W] [1, 48, 4, 8, 12] is expected" in str(error.value)


@pytest.fixture(scope="module")
def short(experiment, store):
    """An experiment of one retriever, and a store of three clips, one of them longer."""
    few = Store(store.root, store.header, [r for r in store.records if not r.mirror][:3])
    return attrs.evolve(experiment, retrievers=(Oracle(), MeanFrame())), few


WAYS = {
    "raises late": "it failed: metric 'failing' failed (FILE:LINE, in __call__): KeyError: ",
    "is none": "it failed: metric 'failing' (FILE): its figure is not finite for ceiling, a",
    "is one number": "it failed: metric 'failing' (FILE): its figures: the shape is [], but",
    "weighs nothing": "it failed: metric 'failing' (FILE): a weight is not above 0",
    "is not built": "it failed: metric 'failing' failed (FILE:LINE, in __init__): OSError: no such",
    "has no title": "it failed: metric 'failing' failed (FILE:LINE, in title): AttributeError",
    "cannot tell": "it failed: metric 'failing' failed (FILE:LINE, in missing): AttributeError",
}


@pytest.mark.slow
def test_metrics_that_fail_keep_what_else_was_measured(short):
    experiment, store = short
    failing = tuple(Failing(way=way) for way in (*WAYS, "has no spec"))
    setup = MeasureSetup.build(
        build_model(attrs.evolve(experiment, metrics=(*failing, Psnr()))), store
    )
    result = measure(setup)
    assert [m.name for m in result.metrics] == ["failing way=has no spec", "psnr"]
    assert [m.name for m in result.missing] == [f"failing way={way}" for way in WAYS]
    for missing, said in zip(result.missing, WAYS.values(), strict=True):
        place = re.escape(said).replace("FILE", r"[\w/.]+").replace("LINE", r"\d+")
        assert re.match(place, missing.reason), missing.reason
        assert "\n" not in missing.reason
    data = as_data(result)
    assert len(data["clips"]) == 3 and len(data["long"]) == 3
    for clip in data["clips"]:
        assert clip["unmasked"]["oracle"]["psnr"] and clip["masked"]["oracle"]["psnr"]
        assert {clip["unmasked"]["oracle"][m.name] for m in result.missing} == {None}
    lines = [line["text"] for line in data["verdict"]]
    assert sum("was not measured: it failed" in line for line in lines) == len(WAYS)
    page = Page(strips=make_strips(setup, result, clips=1), sliders=make_sliders(setup, result))
    assert render(result, page).count("was not measured: it failed") >= len(WAYS)


def test_where_every_metric_fails_the_reasons_are_said(short):
    experiment, store = short
    failing = build_model(attrs.evolve(experiment, metrics=(Failing(),)))
    with pytest.raises(LongtakeError, match="none of the .* failing: it failed: .*KeyError"):
        measure(MeasureSetup.build(failing, store))


@pytest.mark.slow
def test_two_compressors_of_which_one_brings_features_are_measured(experiment, store):
    rate = Rate(height=2, width=2, time=2)
    conv = Conv(rate=rate, channels=(4, 8), heads=1, head_width=8, features=True)
    both = attrs.evolve(
        experiment, compressors=(Window(latents=2), conv), retrievers=(Flow(steps=1),),
        metrics=(Psnr(),),
    )  # fmt: skip
    names = [one.name for one in measure(MeasureSetup.build(build_model(both), store)).retrievals]
    assert names == ["ceiling", "flow", "flow of 0.window-2", "flow of 1.conv-2x2x2"]


def test_stores_that_do_not_fit_are_refused(model, store):
    other = Store(store.root, {**store.header, "codec": "another"}, store.records)
    with pytest.raises(UserError, match="cached with codec another"):
        MeasureSetup.build(model, other)
    mirrors = Store(store.root, store.header, [r for r in store.records if r.mirror])
    with pytest.raises(UserError, match="mirrored clips only"):
        MeasureSetup.build(model, mirrors)


@settings(deadline=None, max_examples=40)
@given(st.lists(finite, min_size=2, max_size=30))
def test_intervals_hold_their_mean_and_are_the_same_each_time(values):
    found = interval(values)
    assert found.low <= found.mean <= found.high and found.n == len(values)
    assert min(values) - 1e-9 <= found.low and found.high <= max(values) + 1e-9
    assert interval(values) == found


def test_intervals_of_few_values():
    assert interval([2.0]) == Interval(mean=2.0, low=None, high=None, n=1)
    assert interval([3.0] * 5) == Interval(mean=3.0, low=3.0, high=3.0, n=5)
    assert interval_or_none([None, 1.0]).n == 1 and interval_or_none([None]) is None
    with pytest.raises(ValueError, match="no value"):
        interval([])


def test_intervals_cover_about_as_often_as_they_say():
    draws = torch.randn(300, 25, generator=torch.Generator().manual_seed(0))
    found = [interval(row.tolist()) for row in draws]
    assert 0.88 < sum(i.low <= 0 <= i.high for i in found) / len(found) < 0.98


def test_age_counts_from_the_end_and_clips_count_once():
    def clip(total, value):
        frames = torch.arange(total)
        return FrameScores(frames=frames, total=total, values={"m": frames * 0.0 + value})

    long, short = clip(17, 1.0), clip(5, 3.0)
    long.values["m"][-1] = 9.0  # the newest frame: age 0
    quality = quality_over_clips([long, short], fps=4, width=1.0)
    assert [(b.start, b.end) for b in quality.ages] == [(i, i + 1.0) for i in range(5)]
    assert [b.figures["m"].n for b in quality.ages] == [2, 2, 1, 1, 1]
    assert quality.ages[0].figures["m"].mean == pytest.approx(((9 + 1 * 3) / 4 + 3) / 2)
    assert quality.ages[2].figures["m"].mean == 1.0
    assert quality.figures["m"].mean == pytest.approx(((16 + 9) / 17 + 3) / 2)


def test_names_tell_alike_specs_apart():
    assert list(unique_names([Flow(), Flow(steps=9, guidance=2.0), MeanFrame(), Flow()])) == [
        "flow steps=1 guidance=1.0", "flow steps=9 guidance=2.0", "mean-frame"
    ]  # fmt: skip
    assert list(unique_names([Psnr()])) == ["psnr"]


def test_weights_count_frames_in_every_mean():
    def clip(values, weights):
        frames = torch.arange(len(values))
        return FrameScores(
            frames=frames, total=len(values), values={"m": torch.tensor(values)},
            weights={"m": torch.tensor(weights)},
        )  # fmt: skip

    one = clip([1.0, 5.0], [3.0, 1.0])
    assert one.means() == {"m": 2.0} and join_scores([one, one]).means() == {"m": 2.0}
    quality = quality_over_clips([one, clip([4.0, 4.0], [9.0, 9.0])], fps=1, width=2.0)
    assert quality.figures["m"].mean == quality.ages[0].figures["m"].mean == 3.0


def some(mean, low, high):
    return Interval(mean=mean, low=low, high=high, n=9)


def states(result, **changes):
    return {line.text: line.state for line in verdict(attrs.evolve(result, **changes))}


@pytest.mark.parametrize(
    ("name", "figure", "state"),
    [
        ("mean-frame", some(1.4, 1.1, 1.8), "reached"),
        ("mean-frame", some(1.4, 0.8, 1.8), "unclear"),
        ("mean-frame", some(0.9, 0.8, 1.0), "missed"),
        ("upsample", some(0.2, 0.1, 0.3), "reached"),
        ("upsample", some(-0.2, -0.3, 0.1), "missed"),
        ("upsample", Interval(mean=0.2, low=None, high=None, n=1), "unclear"),
    ],
)
def test_floors_are_judged_by_mean_and_interval(result, name, figure, state):
    distance = Distance(name=name, kind="floor", figures={"psnr": figure})
    found = states(result, distances=(distance,))
    about = [s for text, s in found.items() if re.search(f"(above|below) {name}", text)]
    assert about == [state]


@pytest.mark.parametrize(
    ("gain", "foreign", "expected"),
    [
        (some(0.1, 0.05, 0.2), some(0.02, -0.01, 0.04), ["reached", "reached"]),
        (some(0.1, -0.05, 0.2), some(-0.02, -0.05, 0.01), ["unclear", "reached"]),
        (some(-0.1, -0.2, 0.1), some(-0.02, -0.05, -0.01), ["missed", "missed"]),
        (some(0.1, 0.05, 0.2), None, ["reached", "unclear"]),
    ],
)
def test_gain_is_judged_by_its_interval(result, gain, foreign, expected):
    figures = attrs.evolve(result.gain, gain=gain, foreign=foreign)
    found = states(result, gain=figures)
    about = [
        s for text, s in found.items() if "memory_gain" in text or "with another clip's" in text
    ]
    shuffled = [s for text, s in found.items() if "no figure with shuffled" in text]
    assert about + shuffled == expected


def with_figures(result, name, metric, figure, **changes):
    """The result with another figure of one retriever."""
    old = result.retrieval(name)
    quality = attrs.evolve(old.unmasked, figures={**old.unmasked.figures, metric: figure})
    new = attrs.evolve(old, unmasked=quality, **changes)
    both = tuple(new if one is old else one for one in result.retrievals)
    return attrs.evolve(result, retrievals=both)


@pytest.mark.parametrize(
    ("rates", "figure", "state", "words"),
    [
        (("2x2x2",), some(19.5, 19.2, 19.8), "reached", "0.38 dB above the 19.12 dB"),
        (("2x2x2",), some(19.5, 19.0, 19.8), "unclear", "reaches below"),
        (("4x4x2",), some(17.0, 16.0, 19.0), "missed", "0.41 dB below the 17.41 dB"),
        (("2x2x4",), some(19.0, 18.7, 19.8), "reached", "18.63"),
        (("2x2x1",), some(19.0, 18.7, 19.8), "missed", "20.19"),
    ],
)
def test_samples_are_judged_beside_the_paper(result, rates, figure, state, words):
    found = with_figures(attrs.evolve(result, rates=rates), "oracle", "psnr", figure)
    lines = [line for line in verdict(found) if "the paper" in line.text]
    assert [line.state for line in lines] == [state, "note"]  # flow in one step is only noted
    assert lines[0].text.startswith("oracle") and words in lines[0].text
    assert all("no comparison" in line.text for line in lines)


def test_a_rate_that_the_paper_does_not_have_is_not_compared(result):
    for rates in (("2x2x8",), ("4x4x2", "2x2x8"), ()):
        found = verdict(attrs.evolve(result, rates=rates))
        assert not any("paper" in line.text for line in found)


@pytest.mark.parametrize(
    ("figure", "state"),
    [
        (some(0.95, 0.85, 1.1), "reached"),
        (some(0.85, 0.75, 0.9), "unclear"),
        (some(1.15, 1.0, 1.3), "unclear"),
        (some(0.7, 0.6, 0.9), "missed"),
        (some(1.3, 1.1, 1.5), "missed"),
        (Interval(mean=1.0, low=None, high=None, n=1), "unclear"),
    ],
)
def test_detail_is_asked_within_a_fifth_both_ways(result, figure, state):
    found = with_figures(result, "oracle", "high-band", figure)
    lines = [line for line in verdict(found) if "original's energy" in line.text]
    assert [line.state for line in lines] == [state, "note"]
    own = result.retrieval("ceiling").unmasked.figures["high-band"].mean
    assert all(f"reconstruction holds {own:.3f}" in line.text for line in lines)


def test_what_was_asked_comes_before_notes(result):
    notes = [line.state == "note" for line in verdict(result)]
    assert notes == sorted(notes) and False in notes and True in notes


def test_that_nothing_samples_is_said(result):
    found = attrs.evolve(
        result, retrievals=tuple(attrs.evolve(one, samples=False) for one in result.retrievals)
    )
    assert any("gives samples" in line.text for line in verdict(found))


def test_distances_of_a_goal_in_numbers_say_how_much_nearer(result):
    rows = [clip.unmasked for clip in result.clips]
    found = {d.name: d.figures["high-band"].mean for d in result.distances}
    gaps = [
        abs(row["upsample"]["high-band"] - 1) - abs(row["oracle"]["high-band"] - 1) for row in rows
    ]
    assert found["upsample"] == pytest.approx(sum(gaps) / len(gaps))


def test_cautions_are_said(result):
    text = "\n".join(map(str, verdict(result)))
    assert "[note] Only 4 clips" in text and "1 of 4 clips are shorter than 2 s" in text
    assert "3 of 4 clips are longer" in text and "1 clips have no other of their size" in text


@given(st.integers(1, 50), st.integers(1, 10))
def test_spread_holds_both_ends(total, count):
    found = evenly_spaced(total, count)
    assert found == sorted(set(found)) and len(found) == min(total, count)
    assert found[0] == 0 and (found[-1] == total - 1 or count == 1)


def test_masked_queries_are_masked_and_clean_ones_clean(model, store):
    at = MeasureSetup.build(model, store)
    record = at.records()[0]
    history, text = at.history(record, pixels=False), at.text(record)
    draws = Draws.single(at.generator(record, "test"))
    for _ in range(8):
        query = at.masker.masked(history, text, draws)
        hidden = torch.ones(4, dtype=torch.bool).index_fill(0, query.omega[0], False)
        assert bool((query.levels[0, hidden] > 0).all())
        changed = (query.history.latents != history.latents).flatten(3).any(3).any(1)[0]
        assert torch.equal(changed, hidden)
        clean = clean_query(at, history, text, draws)
        assert clean.history is history and float(clean.levels.sum()) == 0
        assert torch.equal(clean.targets, history.latents[:, :, clean.omega[0]])
