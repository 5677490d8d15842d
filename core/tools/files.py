"""Files that are written whole or not at all; JSON, JSON lines and safetensors; and full disks.

What is being written lies in a part beside its place, `.NAME.HOST-PID.part`, and is renamed when it
is complete and on the disk. What a killed process leaves is only ever a part, and everyone can tell
whether its owner still lives (`is_live`). A file that is complete has the permissions that any new
file has here (the umask's, or the folder's own), whatever library wrote it.

Whoever works for long before it writes asks first whether it can (`check_out_file`,
`check_out_folder`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
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
GIGABYTE = 1e9
CLAIM = "claim"
CLAIM_PULSE, CLAIM_SILENCE = 60.0, 900.0  # seconds: a claim is touched; nobody holds it any more
# What runs and stores go on from: no option that names a result may replace them.
OWN_FILES = ("spec.json", "metrics.jsonl", "pace.jsonl", "store.json")
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
        mode = _mode_of_new_file(part)
        try:
            yield part
            _set_mode(part, mode)
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
    with _folder_part(path) as part:
        yield part
        _sync_all(part)
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
        _sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, as `whole_folder`; one that is at `path` stays as it is.

    Raises:
        UserError: something is there already, or the disk refuses.
    """
    with _folder_part(path) as part:
        yield part
        _sync_all(part)
        if path.exists():  # an empty folder would be replaced by the rename
            raise UserError(f"{path} is there already, and is not replaced")
        os.rename(part, path)
        _sync(path.parent)


@contextmanager
def _folder_part(path: Path) -> Iterator[Path]:
    part = part_path(path)
    with disk_errors(path):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _sync_all(folder: Path) -> None:
    """Give the files in a folder the permissions of new ones, and wait until all is on the disk."""
    mode = _mode_of_new_file(folder / "mode")
    for file in folder.rglob("*"):
        if file.is_file():
            _set_mode(file, mode)
        _sync(file)
    _sync(folder)


def _mode_of_new_file(path: Path) -> int:
    """Return the permissions of a file that is made at a path, which is free again afterwards."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    path.unlink()
    return mode


def _set_mode(path: Path, mode: int) -> None:
    # safetensors makes its files readable by their owner alone, whatever the umask says
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


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

    Claims stay: whoever takes one over says so (`claimed_folder`).

    Raises:
        UserError: the disk refuses.
    """
    for path in folder.glob(".*.part"):
        if is_live(path) or path.name.startswith(f".{CLAIM}."):
            continue
        with disk_errors(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def claimed_folder(folder: Path) -> Iterator[list[str]]:
    """Hold a folder while working in it, so that no other process does; made where missing.

    The claim is a part in it, with host and process, which is touched as long as the process
    lives. One whose process is dead is taken over: on this machine that can be asked, those of
    other machines are dead when they were not touched for a quarter of an hour. A folder that was
    made and stays empty is removed.

    Yields:
        Whose claims were taken over, in words; mostly none.

    Raises:
        UserError: a living process holds it, or the disk refuses.
    """
    own, made = part_path(folder / CLAIM), _missing_folders(folder)
    if (started := _started(os.getpid())) and _read_claim(own).get("started") == started:
        raise UserError(f"{folder} is in use by this very process: close what works in it first")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(_claim_of_this_process()) + "\n", encoding="utf-8")
    ended = threading.Event()
    try:
        others = [path for path in folder.glob(f".{CLAIM}.*.part") if path != own]
        now = own.stat().st_mtime  # by the clock of the disk, as for the claims of other machines
        dead = [_describe_claim(path) for path in others if not _is_held(path, now)]
        if living := [path for path in others if _is_held(path, now)]:
            raise UserError(
                f"another run is at work in {folder} ({_describe_claim(living[0])}): name another "
                f"--out, or stop it first; if it is gone, delete {living[0]}"
            )
        for path in others:
            path.unlink(missing_ok=True)
        threading.Thread(target=_keep_claim, args=(own, ended), daemon=True).start()
        yield dead
    finally:
        ended.set()
        own.unlink(missing_ok=True)
        with suppress(OSError):  # what is not empty stays
            for place in made:
                place.rmdir()


def _missing_folders(folder: Path) -> list[Path]:
    """Return the folder and those above it that are not there, the lowest first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _claim_of_this_process() -> dict[str, Any]:
    pid, since = os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": platform.node(), "pid": pid, "started": _started(pid), "since": since}


def _keep_claim(path: Path, ended: threading.Event) -> None:
    while not ended.wait(CLAIM_PULSE):
        with suppress(OSError):  # the disk may be away for a while
            os.utime(path)


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it is just being written, or just went
        return {}
    return claim if isinstance(claim, dict) else {}


def _is_held(path: Path, now: float) -> bool:
    """Return whether the process of a claim still lives; `now` is the time on the claim's disk."""
    if f".{_host()}-" not in path.name:
        with suppress(FileNotFoundError):
            return now - path.stat().st_mtime < CLAIM_SILENCE
        return False
    claim = _read_claim(path)
    started = claim.get("started") if claim.get("pid") else None
    # another process may have the number by now
    return is_live(path) and (not started or started == _started(claim["pid"]))


def _started(pid: int) -> str:
    """Return when a process started, in ticks since this machine did; "" where Linux is not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def _describe_claim(path: Path) -> str:
    claim = _read_claim(path)
    if not claim:
        return path.name
    return f"process {claim.get('pid')} on {claim.get('host')}, since {claim.get('since')}"


def only_parts(folder: Path, *allowed: str) -> bool:
    """Return whether a folder holds nothing but parts, and files of the allowed names."""
    return all(path.name in allowed or path.match(".*.part") for path in folder.iterdir())


def check_out_file(path: Path, option: str = "--out", *, room: int = 0) -> None:
    """Refuse, before the work for it, a file that could not be written; nothing is left behind.

    What killed processes left half written in its folder is removed.

    Args:
        path: of the file; its folder may be missing.
        option: what named it, for messages.
        room: bytes that it will take, as far as they are known.

    Raises:
        UserError: it is a folder, or something of a run or store that is not written anew
            (`spec.json`, `metrics.jsonl`, ...); its folder is a file, may not be written to, or is
            on a disk with less room.
    """
    with disk_errors(path):
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; the name of a file is wanted")
        if path.name in OWN_FILES and path.exists():
            raise UserError(
                f"{option} {path} belongs to a run or a store, and is not replaced: name another"
            )
    _check_place(path.parent, f"{option} {path}", room)


def check_out_folder(path: Path, option: str = "--out", *, room: int = 0) -> None:
    """Refuse, before the work for it, a folder that could not be written; nothing is left behind.

    What killed processes left half written in it is removed. Arguments are `check_out_file`'s.

    Raises:
        UserError: it or a folder above it is a file, may not be written to, or is on a disk with
            less room.
    """
    with disk_errors(path):
        if path.exists() and not path.is_dir():
            raise UserError(f"{option} {path} is a file; a folder is wanted")
    _check_place(path, f"{option} {path}", room)


def _check_place(folder: Path, what: str, room: int) -> None:
    with disk_errors(folder):
        there = next(place for place in (folder, *folder.absolute().parents) if _is_there(place))
        if not there.is_dir():
            raise UserError(f"{what}: {there} is a file, and nothing can lie below it")
        try:
            with tempfile.TemporaryFile(dir=there) as trial:
                trial.write(bytes(4096))  # a full disk takes an empty file
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{what}: cannot write to {there}: {reason}") from error
        free = shutil.disk_usage(there).free
        if room > free:
            raise UserError(
                f"{what}: needs about {room / GIGABYTE:.1f} GB, and {there} has "
                f"{free / GIGABYTE:.1f} GB free"
            )
        if there == folder:
            remove_parts(folder)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except NotADirectoryError:  # below a file
        return False


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


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, 64 hex digits.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


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
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
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
        UserError: it is missing, may not be read, or is no safetensors file; while it is read, a
            tensor that is asked for is not in it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, not a safetensors file")
        with path.open("rb"):  # safetensors says "no such file" of one that may not be read
            pass
        file = safe_open(path, framework="pt")
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except RuntimeError as error:  # torch maps the whole file as if it were to be written to
        raise UserError(f"{path} is larger than this machine's memory: {error}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file that can be read: {error}") from None
    with file as opened:
        try:
            yield opened
        except SafetensorError as error:
            raise UserError(f"{path} is not what is wanted here, or damaged: {error}") from None


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
    """Return whether a safetensors file is there and can be opened; a cut one cannot.

    Raises:
        UserError: it is there, and this user may not read it.
    """
    try:
        with open_tensors(path):
            return True
    except UserError as error:
        if isinstance(error.__context__, PermissionError):
            raise
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
