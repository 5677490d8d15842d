"""Imported once by the process that others are forked from: all that training needs."""

from __future__ import annotations

import accelerate  # noqa: F401
import pytest  # noqa: F401  forked processes look at the main module of the tests
import torch
import torch.distributed.fsdp  # noqa: F401

import longtake.__main__
import longtake.core.train.pretrain  # noqa: F401
from longtake.core.model import build_model

from .small import small

torch.set_num_threads(1)  # threads do not survive a fork
build_model(small())  # imports its plugins
