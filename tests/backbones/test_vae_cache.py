"""Stores that are cached through a VAE: exact, with its margins, loaded no longer than needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, field, frozen
from attrs.validators import instance_of

from longtake.backbones.codecs.dct import DctCodec
from longtake.backbones.codecs.hunyuan import HunyuanVaeCodec
from longtake.backbones.codecs.specs import HunyuanVae, WanVae
from longtake.backbones.codecs.wan import WanVaeCodec, decode_reach
from longtake.backbones.wan.specs import TinyWan
from longtake.core.cache.cache import CacheRun, cache
from longtake.core.data.store import Store
from longtake.core.experiment import CacheSpec, Experiment
from longtake.core.interfaces.codec import Margins, from_bytes
from longtake.core.interfaces.spec import doc

from ..small import RATE, encode_lowres, small, write_clips
from .vaes import HUNYUAN, OLD, diffusers_hunyuan, diffusers_wan, shown


@frozen(kw_only=True)
class TinyOverVae(TinyWan):
    """A small Wan over the latents of a VAE."""

    codec: WanVae | HunyuanVae = field(
        default=OLD, validator=instance_of((WanVae, HunyuanVae)), metadata=doc("the codec")
    )


def experiment(codec: WanVae | HunyuanVae) -> Experiment:
    base = small()
    numbers = {n: getattr(base.backbone, n) for n in ("heads", "head_width", "layers", "ffn")}
    backbone = TinyOverVae(codec=codec, text_encoder=base.backbone.text_encoder, **numbers)
    chunk = CacheSpec(area=32 * 48, min_seconds=1.0, chunk=7, pixels=True, dtype="float32")
    return evolve(base, backbone=backbone, cache=chunk)


def cached(place: Path, made: Experiment, **how: Any) -> Store:
    write_clips(place / "v", seeds=(1, 2), seconds=4.0)
    out = place / "s"
    given = {"rates": frozenset({RATE}), "pixels": True, "device": torch.device("cpu")} | how
    cache(made, place / "v", out, **given)
    return Store.open(out)


def frames(store: Store) -> torch.Tensor:
    record = store.records[0]
    history = store.window(record, 0, record.latents, [], pixels=True)
    assert history.pixels is not None
    return from_bytes(history.pixels)


@pytest.fixture(scope="module")
def wan_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a VAE (vae), videos (v) and the store that was cached from them (s)."""
    place = tmp_path_factory.mktemp("cached")
    diffusers_wan(OLD).save_pretrained(place / "vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longtake.core.cache.job.SIDE", 16)  # small is fast
        cached(place, experiment(wan_spec(place)))
    return place


def wan_spec(place: Path) -> WanVae:
    return evolve(OLD, weights=str(place / "vae"))


@pytest.mark.slow
def test_a_store_of_wan_latents_is_what_one_pass_gives(wan_place: Path) -> None:
    store, codec = Store.open(wan_place / "s"), WanVaeCodec(wan_spec(wan_place))
    record = store.records[0]
    history = store.window(record, 0, record.latents, [RATE])
    pixels = frames(store)
    assert torch.equal(history.latents, codec.encode(pixels)[0])
    assert torch.equal(history.lr[RATE], encode_lowres(codec, RATE, [pixels]))
    assert store.header["codec"] == codec.identity and store.header["causal"] is True
    vae = diffusers_wan(OLD)
    back, _ = codec.decode(history.latents)
    assert torch.allclose(back.clamp(-1, 1), shown(vae, history.latents), atol=1e-4)


@pytest.mark.slow
def test_margins_are_measured_once_and_read_back(
    wan_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, codec = Store.open(wan_place / "s"), WanVaeCodec(wan_spec(wan_place))
    measured = store.header["measured"]
    assert store.header["margin"] == codec.margin == decode_reach(1) == 30
    assert 1 < measured["margin"] <= 30 and 1 < measured["encode_margin"] <= 30
    assert measured["pixels"] == pytest.approx(1 / 255)
    assert codec.margin_is_bound
    store.header["measured"]["margin"] = 17
    store.apply_margin(codec)
    assert codec.margin == 17 and not codec.margin_is_bound
    header = (wan_place / "s" / "store.json").read_text()
    monkeypatch.setattr("longtake.core.cache.job.measure_margins", None)
    assert len(cached(wan_place, experiment(wan_spec(wan_place))).records) == 2
    assert (wan_place / "s" / "store.json").read_text() == header


@pytest.mark.slow
def test_what_was_loaded_to_measure_is_let_go(
    tmp_path: Path, wan_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def found(codec: WanVaeCodec, video: torch.Tensor) -> Margins:
        codec.encode(video[:, :, :1])
        seen.append((codec, tuple(video.shape)))
        return Margins(margin=9, encode_margin=None)

    monkeypatch.setattr("longtake.core.cache.job.measure_margins", found)
    headers: list[dict[str, Any]] = []

    def end(run: CacheRun, *_: object) -> None:
        headers.append(json.loads((tmp_path / "s" / "store.json").read_text()))
        raise RuntimeError("no clip is cached here")

    monkeypatch.setattr(CacheRun, "perform_all", end)
    with pytest.raises(RuntimeError, match="no clip"):
        cached(tmp_path, experiment(wan_spec(wan_place)))
    ((codec, shape),) = seen
    assert codec.model is None and shape == (1, 3, 1 + 4 * 31, 64, 64)
    (header,) = headers
    assert header["measured"]["margin"] == 9 and header["measured"]["encode_margin"] is None


def test_a_codec_that_knows_its_margin_is_not_measured(tmp_path: Path) -> None:
    store, codec = cached(tmp_path, small()), DctCodec(small().backbone.codec)
    assert "measured" not in store.header and store.header["margin"] == 1
    store.apply_margin(codec)
    codec.use_margin(7)
    assert codec.margin == 1


@pytest.mark.slow
def test_a_store_of_hunyuan_latents_has_the_last_tile(tmp_path: Path) -> None:
    """The clip does not end with a tile: its last latents are provisional, and are there."""
    vae = diffusers_hunyuan(HUNYUAN)
    vae.save_pretrained(tmp_path / "vae")
    spec = evolve(HUNYUAN, weights=str(tmp_path / "vae"))
    store = cached(tmp_path, experiment(spec))
    record = store.records[0]
    history = store.window(record, 0, record.latents, [RATE])
    pixels = frames(store)
    assert record.latents == 8 and pixels.shape[2] == 29
    wanted = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    assert torch.equal(history.latents, wanted)
    lowres = encode_lowres(HunyuanVaeCodec(spec), RATE, pixels.split([5, 24], dim=2))
    assert torch.equal(history.lr[RATE], lowres) and lowres.shape[2] == 4
    header = json.loads((tmp_path / "s" / "store.json").read_text())
    assert header["causal"] is False and "measured" not in header
    assert header["codec"].startswith("hunyuan-vae-time16-12-")
