"""A model: the backbone G and the encoder φ of an experiment, built together."""

from __future__ import annotations

import functools
import operator

import torch
from attrs import define

from .backbone import Backbone
from .compressor import Compressor, MemoryEncoder
from .experiment import Experiment
from .fit import Fit, Needs
from .registry import build, registry
from .retriever import Retriever
from .spec import CompressorSpec, RetrieverSpec


@define
class Model:
    """φ and G of an experiment."""

    experiment: Experiment
    backbone: Backbone
    encoder: MemoryEncoder

    def to(self, device: torch.device | str) -> Model:
        """Move both to `device`."""
        self.backbone.to(device)
        self.encoder.to(device)
        return self

    def eval(self) -> Model:
        """Switch both to evaluation, without gradients."""
        self.backbone.eval().requires_grad_(False)
        self.encoder.eval().requires_grad_(False)
        return self


def build_model(experiment: Experiment, *, adapters: bool = False) -> Model:
    """Give a model as an experiment starts: the backbone's weights, a fresh encoder.

    Args:
        experiment: what to build; its `train.seed` seeds all that is random.
        adapters: add the LoRA of `train.adapter` where the experiment trains one.
    """
    seed = experiment.train.seed
    backbone = registry().load(experiment.backbone).load(experiment.backbone, seed=seed)
    encoder = build_encoder(experiment, backbone.fit(), seed=seed)
    backbone.add_enhancer(encoder.features, seed=seed)
    if adapters and experiment.train.trains == "lora":
        backbone.add_lora(experiment.train.adapter)
    return Model(experiment, backbone, encoder)


def build_encoder(experiment: Experiment, fit: Fit, *, seed: int) -> MemoryEncoder:
    """Give the fresh encoder of an experiment for a backbone's `fit`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        built: list[Compressor[CompressorSpec]] = [build(s, fit) for s in experiment.compressors]
    return MemoryEncoder(built)


def compressor_needs(experiment: Experiment) -> Needs:
    """Give what the compressors must find in a history."""
    needs = [registry().load(spec).needs(spec) for spec in experiment.compressors]
    return functools.reduce(operator.or_, needs, Needs(hr=False))


def all_needs(experiment: Experiment) -> Needs:
    """Give what must be cached for training and measuring."""
    retrievers = [registry().load(spec).needs(spec) for spec in experiment.retrievers]
    return functools.reduce(operator.or_, retrievers, compressor_needs(experiment))


def build_retriever(spec: RetrieverSpec) -> Retriever[RetrieverSpec]:
    """Give the retriever of a spec."""
    made: Retriever[RetrieverSpec] = build(spec)
    return made
