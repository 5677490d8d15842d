"""What was measured of each clip is kept until all are, and nothing else is taken for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attrs
import pytest
import torch

from longtake import __main__ as door
from longtake.core.cli import measure as verb
from longtake.core.cli import options
from longtake.core.data.store import Store
from longtake.core.errors import UserError
from longtake.core.measure import kept as keeping
from longtake.core.measure.kept import KeptClips, kept_facts
from longtake.core.measure.measure import measure
from longtake.core.measure.prepare import MeasureSetup
from longtake.core.measure.verdict import verdict
from longtake.core.model import build_model
from longtake.core.train import checkpoint
from longtake.plugins.metrics.specs import Psnr, Ssim
from longtake.plugins.retrievers.specs import Flow, MeanFrame

from .conftest import Oracle, OracleRetriever


@pytest.fixture(scope="module")
def few(experiment, store):
    """A model that is quick to measure, and a store of three clips: the third is a twin."""
    clips = [record for record in store.records if not record.mirror][:3]
    quick = attrs.evolve(
        experiment, retrievers=(Flow(steps=1), Oracle(), MeanFrame()), metrics=(Psnr(),)
    )
    return build_model(quick), Store(store.root, store.header, clips)


@pytest.fixture
def setup(few):
    return MeasureSetup.build(*few)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "memory.safetensors").write_bytes(b"weights")
    return tmp_path


def keeper(setup, folder):
    facts = kept_facts(setup, folder / "checkpoint")
    return KeptClips(folder=folder / "kept", facts=facts)


def figures(result):
    data = result.to_json()
    del data["took"]
    for one in data["retrievals"]:
        del one["seconds"]
    return json.dumps(data)


def fails_at(monkeypatch, call):
    """Let the oracle raise at its call of that number."""
    calls, own = [], OracleRetriever.__call__

    def counted(self, *args):
        calls.append(1)
        if len(calls) == call:
            raise KeyError("what now")
        return own(self, *args)

    monkeypatch.setattr(OracleRetriever, "__call__", counted)
    return calls


ASKED = 7  # times a learned retriever is asked of a clip: once unmasked, six masked queries


@pytest.mark.slow
def test_a_failure_gives_what_there_is_and_the_next_run_goes_on(few, setup, folder, monkeypatch):
    whole = measure(setup)
    calls, results = fails_at(monkeypatch, ASKED + 1), []
    with pytest.raises(KeyError):
        measure(setup, kept=keeper(setup, folder), stopped=results.append)
    (partial,) = results
    assert [clip.name for clip in partial.clips] == ["a"] and not partial.long
    words = "1 of 3 clips were measured; b failed: retriever 'oracle' failed ("
    assert partial.unfinished.startswith(words) and "KeyError: 'what now'" in partial.unfinished
    assert any("This is not all: 1 of 3" in line.text for line in verdict(partial))
    again = MeasureSetup.build(*few)
    kept = keeper(again, folder)
    calls.clear()
    calls.extend([0] * 100)
    result = measure(again, kept=kept)
    assert len(kept.used) == 1 and len(calls) == 100 + 2 * ASKED + 3, "a is not asked again"
    assert figures(result) == figures(whole) and result.unfinished == ""
    assert again.retrieved.keys() == setup.retrieved.keys()
    assert all(torch.equal(x, setup.retrieved[key]) for key, x in again.retrieved.items())


@pytest.mark.slow
def test_a_failure_at_the_greater_length_keeps_all_of_the_lesser(setup, folder, monkeypatch):
    fails_at(monkeypatch, 3 * ASKED + 2)
    results = []
    with pytest.raises(KeyError):
        measure(setup, kept=keeper(setup, folder), stopped=results.append)
    assert [len(results[0].clips), len(results[0].long)] == [3, 1]
    assert results[0].unfinished.startswith("3 of 3 clips were measured, and 1 of 3 at 2.7 s; b, ")
    again = keeper(setup, folder)
    measure(setup, kept=again)
    assert len(again.used) == 4


def test_a_failure_of_the_first_clip_has_nothing_to_give(setup, folder, monkeypatch):
    fails_at(monkeypatch, 1)
    with pytest.raises(KeyError):
        measure(setup, kept=keeper(setup, folder), stopped=lambda _: pytest.fail("of what?"))


@pytest.mark.slow
def test_nothing_of_another_measure_is_taken(few, setup, folder):
    model, store = few
    first = keeper(setup, folder)
    measure(setup, kept=first)
    assert first.count() == 6
    record = setup.records()[0]
    assert keeper(setup, folder).read(record, setup.length, setup) is not None
    other = attrs.evolve(model, experiment=attrs.evolve(model.experiment, metrics=(Psnr(), Ssim())))
    others = [
        MeasureSetup.build(model, store, seed=7),
        MeasureSetup.build(other, store),
        MeasureSetup.build(model, Store(store.root, store.header, store.records[:2])),
    ]
    for one in others:
        assert keeper(one, folder).read(record, one.length, one) is None
    more = attrs.evolve(others[1], model=model)  # as if a metric had failed when it was kept
    assert keeper(setup, folder).read(record, setup.length, more) is None
    (path,) = (folder / "kept").glob(f"{record.id}-{setup.length}.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert keeper(setup, folder).read(record, setup.length, setup) is None
    trained = folder / "checkpoint" / "memory.safetensors"
    trained.write_bytes(b"others")
    record = setup.records()[1]
    assert keeper(setup, folder).read(record, setup.length, setup) is None


def test_nothing_of_an_edited_plugin_is_taken(setup, folder, monkeypatch):
    source = folder / "oracles.py"
    monkeypatch.setattr(sys.modules["longtake_test_oracles"], "__file__", str(source), False)
    facts = []
    for text in ("one", "one", "another"):
        source.write_text(text)  # of an editable install, whose version stays
        facts.append(kept_facts(setup, folder / "checkpoint"))
    assert facts[0] == facts[1] and facts[1] != facts[2]


@pytest.mark.slow
def test_a_full_disk_ends_no_measuring(setup, folder, monkeypatch, caplog):
    def full(*_):
        raise UserError("cannot write kept: No space left on device")

    monkeypatch.setattr(keeping, "write_tensors", full)
    assert len(measure(setup, kept=keeper(setup, folder)).clips) == 3
    assert "No space left on device: what is measured is not kept" in caplog.text


@pytest.mark.slow
def test_the_verb_writes_what_there_is_and_goes_on(few, folder, monkeypatch, capsys):
    model, store = few
    monkeypatch.setattr(options, "find_run", lambda run: Path(run))
    monkeypatch.setattr(checkpoint, "load_run", lambda place: model)
    monkeypatch.setattr(verb, "_checkpoint", lambda place: folder / "checkpoint")
    monkeypatch.setattr(Store, "open", lambda place: store)
    words = ["longtake", "measure", "x", "--data", "x", "--out", str(folder / "out"), "--json"]
    monkeypatch.setattr("sys.argv", words)
    with monkeypatch.context() as patch:
        fails_at(patch, ASKED + 1)
        with pytest.raises(SystemExit) as ended:
            door.main()
    told = capsys.readouterr()
    assert ended.value.code == 1 and "retriever 'oracle' failed (" in told.err
    assert "1 measured clip is kept in" in told.err
    data = json.loads((folder / "out" / "unfinished.json").read_text())
    assert data == json.loads(told.out) and data["unfinished"].startswith("1 of 3 clips")
    assert not (folder / "out" / "measure.json").exists(), "that would pass for all of it"
    with pytest.raises(SystemExit) as ended:
        door.main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["unfinished"] == ""
    assert sorted(x.name for x in (folder / "out").iterdir()) == ["measure.json", "report.html"]
