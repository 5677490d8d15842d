"""Weights of the Hugging Face hub: only the files that are needed, and only where they fit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import DryRunError, GatedRepoError, RepositoryNotFoundError

from ..errors import UserError

GIGABYTE = 1e9


def download(repo: str, patterns: Sequence[str]) -> Path:
    """Return the folder of a hub repository that holds the files of `patterns`.

    What is not in the hub's cache (HF_HOME) is downloaded; with HF_HUB_OFFLINE, or without a
    network, what was downloaded before is used.

    Raises:
        UserError: no such repository, one that needs a login, no network and nothing there, a
            download that fails, or a disk with too little room for it (before it begins).
    """
    try:
        _check_room(repo, patterns)
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(patterns)))
    except UserError:
        raise
    except GatedRepoError as error:
        raise UserError(
            f"weights {repo}: the hub wants its terms accepted at https://huggingface.co/{repo} "
            "and a login (`hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"weights {repo}: there is no such folder here and no such repository on the hub"
        ) from error
    except FileNotFoundError as error:  # hub: nothing, or not all of it, is in the cache
        raise UserError(
            f"weights {repo}: there is no such folder here, nor (whole) in the hub's cache "
            f"{_cache()}, and the hub cannot be reached{_why()}"
        ) from error
    except Exception as error:  # whatever the network's libraries raise
        raise UserError(f"weights {repo} cannot be downloaded: {first_line(error)}") from error


def cached(repo: str, patterns: Sequence[str]) -> Path | None:
    """Return the folder of a hub repository, as much of it as is in the hub's cache; no network.

    None where nothing of it is there.
    """
    try:
        found = huggingface_hub.snapshot_download(
            repo, allow_patterns=list(patterns), local_files_only=True
        )
    except (FileNotFoundError, ValueError):  # not in the cache, or no name that the hub could have
        return None
    return Path(found)


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE).expanduser()


def _why() -> str:
    return " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""


def _check_room(repo: str, patterns: Sequence[str]) -> None:
    """Refuse a download that is larger than the free disk.

    Raises:
        UserError: with both sizes and the cache's place.
    """
    try:
        files = huggingface_hub.snapshot_download(repo, allow_patterns=list(patterns), dry_run=True)
    except DryRunError:  # no network: nothing will be downloaded either
        return
    wanted = sum(file.file_size or 0 for file in files if file.will_download)
    free = shutil.disk_usage(_existing(_cache())).free
    if wanted > free:
        raise UserError(
            f"weights {repo}: {wanted / GIGABYTE:.1f} GB are to be downloaded, but {_cache()} has "
            f"{free / GIGABYTE:.1f} GB free; make room, or set HF_HOME to a larger disk"
        )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def first_line(error: BaseException) -> str:
    """Return what an error says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
