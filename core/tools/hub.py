"""Weights by the text that users write: on this machine, or on the Hugging Face hub.

`locate` reads that text wherever a spec names weights: of a DiT, a VAE, a text encoder, or a model
that a compressor keeps frozen. What is on disk goes before the hub; of a hub repository only the
files that are needed are downloaded, and only where the disk has room for them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import DryRunError, GatedRepoError, RepositoryNotFoundError

from ..errors import UserError

GIGABYTE = 1e9
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/(.+))?")


def locate(
    text: str,
    patterns: Sequence[str],
    *,
    expected: str,
    suffixes: Sequence[str] = (),
    label: str = "weights",
) -> Path:
    """Return the folder or file that `text` names, after a download where it needs one.

    Args:
        text: a folder or file (`~` for the home), a hub id (`org/name`), or a file on the hub
            (`org/name/file.safetensors`).
        patterns: the files that are needed of a hub repository, such as `vae/*.json`.
        expected: what users may name instead, for messages.
        suffixes: of the single files that can be read; none: it must be a folder.
        label: what messages call the weights, before `text`.

    Raises:
        UserError: nothing is there, a single file is pickled or has another suffix, or the
            download fails (see `download`).
    """
    path = expand_path(text)
    if path.is_dir():
        return path
    if path.suffix in PICKLES:
        raise UserError(
            f"{label} {text} are pickled, which can run code: safetensors are read; name {expected}"
        )
    if path.is_file() and suffixes:
        if path.suffix not in suffixes:
            raise UserError(f"{label} {text}: a single file is {' or '.join(suffixes)}")
        return path
    on_hub = split_hub_name(text, suffixes)
    if on_hub is None:
        kinds = "folder or file" if suffixes else "folder"
        raise UserError(f"{label} {text}: no such {kinds}; name {expected}")
    repo, file = on_hub
    place = download(repo, [file] if file else list(patterns), label) / file
    if not place.exists():
        lacking = f"{repo} has no file {file}" if file else f"repository has no {patterns[0]}"
        raise UserError(f"{label} {text}: the hub's {lacking}")
    return place


def locate_offline(text: str, patterns: Sequence[str], suffixes: Sequence[str] = ()) -> Path | None:
    """Return what `locate` would without asking the hub, None where it would have to.

    What is there may still be other weights, or not all of them.

    Raises:
        UserError: no path can be that text (see `expand_path`).
    """
    path = expand_path(text)
    if path.exists():
        return path
    on_hub = split_hub_name(text, suffixes)
    if on_hub is None:
        return None
    repo, file = on_hub
    try:
        folder = huggingface_hub.snapshot_download(
            repo, allow_patterns=[file] if file else list(patterns), local_files_only=True
        )
    except (FileNotFoundError, ValueError):  # not in the cache, or no name that the hub could have
        return None
    place = Path(folder) / file
    return place if place.exists() else None


def expand_path(text: str) -> Path:
    """Return the path that users write, with `~` for their home.

    Raises:
        UserError: no path can be that text, or this system does not let us look there.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long, or of a user who is not here
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise UserError(f"{text if len(text) < 99 else text[:99] + '…'}: {reason}") from None
    return path


def split_hub_name(text: str, suffixes: Sequence[str] = ()) -> tuple[str, str] | None:
    """Return the repository `org/name` that `text` names and the file in it, None for other texts.

    The file is empty where the whole repository is named; it must end with one of `suffixes`.
    """
    match = _HUB_NAME.fullmatch(text)
    if match is None:
        return None
    repo, file = match[1], match[2] or ""
    is_file = text.endswith(tuple(suffixes) or ("\0",))
    # `models/wan.safetensors` is a file that is missing here, not a repository
    return (repo, file) if is_file == bool(file) else None


def download(repo: str, patterns: Sequence[str], label: str = "weights") -> Path:
    """Return the folder of a hub repository that holds the files of `patterns`.

    What is not in the hub's cache (HF_HOME) is downloaded; with HF_HUB_OFFLINE, or without a
    network, what was downloaded before is used.

    Raises:
        UserError: no such repository, one that needs a login, no network and nothing there, a
            download that fails, or a disk with too little room for it (before it begins).
    """
    try:
        _check_disk_space(repo, patterns, label)
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(patterns)))
    except UserError:
        raise
    except GatedRepoError as error:
        raise UserError(
            f"{label} {repo}: the hub wants its terms accepted at https://huggingface.co/{repo} "
            "and a login (`hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{label} {repo}: there is no such folder here and no such repository on the hub"
        ) from error
    except FileNotFoundError as error:  # hub: nothing, or not all of it, is in the cache
        offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        raise UserError(
            f"{label} {repo}: there is no such folder here, nor (whole) in the hub's cache "
            f"{_cache_folder()}, and the hub cannot be reached{offline}"
        ) from error
    except Exception as error:  # whatever the network's libraries raise
        raise UserError(f"{label} {repo} cannot be downloaded: {first_line(error)}") from error


def _check_disk_space(repo: str, patterns: Sequence[str], label: str) -> None:
    """Refuse a download that is larger than the free disk.

    Raises:
        UserError: with both sizes and the cache's place.
    """
    try:
        files = huggingface_hub.snapshot_download(repo, allow_patterns=list(patterns), dry_run=True)
    except DryRunError:  # no network: nothing will be downloaded either
        return
    needed = sum(file.file_size or 0 for file in files if file.will_download)
    cache = existing = _cache_folder()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{label} {repo}: {needed / GIGABYTE:.1f} GB are to be downloaded, but {cache} has "
            f"{free / GIGABYTE:.1f} GB free; make room, or set HF_HOME to a larger disk"
        )


def _cache_folder() -> Path:
    return Path(constants.HF_HUB_CACHE).expanduser()


def first_line(error: BaseException) -> str:
    """Return what an error says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
