"""Several processes cache into one store: each its share, none in the way of another."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attrs import evolve

from longtake.core.cache import workers as pool
from longtake.core.cache.cache import CacheResult, cache
from longtake.core.cache.job import Shard, find_shard
from longtake.core.data.store import Store, read_index
from longtake.core.errors import LongtakeError, UserError
from longtake.core.tools import files as disk
from longtake.core.tools.files import create_file, is_live, part_path, read_json_lines, remove_parts

from ..program import fork
from ..small import RATE, small, write_clips

NAMES = [f"clip-{n}.mp4" for n in range(1, 6)]
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("share") / "videos", seeds=range(1, 6))


def run(videos: Path, out: Path, area: int = 32 * 48, **how: object) -> CacheResult:
    experiment = small()
    return cache(
        evolve(experiment, cache=evolve(experiment.cache, area=area)), videos, out,
        rates=frozenset({RATE}), pixels=False, device=torch.device("cpu"), **how,
    )  # fmt: skip


def statuses(result: CacheResult) -> list[str]:
    return [outcome.status for outcome in result.outcomes]


def sources(out: Path) -> list[str]:
    return [record.source for record in Store.open(out).records]


@pytest.mark.parametrize(
    "asked,env,found",
    [
        ((None, None), {}, (0, 1)),
        ((None, None), {"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ((None, None), SRUN, (1, 2)),
        ((None, None), {**SRUN, "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "9"}, (1, 4)),
        ((None, None), TORCHRUN, (3, 4)),
        ((0, 3), TORCHRUN, (0, 3)),
        # a batch script runs once, however many tasks it may start
        ((None, None), {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
    ],
)
def test_the_share_is_the_asked_one_or_the_launchers(
    asked: tuple[int | None, int | None], env: dict[str, str], found: tuple[int, int]
) -> None:
    assert find_shard(*asked, env) == Shard(rank=found[0], world=found[1])


@pytest.mark.parametrize(
    "asked,env,said",
    [
        ((1, None), {}, "--world is no number"),
        ((None, 2), {}, "--rank is no number"),
        ((2, 2), {}, "--rank 2 of --world 2"),
        ((None, None), {"RANK": "0"}, "WORLD_SIZE is no number"),
        ((None, None), {"RANK": "x", "WORLD_SIZE": "2"}, "RANK is no number"),
        ((None, None), {**SRUN, "SLURM_PROCID": "5"}, "SLURM_PROCID 5"),
    ],
)
def test_a_share_that_is_none_is_refused(
    asked: tuple[int | None, int | None], env: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        find_shard(*asked, env)


def test_shares_make_one_store_that_any_number_of_processes_goes_on_with(
    videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    shares = [run(videos, out, shard=Shard(rank=rank, world=3)) for rank in (2, 0, 1)]
    assert [len(s.outcomes) for s in shares] == [1, 2, 2] and sources(out) == NAMES
    assert all(statuses(s) == ["cached"] * len(s.outcomes) and not s.gone for s in shares)
    names = [path.name for path in sorted((out / "index").iterdir())]
    assert names == [f"0000{rank}-of-00003.jsonl" for rank in range(3)]
    assert statuses(run(videos, out)) == ["kept"] * 5
    assert statuses(run(videos, out, shard=Shard(rank=1, world=2))) == ["kept"] * 2
    assert sorted(p.name for p in out.iterdir()) == ["clips", "index", "store.json", "texts"]


def test_more_processes_than_videos_is_no_error(videos: Path, tmp_path: Path) -> None:
    result = run(videos, tmp_path / "s", shard=Shard(rank=6, world=7))
    assert result.outcomes == []
    with pytest.raises(UserError, match="holds no clip"):
        Store.open(tmp_path / "s")


def test_the_newest_line_counts_wherever_it_stands(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    run(videos, out)
    first = read_index(out)[0]
    index = out / "index"
    newer = json.dumps(evolve(first, placement="new", revision=first.revision + 1).line())
    (index / "00000-of-00000.jsonl").write_text(newer + "\n")  # sorts before
    assert read_index(out)[0].placement == "new" and len(read_index(out)) == 5
    with pytest.raises(UserError, match="no record of a clip"):
        (index / "odd.jsonl").write_text('{"id": 1}\n')
        read_index(out)


def claim(out: Path, header: str, share: str = "00000-of-00001") -> Path:
    """The claim of another process that lives: the parent of this one."""
    out.mkdir(exist_ok=True)
    part = part_path(out / f"claim-{header}-{share}")
    path = part.with_name(part.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}."))
    path.touch()
    return path


def test_a_header_is_not_replaced_under_a_run_that_is_at_work(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    run(videos, out, shard=Shard(rank=6, world=7))  # a header, no clip
    path = claim(out, "01234567")
    with pytest.raises(UserError, match="another run is at work on .* with area 1536"):
        run(videos, out, area=64 * 64)
    assert path.exists() and len(list(out.glob(".claim*"))) == 1
    path.unlink()
    assert statuses(run(videos, out, area=64 * 64)) == ["cached"] * 5


def test_two_of_the_same_share_have_files_of_their_own(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    path = claim(out, "01234567")
    run(videos, out)
    only = next((out / "index").iterdir()).name
    assert only.startswith("00000-of-00001-") and f"-{os.getpid()}" in only
    path.unlink()
    assert statuses(run(videos, out)) == ["kept"] * 5


def test_parts_of_other_machines_live_for_a_day(tmp_path: Path) -> None:
    mine, theirs = part_path(tmp_path / "x"), tmp_path / ".x.00000000-999999999.part"
    for path in (mine, theirs):
        path.touch()
    remove_parts(tmp_path)
    assert mine.exists() and theirs.exists()
    os.utime(theirs, (time.time() - 2 * disk.DAY,) * 2)
    remove_parts(tmp_path)
    assert mine.exists() and not theirs.exists() and not is_live(theirs)


def create(path: Path, text: str, won: object) -> None:
    if create_file(path, text):
        won.put(text)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_of_many_processes_one_makes_a_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    won, path = context.Queue(), tmp_path / "store.json"
    many = [context.Process(target=create, args=(path, str(n) * 9999, won)) for n in range(8)]
    for process in many:
        process.start()
    first = won.get(timeout=60)
    for process in many:
        process.join()
    assert won.empty() and path.read_text() == first and len(list(tmp_path.iterdir())) == 1


def test_a_file_system_without_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", none)
    path = tmp_path / "store.json"
    assert create_file(path, "a") and not create_file(path, "b") and path.read_text() == "a"
    assert [p.name for p in tmp_path.iterdir()] == ["store.json"]


AT_ONCE = """
from pathlib import Path
import torch
from tests.small import RATE, small
from longtake.core.cache.cache import cache

result = cache(small(), Path({videos!r}), Path({out!r}), rates=frozenset({{RATE}}), pixels=False,
               device=torch.device("cpu"))
sys.exit(result.count("bad"))
"""


@pytest.mark.slow
def test_the_same_command_twice_at_once_harms_nothing(videos: Path, tmp_path: Path) -> None:
    code = AT_ONCE.format(videos=str(videos), out=str(tmp_path / "s"))
    both = [fork((), tmp_path / name, first=code) for name in "ab"]
    assert [process.ended() for process in both] == [0, 0], [process.err for process in both]
    assert (
        sources(tmp_path / "s") == NAMES and statuses(run(videos, tmp_path / "s")) == ["kept"] * 5
    )
    assert not list((tmp_path / "s").rglob("*.part"))
    for path in (tmp_path / "s" / "index").iterdir():
        assert all(
            set(line) == set(read_index(tmp_path / "s")[0].line()) for line in read_json_lines(path)
        )


def test_workers_are_counted_from_one(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workers 0"):
        run(videos, tmp_path / "s", workers=0)
    assert not (tmp_path / "s").exists()


class Worker(threading.Thread):
    """A worker as a thread, which need not import anything anew."""

    exitcode = property(lambda self: None if self.is_alive() else 0)

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> None:
        *first, pipe = args  # whose end here the parent closes when a process has its own
        own = Connection(os.dup(pipe.fileno()))
        super().__init__(target=target, args=(*first, own), daemon=daemon)

    def terminate(self) -> None:
        pass


def test_workers_take_turns(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Worker)
    monkeypatch.setattr(pool, "get_context", lambda _: context)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of this process
    assert statuses(run(videos, tmp_path / "s", workers=2)) == ["cached"] * 5
    assert sources(tmp_path / "s") == NAMES


@pytest.mark.slow
def test_workers_make_the_store_of_one_process(videos: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    result = run(videos, tmp_path / "s", workers=2, progress=lambda *call: told.append(call))
    assert statuses(result) == ["cached"] * 5 and result.seconds > 5
    assert [o.source for o in result.outcomes] == NAMES
    assert told[-1][:2] == (5, 5) and "s of video" in told[-1][2]
    assert not multiprocessing.active_children()
    run(videos, tmp_path / "alone")
    for one, other in zip(read_index(tmp_path / "s"), read_index(tmp_path / "alone"), strict=True):
        assert one == other
        windows = [
            Store.open(root).window(one, 0, 5, [RATE])
            for root in (tmp_path / "s", tmp_path / "alone")
        ]
        assert torch.allclose(windows[0].latents, windows[1].latents, atol=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_a_worker_that_is_killed_is_told_and_its_video_done_again(
    videos: Path, tmp_path: Path
) -> None:
    killed: list[str] = []

    def kill(done: int, total: int, note: str) -> None:
        if not killed and note.endswith(".mp4"):
            killed.append(note)
            for child in multiprocessing.active_children():  # one or both are about to begin
                os.kill(child.pid, signal.SIGKILL)

    result = run(videos, tmp_path / "s", workers=2, progress=kill)
    lost = [o for o in result.outcomes if o.status == "lost"]
    assert killed[0] in [o.source for o in lost] and 1 <= len(lost) <= 2
    assert all("killed (signal 9)" in o.detail for o in lost)
    assert result.count("cached") == 5 - len(lost)
    again = run(videos, tmp_path / "s")
    assert [o for o in again.outcomes if o.status == "cached"] and statuses(again).count(
        "kept"
    ) == (5 - len(lost))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_ctrl_c_ends_all_workers_and_keeps_what_is_done(videos: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(videos, tmp_path / "s", workers=2, progress=stop)
    assert not multiprocessing.active_children()
    assert len(Store.open(tmp_path / "s").records) == 2
    assert not list((tmp_path / "s").rglob("*.part"))
    assert run(videos, tmp_path / "s").count("kept") == 2
    assert not list((tmp_path / "s").rglob("*.part"))


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_one_line(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool.JobDescription, "of", lambda job: "no orders")
    with pytest.raises(LongtakeError, match=r"no worker .* one failed \(exit code 1\)"):
        run(videos, tmp_path / "s", workers=2)
    assert not multiprocessing.active_children()
