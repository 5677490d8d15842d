"""Table 1: rows under one budget, resumable, with claims that can fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from longtake.core.fit import Length
from longtake.experiments import table1
from longtake.experiments.tables.budget import BUDGETS, FULL, SMALL
from longtake.experiments.tables.claims import FAILS, HOLDS, MISSING, OPEN, claims, state_of
from longtake.experiments.tables.figures import Line, line_of, oldest, paired
from longtake.experiments.tables.page import markdown
from longtake.experiments.tables.rows import Row, own_row, paper_rows, rows
from longtake.plugins.specs import Pool

ROWS = "proposed-4x4x2,fixed-last-4x4x2"


def row(name: str) -> Row:
    return Row(name=name, title=name, compressor=Pool())


def made(
    seed: int, values: Mapping[str, float], ages: tuple[float, ...] = (1.0,)
) -> dict[str, Any]:
    """What `work` writes, of clips whose PSNR is given."""
    clips = [
        {
            "id": clip, "gain": 0.5, "foreign": 0.1,
            "unmasked": {"flow": {"psnr": value}, "ceiling": {"psnr": 30.0}},
            "masked": {"flow": {"psnr": value + 1}},
        }
        for clip, value in values.items()
    ]  # fmt: skip
    bins = [
        {"start": float(k), "end": k + 1.0, "figures": {"psnr": {"mean": value}}}
        for k, value in enumerate(ages)
    ]
    kinds = {"ceiling": "ceiling", "flow": "learned"}
    cost = {"parameters": 5, "gflop": 0.1, "milliseconds": 1.0, "latents": 3}
    return {
        "seed": seed, "main": "flow", "metrics": ["psnr"], "missing": {}, "kinds": kinds,
        "clips": clips, "ages": {"flow": bins}, "cost": cost,
    }  # fmt: skip


def line(name: str, *runs: dict[str, Any]) -> Line:
    return line_of(row(name), runs, Length(tokens=7))


def test_a_line_is_the_mean_over_seeds_of_each_clip() -> None:
    found = line("a", made(0, {"x": 10.0, "y": 20.0}), made(1, {"x": 12.0, "y": 20.0}))
    assert found.clips["psnr"] == {"x": 11.0, "y": 20.0}
    assert found.figures["psnr"].mean == 15.5
    assert found.figures["psnr"].n == 2
    assert found.masked["psnr"].mean == 16.5
    assert found.spread["psnr"] == pytest.approx(2**-0.5)  # of means 15 and 16
    assert line("b", made(0, {"x": 1.0})).spread["psnr"] is None


def test_lines_are_compared_clip_by_clip() -> None:
    better = line("a", made(0, {"x": 11.0, "y": 31.0}))
    worse = line("b", made(0, {"y": 30.0, "x": 10.0}))
    found = paired(better, worse, "psnr")
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_oldest_quarter_is_the_end_of_the_ages() -> None:
    found = line("a", made(0, {"x": 1.0}, ages=(4.0, 3.0, 2.0, 1.0)))
    assert oldest(found) == 1.0


@pytest.mark.parametrize(
    ("ours", "theirs", "state"),
    [
        ({"x": 11.0, "y": 12.0}, {"x": 10.0, "y": 10.0}, HOLDS),
        ({"x": 9.0, "y": 8.0}, {"x": 10.0, "y": 10.0}, FAILS),
        ({"x": 9.0, "y": 11.0}, {"x": 10.0, "y": 10.0}, OPEN),
    ],
)
def test_a_claim_can_hold_fail_and_stay_open(
    ours: dict[str, float], theirs: dict[str, float], state: str
) -> None:
    better, worse = line("proposed-4x4x2", made(0, ours)), line("only-lr-4x4x2", made(0, theirs))
    assert state_of(paired(better, worse, "psnr")) == state
    told = claims({better.row.name: better, worse.row.name: worse}, "psnr")
    own = [claim for claim in told if claim.text.startswith("proposed-4x4x2 above only-lr")]
    assert [claim.state for claim in own] == [state]
    assert MISSING in {claim.state for claim in told}  # the rows that are not there


def test_the_control_fails_where_it_is_better_on_old_frames() -> None:
    ours = line("proposed-4x4x2", made(0, {"x": 1.0}, ages=(5.0, 4.0, 3.0, 2.0)))
    for old, state in ((1.0, HOLDS), (3.0, FAILS)):
        control = line("fixed-last-4x4x2", made(0, {"x": 1.0}, ages=(9.0, 4.0, 3.0, old)))
        told = claims({ours.row.name: ours, control.row.name: control}, "psnr")
        assert [c.state for c in told if "fixed last" in c.text] == [state]


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=lambda found: found.name)
def test_every_row_gets_the_same_budget(budget: Any) -> None:
    found = rows(budget.backbone.geometry, budget.history)
    experiments = [budget.experiment(one, 1) for one in found]
    assert len({experiment.train for experiment in experiments}) == 1
    assert len({experiment.backbone for experiment in experiments}) == 1
    assert len({one.name for one in found}) == len(found) == 11
    assert [e.masker.where for e in experiments].count("last") == 1


@pytest.mark.parametrize("budget", [FULL, SMALL], ids=lambda found: found.name)
def test_peers_are_matched_to_the_context_of_the_paper_row(budget: Any) -> None:
    shapes, size = budget.backbone.geometry, budget.history
    tokens = {one.name: one.tokens(shapes, size).tokens for one in rows(shapes, size)}
    wanted = tokens["proposed-4x4x2"]
    assert tokens["pool"] == tokens["patchifier-4x4x2"] == wanted
    assert tokens["merge"] <= wanted
    frame = 8 * 14  # tokens of one latent: a window cannot hold less
    assert wanted <= tokens["window"] <= max(wanted, frame) + frame


def test_the_page_shows_the_papers_figures_beside_ours() -> None:
    first = paper_rows()[3]
    text = markdown([line_of(first, [made(0, {"x": 15.0})], Length(tokens=88))], {}, SMALL)
    assert "| Proposed 4×4×2 | 88 | 15.00 |" in text
    assert "17.41 / 0.596 / 0.171" in text
    assert "not measured" in text  # LPIPS


def test_a_compressor_of_ones_own_is_a_row_by_name() -> None:
    assert own_row("pool").compressor == Pool()
    found = own_row('{"type": "pool", "rate": "2x2x2", "name": "pool-2"}')
    assert (found.name, str(found.compressor.rate)) == ("pool-2", "2x2x2")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rows", "nonesuch"], "unknown row 'nonesuch'; known: patchifier-4x4x2, "),
        (["--add", "nonesuch"], "nonesuch"),
        (["--add", "{"], "no JSON"),
        (["--add", '{"rate": "4x4x2"}'], '"type"'),
        (["--add", '{"type": "pool", "name": "a/b"}'], "name"),
        (["--add", "pool"], "a row has that name"),
        (["--seeds", "one"], "whole numbers"),
        (["--budget", "small"], "--videos"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos" / "train").mkdir(parents=True)
    (tmp_path / "videos" / "val").mkdir()
    given = [] if "--budget" in arguments else ["--videos", str(tmp_path / "videos")]
    assert table1.main(["--out", str(tmp_path / "out"), *given, *arguments]) == 2
    told = capsys.readouterr().err.strip()
    assert says in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_tiny_table_runs_resumes_and_tells_its_rows_apart(tmp_path: Path) -> None:
    out = tmp_path / "table"
    given = ["--out", str(out), "--budget", "tiny", "--rows", ROWS, "--seeds", "0"]
    own = ["--add", '{"type": "pool", "name": "mine", "rate": "2x2x2"}']
    assert table1.main([*given, *own]) == 0
    found = json.loads((out / "table1.json").read_text())
    assert [one["row"] for one in found["rows"]] == [*ROWS.split(","), "mine"]
    assert all(len(one["clips"]["psnr"]) == 2 for one in found["rows"])
    for name in ("table1.md", "by_length.png", "by_age.png", "strips.png"):
        assert (out / name).stat().st_size > 0
    before = {path: path.stat().st_mtime_ns for path in (out / "measured").iterdir()}
    assert table1.main([*given, *own]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "measured").iterdir()} == before
