"""Gather photographs that packages ship under open licences, to be filmed by `cache --photos`.

    python -m longtake.experiments.photos --out photos

fetches Debian's wallpaper packages with `apt-get download` (nothing is installed), unpacks them
with `dpkg-deb`, and copies the photographs among their pictures into a folder, beside some that
scikit-image's wheel has. `photographs.json` lists each with its package, author and licence, as the
package states them; `experiments.ship` puts that list beside weights that were trained on them. The
photographs of the built-in clip are left out: `demo` and the probes ask for those.

`--packages FOLDER` reads `.deb` files that are there instead of fetching them. Exit 2: bad input.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from importlib import metadata, resources
from pathlib import Path

import attrs
from attrs import frozen

from ..core.data.films import open_photo
from ..core.errors import LongtakeError, UserError
from ..core.tools.files import check_out_folder, read_object, whole_file, write_json
from ..core.video.decode import fingerprint

LIST = "photographs.json"
WHAT = "list of photographs (python -m longtake.experiments.photos writes one)"
BACKGROUNDS = "usr/share/backgrounds"
PLASMA = "usr/share/wallpapers/{}/contents/images/2560x1600.jpg"
PUZZLES = "usr/share/palapeli/collection"
# Photographs, chosen by eye: the other pictures of these packages are drawings.
PACKAGES: Mapping[str, Sequence[str]] = {
    "lomiri-wallpapers-16.04": [
        f"{BACKGROUNDS}/{name}*.jpg"
        for name in (
            "Bridge", "Dragonfly", "Picture", "Wine", "aitzgorri", "free", "friends", "greentock",
            "life", "picosdeeuropa", "seeding", "sunset",
        )
    ],
    "lomiri-wallpapers-20.04": [f"{BACKGROUNDS}/Kleiber*.jpg"],
    "mate-backgrounds": [f"{BACKGROUNDS}/mate/nature/*.jpg"],
    "plasma-workspace-wallpapers": [
        PLASMA.format(name)
        for name in (
            "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf",
            "Grey", "Kite", "OneStandsOut", "Path", "summer_1am",
        )
    ] + [PLASMA.format("Volna").replace("2560x1600", "5120x2880")],
    "lxqt-themes": [
        f"usr/share/lxqt/wallpapers/{name}"
        for name in (
            "Butterfly-*.jpg", "Valendas.png", "after-the-rain.jpg", "appleflower.png", "beam.png",
            "butterfly.png", "cloud.png", "drop.png", "flowers.png", "fog.jpg",
        )
    ],
    "palapeli-data": [f"{PUZZLES}/*.jpg"],
}  # fmt: skip
FROM_SCIKIT_IMAGE = {  # licences as its docstrings say
    "brick.png": "CC0",
    "grass.png": "CC0",
    "gravel.png": "CC0",
    "hubble_deep_field.jpg": "public domain",
    "retina.jpg": "CC0",
}


@frozen(kw_only=True)
class Photograph:
    """One photograph of the list.

    Attributes:
        file: its name in the folder.
        package: that ships it, with version.
        path: inside the package.
        author, licence: as the package states them; "" where it names no author.
        width, height: in pixels.
        fingerprint: of the file, as a store's index has it.
    """

    file: str
    package: str
    path: str
    author: str
    licence: str
    width: int
    height: int
    fingerprint: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Gather and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m longtake.experiments.photos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--packages", type=Path, help="folder of .deb files; default: fetched")
    args = parser.parse_args(arguments)
    try:
        photographs = gather(args.out, args.packages)
    except LongtakeError as error:
        print(f"photos: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{args.out}: {len(photographs)} photographs, listed in {LIST}")
    return 0


def gather(out: Path, packages: Path | None = None) -> list[Photograph]:
    """Copy the photographs into a folder, list them, and return the list, by file name.

    Args:
        out: the folder, made where missing; photographs of the same name are replaced.
        packages: a folder of `.deb` files of `PACKAGES`; None: they are fetched.

    Raises:
        UserError: a package cannot be had or lacks a photograph, or the disk refuses.
    """
    check_out_folder(out)
    found: list[Photograph] = []
    with tempfile.TemporaryDirectory() as scratch:
        fetched = packages or _fetch(Path(scratch) / "fetched")
        gathered = Path(scratch) / "gathered"  # nothing goes to `out` before all is there
        gathered.mkdir()
        for package, patterns in PACKAGES.items():
            deb = _deb(fetched, package)
            root = Path(scratch) / package
            _run(["dpkg-deb", "-x", str(deb), str(root)])
            found += _from_debian(gathered, root, package, _version(deb), patterns)
        found += _from_scikit_image(gathered)
        found.sort(key=lambda photograph: photograph.file)
        out.mkdir(parents=True, exist_ok=True)
        for photograph in found:
            with whole_file(out / photograph.file) as part:
                shutil.copyfile(gathered / photograph.file, part)
    write_json(out / LIST, {"photographs": [attrs.asdict(one) for one in found]})
    return found


def read_photographs(folder: Path) -> list[Photograph]:
    """Return the list of a folder that `gather` filled.

    Raises:
        UserError: there is none, or it is damaged.
    """
    entries = read_object(folder / LIST, WHAT, "photographs")["photographs"]
    try:
        return [Photograph(**entry) for entry in entries]
    except TypeError as error:
        raise UserError(f"{folder / LIST} is no {WHAT}: {error}") from None


def _fetch(folder: Path) -> Path:
    folder.mkdir()
    for package in PACKAGES:
        _run(["apt-get", "download", package], folder)
    return folder


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not here: this needs Debian, or a system like it"
        ) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{' '.join(command)} failed: {said}")


def _deb(folder: Path, package: str) -> Path:
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        raise UserError(f"{folder} holds no {package}_*.deb")
    return found[-1]


def _version(deb: Path) -> str:
    return deb.name.split("_")[1].replace("%3a", ":")


def _from_debian(
    out: Path, root: Path, package: str, version: str, patterns: Sequence[str]
) -> Iterator[Photograph]:
    copyrights = root / "usr/share/doc" / package / "copyright"
    try:
        stanzas = read_stanzas(copyrights.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{package} {version} states no licences: {copyrights.name} is not there "
                        "or no text") from None  # fmt: skip
    for pattern in patterns:
        paths = sorted(root.glob(pattern))
        if not paths:
            raise UserError(f"{package} {version} has no {pattern}: another version than was known")
        for path in paths:
            author, licence = stated_beside(path) or stated_in(stanzas, path)
            inside = path.relative_to(root).as_posix()
            name = path.parents[2].name if "contents/images" in inside else path.stem
            target = out / f"{name.replace(' ', '_')}{path.suffix}"
            yield _copy(path, target, f"{package} {version}", inside, author, licence)


def _from_scikit_image(out: Path) -> Iterator[Photograph]:
    try:
        version = metadata.version("scikit-image")
    except metadata.PackageNotFoundError:
        raise UserError("scikit-image is not here: pip install scikit-image") from None
    for name, licence in FROM_SCIKIT_IMAGE.items():
        with resources.as_file(resources.files("skimage") / "data" / name) as path:
            if not path.is_file():
                raise UserError(f"scikit-image {version} has no {name}")
            inside = f"skimage/data/{name}"
            yield _copy(path, out / name, f"scikit-image {version}", inside, "", licence)


def _copy(
    path: Path, target: Path, package: str, inside: str, author: str, licence: str
) -> Photograph:
    width, height = open_photo(path).size
    shutil.copyfile(path, target)
    return Photograph(
        file=target.name, package=package, path=inside, author=author, licence=licence,
        width=width, height=height, fingerprint=fingerprint(target),
    )  # fmt: skip


Stanza = tuple[tuple[str, ...], str, str]  # patterns of files, holders, licence


def read_stanzas(text: str) -> list[Stanza]:
    """Return which files a Debian copyright file (DEP-5) speaks of, their holders and licences."""
    stanzas: list[Stanza] = []
    for block in re.split(r"\n\s*\n", text):
        fields = {
            key: " ".join(value.split())
            for key, value in re.findall(r"^(\S+?):[ \t]*(.*(?:\n[ \t].*)*)", block, re.MULTILINE)
        }
        if "Files" in fields:
            licence = fields.get("License", "").split(" ")[0]
            stanzas.append((tuple(fields["Files"].split()), fields.get("Copyright", ""), licence))
    return stanzas


def stated_in(stanzas: Sequence[Stanza], path: Path) -> tuple[str, str]:
    """Return holders and licence of a file: of the last stanza that names it, else of all files.

    Source packages have files in other folders than those they are installed to, so their names
    alone are compared.

    Raises:
        UserError: no stanza is about it.
    """
    named = [
        stanza
        for stanza in stanzas
        if any(fnmatch(path.name, Path(pattern).name) for pattern in stanza[0] if pattern != "*")
        and not any(Path(pattern).name == "*" for pattern in stanza[0])
    ]
    every = [stanza for stanza in stanzas if stanza[0] == ("*",)]
    if not named and not every:
        raise UserError(f"no licence is stated for {path.name}")
    _, holders, licence = (named or every)[-1]
    return holders, licence


def stated_beside(path: Path) -> tuple[str, str] | None:
    """Return author and licence that a file beside a picture states; None where there is none.

    Read are `metadata.json` of Plasma's wallpapers and `.desktop` of Palapeli's puzzles.
    """
    plasma, puzzle = path.parents[2] / "metadata.json", path.with_suffix(".desktop")
    if plasma.is_file():
        about = json.loads(plasma.read_text(encoding="utf-8"))["KPlugin"]
        authors = ", ".join(author["Name"] for author in about.get("Authors", []))
        return authors, about["License"]
    if puzzle.is_file():
        text = puzzle.read_text(encoding="utf-8")
        stated = dict(re.findall(r"^X-KDE-PluginInfo-(Author|License)=(.*)$", text, re.MULTILINE))
        return stated.get("Author", ""), stated["License"]
    return None


if __name__ == "__main__":
    sys.exit(main())
