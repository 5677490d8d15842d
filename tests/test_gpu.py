"""What only a GPU can show: the same figures as on a CPU, training in bf16, resuming, memory.

They skip without CUDA. LONGTAKE_GPU_TESTS_ON=cpu runs their code on a CPU, to try it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attrs import evolve

from longtake.core.bench import random_history
from longtake.core.cache.cache import cache
from longtake.core.contract.samples import sample_history
from longtake.core.data.store import Store
from longtake.core.data.windows import Batch
from longtake.core.graphed import GraphedStep
from longtake.core.interfaces.compressor import State
from longtake.core.interfaces.streaming import TwoPartStep
from longtake.core.measure.measure import measure
from longtake.core.measure.prepare import MeasureSetup
from longtake.core.model import Model, all_needs, build_model
from longtake.core.registry import build
from longtake.core.tools.device import pick_device
from longtake.core.train.checkpoint import load_run, read_run
from longtake.core.train.loss import StageOne
from longtake.core.train.pretrain import pretrain
from longtake.core.values.grid import Size3
from longtake.core.values.history import History
from longtake.plugins.compressors.conv_layers import FrameAttention

from .small import make_store, small, write_clips

pytestmark = pytest.mark.gpu
SECONDS = 4.0


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[torch.device]:
    """The GPU, exact in float32 and without algorithms whose sums change from run to run."""
    if not torch.cuda.is_available() and os.environ.get("LONGTAKE_GPU_TESTS_ON") != "cpu":
        pytest.skip("no CUDA device; LONGTAKE_GPU_TESTS_ON=cpu tries these tests on a CPU")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield pick_device()
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def near(found: torch.Tensor, truth: torch.Tensor, within: float) -> None:
    found, truth = found.detach().cpu().double(), truth.detach().cpu().double()
    assert found.isfinite().all()
    assert float((found - truth).norm() / truth.norm().clamp(min=1e-12)) <= within


def alive(model: Model) -> Model:
    """Random where a fresh encoder is zero, so that every branch counts."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.encoder.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


def step(device: torch.device) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one Stage I batch, and every gradient."""
    experiment = small(memory_dropout=0.0, text_dropout=0.0)
    model = alive(build_model(experiment)).to(device)
    text = build(experiment.backbone.text_encoder)
    stage = StageOne(model, build(experiment.masker), experiment.train, text.encode([""]))
    stage.to(device)
    one = random_history(experiment, SECONDS).to("cpu")
    history = History(
        latents=one.latents.repeat(2, 1, 1, 1, 1),
        lr={rate: x.repeat(2, 1, 1, 1, 1) for rate, x in one.lr.items()},
    )
    batch = Batch(history=history, text=text.encode(["one", "two"]), names=("a", "b"))
    loss = stage(batch.to(device), 0)
    loss.backward()
    gradients = {n: p.grad for n, p in stage.named_parameters() if p.grad is not None}
    return loss, gradients


def test_loss_and_gradients_are_those_of_a_cpu(device: torch.device) -> None:
    loss, gradients = step(device)
    true_loss, true_gradients = step(torch.device("cpu"))
    near(loss, true_loss, 1e-5)
    assert set(gradients) == set(true_gradients) and gradients
    largest = max(float(g.norm()) for g in true_gradients.values())
    for name, truth in true_gradients.items():
        found = gradients[name].detach().cpu()
        assert float((found - truth).norm()) <= 1e-3 * float(truth.norm()) + 1e-6 * largest, name


def test_appending_is_exact(device: torch.device) -> None:
    model = alive(build_model(small())).eval().to(device)
    history = random_history(small(), SECONDS).to(device)
    with torch.no_grad():
        whole = model.encoder(history).parts[0]
        state, found = None, []
        for chunk in history.chunks([3, 1, history.size.time - 4]):
            state, memory = model.encoder.step(state, chunk)
            found += [part.tokens for part in memory.parts]
        assert state is not None
        found += [part.tokens for part in model.encoder.pending(state).parts]
    near(torch.cat(found, dim=1), whole.tokens, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graphed_step_is_the_step(device: torch.device, dtype: torch.dtype) -> None:
    """Memory and state of every chunk, also where one of another length comes between."""
    model = alive(build_model(small())).eval().to(device)
    (compressor,) = model.encoder.members
    assert isinstance(compressor, TwoPartStep)
    compressor.to(dtype)
    graphed, lengths = GraphedStep(compressor, 2), [2] * 8 + [1, 1] + [2] * 3
    size, needs = Size3(time=sum(lengths), height=4, width=8), compressor.needs(compressor.spec)
    whole = sample_history(size, needs, geometry=compressor.geometry)
    state: State | None = None
    truth: State | None = None
    memories = []
    for chunk in whole.to(device, dtype).chunks(lengths):
        truth, wanted = compressor.step(truth, chunk)
        state, found = graphed.step(state, chunk)
        for name, x in truth.items():
            near(state[name], x, 1e-6)
        memories.append((found, wanted))
    for found, wanted in memories:
        for one, other in zip(found.parts, wanted.parts, strict=True):
            near(one.tokens, other.tokens, 1e-6)
            assert torch.equal(one.positions, other.positions)
    assert graphed.recorded == (device.type == "cuda")


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 1e-6), (torch.float16, 4e-4), (torch.bfloat16, 5e-3)]
)
@pytest.mark.parametrize("before", [0, 2, 3])
def test_an_appended_attention_is_that_of_float64(
    device: torch.device, dtype: torch.dtype, within: float, before: int
) -> None:
    """Of the published width, by Triton where there is a card."""
    cuda = device.type == "cuda"
    layer = FrameAttention(512, 8, 64, "triton" if cuda else "auto").to(device, dtype)
    generator = torch.Generator().manual_seed(7)
    x, past = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((1, 3, 104, 512), (2, 1, before, 104, 8, 64))
    )
    made = layer(x, past if before else None, 4, None)
    exact = FrameAttention(512, 8, 64, "reference").to("cpu", torch.float64)
    exact.load_state_dict(layer.state_dict())
    truth = exact(x.cpu().double(), past.cpu().double() if before else None, 4, None)
    for one, other in zip(made, truth, strict=True):
        near(one, other, within)


def test_streaming_needs_no_more_memory_for_a_longer_past(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("only CUDA counts its memory")
    model = alive(build_model(small())).eval().to(device)

    def peak(seconds: float) -> int:
        state, history = None, random_history(small(), seconds).to("cpu")
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            for chunk in history.chunks([1] * history.size.time):
                state, _ = model.encoder.step(state, chunk.to(device))
        return torch.cuda.max_memory_allocated()

    peak(10.0)  # libraries take what they need once
    assert peak(60.0) <= peak(20.0) * 1.01


def test_caching_is_that_of_a_cpu(device: torch.device, tmp_path: Path) -> None:
    experiment, videos = small(), write_clips(tmp_path / "videos", seeds=(1,))
    stores = []
    for name, where in (("there", device), ("here", torch.device("cpu"))):
        rates = all_needs(experiment).rates
        cache(experiment, videos, tmp_path / name, rates=rates, pixels=False, device=where)
        stores.append(Store.open(tmp_path / name))
    found, truth = (s.window(s.records[0], 0, 3, s.rates) for s in stores)
    near(found.latents, truth.latents, 1e-3)  # fp16 in the store
    for rate in truth.lr:
        near(found.lr[rate], truth.lr[rate], 1e-3)


def test_training_in_bf16_and_measuring(device: torch.device, tmp_path: Path) -> None:
    experiment = small(steps=3, precision="bf16")
    store = make_store(tmp_path, experiment)
    result = pretrain(experiment, store, tmp_path / "run")
    assert result.step == 3 and result.loss is not None and result.loss < 10
    model = load_run(tmp_path / "run").to(device)
    found = measure(MeasureSetup.build(model, Store.open(store)), run="run")
    assert found.device.startswith(device.type)
    psnr = found.retrieval(found.main).unmasked.figures["psnr"].mean
    assert 0 < psnr < 60


def test_resuming_gives_the_weights_of_one_run(device: torch.device, tmp_path: Path) -> None:
    whole = small(steps=4, save_every=2, keep=4)
    half = evolve(whole, train=evolve(whole.train, steps=2))
    store = make_store(tmp_path, whole)
    pretrain(whole, store, tmp_path / "one")
    pretrain(half, store, tmp_path / "two")
    pretrain(whole, store, tmp_path / "two", resume=True)
    one, two = (load_run(tmp_path / name) for name in ("one", "two"))
    assert read_run(tmp_path / "two")[1].name == "checkpoint-4"
    for part in ("encoder", "backbone"):
        truth = getattr(one, part).state_dict()
        for name, found in getattr(two, part).state_dict().items():
            within = 0.0 if device.type == "cpu" else 1e-6  # some CUDA sums have no fixed order
            near(found, truth[name], within)
