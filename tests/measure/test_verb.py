"""`longtake measure`: what it writes, and bad options that end it before any work."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import attrs
import pytest
import torch

from longtake import __main__ as door
from longtake.backbones.hunyuan.specs import TinyHunyuan
from longtake.core.cli import measure as verb
from longtake.core.cli import options
from longtake.core.config import to_json
from longtake.core.errors import UserError
from longtake.core.measure import measure as measuring
from longtake.core.measure.prepare import MeasureSetup
from longtake.core.measure.verdict import as_data
from longtake.core.pages import report
from longtake.core.registry import registry
from longtake.core.train import checkpoint


@pytest.fixture
def quick(monkeypatch, model, result, measure_setup):
    """The verb with the loaded model and the result at hand."""

    def measured(setup, **_):
        setup.retrieved.update(measure_setup.retrieved)
        return result

    monkeypatch.setattr(options, "find_run", Path)
    monkeypatch.setattr(checkpoint, "load_run", lambda place: model)
    monkeypatch.setattr(verb, "_checkpoint", lambda place: Path("checkpoint-12"))
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


@pytest.mark.slow
def test_fit_keeps_the_linear_code_beside_the_run(tmp_path, monkeypatch, quick, store, capsys):
    run, given = tmp_path / "run", []
    run.mkdir()
    (run / "spec.json").write_text("{}")
    monkeypatch.setattr(options, "find_run", lambda text: run)
    build = MeasureSetup.build

    def built(model, store, *, linear):
        given.append(linear)
        return build(model, store, linear=linear)

    monkeypatch.setattr(MeasureSetup, "build", built)
    words = ("x", "--data", store.root, "--out", tmp_path / "out")
    assert call(*words) == 0 and "linear: not measured; --fit STORE" in capsys.readouterr().out
    assert call(*words, "--fit", store.root) == 0
    assert (run / "linear.safetensors").is_file()
    assert call(*words) == 0 and "not measured; --fit" not in capsys.readouterr().out
    missing, fitted, read = given
    assert missing is None and torch.equal(read.components, fitted.components)
    assert read.header == fitted.header and read.header["clips"] == 8
    assert call(*words, "--fit", tmp_path) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--picture", "out.gif"), "ends in .jpg"),
        (("--clips", "a,nobody"), "no clip 'nobody'"),
        (("--beside", "nowhere"), "nowhere holds no measure.json"),
        (("--out", "{tmp}/file"), "is a file; a folder is wanted"),
        (("--out", "{tmp}/file/measure"), "is a file, and nothing can lie below it"),
        (("--picture", "{tmp}/file/x.png"), "--picture {tmp}/file/x.png: {tmp}/file is a file"),
    ],
)
def test_bad_options_are_one_line_before_any_work(
    tmp_path, store, capsys, monkeypatch, options, said
):
    monkeypatch.setattr(checkpoint, "load_run", lambda place: pytest.fail("that is work"))
    (tmp_path / "file").write_text("")
    options, said = [word.format(tmp=tmp_path) for word in options], said.format(tmp=tmp_path)
    assert call("tiny-wan-2x2x2", "--data", store.root, "--out", tmp_path / "o", *options) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("longtake: ")]
    assert len(lines) == 1 and said in lines[0] and not (tmp_path / "o").exists()


def test_a_code_that_could_not_be_kept_is_refused_before_it_is_fitted(
    tmp_path, store, capsys, monkeypatch
):
    run = tmp_path / "run"
    (run / "linear.safetensors").mkdir(parents=True)
    (run / "spec.json").write_text("{}")
    monkeypatch.setattr(options, "find_run", lambda text: run)
    monkeypatch.setattr(checkpoint, "load_run", lambda place: pytest.fail("that is work"))
    assert call(run, "--data", store.root, "--out", tmp_path / "o", "--fit", store.root) == 2
    assert "--fit: " in (said := capsys.readouterr().err) and "is a folder" in said


@pytest.mark.slow
def test_what_was_measured_is_told_though_the_disk_refuses(
    tmp_path, quick, store, result, capsys, monkeypatch
):
    def full(*_):
        raise UserError("cannot write report.html: No space left on device")

    monkeypatch.setattr(report, "write_report", full)
    words = ("x", "--data", store.root, "--out", tmp_path)
    assert call(*words, "--json") == 2
    told = capsys.readouterr()
    assert "No space left" in told.err
    assert json.loads(told.out) == json.loads((tmp_path / "measure.json").read_text())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("backbone.attention=isolated-causal", "trained with full, .* as it was trained. full"),
        ("backbone.memory_time=0.5", "backbone.memory_time is 0.5, but the .* trained with 0.0"),
        ("compressor.rate=4x4x2", "--set compressors: a run is measured with the memory"),
    ],
)
def test_memory_is_read_as_it_was_trained(experiment, change, line):
    trained = attrs.evolve(
        experiment, backbone=attrs.evolve(experiment.backbone, attention="full", memory_time=0.0)
    )
    with pytest.raises(UserError, match=line):
        verb._changed(trained, [change])
    for same in ("backbone.cache_block=2", "measure.draws=3", "backbone.shift=5"):
        assert verb._changed(trained, [same]).compressors == trained.compressors


def test_in_hunyuan_places_are_those_of_the_stage_before(experiment, tmp_path):
    backbone = TinyHunyuan()
    absolute = attrs.evolve(experiment, backbone=backbone)
    relative = attrs.evolve(absolute, backbone=attrs.evolve(backbone, places="relative"))
    (tmp_path / "memory.safetensors").touch()
    checkpoint.check_start(tmp_path, relative)  # of which nothing is known
    (tmp_path / "spec.json").write_text(json.dumps({"experiment": to_json(absolute)}))
    checkpoint.check_start(tmp_path, absolute)
    with pytest.raises(UserError, match="backbone.places is relative, but absolute in the stage"):
        checkpoint.check_start(tmp_path, relative)
    with pytest.raises(UserError, match="backbone.places is relative, but the memory was trained"):
        verb._changed(absolute, ["backbone.places=relative"])
