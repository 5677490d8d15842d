"""Files that are written whole or not at all; JSON, JSON lines and safetensors; and full disks.

What is being written lies in a part beside its place, `.NAME.HOST-PID.part`, and is renamed when it
is complete and on the disk. What a killed process leaves is only ever a part, and everyone can tell
whether its owner still lives (`is_live`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..errors import UserError

# safetensors' names of number types, and torch's
_TORCH_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "C64": "complex64",
}  # fmt: skip
DAY = 24 * 3600.0  # seconds
# torch.save reports a full disk as a RuntimeError, which only these words tell from any other.
_TORCH_WRITES = ("inline_container", "basic_ios", "unexpected pos", "PytorchStreamWriter")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` at the end, and is removed on any failure.

    Raises:
        UserError: the disk refuses.
    """
    part = part_path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            _sync(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `path` at the end, and is removed on any failure.

    Raises:
        UserError: the disk refuses.
    """
    part = part_path(path)
    with disk_errors(path):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part
            for file in part.rglob("*"):
                _sync(file)
            if path.exists():
                shutil.rmtree(path)
            os.replace(part, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder; nobody ever sees it half removed.

    Raises:
        UserError: the disk refuses.
    """
    part = part_path(path)
    with disk_errors(path):
        shutil.rmtree(part, ignore_errors=True)
        os.replace(path, part)
        shutil.rmtree(part)


def create_file(path: Path, text: str) -> bool:
    """Write a file, whole, where nothing is yet; of several processes only one does.

    Returns:
        Whether it was this one: False where `path` exists, which stays as it is.

    Raises:
        UserError: the disk refuses.
    """
    part = part_path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, encoding="utf-8")
            _sync(part)
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


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some systems cannot sync a folder; a real write error came before
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def part_path(path: Path) -> Path:
    """Return where this process writes what becomes `path`: `.NAME.HOST-PID.part` beside it."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.part")


@functools.cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def is_live(part: Path) -> bool:
    """Return whether the process that owns a part may still be at work on it.

    Processes of other machines cannot be asked: theirs count as alive for a day. A name that
    `part_path` does not give is nobody's to remove, and so alive.
    """
    owner = re.fullmatch(r"\..+\.([0-9a-f]{8})-(\d+)\.part", part.name)
    if not owner:
        return True
    if owner[1] == _host():
        return _is_running(int(owner[2]))
    try:
        return time.time() - part.stat().st_mtime < DAY
    except FileNotFoundError:
        return False


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # there, os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True


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
    """Return whether a folder holds nothing but parts, and files of the allowed names."""
    return all(path.name in allowed or path.match(".*.part") for path in folder.iterdir())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses (full, read-only, no permission) into one line that names it.

    Raises:
        UserError: in place of the error of the operating system, safetensors or torch.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_refusal(error)
        if reason is None:
            raise
        raise UserError(f"cannot write {path}: {reason}") from error


def _disk_refusal(error: Exception) -> str | None:
    """Return why the disk refused, or None where the error is of something else."""
    from safetensors import SafetensorError

    message = (str(error).splitlines() or [""])[0]
    if isinstance(error, OSError):
        return error.strerror or message
    if isinstance(error, SafetensorError):
        return message.rpartition("I/O error: ")[2]
    of_torch = isinstance(error, RuntimeError) and any(w in str(error) for w in _TORCH_WRITES)
    return f"is the disk full? ({message})" if of_torch else None


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing, unreadable or no JSON; the message says it should be `what`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: this is no {what}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as the JSON of a {what}: {error}") from None


def read_object(path: Path, what: str, *keys: str) -> dict[str, Any]:
    """Read a JSON file that holds an object with all of `keys`.

    Raises:
        UserError: as `read_json`; or it holds no object, or lacks a key.
    """
    data = read_json(path, what)
    if not isinstance(data, dict):
        raise UserError(f"{path} is no {what}: it holds no object")
    for key in keys:
        if key not in data:
            raise UserError(f"{path} is no {what}: it lacks {key}")
    return data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Any) -> None:
    """Write a safetensors file with a JSON header, whole or not at all."""
    from safetensors.torch import save_file

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as part:
        save_file(flat, part, metadata={"longtake": json.dumps(header)})


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file and yield it, to read tensors or slices of it.

    Raises:
        UserError: it is missing or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise UserError(f"{path} is a folder, not a safetensors file")
    try:
        file = safe_open(path, framework="pt")
    except RuntimeError as error:  # torch maps the whole file as if it were to be written to
        raise UserError(f"{path} is larger than this machine's memory: {error}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file that can be read: {error}") from None
    with file as opened:
        yield opened


class TensorFile:
    """A safetensors file that is read tensor by tensor, however much larger than memory it is.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is cut short or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="numpy"):  # maps the file, and checks all of its header
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        self.path, self.start = path, 8 + length
        self.entries = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self.entries[name]["shape"])

    def read(self, name: str) -> Tensor:
        """Return a tensor, in memory of its own.

        Raises:
            UserError: torch has no such number type.
        """
        import torch

        entry = self.entries[name]
        dtype = getattr(torch, _TORCH_TYPES.get(entry["dtype"], ""), None)
        if dtype is None:
            raise UserError(f"{self.path}: {name} is {entry['dtype']}, which torch does not have")
        first, end = entry["data_offsets"]
        data = torch.empty(end - first, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + first)
            view = memoryview(data.numpy().data)
            while view:
                count = file.readinto(view)
                if not count:
                    raise UserError(f"{self.path} was cut short while it was read")
                view = view[count:]
        return data.view(dtype).reshape(entry["shape"])


def is_tensors(path: Path) -> bool:
    """Return whether a safetensors file is there and can be opened; a cut one cannot."""
    try:
        with open_tensors(path):
            return True
    except UserError:
        return False


def read_header(opened: Any, path: Path) -> Any:
    """Read the JSON header that `write_tensors` wrote into an open file; `path` is for messages.

    Raises:
        UserError: the file has none, or a damaged one.
    """
    text = (opened.metadata() or {}).get("longtake")
    if text is None:
        raise UserError(f"{path} was not written by longtake: its header is missing")
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged: its header is no JSON ({error})") from None


def append_json_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line of JSON to a log; a last line that a crash or a full disk cut is dropped.

    Raises:
        UserError: the disk refuses; the log is as it was.
    """
    data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b", buffering=0) as log:
            size = _size_of_whole_lines(log)
            try:
                log.truncate(size)
                log.seek(size)
                while data:
                    data = data[log.write(data) :]
                os.fsync(log.fileno())
            except OSError:
                log.truncate(size)
                raise


def _size_of_whole_lines(log: BinaryIO) -> int:
    """Return the size of a log without a last line that was cut."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 1))
    if log.read(1) in (b"\n", b""):
        return size
    log.seek(0)
    return log.read().rfind(b"\n") + 1


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a JSON log, without a last one that a crash cut; none where it is missing.

    Raises:
        UserError: a line is no JSON.
    """
    if not path.exists():
        return []
    *rows, _cut = path.read_bytes().split(b"\n")
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            lines += [json.loads(row)] if row.strip() else []
        except ValueError:
            raise UserError(f"{path}, line {number}: no JSON; restore or delete the file") from None
    return lines
