"""All blocks of a HunyuanVideo, one after the other: those of two streams, then those of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.calls import Feature
from ..dit.setup import Keys, through
from .attend import Stream, View
from .block import Known


class Run(NamedTuple):
    """What goes through the blocks.

    Attributes:
        target: the noisy tokens; None (and no text) to run memory alone.
        text: refined prompts `[B, L, D]`; they join the targets in the single-stream blocks.
        memory: its tokens; None where there is none, or where a cache stands for them.
    """

    target: Stream | None
    text: Tensor | None
    memory: Stream | None


def run_blocks(
    model: Any,
    run: Run,
    past: Sequence[Keys] | None,
    view: View,
    features: Mapping[str, Feature],
) -> tuple[Tensor | None, list[Keys]]:
    """Give the targets' hidden tokens `[B, N, D]`, and the memory's keys block by block.

    One call a block, so that whatever hooks blocks (offload, FSDP) moves weights once.

    Args:
        model: with `transformer_blocks` and `single_transformer_blocks`.
        run: what goes through.
        past: keys and values by block, from a cache; None where there is none.
        view: who sees whom.
        features: of a memory, for the blocks' enhancers.
    """
    total = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    held: Sequence[Keys | None] = past or [None] * total
    known = [Known(held[i], view, features, i == total - 1) for i in range(total)]
    target, text, memory = run
    made: list[Keys] = []
    for block in model.transformer_blocks:
        out, text, own, keys = through(model, block, target, text, memory, known[len(made)])
        target, memory = _moved(target, out), _moved(memory, own)
        made.append(keys)
    main = _with_text(target, text)
    for block in model.single_transformer_blocks:
        out, own, keys = through(model, block, main, memory, known[len(made)])
        main, memory = _moved(main, out), _moved(memory, own)
        made.append(keys)
    return _without_text(main, run.target), made


def _moved(stream: Stream | None, hidden: Tensor | None) -> Stream | None:
    return None if stream is None or hidden is None else stream._replace(hidden=hidden)


def _with_text(target: Stream | None, text: Tensor | None) -> Stream | None:
    if target is None or text is None:
        return None
    return target._replace(hidden=torch.cat([target.hidden, text], dim=1))


def _without_text(main: Stream | None, target: Stream | None) -> Tensor | None:
    return None if main is None or target is None else main.hidden[:, : target.hidden.shape[1]]
