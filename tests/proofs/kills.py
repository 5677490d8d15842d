"""`kill -9` at any moment, then `--resume latest`, is the run that was never killed.

    python -m tests.proofs.kills            # Stage I, 40 kills
    python -m tests.proofs.kills finetune   # Stage II, 20 kills

trains once without kills and once with them, holds the ends to each other bit for bit, and writes
`tests/proofs/kills.json` or `kills-finetune.json`. CI does the same with three kills of each
(`tests/train/test_kills.py`).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from longtake.core.tools.device import versions
from longtake.core.tools.files import write_json
from longtake.core.train.checkpoint import checkpoints, step_of

from ..program import Forked, fork
from ..small import make_store, small, small_finetune
from ..train.runs import same

STEPS, SEED = 150, 7
MOMENTS = ("starting", "saving", "training", "training")  # of one kill after the other
OFTEN = {
    "batch": 2, "accumulate": 2, "ema": 0.9, "decay": 0.5, "save_every": 2, "log_every": 3,
    "gain_every": 16,
}  # fmt: skip
EXPERIMENT = small(**OFTEN)
ORIGIN = small(trains="lora", steps=4)
FINETUNE = small_finetune(**OFTEN)


@frozen
class Stage:
    """What is killed: the verb, its experiment in this file, and how often.

    `origin` is the run that Stage II starts from.
    """

    verb: str
    experiment: str
    kills: int
    origin: Path | None = None


STAGE_ONE = Stage("pretrain", "EXPERIMENT", 40)
STAGE_TWO = Stage("finetune", "FINETUNE", 20)


def start(store: Path, run: Path, steps: int, stage: Stage = STAGE_ONE) -> Forked:
    """Start `longtake pretrain ... --resume latest`, or `finetune`."""
    words = ("--data", store, "--out", run, "--resume", "latest", "--set", f"train.steps={steps}")
    begin = ("--start", stage.origin) if stage.origin else ()
    experiment = f"tests.proofs.kills:{stage.experiment}"
    return fork((stage.verb, experiment, *words, *begin), run.with_name("log"))


def finish(store: Path, run: Path, steps: int, stage: Stage = STAGE_ONE) -> None:
    """Let a run go to its end."""
    program = start(store, run, steps, stage)
    assert program.ended() == 0, program.err


def newest(run: Path) -> int:
    """Steps of the newest checkpoint, 0 where there is none."""
    return max((step_of(path) for path in checkpoints(run)), default=0)


def wait(program: Forked, run: Path, moment: str, rng: random.Random) -> None:
    """Wait for a moment to kill."""
    if moment == "starting":
        time.sleep(rng.uniform(0, 0.3))
        return
    saving, goal = moment == "saving", newest(run) + rng.choice((1, 3, 5))
    while newest(run) < goal or (saving and not any(run.glob(".checkpoint-*.part"))):
        assert program.process.is_alive(), f"it ended before it was killed: {program.err}"
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.002 if saving else 0.04))


def chain(
    store: Path, run: Path, steps: int, kills: int, seed: int, stage: Stage = STAGE_ONE
) -> dict[str, Any]:
    """Kill a run many times, then let it end; the steps it had reached, and the halves left."""
    rng = random.Random(seed)
    reached, halves = [], []
    for kill in range(kills):
        program = start(store, run, steps, stage)
        wait(program, run, MOMENTS[kill % len(MOMENTS)], rng)
        program.process.kill()
        program.process.join()
        reached.append(newest(run))
        halves.append(len(list(run.glob(f".*-{program.process.pid}.part"))))
    finish(store, run, steps, stage)
    return {"reached": reached, "halves": halves}


def check(whole: Path, killed: Path, reached: list[int]) -> None:
    """Hold the run that was killed to the one that was not."""
    assert reached == sorted(reached), "a kill took back what was saved"
    same(whole, killed)
    assert not list(killed.glob(".*.part")), "what kills leave is cleared"
    assert len(checkpoints(killed)) == 2


def main() -> None:
    """Make the proof of a stage and write what it found."""
    stage = STAGE_TWO if sys.argv[1:] == [STAGE_TWO.verb] else STAGE_ONE
    began, kills = time.monotonic(), stage.kills
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = make_store(root, small())
        if stage is STAGE_TWO:
            finish(store, root / "one", 4, Stage("pretrain", "ORIGIN", 0))
            stage = evolve(stage, origin=root / "one")
        finish(store, root / "whole", STEPS, stage)
        told = chain(store, root / "killed", STEPS, kills, SEED, stage)
        check(root / "whole", root / "killed", told["reached"])
    assert len(set(told["reached"])) > kills // 4, "the kills must fall at many steps"
    assert sum(map(bool, told["halves"])) >= kills // 8, "some kills must fall into a write"
    result = {
        "holds": "equal to the run never killed, bit for bit: weights, average, optimizer, log",
        "verb": stage.verb,
        "kills": kills,
        "steps": STEPS,
        "seed": SEED,
        "steps_when_killed": told["reached"],
        "half_written_files_left": told["halves"],
        "seconds": round(time.monotonic() - began),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
    }
    name = "kills.json" if stage.verb == "pretrain" else f"kills-{stage.verb}.json"
    write_json(Path(__file__).with_name(name), result)


if __name__ == "__main__":
    main()
