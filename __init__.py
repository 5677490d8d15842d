"""longtake: the past of a video as a short memory that a video diffusion transformer reads."""

from typing import TYPE_CHECKING, Any

from .core.registry import ship

if TYPE_CHECKING:
    from .core.take.storyboard import Section, Storyboard
    from .core.take.take import Take

__all__ = ["Section", "Storyboard", "Take"]

__version__ = "0.1.0"

ship("longtake.plugins.hooks", "longtake.backbones.hooks", "longtake.experiments.hooks")

_LAZY = {"Section": "storyboard", "Storyboard": "storyboard", "Take": "take"}


def __getattr__(name: str) -> Any:
    """Return what makes takes; importing the package alone imports no torch."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".core.take.{_LAZY[name]}", __name__), name)
