"""Whether a store fits an experiment: by the weights where they are at hand, else by their specs.

Training reads latents and embedded prompts, so the machine that trains needs neither the VAE nor
the text encoder: the store says by which specs it was made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..edge import SpecError, from_json, to_json
from ..errors import UserError
from ..experiment import Experiment
from ..grid import Rate
from ..registry import build
from ..spec import BackboneSpec, CodecSpec, PluginSpec, TextEncoderSpec
from .store import Store

SPECS = "specs"  # in a store's header: of the codec and of the text encoder


def specs_of(backbone: BackboneSpec) -> dict[str, Any]:
    """Give the specs that a store's header keeps beside the identities, as JSON."""
    return {"codec": to_json(backbone.codec), "text": to_json(backbone.text_encoder)}


def check_fits(
    experiment: Experiment, store: Store, rates: Iterable[Rate], *, decodes: bool = False
) -> None:
    """Refuse a store that was made with another codec, text encoder or frame rate, or lacks rates.

    Of a codec or text encoder whose weights are on this machine the weights themselves are
    compared. Where they are not, nothing is fetched: the specs must be the same, `weights` as it
    is written included. A store that keeps no specs is held to the weights.

    Args:
        experiment: what is to read it.
        store: a latent store.
        rates: LR rates that it must have.
        decodes: whether the codec will be used: then its weights are compared, fetched or not.

    Raises:
        UserError: it does not fit, or weights that must be compared cannot be found.
    """
    backbone, kept = experiment.backbone, store.header.get(SPECS, {})
    wanted: dict[str, Any] = {}
    for key, spec in (("codec", backbone.codec), ("text", backbone.text_encoder)):
        part = build(spec)
        if key not in kept or part.at_hand or (decodes and key == "codec"):
            wanted[key] = part.identity
        else:
            _check_spec(store, key, spec, kept[key])
    geometry = backbone.geometry
    wanted |= {"channels": geometry.channels, "fps": geometry.fps}
    store.check(made_with=wanted, rates=rates)


def _check_spec(store: Store, key: str, spec: PluginSpec, kept: Any) -> None:
    made, mine = _whole(kept, key), to_json(spec)
    odd = [name for name in {**mine, **made} if made.get(name) != mine.get(name)]
    if odd:
        where = "codec" if key == "codec" else "text_encoder"
        raise UserError(
            f"{store.root} was cached with backbone.{where}.{odd[0]} {made.get(odd[0])}, the "
            f"experiment has {mine.get(odd[0])}, whose weights are not here to compare: name the "
            "same, or fetch them"
        )


def _whole(kept: Any, key: str) -> dict[str, Any]:
    """Give a spec of a header with the fields that have come since, at their defaults."""
    try:
        return to_json(from_json(kept, CodecSpec if key == "codec" else TextEncoderSpec))
    except SpecError:  # of a plugin that is not here
        return dict(kept)
