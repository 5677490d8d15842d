"""Every kernel in triton's interpreter against float64: outputs, gradients, streaming, dispatch.

In a process of their own, since triton reads the variable when a kernel's module is imported:

    TRITON_INTERPRET=1 pytest tests/kernels/test_interpret.py
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attrs import evolve
from torch import Tensor

from longtake.core.contract.samples import sample_fit, sample_history
from longtake.core.interfaces.compressor import State
from longtake.core.registry import import_file
from longtake.core.tools.timing import count_flop
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, merge
from longtake.kernels import chunk_attention as attention
from longtake.kernels import conv3d_act as op
from longtake.kernels import dispatch, out_tokens, reference
from longtake.kernels.conv3d_act import Ahead, by_reference, conv3d_act, conv3d_act_op, launch
from longtake.kernels.reference import AttentionWeights
from longtake.kernels.tiles import Tile
from longtake.plugins.compressors import conv_layers
from longtake.plugins.compressors.conv import ConvCompressor
from longtake.plugins.compressors.specs import Conv

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs under TRITON_INTERPRET=1", allow_module_level=True)

LAST = torch.channels_last_3d
# ‖out − truth‖ / ‖truth‖ against float64; half of float16's is its own rounding, and the
# interpreter cuts bfloat16 off where a GPU rounds
TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 4e-3}
WHOLE = Tile(bm=128, bn=64, bk=64, warps=4, stages=1)
SMALL = Tile(bm=32, bn=16, bk=64, warps=4, stages=1)

Triple = tuple[int, int, int]


class Case:
    """Random arguments of a conv, in a number type and exactly the same in float64."""

    def __init__(
        self, channels: int, outputs: int, kernel: Triple, stride: Triple, size: Triple,
        dtype: torch.dtype = torch.float32, *, batch: int = 2, normed: bool = False,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(channels + outputs)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.stride = stride
        self.frames = random(batch, channels, *size).contiguous(memory_format=LAST)
        self.weight = random(outputs, channels, *kernel) / (channels * kernel[0] * 9) ** 0.5
        self.bias = random(outputs)
        self.norm = random(outputs) if normed else None

    def truth(self, activation: bool = True, ahead: Ahead | None = None) -> Tensor:
        wide = [x.double() for x in (self.frames, self.weight, self.bias)]
        norm = None if self.norm is None else self.norm.double()
        return by_reference(
            *wide, stride=self.stride, norm=norm, activation=activation, ahead=ahead
        )  # fmt: skip


def near(found: Tensor, truth: Tensor, within: float) -> None:
    found, truth = found.detach(), truth.detach()
    assert found.shape == truth.shape
    error = float((found.double() - truth.double()).norm() / truth.double().norm())
    assert error <= within, f"{error:.1e} is more than {within:.0e}"


K333, K344, K311, K133 = (3, 3, 3), (3, 4, 4), (3, 1, 1), (1, 3, 3)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "size"),
    [
        (16, 64, K333, (1, 1, 1), (4, 5, 7)),  # a row of taps at a step
        (48, 64, K333, (1, 1, 1), (3, 4, 6)),
        (5, 7, K333, (2, 1, 1), (5, 3, 5)),  # odd everything
        (64, 72, K333, (1, 2, 2), (4, 7, 5)),
        (80, 24, K344, (1, 2, 2), (3, 6, 8)),  # 48 taps
        (24, 16, (2, 3, 4), (1, 1, 2), (4, 3, 6)),
        (32, 16, K133, (1, 1, 1), (2, 5, 4)),
        (32, 16, K311, (2, 1, 1), (5, 3, 4)),  # rows and columns of the padding alone
    ],
)
def test_outputs_are_those_of_float64(
    channels: int, outputs: int, kernel: Triple, stride: Triple, size: Triple, dtype: torch.dtype
) -> None:
    case = Case(channels, outputs, kernel, stride, size, dtype)
    found = launch(case.frames, case.weight, case.bias, stride=stride, tile=WHOLE, split=1)
    near(found, case.truth(), TOLERANCE[dtype])


@pytest.mark.parametrize("split", [1, 4])
@pytest.mark.parametrize(("outputs", "tile"), [(24, WHOLE), (40, None), (300, None)])
def test_norm_over_channels(outputs: int, tile: Tile | None, split: int) -> None:
    """Of up to 256 channels in the conv's own program, of more (or shares) in a second one."""
    case = Case(16, outputs, K333, (1, 2, 1), (3, 5, 4), normed=True)
    found = launch(
        case.frames, case.weight, case.bias, stride=case.stride, norm=case.norm,
        tile=tile, split=split,
    )  # fmt: skip
    near(found, case.truth(), 1e-6)


@pytest.mark.parametrize("split", [2, 3, 8])
def test_shares_of_the_sums_add_up(split: int) -> None:
    """Also where steps do not divide by shares: 27 steps of 16 by 2 and by 8."""
    case = Case(16, 20, K333, (1, 1, 1), (3, 3, 4), torch.float16)
    tile = Tile(bm=128, bn=32, bk=16, warps=4, stages=1)
    found = launch(
        case.frames, case.weight, case.bias, stride=case.stride, tile=tile, split=split
    )  # fmt: skip
    near(found, case.truth(), 4e-4)


def test_sums_in_float16_are_promoted() -> None:
    case = Case(128, 32, K333, (1, 2, 2), (4, 6, 6), torch.float16)
    found = launch(
        case.frames, case.weight, case.bias, stride=case.stride, half_sums=True, tile=WHOLE, split=1
    )
    near(found, case.truth(), 6e-4)
    exact = launch(case.frames, case.weight, case.bias, stride=case.stride, tile=WHOLE, split=1)
    assert not torch.equal(found, exact), "sums were not in float16"


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_written_but_the_new_frames(split: int, dtype: torch.dtype) -> None:
    """Into the middle of poisoned memory: all inside is written, nothing around it."""
    case = Case(16, 20, K333, (1, 1, 1), (4, 3, 5), dtype)
    truth = case.truth()
    batch, channels, frames, *plane = truth.shape
    memory = torch.full((batch + 2, frames + 3, *plane, channels), float("nan"), dtype=dtype)
    buffer = memory.permute(0, 4, 1, 2, 3)[1:-1]
    launch(
        case.frames, case.weight, case.bias, stride=case.stride, ahead=2, out=buffer,
        tile=SMALL if dtype == torch.float32 else WHOLE, split=split,
    )  # fmt: skip
    near(buffer[:, :, 2 : 2 + frames], truth, TOLERANCE[dtype])
    buffer[:, :, 2 : 2 + frames] = float("nan")
    assert memory.isnan().all()


def test_nothing_is_read_but_the_frames() -> None:
    """Frames in the middle of poisoned memory; samples may stand apart."""
    case = Case(16, 20, K333, (1, 2, 2), (4, 3, 5))
    batch, channels, frames, *plane = case.frames.shape
    memory = torch.full((batch, frames + 4, *plane, channels), float("nan"))
    buffer = memory.permute(0, 4, 1, 2, 3)[:, :, 2:-2]
    buffer.copy_(case.frames)
    found = launch(buffer, case.weight, case.bias, stride=case.stride, tile=WHOLE, split=1)
    near(found, case.truth(), 1e-6)


@pytest.mark.parametrize("ahead", [None, "zeros", "replicate", "tail"])
@pytest.mark.parametrize("normed", [False, True])
def test_every_gradient(ahead: str | None, normed: bool) -> None:
    case = Case(16, 20, K333, (2, 1, 1), (5, 3, 4), normed=normed)
    out = case.truth()
    tail = torch.randn_like(out[:, :, :2].float())
    fronts = {
        None: Ahead(),
        "zeros": Ahead(frames=2),
        "replicate": Ahead(frames=2, replicate=True),
        "tail": Ahead(frames=2, tail=tail),
    }
    front = fronts[ahead]
    inputs = [case.frames, case.weight, case.bias]
    inputs += [x for x in (case.norm, front.tail) if x is not None]
    wide = [x.double().requires_grad_() for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    found = conv3d_act(
        *inputs[:3], stride=case.stride, norm=case.norm, ahead=front, kernels="triton"
    )  # fmt: skip
    truth = by_reference(
        *wide[:3], stride=case.stride, norm=wide[3] if normed else None,
        ahead=Ahead(
            frames=front.frames, replicate=front.replicate,
            tail=wide[-1] if front.tail is not None else None,
        ),
    )  # fmt: skip
    near(found, truth, 1e-6)
    grad = torch.randn_like(truth)
    truth.backward(grad)
    found.backward(grad.float())
    for one, other in zip(inputs, wide, strict=True):
        assert one.grad is not None and other.grad is not None
        near(one.grad, other.grad, 2e-6)


def test_a_conv_alone_has_its_gradients() -> None:
    case = Case(16, 20, K333, (1, 1, 1), (3, 3, 4))
    frames, weight = case.frames.requires_grad_(), case.weight.requires_grad_()
    out = conv3d_act(
        frames, weight, case.bias, stride=case.stride, activation=False, kernels="triton"
    )
    out.square().sum().backward()
    wide = [x.detach().double().requires_grad_() for x in (frames, weight)]
    truth = by_reference(*wide, case.bias.double(), stride=case.stride, activation=False)
    truth.square().sum().backward()
    for one, other in zip((frames, weight), wide, strict=True):
        assert one.grad is not None and other.grad is not None
        near(one.grad, other.grad, 2e-6)


def test_torch_knows_the_operation() -> None:
    """Schema, fake and autograd registration; it is traced in the test below."""
    case = Case(16, 20, K333, (1, 1, 1), (3, 3, 4), batch=1, normed=True)
    inputs = [x.requires_grad_() for x in (case.frames, case.weight, case.bias)]
    arguments = (*inputs, case.norm, None, [1, 1, 1], True, 2, True, False)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(conv3d_act_op, arguments, test_utils=checks)


def test_it_compiles_as_one_graph() -> None:
    case = Case(16, 20, K333, (1, 1, 1), (3, 3, 4), batch=1)

    def call(frames: Tensor) -> Tensor:
        return 2 * conv3d_act(frames, case.weight, case.bias, stride=(1, 1, 1), kernels="triton")

    fast = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(case.frames), call(case.frames), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_says_the_number_type(dtype: torch.dtype) -> None:
    case = Case(16, 20, K333, (1, 1, 1), (3, 3, 4))
    weight = case.weight.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = conv3d_act(case.frames, weight, case.bias, stride=case.stride, kernels="triton")
    assert out.dtype == dtype
    near(out, case.truth(), 3 * TOLERANCE[dtype])  # inputs are rounded, too
    out.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_what_the_kernel_does_not_take_goes_to_the_reference(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = Case(4, 8, K333, (1, 1, 1), (3, 6, 6), batch=1)
    first = case.frames.contiguous()  # channels first
    wide = Case(4, 8, (1, 6, 6), (1, 1, 1), (3, 6, 6), batch=1)
    for _ in range(2):
        for frames, weight, bias in (
            (first, case.weight, case.bias),
            (case.frames.double(), case.weight.double(), case.bias.double()),
            (wide.frames, wide.weight, wide.bias),
        ):
            found = conv3d_act(frames, weight, bias, stride=(1, 1, 1), kernels="triton")
            truth = by_reference(frames, weight, bias, stride=(1, 1, 1))
            assert torch.equal(found, truth)
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    for part in ("not channels last", "float64", "more than 31 taps"):
        assert len([line for line in lines if part in line]) == 1, lines


def test_a_kernel_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_chosen", {})
    monkeypatch.setattr(op, "launch", lambda *_, **__: torch.zeros(1, 64, 2, 3, 5))
    case = Case(16, 20, K333, (1, 1, 1), (3, 3, 4))
    with pytest.raises(dispatch.KernelError, match="relative error 1.0e"):
        conv3d_act(case.frames, case.weight, case.bias, stride=(1, 1, 1), kernels="triton")


def test_the_reference_is_the_meaning() -> None:
    case = Case(8, 12, K333, (2, 1, 1), (5, 3, 4), normed=True)
    tail, new = case.frames[:, :, :1], case.frames[:, :, 1:]
    meant = reference.conv3d_act(
        new, case.weight, case.bias, stride=case.stride, tail=tail, norm=case.norm
    )
    assert torch.equal(
        by_reference(case.frames, case.weight, case.bias, stride=case.stride, norm=case.norm), meant
    )


class TokenCase:
    """Random arguments of `out_tokens`, LR latents as a slice of more, channels first."""

    def __init__(
        self, channels: int, width: int, lr: int, grid: tuple[int, int], lr_size: tuple[int, int],
        dtype: torch.dtype = torch.float32, *, batch: int = 2, frames: int = 3,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(width)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.grid = grid
        cells = grid[0] * grid[1]
        self.arguments = [
            random(batch, frames, cells, channels), random(width, channels) / channels**0.5,
            random(width), random(batch, lr, frames + 2, *lr_size)[:, :, 1:-1],
            random(width, lr, 1, 2, 2) / (4 * lr) ** 0.5, random(width),
        ]  # fmt: skip

    def truth(self) -> Tensor:
        return out_tokens.by_reference(*[x.double() for x in self.arguments], grid=self.grid)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("channels", "width", "lr", "grid", "lr_size"),
    [
        (64, 96, 16, (2, 3), (4, 6)),
        (40, 70, 3, (3, 2), (5, 3)),  # an odd size repeats its last row and column
        (64, 64, 48, (2, 2), (5, 5)),  # and what lies beyond the grid is left out
    ],
)
def test_tokens_are_those_of_float64(
    channels: int, width: int, lr: int, grid: tuple[int, int], lr_size: tuple[int, int],
    dtype: torch.dtype,
) -> None:  # fmt: skip
    case = TokenCase(channels, width, lr, grid, lr_size, dtype)
    truth = case.truth()
    found = out_tokens.launch(*case.arguments, grid=grid)
    near(found.view(truth.shape), truth, TOLERANCE[dtype])


def test_tokens_are_written_at_their_place_in_a_buffer_and_nowhere_else() -> None:
    case = TokenCase(32, 40, 16, (2, 3), (4, 5))
    memory = torch.full((4, 7 + 18 + 5, 40), float("nan"))
    out_tokens.launch(*case.arguments, grid=case.grid, out=memory[1:3], first=7, tile=SMALL)
    written = memory[1:3, 7:25]
    near(written.view(2, 3, 6, 40), case.truth(), 1e-6)
    written.fill_(float("nan"))
    assert memory.isnan().all()


def test_tokens_have_their_gradients_and_torch_knows_them() -> None:
    case = TokenCase(32, 40, 16, (2, 3), (4, 5), batch=1)
    inputs = [x.requires_grad_() for x in case.arguments[:3]]
    wide = [x.detach().double() for x in case.arguments]
    wide[:3] = [x.requires_grad_() for x in wide[:3]]
    found = out_tokens.out_tokens(*case.arguments, grid=case.grid, kernels="triton")
    truth = out_tokens.by_reference(*wide, grid=case.grid)
    near(found, truth, 1e-6)
    found.square().sum().backward()
    truth.square().sum().backward()
    for one, other in zip(inputs, wide[:3], strict=True):
        assert one.grad is not None and other.grad is not None
        near(one.grad, other.grad, 2e-6)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*case.arguments, list(case.grid))
    torch.library.opcheck(out_tokens.out_tokens_op, arguments, test_utils=checks)
    with torch.autocast("cpu", dtype=torch.float16):
        half = out_tokens.out_tokens(*case.arguments, grid=case.grid, kernels="triton")
    assert half.dtype == torch.float16


def test_tokens_that_the_kernel_does_not_take_go_to_the_reference(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = TokenCase(8, 12, 4, (2, 3), (4, 5))
    trained = [*case.arguments[:4], case.arguments[4].requires_grad_(), case.arguments[5]]
    for _ in range(2):
        found = out_tokens.out_tokens(*trained, grid=case.grid, kernels="triton")
        assert torch.equal(found, out_tokens.by_reference(*trained, grid=case.grid))
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len([line for line in lines if "their projection are trained" in line]) == 1


class ChunkCase:
    """Random arguments of `chunk_attention`; the mean of x is half its spread, as behind SiLU."""

    def __init__(
        self, batch: int, new: int, cells: int, channels: int, heads: int, width: int,
        before: int, window: int, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(channels + before)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        inner = heads * width
        self.how = {"heads": heads, "window": window}
        self.x = random(batch, new, cells, channels) + 0.5
        self.past = random(2, batch, before, cells, heads, width) if before else None
        self.weights = AttentionWeights(
            norm=random(channels) / 4 + 1, norm_bias=random(channels) / 4,
            qkv=random(3 * inner, channels) / channels**0.5,
            out=random(channels, inner) / inner**0.5, out_bias=random(channels),
        )  # fmt: skip

    @property
    def tensors(self) -> list[Tensor]:
        return [self.x, *([] if self.past is None else [self.past]), *self.weights]

    def truth(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """Of these tensors, or of its own, in float64."""
        x, *rest = given or [tensor.double() for tensor in self.tensors]
        past = None if self.past is None else rest.pop(0)
        return reference.chunk_attention(x, past, AttentionWeights(*rest), **self.how)

    def run(self, kernels: str = "triton") -> tuple[Tensor, Tensor]:
        return attention.chunk_attention(
            self.x, self.past, self.weights, kernels=kernels, **self.how
        )


# five stores stand one behind the other, and the interpreter cuts bfloat16 off at each
CHAIN = {**TOLERANCE, torch.bfloat16: 8e-3}
FEW = Tile(bm=16, bn=16, bk=16, warps=4, stages=1)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", list(CHAIN))
@pytest.mark.parametrize(
    ("batch", "new", "cells", "channels", "heads", "width", "before", "window"),
    [
        (1, 3, 24, 64, 2, 32, 3, 4),  # a second that is appended: 96 cells seen, two steps
        (2, 3, 7, 40, 3, 12, 1, 4),  # odd everything, the window not yet full
        (1, 1, 70, 24, 1, 20, 2, 3),  # one frame, more cells than a program
        (2, 5, 3, 16, 2, 8, 0, 3),  # a video's start, longer than the window
        (1, 2, 5, 16, 1, 16, 0, 1),  # frames that see themselves alone: there is no state
    ],
)
def test_an_appended_chunk_is_that_of_float64(
    batch: int, new: int, cells: int, channels: int, heads: int, width: int, before: int,
    window: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    case = ChunkCase(batch, new, cells, channels, heads, width, before, window, dtype)
    made = attention.launch(case.x, case.past, case.weights, **case.how)
    for found, truth in zip(made, case.truth(), strict=True):
        assert found.shape == truth.shape and found.is_contiguous()
        if truth.numel():
            near(found, truth, CHAIN[dtype])
    if case.past is not None and before + new < window + 2:
        kept = made[1].shape[2] - new
        assert torch.equal(made[1][:, :, :kept], case.past[:, :, before - kept :])


@pytest.mark.usefixtures("poisoned")
def test_a_chunk_is_written_and_read_at_its_place_and_nowhere_else() -> None:
    """By programs of few cells: into the middle of NaN, from the middle of NaN."""
    case = ChunkCase(2, 2, 9, 24, 2, 12, 2, 4)
    assert case.past is not None
    truth = case.truth()
    memory = [torch.full((len(x) + 2, *x.shape[1:]), float("nan")) for x in truth]
    into = (memory[0][1:-1], memory[1][1:-1])
    x, past = (
        torch.full((len(t) + 2, *t.shape[1:]), float("nan"))[1:-1].copy_(t)
        for t in (case.x, case.past)
    )
    attention.launch(x, past, case.weights, into=into, tiles=(FEW, FEW, FEW), **case.how)
    for written, wanted, whole in zip(into, truth, memory, strict=True):
        near(written, wanted, 1e-6)
        written.fill_(float("nan"))
        assert whole.isnan().all()


@pytest.mark.parametrize("before", [0, 2])
def test_every_gradient_of_a_chunk(before: int) -> None:
    """Through the features and through the state: of x, the past and every weight."""
    case = ChunkCase(2, 2, 5, 24, 2, 8, before, 4)
    wide = [tensor.double().requires_grad_() for tensor in case.tensors]
    narrow = [tensor.requires_grad_() for tensor in case.tensors]
    found, truth = case.run(), case.truth(*wide)
    grads = [torch.randn_like(one) for one in truth]
    torch.autograd.backward(truth, grads)
    torch.autograd.backward(found, [grad.float() for grad in grads])
    for one, other in zip(narrow, wide, strict=True):
        assert one.grad is not None and other.grad is not None
        near(one.grad, other.grad, 2e-6)


def test_torch_knows_a_chunk() -> None:
    """Schema, fake, autograd; traced forward and back as one graph; autocast."""
    case = ChunkCase(1, 2, 5, 16, 2, 8, 1, 3)
    weights = [weight.requires_grad_() for weight in case.weights]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for past in (case.past, None):
        arguments = (case.x, past, *weights, 2, 3)
        torch.library.opcheck(attention.chunk_attention_op, arguments, test_utils=checks)

    def call(x: Tensor) -> Tensor:
        made = attention.chunk_attention(x, case.past, case.weights, kernels="triton", **case.how)
        return made[0].square().sum() + made[1].sum()

    grads = []
    for run in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        grads.append(torch.autograd.grad(run(case.x), weights))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            made = case.run()
        assert {part.dtype for part in made} == {dtype}
        near(made[0], case.truth()[0], 3 * CHAIN[dtype])  # inputs are rounded, too
    made[0].float().sum().backward()
    assert weights[0].grad is not None and weights[0].grad.dtype == torch.float32


def test_what_is_no_small_chunk_goes_to_the_library(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_said", set())
    monkeypatch.setattr(attention, "MOST_CELLS", 2 * 3 * 5)
    small, long = ChunkCase(2, 3, 5, 16, 2, 8, 1, 3), ChunkCase(2, 4, 5, 16, 2, 8, 1, 3)
    assert attention.refusal(small.x, small.past, small.weights, 2, torch.float32) == ""
    for case, why in (
        (long, "more than 30 new cells"),
        (ChunkCase(1, 1, 2, 16, 2, 8, 0, 3, torch.float64), "float64 numbers"),
        (ChunkCase(1, 1, 2, 16, 1, 132, 0, 3), "heads are wider than 128"),
    ):
        for _ in range(2):
            for found, truth in zip(case.run(), case.run("reference"), strict=True):
                assert torch.equal(found, truth)
        (line,) = [r.getMessage() for r in caplog.records if why in r.getMessage()]
        assert line.startswith("kernels: a chunk_attention runs by reference (")
    mixed = long.weights._replace(qkv=long.weights.qkv.half())
    assert "number types" in attention.refusal(long.x, None, mixed, 2, torch.float32)
    assert "no new frames" in attention.refusal(long.x[:, :0], None, long.weights, 2, torch.float32)


def test_attention_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_chosen", {})
    made = (torch.zeros(1, 2, 6, 64), torch.zeros(2, 1, 2, 6, 2, 32))
    monkeypatch.setattr(attention, "launch", lambda *_, **__: made)
    with pytest.raises(dispatch.KernelError, match="chunk_attention: a trial .* error 1.0e"):
        ChunkCase(1, 1, 2, 16, 2, 8, 0, 3).run()


@torch.no_grad()
def test_torch_counts_the_operations_of_kernels() -> None:
    """Those of the references, or floors on a GPU would be of other work."""
    conv, tokens = Case(16, 20, K333, (2, 1, 1), (5, 3, 4)), TokenCase(32, 40, 16, (2, 3), (4, 6))
    chunks = [ChunkCase(2, 3, 5, 16, 2, 8, before, 3) for before in (0, 2)]
    ahead = Ahead(frames=2)
    for by in (
        lambda kernels: conv3d_act(
            conv.frames, conv.weight, conv.bias, stride=conv.stride, ahead=ahead, kernels=kernels
        ),
        lambda kernels: out_tokens.out_tokens(*tokens.arguments, grid=tokens.grid, kernels=kernels),
        chunks[0].run,
        chunks[1].run,
    ):
        by("triton")  # the trial of a device is no part of a call
        counts = [count_flop(functools.partial(by, way)) for way in ("triton", "reference")]
        assert counts[0] == counts[1] > 0


SPEC = Conv(
    rate=Rate(height=2, width=2, time=2), channels=(8, 12), heads=2, head_width=4, kernels="triton"
)


def encoder(**changes: object) -> ConvCompressor:
    torch.manual_seed(0)
    made = ConvCompressor(evolve(SPEC, **changes), sample_fit(dtype=torch.float32))
    assert made.hr is not None
    torch.nn.init.normal_(made.hr.out.weight, std=0.3)
    return made


def history(latents: int) -> History:
    size = Size3(time=latents, height=5, width=4)
    return sample_history(size, ConvCompressor.needs(SPEC), 1, dtype=torch.float32)


def tokens_of(memory: Memory) -> Tensor:
    (part,) = memory.parts
    return part.tokens


def in_chunks(made: ConvCompressor, whole: History, cuts: list[int]) -> Tensor:
    state: State | None = None
    settled = []
    for begin, end in zip([0, *cuts], [*cuts, whole.size.time], strict=True):
        state, memory = made.step(state, whole.chunk(begin, end))
        settled.append(memory)
    assert state is not None
    return tokens_of(merge([*settled, made.pending(state)]))


@pytest.mark.parametrize("changes", [{}, {"norm": "rms", "time_padding": "zeros", "kernel": 4}])
def test_the_encoder_is_that_of_the_reference(changes: dict[str, object]) -> None:
    """Memory and the gradient of every parameter."""
    whole = history(5)
    memories = []
    encoders = [encoder(**changes), encoder(**changes, kernels="reference")]
    for made in encoders:
        memory = made(whole)
        memories.append(tokens_of(memory))
        memories[-1].square().sum().backward()
    near(memories[0], memories[1], 1e-5)
    for (name, one), other in zip(
        encoders[0].named_parameters(), encoders[1].parameters(), strict=True
    ):
        assert one.grad is not None and other.grad is not None, name
        near(one.grad, other.grad, 1e-5)


@torch.no_grad()
def test_appending_is_encoding_the_whole() -> None:
    made, whole = encoder().eval(), history(6)
    truth = tokens_of(made(whole))
    near(in_chunks(made, whole, [1, 4]), truth, 1e-6)
    near(in_chunks(made, whole, [2, 3, 5]), truth, 1e-6)


@torch.no_grad()
def test_a_state_goes_on_with_other_kernels() -> None:
    whole, one, other = history(5), encoder().eval(), encoder(kernels="reference").eval()
    state, settled = one.step(None, whole.chunk(0, 3))
    again, rest = other.step(state, whole.chunk(3, 5))
    found = tokens_of(merge([settled, rest, other.pending(again)]))
    near(found, tokens_of(other(whole)), 1e-5)


@torch.no_grad()
def test_sums_in_float16_leave_the_number_type() -> None:
    """Of memory and state, also under autocast; convs ran in float16."""
    whole, one, other = history(3), encoder(sums="float16").eval(), encoder().eval()
    found, truth = tokens_of(one(whole)), tokens_of(other(whole))
    near(found, truth, 2e-3)
    assert not torch.equal(found, truth)
    state, _ = one.step(None, whole)
    assert state["conv.0"].dtype == state["conv.1"].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near(tokens_of(one(whole)), truth, 1e-2)


@torch.no_grad()
def test_a_packed_weight_follows_its_parameter() -> None:
    made, whole = encoder().eval().requires_grad_(False), history(2)
    before = tokens_of(made(whole))
    assert torch.equal(tokens_of(made(whole)), before)
    for parameter in made.parameters():
        parameter.mul_(1.5)
    near(tokens_of(made(whole)), tokens_of(encoder_like(made)(whole)), 1e-5)


def encoder_like(made: ConvCompressor) -> ConvCompressor:
    other = encoder(kernels="reference").eval()
    other.load_state_dict(made.state_dict())
    return other


@torch.no_grad()
def test_the_encoder_of_the_tutorial_gets_the_kernels(tmp_path: Path) -> None:
    """All three, in `forward` and chunk by chunk."""
    page = Path(conv_layers.__file__).with_name("README.md").read_text(encoding="utf-8")
    path = tmp_path / "sketch.py"
    path.write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    sketch = import_file(path)
    memories, ran = [], set()
    for kernels in ("reference", "triton"):
        torch.manual_seed(0)
        spec = sketch.Sketch(rate=SPEC.rate, width=16, kernels=kernels)
        made = sketch.SketchCompressor(spec, sample_fit(dtype=torch.float32)).eval()
        torch.nn.init.normal_(made.head.weight, std=0.3)
        memories.append(tokens_of(made(history(3))))
        if kernels == "triton":
            with torch.profiler.profile() as profile:
                near(in_chunks(made, history(3), [2]), memories[0], 1e-5)
            ran = {event.key for event in profile.key_averages()}
    near(memories[1], memories[0], 1e-5)
    assert {"longtake::conv3d_act", "longtake::chunk_attention", "longtake::out_tokens"} <= ran
