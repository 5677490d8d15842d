"""Table 1: rows under one budget, resumable, with claims that can fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from longtake.core.bench import random_history
from longtake.core.config import SpecError
from longtake.core.measure.result import interval
from longtake.core.model import build_model
from longtake.core.video.builtin_clip import write_builtin_clip
from longtake.experiments.table1 import __main__ as table1
from longtake.experiments.table1.page import (
    FAILS,
    HOLDS,
    MISSING,
    OPEN,
    TableLine,
    claims,
    make_line,
    markdown,
    mean_over_clips,
    paired_difference,
    seed_deviation,
    state_of,
)
from longtake.experiments.table1.plots import by_age, by_length
from longtake.experiments.table1.rows import (
    BUDGETS,
    FULL,
    SMALL,
    TableRow,
    backbone,
    paper_rows,
    rows,
    user_row,
)
from longtake.experiments.table1.work import encoder_cost, reader
from longtake.plugins.compressors.specs import Conv, Pool, Window

from .small import RATE, small
from .test_tutorial import tutorial

ROWS = "proposed-4x4x2,fixed-last-4x4x2"


def row(name: str) -> TableRow:
    return TableRow(name=name, title=name, compressor=Pool())


def made(
    seed: int,
    values: Mapping[str, float],
    ages: tuple[float, ...] = (1.0,),
    swapped: float | None = 0.0,
    specific: float | None = 0.1,
) -> dict[str, Any]:
    """What `work` writes, of clips whose PSNR is given."""
    clips = [
        {
            "id": clip, "gain": 0.5, "foreign": 0.1, "specific": specific, "tokens": 7,
            "unmasked": {"flow": {"psnr": value}, "ceiling": {"psnr": 30.0},
                         "mean-frame": {"psnr": 10.0}},
            "masked": {"flow": {"psnr": value + 1}}, "same": {"flow": {"psnr": value - 1}},
            "swapped": None if swapped is None else {"psnr": value - swapped},
            "ages": {f"{k}": {"psnr": value} for k, value in enumerate(ages)},
        }
        for clip, value in values.items()
    ]  # fmt: skip
    bins = [
        {"start": float(k), "end": k + 1.0, "figures": {"psnr": {"mean": value}}}
        for k, value in enumerate(ages)
    ]
    kinds = {"ceiling": "ceiling", "flow": "learned", "mean-frame": "floor"}
    cost = {"parameters": 5, "gflop": 0.1, "latents": 3}
    return {
        "seed": seed, "main": "flow", "metrics": ["psnr"], "missing": {}, "kinds": kinds,
        "clips": clips, "ages": {"flow": bins}, "cost": cost,
    }  # fmt: skip


def line(name: str, *runs: dict[str, Any]) -> TableLine:
    return make_line(row(name), runs)


def test_a_line_holds_every_seed_of_every_clip() -> None:
    found = line("a", made(0, {"x": 10.0, "y": 20.0}), made(1, {"x": 12.0, "y": 20.0}))
    assert found.clips["psnr"] == {0: {"x": 10.0, "y": 20.0}, 1: {"x": 12.0, "y": 20.0}}
    told = mean_over_clips(found.clips["psnr"])
    assert told is not None and (told.mean, told.n) == (15.5, 2)
    assert mean_over_clips(paired_difference(found.masked["psnr"], found.same["psnr"])).mean == 2.0  # type: ignore
    assert seed_deviation(found.clips["psnr"]) == pytest.approx(2**-0.5)  # of means 15 and 16
    assert seed_deviation(line("b", made(0, {"x": 1.0})).clips["psnr"]) is None
    assert found.tokens == 7


def test_seeds_that_differ_widen_the_interval() -> None:
    values = {"x": 10.0, "y": 12.0, "z": 11.0}
    alike = line("a", made(0, values), made(1, values))
    apart = line("a", made(0, values), made(1, {k: v + 4 for k, v in values.items()}))
    one, two = (mean_over_clips(found.clips["psnr"]) for found in (alike, apart))
    assert one is not None and two is not None
    assert two.high - two.low > 2 * (one.high - one.low)  # type: ignore[operator]
    single = line("a", made(0, values))
    assert mean_over_clips(single.clips["psnr"]) == interval(list(values.values()))


def test_lines_are_compared_by_seed_and_clip() -> None:
    better = line("a", made(0, {"x": 11.0, "y": 31.0}), made(1, {"x": 99.0, "y": 99.0}))
    worse = line("b", made(0, {"y": 30.0, "x": 10.0, "z": 0.0}))
    found = mean_over_clips(paired_difference(better.clips["psnr"], worse.clips["psnr"]))
    assert found is not None and (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_oldest_quarter_is_the_end_of_the_ages() -> None:
    found = line("a", made(0, {"x": 1.0}, ages=(4.0, 3.0, 2.0, 1.0)))
    assert found.old == {0: {"x": 1.0}}


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
    told = claims({better.row.name: better, worse.row.name: worse}, "psnr")
    own = [claim for claim in told if claim.text.startswith("proposed-4x4x2 above only-lr")]
    assert [claim.state for claim in own] == [state]
    assert MISSING in {claim.state for claim in told}  # the rows that are not there


@pytest.mark.parametrize(
    ("old", "state"), [((1.0, 2.0), HOLDS), ((3.0, 4.0), FAILS), ((1.0, 4.0), OPEN)]
)
def test_the_control_is_judged_by_old_frames(old: tuple[float, float], state: str) -> None:
    def of(name: str, *last: float) -> TableLine:
        runs = [made(0, {f"{k}": 9.0}, ages=(5.0, 4.0, 3.0, x)) for k, x in enumerate(last)]
        whole = {**runs[0], "clips": [run["clips"][0] for run in runs]}
        return line(name, whole)

    ours, control = of("proposed-4x4x2", 2.5, 2.5), of("fixed-last-4x4x2", *old)
    told = claims({ours.row.name: ours, control.row.name: control}, "psnr")
    assert [c.state for c in told if "fixed last" in c.text] == [state]


@pytest.mark.parametrize(
    ("swapped", "specific", "state"),
    [(2.0, 0.1, HOLDS), (0.0, 0.0, OPEN), (-2.0, -0.1, FAILS), (None, None, MISSING)],
)
def test_a_memory_that_another_clips_replaces_is_found_out(
    swapped: float | None, specific: float | None, state: str
) -> None:
    own = line("a", made(0, {"x": 9.0, "y": 8.0}, swapped=swapped, specific=specific))
    told = [claim for claim in claims({"a": own}, "psnr") if "another clip's" in claim.text]
    assert [claim.state for claim in told] == [state, state]
    assert state_of(None) == MISSING


@pytest.mark.parametrize(
    ("values", "state", "text"),
    [
        ((11.0, 12.0), HOLDS, "a above the mean frame: +1.50"),
        ((9.0, 8.0), FAILS, "a above the mean frame: -1.50"),
        ((9.0, 12.0), OPEN, "a above the mean frame: +0.50"),
    ],
)
def test_every_row_tells_its_distance_to_the_mean_frame(
    values: tuple[float, float], state: str, text: str
) -> None:
    own = line("a", made(0, dict(zip("xy", values, strict=True))))
    assert own.over == {0: {"x": values[0] - 10.0, "y": values[1] - 10.0}}
    told = [claim for claim in claims({"a": own}, "psnr") if "mean frame" in claim.text]
    assert [claim.state for claim in told] == [state] and told[0].text.startswith(text)
    head, _, cells = (line.split(" | ") for line in markdown([own], {}, SMALL, {}).splitlines()[:3])
    assert cells[head.index("over the mean frame")].startswith(text.split(": ")[1])


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=lambda found: found.name)
def test_every_row_gets_the_same_budget(budget: Any) -> None:
    found = rows(budget.backbone.geometry, budget.history)
    experiments = [budget.experiment(one, 1) for one in found]
    assert len({experiment.train for experiment in experiments}) == 1
    assert len({experiment.backbone for experiment in experiments}) == 1
    assert len({one.name for one in found}) == len(found) == 11
    assert [e.masker.where for e in experiments].count("last") == 1


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=lambda found: found.name)
def test_the_shared_dit_reads_every_latent_uncompressed(budget: Any) -> None:
    found = reader(budget)
    (window,) = found.compressors
    longest = found.backbone.geometry.latents(found.backbone.geometry.frames(20.0))
    assert isinstance(window, Window) and window.latents >= longest
    assert found.masker.clean == 1.0 and found.train.trains == "all"
    assert found.cache == budget.cache and found.train.seed == 0


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=lambda found: found.name)
def test_another_backbone_carries_all_rows_and_the_shared_dit(budget: Any) -> None:
    dit = backbone('{"type": "tiny-hunyuan", "fps": 4.0}')
    other = attrs.evolve(budget, dit=dit)
    made = other.experiment(row("proposed-4x4x2"), 0)
    assert made.backbone == reader(other).backbone == other.backbone == dit
    own = budget.experiment(row("proposed-4x4x2"), 0)
    assert attrs.evolve(made, backbone=own.backbone, train=own.train) == own
    assert made.train.steps == own.train.steps and made.train.batch == own.train.batch
    with pytest.raises(SpecError, match="unknown backbone 'tiny-hunyan'.*tiny-hunyuan"):
        backbone("tiny-hunyan")


@pytest.mark.parametrize("budget", [FULL, SMALL], ids=lambda found: found.name)
def test_peers_are_matched_to_the_context_of_the_paper_row(budget: Any) -> None:
    shapes, size = budget.backbone.geometry, budget.history
    tokens = {one.name: one.tokens(shapes, size).tokens for one in rows(shapes, size)}
    wanted = tokens["proposed-2x2x2"]
    assert tokens["pool-2x2x2"] == tokens["merge-2x2x2"] == wanted
    assert tokens["patchifier-4x4x2"] == tokens["proposed-4x4x2"]
    cells = (-(-size.height // shapes.patch.height), -(-size.width // shapes.patch.width))
    frame = cells[0] * cells[1]  # tokens of one latent: a window cannot hold less
    assert wanted - frame < tokens["window"] <= wanted


def test_the_page_shows_the_papers_figures_beside_ours() -> None:
    first = paper_rows()[3]
    paces = {"proposed-4x4x2": 0.002, "pool": 0.001}
    text = markdown([make_line(first, [made(0, {"x": 15.0})])], {}, SMALL, paces)
    assert "| Proposed 4×4×2 | 7 | 15.00 |" in text
    assert "| 2.0 (1.00×) |" in text
    assert "17.41 / 0.596 / 0.171" in text
    assert "not measured" in text  # LPIPS


def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    two = [line(name, made(0, {"x": 10.0, "y": 12.0}, ages=(1.0, 2.0))) for name in ("a", "b")]
    by_length(tmp_path / "length.png", two, {"mean-frame": interval([9.0])})
    by_age(tmp_path / "age.png", two)
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_compressor_of_ones_own_is_a_row_by_name() -> None:
    assert user_row("pool").compressor == Pool()
    found = user_row('{"type": "pool", "rate": "2x2x2", "name": "pool-2"}')
    assert (found.name, str(found.compressor.rate)) == ("pool-2", "2x2x2")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rows", "nonesuch"], "unknown row 'nonesuch'; known: "),
        (["--backbone", "nonesuch"], "unknown backbone 'nonesuch'"),
        (["--backbone", "{"], "--backbone {: no JSON"),
        (["--add", "nonesuch"], "nonesuch"),
        (["--add", "{"], "no JSON"),
        (["--add", '{"rate": "4x4x2"}'], '"type"'),
        (["--add", '{"type": "pool", "name": "a/b"}'], "name"),
        (["--add", '{"type": "pool", "name": "window"}'], "a row has that name"),
        (["--seeds", "one"], "whole numbers"),
        (["--seeds=-1"], "whole numbers from 0"),
        (["--seeds", str(2**62)], "whole numbers from 0"),
        (["--rows", " , "], "names none; known: patchifier-4x4x2, "),
        (["--rows", ""], "names none"),
        (["--minutes", "0"], "--minutes 0: a number above 0"),
        (["--minutes", "nan"], "--minutes nan"),
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
def test_rows_on_tiny_wan_begin_in_closed_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        (tmp_path / "videos" / split).mkdir(parents=True)
        write_builtin_clip(tmp_path / "videos" / split / "clip.mp4", 12.0, 8, 96, 160)
    little = attrs.evolve(
        SMALL, area=96 * 160, batches=4, steps=1, seeds=(0,), measured=4.0, seconds=(4.0, 8.0)
    )
    monkeypatch.setitem(BUDGETS, "small", little)
    out = tmp_path / "table"
    given = ["--out", str(out), "--videos", str(tmp_path / "videos"), "--budget", "small"]
    assert table1.main([*given, "--rows", "without-lr-4x4x2,pool-2x2x2"]) == 0
    for name in ("without-lr-4x4x2", "pool-2x2x2"):
        spec = json.loads((out / "runs" / f"{name}-0" / "spec.json").read_text())
        weights = Path(spec["experiment"]["backbone"]["weights"])
        assert weights.parts[-4:-2] == ("starts", f"{name}-0")  # a DiT of its own
        found = json.loads((out / "measured" / f"{name}-0.json").read_text())
        assert found["closed form"]["batches"] == 4 and found["training"]["steps"] == 1
    assert "begun in closed form" in (out / "table1.md").read_text()


@pytest.mark.slow
def test_the_tiny_table_runs_resumes_and_tells_its_rows_apart(
    tmp_path: Path,
    own_registry: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "table"
    given = ["--out", str(out), "--budget", "tiny", "--rows", ROWS, "--seeds", "0"]
    own = ["--add", '{"type": "pool", "name": "mine", "rate": "2x2x2"}']
    assert table1.main([*given, *own]) == 0
    found = json.loads((out / "table1.json").read_text())
    assert [one["row"] for one in found["rows"]] == [*ROWS.split(","), "mine"]
    assert all(len(one["clips"]["psnr"]["0"]) == 2 for one in found["rows"])
    assert set(found["encoder_seconds"]) == {*ROWS.split(","), "mine"}
    assert {one["swapped"]["psnr"]["0"] != {} for one in found["rows"]} == {True}
    for name in ("table1.md", "by_length.png", "by_age.png", "strips.png"):
        assert (out / name).stat().st_size > 0
    spec = json.loads((out / "runs" / "mine-0" / "spec.json").read_text())
    assert Path(spec["experiment"]["backbone"]["weights"]).parts[-3] == "reader"
    assert (out / "reader" / "checkpoint-1" / "backbone").is_dir()
    before = {path: path.stat().st_mtime_ns for path in (out / "measured").iterdir()}
    named = [f"{ROWS},mine" if x == ROWS else x for x in given]  # rows may name an added one, too
    assert table1.main([*named, *own]) == 0
    assert [one["row"] for one in json.loads((out / "table1.json").read_text())["rows"]] == [
        *ROWS.split(","), "mine",
    ]  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in (out / "measured").iterdir()} == before
    less = ["--out", str(out), "--budget", "tiny", "--rows", ROWS.split(",")[0], "--seeds", "0"]
    assert table1.main([*less, "--add", str(tutorial(tmp_path))]) == 0
    found = json.loads((out / "table1.json").read_text())["rows"]
    by_name = {one["row"]: one for one in found}
    assert by_name.keys() == {*ROWS.split(","), "mine", "moments"}, "other calls' rows stay"
    assert by_name["moments"]["compressor"] == {"type": "moments", "rate": "4x4x2"}
    assert by_name["moments"]["cost"]["parameters"] > 0
    moved = out.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)  # the folder has another name now, and is written as a relative path
    out, given = moved, ["--out", ".", *given[2:]]
    broken = moved / "videos" / "val" / "broken.mp4"
    broken.write_bytes(b"no video")
    capsys.readouterr()
    assert table1.main([*given, *own]) == 0
    (line,) = json.loads((out / "table1.json").read_text())["left_out"]
    assert line.startswith("val: not used: ") and "broken.mp4" in line
    assert "broken.mp4" in capsys.readouterr().err
    assert f"- left out: {line}" in (out / "table1.md").read_text()
    path = out / "measured" / "mine-0.json"
    other = json.loads(path.read_text())
    other["spec"]["train"]["steps"] = 9
    path.write_text(json.dumps(other))
    assert table1.main([*given, *own]) == 2  # results of another budget are not taken for ours
    assert "(train.steps was 9, is 2)" in capsys.readouterr().err
    path.write_text(json.dumps({"row": 1}))
    assert table1.main([*given, *own]) == 2
    assert "mine-0.json is no result of one run of a table: it lacks" in capsys.readouterr().err


def test_the_operations_of_attention_are_counted() -> None:
    """Beyond what convolutions take, which is linear in the length of the history."""

    def bend(attention: str) -> float:
        spec = Conv(rate=RATE, channels=(4, 6), heads=2, head_width=4, attention=attention)
        model = build_model(attrs.evolve(small(), compressors=(spec,)))
        at = [
            encoder_cost(model, random_history(model.experiment, s))["gflop"]
            for s in (0.5, 4.5, 8.5)
        ]
        return at[2] - 2 * at[1] + at[0]

    assert bend("none") == pytest.approx(0.0, abs=1e-9)
    assert bend("full") > 1e-6
