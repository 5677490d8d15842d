"""Weights of the hub: what is in its cache, what is not, and whether the disk has room."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import huggingface_hub
import pytest
import torch
from diffusers import WanTransformer3DModel
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.file_download import DryRunFileInfo
from safetensors.torch import save_file

from longtake.backbones.texts.specs import Umt5
from longtake.backbones.wan.published import PublishedWanBackbone
from longtake.backbones.wan.specs import Wan22Dense5B
from longtake.backbones.weights.find import find_dit
from longtake.core.errors import UserError
from longtake.core.tools import hub

REPO, COMMIT = "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "0123456789abcdef0123456789abcdef01234567"
SPEC = Wan22Dense5B(heads=2, head_width=12, layers=2, ffn=16, text_encoder=Umt5(width=8))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache: Path, repo: str = REPO) -> Path:
    """The snapshot folder of a repository that was downloaded before."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "snapshots" / COMMIT).mkdir(parents=True)
    return root / "snapshots" / COMMIT


def refused(words: str, weights: str = REPO) -> str:
    with pytest.raises(UserError, match=words) as caught:
        PublishedWanBackbone.load(attrs.evolve(SPEC, weights=weights))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cached_repository_loads_offline(cache: Path) -> None:
    WanTransformer3DModel(**SPEC.config).save_pretrained(cached(cache) / "transformer")
    model = PublishedWanBackbone.load(SPEC)
    assert SPEC.weights == REPO and model.dtype == torch.bfloat16
    assert find_dit(REPO).name == f"{REPO}/transformer"


def test_a_model_alone_in_its_repository_loads(cache: Path) -> None:
    WanTransformer3DModel(**SPEC.config).save_pretrained(cached(cache, "me/wan"))
    PublishedWanBackbone.load(attrs.evolve(SPEC, weights="me/wan"))


def test_one_file_of_a_repository_loads(cache: Path) -> None:
    model, root = WanTransformer3DModel(**SPEC.config), cached(cache, "me/files") / "split"
    root.mkdir()
    save_file(model.state_dict(), root / "wan.safetensors")
    found = PublishedWanBackbone.load(attrs.evolve(SPEC, weights="me/files/split/wan.safetensors"))
    assert torch.equal(found.proj_out.bias.float(), model.proj_out.bias.bfloat16().float())
    refused("the hub's me/files has no file other.safetensors", "me/files/other.safetensors")
    refused("are pickled", "me/files/model.pth")


def test_what_is_not_there_is_said(cache: Path) -> None:
    said = refused("no such folder here, nor .whole. in the hub's cache")
    assert said.startswith(f"weights {REPO}: ") and str(cache) in said
    assert said.endswith("the hub cannot be reached (HF_HUB_OFFLINE is set)")
    refused("weights runs/base: there is no such folder here, nor", "runs/base")


def test_half_a_download_is_said(cache: Path) -> None:
    root = cached(cache)
    WanTransformer3DModel(**SPEC.config).save_pretrained(root / "transformer")
    (root / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    refused(f"weights {REPO}/transformer hold no safetensors files")
    (root / "transformer" / "config.json").unlink()
    (root / "transformer").rmdir()
    (root / "model_index.json").write_text(json.dumps({}))
    refused("are a pipeline without transformer/")


def test_without_a_network_the_cache_is_used(cache: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    WanTransformer3DModel(**SPEC.config).save_pretrained(cached(cache) / "transformer")
    PublishedWanBackbone.load(SPEC)


def answer(monkeypatch: Any, files: Sequence[DryRunFileInfo], asked: list[Any]) -> None:
    """Let the hub list files to download, and remember what it was asked."""

    def snapshot(repo: str, **options: Any) -> Any:
        asked.append((repo, options))
        return files if options.get("dry_run") else str(Path("nowhere"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


def listed(size: int | None, *, download: bool = True) -> DryRunFileInfo:
    return DryRunFileInfo(
        commit_hash=COMMIT, file_size=size, filename="transformer/x", local_path="x",
        is_cached=not download, will_download=download,
    )  # fmt: skip


def test_a_full_disk_is_said_before_the_download(cache: Path, monkeypatch: Any) -> None:
    free, asked = 5 * 10**9, list[Any]()
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    answer(monkeypatch, [listed(4 * 10**9), listed(3 * 10**9)], asked)
    said = refused("7.0 GB are to be downloaded, but .* has 5.0 GB free; make room, or set HF_HOME")
    assert str(cache) in said and [o.get("dry_run") for _, o in asked] == [True]
    wanted = asked[0][1]["allow_patterns"]
    assert "transformer/*.safetensors" in wanted and not any("vae" in p for p in wanted)
    answer(monkeypatch, [listed(4 * 10**9), listed(3 * 10**9, download=False), listed(None)], asked)
    refused("the hub's repository has no transformer/")
    assert [o.get("dry_run") for _, o in asked[1:]] == [True, None]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (RepositoryNotFoundError, "no such folder here and no such repository on the hub"),
        (GatedRepoError, "wants its terms accepted at https://huggingface.co/Wan-AI/.* a login"),
    ],
)
def test_what_the_hub_refuses_is_said(monkeypatch: Any, kind: Any, words: str) -> None:
    error = kind.__new__(kind, "no")  # its constructor wants a response of whatever http library

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    refused(words)


def test_a_download_that_breaks_is_said(monkeypatch: Any) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("the read\ntimed out")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    refused("cannot be downloaded: the read$")
