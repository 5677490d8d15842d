"""The loss of the future by run: with memory, a window, nothing, and another clip's memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from longtake.core.data.store import Store
from longtake.core.measure.continuations import measure_continuations
from longtake.core.measure.prepare import MeasureSetup, evaluating
from longtake.core.measure.result import Interval
from longtake.core.train.checkpoint import load_run
from longtake.experiments import future
from longtake.experiments.future import MEMORY, NONE, OTHER, WAYS, WINDOW, claims, judge

from .small import make_store, small, small_finetune
from .test_export_verb import make_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("future")
    make_store(folder, small())
    make_run(folder / "own", small_finetune())
    make_run(folder / "fresh", small_finetune(seed=5))
    make_run(folder / "one", small(trains="lora"))
    return folder


def ask(place: Path, out: Path, *runs: str) -> dict[str, Any]:
    words = [run.replace("@", f"{place}/") for run in runs]
    assert future.main([*words, "--data", str(place / "store"), "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "future.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_runs_are_asked_for_the_same(place: Path, tmp_path: Path) -> None:
    """What `measure` says of a run it says, too; differences are paired, the same run has none."""
    found = ask(place, tmp_path / "a", "@own", "twin=@own/checkpoint-3", "@fresh", "stage-1=@one")
    assert [run["name"] for run in found["runs"]] == ["own", "twin", "fresh", "stage-1"]
    assert found["clips_measured"] == 3 and found["draws"] == 1
    assert found["runs"][0]["steps"] == found["runs"][1]["steps"] == 3
    assert found["runs"][3]["stage"] == 1
    for clip in found["clips"]:
        assert set(clip["losses"]["own"]) == set(WAYS)
        assert clip["losses"]["own"] == clip["losses"]["twin"] != clip["losses"]["fresh"]
    twin, fresh = found["above_first"]["twin"], found["above_first"]["fresh"]
    assert all(twin[way]["mean"] == twin[way]["low"] == 0 for way in WAYS)
    assert fresh[MEMORY]["mean"] == pytest.approx(
        found["loss"]["fresh"][MEMORY]["mean"] - found["loss"]["own"][MEMORY]["mean"]
    )
    own = found["loss"]["own"]
    assert found["above_memory"]["own"][OTHER]["mean"] == pytest.approx(
        own[OTHER]["mean"] - own[MEMORY]["mean"]
    )

    model = load_run(place / "own")
    setup = MeasureSetup.build(model, Store.open(place / "store"))
    finetune = model.experiment.finetune
    assert finetune is not None
    with evaluating(model):
        alone = list(measure_continuations(setup, finetune))
    assert [one.losses.true for one in alone] == [
        clip["losses"]["own"][MEMORY] for clip in found["clips"]
    ]
    assert all(one.window is None for one in alone)

    text = (tmp_path / "a" / "future.md").read_text(encoding="utf-8")
    assert "greater than that of own" in text and "3 clips of the 3" in text
    assert "**open**: own with memory is better than twin with its own, at equal steps" in text


def figure(low: float, high: float) -> Interval:
    return Interval(mean=(low + high) / 2, low=low, high=high, n=5)


def test_what_is_claimed_follows_from_intervals() -> None:
    assert judge(figure(0.1, 0.2)) == "holds" and judge(figure(-0.2, -0.1)) == "fails"
    assert judge(figure(-0.1, 0.2)) == judge(None) == "open"
    assert judge(evolve(figure(1.0, 1.0), low=None, high=None)) == "open"  # of one clip alone
    row: dict[str, Interval | None] = {
        WINDOW: figure(-1, 1), NONE: figure(1, 2), OTHER: None, MEMORY: figure(1, 2),
    }  # fmt: skip
    found = claims(["a", "b"], {"a": row, "b": row}, {"b": row}, {"b": False})
    assert [one["state"] for one in found] == ["open", "holds", "open"] * 2 + ["holds"]
    assert found[-1]["claim"].endswith("though not of equal steps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "told"),
    [
        (("@nothing",), "no such run"),
        (("@own", "@own"), "another run is called own; name it: NAME=RUN"),
        (("@one",), "is Stage I: one run of `longtake finetune` is wanted"),
        (("@own", "--window", "0"), "--window 0: 1 or more"),
        (("@own", "--draws", "0"), "--draws 0: 1 or more"),
        (("@own", "tiny-wan-2x2x2"), "are not those of"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, tmp_path: Path, runs: tuple[str, ...], told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [run.replace("@", f"{place}/") for run in runs]
    assert future.main([*words, "--data", str(place / "store"), "--out", str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_clips_that_are_too_short_are_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small_finetune()
    assert spec.finetune is not None
    long = evolve(spec, finetune=evolve(spec.finetune, past=(9.0, 9.0)))
    make_run(run := tmp_path / "long", long)
    code = future.main([str(run), "--data", str(place / "store"), "--out", str(tmp_path / "out")])
    assert code == 2 and "no clip has room for the shortest past and target" in (
        capsys.readouterr().err
    )
