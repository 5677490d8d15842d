"""`longtake measure`: what it writes, and bad options that end it before any work."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from longtake import __main__ as door
from longtake.core.cli import measure as verb
from longtake.core.cli import options
from longtake.core.measure import measure as measuring
from longtake.core.measure.verdict import as_data
from longtake.core.registry import registry
from longtake.core.train import checkpoint


@pytest.fixture
def quick(monkeypatch, model, result, measure_setup):
    """The verb with the loaded model and the result at hand."""

    def measured(setup, **_):
        setup.retrieved.update(measure_setup.retrieved)
        return result

    monkeypatch.setattr(options, "find_run", lambda run: run)
    monkeypatch.setattr(checkpoint, "load_run", lambda place: model)
    monkeypatch.setattr(verb, "_step", lambda place: 12)
    monkeypatch.setattr(measuring, "measure", measured)


@pytest.fixture
def builds(monkeypatch, experiment):
    """How often each plugin is built that the experiment measures with."""
    counts = Counter()
    backbone = experiment.backbone
    specs = (backbone.codec, backbone.text_encoder, experiment.masker)
    for cls in {registry().load(s) for s in (*specs, *experiment.retrievers, *experiment.metrics)}:

        def counted(self, *args, cls=cls, init=cls.__init__):
            counts[cls] += type(self) is cls
            init(self, *args)

        counts[cls] = 0
        monkeypatch.setattr(cls, "__init__", counted)
    return counts


def call(*words):
    """Run the program; give its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["longtake", "measure", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            door.main()
    return ended.value.code or 0


def test_it_writes_report_json_and_picture(tmp_path, quick, builds, store, result, capsys):
    other = json.loads(json.dumps(as_data(result))) | {"rates": ["4x4x2"], "run": "other"}
    for clip in other["clips"]:
        clip["tokens"] *= 2
    (tmp_path / "measure.json").write_text(json.dumps(other))
    words = ("x", "--data", store.root, "--out", tmp_path / "out", "--beside", tmp_path)
    picture = tmp_path / "picture.jpg"
    assert call(*words, "--picture", picture, "--clips", "d, a", "--credit", "me") == 0
    assert set(builds.values()) == {1}, "report and picture are made with what measured"
    said = capsys.readouterr().out
    assert f"picture: {picture}" in said and "[missed]" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["measure.json", "report.html"]
    data = json.loads((tmp_path / "out" / "measure.json").read_text())
    assert {row["label"] for row in data["by_rate"]["rows"]} == {"", "2×2×2", "4×4×2"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Quality by rate" in page and "Through time" in page and page.count("<canvas") == 4 * 3
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--picture", "out.gif"), "ends in .jpg"),
        (("--clips", "a,nobody"), "no clip 'nobody'"),
        (("--beside", "nowhere"), "nowhere holds no measure.json"),
    ],
)
def test_bad_options_are_one_line_before_any_work(tmp_path, store, capsys, options, said):
    assert call("tiny-wan-2x2x2", "--data", store.root, "--out", tmp_path / "o", *options) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("longtake: ")]
    assert len(lines) == 1 and said in lines[0] and not (tmp_path / "o").exists()
