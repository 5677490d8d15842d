"""The patchifier: FramePack's projections, their start, their schedule and their places."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
    HunyuanVideoFramepackRotaryPosEmbed,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoHistoryPatchEmbed,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from longtake.core.config import from_json, to_json
from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import SMALL, alone, sample_fit, sample_history, shortened
from longtake.core.errors import UserError
from longtake.core.interfaces.compressor import State
from longtake.core.interfaces.spec import CompressorSpec
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, Part, merge
from longtake.plugins.compressors.patchifier import PatchifierCompressor
from longtake.plugins.compressors.patchifier_layers import spread
from longtake.plugins.compressors.specs import Patchifier

FRAMEPACK = Patchifier(schedule=((1, 1), (2, 2), (4, 16)))
EVEN = Patchifier(rate=Rate.parse("2x2x2"))
AGED = [attrs.evolve(FRAMEPACK, tail=tail) for tail in ("drop", "mean", "rest")]
ODD = Patchifier(schedule=((1, 2), (2, 3), (8, 5)), tail="mean")
QUICK = settings(max_examples=15, deadline=None)
step = st.sampled_from([1, 2, 4, 8])
roundings = st.sampled_from(["ceil", "whole"])
even = st.builds(
    lambda h, w, t, rounding: Patchifier(rate=Rate(height=h, width=w, time=t), rounding=rounding),
    step,
    step,
    step,
    roundings,
)


@st.composite
def schedules(draw: st.DrawFn) -> Patchifier:
    rates = sorted(draw(st.sets(step, min_size=1, max_size=3)))
    counts = [draw(st.integers(1, 9)) for _ in rates]
    tail = draw(st.sampled_from(["drop", "mean", "rest"]))
    return Patchifier(
        schedule=tuple(zip(rates, counts, strict=True)), tail=tail, rounding=draw(roundings)
    )


specs = st.one_of(even, schedules())
sizes = st.builds(
    lambda t, h, w: Size3(time=t, height=h, width=w),
    st.integers(0, 24),
    st.integers(1, 20),
    st.integers(1, 20),
)


def built(spec: Patchifier, dtype: torch.dtype = torch.float64) -> PatchifierCompressor:
    compressor = PatchifierCompressor(spec, sample_fit(dtype=dtype)).to(dtype)
    for number, weight in enumerate(compressor.parameters()):
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(number))
    return compressor


def history(size: Size3, batch: int = 2, dtype: torch.dtype = torch.float64) -> History:
    return sample_history(size, PatchifierCompressor.needs(EVEN), batch, start=8, dtype=dtype)


def streamed(compressor: PatchifierCompressor, past: History, lengths: list[int]) -> Memory:
    state: State | None = None
    memories = []
    for chunk in past.chunks(lengths):
        state, memory = compressor.step(state, chunk)
        memories.append(memory)
    assert state is not None
    return merge([*memories, compressor.pending(state)])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * scale).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        EVEN,
        AGED[0],
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in (Patchifier(), Patchifier(rate=Rate.parse("1x8x8")), ODD, *AGED[1:])
        ),
    ],
    ids=lambda s: f"{s.rate}{s.schedule}{s.tail}",
)
def test_contract(spec: Patchifier) -> None:
    check_compressor(PatchifierCompressor, spec)


@QUICK
@given(specs, sizes)
@torch.no_grad()
def test_whole_moves_tokens_of_incomplete_cells_and_nothing_else(
    spec: Patchifier, size: Size3
) -> None:
    past = history(size)
    cut, whole = (
        built(attrs.evolve(spec, rounding=rounding))(past).parts[0]
        for rounding in ("ceil", "whole")
    )
    assert torch.equal(cut.tokens, whole.tokens)
    assert torch.equal(cut.positions[..., 0], whole.positions[..., 0])
    moved = whole.extents - cut.extents
    assert bool((moved >= 0).all())
    # the nearer end of a cell stays where it was, the far one is where a whole cell's would be
    near = [part.positions - (part.extents - 1) / 2 for part in (cut, whole)]
    assert torch.equal(*near)
    if not spec.schedule:
        sides = torch.tensor([spec.rate.height, spec.rate.width], dtype=whole.extents.dtype)
        assert bool((whole.extents[..., 1:] == sides).all())


@QUICK
@given(specs, sizes, st.data())
@torch.no_grad()
def test_any_chunking_gives_the_memory_of_the_whole(
    spec: Patchifier, size: Size3, data: st.DataObject
) -> None:
    compressor, past = built(spec), history(size)
    whole = compressor(past)
    assert whole.length == PatchifierCompressor.context_length(spec, SMALL, size).tokens
    if not size.time:
        return
    cuts = sorted(data.draw(st.sets(st.integers(1, max(size.time - 1, 1)))) - {size.time})
    edges = [0, *cuts, size.time]
    merged = streamed(compressor, past, [b - a for a, b in zip(edges, edges[1:], strict=False)])
    assert merged.size == whole.size == size
    a, b = merged.parts[0], whole.parts[0]
    assert close(a.tokens, b.tokens)
    assert torch.equal(a.positions, b.positions) and torch.equal(a.extents, b.extents)


@QUICK
@given(specs, sizes, st.data())
@torch.no_grad()
def test_each_sample_of_a_ragged_batch_is_as_alone(
    spec: Patchifier, size: Size3, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=3))
    compressor = built(spec)
    ragged = shortened(history(size, len(lengths)), lengths)
    part = compressor(ragged).parts[0]
    for index, length in enumerate(lengths):
        own = compressor(alone(ragged, index)).parts[0]
        real = part.valid[index]
        short = attrs.evolve(size, time=length)
        told = PatchifierCompressor.context_length(spec, SMALL, short)
        assert int(real.sum()) == told.tokens
        assert close(part.tokens[index][real], own.tokens[0])
        assert torch.equal(part.positions[index][real], own.positions[0])
        assert torch.equal(part.extents[index][real], own.extents[0])


def test_padding_is_never_read_not_even_as_nan() -> None:
    for spec in (EVEN, *AGED):
        ragged = shortened(history(Size3(time=5, height=4, width=4), 3), [5, 2, 0])
        spoiled = ragged.latents.masked_fill(ragged.latents.abs() > 50, torch.nan)
        tokens = built(spec)(attrs.evolve(ragged, latents=spoiled)).parts[0].tokens
        assert bool(spoiled[2].isnan().any()) and bool(tokens.isfinite().all())


@pytest.mark.parametrize("rate", ["1x1x1", "2x2x2", "4x4x4", "4x2x8", "1x8x1"])
def test_it_starts_as_the_dits_tokens_of_the_blocks_means(rate: str) -> None:
    given_rate, fit = Rate.parse(rate), sample_fit()
    spec = Patchifier(rate=given_rate)
    past = history(Size3(time=1 + 2 * given_rate.time, height=32, width=32))
    tokens = PatchifierCompressor(spec, fit).double()(past).parts[0].tokens
    first = past.latents[:, :, :1].expand(-1, -1, given_rate.time, -1, -1)
    blocks = torch.cat([first, past.latents[:, :, 1:]], dim=2)
    steps = (given_rate.time, given_rate.height, given_rate.width)
    small = torch.nn.functional.avg_pool3d(blocks, steps, stride=steps)
    assert close(tokens, fit.tokens(small).flatten(1, 3))


def test_spread_repeats_each_weight_over_its_cells_and_keeps_its_sum() -> None:
    weight = torch.arange(4.0).reshape(1, 1, 1, 2, 2)
    made = spread(weight, Rate.parse("2x2x4"))
    assert made.shape == (1, 1, 4, 4, 4)
    assert torch.equal(made[0, 0, 0], made[0, 0, 3]) and torch.allclose(made.sum(), weight.sum())
    row = torch.tensor([0, 0, 1, 1]) / 16
    assert torch.equal(made[0, 0, 0, 0], row)


# FramePack's own class is the reference


def reference() -> HunyuanVideoHistoryPatchEmbed:
    torch.manual_seed(3)
    return HunyuanVideoHistoryPatchEmbed(SMALL.channels, SMALL.width)


def file_of(embed: HunyuanVideoHistoryPatchEmbed, path: Path) -> str:
    state = {f"clean_x_embedder.{name}": x for name, x in embed.state_dict().items()}
    save_file(state | {"proj_out.weight": torch.zeros(2, 2)}, path)
    return str(path)


@pytest.mark.parametrize("count", [19, 30, 18, 10, 4, 3, 1])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (12, 20), (10, 14), (2, 2)])
@torch.no_grad()
def test_with_framepacks_weights_it_is_framepacks_own_class(
    tmp_path: Path, count: int, rows: int, columns: int
) -> None:
    embed = reference()
    spec = attrs.evolve(FRAMEPACK, weights=file_of(embed, tmp_path / "framepack.safetensors"))
    compressor = PatchifierCompressor(spec, sample_fit(dtype=torch.float32))
    past = history(Size3(time=count, height=rows, width=columns), dtype=torch.float32)
    newest, middle = count - 1, max(0, count - 3)
    x = past.latents
    cuts = [x[:, :, newest:], x[:, :, middle:newest], x[:, :, max(0, count - 19) : middle]]
    made = embed(*[cut if cut.shape[2] else None for cut in cuts])
    want = torch.cat([tokens for tokens in reversed(made) if tokens is not None], dim=1)
    assert torch.equal(compressor(past).parts[0].tokens, want)


@pytest.mark.parametrize("count", [23, 24, 25, 26, 27])
@torch.no_grad()
def test_tail_rest_is_framepacks_4x_projection_of_all_that_is_older(
    tmp_path: Path, count: int
) -> None:
    embed = reference()
    file = file_of(embed, tmp_path / "framepack.safetensors")
    spec = attrs.evolve(FRAMEPACK, weights=file, tail="rest")
    compressor = PatchifierCompressor(spec, sample_fit(dtype=torch.float32))
    past = history(Size3(time=count, height=10, width=14), dtype=torch.float32)
    x = past.latents
    new, middle, old = embed(x[:, :, -1:], x[:, :, -3:-1], x[:, :, :-3])
    assert torch.equal(compressor(past).parts[0].tokens, torch.cat([old, middle, new], dim=1))


def tables(part: Part, rope: HunyuanVideoFramepackRotaryPosEmbed, edges: Tensor) -> list[Tensor]:
    """Cosines and sines of each token: means over its cells, the last of them as often as told."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    found: list[list[Tensor]] = [[], []]
    for n in range(part.tokens.shape[1]):
        halves: list[list[Tensor]] = [[], []]
        for axis in range(3):
            cells = int(part.extents[0, n, axis])
            first = part.positions[0, n, axis] - (cells - 1) / 2
            places = first + torch.arange(cells).double()
            again = places[-1:].expand(int(edges[n, axis]) - cells)
            table = get_1d_rotary_pos_embed(
                rope.rope_dim[axis], torch.cat([places, again]).float(), rope.theta, use_real=True
            )
            for half, x in zip(halves, table, strict=True):
                half.append(x.mean(dim=0))
        for rows, half in zip(found, halves, strict=True):
            rows.append(torch.cat(half))
    return [torch.stack(rows) for rows in found]


@pytest.mark.parametrize(("rows", "columns", "whole"), [(16, 16, True), (10, 14, False)])
@torch.no_grad()
def test_places_and_extents_give_framepacks_averaged_rotary_table(
    rows: int, columns: int, whole: bool
) -> None:
    """At padded edges the last cell counts again, as often as the kernel is longer (see class)."""
    rope = HunyuanVideoFramepackRotaryPosEmbed(2, 1, [4, 6, 6])
    past = history(Size3(time=19, height=rows, width=columns), 1)
    part = built(FRAMEPACK)(past).parts[0]
    frames = torch.arange(8, 27)
    cells = rows // 2, columns // 2
    pack = HunyuanVideoFramepackTransformer3DModel
    want: list[list[Tensor]] = [[], []]
    kernel = []
    for rate, shown in ((4, frames[:16]), (2, frames[16:18]), (1, frames[18:])):
        table = rope(shown, rows, columns, torch.device("cpu"))
        if rate > 1:
            table = pack._pad_rotary_emb(pack, table, *cells, (rate,) * 3)
        kernel += [rate] * len(table[0])
        for half, x in zip(want, table, strict=True):
            half.append(x)
    edges = torch.tensor(kernel)[:, None].expand(-1, 3)
    assert bool((part.extents[0] == edges).all()) == whole
    for got, half in zip(tables(part, rope, edges), want, strict=True):
        assert torch.allclose(got, torch.cat(half), atol=1e-5)


@torch.no_grad()
def test_an_old_latent_fades_from_fine_to_coarse_to_gone() -> None:
    compressor, small = built(FRAMEPACK), Size3(time=30, height=8, width=8)
    past = history(small, 1)
    moved = past.latents.clone()
    moved[:, :, 5] += 1.0
    changed = attrs.evolve(past, latents=moved)
    counts = []
    for seen in range(6, 31):
        a, b = (compressor(h.chunk(0, seen)).parts[0].tokens for h in (past, changed))
        counts.append(int((a != b).any(-1).sum()))
    assert counts[0] == 16 and counts[1:3] == [4, 4]
    assert set(counts[3:19]) == {1} and set(counts[19:]) == {0}


@pytest.mark.parametrize("spec", [*AGED, ODD], ids=lambda s: s.tail)
@torch.no_grad()
def test_the_state_stays_as_large_as_the_schedule(spec: Patchifier) -> None:
    compressor, past = built(spec), history(Size3(time=120, height=4, width=4), 1)
    state, held = None, []
    for chunk in past.chunks([40, 40, 40]):
        state, memory = compressor.step(state, chunk)
        held.append(sum(x.untyped_storage().nbytes() for x in state.values()))
        assert bool(memory.length) == (spec.tail == "rest")
    assert held[0] == held[1] == held[2]


@torch.no_grad()
def test_mean_tail_is_one_frame_of_the_mean_of_all_older_latents() -> None:
    compressor, past = built(AGED[1]), history(Size3(time=25, height=8, width=8), 1)
    part = compressor(past).parts[0]
    mean = past.latents[:, :, :6].mean(dim=2, keepdim=True).expand(-1, -1, 4, -1, -1)
    want = compressor.inner.projections["4"](mean).flatten(1, 2)  # type: ignore[union-attr]
    assert close(part.tokens[:, :1], want)
    assert part.positions[0, 0].tolist() == [8 + 2.5, 1.5, 1.5]
    assert part.extents[0, 0].tolist() == [6.0, 4.0, 4.0]


def test_an_empty_or_short_history_keeps_every_parameter_in_the_graph() -> None:
    for spec in (EVEN, *AGED):
        for count in (0, 1):
            compressor = built(spec)
            memory = compressor(history(Size3(time=count, height=4, width=4)))
            (memory.anchor() + sum(p.tokens.sum() for p in memory.parts)).backward()
            assert all(p.grad is not None for p in compressor.parameters())


def test_gradients_of_a_stream_are_those_of_the_whole() -> None:
    for spec in (EVEN, AGED[2]):
        compressor, past = built(spec), history(Size3(time=11, height=6, width=6))
        compressor(past).parts[0].tokens.square().sum().backward()
        whole = [p.grad.clone() for p in compressor.parameters() if p.grad is not None]
        compressor.zero_grad()
        streamed(compressor, past, [1, 2, 8]).parts[0].tokens.square().sum().backward()
        parts = [p.grad for p in compressor.parameters() if p.grad is not None]
        assert len(whole) == len(parts) > 0
        assert all(close(a, b, 1e-10) for a, b in zip(parts, whole, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_stays_near_float64(dtype: torch.dtype) -> None:
    for spec in (EVEN, *AGED):
        compressor, past = built(spec), history(Size3(time=25, height=8, width=8))
        want = compressor(past).parts[0].tokens
        low = compressor.to(dtype)(past.to("cpu", dtype)).parts[0].tokens
        assert low.dtype == dtype
        assert (low.double() - want).norm() < 2e-2 * want.norm()


def test_specs_go_through_json() -> None:
    for spec in (EVEN, *AGED, ODD):
        assert from_json(to_json(spec), CompressorSpec) == spec


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schedule": ((3, 1),)}, "rates are 1, 2, 4 or 8, not 3"),
        ({"schedule": ((2, 1), (1, 1))}, "rates grow with age"),
        ({"schedule": ((1, 0),)}, "1 latent or more, not 0"),
        ({"tail": "rest"}, "needs a schedule"),
        ({"weights": "x"}, "schedule of rates 1, 2 and 4"),
        ({"weights": "x", "schedule": ((1, 1), (8, 1))}, "schedule of rates 1, 2 and 4"),
        ({"weights": ""}, "must name weights"),
    ],
)
def test_bad_specs_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Patchifier(**fields)  # type: ignore[arg-type]


def test_bad_weights_are_one_line(tmp_path: Path) -> None:
    def load(place: Path) -> str:
        spec = attrs.evolve(FRAMEPACK, weights=str(place))
        with pytest.raises(UserError) as found:
            PatchifierCompressor(spec, sample_fit())
        assert len(str(found.value).splitlines()) == 1
        return str(found.value)

    assert "no such folder or file; name a FramePack transformer" in load(tmp_path / "none")
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights at all")
    assert "no safetensors file that can be read" in load(tmp_path / "damaged.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "are no FramePack transformer" in load(tmp_path / "other.safetensors")
    wide = HunyuanVideoHistoryPatchEmbed(SMALL.channels, 12)
    file_of(wide, tmp_path / "wide.safetensors")
    assert "proj.weight is [12, 3, 1, 2, 2], this DiT asks for [8, 3, 1, 2, 2]" in load(
        tmp_path / "wide.safetensors"
    )


def test_weights_are_found_in_a_diffusers_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    embed = reference()
    state = {f"clean_x_embedder.{name}": x for name, x in embed.state_dict().items()}
    names = sorted(state)
    save_file({n: state[n] for n in names[:3]}, folder / "model-1-of-2.safetensors")
    save_file({n: state[n] for n in names[3:]}, folder / "model-2-of-2.safetensors")
    for place in (folder, folder.parent):
        spec = attrs.evolve(FRAMEPACK, weights=str(place))
        made = dict(PatchifierCompressor(spec, sample_fit()).named_parameters())
        got = made["inner.projections.4.weight"].float()
        assert torch.equal(got, embed.proj_4x.weight)


def test_what_cannot_follow_is_refused() -> None:
    past = history(Size3(time=5, height=4, width=4))
    for spec in (EVEN, FRAMEPACK):
        compressor = built(spec)
        state, _ = compressor.step(None, past.chunk(0, 2))
        with pytest.raises(ValueError, match="from latent 3 after 2 were seen"):
            compressor.step(state, past.chunk(3, 5))
    geometry = attrs.evolve(SMALL, patch=Size3(time=2, height=2, width=2))
    with pytest.raises(UserError, match="patches hold one latent frame"):
        PatchifierCompressor(EVEN, sample_fit(geometry))
