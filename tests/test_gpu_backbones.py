"""The GPU day's `backbones`: random models of published classes, their cases, and what may fail."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from longtake.core.errors import LongtakeError
from longtake.core.model import build_encoder
from longtake.core.registry import registry
from longtake.experiments.gpu_day import backbones
from longtake.experiments.gpu_day.backbones import (
    append,
    attention,
    batch_of,
    stage_one,
    step,
    train_step_of,
)
from longtake.experiments.gpu_day.cost import (
    FAULT_KEY,
    BackboneSlot,
    CostMeter,
    asked_mib,
    measure_or_fault,
)
from longtake.experiments.gpu_day.day import Session, StepResult, TimeIsUp
from longtake.experiments.gpu_day.subjects import (
    Subject,
    random_backbone,
    random_history,
    random_memory,
    subjects,
)

CPU = torch.device("cpu")
BENCH = CostMeter(device=CPU, repeats=1, limits={"bf16_flop_per_second": 1e9})
NAMES = ("hunyuan", "wan21-1.3b", "wan22-14b", "wan22-5b")
HEAD = {"step": "backbones", "tiny": True, "at": {"commit": "a", "dirty": False}}
FULL = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB"


def tiny(name: str) -> Subject:
    return next(subject for subject in subjects(tiny=True) if subject.name == name)


def book_of(out: Path, *, seconds: float = 60.0, tiny: bool = True) -> StepResult:
    day = Session(out=out, keep=out, videos=None, tiny=tiny, end=time.time() + seconds)
    return StepResult.open(out / "backbones.json", HEAD, day)


def out_of_memory() -> dict[str, Any]:
    raise torch.OutOfMemoryError(FULL)


def test_every_published_shape_is_timed_once() -> None:
    found = {subject.name: subject for subject in subjects(tiny=False)}
    assert sorted(found) == sorted(NAMES)  # wan21-14b has the shapes of wan22-14b
    for subject in found.values():
        assert subject.spec.weights is None and subject.spec.published
    segments = {name: str(subject.segment) for name, subject in found.items()}
    assert segments == {
        "hunyuan": "31x60x104",
        "wan21-1.3b": "21x60x104",
        "wan22-14b": "21x60x104",
        "wan22-5b": "31x30x52",
    }
    for name, subject in found.items():
        assert str(subject.rate) == ("2x2x2" if name == "wan22-5b" else "4x4x2")
        assert 5_000 <= subject.cells * subject.rate.time_tokens(subject.past(5_000).time) < 5_104


@pytest.mark.parametrize("name", NAMES)
def test_a_random_backbone_is_the_loaded_one_but_for_its_numbers(name: str) -> None:
    spec = tiny(name).spec
    made, loaded = random_backbone(spec, CPU), registry().load(spec).load(spec)
    assert type(made) is type(loaded) and not made.training
    mine, theirs = dict(made.named_parameters()), dict(loaded.named_parameters())
    assert {n: (p.shape, p.dtype) for n, p in mine.items()} == {
        n: (p.shape, p.dtype) for n, p in theirs.items()
    }
    buffers = dict(loaded.named_buffers())
    assert set(buffers) == set(dict(made.named_buffers()))
    for key, buffer in made.named_buffers():
        assert torch.equal(buffer, buffers[key]), key
    kept = {p.dtype for p in mine.values()}
    assert kept == ({torch.bfloat16} if name == "hunyuan" else {torch.bfloat16, torch.float32})
    matrices = torch.cat([p.detach().float().flatten() for p in mine.values() if p.dim() > 1])
    assert abs(float(matrices.mean())) < 2e-3 and abs(float(matrices.std()) - 0.02) < 2e-3
    again = random_backbone(spec, CPU).state_dict()
    assert all(torch.equal(x, again[key]) for key, x in made.state_dict().items())


@pytest.mark.parametrize("name", ["wan21-1.3b", "wan22-5b"])
@pytest.mark.parametrize("tokens", [1, 10, 41])
def test_random_memory_lies_where_an_encoder_puts_it(name: str, tokens: int) -> None:
    subject = tiny(name)
    fit = random_backbone(subject.spec, CPU).fit()
    weight, bias = fit.patch_weight.float(), fit.patch_bias.float()
    wide = attrs.evolve(fit, patch_weight=weight, patch_bias=bias)
    encoder = build_encoder(subject.experiment(remembers=True), wide, seed=0)
    true = encoder(random_history(subject, tokens, CPU))
    found = random_memory(subject, tokens, CPU, torch.bfloat16)
    assert found.length == tokens <= true.length < tokens + subject.cells
    assert found.size == true.size
    part, whole = found.parts[0], true.parts[0]
    assert torch.equal(part.positions, whole.positions[:, -tokens:])
    assert torch.equal(part.extents, whole.extents[:, -tokens:]) and bool(part.valid.all())


def test_a_step_is_counted_and_told_beside_the_limit() -> None:
    a = torch.randn(8, 16)
    found = BENCH.cost(lambda: a @ a.T)
    assert found["tflop"] == 2 * 8 * 16 * 8 / 1e12
    assert found["share_of_limit"] == pytest.approx(2048 / found["seconds"] / 1e9)
    assert found["held_mib"] is None and found["peak_mib"] is None
    assert CostMeter(device=CPU, repeats=1).cost(lambda: a @ a.T)["share_of_limit"] is None
    with pytest.raises(LongtakeError, match="not finite"):
        BENCH.cost(lambda: a / 0)


def test_what_is_cached_is_not_worked_out_again() -> None:
    subject, shelf = tiny("wan22-5b"), BackboneSlot(CPU)
    bare = step(subject, shelf.load(subject.spec), 0, BENCH)
    full = step(subject, shelf.load(subject.spec), 40, BENCH)
    cached = step(subject, shelf.load(subject.isolated("isolated")), 40, BENCH)
    assert bare["tflop"] < full["tflop"]
    assert cached["tflop"] == bare["tflop"]  # but for attention, which is not counted on a CPU
    assert 0 < cached["remember"]["tflop"] < bare["tflop"]
    assert cached["cache_mib"] == 2 * 2 * 40 * 24 * 2 / 2**20  # 2 blocks of keys and values, bf16
    assert "remember" not in full and "remember" not in bare


@pytest.mark.parametrize("name", ["hunyuan", "wan21-1.3b"])
def test_a_second_more_runs_the_last_block_alone(name: str) -> None:
    subject, shelf = tiny(name), BackboneSlot(CPU)
    backbone = shelf.load(subject.isolated("isolated-causal"))
    found = append(subject, backbone, 40, BENCH)
    whole = random_memory(subject, 40, CPU, torch.bfloat16)
    anew = BENCH.cost(lambda: backbone.remember(whole))
    assert found["appended"] == subject.tokens_a_second < 40
    assert 0 < found["tflop"] < anew["tflop"] / 2


def test_stage_one_trains_adapters_and_encoder_alone() -> None:
    subject, shelf = tiny("wan22-14b"), BackboneSlot(CPU)
    experiment = subject.experiment(remembers=True)
    backbone = shelf.load(subject.spec, experiment.train.adapter)
    train = train_step_of(subject, experiment, backbone, CPU)
    stage = train.stage
    assert backbone.gradient_checkpointing  # type: ignore[truthy-function]
    before = {n: p.detach().clone() for n, p in stage.named_parameters()}
    train(batch_of(subject, backbone, 10, CPU))
    moved = {n for n, p in stage.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora_" in n or n.startswith("encoder.") for n in moved)
    assert {"encoder" in n for n in moved} == {True, False}
    trained = [p for n, p in before.items() if "lora_" in n or "encoder" in n]
    assert train.trained_parameters == sum(p.numel() for p in trained)
    assert all(p.grad is None for p in stage.parameters())


@pytest.mark.slow
def test_stage_one_without_memory_is_lora_alone() -> None:
    subject, shelf = tiny("wan21-1.3b"), BackboneSlot(CPU)
    bare, found = (stage_one(subject, shelf, tokens, BENCH) for tokens in (0, 10))
    assert bare["tokens"] == 0 and 10 <= found["tokens"] < 10 + subject.cells
    assert bare["history"] == found["history"] and bare["targets"] == found["targets"] == 2
    adapters = sum(p.numel() for p in shelf.load(subject.spec, shelf.lora).adapters().values())
    assert bare["trained_parameters"] == adapters < found["trained_parameters"]
    assert bare["tflop"] < found["tflop"]


def test_attention_is_timed_by_kernel() -> None:
    found = attention(tiny("wan21-1.3b"), BENCH)
    tokens = 3 * 4 * 6
    assert found["tflop"] == 4 * 2 * 12 * tokens**2 / 1e12 and found["blocks"] == 2
    assert found["chosen"]["seconds"] > 0
    if not torch.cuda.is_available():
        assert found["cudnn"] is None


def test_the_shelf_holds_one_backbone() -> None:
    shelf, spec = BackboneSlot(CPU), tiny("wan21-1.3b").spec
    first = shelf.load(spec)
    assert shelf.load(spec) is first
    lora = tiny("wan21-1.3b").experiment(remembers=True).train.adapter
    second = shelf.load(spec, lora)
    assert second is not first and second.adapters() and not first.adapters()
    shelf.clear()
    assert shelf.model is None and shelf.spec is None and shelf.lora is None


@pytest.mark.parametrize(
    ("said", "mib"),
    [
        (FULL, 2560.0),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", 20.0),
        ("CUDA out of memory. Tried to allocate 512 bytes.", 512 / 2**20),
        ("out of memory", None),
    ],
)
def test_what_was_asked_for_is_read(said: str, mib: float | None) -> None:
    assert asked_mib(said) == mib


def test_what_does_not_fit_is_a_fault_of_its_case_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def cases(
        subject: Subject, shelf: BackboneSlot, bench: CostMeter
    ) -> list[backbones.Measurement]:
        name = subject.name
        good = {"seconds": 2.0}
        return [
            backbones.Measurement(
                name=f"{name} a", make=lambda: made.append(name) or {"seconds": 1.0}
            ),
            backbones.Measurement(name=f"{name} b", make=out_of_memory, beside=f"{name} a"),
            backbones.Measurement(name=f"{name} c", make=lambda: good, beside=f"{name} a"),
        ]

    monkeypatch.setattr(backbones, "measurements", cases)
    for _ in range(2):  # the second run finds all figures there
        book = book_of(tmp_path)
        with pytest.raises(LongtakeError, match="hunyuan b: out of memory, asked for 2560.0 MiB"):
            backbones.run(book.session, book)
    assert sorted(made) == sorted(NAMES)
    assert book.figures["hunyuan b"] == {
        FAULT_KEY: "out of memory",
        "asked_mib": 2560.0,
        "said": FULL,
    }
    assert book.figures["wan22-5b c"]["over_no_memory"] == 2.0


def test_a_case_that_fails_leaves_no_half_changed_model() -> None:
    shelf = BackboneSlot(CPU)
    shelf.load(tiny("wan21-1.3b").spec)
    with pytest.raises(ZeroDivisionError):
        measure_or_fault(lambda: {"seconds": 1 / 0}, shelf)
    assert shelf.model is None


def test_without_time_no_case_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = book_of(tmp_path, seconds=45.0 + backbones.SPARE - 1, tiny=False)
    book.figures["limits"] = {"bf16_flop_per_second": 1e9}
    never = [backbones.Measurement(name="a", make=lambda: {"seconds": 1.0})]
    monkeypatch.setattr(backbones, "measurements", lambda *_: never)
    with pytest.raises(TimeIsUp):
        backbones.run(book.session, book)
    assert set(book.figures) == {"limits"}
