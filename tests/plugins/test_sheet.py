"""The contact sheet: the newest frames in one picture, encoded by the codec, at their places."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor

from longtake.backbones.codecs.specs import Dct
from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import SMALL, sample_fit, sample_history
from longtake.core.errors import UserError
from longtake.core.interfaces.codec import Codec, from_bytes
from longtake.core.interfaces.compressor import Needs
from longtake.core.interfaces.spec import CodecSpec
from longtake.core.model import build_model
from longtake.core.registry import build
from longtake.core.values.grid import Geometry, Size3
from longtake.core.values.history import History
from longtake.plugins.compressors.sheet import ContactSheetCompressor
from longtake.plugins.compressors.specs import ContactSheet

from ..small import small

DCT = Dct(channels=16)
SHAPES = Geometry(
    channels=16, vae_stride=SMALL.vae_stride, patch=SMALL.patch, width=8, blocks=2, fps=8.0
)


def made(**changes: int) -> ContactSheetCompressor:
    return ContactSheetCompressor(ContactSheet(**changes), sample_fit(SHAPES, codec=DCT)).double()


def history(size: Size3, batch: int = 1, start: int = 8) -> History:
    return sample_history(size, Needs(pixels=True), batch, geometry=SHAPES, start=start)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [ContactSheet(), pytest.param(ContactSheet(side=2, every=3), marks=pytest.mark.slow)],
)
def test_contract(spec: ContactSheet) -> None:
    check_compressor(ContactSheetCompressor, spec, codec=DCT)


def last_frames(one: History, latents: list[int]) -> Tensor:
    assert one.pixels is not None
    return from_bytes(one.pixels[:, :, [4 * t for t in latents]], torch.float64)


def test_it_is_the_codecs_latent_of_the_newest_frames_in_one_picture() -> None:
    one = history(Size3(time=14, height=12, width=18))
    memory = made()(one)
    (part,) = memory.parts
    frames = last_frames(one, list(range(5, 14)))
    shrunk = torch.nn.functional.avg_pool2d(frames[0].transpose(0, 1), 3)  # 96 × 144 → 32 × 48
    rows = [torch.cat(list(shrunk[3 * r : 3 * r + 3]), dim=-1) for r in range(3)]
    sheet = torch.cat(rows, dim=-2)[None, :, None]
    codec: Codec[CodecSpec] = build(DCT)
    tokens = sample_fit(SHAPES).tokens(codec.double().encode(sheet)[0])[0, 0]  # [6, 9, D]
    assert part.tokens.shape == (1, 54, 8) and part.name == "contact-sheet"
    # A token's middle says its tile: 2 of 6 rows and 3 of 9 columns are in each.
    at = 0
    for tile in range(9):
        r, c = 2 * (tile // 3), 3 * (tile % 3)
        own = tokens[r : r + 2, c : c + 3].flatten(0, 1)
        assert torch.allclose(part.tokens[0, at : at + 6], own, atol=1e-12)
        places = part.positions[0, at : at + 6]
        assert set(places[:, 0].tolist()) == {8 + 5 + tile}
        middles = torch.cartesian_prod(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 4.0, 7.0]))
        assert torch.allclose(places[:, 1:], middles.double(), atol=1e-12)  # three cells to each
        at += 6
    extents = torch.tensor([1.0, 3.0, 3.0]).double().expand(54, 3)
    assert torch.allclose(part.extents[0], extents, atol=1e-12)


def test_few_frames_repeat_the_oldest_and_every_skips() -> None:
    one = history(Size3(time=4, height=6, width=6))
    part = made()(one).parts[0]
    assert sorted(set((part.positions[0, :, 0] - 8).tolist())) == [0.0, 1.0, 2.0, 3.0]
    skipping = made(side=2, every=2)(history(Size3(time=12, height=6, width=6))).parts[0]
    assert sorted(set((skipping.positions[0, :, 0] - 8).tolist())) == [4.0, 6.0, 8.0, 10.0]
    alike = made(side=1)(one).parts[0]
    codec: Codec[CodecSpec] = build(DCT)
    still = codec.double().encode(last_frames(one, [3]))[0]
    whole = sample_fit(SHAPES).tokens(still).flatten(1, 3)
    assert torch.allclose(alike.tokens, whole, atol=1e-12)
    cells = torch.cartesian_prod(torch.tensor([11]), torch.arange(3), torch.arange(3))
    assert torch.equal(alike.positions[0], cells.double())


def test_the_state_is_the_tiles_and_weights_are_in_no_file() -> None:
    compressor = made()
    one = history(Size3(time=30, height=6, width=6))
    state, held = None, []
    for chunk in one.chunks([1, 9, 10, 10]):
        state, settled = compressor.step(state, chunk)
        assert settled.length == 0
        held.append(sum(x.untyped_storage().nbytes() for x in state.values()))
    assert held[1:] == [held[1]] * 3
    assert not compressor.settles and not list(compressor.parameters())
    assert not compressor.state_dict()


def test_a_model_gives_it_the_backbones_codec() -> None:
    experiment = small()
    few = {"compressors": (ContactSheet(),), "retrievers": experiment.retrievers[:1]}
    model = build_model(attrs.evolve(experiment, **few))
    (compressor,) = model.encoder.compressors
    assert isinstance(compressor, ContactSheetCompressor)
    assert compressor.still.spec == experiment.backbone.codec
    with pytest.raises(UserError, match="needs to know the backbone's codec"):
        ContactSheetCompressor(ContactSheet(), sample_fit(SHAPES))
