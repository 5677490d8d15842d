"""Every block of the README runs, on small input; its pages lead where they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from longtake import __main__ as door
from longtake.core.video.write import write_video

from .small import moving

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ("core", "plugins", "backbones", "kernels", "experiments")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.md"))),
]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
SMALL = {
    "cache": ["--set", "cache.area=4096"],
    "pretrain": [
        "--set", "cache.area=4096", "--set", "train.batch=2", "--set", "train.precision=fp32",
        "--set", "train.gain_every=100",
    ],
    "measure": ["--set", "measure.draws=1", "--set", "measure.seconds=1",
                "--set", 'retrievers=["flow","mean-frame"]',
                "--set", 'metrics=["psnr","ssim"]'],
}  # fmt: skip


def lines(verb: str) -> list[list[str]]:
    """The README's commands of a verb, as words."""
    bash = "".join(code for language, code in BLOCKS if language == "bash")
    found = [shlex.split(line, comments=True) for line in bash.splitlines()]
    return [words[1:] for words in found if words[:2] == ["longtake", verb]]


def run(*words: str) -> None:
    before, sys.argv = sys.argv, ["longtake", *words]
    try:
        door.main()
    except SystemExit as ended:
        assert ended.code in (0, None), (words, ended.code)
    finally:
        sys.argv = before


def test_python_blocks_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = [code for language, code in BLOCKS if language == "python"]
    assert codes
    for code in codes:
        (tmp_path / "mine.py").write_text(code)
        run("show", f"{tmp_path / 'mine.py'}:MINE")
        assert "4x4x2" in capsys.readouterr().out


@pytest.mark.slow
def test_the_path_of_a_user_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for name, seed in (("one", 1), ("two", 2)):
        write_video(tmp_path / "clips" / f"{name}.mp4", moving(seed, seconds=5), 8)
    for words in (*lines("list"), *lines("show"), *lines("cache")):
        run(*words, *SMALL.get(words[0], []))
    (pretrain,) = lines("pretrain")
    run(*pretrain, *SMALL["pretrain"], "--set", "train.steps=1")
    more = ["--resume", "latest", *SMALL["pretrain"], "--set", "train.steps=2"]
    run(*pretrain, *more)
    for words in (*lines("retrieve"), *lines("measure")):
        run(*words, *SMALL.get(words[0], []))
    assert (tmp_path / "retrieved" / "strip.png").exists()
    assert (tmp_path / "runs" / "first" / "measure" / "report.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_pictures_are_there(page: Path) -> None:
    links = re.findall(r"\[[^\]]*\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"`((?:{'|'.join(ROOMS)}|tests)/[\w./]+?)/?`", text):
        assert (ROOT / path).exists() or page.name == "CHANGELOG.md", f"{page.name}: {path}"
    for module in re.findall(r"python -m longtake\.([\w.]+)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_install_line_names_real_files_and_extras() -> None:
    assert "constraints.txt" in README and (ROOT / "constraints.txt").exists()
    found = subprocess.run(
        [sys.executable, "-m", "longtake", "--help"], capture_output=True, text=True, check=True
    )
    commands = "".join(code for language, code in BLOCKS if language == "bash")
    for verb in re.findall(r"\blongtake (\w+)", commands):
        assert verb in found.stdout, verb
