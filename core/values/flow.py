"""Rectified flow, one function an equation (method.md §1)."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)


def interpolate(x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """Return X_t = (1 − t)·X₀ + t·ε (Eq. 1); t = 0 gives X₀ to the bit.

    Args:
        x0: clean values.
        noise: ε, of the shape of `x0`.
        t: time in [0, 1], broadcast against `x0`.
    """
    return (1 - t) * x0 + t * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Return ε − X₀, the velocity that G learns (Eq. 2)."""
    return noise - x0


def clean_from(noisy: Tensor, velocity: Tensor, t: Tensor | float) -> Tensor:
    """Return X₀ = X_t − t·(ε − X₀), what a velocity says about the clean values (Eq. 1 and 2)."""
    return noisy - t * velocity


def shift_time(t: Time, shift: float) -> Time:
    """Return s·t / (1 + (s − 1)·t): more noise for shift s > 1; 0 and 1 stay (SD3, Eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def logit_normal(normal: Tensor, *, mean: float, std: float, shift: float) -> Tensor:
    """Return times t ~ L(0, 1), the shifted logit-normal of SD3, in (0, 1].

    t is the shifted sigmoid of a normal of this mean and standard deviation, made of standard
    normal numbers, float32 of any shape.
    """
    t = shift_time(torch.sigmoid(mean + std * normal), shift)
    # Far in the tail the sigmoid is 0 in float32, and no noise at all is no time of the flow.
    return t.clamp_min(torch.finfo(torch.float32).eps)


def levels(low: float, normal: Tensor, *, mean: float, std: float, shift: float) -> Tensor:
    """Return noise levels ~ L(low, 1) = low + (1 − low)·u, u ~ L(0, 1) of `normal`, in (0, 1]."""
    return low + (1 - low) * logit_normal(normal, mean=mean, std=std, shift=shift)
