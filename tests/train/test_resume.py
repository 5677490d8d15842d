"""A run that was stopped and resumed is the run that never stopped, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from longtake.core.errors import UserError
from longtake.core.experiment import Experiment
from longtake.core.tools.files import read_json, read_json_lines, write_json
from longtake.core.tools.progress import Report
from longtake.core.train import trainer as saving
from longtake.core.train.checkpoint import (
    checkpoints,
    find_checkpoint,
    load_run,
    prune,
    read_encoder,
    read_run,
)
from longtake.core.train.pretrain import pretrain
from longtake.core.train.trainer import Trainer, TrainResult
from longtake.experiments.ship import provenance
from longtake.plugins.compressors.specs import Conv

from ..small import small
from .runs import same

CASES = [
    ("lora", "adamw", 0.9),
    pytest.param("all", "adamw", 0.0, marks=pytest.mark.slow),
    pytest.param("encoder", "adamw", 0.0, marks=pytest.mark.slow),
    pytest.param("all", "muon", 0.9, marks=pytest.mark.slow),
    pytest.param("lora", "muon", 0.0, marks=pytest.mark.slow),
]


def at(step: int, *signals: signal.Signals) -> Callable[[int, int, str], None]:
    """A progress that sends this process signals after a step."""

    def progress(done: int, total: int, note: str) -> None:
        for number in signals if done == step else ():
            os.kill(os.getpid(), number)

    return progress


@pytest.mark.parametrize("trains,optimizer,ema", CASES)
def test_resume_equals_never_stopped(
    store: Path, tmp_path: Path, trains: str, optimizer: str, ema: float
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    experiment = small(
        trains=trains, optimizer=optimizer, ema=ema, steps=7, decay=0.5,
        save_every=100, log_every=3, gain_every=3,
    )  # fmt: skip
    pretrain(experiment, store, whole)
    stopped = pretrain(experiment, store, parts, progress=at(2, signal.SIGINT))
    assert (stopped.step, stopped.stopped) == (2, True)
    pretrain(experiment, store, parts, resume=True, progress=at(5, signal.SIGTERM))
    assert [p.name for p in checkpoints(parts)] == ["checkpoint-2", "checkpoint-5"]
    ended = pretrain(experiment, store, parts, resume=True)
    assert (ended.step, ended.stopped) == (7, False)
    same(whole, parts)
    again = pretrain(experiment, store, parts, resume=True)
    assert (again.loss, again.gain) == (ended.loss, ended.gain), "a run that is over knows its end"


def test_the_losses_since_the_last_line_travel_in_the_checkpoint(
    store: Path, tmp_path: Path
) -> None:
    experiment = small(steps=5, log_every=5, save_every=3, keep=9)
    pretrain(experiment, store, tmp_path)
    notes = json.loads((tmp_path / "checkpoint-3/training_state/state.json").read_text())
    assert len(notes["losses"]) == 3 and notes["losses"][-1] == notes["loss"]
    *_, line = [x for x in read_json_lines(tmp_path / "metrics.jsonl") if "loss" in x]
    assert line["step"] == 5 and line["loss"] != pytest.approx(notes["loss"], rel=1e-6)


def test_seconds_are_kept_apart_from_metrics(store: Path, tmp_path: Path) -> None:
    pretrain(small(steps=2), store, tmp_path)
    assert all("seconds_a_step" not in line for line in read_json_lines(tmp_path / "metrics.jsonl"))
    paces = read_json_lines(tmp_path / "pace.jsonl")
    assert [line["step"] for line in paces] == [1, 2]
    assert all(line["seconds_a_step"] > 0 for line in paces)
    (tmp_path / "pace.jsonl").write_text('{"step": 1, "seconds_a_step": 90.0}\n')
    part = provenance(tmp_path, store)
    assert part["minutes"] == 3.0, "weights that ship say how long they took"


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_what_was_saved_stays_whole(
    store: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    experiment = small(steps=6, save_every=2)
    pretrain(experiment, store, whole)
    with pytest.raises(KeyboardInterrupt):
        pretrain(experiment, store, cut, progress=at(3, signal.SIGINT, signal.SIGINT))
    assert [p.name for p in checkpoints(cut)] == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "handlers are given back"
    pretrain(experiment, store, cut, resume=True)
    same(whole, cut)


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_while_saving_leaves_no_half_checkpoint(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: signal.Signals
) -> None:
    experiment = small(steps=6, save_every=2)
    real = saving.write_state

    def interrupted(folder: Path, *rest: object) -> None:
        real(folder, *rest)  # type: ignore[arg-type]
        if folder.name.startswith(".checkpoint-3"):
            os.kill(os.getpid(), second)

    monkeypatch.setattr(saving, "write_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(experiment, store, tmp_path, progress=at(3, signal.SIGINT))
    assert [p.name for p in tmp_path.glob("*checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    assert pretrain(experiment, store, tmp_path, resume=True).step == 6


def test_weights_of_a_file_train_in_aligned_memory(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(small(steps=2), store, tmp_path)
    odd = []
    real = Trainer.train

    def train(self: Trainer, progress: Report | None) -> TrainResult:
        tensors = [*self.worker.stage.parameters(), *self.worker.stage.buffers()]
        odd.extend(x.data_ptr() % 64 for x in tensors if x.numel())
        return real(self, progress)

    monkeypatch.setattr(Trainer, "train", train)
    pretrain(small(steps=3), store, tmp_path, resume=True)
    assert odd and not any(odd), "other addresses round otherwise than those of a fresh run"


@pytest.mark.slow
def test_minutes_make_checkpoints_too(store: Path, tmp_path: Path) -> None:
    timed = small(steps=4, save_every=100, save_minutes=1e-9, keep=9)
    pretrain(timed, store, tmp_path / "timed")
    assert [p.name for p in checkpoints(tmp_path / "timed")] == [
        f"checkpoint-{n}" for n in (1, 2, 3, 4)
    ]
    slow = evolve(timed, train=evolve(timed.train, save_minutes=60.0))
    pretrain(slow, store, tmp_path / "slow")
    assert [p.name for p in checkpoints(tmp_path / "slow")] == ["checkpoint-4"]


def test_a_step_is_not_saved_twice(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    real = saving.write_state
    monkeypatch.setattr(
        saving,
        "write_state",
        lambda folder, *rest: (saved.append(folder.name), real(folder, *rest)),
    )
    pretrain(small(steps=4, save_every=2), store, tmp_path)
    assert len(saved) == 2, saved  # the last step is a multiple of save_every


def test_old_checkpoints_go_whole_or_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        write_json(tmp_path / f"checkpoint-{step}" / "state.json", {})
    real = shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        if path.exists():
            raise KeyboardInterrupt
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 2)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff\xfe"])
def test_a_damaged_state_is_one_line(store: Path, tmp_path: Path, damage: bytes) -> None:
    experiment = small(steps=4, save_every=2)
    pretrain(experiment, store, tmp_path, progress=at(2, signal.SIGINT))
    (tmp_path / "checkpoint-2/training_state/state.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"state\.json") as error:
        pretrain(experiment, store, tmp_path, resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_what_changes_on_resume_is_said_and_kept(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    pretrain(small(steps=2), store, run)
    changed = small(steps=4, rate=5e-4, clip=0.5, keep=9, log_every=2)
    pretrain(changed, store, run, resume=True)
    changes = read_json(run / "spec.json", "run")["history"][0]["changes"]
    assert [text.split(" was ")[0] for text in changes] == [
        f"train.{name}" for name in ("steps", "rate", "clip", "keep", "log_every")
    ]
    assert all(f"from step 2 on {text}" in caplog.text for text in changes)
    rates = {x["step"]: x["learning_rate"] for x in read_json_lines(run / "metrics.jsonl")
             if "loss" in x}  # fmt: skip
    assert rates == {1: 5e-4, 2: 1e-3, 4: 5e-4}
    caplog.clear()
    pretrain(evolve(changed, train=evolve(changed.train, steps=5)), store, run, resume=True)
    data = read_json(run / "spec.json", "run")
    assert [part["step"] for part in data["history"]] == [2, 4]
    assert read_run(run)[0].train.steps == 5
    assert "learning rate goes" not in caplog.text, "a level rate does not bend"


@pytest.mark.slow
def test_kernels_may_change_on_resume_and_stand_in_no_header(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot run is refused before anything is written."""

    def experiment(kernels: str, steps: int) -> Experiment:
        made = small(steps=steps)
        (spec,) = made.compressors
        assert isinstance(spec, Conv)
        return evolve(made, compressors=(evolve(spec, kernels=kernels),))

    run = tmp_path / "run"
    with pytest.raises(UserError, match="kernels=triton cannot run conv3d_act: the device is cpu"):
        pretrain(experiment("triton", 1), store, run)
    assert not run.exists()
    pretrain(experiment("auto", 1), store, run)
    pretrain(experiment("reference", 2), store, run, resume=True)
    assert "'kernels': 'auto'" in caplog.text and "'kernels': 'reference'" in caplog.text
    header, _ = read_encoder(checkpoints(run)[-1] / "memory.safetensors")
    assert header["compressors"][0]["type"] == "conv"
    assert not {"kernels", "sums"} & header["compressors"][0].keys()
    (spec,) = read_run(run)[0].compressors
    assert isinstance(spec, Conv) and spec.kernels == "reference"


@pytest.mark.slow
def test_a_schedule_that_bends_and_another_store_are_said(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    pretrain(small(steps=4, decay=0.75), store, run)
    other = tmp_path / "fewer"
    shutil.copytree(store, other)
    sorted((other / "clips").iterdir())[0].unlink()
    pretrain(small(steps=8, decay=0.75), other, run, resume=True, progress=at(5, signal.SIGINT))
    assert "learning rate goes up 2 times at step 4, from 0.000333 to 0.000667" in caplog.text
    assert "the store was store (3 clips), is another: fewer (2 clips)" in caplog.text
    caplog.clear()
    pretrain(small(steps=8, decay=0.75), other, run, resume=True, progress=at(6, signal.SIGINT))
    assert not caplog.text, "nothing changed this time"
    assert len(read_json(run / "spec.json", "run")["history"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("file", ["memory.safetensors", "training_state/optimizer.pt", "backbone"])
def test_a_damaged_checkpoint_offers_the_one_before(
    store: Path, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    experiment = small(steps=4, save_every=2)
    pretrain(experiment, store, whole)
    shutil.copytree(whole, run)
    damaged = run / "checkpoint-4" / file
    if damaged.is_dir():
        shutil.rmtree(damaged)
    else:
        damaged.write_bytes(damaged.read_bytes()[:-9])
    longer = small(steps=6, save_every=2)
    with pytest.raises(UserError, match=r"before it is whole: use .*-2 .*: --resume 2\)") as error:
        pretrain(longer, store, run, resume=True)
    assert "\n" not in str(error.value)
    if file != "training_state/optimizer.pt":
        with pytest.raises(UserError, match="before it is whole: use .*checkpoint-2"):
            load_run(run)
    pretrain(experiment, store, run, resume=find_checkpoint(run, "2"))
    assert "set aside as checkpoint-4.aside" in caplog.text
    same(whole, run)


def test_a_checkpoint_is_named_by_step_name_or_folder(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    expected = tmp_path / "run" / "checkpoint-2"
    for text in ("2", "checkpoint-2", f"{expected}/", str(tmp_path / "run/../run/checkpoint-2")):
        assert find_checkpoint(tmp_path / "run", text) == expected
    for text in ("3", "soon", str(tmp_path), ""):
        with pytest.raises(UserError, match=r"latest, or one of the steps .*\(2, 4\)"):
            find_checkpoint(tmp_path / "run", text)
