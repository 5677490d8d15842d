"""Photographs that packages ship: gathered, and listed with the licence that each states."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from longtake.core.cache.cache import cache
from longtake.core.data.store import Store
from longtake.core.errors import UserError
from longtake.core.experiment import FilmSpec
from longtake.experiments import photos
from longtake.experiments.photos import gather, read_photographs, read_stanzas, stated_in
from longtake.experiments.ship import listed_photographs

from .small import small

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: pictures

Files: *
Copyright: 2010, The Team
License: GPL-2+

Files: 16.04/lake.jpg
 16.04/sea_*.jpg
Copyright: 2018, A. Walker
           2019, B. Runner
License: CC-BY-4.0

License: CC-BY-4.0
 Some words: and more.
 .
 Files: of no importance
"""
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (60, 90, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)


def test_each_file_has_the_licence_that_names_it() -> None:
    stanzas = read_stanzas(COPYRIGHT)
    walkers = ("2018, A. Walker 2019, B. Runner", "CC-BY-4.0")
    assert stated_in(stanzas, Path("usr/share/backgrounds/lake.jpg")) == walkers
    assert stated_in(stanzas, Path("x/sea_two.jpg")) == walkers
    assert stated_in(stanzas, Path("x/hill.jpg")) == ("2010, The Team", "GPL-2+")
    with pytest.raises(UserError, match=r"no licence is stated for hill\.jpg"):
        stated_in(stanzas[1:], Path("x/hill.jpg"))


def package(folder: Path, name: str, version: str) -> None:
    """A .deb with pictures and their licences as three programs state them."""
    root = folder / name
    picture(root / "usr/share/backgrounds/lake.jpg", 1)
    plasma = root / "usr/share/wallpapers/Beach"
    picture(plasma / "contents/images/2560x1600.jpg", 2)
    about = {"KPlugin": {"Authors": [{"Name": "C"}, {"Name": "D"}], "License": "LGPLv3"}}
    (plasma / "metadata.json").write_text(json.dumps(about))
    picture(root / "usr/share/puzzles/castle.jpg", 3)
    puzzle = "X-KDE-PluginInfo-Author=E\nX-KDE-PluginInfo-License=FDL\n"
    (root / "usr/share/puzzles/castle.desktop").write_text(puzzle)
    doc = root / "usr/share/doc" / name
    doc.mkdir(parents=True)
    (doc / "copyright").write_text(COPYRIGHT)
    (root / "DEBIAN").mkdir()
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@x>\n"
    (root / "DEBIAN/control").write_text(control + "Description: pictures\n")
    deb = folder / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(root), str(deb)], check=True, capture_output=True)
    shutil.rmtree(root)


@needs_dpkg
def test_photographs_are_gathered_listed_and_named_beside_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["usr/share/backgrounds/*.jpg", "usr/share/wallpapers/*/contents/images/*.jpg"]
    monkeypatch.setattr(photos, "PACKAGES", {"some": [*wanted, "usr/share/puzzles/*.jpg"]})
    (tmp_path / "debs").mkdir()
    package(tmp_path / "debs", "some", "1.2-3")
    out = tmp_path / "photos"
    found = gather(out, tmp_path / "debs")
    assert found == read_photographs(out)
    by_file = {one.file: one for one in found}
    assert set(by_file) == {"lake.jpg", "Beach.jpg", "castle.jpg", *photos.FROM_SCIKIT_IMAGE}
    assert all((out / name).is_file() for name in by_file)
    stated = {name: (one.author, one.licence, one.package) for name, one in by_file.items()}
    assert stated["Beach.jpg"] == ("C, D", "LGPLv3", "some 1.2-3")
    assert stated["castle.jpg"] == ("E", "FDL", "some 1.2-3")
    assert stated["lake.jpg"][1] == "CC-BY-4.0" and stated["brick.png"][1] == "CC0"

    for name in photos.FROM_SCIKIT_IMAGE:
        (out / name).unlink()
    film = FilmSpec(clips=1, seconds=2.5, photos=1)
    experiment = small()
    experiment = attrs.evolve(experiment, cache=attrs.evolve(experiment.cache, film=film))
    how = {"rates": frozenset(), "pixels": False, "device": torch.device("cpu")}
    cache(experiment, None, tmp_path / "store", photos=out, **how)
    records = Store.open(tmp_path / "store").records
    listed = listed_photographs(records, out)
    assert [one["file"] for one in listed] == ["Beach.jpg", "castle.jpg", "lake.jpg"]
    assert {one["licence"] for one in listed} == {"LGPLv3", "FDL", "CC-BY-4.0"}
    assert listed_photographs([], None) == []
    with pytest.raises(UserError, match="by --photos"):
        listed_photographs(records, None)
    picture(out / "new.jpg", 9)
    cache(experiment, None, tmp_path / "store", photos=out, **how)
    with pytest.raises(UserError, match=r"does not list new\.jpg"):
        listed_photographs(Store.open(tmp_path / "store").records, out)
    monkeypatch.setattr(photos, "PACKAGES", {"some": ["usr/share/none/*.jpg"]})
    with pytest.raises(UserError, match="another version than was known"):
        gather(out, tmp_path / "debs")
    with pytest.raises(UserError, match=r"holds no some_\*\.deb"):
        gather(out, out)


@needs_dpkg
def test_nothing_is_gathered_where_a_package_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "PACKAGES", {"some": ["usr/share/puzzles/*.jpg"], "bare": ["*"]})
    (tmp_path / "debs").mkdir()
    package(tmp_path / "debs", "some", "1")
    root = tmp_path / "debs" / "bare"
    (root / "DEBIAN").mkdir(parents=True)
    control = "Package: bare\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\n"
    (root / "DEBIAN/control").write_text(control + "Description: nothing\n")
    deb = tmp_path / "debs" / "bare_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(root), str(deb)], check=True, capture_output=True)
    with pytest.raises(UserError, match="bare 1 states no licences"):
        gather(tmp_path / "photos", tmp_path / "debs")
    assert not (tmp_path / "photos").exists()
