"""Kills `longtake pretrain` again and again; run as a program, and looked at by `test_kills`.

Torch is imported once: every run is a forked child, ended by SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch

import longtake.__main__ as door
import longtake.core.train.pretrain  # noqa: F401  children need it: imported once
from longtake.core.model import build_model
from longtake.core.train.checkpoint import checkpoints, step_of

from ..small import small

KILLS = 20
EXPERIMENT = small(
    steps=150, batch=2, accumulate=2, ema=0.9, decay=0.5, save_every=2, log_every=3, gain_every=16
)


def launch(store: Path, run: Path) -> int:
    """Fork the program and give its process."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        program(store, run)
    return process


def program(store: Path, run: Path) -> NoReturn:
    """Be `longtake pretrain ... --resume latest`."""
    code = 1
    try:
        words = [f"{__spec__.name}:EXPERIMENT", "--data", str(store), "--out", str(run)]
        sys.argv = ["longtake", "pretrain", *words, "--resume", "latest"]
        door.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def newest(run: Path) -> int:
    """Steps of the newest checkpoint, 0 where there is none."""
    return max((step_of(path) for path in checkpoints(run)), default=0)


def wait(process: int, run: Path, kind: int, rng: random.Random) -> None:
    """Wait for a moment to kill: while it starts, while it trains, or while it saves."""
    if kind == 0:
        time.sleep(rng.uniform(0, 0.3))
        return
    goal = newest(run) + rng.choice((1, 3, 5))
    while newest(run) < goal or (kind == 1 and not any(run.glob(".checkpoint-*.part"))):
        if os.waitpid(process, os.WNOHANG)[0]:
            raise SystemExit("the run ended before it was killed: the test shows nothing")
    time.sleep(rng.uniform(0, 0.002 if kind == 1 else 0.04))


def chain(store: Path, run: Path, seed: int) -> dict[str, list[int]]:
    """Kill a run many times, then let it end; give the steps reached, and halves left behind."""
    rng = random.Random(seed)
    reached, halves = [], []
    for kill in range(KILLS):
        process = launch(store, run)
        wait(process, run, kill % 4, rng)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        reached.append(newest(run))
        halves.append(len(list(run.glob(f".*.{process}.part"))))
    finish(store, run)
    return {"reached": reached, "halves": halves}


def finish(store: Path, run: Path) -> None:
    """Let a run go to its end."""
    _, status = os.waitpid(launch(store, run), 0)
    if status:
        raise SystemExit(f"the run failed: {status}")


def main() -> None:
    """Train once without and once with kills."""
    torch.set_num_threads(1)
    build_model(EXPERIMENT)  # imports its plugins
    store, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    finish(store, out / "whole")
    print(json.dumps(chain(store, out / "killed", seed)))


if __name__ == "__main__":
    main()
