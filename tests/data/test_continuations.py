"""Where Stage II cuts clips, and what its batches are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve

from longtake.core.data.captions import Caption, caption_nearest
from longtake.core.data.continuations import (
    NOWHERE,
    ContinuationSampler,
    CutGrid,
    CutPlaces,
)
from longtake.core.data.store import Record, Store
from longtake.core.data.windows import Bucket, ClipWindow, WindowBatches, WindowSampler
from longtake.core.errors import UserError
from longtake.core.experiment import FinetuneSpec
from longtake.core.model import compressor_needs
from longtake.core.values.draws import drops_memory

from ..small import make_store, small

SHORT = FinetuneSpec(past=(0.5, 1.5), target=(1.0, 1.0))


def record(latents: int, cuts: tuple[float, ...] | None, fps: float = 8.0) -> Record:
    frames = 1 + 4 * (latents - 1)
    return Record(
        id=f"clip-{latents}-{cuts}", source="clip.mp4", fingerprint="", latents=latents, height=4,
        width=6, frames=frames, fps=fps, captions=(), placement="", cuts=cuts,
    )  # fmt: skip


def shots_in(latents: range, cuts: tuple[float, ...], fps: float = 8.0) -> set[int]:
    """Which shots the frames of these latents belong to, frame by frame."""
    frames = [f for i in latents for f in (range(4 * i - 3, 4 * i + 1) if i else range(1))]
    return {sum(frame / fps >= cut - 1e-9 for cut in cuts) for frame in frames}


@pytest.mark.parametrize("period", [1, 2, 4])
def test_no_target_has_a_cut_in_it_and_every_place_is_on_the_grid(period: int) -> None:
    rng, grid = np.random.default_rng(0), CutGrid(period=period, stride=4, cuts_inside=False)
    for _ in range(40):
        latents = int(rng.integers(9, 60))
        seconds = rng.uniform(0, latents / 2, int(rng.integers(0, 5)))
        cuts = tuple(sorted({round(float(c) * 8) / 8 for c in seconds}))
        clip, target = record(latents, cuts), period * int(rng.integers(1, 3))
        legal = set(grid.legal(clip, target))
        for h in range(1, latents - target + 1):
            whole = len(shots_in(range(h, h + target), cuts)) == 1
            assert (h in legal) == ((h - 1) % period == 0 and whole), (latents, cuts, h)
        assert grid.last(clip, target) == max(legal, default=NOWHERE)
        bucket = CutPlaces(Bucket([record(30, ()), clip]), grid)
        assert bucket.last(target)[1] == grid.last(clip, target)
        assert bucket.last(target)[0] == max(grid.legal(record(30, ()), target))
        whole = latents >= target and len(shots_in(range(target), cuts)) == 1
        assert bucket.whole(target).tolist() == [True, whole]
        for h in grid.borders(clip, target):
            assert h in legal
            before = range(max(0, h - period), h + 1)
            assert len(shots_in(before, cuts)) > 1, "a border has another shot just before it"


def test_where_cuts_may_lie_inside_all_places_are_legal_and_borders_are_the_nearest() -> None:
    grid = CutGrid(period=2, stride=4, cuts_inside=True)
    clip = record(21, (1.0, 1.75, 9.9))  # frames 8 and 14; places begin at frames 1, 9, 17, ...
    assert grid.legal(clip, 4) == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert grid.borders(clip, 4) == [3, 5]
    assert CutGrid(period=2, stride=4, cuts_inside=False).borders(clip, 4) == [5]


def sampler_of(store: Store, finetune: FinetuneSpec, **train: object) -> ContinuationSampler:
    experiment = small(**{"memory_dropout": 0.0, **train})
    needs = compressor_needs(experiment)
    geometry = experiment.backbone.geometry
    return ContinuationSampler.of(store, geometry, experiment.train, finetune, needs)


def with_clips(store: Store, records: list[Record]) -> Store:
    return Store(store.root, store.header, records)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(make_store(tmp_path_factory.mktemp("store"), small()))


def test_windows_follow_from_the_step_and_fill_past_and_target(store: Store) -> None:
    clips = with_clips(store, [record(n, (2.0,)) for n in (9, 14, 25, 41)])
    sampler = sampler_of(clips, SHORT, batch=3)
    plans = [sampler.plan(step) for step in range(60)]
    assert plans == [sampler.plan(step) for step in range(60)]
    assert {(w.past, w.length - w.past) for p in plans for w in p} == {(1, 2), (3, 2)}
    for plan in plans:
        assert len({(w.past, w.length) for w in plan}) == 1, "equal lengths: nothing is padded"
        assert len({w.record.id for w in plan}) == 3
        for w in plan:
            assert w.start % 2 == 0 and w.past is not None and w.past % 2 == 1
            assert w.start + w.length <= w.record.latents


def test_the_share_of_borders_is_as_asked(store: Store) -> None:
    clips = with_clips(store, [record(80, (10.0, 20.5))])
    for share, low, high in ((0.0, 0.0, 0.1), (0.5, 0.4, 0.6), (1.0, 1.0, 1.0)):
        sampler = sampler_of(clips, evolve(SHORT, borders=share), batch=1)
        places = [(w := sampler.plan(step)[0]).start + w.past for step in range(300)]
        borders = CutGrid(period=2, stride=4, cuts_inside=False).borders(clips.records[0], 2)
        assert len(borders) == 2
        assert low <= np.mean([h in borders for h in places]) <= high


def test_beginnings_are_steps_without_memory(store: Store) -> None:
    clips = with_clips(store, [record(20, ()), record(30, (0.5,))])
    sampler = sampler_of(clips, evolve(SHORT, beginnings=1.0), memory_dropout=0.4)
    for step in range(40):
        plan, dropped = sampler.plan(step), drops_memory(0, step, 0.4)
        assert (plan[0].past == 0) == dropped
        if dropped:
            assert {(w.record.latents, w.start, w.length) for w in plan} == {(20, 0, 3)}


def test_what_no_clip_can_fill_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match=r"longest clip has 4 latents.* 3 \+ 2 \(finetune.past"):
        sampler_of(with_clips(store, [record(4, None)]), evolve(SHORT, past=(1.0, 2.0)))
    cut_often = record(9, tuple(n / 8 for n in range(1, 33, 3)))
    with pytest.raises(UserError, match=r"hard cut in it.*finetune.cuts_inside=true"):
        sampler_of(with_clips(store, [cut_often]), SHORT)
    inside = evolve(SHORT, cuts_inside=True)
    assert sampler_of(with_clips(store, [cut_often]), inside).plan(0)


def test_clips_that_are_left_out_and_lengths_that_were_moved_are_said(store: Store) -> None:
    cut_often = record(9, tuple(n / 8 for n in range(1, 33, 3)))
    clips = with_clips(store, [record(2, None), cut_often, record(20, ())])
    short, cut = sampler_of(clips, SHORT).remarks(clips)
    assert short.startswith("1 of 3 clips of") and short.endswith(": clip")
    assert "are shorter than the shortest past and target, 1 + 2 latents" in short
    assert "a hard cut in every target" in cut
    fits = with_clips(store, [record(20, ())])
    assert sampler_of(fits, SHORT).remarks(fits) == []
    told = sampler_of(fits, evolve(SHORT, target=(0.001, 0.002))).remarks(fits)
    assert told == [
        "finetune.target asks for 0.001 to 0.002 s: on the grid of tokens they are 2 to 2 latents, "
        "1 to 1 s"
    ]
    first = small(seconds=(3.0, 3.0), batch=1)
    windows = WindowSampler.of(clips, first.backbone.geometry, first.train, compressor_needs(first))
    (told_of_stage_one,) = windows.remarks(clips)
    assert "1 of 3 clips" in told_of_stage_one and "train.seconds" in told_of_stage_one
    exact = evolve(first.train, seconds=(0.6, 3.0))
    quiet = WindowSampler.of(fits, first.backbone.geometry, exact, compressor_needs(first))
    assert quiet.remarks(fits) == []


def test_a_frozen_encoder_comes_from_a_run() -> None:
    for start in ("none", "adapters"):
        with pytest.raises(ValueError, match=f"with start {start} it comes from no run"):
            FinetuneSpec(encoder="frozen", start=start)
    assert FinetuneSpec(encoder="frozen", start="both").encoder == "frozen"


def test_a_batch_is_past_and_target_of_one_clip(store: Store) -> None:
    sampler = sampler_of(store, SHORT)
    needs = compressor_needs(small())
    batches = WindowBatches(store, sampler, needs, 8)
    for step in range(8):
        batch, plan = batches[step], sampler.plan(step)
        asked = batch.continuation()
        for row, window in enumerate(plan):
            whole = store.window(window.record, 0, window.record.latents, needs.rates)
            cut = window.start + window.past
            assert torch.equal(asked.history.latents[row], whole.latents[0, :, window.start : cut])
            target = whole.latents[0, :, cut : window.start + window.length]
            assert torch.equal(asked.target[row], target)
            assert asked.frames[row].tolist() == list(range(cut, window.start + window.length))
        for rate, lr in asked.history.lr.items():
            last = rate.time * (lr.shape[2] - 1)
            assert last == asked.history.size.time - 1, "the newest LR latent covers no target"


def test_a_past_knows_cuts_before_the_target_alone(store: Store) -> None:
    clip = record(21, (1.0, 2.125, 3.0))
    assert store.cuts_before(clip, 0, 5) == ((1.0, 2.125),)  # latent 5 begins at frame 17
    assert store.cuts_before(clip, 0, 4) == ((1.0,),)
    assert store.cuts_before(record(21, None), 0, 5) == ()


def test_the_prompt_is_the_nearest_in_time() -> None:
    captions = (
        Caption(start=0, end=2, text="a"),
        Caption(start=2, end=4, text="b"),
        Caption(start=9, end=None, text="c"),
    )
    for span, expected in (((1, 4), "b"), ((4.5, 6), "b"), ((7, 8), "c"), ((8, 11), "c")):
        assert caption_nearest(captions, *span) == expected
    assert caption_nearest((), 0, 1) == ""


def test_a_prompt_is_read_for_the_target_and_not_for_its_past(store: Store) -> None:
    prompts = (first := store.records[0]).captions[0].text, ""
    captions = (
        Caption(start=0, end=1.1, text=prompts[0]),
        Caption(start=1.1, end=None, text=prompts[1]),
    )
    window = ClipWindow(record=evolve(first, captions=captions), start=0, length=5, past=3)
    batches = WindowBatches(store, sampler_of(store, SHORT), compressor_needs(small()), 1)
    of_target, of_window = (batches._text(evolve(window, past=past)) for past in (3, None))
    assert torch.equal(of_target.embeddings, store.null_text().embeddings)
    assert torch.equal(of_window.embeddings, store.text(first).embeddings)
    assert not torch.equal(of_target.embeddings, of_window.embeddings)
