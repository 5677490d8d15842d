"""`longtake list`."""

from __future__ import annotations

from . import options as o


def list_(as_json: o.Json = False) -> None:
    """List what plugs in: compressors, backbones, maskers, retrievers, metrics, experiments.

    Example: longtake list
    """
    from .. import show as describe

    plugins = describe.list_plugins()
    o.print_json(plugins) if as_json else describe.print_plugins(plugins)
