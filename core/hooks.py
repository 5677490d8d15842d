"""The door for plugins: one pluggy hook a kind, each returning light records.

A third party ships an importable module with `@longtake.core.hooks.impl` functions and names it
under the entry-point group `longtake`:

    [project.entry-points.longtake]
    mine = "my_package.hooks"
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pluggy
from attrs import field, frozen

from .errors import PLUGIN_NAMES
from .interfaces.spec import PluginSpec
from .values.grid import Geometry

GROUP = "longtake"
KINDS = (
    "compressor", "backbone", "codec", "text_encoder", "masker", "retriever", "metric",
)  # fmt: skip

spec = pluggy.HookspecMarker(GROUP)
impl = pluggy.HookimplMarker(GROUP)


@frozen(kw_only=True)
class Plugin:
    """A light record: listing plugins reads these and imports nothing heavy.

    Attributes:
        name: what users write in specs.
        summary: one line.
        spec: the attrs class of its spec; the kind follows from its base.
        target: where the class is, as `package.module:Class`, imported when first used.
        requires: modules that it needs beside its distribution's own dependencies, and what pip
            installs them by, such as `{"torchvision": "longtake[lpips]"}`: `longtake list` says
            what is missing.
    """

    name: str
    summary: str
    spec: type[PluginSpec]
    target: str
    requires: Mapping[str, str] = field(factory=dict)

    @property
    def kind(self) -> str:
        """The kind that the spec's base says: `compressor`, `backbone`, ..."""
        return self.spec.kind

    def load(self) -> Any:
        """Import and return the class."""
        module, _, name = self.target.partition(":")
        cls = getattr(importlib.import_module(module), name)
        if isinstance(cls, type):
            PLUGIN_NAMES[cls] = f"{self.kind} {self.name!r}"
        return cls


@spec
def longtake_compressors() -> list[Plugin]:
    """Return the compressors φ (`core.interfaces.compressor.Compressor`)."""
    raise NotImplementedError


@spec
def longtake_backbones() -> list[Plugin]:
    """Return the backbones G (`core.interfaces.backbone.Backbone`)."""
    raise NotImplementedError


@spec
def longtake_codecs() -> list[Plugin]:
    """Return the video codecs (`core.interfaces.codec.Codec`)."""
    raise NotImplementedError


@spec
def longtake_text_encoders() -> list[Plugin]:
    """Return the text encoders (`core.interfaces.text_encoder.TextEncoder`)."""
    raise NotImplementedError


@spec
def longtake_maskers() -> list[Plugin]:
    """Return the maskers (`core.interfaces.masker.Masker`)."""
    raise NotImplementedError


@spec
def longtake_retrievers() -> list[Plugin]:
    """Return the retrievers and floors (`core.interfaces.retriever.Retriever`)."""
    raise NotImplementedError


@spec
def longtake_metrics() -> list[Plugin]:
    """Return the metrics (`core.interfaces.metric.Metric`)."""
    raise NotImplementedError


@spec
def longtake_experiments() -> Mapping[str, str]:
    """Return shipped experiments by name, each `package.module:attribute` of an `Experiment`."""
    raise NotImplementedError


@spec
def longtake_weights() -> Mapping[str, Path]:
    """Return folders of shipped weights by experiment; `retrieve` and `measure` take the name."""
    raise NotImplementedError


@spec
def longtake_geometries() -> Mapping[str, Geometry]:
    """Return published backbones by name, for tables of context lengths without any weights."""
    raise NotImplementedError
