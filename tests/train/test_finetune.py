"""Stage II: what carries over, what its loss is, that it resumes, and what is refused."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from attrs import evolve

from longtake.core import config
from longtake.core.config.recipe import second_stage
from longtake.core.data.continuations import ContinuationSampler
from longtake.core.data.store import Store
from longtake.core.data.windows import Batch, WindowBatches
from longtake.core.errors import UserError
from longtake.core.experiment import Experiment, FinetuneSpec
from longtake.core.measure.compare import compare_rates
from longtake.core.measure.continuations import measure_continuations
from longtake.core.measure.measure import measure
from longtake.core.measure.prepare import MeasureSetup, evaluating
from longtake.core.measure.verdict import continuation_table, verdict
from longtake.core.model import build_model, compressor_needs
from longtake.core.pages.report import Page, write_report
from longtake.core.tools.files import read_json, read_json_lines, write_json
from longtake.core.train.checkpoint import (
    checkpoints,
    load_parts,
    load_run,
    read_encoder,
    read_run,
)
from longtake.core.train.finetune import finetune
from longtake.core.train.liveness import DeadMemory
from longtake.core.train.log import Previews
from longtake.core.train.loss import StageTwo, corrupted
from longtake.core.train.pretrain import pretrain
from longtake.core.train.step import build_stage
from longtake.core.values.draws import Draws
from longtake.core.values.flow import interpolate
from longtake.core.values.grid import Rate
from longtake.core.values.history import History
from longtake.core.values.memory import Memory
from longtake.experiments.ship import command

from ..small import RATE, small, small_finetune
from .runs import same
from .test_resume import at


@pytest.fixture(scope="module")
def stage_one(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short Stage I."""
    run = tmp_path_factory.mktemp("one") / "run"
    pretrain(small(trains="lora", steps=3, gain_every=99), store, run)
    return checkpoints(run)[-1]


def stage_of(experiment: Experiment, store: Path) -> StageTwo:
    model = build_model(experiment, adapters=True)
    stage = build_stage(model, Store.open(store).null_text())
    assert isinstance(stage, StageTwo)
    return stage


def batches_of(experiment: Experiment, store: Path) -> WindowBatches:
    opened, needs = Store.open(store), compressor_needs(experiment)
    assert experiment.finetune is not None
    geometry, train = experiment.backbone.geometry, experiment.train
    sampler = ContinuationSampler.of(opened, geometry, train, experiment.finetune, needs)
    return WindowBatches(opened, sampler, needs, 99)


def first_batch(experiment: Experiment, store: Path, *, past: bool = True) -> tuple[int, Batch]:
    """The first step whose batch has a past, or has none; and the batch."""
    batches = batches_of(experiment, store)
    step = next(n for n in range(99) if bool(batches.windows.plan(n)[0].past) == past)
    return step, batches[step]


def test_the_encoder_carries_over_and_lora_begins_afresh(store: Path, stage_one: Path) -> None:
    experiment = small_finetune()
    fresh = build_model(experiment, adapters=True)
    _, trained = read_encoder(stage_one / "memory.safetensors")
    before = load_run(stage_one.parent).backbone.adapters()
    for parts in ("encoder", "adapters", "both"):
        model = load_parts(stage_one, experiment, parts)
        for name, tensor in model.encoder.state_dict().items():
            source = trained[f"memory.{name}"] if parts != "adapters" else None
            expected = fresh.encoder.state_dict()[name] if source is None else source
            assert torch.equal(tensor, expected), (parts, name)
        from_fresh = fresh.backbone.adapters()
        for name, parameter in model.backbone.adapters().items():
            expected = from_fresh[name] if parts == "encoder" else before[name]
            assert torch.equal(parameter, expected), (parts, name)
    assert any(not torch.equal(before[name], from_fresh[name]) for name in before)


def test_the_loss_is_equation_four(store: Path) -> None:
    experiment = small_finetune(memory_dropout=0.0, text_dropout=0.0, batch=3)
    stage, (step, batch) = stage_of(experiment, store), first_batch(experiment, store)
    loss = stage(batch, step)
    past, window = batch.past, batch.history
    assert past
    draws = Draws.of(experiment.train.seed, step, batch.places, "loss")
    draws.uniform()  # of captions
    target = window.latents[:, :, past:]
    drawn = stage.draw_time(target, draws)
    memory = stage.encoder(window.chunk(0, past))
    noisy = interpolate(target, drawn.noise, drawn.t[:, None, None, None, None])
    frames = window.start[:, None] + past + torch.arange(target.shape[2])
    context = stage.backbone.context(batch.text, memory)
    velocity = stage.backbone.velocity(noisy, drawn.t, frames, context)
    by_hand = ((drawn.noise - target - velocity) ** 2).mean()
    assert memory.length and torch.allclose(loss, by_hand, rtol=1e-6)
    parts = [stage(part, step) for part in batch.deal(3)]
    assert torch.allclose(loss, torch.stack(parts).mean(), rtol=1e-6)


@pytest.mark.parametrize("beginnings", [0.0, 1.0])
def test_hard_dropout_reads_no_token_and_leaves_the_encoder_a_gradient(
    store: Path, beginnings: float
) -> None:
    cut = FinetuneSpec(past=(0.5, 1.5), target=(0.5, 1.0), beginnings=beginnings)
    experiment = small_finetune(cut, memory_dropout=1.0, text_dropout=0.0)
    stage = stage_of(experiment, store)
    step, batch = first_batch(experiment, store, past=not beginnings)
    read: list[Memory] = []
    context = stage.backbone.context
    stage.backbone.context = lambda text, memory: read.append(memory) or context(text, memory)  # type: ignore[method-assign, func-returns-value, assignment]
    loss = stage(batch, step)
    assert [memory.parts for memory in read] == [()], "no tokens, never zeros"
    if beginnings:
        assert not batch.past and not batch.history.start.any()
        assert batch.continuation().frames[0].tolist() == list(range(batch.history.size.time))
    assert torch.isfinite(loss)
    loss.backward()
    gradients = [p.grad for p in stage.encoder.parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    assert stage.drops_memory(step)


def test_gain_is_measured_on_every_batch(store: Path) -> None:
    cut = FinetuneSpec(past=(0.5, 1.5), target=(0.5, 1.0), beginnings=1.0)
    for dropout in (0.0, 1.0):
        experiment = small_finetune(cut, memory_dropout=dropout)
        stage = stage_of(experiment, store)
        step, batch = first_batch(experiment, store, past=not dropout)
        losses = stage.memory_losses(batch, step)
        assert losses.gain.shape == (2,) and bool((losses.true != losses.none).all())
        assert bool((losses.true != losses.shuffled).all())


def test_noise_in_the_past_is_of_a_level_a_sample_or_a_frame(generator: torch.Generator) -> None:
    lr = {Rate(height=2, width=2, time=2): torch.zeros(64, 99, 3, 2, 2)}
    history = History(latents=torch.zeros(64, 99, 5, 4, 4), lr=lr)
    draws = Draws.of(0, 0, range(64), "test")
    assert corrupted(history, "none", draws) is history
    for preset in ("noise", "frames"):
        noisy = corrupted(history, preset, draws)
        levels = noisy.latents.square().mean(dim=(1, 3, 4)).sqrt()  # [B, T]
        assert 0.8 < float((levels > 0).any(dim=1).float().mean()) < 1.0
        spread = (levels.amax(dim=1) / levels.amin(dim=1).clamp(min=1e-9))[levels[:, 0] > 0]
        assert (float(spread.median()) > 3) == (preset == "frames")
        assert float(levels.max()) < 0.36
        low = noisy.lr[RATE].square().mean(dim=(1, 3, 4)).sqrt()
        covered = torch.stack([levels[:, 0], levels[:, 1:3].amin(1), levels[:, 3:].amin(1)], 1)
        assert float((low - covered).abs().max()) < 0.05, "the least level of what it covers"


@pytest.mark.slow
def test_resume_equals_never_stopped(store: Path, stage_one: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cut = FinetuneSpec(past=(0.5, 1.5), target=(0.5, 1.0), beginnings=0.5, corruption="noise")
    experiment = small_finetune(
        cut, steps=7, ema=0.9, decay=0.5, save_every=100, log_every=3, gain_every=3
    )
    finetune(experiment, store, whole, start=stage_one)
    stopped = finetune(
        experiment, store, parts, start=stage_one, resume=True, progress=at(2, signal.SIGINT)
    )
    assert (stopped.step, stopped.stopped) == (2, True)
    ended = finetune(experiment, store, parts, resume=True)
    assert ended.step == 7 and ended.gain is not None
    same(whole, parts)
    assert command(experiment, whole, store, stage_one).startswith("longtake finetune ")
    for run in (whole, parts):
        header, _ = read_encoder(checkpoints(run)[-1] / "memory.safetensors")
        assert header["stage"] == "finetune"
        assert read_json(run / "spec.json", "spec")["start"] == "run/checkpoint-3"
        assert read_run(run)[0] == experiment
    assert any("memory_gain" in line for line in read_json_lines(whole / "metrics.jsonl"))


@pytest.mark.slow
def test_a_frozen_encoder_stays_and_a_trainable_one_moves(
    store: Path, stage_one: Path, tmp_path: Path
) -> None:
    _, before = read_encoder(stage_one / "memory.safetensors")
    for encoder in ("frozen", "trainable"):
        cut = FinetuneSpec(past=(0.5, 1.5), target=(0.5, 1.0), encoder=encoder)
        run = tmp_path / encoder
        finetune(small_finetune(cut, steps=3, gain_every=99), store, run, start=stage_one)
        _, after = read_encoder(checkpoints(run)[-1] / "memory.safetensors")
        equal = all(torch.equal(before[name], after[name]) for name in before)
        assert equal == (encoder == "frozen")


def test_without_pretraining_begins_with_a_fresh_encoder(store: Path, tmp_path: Path) -> None:
    cut = FinetuneSpec(past=(0.5, 1.5), target=(0.5, 1.0), start="none")
    finetune(small_finetune(cut, steps=2, gain_every=99), store, tmp_path / "run")
    assert "start" not in read_json(tmp_path / "run" / "spec.json", "spec")


def test_a_memory_that_nothing_reads_is_found_dead(
    store: Path, stage_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StageTwo.loss
    monkeypatch.setattr(StageTwo, "loss", lambda self, a, memory, d: real(self, a, Memory(), d))
    experiment = small_finetune(steps=4, gain_every=99, memory_dropout=0.0)
    with pytest.raises(DeadMemory, match="memory.compressors"):
        finetune(experiment, store, tmp_path / "run", start=stage_one)


def test_other_threads_are_said(
    store: Path, stage_one: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, experiment = tmp_path / "run", small_finetune(steps=2, gain_every=99, save_every=1)
    finetune(experiment, store, run, start=stage_one, progress=at(1, signal.SIGINT))
    path = checkpoints(run)[-1] / "training_state" / "state.json"
    state = read_json(path, "state")
    assert state["threads"] == torch.get_num_threads()
    write_json(path, state | {"threads": 7})
    finetune(experiment, store, run, resume=True, start=tmp_path / "other")
    assert "began with run/checkpoint-3: --start is not used" in caplog.text
    assert f"threads were 7, are {torch.get_num_threads()}" in caplog.text
    changes = read_json(run / "spec.json", "spec")["history"][0]["changes"]
    assert any("threads were 7" in text for text in changes)


def test_a_picture_goes_on_from_the_past(store: Path) -> None:
    experiment = small_finetune(memory_dropout=0.0)
    stage, (_, batch) = stage_of(experiment, store), first_batch(experiment, store)
    previews = Previews.of(experiment, Store.open(store))
    assert previews.ready()
    model = build_model(experiment, adapters=True)
    preview = previews.go_on(model, batch, stage.null_text, seed=0)
    assert batch.past and bool((preview.omega >= batch.past).all())
    assert torch.equal(
        preview.among[:, :, : batch.past], batch.history.latents[:1, :, : batch.past]
    )
    image = previews.draw(preview)
    assert image is not None and image.shape == (3, 2 * 32, 48 * preview.omega.shape[1])


def test_bad_input_is_one_line(store: Path, stage_one: Path, tmp_path: Path) -> None:
    experiment, run = small_finetune(steps=2, gain_every=99), tmp_path / "r"
    without = small_finetune(FinetuneSpec(past=(0.5, 1.5), target=(0.5, 1.0), start="none"))
    adapters = FinetuneSpec(past=(0.5, 1.5), target=(0.5, 1.0), start="adapters")
    other = config.apply_sets(experiment, ["compressor.channels=[4, 8]"])
    long = FinetuneSpec(past=(60.0, 60.0), target=(1.0, 1.0))
    cases = [
        (lambda: finetune(experiment, store, run), "--start RUN; without pretraining"),
        (lambda: finetune(without, store, run, start=stage_one), "leave out --start"),
        (lambda: finetune(small(), store, run, start=stage_one), "small is no Stage II"),
        (lambda: pretrain(experiment, store, run), "longtake finetune"),
        (lambda: finetune(other, store, run, start=stage_one), "of another encoder"),
        (lambda: finetune(small_finetune(long), store, run, start=stage_one), "finetune.past"),
        (
            lambda: finetune(small_finetune(adapters, trains="all"), store, run, start=stage_one),
            "finetune.start=adapters, but train.trains=all has no LoRA",
        ),
    ]
    for act, said in cases:
        with pytest.raises(UserError, match=said) as error:
            act()
        assert "\n" not in str(error.value)
        assert not run.exists(), "a refused run must leave nothing behind"


@pytest.mark.slow
def test_a_dit_that_was_trained_whole_is_what_stage_two_stands_on(
    store: Path, tmp_path: Path
) -> None:
    pretrain(small(steps=2, gain_every=99), store, tmp_path / "one")
    start = checkpoints(tmp_path / "one")[-1]
    with pytest.raises(UserError, match=rf"trained whole.*backbone.weights={start / 'backbone'}"):
        load_parts(start, small_finetune(), "encoder")
    named = config.apply_sets(small_finetune(), [f"backbone.weights={start / 'backbone'}"])
    with pytest.raises(UserError, match=r"without LoRA: --set finetune\.start=encoder"):
        load_parts(start, named, "both")
    base = load_parts(start, named, "encoder").backbone.state_dict()
    whole = load_parts(start, small_finetune(trains="all"), "encoder").backbone.state_dict()
    trained = load_run(tmp_path / "one").backbone.state_dict()
    assert all(torch.equal(whole[name], trained[name]) for name in trained)
    assert all(torch.equal(base[n], trained[n]) for n in trained if n in base)


def test_second_stage_moves_what_the_recipe_says_and_keeps_the_rest() -> None:
    _, first = config.load_experiment("tiny-wan-2x2x2")
    own = config.apply_sets(first, ["train.rate=0.0005", "train.batch=3"])
    second = second_stage(own)
    assert second.name == "tiny-wan-2x2x2-finetune" and second.stage == "finetune"
    assert (second.train.batch, second.train.rate) == (3, 0.0005), "what was set stays"
    assert second.train.steps == 100 and second.train.memory_dropout == 0.1
    assert second_stage(second) is second
    _, shipped = config.load_experiment("tiny-wan-2x2x2-finetune")
    assert second_stage(first) == shipped
    _, published = config.load_experiment("hunyuan-2x2x2-finetune")
    assert config.apply_sets(shipped, ["backbone=hunyuan"]) == published
    _, base = config.load_experiment("tiny-plain")
    with pytest.raises(UserError, match="Stage 0"):
        second_stage(base)


def test_controls_differ_by_one_field() -> None:
    _, whole = config.load_experiment("tiny-wan-2x2x2-finetune")
    for name, change in (
        ("frozen-encoder", "finetune.encoder=frozen"),
        ("without-pretraining", "finetune.start=none"),
    ):
        _, control = config.load_experiment(f"tiny-wan-2x2x2-finetune-{name}")
        assert evolve(config.apply_sets(whole, [change]), name=control.name) == control


@pytest.mark.slow
def test_measure_prints_what_memory_does_to_the_future(
    store: Path, stage_one: Path, tmp_path: Path
) -> None:
    run, experiment = tmp_path / "run", small_finetune(steps=2, gain_every=99)
    finetune(experiment, store, run, start=stage_one)
    setup = MeasureSetup.build(load_run(run), Store.open(store))
    result = measure(setup)
    figures, rows = result.continuations, [clip.continuation for clip in result.clips]
    assert figures is not None and figures.shuffled is not None and figures.true.n == len(rows) == 3
    for row in rows:
        assert row is not None and (row.past, row.target) == (1.5, 1.0)
    mean = sum(row.none - row.true for row in rows if row) / len(rows)
    assert figures.gain.mean == pytest.approx(mean)
    table = continuation_table(result)
    assert [line.split()[0] for line in table[1:3]] == ["memory", "no"]
    assert f"{figures.true.mean:.4f}" in table[1] and "(3 clips)" in table[1]
    assert any("of the future" in str(line) for line in verdict(result))
    page = write_report(
        result, Page(strips=[], sliders=[], rates=compare_rates(result, [])), tmp_path / "x.html"
    )
    assert "What the memory does to the future" in page.read_text()
    assert result.to_json()["continuations"]["true"]["n"] == 3


def test_a_clip_is_measured_with_its_own_memory_alone(store: Path) -> None:
    experiment = small_finetune()
    model = build_model(experiment, adapters=True).eval()
    opened = Store.open(store)
    assert experiment.finetune is not None
    alone = []
    for records in (opened.records, opened.records[:1]):
        setup = MeasureSetup.build(model, Store(opened.root, opened.header, records))
        with evaluating(model):
            alone.append(next(iter(measure_continuations(setup, experiment.finetune))).losses)
    assert (alone[0].true, alone[0].none) == (alone[1].true, alone[1].none)
    assert alone[1].shuffled is None and alone[0].shuffled is not None
