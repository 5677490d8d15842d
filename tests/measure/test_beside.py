"""Measures side by side: the same clips only, floors once, and files that are refused."""

from __future__ import annotations

import json

import attrs
import pytest

from longtake.core.errors import UserError
from longtake.core.measure.compare import compare_rates, parse_measure, read_measure
from longtake.core.measure.verdict import as_data
from longtake.core.pages.charts import has_lengths, rate_chart, rate_legend
from longtake.core.pages.report import Page, render
from longtake.core.tools.files import write_json

pytestmark = pytest.mark.slow  # three measures are made first


@pytest.fixture(scope="module")
def other(result):
    """A measure at another rate: clips a, b and c only, half the tokens, flow 1 dB lower."""
    data = json.loads(json.dumps(as_data(result)))
    data |= {"experiment": "other", "run": "runs/y", "rates": ["4x4x2"]}
    data["clips"] = data["clips"][:3]
    for clip in data["clips"]:
        clip["tokens"] //= 2
        clip["unmasked"]["flow"]["psnr"] -= 1.0
        clip["unmasked"]["upsample"]["psnr"] -= 2.0
    return data


@pytest.fixture(scope="module")
def rates(result, other):
    return compare_rates(result, [parse_measure(other)])


def test_only_clips_that_all_hold_are_compared(result, rates):
    assert rates.clips == 3
    rows = {(row.label, row.name): row for row in rates.rows}
    mine, theirs = (rows[label, "flow"] for label in ("2×2×2", "4×4×2"))
    mean = sum(clip.unmasked["flow"]["psnr"] for clip in result.clips[:3]) / 3
    assert mine.figures["psnr"].mean == pytest.approx(mean) and mine.figures["psnr"].n == 3
    assert theirs.figures["psnr"].mean == pytest.approx(mean - 1)
    assert (mine.tokens, theirs.tokens) == (18, 9) and mine.own and not theirs.own


def test_what_is_alike_in_all_stands_once_and_floors_of_a_rate_twice(rates):
    names = [row.name for row in rates.rows]
    assert names.count("mean-frame") == names.count("ceiling") == names.count("snow") == 1
    assert names.count("upsample") == names.count("flow") == 2
    alike = [row for row in rates.rows if row.name in ("mean-frame", "ceiling")]
    assert all(row.tokens is None and row.label == "" for row in alike)


def test_the_chart_shows_both_lengths_and_lines_across(result, rates):
    assert has_lengths(rates) and not has_lengths(compare_rates(result))
    chart = str(rate_chart(rates, result.metrics[0]))
    for words in ("4×4×2", "2×2×2", ">9<", ">18<", "tokens of context"):
        assert words in chart
    assert "17.41" not in chart and "19.12" not in chart  # the paper's figures are not ours
    assert {entry.label for entry in rate_legend(rates)} == set(
        found.name for found in result.retrievals
    )


@pytest.mark.slow
def test_the_page_and_the_json_hold_them(result, rates):
    text = render(result, Page(rates=rates))
    assert (
        "Quality by rate" in text and "over the 3 clips" in text and '<th scope="row">all' in text
    )
    assert "Quality by rate" not in render(result, Page())
    data = json.loads(json.dumps(as_data(result, rates), allow_nan=False))
    assert data["by_rate"]["clips"] == 3 and len(data["by_rate"]["rows"]) == len(rates.rows)


def test_labels_tell_measures_apart(result, other):
    def labels(**changes):
        found = compare_rates(result, [parse_measure(other | changes)])
        return list(dict.fromkeys(row.label for row in found.rows if row.name == "flow"))

    assert labels() == ["2×2×2", "4×4×2"]
    assert labels(rates=["2x2x2"]) == ["tiny-test", "other"]
    assert labels(rates=["2x2x2"], experiment="tiny-test") == [
        "1. tiny-test (runs/x)", "2. tiny-test (runs/y)"
    ]  # fmt: skip


def test_a_metric_that_one_of_them_lacks_is_left_out_there(result, other):
    data = json.loads(json.dumps(other))
    for clip in data["clips"]:
        clip["unmasked"]["flow"]["ssim"] = None
    rows = {(r.label, r.name): r.figures for r in compare_rates(result, [parse_measure(data)]).rows}
    assert "ssim" not in rows["4×4×2", "flow"] and "ssim" in rows["2×2×2", "flow"]


def test_files_are_found_in_folders_and_older_ones_read(tmp_path, result, other):
    write_json(tmp_path / "run" / "measure" / "measure.json", other)
    write_json(tmp_path / "out" / "measure.json", other)
    sides = [
        read_measure(tmp_path / "run"),
        read_measure(tmp_path / "out"),
        read_measure(tmp_path / "out" / "measure.json"),
    ]
    assert sides[0] == sides[1] == sides[2] == parse_measure(other)
    old = {key: other[key] for key in ("experiment", "run", "clips", "retrievals", "metrics")}
    old |= {"asked": 2.0, "spec": {"compressors": [{"type": "conv", "rate": "2x2x4"}]}}
    for clip in old["clips"]:
        clip.pop("parts", None)
    assert parse_measure(old).rates == ("2x2x4",)
    assert compare_rates(result, [parse_measure(old)]).clips == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no measure.json"),
        ("{", "cannot be read"),
        ("[]", "no measure.json"),
        ('{"experiment": "x"}', "lacks run"),
        (
            '{"experiment": "x", "run": "", "clips": [{"id": 3}], "retrievals": [], "metrics": [],'
            ' "asked": 1}',
            "that this version reads",
        ),
    ],
)
def test_what_is_no_measure_is_one_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / "measure.json").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        read_measure(tmp_path)
    assert "\n" not in str(caught.value)


def test_measures_of_other_clips_cannot_stand_beside(result, other):
    far = attrs.evolve(parse_measure(other), clips={("z", "4x8x12", 1.625): None})
    with pytest.raises(UserError, match="runs/y holds no clip of this one"):
        compare_rates(result, [far])
