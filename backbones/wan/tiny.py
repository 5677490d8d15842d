"""`tiny-wan`: the real Wan transformer with small numbers."""

from __future__ import annotations

from typing import Self

from ...core.errors import UserError
from ...core.spec import BackboneSpec
from ..dit.setup import Setup
from ..weights.files import load_model
from . import specs
from .model import Wan
from .published import RELEASE
from .tiny_init import begin_local


class TinyWan(Wan):
    """Wan by the numbers of its spec; random until `weights` names a checkpoint."""

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Give the model of the spec: its weights where it names some, else random from `seed`.

        Raises:
            UserError: weights are missing, damaged, of another class or of another shape.
        """
        if not isinstance(spec, specs.TinyWan):
            raise UserError(f"tiny-wan needs its own spec, not {type(spec).__name__}")
        begin = begin_local if spec.begin == "local" else None
        model = load_model(cls, spec, seed, release=RELEASE, begin=begin)
        model.setup = Setup.of(spec, time=spec.time)
        return model
