"""What disks refuse, and what killed processes leave on them."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

# torch.save reports a full disk as a RuntimeError, which only these words tell from any other
DAY = 24 * 3600.0
_TORCH_WRITES = ("inline_container", "basic_ios", "unexpected pos", "PytorchStreamWriter")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses (full, read-only, no permission) into one line that names it."""
    try:
        yield
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise UserError(f"cannot write {path}: {reason}") from error


def _refusal(error: Exception) -> str | None:
    """Give why the disk refused, or None where the error is of something else."""
    from safetensors import SafetensorError

    said = (str(error).splitlines() or [""])[0]
    if isinstance(error, OSError):
        return error.strerror or said
    if isinstance(error, SafetensorError):
        return said.rpartition("I/O error: ")[2]
    torch_wrote = isinstance(error, RuntimeError) and any(w in str(error) for w in _TORCH_WRITES)
    return f"is the disk full? ({said})" if torch_wrote else None


def part_path(path: Path) -> Path:
    """Give where this process writes what becomes `path`: `.NAME.HOST-PID.part` beside it."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.part")


@functools.cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def create_file(path: Path, text: str) -> bool:
    """Write a file, whole, where nothing is yet; of several processes only one does.

    Returns:
        Whether it was this one: False where `path` exists, which stays as it is.
    """
    part = part_path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            return _link(part, path)
        finally:
            part.unlink(missing_ok=True)


def _link(part: Path, path: Path) -> bool:
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: nearly as good
        if path.exists():
            return False
        os.replace(part, path)
    return True


def is_live(part: Path) -> bool:
    """Whether the process that owns a part may still be at work on it.

    Processes of other machines cannot be asked: theirs count as alive for a day. A name that
    `part_path` does not give is nobody's to remove, and so alive.
    """
    found = re.fullmatch(r"\..+\.(?:([0-9a-f]{8})-)?(\d+)\.part", part.name)
    if not found or found[1] in (None, _host()):
        return not found or _alive(int(found[2]))
    try:
        return time.time() - part.stat().st_mtime < DAY
    except FileNotFoundError:
        return False


def remove_parts(folder: Path) -> None:
    """Remove the parts that killed processes left in a folder; living ones keep theirs.

    Raises:
        UserError: the disk refuses.
    """
    for path in folder.glob(".*.part"):
        if is_live(path):
            continue
        with disk_errors(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def only_parts(folder: Path, *allowed: str) -> bool:
    """Whether a folder holds nothing but what is half written, and files of the allowed names."""
    return all(path.name in allowed or path.match(".*.part") for path in folder.iterdir())


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there, os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True
