"""What disks refuse, and what killed processes leave on them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

# torch.save reports a full disk as a RuntimeError, which only these words tell from any other
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


def remove_parts(folder: Path) -> None:
    """Remove the `.NAME.PID.part` that killed processes left in a folder; living ones keep theirs.

    Raises:
        UserError: the disk refuses.
    """
    for path in folder.glob(".*.part"):
        found = re.fullmatch(r"\..+\.(\d+)\.part", path.name)
        if not found or _alive(int(found[1])):
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
