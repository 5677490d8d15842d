"""`kill -9` at any moment of `generate`, then the same command, is the take never killed.

    python -m tests.proofs.take_kills

makes a take with a redo, an undo, a branch and an extended video among its commands, once without
kills and then again with 40, and holds the ends to each other bit for bit: order, latents, what
follows from them, mp4; and writes `tests/proofs/take_kills.json`. CI does the same with four kills
(`tests/take/test_kills.py`).
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longtake.core.take.storyboard import Section, Storyboard
from longtake.core.take.take import Take
from longtake.core.tools.device import versions
from longtake.core.tools.files import write_json

from ..program import Forked, fork
from ..take.kit import clip, opened, runs, same

KILLS, SEED = 40, 7
SECTIONS = tuple(Section(prompt=f"scene {i}", seconds=1.2) for i in range(3))


def commands(root: Path, run: Path, video: Path, board: Path) -> list[tuple[object, ...]]:
    """What the user types, in order; each goes on with what the one before made."""
    out, branch = root / "take", root / "branch"
    return [
        (run, "--out", out, "--extend", video, "--story", board, "--seed", 5),
        ("--out", out, "--redo", 3, "--seed", 11),
        ("--out", out, "--redo", 4, "--prompt", "another", "--seed", 12),
        ("--out", out, "--undo"),
        ("--out", out, "--drop-after", 3),
        ("--out", out, "--prompt", "more", "--seconds", 1.2),
        ("--out", out, "--branch", branch, "--at", 3),
        ("--out", branch, "--prompt", "elsewhere", "--seconds", 1.2),
    ]


def start(words: Sequence[object], log: Path) -> Forked:
    """Start `longtake generate WORDS`."""
    return fork(("generate", *words, "--yes"), log)


def finish(words: Sequence[object], log: Path) -> None:
    """Let a command go to its end."""
    program = start(words, log)
    assert program.ended() == 0, program.err


def edit_of(take: Path) -> Any:
    """What tells one order from the next: the one that `undo` would go back to."""
    path = take / "order.json"
    return json.loads(path.read_text())["before"] if path.exists() else None


def chain(root: Path, run: Path, video: Path, board: Path, kills: int, seed: int) -> dict[str, Any]:
    """Type the commands, and kill them many times at random moments."""
    rng, log = random.Random(seed), root / "log"
    told: list[dict[str, Any]] = []
    typed = commands(root, run, video, board)
    for index, words in enumerate(typed):
        share = kills * (index + 1) // len(typed) - kills * index // len(typed)
        out = Path(str(words[words.index("--out") + 1]))
        edit = edit_of(out)
        for _ in range(share):
            program = start(words, log)
            alive = _wait(program, rng)
            program.process.kill()
            program.process.join()
            parts = [p for p in out.rglob(".*.part") if str(program.process.pid) in p.name]
            told.append({"command": index, "was_at_work": alive, "half_written": len(parts)})
            if not alive:
                break
            if _is_edit(words) and edit_of(out) != edit:
                words = ("--out", out)  # the edit is in the order: going on carries it out
        if not ("--branch" in words and (root / "branch").exists()):
            finish(words, log)
    return {"kills": told}


def _is_edit(words: Sequence[object]) -> bool:
    return any(flag in words for flag in ("--redo", "--undo", "--drop-after", "--prompt"))


def _wait(program: Forked, rng: random.Random) -> bool:
    """Wait for a random moment; whether the program was still at work then."""
    end = time.monotonic() + rng.uniform(0.05, 5.0)
    while time.monotonic() < end:
        if not program.process.is_alive():
            return False
        time.sleep(0.002)
    return program.process.is_alive()


def check(one: Path, other: Path) -> None:
    """Hold the takes that were killed to those that were not."""
    for name in ("take", "branch"):
        first, second = opened(one / name), opened(other / name)
        same(first, second)
        assert _cached(first) == _cached(second)
        assert not [p for p in second.root.rglob(".*.part") if "claim" not in p.name]


def _cached(take: Take) -> dict[str, bytes]:
    """All that follows from the segments of a take, by file."""
    ids = [entry.id for entry in take.order.entries]
    files = [p for id in ids for p in sorted((take.root / "cache" / str(id)).glob("*.*"))]
    return {str(p.relative_to(take.root)): p.read_bytes() for p in files if p.suffix != ".json"}


def prepare(root: Path) -> tuple[Path, Path, Path]:
    """A run, a video and a storyboard."""
    run, video = runs(root), clip(root / "mine.mp4", seconds=2.2)
    board = root / "story.json"
    write_json(board, Storyboard(sections=SECTIONS).to_json())
    return run, video, board


def main() -> None:
    """Make the proof and write what it found."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        given = prepare(root)
        whole, killed = root / "whole", root / "killed"
        for place in (whole, killed):
            place.mkdir()
        chain(whole, *given, kills=0, seed=0)
        told = chain(killed, *given, kills=KILLS, seed=SEED)["kills"]
        check(whole, killed)
    result = {
        "holds": "equal to the takes never killed, bit for bit: order, latents, LR latents, "
        "memory, clips, take.mp4",
        "kills": len(told),
        "killed_at_work": sum(one["was_at_work"] for one in told),
        "kills_by_command": [
            sum(one["command"] == i for one in told) for i in range(len(commands(*[Path()] * 4)))
        ],
        "half_written_left": [one["half_written"] for one in told],
        "seed": SEED,
        "seconds": round(time.monotonic() - began),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
    }
    write_json(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
