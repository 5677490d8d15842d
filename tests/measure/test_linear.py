"""The guide `linear`: the best linear code of as many numbers as a memory has."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from longtake.backbones.codecs.specs import Dct
from longtake.core.data.store import Store
from longtake.core.errors import UserError
from longtake.core.interfaces.codec import Codec, decode_whole
from longtake.core.interfaces.retriever import LatentFrames
from longtake.core.interfaces.spec import CodecSpec
from longtake.core.measure.compare import compare_rates
from longtake.core.measure.linear import (
    TENSORS,
    LinearCode,
    LinearGuide,
    Moments,
    cell_of,
    count_cells,
    fit_linear_code,
    from_cells,
    memory_numbers,
    pixel_metric,
    read_linear_code,
    to_cells,
    write_linear_code,
)
from longtake.core.measure.measure import measure
from longtake.core.measure.prepare import MeasureSetup
from longtake.core.measure.quality import clip_scene
from longtake.core.measure.result import ClipRow, CodeInfo, MeasureResult
from longtake.core.measure.verdict import as_data, verdict, way_to_linear
from longtake.core.model import build_model
from longtake.core.registry import build
from longtake.core.tools.files import write_tensors
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.shapes import Latents
from longtake.plugins.compressors.specs import Conv, Keyframes, Window
from longtake.plugins.retrievers.specs import Flow, Upsample

from ..small import RATE, make_store, small

COARSE = Rate(height=4, width=4, time=2)
CELL = Size3(time=2, height=4, width=4)


class Bent(Codec[CodecSpec]):
    """A codec whose pixels move less the further they are, and twice as far by channel 1."""

    channels, stride, causal, margin = 2, Size3(time=1, height=1, width=1), True, 1
    identity = "bent"
    reach = (1.0, 2.0)

    def __init__(self, bend: float) -> None:
        super().__init__(CodecSpec())
        self.bend = bend

    def encode(self, chunk, state=None):
        raise NotImplementedError

    def decode(self, chunk: Tensor, state=None):
        sheared = torch.stack([chunk[:, 0] + chunk[:, 1], chunk[:, 0] - 3 * chunk[:, 1]], dim=1)
        bent = sheared + self.bend * torch.tanh(4 * sheared - 1)
        return torch.cat([bent, sheared[:, :1]], dim=1), {}


def latents(time: int = 7, height: int = 6, width: int = 9, channels: int = 3) -> Latents:
    return torch.randn(2, channels, time, height, width, generator=torch.manual_seed(3))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Store:
    experiment = small()
    both = attrs.evolve(experiment.cache, rates=(COARSE,))
    experiment = attrs.evolve(experiment, cache=both)
    return Store.open(make_store(tmp_path_factory.mktemp("linear"), experiment, seeds=range(4)))


@pytest.fixture(scope="module")
def code(stored: Store) -> LinearCode:
    return fit_linear_code(small(), stored, build(small().backbone.codec))


def test_cells_are_cut_and_joined_exactly() -> None:
    whole = latents()
    cells = to_cells(whole, CELL)
    assert cells.shape == (2 * 4 * 2 * 3, 3 * 32)
    assert torch.equal(from_cells(cells, whole.shape, CELL), whole)
    assert count_cells(Size3(time=7, height=6, width=9), CELL) == (1 + 3) * 2 * 3
    assert count_cells(Size3(time=1, height=4, width=4), CELL) == 1


def test_moments_in_portions_are_those_of_the_whole() -> None:
    vectors = torch.randn(500, 6, generator=torch.manual_seed(1)) * torch.arange(1, 7) + 2
    moments = Moments()
    for portion in vectors.split(37):
        moments.add(portion)
    mean, components, explained = moments.principal(2)
    torch.testing.assert_close(mean, vectors.mean(dim=0), atol=1e-5, rtol=1e-5)
    _, spread, axes = torch.linalg.svd((vectors - vectors.mean(dim=0)).double())
    torch.testing.assert_close(
        (components.double().T @ axes[:2].T).abs(), torch.eye(2).double(), atol=1e-4, rtol=0
    )
    share = float(spread[:2].square().sum() / spread.square().sum())
    assert explained == pytest.approx(share, abs=1e-6)


def test_the_metric_is_that_of_pixels_where_the_codec_is_linear() -> None:
    codec: Codec[CodecSpec] = build(Dct(channels=16))
    around = latents(time=4, height=8, width=8, channels=16)[:1]
    root, linear = pixel_metric(codec, around)
    assert linear
    reach = codec.channel_reach.square()
    expected = torch.diag((reach / reach.mean()).sqrt())
    torch.testing.assert_close(root, expected, atol=2e-3, rtol=0)

    sheared, exact = pixel_metric(Bent(bend=0.0), latents(time=4, channels=2)[:1])
    matrix = torch.tensor([[1.0, 1.0], [1.0, -3.0], [1.0, 1.0]])
    gram = matrix.T @ matrix
    assert exact
    torch.testing.assert_close(sheared @ sheared, 2 * gram / gram.trace(), atol=1e-3, rtol=0)

    bent, exact = pixel_metric(Bent(bend=1.0), latents(time=4, channels=2)[:1])
    assert not exact and float((bent - torch.diag(bent.diagonal())).abs().max()) < 1e-6
    assert bent[1, 1] > 1.3 * bent[0, 0]


def test_all_numbers_give_all_back_and_more_numbers_more(stored: Store, code: LinearCode) -> None:
    d = code.mean.numel()
    assert code.cell == CELL and d == 16 * 32
    full = attrs.evolve(
        code, components=torch.eye(d), first_components=torch.eye(code.first_mean.numel())
    )
    one = stored.window(stored.records[0], 0, 5, ()).latents
    torch.testing.assert_close(full.code(one, d), one, atol=1e-3, rtol=0)

    def error(numbers: int) -> float:
        codec: Codec[CodecSpec] = build(small().backbone.codec)
        lost = decode_whole(codec, code.code(one, numbers)) - decode_whole(codec, one)
        return float(lost.square().mean())

    errors = [error(numbers) for numbers in (0, 1, 2, 4, 8, 16, 24)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[3]
    assert torch.equal(code.code(one, 3), code.code(one, 3))


def test_no_code_of_as_many_numbers_is_better_on_what_it_was_fitted_on(
    stored: Store, code: LinearCode
) -> None:
    codec: Codec[CodecSpec] = build(small().backbone.codec)
    rng = torch.manual_seed(5)
    clips = [stored.window(r, 0, r.latents, ()).latents for r in stored.records]

    def error(one: LinearCode) -> float:
        lost = [decode_whole(codec, x - one.code(x, 6))[:, :, 1:] for x in clips]
        zero = [decode_whole(codec, torch.zeros_like(x))[:, :, 1:] for x in clips]
        return sum(float((a - b).square().sum()) for a, b in zip(lost, zero, strict=True))

    best = error(code)
    for _ in range(4):
        turned = torch.linalg.qr(code.components + 0.02 * torch.randn(512, 24, generator=rng)).Q
        assert error(attrs.evolve(code, components=turned)) > best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compressors", "cell"),
    [
        ((Conv(rate=RATE, channels=(4, 6), heads=2, head_width=4),), CELL),
        ((Window(latents=3),), CELL),
        ((Conv(rate=COARSE, channels=(4, 6), heads=2, head_width=4), Keyframes(every=4)),
         Size3(time=2, height=8, width=8)),
    ],
)  # fmt: skip
def test_any_set_of_compressors_has_a_code_of_its_numbers(
    tmp_path: Path, stored: Store, compressors: tuple[object, ...], cell: Size3
) -> None:
    flow = (Flow(), Upsample(rate=RATE))
    experiment = attrs.evolve(small(), compressors=compressors, retrievers=flow)
    assert cell_of(experiment) == cell
    codec: Codec[CodecSpec] = build(experiment.backbone.codec)
    fitted = fit_linear_code(experiment, stored, codec)
    assert fitted.components.shape[1] <= fitted.mean.numel()
    path = tmp_path / "linear.safetensors"
    write_linear_code(path, fitted)
    read = read_linear_code(path, experiment, codec)
    model = build_model(experiment)
    setup = MeasureSetup.build(model, stored, linear=read)
    record = setup.records()[0]
    with torch.no_grad():
        scene = clip_scene(setup, record)
    guide = setup.retrievers["linear"]
    retrieved = guide.retrieve(scene, torch.tensor([[0, 3]]), torch.Generator())
    assert isinstance(retrieved, LatentFrames) and bool(retrieved.latents.isfinite().all())
    numbers = guide.numbers(scene)
    most = memory_numbers(experiment, model.backbone.geometry, scene.size)
    all_of_it = read.cells(scene.size) * read.mean.numel()
    assert guide.guide and not guide.learned and numbers is not None
    assert min(most, all_of_it) - read.cells(scene.size) < numbers <= min(most, all_of_it)


@pytest.fixture(scope="module")
def setup(stored: Store, code: LinearCode) -> MeasureSetup:
    return MeasureSetup.build(build_model(small()), stored, linear=code)


@pytest.fixture(scope="module")
def result(setup: MeasureSetup) -> MeasureResult:
    return measure(setup)


def test_it_stands_in_report_json_and_verdict(
    setup: MeasureSetup, result: MeasureResult, code: LinearCode
) -> None:
    linear, ceiling = result.retrieval("linear"), result.retrieval("ceiling")
    flow = result.retrieval("flow")
    figures = [one.unmasked.figures["psnr"].mean for one in (flow, linear, ceiling)]
    assert figures == sorted(figures)
    assert linear.masked is None and linear.numbers == 24 * code.cells(
        setup.size(setup.records()[0])
    )
    data = json.loads(json.dumps(as_data(result)))
    way = way_to_linear(result)
    lines = [str(line) for line in verdict(result) if "from upsample to linear" in str(line)]
    if way is None:
        assert data["way_to_linear"] is None and not lines
    else:
        assert data["way_to_linear"]["start"] == "upsample" and len(lines) == 1
    assert [row.name for row in compare_rates(result).rows].count("linear") == 1


def test_a_code_of_few_cells_or_of_what_is_measured_is_called_so(
    stored: Store, code: LinearCode, result: MeasureResult
) -> None:
    def notes(one: MeasureResult) -> list[str]:
        return [str(line) for line in verdict(one) if "linear was fitted on" in str(line)]

    assert result.code == CodeInfo(
        store=stored.root.name, cells=code.header["cells"], numbers=24, seen=4
    )
    assert as_data(result)["code"]["seen"] == 4
    cells, seen = notes(result)
    assert "on 16 cells of" in cells
    assert "which has 4 of the 4 clips measured" in seen and "Fit it on the training" in seen
    few = attrs.evolve(result.code, cells=119, seen=0)
    (line,) = notes(attrs.evolve(result, code=few))
    assert "on 119 cells of" in line and "24 numbers a cell" in line and "5 cells a number" in line
    worse = [
        attrs.evolve(c, unmasked={**c.unmasked, "linear": {"psnr": 0.0}}) for c in result.clips
    ]
    assert len(notes(attrs.evolve(result, code=few, clips=tuple(worse)))) == 1
    other = [attrs.evolve(record, fingerprint="0" * 64) for record in stored.records]
    assert code.info(other).seen == 0 and code.info([*other, stored.records[0]]).seen == 1
    old = {key: value for key, value in code.header.items() if key != "origins"}
    assert attrs.evolve(code, header=old).info(stored.records).seen is None
    assert notes(attrs.evolve(result, code=attrs.evolve(few, cells=120, seen=None))) == []


def test_the_way_is_the_share_of_the_gap(result: MeasureResult) -> None:
    def moved(clip: ClipRow, number: int) -> ClipRow:
        figures = {"flow": 21.0 + number, "upsample": 20.0 + number, "linear": 24.0 + number}
        return attrs.evolve(
            clip, unmasked={**clip.unmasked, **{n: {"psnr": v} for n, v in figures.items()}}
        )

    clips = tuple(moved(clip, number) for number, clip in enumerate(result.clips))
    way = way_to_linear(attrs.evolve(result, clips=clips))
    assert way is not None and way.gap == pytest.approx(4.0) and way.start == "upsample"
    assert way.share.mean == pytest.approx(0.25)
    assert way.share.low == pytest.approx(0.25) and way.share.n == len(clips)


def test_a_code_of_other_cells_or_codec_is_refused(
    tmp_path: Path, stored: Store, code: LinearCode
) -> None:
    path = tmp_path / "linear.safetensors"
    write_linear_code(path, code)
    experiment = small()
    other = attrs.evolve(experiment, backbone=attrs.evolve(
        experiment.backbone, codec=Dct(channels=48)
    ))  # fmt: skip
    with pytest.raises(UserError, match="was fitted for codec dct-16"):
        read_linear_code(path, other, build(Dct(channels=48)))
    coarse = attrs.evolve(
        experiment, compressors=(attrs.evolve(experiment.compressors[0], rate=Rate.parse("4x4x2")),)
    )
    with pytest.raises(UserError, match=r"was fitted for cell \[2, 4, 4\]"):
        read_linear_code(path, coarse, build(experiment.backbone.codec))
    with pytest.raises(UserError, match="cached with codec"):
        fit_linear_code(other, stored, build(Dct(channels=48)))
    tensors = {name: getattr(code, name) for name in TENSORS}
    d, k = code.components.shape
    for change, said in (
        ({"mean": None}, "it has no mean"),
        ({"components": code.components[:5]}, rf"components is \[5, {k}\], not \[{d}, {k}\]"),
        ({"components": code.components[:, :2]}, rf"first_components is \[256, {k}\], not"),
        ({"first_mean": code.first_mean / 0}, "first_mean has values that are no numbers"),
        ({"root": torch.ones(())}, r"root is \[\], not \[16, 16\]"),
    ):
        other_tensors = {n: x for n, x in (tensors | change).items() if x is not None}
        write_tensors(path, other_tensors, code.header)
        with pytest.raises(UserError, match=f"is damaged: {said}.*: fit it again"):
            read_linear_code(path, experiment, build(experiment.backbone.codec))
    write_tensors(path, tensors, {**code.header, "cells": None})
    with pytest.raises(UserError, match="its header has no cells: fit it again"):
        read_linear_code(path, experiment, build(experiment.backbone.codec))
    few = attrs.evolve(code, components=code.components[:, :2])
    setup = MeasureSetup.build(build_model(experiment), stored, linear=few)
    with pytest.raises(UserError, match="fit it again"):
        measure(setup)
    assert isinstance(setup.retrievers["linear"], LinearGuide)
