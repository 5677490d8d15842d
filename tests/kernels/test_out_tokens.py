"""The memory tokens in one: what every device computes, and what the kernel does not take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longtake.kernels.out_tokens import launch, out_tokens, refusal


def arguments(rows: int, columns: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "hidden": random(2, 3, 6, 5),
        "weight": random(7, 5),
        "bias": random(7),
        "lr": random(2, 4, 3, rows, columns),
        "patch_weight": random(7, 4, 1, 2, 2),
        "patch_bias": random(7),
    }


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (3, 5)])
def test_tokens_are_the_sum_of_both_branches(rows: int, columns: int) -> None:
    given = arguments(rows, columns)
    found = out_tokens(**given, grid=(2, 3), kernels="reference")
    for cell in range(6):
        row, column = divmod(cell, 3)
        down = [min(2 * row + i, rows - 1) for i in (0, 1)]  # over an edge the last is read again
        right = [min(2 * column + j, columns - 1) for j in (0, 1)]
        patch = given["lr"][:, :, :, down][..., right]  # [B, L, T, 2, 2]
        read = torch.einsum("bltij,dlij->btd", patch, given["patch_weight"][:, :, 0])
        wanted = given["hidden"][:, :, cell] @ given["weight"].T + given["bias"] + read
        torch.testing.assert_close(found[:, :, cell], wanted + given["patch_bias"])


def reasons(grid: tuple[int, int] = (2, 3), **changes: Tensor) -> str:
    given = {name: x.float() for name, x in arguments(4, 6).items()} | changes
    names = ("hidden", "weight", "lr", "patch_weight")
    return refusal(*(given[name] for name in names), grid, given["hidden"].dtype)


def test_what_the_kernel_does_not_take_is_said() -> None:
    assert reasons() == ""
    assert "float64 numbers" in reasons(hidden=torch.zeros(2, 3, 6, 5, dtype=torch.float64))
    assert "number types" in reasons(weight=torch.zeros(7, 5, dtype=torch.float16))
    assert "spans 2 latent frames" in reasons(patch_weight=torch.zeros(7, 4, 2, 2, 2))
    assert "are trained" in reasons(lr=torch.zeros(2, 4, 3, 4, 6, requires_grad=True))
    assert "no tokens" in reasons(hidden=torch.zeros(2, 0, 6, 5))
    assert "do not belong" in reasons(lr=torch.zeros(2, 4, 2, 4, 6))
    assert "do not fill a grid of 3×2" in reasons((3, 2))


def test_the_kernel_is_handed_what_it_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides and sizes, seen by a stand-in: kernels themselves run in test_interpret.py."""
    jit = pytest.importorskip("longtake.kernels.out_tokens_jit")
    seen: list[tuple[object, ...]] = []

    class Stand:
        def __getitem__(self, programs: tuple[int]) -> Stand:
            seen.append(programs)
            return self

        def __call__(self, *given: object, **sizes: int) -> None:
            seen.append(given)
            seen.append(tuple(sizes[name] for name in ("C", "D", "L", "PH", "PW")))

    monkeypatch.setattr(jit, "out_tokens_kernel", Stand())
    given = {name: x.float() for name, x in arguments(4, 6).items()}
    given["lr"] = given["lr"].transpose(3, 4).contiguous().transpose(3, 4)  # columns far apart
    out = torch.zeros(2, 20, 7)
    assert launch(**given, grid=(2, 3), out=out, first=4) is out
    programs, handed, sizes = seen
    assert programs[0] >= 1 and sizes == (5, 7, 4, 2, 2)
    rows, frames, *grid = handed[7:11]
    assert (rows, frames, grid) == (36, 3, [2, 3]) and handed[11:13] == (4, 6)
    lr = handed[3]
    assert isinstance(lr, Tensor) and lr.stride(4) == 1
    assert handed[13:17] == lr.stride()[:4] and handed[17:19] == (out.stride(0), 4 * 7)
