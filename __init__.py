"""longtake: the past of a video as a short memory that a video diffusion transformer reads."""

from .core.registry import ship

__version__ = "0.1.0"

ship("longtake.plugins.hooks", "longtake.backbones.hooks", "longtake.experiments.hooks")
