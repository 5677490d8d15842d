"""A store survives full disks, killed runs and damaged files; its header binds only its clips."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import save_file

from longtake.core.cache.cache import CacheResult, cache
from longtake.core.data.store import Store, clip_path, read_index
from longtake.core.errors import UserError
from longtake.core.experiment import Experiment
from longtake.core.model import all_needs
from longtake.core.tools.files import (
    append_json_line,
    check_out_file,
    check_out_folder,
    disk_errors,
    is_tensors,
    only_parts,
    open_tensors,
    part_path,
    read_json,
    read_json_lines,
    read_object,
    remove_folder,
    remove_parts,
    whole_folder,
    write_tensors,
)
from longtake.core.values.grid import Rate

from ..small import small, write_clips


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("videos"), seeds=(1,))


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def dead_part(path: Path, dead: int) -> Path:
    """Where that process would have written `path`."""
    part = part_path(path)
    return part.with_name(part.name.replace(f"-{os.getpid()}.", f"-{dead}."))


def cached(videos: Path, out: Path, experiment: Experiment | None = None) -> CacheResult:
    experiment = experiment or small()
    rates = all_needs(experiment).rates
    return cache(experiment, videos, out, rates=rates, pixels=False, device=torch.device("cpu"))


def changed(**changes: object) -> Experiment:
    experiment = small()
    return evolve(experiment, cache=evolve(experiment.cache, **changes))


FILL = """
import resource, signal, sys, torch
from pathlib import Path
from longtake.core.errors import UserError
from longtake.core.tools.files import whole_file, write_tensors
import safetensors.torch

path, large = Path(sys.argv[1]), {"x": torch.zeros(10**6)}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
for name in ("tensors", "torch"):
    try:
        if name == "tensors":
            write_tensors(path / name, large, {})
        with whole_file(path / name) as part:
            torch.save(large, part)
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_disk_that_fills_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    words = [sys.executable, "-c", FILL, str(tmp_path)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(told) == 2
    for name, line in zip(("tensors", "torch"), told, strict=True):
        assert line.startswith(f"cannot write {tmp_path / name}: ")
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_of_the_disk_passes_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="refusing to save"), disk_errors(tmp_path):
        raise RuntimeError("refusing to save without memory keys")


@pytest.mark.parametrize("torn", [b'{"a', b'{"n": 9}', '{"é'.encode()[:-1], b"\xff" * 9000])
def test_a_torn_last_line_is_dropped_and_cut(tmp_path: Path, torn: bytes) -> None:
    log = tmp_path / "log.jsonl"
    append_json_line(log, {"n": 1})
    log.write_bytes(log.read_bytes() + torn)
    assert read_json_lines(log) == [{"n": 1}]
    append_json_line(log, {"n": 2})
    assert log.read_bytes() == b'{"n": 1}\n{"n": 2}\n'
    log.write_bytes(b"no json\n")
    with pytest.raises(UserError, match="line 1: no JSON"):
        read_json_lines(log)


def test_a_line_that_cannot_be_written_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_json_line(tmp_path / "log", {"n": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        append_json_line(tmp_path / "log", {"n": 2})
    assert (tmp_path / "log").read_bytes() == b'{"n": 1}\n'


def test_a_folder_is_removed_or_a_line_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights").write_text("large")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(UserError, match="cannot write .*run: Permission denied"):
            remove_folder(tmp_path / "run")
    assert (tmp_path / "run" / "weights").read_text() == "large"
    remove_folder(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_only_parts_of_dead_processes_are_removed(tmp_path: Path, dead: int) -> None:
    mine = part_path(tmp_path / "x").name
    theirs = dead_part(tmp_path / "x.json", dead).name
    for name in (mine, theirs, "kept.part", ".odd.part"):
        (tmp_path / name).write_text("half")
    dead_part(tmp_path / "folder", dead).mkdir()
    remove_parts(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {mine, "kept.part", ".odd.part"}
    assert not only_parts(tmp_path)
    assert only_parts(tmp_path, "kept.part")


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder of a user who is not root, and as whom this process then works."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if os.geteuid():
            yield folder
            return
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_every_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "clip.safetensors", {"x": torch.zeros(2)}, {})
        with whole_folder(tmp_path / "checkpoint") as part:
            (part / "backbone").mkdir()
            save_file({"x": torch.zeros(2)}, part / "backbone" / "model.safetensors")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permission_denied_is_said_as_such() -> None:
    with unprivileged() as folder:
        path, spec = folder / "x.safetensors", folder / "spec.json"
        write_tensors(path, {"x": torch.zeros(2)}, {})
        spec.write_text("{}")
        for file in (path, spec):
            file.chmod(0)
        with pytest.raises(UserError, match=r"x\.safetensors cannot be read: Permission denied"):
            with open_tensors(path):
                pass
        with pytest.raises(UserError, match=r"spec\.json cannot be read: Permission denied"):
            read_json(spec, "run")
        with pytest.raises(UserError, match="Permission denied"):
            is_tensors(path)  # else it would be taken for damaged, and made anew
        (folder / "shut").mkdir(mode=0o500)
        for check in (check_out_file, check_out_folder):
            with pytest.raises(UserError, match="--out .*shut/a/b: cannot write to .*shut: Perm"):
                check(folder / "shut" / "a" / "b")


def test_a_file_without_a_tensor_that_is_asked_for_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.zeros(2)}, {})
    for ask in ("get_tensor", "get_slice"):
        with pytest.raises(UserError, match=r"x\.safetensors is not what is wanted .* latents"):
            with open_tensors(path) as file:
                getattr(file, ask)("latents")


def test_an_output_is_checked_before_the_work(tmp_path: Path, dead: int) -> None:
    for name in ("file", "spec.json"):
        (tmp_path / name).write_text("mine")
    left = dead_part(tmp_path / "x.safetensors", dead)
    left.write_text("half")
    (tmp_path / "folder").mkdir()
    cases = [
        (check_out_file, "folder", 0, "is a folder; the name of a file is wanted"),
        (check_out_file, "spec.json", 0, "belongs to a run or a store"),
        (check_out_file, "file/x", 0, "file is a file, and nothing can lie below it"),
        (check_out_folder, "file", 0, "is a file; a folder is wanted"),
        (check_out_folder, "file/x/y", 0, "file is a file, and nothing can lie below it"),
        (check_out_folder, "new/x", 10**18, "needs about 1000000000.0 GB, and .* GB free"),
    ]
    for check, name, room, said in cases:
        with pytest.raises(UserError, match=said):
            check(tmp_path / name, room=room)
    check_out_file(tmp_path / "x.safetensors")
    check_out_folder(tmp_path / "new" / "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "spec.json"]


def test_read_object_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"spec.json is no run: it holds no object"):
        read_object(path, "run")
    path.write_text('{"a": 1}')
    assert read_object(path, "run", "a") == {"a": 1}
    with pytest.raises(UserError, match=r"spec.json is no run: it lacks b"):
        read_object(path, "run", "a", "b")


@pytest.mark.parametrize("text", ["3", "[]", "{}", '{"format": 2}', "null"])
def test_a_header_that_is_none_is_refused(videos: Path, tmp_path: Path, text: str) -> None:
    cached(videos, tmp_path / "s")
    (tmp_path / "s" / "store.json").write_text(text)
    for use in (lambda: Store.open(tmp_path / "s"), lambda: cached(videos, tmp_path / "s")):
        with pytest.raises(UserError, match="store.json is no latent store"):
            use()


def test_a_run_that_was_killed_while_it_claimed_is_healed(
    videos: Path, tmp_path: Path, dead: int
) -> None:
    out = tmp_path / "s"
    out.mkdir()
    dead_part(out / "store.json", dead).write_text("{")
    assert cached(videos, out).count("cached") == 1
    assert Store.open(out).null_text().embeddings.shape[0] == 1
    dead_part(out / "clips" / "x.safetensors", dead).write_bytes(b"half")
    assert cached(videos, out).count("kept") == 1
    assert Store.open(out).null_text().embeddings.shape[0] == 1
    assert not list(out.rglob(".*.part"))


def test_other_files_are_refused(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        cached(videos, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        cached(videos, tmp_path / "a.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_only_a_store_with_clips_binds_the_next_run(videos: Path, tmp_path: Path) -> None:
    cached(videos, tmp_path / "s")
    assert cached(videos, tmp_path / "s", changed(min_seconds=0.5)).count("kept") == 1
    with pytest.raises(UserError, match="was cached with area"):
        cached(videos, tmp_path / "s", changed(area=48 * 64))
    (tmp_path / "s" / "index" / "00000-of-00001.jsonl").unlink()
    assert cached(videos, tmp_path / "s", changed(area=48 * 64)).count("cached") == 1
    assert json.loads((tmp_path / "s" / "store.json").read_text())["area"] == 48 * 64


def test_a_damaged_clip_is_cached_again(videos: Path, tmp_path: Path) -> None:
    cached(videos, tmp_path / "s")
    clip = clip_path(tmp_path / "s", read_index(tmp_path / "s")[0].id)
    whole = clip.read_bytes()
    clip.write_bytes(whole[:100])
    assert cached(videos, tmp_path / "s").count("cached") == 1
    assert clip.stat().st_size == len(whole)


def test_missing_rates_can_be_pasted(videos: Path, tmp_path: Path) -> None:
    cached(videos, tmp_path / "s")
    with pytest.raises(UserError) as caught:
        Store.open(tmp_path / "s").check(identity={}, rates=[Rate(height=4, width=4, time=4)])
    pasted = str(caught.value).partition("cache.rates=")[2]
    assert json.loads(pasted.strip("'")) == ["2x2x2", "4x4x4"]
