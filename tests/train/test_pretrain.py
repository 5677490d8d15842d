"""Stage I: it learns, its memory lives, and what cannot be trained is refused."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file
from torch.nn import Parameter

from longtake.core.cache.cache import cache
from longtake.core.data.store import Store, note_gone
from longtake.core.data.windows import WindowBatches, WindowSampler
from longtake.core.errors import LongtakeError, UserError
from longtake.core.interfaces.compressor import Needs
from longtake.core.model import all_needs, build_model, compressor_needs
from longtake.core.registry import build, registry
from longtake.core.tools.files import claimed_folder, part_path, read_json_lines
from longtake.core.train import loss
from longtake.core.train.checkpoint import (
    beside_spec,
    checkpoints,
    load_model,
    load_run,
    save_encoder,
)
from longtake.core.train.liveness import DeadMemory, Liveness, memory_parameters
from longtake.core.train.loss import StageOne
from longtake.core.train.optim import WideMuon, learning_rate
from longtake.core.train.pretrain import pretrain
from longtake.core.values.draws import Draws
from longtake.core.values.grid import Rate
from longtake.plugins.compressors.specs import Window

from ..small import RATE, small, write_clips
from .runs import batches_of, stage_of


@pytest.mark.slow
def test_checkpoints_are_kept_few_and_load_to_the_same_outputs(store: Path, tmp_path: Path) -> None:
    experiment = small(steps=6, save_every=1, keep=2)
    pretrain(experiment, store, tmp_path / "run")
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["checkpoint-5", "checkpoint-6"]
    model = load_run(tmp_path / "run")
    again = load_model(checkpoints(tmp_path / "run")[-1], experiment).eval()
    opened = Store.open(store)
    history = opened.window(opened.records[0], 0, 3, [RATE])
    first, second = model.encoder(history), again.encoder(history)
    assert torch.equal(first.parts[0].tokens, second.parts[0].tokens)


def test_batches_are_a_function_of_the_step_and_split_over_processes(store: Path) -> None:
    experiment = small(batch=4)
    opened, needs = Store.open(store), compressor_needs(experiment)
    windows = WindowSampler.of(opened, experiment.backbone.geometry, experiment.train, needs)
    whole = WindowBatches(opened, windows, needs, 8)
    for step in range(8):
        history = whole[step].history
        assert torch.equal(history.latents, whole[step].history.latents)
        assert (history.start % 2 == 0).all() and history.size.time % 2 == 1
        halves = [WindowBatches(opened, windows, needs, 8, rank, 2)[step] for rank in (0, 1)]
        joined = [name for pair in zip(*(h.names for h in halves), strict=True) for name in pair]
        assert tuple(joined) == whole[step].names


def test_memory_dropout_leaves_every_parameter_a_gradient(store: Path) -> None:
    experiment = small(memory_dropout=1.0)
    model = build_model(experiment)
    opened, needs = Store.open(store), compressor_needs(experiment)
    windows = WindowSampler.of(opened, experiment.backbone.geometry, experiment.train, needs)
    stage = StageOne(model, build(experiment.masker), experiment.train, opened.null_text())
    stage(WindowBatches(opened, windows, needs, 1)[0], 0).backward()
    gradients = [p.grad for p in model.encoder.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


def test_a_window_beside_the_memory_ends_at_cuts(store: Path) -> None:
    """Of two samples one ends with a cut: its loss is that without a window, the other's is not."""
    experiment = small(memory_dropout=0.0)
    both = evolve(experiment, compressors=(*experiment.compressors, Window(latents=2)))
    stage, batch = stage_of(both, store), batches_of(both, store)[0]
    clips, history = Store.open(store), batch.history
    first, length = int(history.start[0]), history.size.time
    cut = evolve(history, cuts=((clips.span(first, length)[1],), ()))
    query = stage.masker(cut, batch.text, Draws.of(0, 0, batch.places, "test"))
    memory, drawn = (
        stage.encoder(query.history),
        stage.draw_noise(query, Draws.of(0, 0, batch.places, "noise")),
    )
    window = memory.parts[1]
    assert window.name == "1.window-2" and window.tokens.shape[1] > 0
    assert window.valid.any(dim=1).tolist() == [False, True]
    with torch.no_grad():
        losses = stage.loss(query, memory, drawn)
        alone = stage.loss(query, evolve(memory, parts=memory.parts[:1]), drawn)
    assert float(losses[0]) == pytest.approx(float(alone[0]), rel=1e-5)
    assert abs(float(losses[1] - alone[1])) > 1e-6
    swapped = loss.shuffled(memory).parts[1]
    assert not bool(swapped.valid.any()), "one of the two has no window to give"
    stage(evolve(batch, history=cut), 0).backward()
    named = dict(stage.encoder.named_parameters())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in named.values())


def test_windows_of_long_periods_are_not_cut_short(store: Path) -> None:
    """With 2x2x8 windows have 1, 9, 17 … latents: 8 are rounded up, 7 to 15 down as before."""

    def lengths(seconds: tuple[float, float], *times: int) -> list[int]:
        rates = frozenset(Rate(height=2, width=2, time=time) for time in times)
        experiment = small(seconds=seconds)
        clips = Store.open(store)
        clips.records[:] = [evolve(r, latents=40) for r in clips.records]
        geometry, needs = experiment.backbone.geometry, Needs(rates=rates)
        return WindowSampler.of(clips, geometry, experiment.train, needs).lengths

    assert lengths((4.0, 10.0), 2, 8) == [9, 17], "4 s at 8 fps are 8 latents"
    assert lengths((4.0, 8.0), 2) == [7, 9, 11, 13, 15]
    assert lengths((4.0, 8.0), 4) == [5, 9, 13]
    assert lengths((7.0, 10.0), 8) == [9, 17], "14 latents"
    assert lengths((4.0, 4.0), 8) == [1], "there is no other"


@pytest.mark.slow
def test_two_encoders_train_side_by_side(tmp_path: Path) -> None:
    """4x4x2 beside 2x2x8: cached, trained, saved, loaded; both are read."""
    plain = small(seconds=(1.0, 6.0))
    rates = (Rate(height=4, width=4, time=2), Rate(height=2, width=2, time=8))
    convs = tuple(evolve(plain.compressors[0], rate=rate) for rate in rates)
    experiment = evolve(plain, compressors=convs)
    videos = write_clips(tmp_path / "videos", seconds=6.0)
    needs, folder = all_needs(experiment), tmp_path / "store"
    cache(
        experiment, videos, folder,
        rates=needs.rates, pixels=needs.pixels, device=torch.device("cpu"),
    )  # fmt: skip
    assert set(rates) <= needs.rates
    pretrain(experiment, folder, tmp_path / "run")
    model, batch = load_run(tmp_path / "run"), batches_of(experiment, folder)[0]
    memory = model.encoder(batch.history)
    assert [part.name for part in memory.parts] == ["0.conv-4x4x2", "1.conv-2x2x8"]
    geometry, size = experiment.backbone.geometry, batch.history.size
    told = [registry().load(spec).context_length(spec, geometry, size).tokens for spec in convs]
    assert [part.tokens.shape[1] for part in memory.parts] == told
    start = build_model(experiment)
    for name, weight in model.encoder.state_dict().items():
        if name.endswith("weight"):
            assert not torch.equal(weight, start.encoder.state_dict()[name]), name


def watched_stage(store: Path) -> StageOne:
    experiment = small()
    text = Store.open(store).null_text()
    return StageOne(build_model(experiment), build(experiment.masker), experiment.train, text)


@torch.no_grad()
def live(watch: Liveness, named: dict[str, Parameter], *, gradient: float, move: float) -> None:
    """Watch a step in which the first parameter has this gradient and moves so far."""
    first = next(iter(named))
    for name, parameter in named.items():
        parameter.grad = torch.full_like(parameter, gradient if name == first else 1.0)
        parameter -= move if name == first else 0.1
    watch.after_backward(named)
    watch.after_step(named)


def test_liveness_names_a_dead_parameter(store: Path) -> None:
    stage = watched_stage(store)
    watch, named = Liveness.of(stage), memory_parameters(stage)
    live(watch, named, gradient=0.0, move=0.0)
    with pytest.raises(DeadMemory, match=next(iter(named)).replace(".", r"\.")):
        live(watch, named, gradient=0.0, move=0.0)


@pytest.mark.parametrize(("moves", "lives"), [(15, True), (99, False)])
def test_liveness_waits_for_what_is_slow_to_move(store: Path, moves: int, lives: bool) -> None:
    """A gradient behind an output that was zero may be too small to change a number at first."""
    stage = watched_stage(store)
    watch, named = Liveness.of(stage), memory_parameters(stage)
    ended = nullcontext() if lives else pytest.raises(DeadMemory, match="1 of .* after 20 steps")
    with ended:
        for step in range(20):
            live(watch, named, gradient=1e-12, move=0.1 * (step >= moves))
            assert watch.passed == (step >= moves)


def test_liveness_waits_for_what_a_step_may_not_ask(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two experts share the steps of a batch: one that is asked late is not dead."""
    stage = watched_stage(store)
    monkeypatch.setattr(type(stage.backbone), "awake_within", 4)
    for late, lives in ((3, True), (9, False)):
        watch, named = Liveness.of(stage), memory_parameters(stage)
        ended = nullcontext() if lives else pytest.raises(DeadMemory, match="1 of .* after 4 steps")
        with ended:
            for step in range(4):
                asked = step == late - 1
                live(watch, named, gradient=float(asked), move=0.1 * asked)
                assert watch.passed == (step >= late - 1)
        assert watch.passed


def test_saving_without_memory_keys_is_refused(store: Path, tmp_path: Path) -> None:
    model = build_model(small())
    model.encoder.state_dict = lambda *a, **k: {}  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="without memory keys"):
        save_encoder(tmp_path / "memory.safetensors", model)
    assert not (tmp_path / "memory.safetensors").exists()


def test_an_exploding_loss_stops_with_the_clips_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(LongtakeError, match="clip-"):
        pretrain(small(rate=1e30, clip=1e30, warmup=0, steps=40), store, tmp_path / "run")


def test_bad_input_is_one_line(store: Path, tmp_path: Path) -> None:
    experiment, run = small(steps=2), tmp_path / "run"
    pretrain(experiment, store, run)
    cases = [
        (lambda: pretrain(experiment, store, run), "--resume latest"),
        (lambda: pretrain(small(steps=2, seed=1), store, run, resume=True), "train.seed was 0"),
        (lambda: pretrain(experiment, tmp_path / "none", tmp_path / "r"), "latent store"),
        (lambda: pretrain(_other_rate(experiment), store, tmp_path / "r"), "4x4x2"),
        (lambda: load_run(tmp_path / "none"), "no such run"),
        (lambda: load_run(store), "spec.json"),
    ]
    for act, said in cases:
        with pytest.raises(UserError, match=said) as error:
            act()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists(), "a refused run must leave nothing behind"


def claim_of(pid: int, folder: Path) -> Path:
    """The claim of a process of this machine on a folder."""
    path = folder / part_path(folder / "claim").name.replace(f"-{os.getpid()}.", f"-{pid}.")
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    claim = {"host": platform.node(), "pid": pid, "started": started, "since": "now"}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(claim))
    return path


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux when processes began")
def test_a_folder_has_one_run_at_a_time(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment, run = small(steps=2), tmp_path / "run"
    with subprocess.Popen(["sleep", "60"]) as process:
        claim = claim_of(process.pid, run)
        for other in (experiment, small(steps=2, seed=1)):
            with pytest.raises(UserError, match=f"at work in .*process {process.pid} on .*--out"):
                pretrain(other, store, run)
        assert [*run.iterdir()] == [claim], "a refused run leaves nothing"
        process.kill()
    held = []
    pretrain(experiment, store, run, progress=lambda *_: held.extend(run.glob(".claim.*")))
    assert f"ended without a word (process {process.pid} on" in caplog.text
    assert {*held} == {part_path(run / "claim")} and not list(run.glob(".*"))
    with claimed_folder(tmp_path / "new" / "run"):
        pass
    assert not (tmp_path / "new").exists(), "what an empty claim made is gone"


def test_claims_tell_the_living_from_the_dead(tmp_path: Path) -> None:
    mine = part_path(tmp_path / "claim")
    reused = tmp_path / mine.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    reused.write_text(json.dumps({"host": "here", "pid": os.getppid(), "started": "never"}))
    far = tmp_path / ".claim.00000000-7.part"
    far.write_text(json.dumps({"host": "node7", "pid": 7, "started": "1"}))
    with pytest.raises(UserError, match=r"process 7 on node7.*delete .*00000000-7\.part"):
        with claimed_folder(tmp_path):
            pass
    os.utime(far, (time.time() - 2000, time.time() - 2000))
    with claimed_folder(tmp_path) as dead:
        assert len(dead) == 2 and [*tmp_path.iterdir()] == [mine]


def test_a_run_that_was_never_saved_begins_anew_and_says_so(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LongtakeError, match="clip-"):
        pretrain(small(rate=1e30, clip=1e30, warmup=0, steps=40, save_every=50), store, tmp_path)
    pretrain(small(steps=2), store, tmp_path)
    assert "never saved (train.steps was 40, is 2)" in caplog.text
    assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 2, 2]


@pytest.mark.slow
def test_dropped_batches_do_not_count_as_dead(store: Path, tmp_path: Path) -> None:
    for seed in (15, 33, 44):  # whose first two batches hold one without memory
        pretrain(small(seed=seed, memory_dropout=0.4, steps=4), store, tmp_path / f"run-{seed}")


def test_an_encoder_without_parameters_cannot_train_alone(store: Path, tmp_path: Path) -> None:
    experiment = small(trains="encoder")
    only_lr = evolve(experiment.compressors[0], hr=False)
    with pytest.raises(UserError, match="nothing would train"):
        pretrain(evolve(experiment, compressors=(only_lr,)), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_lora_trains_on_a_base_that_was_trained_whole(store: Path, tmp_path: Path) -> None:
    pretrain(small(steps=2), store, tmp_path / "base")
    start = checkpoints(tmp_path / "base")[-1]
    with pytest.raises(UserError, match="backbone.weights"):
        pretrain(small(steps=2, trains="lora"), store, tmp_path / "lora", start=start)
    experiment = small(steps=2, trains="lora")
    backbone = evolve(experiment.backbone, weights=str(start / "backbone"))
    pretrain(evolve(experiment, backbone=backbone), store, tmp_path / "lora")
    base = load_file(start / "backbone" / "diffusion_pytorch_model.safetensors")
    loaded = load_run(tmp_path / "lora").backbone
    assert loaded.adapters()
    assert torch.equal(loaded.proj_out.weight, base["proj_out.weight"])


def test_clips_of_videos_that_are_gone_are_said(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    note_gone(copy, ["clip-1.mp4", "clip-2.mp4", "pruned.mp4"])
    pretrain(small(steps=1), copy, tmp_path / "run")
    assert "did not find: clip-1.mp4, clip-2.mp4; to leave them out" in caplog.text


@pytest.mark.slow
def test_a_project_that_moved_finds_its_weights(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project, moved = tmp_path / "project", tmp_path / "moved"
    base = build_model(small(), adapters=True).backbone
    base.save_weights(project / "base" / "transformer")
    monkeypatch.chdir(project)
    experiment = small(trains="lora", steps=1)
    backbone = evolve(experiment.backbone, weights="base/transformer")
    pretrain(evolve(experiment, backbone=backbone), store, Path("runs/a"))
    assert load_run(Path("runs/a")).experiment.backbone.weights == "base/transformer"
    monkeypatch.chdir(tmp_path)
    project.rename(moved)
    assert not caplog.text
    loaded = load_run(Path("moved/runs/a")).backbone.state_dict()
    assert all(torch.equal(x, loaded[n]) for n, x in base.state_dict().items() if n in loaded)
    assert (
        f"weights base/transformer are not here: {moved}/base/transformer are used" in caplog.text
    )


def test_relative_paths_in_a_spec_are_found_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here.gguf", "run/low.gguf", "run/a b.safetensors", "vae/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    run = tmp_path / "run"
    cases = {
        "low.gguf": f"{run}/low.gguf",
        "vae": f"{tmp_path}/vae",
        "none.gguf,low.gguf": f"none.gguf,{run}/low.gguf",
        "high:a b.safetensors@0.5": f"high:{run}/a b.safetensors@0.5",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "/nowhere/low.gguf": "/nowhere/low.gguf",
        "~/low.gguf": "~/low.gguf",
    }
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    spec = {"backbone": {"weights": None, "loras": [*cases], "codec": {"weights": "vae"}}}
    found = beside_spec(spec, run)["backbone"]
    assert found["loras"] == [*cases.values()]
    assert (found["weights"], found["codec"]["weights"]) == (None, f"{tmp_path}/vae")
    (tmp_path / "cwd" / "low.gguf").write_text("")
    assert beside_spec({"weights": "low.gguf"}, run) == {"weights": "low.gguf"}


@pytest.mark.slow
def test_two_runs_of_other_precision_in_one_process(store: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16", "fp32"):
        pretrain(
            small(steps=1, precision=precision), store, tmp_path / f"{precision}-{time.time_ns()}"
        )


def _other_rate(experiment):
    other = Rate(height=4, width=4, time=2)
    return evolve(experiment, compressors=(evolve(experiment.compressors[0], rate=other),))


def test_training_flushes_denormals_and_leaves_the_process_as_it_was(
    store: Path, tmp_path: Path
) -> None:
    tiny, seen = torch.full((1,), 1e-40), []
    pretrain(small(steps=1), store, tmp_path / "a", progress=lambda *_: seen.append(bool(tiny * 1)))
    assert seen == [False] and bool(tiny * 1)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_muon_in_float32_is_torchs_but_for_its_rounding(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(3, *shape)
    moved = []
    for cls in (WideMuon, torch.optim.Muon):
        weight = torch.nn.Parameter(start.clone())
        optimizer = cls([weight], lr=0.1, adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        moved.append(weight.detach() - start)
    assert (moved[0] - moved[1]).norm() < 0.03 * moved[1].norm()


def test_the_learning_rate_warms_up_stays_and_decays() -> None:
    spec = evolve(small().train, steps=100, warmup=10, decay=0.5, rate=1.0)
    rates = [learning_rate(spec, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 == rates[50]
    assert 0 < rates[99] < 0.03 and rates == sorted(rates[:50]) + sorted(rates[50:], reverse=True)


@pytest.mark.slow
def test_it_learns(store: Path, tmp_path: Path) -> None:
    fast = small(
        steps=60, batch=4, rate=5e-3, warmup=1, gain_every=200, log_every=10, save_every=60
    )
    fast = evolve(fast, backbone=evolve(fast.backbone, begin="local"))
    pretrain(fast, store, tmp_path / "run")
    lines = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2]), losses
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert spec["versions"]["torch"] == torch.__version__


def test_what_a_dit_begins_from_is_said_once_where_it_is_odd(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = small(steps=1, gain_every=200, trains="lora")
    pretrain(short, store, tmp_path / "lora")
    said = [line for line in caplog.messages if "LoRA trains over random weights" in line]
    assert len(said) == 1
    caplog.clear()
    module = sys.modules[pretrain.__module__]
    monkeypatch.setattr(module, "weights_notice", lambda experiment: f"of {experiment.name}")
    pretrain(small(steps=1, gain_every=200), store, tmp_path / "all")
    assert not [line for line in caplog.messages if "random weights" in line]
    assert caplog.messages.count("of small") == 1, "weights that began for another memory"
    spec = json.loads((tmp_path / "lora" / "spec.json").read_text())
    assert spec["plugins"] == {}
