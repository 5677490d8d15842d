"""Measuring: oracles give what they must, intervals are honest, and misses are called misses."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.data.store import Store
from longtake.core.errors import LongtakeError, UserError
from longtake.core.measure.figures import Interval, interval, interval_or_none
from longtake.core.measure.gain import clean_query
from longtake.core.measure.measure import measure
from longtake.core.measure.prepare import Prepared, named
from longtake.core.measure.result import Distance
from longtake.core.measure.scores import Scores, over_clips
from longtake.core.measure.strips import make_strips, spread_over
from longtake.core.measure.verdict import as_data, verdict
from longtake.core.model import build_model
from longtake.plugins.specs import Flow, MeanFrame, Psnr

from .conftest import Broken

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
    assert c.specific == pytest.approx(0.0, abs=1e-6)  # its next one is a, of the same frames
    assert abs(a.specific) > 1e-5 and abs(b.specific) > 1e-5
    assert d.specific is None and d.gain is not None
    assert result.gain.alone == 1 and result.gain.specific.n == 3
    assert a.foreign == pytest.approx(a.specific - a.gain)


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(model, store, result):
    few = Store(store.root, store.header, store.records[:1])
    calls = []
    again, other = (
        measure(model, few, seed=s, progress=lambda *call: calls.append(call)) for s in (0, 1)
    )
    assert again.clips[0] == attrs.evolve(result.clips[0], specific=None, foreign=None)
    assert other.clips[0].masked != again.clips[0].masked
    assert calls[0][1] == calls[-1][0] == calls[-1][1] and len(calls) == 2 * calls[0][1]
    assert again.gain.foreign is None and again.gain.gain.low is None


def test_measuring_leaves_the_model_as_it_was(model, store):
    model.backbone.train()
    make_strips(model, store, clips=1, frames=1)
    assert model.backbone.training and all(p.requires_grad for p in model.backbone.parameters())


def test_the_result_is_plain_json(result):
    data = json.loads(json.dumps(as_data(result), allow_nan=False))
    assert data["clips"][3]["short"] is True and data["step"] == 12
    assert data["spec"]["measure"]["draws"] == 2 and data["verdict"][0]["state"]


def test_a_retriever_that_breaks_is_named(experiment, store):
    broken = build_model(attrs.evolve(experiment, retrievers=(Broken(),)))
    with pytest.raises(LongtakeError, match="broken, a: psnr is not finite"):
        measure(broken, store)


def test_stores_that_do_not_fit_are_refused(model, store):
    other = Store(store.root, {**store.header, "codec": "another"}, store.records)
    with pytest.raises(UserError, match="cached with codec another"):
        measure(model, other)
    mirrors = Store(store.root, store.header, [r for r in store.records if r.mirror])
    with pytest.raises(UserError, match="mirrored clips only"):
        measure(model, mirrors)


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
        return Scores(frames=frames, total=total, values={"m": frames * 0.0 + value})

    long, short = clip(17, 1.0), clip(5, 3.0)
    long.values["m"][-1] = 9.0  # the newest frame: age 0
    quality = over_clips([long, short], fps=4, width=1.0)
    assert [(b.start, b.end) for b in quality.ages] == [(i, i + 1.0) for i in range(5)]
    assert [b.figures["m"].n for b in quality.ages] == [2, 2, 1, 1, 1]
    assert quality.ages[0].figures["m"].mean == pytest.approx(((9 + 1 * 3) / 4 + 3) / 2)
    assert quality.ages[2].figures["m"].mean == 1.0
    assert quality.figures["m"].mean == pytest.approx(((16 + 9) / 17 + 3) / 2)


def test_names_tell_alike_specs_apart():
    assert list(named([Flow(), Flow(steps=9, guidance=2.0), MeanFrame(), Flow()])) == [
        "flow steps=1 guidance=1.0", "flow steps=9 guidance=2.0", "mean-frame"
    ]  # fmt: skip
    assert list(named([Psnr()])) == ["psnr"]


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
    assert [s for text, s in found.items() if name in text] == [state]


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
        s for text, s in found.items() if "memory_gain" in text or "other clip's memory" in text
    ]
    shuffled = [s for text, s in found.items() if "no figure with shuffled" in text]
    assert about + shuffled == expected


def test_cautions_are_said(result):
    text = "\n".join(map(str, verdict(result)))
    assert "[note] Only 4 clips" in text and "1 of 4 clips are shorter than 2 s" in text
    assert "3 of 4 clips are longer" in text and "1 clips have no other of their size" in text


@given(st.integers(1, 50), st.integers(1, 10))
def test_spread_holds_both_ends(total, count):
    found = spread_over(total, count)
    assert found == sorted(set(found)) and len(found) == min(total, count)
    assert found[0] == 0 and (found[-1] == total - 1 or count == 1)


def test_masked_queries_are_masked_and_clean_ones_clean(model, store):
    at = Prepared.of(model, store)
    record = at.records()[0]
    history, text = at.history(record, pixels=False), at.text(record)
    draws = at.generator(record, "test")
    for _ in range(8):
        query = at.masker.masked(history, text, draws)
        hidden = torch.ones(4, dtype=torch.bool).index_fill(0, query.omega[0], False)
        assert bool((query.levels[0, hidden] > 0).all())
        changed = (query.history.latents != history.latents).flatten(3).any(3).any(1)[0]
        assert torch.equal(changed, hidden)
        clean = clean_query(at, history, text, draws)
        assert clean.history is history and float(clean.levels.sum()) == 0
        assert torch.equal(clean.targets, history.latents[:, :, clean.omega[0]])
