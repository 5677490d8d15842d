"""`longtake` as tests run it: called in this process, or forked from one that has imported it.

A process of its own costs seconds of imports. Only tests of what needs one (exit codes of the real
program, signals, launchers, light start-up) start Python anew.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
from attrs import frozen

from longtake import __main__ as door

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300.0  # no program takes a tenth of it, unless processes wait for each other
FSDP = ("--use_fsdp", "--fsdp_version", "2")
DDP = ("--multi_gpu",)  # gloo, where there is no GPU
TWO = (
    "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--main_process_port", "0",
)  # fmt: skip


def run(*words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `longtake WORDS`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _exit_code(words)
    return code, out.getvalue(), err.getvalue()


def _exit_code(words: Sequence[object]) -> int:
    before, sys.argv = sys.argv, ["longtake", *map(str, words)]
    try:
        door.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.argv = before
    return 0


def python_path() -> str:
    """PYTHONPATH for new processes: the tests and the package first."""
    return os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])


@cache
def forks() -> ForkServerContext:
    """What starts processes that have torch and the trainer imported, with one thread, no GPU."""
    if sys.platform == "win32":
        pytest.skip("needs fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    settings = {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


@frozen
class Forked:
    """A `longtake WORDS` in a process of its own, and what it has written so far."""

    process: ForkServerProcess
    log: Path

    @property
    def out(self) -> str:
        """Its standard output."""
        return self.log.with_suffix(".out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """Its standard error."""
        return self.log.with_suffix(".err").read_text(encoding="utf-8")

    def ended(self) -> int:
        """Wait for the end; its exit code."""
        self.process.join(SECONDS)
        assert self.process.exitcode is not None, f"it did not end: {self.err}"
        return self.process.exitcode


def fork(
    words: Sequence[object],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    first: str = "",
) -> Forked:
    """Start `longtake WORDS`, writing to `log`.out and .err, after the Python of `first`."""
    own = [str(word) for word in words], str(log), dict(env or {}), first
    # as code, since pytest has imported this module by another name
    process = forks().Process(target=exec, args=(f"from tests.program import be\nbe(*{own!r})",))
    process.start()
    return Forked(process, log)


def be(words: list[str], log: str, env: dict[str, str], first: str) -> None:
    """Be `longtake WORDS` from here on: a forked process calls this."""
    os.environ.update(env)
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(Path(log).with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    exec(first)
    sys.exit(_exit_code(words))


def pair(words: Sequence[object], folder: Path, *flags: str, first: str = "") -> list[Forked]:
    """Run the two processes that `accelerate launch FLAGS -m longtake WORDS` would, to their end.

    They get the environment that accelerate gives; if one is left waiting for the other, the test
    fails.
    """
    started = [
        fork(words, folder / f"rank-{env['RANK']}", env=env, first=first)
        for env in _environments(flags or DDP)
    ]
    end = time.monotonic() + SECONDS
    try:
        for one in started:
            one.process.join(max(0.0, end - time.monotonic()))
        assert all(one.process.exitcode is not None for one in started), "they wait for ever"
    finally:
        for one in started:
            one.process.kill()
            one.process.join()
    return started


def _environments(flags: Sequence[str]) -> list[dict[str, str]]:
    """What `accelerate launch` and torchrun tell each of two processes."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch.launch_command_parser().parse_args([*flags, *TWO, "longtake"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        arguments, *_ = launch._validate_launch_command(arguments)
        told = prepare_multi_gpu_env(arguments)
    shared = {name: value for name, value in told.items() if os.environ.get(name) != value}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
