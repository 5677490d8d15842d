"""Time a training step beside that of another checkout, in turn, in one run.

    python -m longtake.experiments.step --beside /path/to/checkout --out step.json

Two processes, one a checkout, take steps in turn on the same random batch, each on one thread. What
counts is CPU time, since other work on the machine lengthens any other; its floor is the products
of the step (attention included) at the rate of one large product of the same process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from attrs import evolve

from ..backbones.codecs.specs import Dct
from ..backbones.wan.specs import TinyWan
from ..core.errors import UserError
from ..core.experiment import Experiment
from ..core.plugin_errors import exit_code
from ..core.tools.files import check_out_file, read_json, write_json
from .tiny import TINY_PLAIN, TINY_WAN_2X2X2

# Both stages, with the codec that has no weights: smaller with more channels, and deeper.
SIZES: dict[str, dict[str, Any]] = {
    "48 channels, 6 blocks of 256": {"heads": 8, "head_width": 32, "layers": 6},
    "16 channels, 8 blocks of 384": {"heads": 6, "head_width": 64, "layers": 8, "ffn": 1536},
}
SIDE, PRODUCTS = 1536, 5  # of the large product
# Loads this very file into a package that may be older than it.
CHILD = """
import importlib.util as util, sys
spec = util.spec_from_file_location("longtake.experiments.step", sys.argv[1])
module = sys.modules[spec.name] = util.module_from_spec(spec)
spec.loader.exec_module(module)
module.serve(sys.argv[2])
"""


def subjects() -> dict[str, Experiment]:
    """Return the experiments whose step is timed, by name, with random weights."""
    found = {}
    for stage, experiment in (("Stage I, 2x2x2", TINY_WAN_2X2X2), ("Stage 0", TINY_PLAIN)):
        for name, size in SIZES.items():
            codec = Dct(channels=int(name.partition(" ")[0]))
            sized = evolve(cast("TinyWan", experiment.backbone), weights=None, codec=codec, **size)
            found[f"{stage}, {name}"] = evolve(experiment, backbone=sized)
    return found


def serve(name: str) -> None:
    """Answer each line of the input with the figures of one step, as a line of JSON."""
    import torch

    torch.set_num_threads(1)
    with _flushed():
        step = _step(subjects()[name])
        gflop = _gflop(step)  # warms up, too
        facts = {"gflop": gflop, "matmul_gflop_per_cpu_second": _rate(), "code": _checkout()}
        print(json.dumps(facts), flush=True)
        for _ in sys.stdin:
            began, loss = time.process_time(), step()
            seconds = time.process_time() - began
            print(json.dumps({"cpu_seconds": seconds, "loss": loss}), flush=True)


def _checkout() -> str:
    """Return the checkout whose code this process runs."""
    from ..core import bench

    return str(Path(bench.__file__).resolve().parents[1])


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    try:  # as `pretrain` does in this checkout
        from ..core.tools.device import flushed_denormals
    except ImportError:
        yield
        return
    with flushed_denormals():
        yield


def _step(experiment: Experiment) -> Callable[[], float]:
    import torch

    from ..core.bench import random_history
    from ..core.data.windows import Batch
    from ..core.model import build_model
    from ..core.train.step import StageOneStep
    from ..core.values.history import History
    from ..core.values.text import Text

    model = build_model(experiment, adapters=True)
    one, batch = random_history(experiment, experiment.train.seconds[1]), experiment.train.batch
    random = torch.Generator().manual_seed(1)

    def several(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(batch, *x.shape[1:], generator=random)

    history = History(
        latents=several(one.latents), lr={rate: several(x) for rate, x in one.lr.items()}
    )
    length = experiment.backbone.text_encoder.length  # type: ignore[attr-defined]
    null = model.backbone.blank_text(1, length)
    text = Text(
        embeddings=several(null.embeddings), mask=torch.ones(batch, length, dtype=torch.bool)
    )
    names = tuple(str(i) for i in range(batch))
    data = Batch(history=history, text=text, names=names)
    train, count = StageOneStep.of(model, null, torch.device("cpu")), iter(range(1_000_000))
    return lambda: float(train(data, next(count)))


def _gflop(step: Callable[[], float]) -> float:
    """Return the products of a step; attention's backward recomputes one of its two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    name = "_scaled_dot_product_flash_attention_for_cpu"
    attention = {
        getattr(torch.ops.aten, name): forward,
        getattr(torch.ops.aten, f"{name}_backward"): backward,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        step()
    return float(counter.get_total_flops()) / 1e9


def _rate() -> float:
    import torch

    a, b = torch.randn(2, SIDE, SIDE)
    began = time.process_time()
    for _ in range(PRODUCTS):
        a @ b
    seconds = time.process_time() - began
    return 2 * SIDE**3 * PRODUCTS / seconds / 1e9


def compare(name: str, before: Path, after: Path, rounds: int) -> dict[str, Any]:
    """Return CPU seconds of a step of two checkouts in turn, their ratio and their floors."""
    command = [sys.executable, "-c", CHILD, __file__, name]
    with contextlib.ExitStack() as running:
        children = {}
        for tag, path in (("before", before), ("after", after)):
            env = {**os.environ, "PYTHONPATH": str(path / "src"), "OMP_NUM_THREADS": "1"}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            child = subprocess.Popen(command, env=env, text=True, **pipes)
            children[tag] = running.enter_context(child)
        facts = {tag: _answer(child) for tag, child in children.items()}
        for tag, path in (("before", before), ("after", after)):
            if (code := facts[tag].pop("code")) != str(path.resolve()):
                raise UserError(f"{tag} runs the code of {code}, not of {path}: is it a checkout?")
        steps: dict[str, list[dict[str, float]]] = {tag: [] for tag in children}
        for _ in range(rounds):
            for tag, child in children.items():
                steps[tag].append(_ask(child))
        for child in children.values():
            assert child.stdin is not None
            child.stdin.close()
    figures: dict[str, Any] = {}
    for tag, fact in facts.items():
        seconds = [step["cpu_seconds"] for step in steps[tag]]
        floor = fact["gflop"] / fact["matmul_gflop_per_cpu_second"]
        middle = statistics.median(seconds)
        losses = [step["loss"] for step in steps[tag]]
        figures[tag] = {
            "cpu_seconds": middle,
            "each": seconds,
            "floor_cpu_seconds": floor,
            "over_floor": middle / floor,
            "losses": losses,
            **fact,
        }
    ratio = figures["before"]["cpu_seconds"] / figures["after"]["cpu_seconds"]
    return {"rounds": rounds, "ratio": ratio, **figures}


def _ask(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return _answer(child)


def _answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise UserError("a process that takes steps ended: what it said stands above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def main() -> None:
    """Compare the checkouts on every subject, or on those whose names hold a text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, required=True, help="a checkout, timed as before")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write; it is added to")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each after a warm-up")
    parser.add_argument("--only", default="", help="subjects whose names hold this text")
    asked = parser.parse_args()
    here = Path(__file__).resolve().parents[1]  # `src/` holds links to the rooms
    check_out_file(asked.out)
    kept = read_json(asked.out, "times") if asked.out.exists() else {}
    for name in (name for name in subjects() if asked.only in name):
        kept[name] = figures = compare(name, asked.beside.absolute(), here, asked.rounds)
        write_json(asked.out, kept)
        before, after = (figures[tag]["cpu_seconds"] for tag in ("before", "after"))
        print(f"{name}: {before:.2f} → {after:.2f} CPU seconds a step: {figures['ratio']:.2f}×")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error, "step"))
