"""The probe: a head fitted on frozen memory, its file, measuring with it, and what it can find."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from longtake.core.cli.probe import probe_spec, set_of_probe
from longtake.core.config import apply_sets, from_json, to_json
from longtake.core.contract.retriever import check_retriever
from longtake.core.contract.samples import SMALL
from longtake.core.data.store import Store
from longtake.core.errors import UserError
from longtake.core.experiment import Experiment
from longtake.core.interfaces.retriever import LatentFrames
from longtake.core.interfaces.spec import RetrieverSpec
from longtake.core.measure.measure import measure
from longtake.core.measure.prepare import MeasureSetup
from longtake.core.model import Model, build_model
from longtake.core.tools.files import write_tensors
from longtake.core.train.probe import FittedProbe, fit_probe, write_probe
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.memory import Memory
from longtake.plugins.compressors.specs import Conv, Pool
from longtake.plugins.metrics.specs import Psnr
from longtake.plugins.retrievers.probe import CrossHead, ProbeRetriever, waves
from longtake.plugins.retrievers.specs import Flow, Probe

from ..program import run
from ..small import RATE, make_store, small
from .test_retrievers import memory, scene

SPEC = Probe(width=8, heads=2, steps=3, batch=2)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return attrs.evolve(small(), retrievers=(Flow(), SPEC), metrics=(Psnr(),))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> Path:
    return make_store(tmp_path_factory.mktemp("probe"), experiment)


@pytest.fixture(scope="module")
def model(experiment: Experiment) -> Model:
    return build_model(experiment)


@pytest.fixture(scope="module")
def fitted(model: Model, place: Path) -> FittedProbe:
    return fit_probe(model, Store.open(place), SPEC)


def file_for(folder: Path, spec: Probe = SPEC, **facts: object) -> str:
    """A head for the scene of the retrievers' tests, of random weights."""
    torch.manual_seed(0)
    head = CrossHead(spec, scene().backbone.geometry)
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    header = {"kind": "probe", "width": 8, "channels": 16, "parts": ["m"]} | facts
    write_tensors(folder / "probe.safetensors", head.state_dict(), header)
    return str(folder / "probe.safetensors")


@pytest.mark.parametrize("layers", [1, 2])
def test_keeps_the_contract_of_retrievers(tmp_path: Path, layers: int) -> None:
    spec = attrs.evolve(SPEC, layers=layers)
    spec = attrs.evolve(spec, weights=file_for(tmp_path, spec))
    check_retriever(ProbeRetriever(spec), scene(held=0.5))


def test_frames_do_not_depend_on_those_asked_beside_them(tmp_path: Path) -> None:
    retriever, given = ProbeRetriever(attrs.evolve(SPEC, weights=file_for(tmp_path))), scene()

    def ask(*frames: int) -> Tensor:
        omega = torch.tensor([frames] * 2)
        found = retriever(given, omega, torch.Generator())
        assert isinstance(found, LatentFrames)
        return found.latents

    assert torch.allclose(ask(1, 3, 4)[:, :, 1:2], ask(3), atol=1e-6)


def head_for(layers: int = 1) -> CrossHead:
    torch.manual_seed(0)
    head = CrossHead(attrs.evolve(SPEC, layers=layers), SMALL)
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return head


def ask(head: CrossHead, held: Memory, start: int = 0, size: tuple[int, int] = (5, 7)) -> Tensor:
    omega = torch.tensor([[0, 3]] * 2)
    given = Size3(time=5, height=size[0], width=size[1])
    found: Tensor = head(held, omega, torch.full((2,), start), given)
    return found


@torch.no_grad()
def test_the_head_reads_places_in_the_window_and_hears_no_padding() -> None:
    head, held = head_for(2), memory(0.0)
    part = held.parts[0]
    part = attrs.evolve(part, tokens=torch.randn(2, 5, 8), positions=torch.rand(2, 5, 3).double())
    held = Memory(parts=(part,))
    here = ask(head, held)
    assert here.shape == (2, 3, 2, 5, 7) and here.dtype == torch.float32
    later = part.positions + torch.tensor([9.0, 0.0, 0.0])
    moved = Memory(parts=(attrs.evolve(part, positions=later),))
    assert torch.allclose(ask(head, moved, start=9), here, atol=1e-5)
    assert not torch.allclose(ask(head, moved), here, atol=1e-3)
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[:, 3:] = False
    spoiled = part.tokens.masked_fill(~valid[..., None], torch.nan)
    ragged = Memory(parts=(attrs.evolve(part, tokens=spoiled, valid=valid),))
    short = Memory(parts=(part.take(torch.arange(3).repeat(2, 1)),))
    assert torch.allclose(ask(head, ragged), ask(head, short), atol=1e-5)
    nothing = Memory(parts=(attrs.evolve(part, valid=torch.zeros_like(valid)),))
    for empty in (Memory(), Memory(parts=(part.take(torch.zeros(2, 0, dtype=torch.int64)),))):
        assert bool(ask(head, empty).isfinite().all()) and bool(ask(head, nothing).isfinite().all())


@torch.no_grad()
def test_waves_tell_places_apart_and_a_fresh_head_looks_near_first() -> None:
    places = torch.arange(40.0).double()[None, :, None].expand(1, 40, 3)
    made = waves(places)[0]
    assert float(torch.pdist(made).min()) > 0.3
    torch.manual_seed(0)
    head = CrossHead(attrs.evolve(SPEC, width=64, heads=2), SMALL)
    found = head.layers[0].place(made.float())  # type: ignore[union-attr, operator]
    logits = found[:, :32] @ found[:, :32].T / 32**0.5
    assert bool((logits.argmax(dim=1) == torch.arange(40)).all())


def test_gradients_reach_every_parameter_after_two_steps() -> None:
    torch.manual_seed(0)
    head, held = CrossHead(attrs.evolve(SPEC, layers=2), SMALL), memory(0.0)
    part = attrs.evolve(held.parts[0], tokens=torch.randn(2, 5, 8))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (ask(head, Memory(parts=(part,))) - 1).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())


def test_one_seed_gives_one_head_and_leaves_the_model_alone(
    model: Model, place: Path, fitted: FittedProbe
) -> None:
    before = {name: x.clone() for name, x in model.encoder.state_dict().items()}
    torch.manual_seed(99)
    again = fit_probe(model, Store.open(place), SPEC)
    other = fit_probe(model, Store.open(place), attrs.evolve(SPEC, seed=1))
    first, second = fitted.head.state_dict(), again.head.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], x) for name, x in other.head.state_dict().items())
    after = model.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.encoder.parameters())


@pytest.mark.slow
def test_a_fitted_head_is_written_read_and_measured(
    model: Model, place: Path, fitted: FittedProbe, tmp_path: Path
) -> None:
    file = write_probe(tmp_path / "probe.safetensors", fitted)
    named = apply_sets(model.experiment, [f"retrievers.1.weights={file}"])
    setup = MeasureSetup.build(attrs.evolve(model, experiment=named), Store.open(place))
    result = measure(setup)
    found = {r.name: r for r in result.retrievals}
    assert found["probe"].kind == "learned" and found["probe"].masked is not None
    assert not found["probe"].samples and result.main == "flow"


def test_without_its_head_a_probe_says_how_to_get_one(model: Model, place: Path) -> None:
    with pytest.raises(UserError, match="fit it with `longtake probe RUN --data STORE`") as found:
        measure(MeasureSetup.build(model, Store.open(place)))
    assert len(str(found.value).splitlines()) == 1


def test_a_head_of_something_else_is_refused(tmp_path: Path) -> None:
    def refused(spec: Probe) -> str:
        with pytest.raises(UserError) as found:
            ProbeRetriever(spec)(scene(), torch.tensor([[0], [0]]), torch.Generator())
        assert len(str(found.value).splitlines()) == 1
        return str(found.value)

    assert "no safetensors file" in refused(attrs.evolve(SPEC, weights=str(tmp_path / "none")))
    spec = attrs.evolve(SPEC, weights=file_for(tmp_path, width=12))
    assert "with width 12, this one has 8" in refused(spec)
    spec = attrs.evolve(SPEC, weights=file_for(tmp_path, parts=["conv-4x4x2"]))
    assert "with parts conv-4x4x2, this one has m" in refused(spec)
    assert "of another head" in refused(attrs.evolve(SPEC, weights=file_for(tmp_path), layers=2))
    assert "is no fitted probe" in refused(attrs.evolve(spec, weights=file_for(tmp_path, kind="x")))


def test_what_cannot_be_fitted_is_refused(model: Model, place: Path) -> None:
    with pytest.raises(UserError, match="flow has no head to fit"):
        fit_probe(model, Store.open(place), Flow())
    bare = build_model(attrs.evolve(model.experiment, compressors=()))
    with pytest.raises(UserError, match="no memory to ask"):
        fit_probe(bare, Store.open(place), SPEC)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"width": 10}, "cannot be dealt over heads 4"), ({"layers": 3}, "layers"),
     ({"weights": ""}, "must name a file")],
)  # fmt: skip
def test_bad_specs_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Probe(**fields)  # type: ignore[arg-type]


def test_specs_go_through_json_and_the_verb_names_the_file(experiment: Experiment) -> None:
    assert from_json(to_json(SPEC), RetrieverSpec) == SPEC
    assert probe_spec(experiment) == SPEC
    assert set_of_probe(experiment, SPEC, Path("a b")) == "retrievers.1.weights=a b"
    for probe, given in ((attrs.evolve(SPEC, layers=2), experiment), (SPEC, small())):
        change = set_of_probe(given, probe, Path("x.safetensors"))
        made = apply_sets(given, [change]).retrievers
        assert made[-1] == attrs.evolve(probe, weights="x.safetensors")
        assert [type(spec) for spec in made].count(Probe) == 1 and Flow(steps=1) in made
    assert probe_spec(small()) == Probe()


@pytest.mark.slow
def test_the_verb_fits_a_run_and_measure_takes_what_it_printed(tmp_path: Path) -> None:
    from longtake.core.train.pretrain import pretrain

    given = small(steps=2)
    store = make_store(tmp_path, given, seeds=(1, 2))
    pretrain(given, store, tmp_path / "run")
    sets = ("--set", "steps=2", "--set", "width=8", "--set", "heads=2")
    code, out, err = run("probe", tmp_path / "run", "--data", store, *sets, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["file"] == str(tmp_path / "run" / "probe.safetensors")
    code, out, err = run("measure", tmp_path / "run", "--data", store, "--set", told["set"])
    assert code == 0, err
    code, out, err = run("probe", tmp_path / "run", "--data", store, "--set", "layer=2")
    assert code == 2 and err.startswith("longtake: layer: unknown field") and len(err) < 120
    code, out, err = run(
        "measure", tmp_path / "run", "--data", store, "--set", 'retrievers=["probe"]'
    )
    assert code == 2 and len(err.splitlines()) == 1 and "longtake probe RUN" in err


@pytest.mark.slow
def test_a_probe_finds_what_a_memory_holds_and_nothing_where_it_holds_nothing(
    tmp_path: Path,
) -> None:
    """On clips that were fitted: fine memory above coarse above a memory of zeros."""
    spec = Probe(width=32, heads=2, steps=150, batch=4, rate=5e-3)
    given = small()
    store = make_store(tmp_path, given, seeds=(1, 2, 3))
    explained = []
    for rate in ("1x1x1", "4x4x4"):
        built = build_model(attrs.evolve(given, compressors=(Pool(rate=Rate.parse(rate)),)))
        explained.append(fit_probe(built, Store.open(store), spec).explained)
    blind = build_model(
        attrs.evolve(given, compressors=(Conv(rate=RATE, lr=False, channels=(4,)),))
    )
    for weight in blind.encoder.parameters():
        torch.nn.init.zeros_(weight)
    explained.append(fit_probe(blind, Store.open(store), spec).explained)
    assert explained[0] > explained[1] + 0.1 and explained[0] > explained[2] + 0.1
