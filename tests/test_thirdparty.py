"""A whole third-party distribution, installed by pip: found, held to the law, trained, measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import longtake
from longtake.core.video.write import write_video

SOURCE = Path(__file__).parent / "thirdparty"
Longtake = Callable[..., subprocess.CompletedProcess[str]]
SMALL = [
    "backbone.heads=2", "backbone.head_width=12", "backbone.layers=1", "backbone.ffn=16",
    "backbone.codec.channels=16", "backbone.text_encoder.width=8", "cache.area=1536",
    "cache.min_seconds=1", "compressor.rate=2x2x4", "train.steps=3", "train.batch=2",
    "train.seconds=[1,2]", "train.save_every=3", "train.gain_every=3", "train.precision=fp32",
    'retrievers=["flow","mean-frame"]', "measure.seconds=2", "measure.draws=1",
    "backbone.weights=null", "train.trains=all", 'metrics=["psnr","ssim"]',
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the distribution into."""
    folder = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source") / "thirdparty"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def python(*arguments: str, paths: list[Path]) -> subprocess.CompletedProcess[str]:
    """Run Python with those folders importable, and longtake where these tests found it."""
    house = Path(longtake.__file__).parent.parent
    env = {k: v for k, v in os.environ.items() if k != "LONGTAKE_PLUGINS"}
    env["PYTHONPATH"] = os.pathsep.join([*map(str, paths), str(house), env.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, check=False,
        timeout=300, cwd=paths[0],
    )  # fmt: skip


@pytest.fixture
def run(place: Path) -> Longtake:
    """Run `longtake` with the distribution installed; further folders go first on the path."""

    def call(*arguments: str, more: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        return python("-m", "longtake", *arguments, paths=[*more, place])

    return call


def test_pip_installs_it_with_its_entry_point(place: Path) -> None:
    points = next(place.glob("longtake_pool-*.dist-info")) / "entry_points.txt"
    assert points.read_text().split() == [
        "[longtake]", "ltx", "=", "longtake_pool.ltx", "pool", "=", "longtake_pool",
    ]  # fmt: skip


@pytest.mark.slow
def test_it_is_listed_with_its_distribution(run: Longtake) -> None:
    done = run("list", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (row,) = [row for row in found["plugins"] if row["name"] == "mean-pool"]
    assert (row["kind"], row["distribution"]) == ("compressor", "longtake-pool")
    assert "mean-pool-tiny" in [row["name"] for row in found["experiments"]]
    assert "tiny-ltx" in [row["name"] for row in found["plugins"] if row["kind"] == "backbone"]
    assert found["broken"] == []


SHOW_AND_LAW = """
import sys
from longtake.__main__ import main
from longtake.core.contract.compressor import check_compressor
from longtake.core.values.grid import Rate
from longtake.core.registry import registry

plugin = registry().get("compressor", "mean-pool")
for rate in ("2x2x2", "1x2x8"):
    check_compressor(plugin.load(), plugin.spec(rate=Rate.parse(rate)))
sys.argv = ["longtake", "show", "mean-pool-tiny", "--json", "--set", "compressor.rate=4x4x2"]
main()
"""


@pytest.mark.slow
def test_it_keeps_the_law_of_compressors_and_its_context_lengths_are_shown(place: Path) -> None:
    done = python("-c", SHOW_AND_LAW, paths=[place])
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["experiment"]["compressors"] == [{"type": "mean-pool", "rate": "4x4x2"}]
    row = shown["context"]["rows"][1]
    assert (row["latents"], row["tokens"]) == (40, 21 * 2 * 4)


def write_videos(folder: Path) -> Path:
    """Three short clips of a square that moves over a ramp of grey."""
    folder.mkdir()
    for seed in range(3):
        ramp = np.linspace(0, 160, 48, dtype=np.uint8)[None, None, :, None]
        frames = np.broadcast_to(ramp, (20, 32, 48, 3)).copy()
        for k, frame in enumerate(frames):
            frame[4 * seed : 4 * seed + 10, k : k + 10] = (250, 80 * seed, 20)
        write_video(folder / f"clip-{seed}.mp4", frames, 8)
        (folder / f"clip-{seed}.txt").write_text(f"square {seed}")
    return folder


STEPS = """
import json, sys
from longtake.__main__ import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["longtake", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
"""


@pytest.mark.slow
def test_it_is_cached_trained_saved_reloaded_and_measured(place: Path, tmp_path: Path) -> None:
    videos, store, out = write_videos(tmp_path / "videos"), tmp_path / "store", tmp_path / "run"
    sets = [word for change in SMALL for word in ("--set", change)]
    steps = [
        ["cache", "mean-pool-tiny", "--videos", str(videos), "--out", str(store), *sets],
        ["pretrain", "mean-pool-tiny", "--data", str(store), "--out", str(out), *sets],
        ["measure", str(out), "--data", str(store)],
    ]
    done = python("-c", STEPS, json.dumps(steps), paths=[place])
    assert done.returncode == 0, done.stderr
    text = (out / "measure" / "measure.json").read_text()
    assert "flow" in text and "mean-frame" in text
    assert list(out.rglob("memory.safetensors")), "the encoder is saved"
    saved = json.loads(next(out.rglob("spec.json")).read_text())
    assert "mean-pool" in json.dumps(saved)


def add(folder: Path, name: str, code: str) -> Path:
    """Put another distribution into a folder, as pip would leave it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[longtake]\nhooks = {name}\n")
    return folder


@pytest.mark.slow
def test_a_broken_neighbour_is_reported_and_skipped(run: Longtake, tmp_path: Path) -> None:
    broken = add(tmp_path, "broken_neighbour", "import a_package_that_is_not_there")
    done = run("list", "--json", more=(broken,))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "mean-pool" in [row["name"] for row in found["plugins"]]
    (line,) = found["broken"]
    assert line.startswith("broken_neighbour: broken_neighbour failed to import: ModuleNotFound")


@pytest.mark.slow
def test_of_two_of_one_name_neither_loads_and_nothing_else_suffers(
    run: Longtake, tmp_path: Path
) -> None:
    twin = add(tmp_path, "twin", "from longtake_pool import longtake_compressors")
    done = run("list", "--json", more=(twin,))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "mean-pool" not in [row["name"] for row in found["plugins"]]
    (line,) = found["broken"]
    assert line.startswith("longtake-pool (longtake_pool.compressor:") and "and twin (" in line
    done = run("show", "mean-pool-tiny", more=(twin,))
    assert done.returncode == 2 and done.stdout == ""
    assert "is not loaded: longtake-pool (" in done.stderr and "and twin (" in done.stderr
