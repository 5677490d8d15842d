"""A tiny memory that begins in closed form gives back what it saw before any training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attrs import evolve

from longtake.core.cache.cache import cache
from longtake.core.data.store import Store
from longtake.core.errors import UserError
from longtake.core.experiment import CacheSpec
from longtake.core.train.checkpoint import load_run
from longtake.core.values.grid import Rate
from longtake.core.video.builtin_clip import write_builtin_clip
from longtake.experiments import closed_form
from longtake.experiments.closed_form import Subject, begin, mean_loss, places, write
from longtake.experiments.tiny import TINY_WAN_2X2X2, TINY_WAN_WITHOUT_LR
from longtake.plugins.compressors.specs import Conv

EXPERIMENT = evolve(TINY_WAN_2X2X2, cache=CacheSpec(area=96 * 160, pixels=False, mirror=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("closed-form")
    (root / "videos").mkdir()
    write_builtin_clip(root / "videos" / "clip.mp4", 14.0, 8, 96, 160)
    rates = frozenset({Rate(height=2, width=2, time=2)})
    device = torch.device("cpu")
    cache(EXPERIMENT, root / "videos", root / "store", rates=rates, pixels=False, device=device)
    return Store.open(root / "store")


@pytest.fixture(scope="module")
def begun(store: Store) -> Subject:
    return begin(EXPERIMENT, store, 6)


@pytest.mark.slow
def test_it_gives_back_most_of_what_it_saw(begun: Subject) -> None:
    loss, zero = mean_loss(begun)
    assert loss < 0.15 * zero


@pytest.mark.slow
def test_a_run_is_written_that_loads_to_the_same_weights(
    begun: Subject, store: Store, tmp_path: Path
) -> None:
    write(begun, EXPERIMENT, store, tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    for mine, theirs in (
        (begun.model.backbone, loaded.backbone),
        (begun.model.encoder, loaded.encoder),
    ):
        wanted = theirs.state_dict()
        assert all(torch.equal(x, wanted[name]) for name, x in mine.state_dict().items())


@pytest.mark.parametrize("text", ["2x2x2", "4x4x2"])
def test_every_patch_of_a_cell_has_a_corner_of_its_own(text: str) -> None:
    rate = Rate.parse(text)
    found = places(rate)
    assert len({place.corner for place in found}) == rate.time * rate.height * rate.width
    # rows and columns: from a patch's centre to its cell's
    for place in found:
        _, row, column = place.indices
        assert place.corner[1] == (rate.height - 1) / 2 - row
        assert place.corner[2] == (rate.width - 1) / 2 - column


@pytest.mark.parametrize(
    ("name", "said"),
    [("without-lr", "with lr, hr"), ("rate", "cannot be dealt out"), ("shared", "memory_time 0")],
)
def test_what_has_no_closed_form_is_refused(name: str, said: str, store: Store) -> None:
    wrong = {
        "without-lr": evolve(EXPERIMENT, compressors=TINY_WAN_WITHOUT_LR.compressors),
        "rate": evolve(EXPERIMENT, compressors=(Conv(rate=Rate.parse("2x2x4")),)),
        "shared": evolve(EXPERIMENT, backbone=evolve(EXPERIMENT.backbone, memory_time=None)),
    }[name]
    with pytest.raises(UserError, match=said):
        Subject.of(wrong, store, 1)


def test_bad_words_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["tiny-wan-2x2x2", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert closed_form.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
