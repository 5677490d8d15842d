"""Begin a tiny memory in closed form: minutes of linear algebra before any step of training.

    python -m longtake.experiments.closed_form tiny-wan-2x2x2 --data stores/clips --out runs/start

A DiT from scratch spends hours on learning where memory is and how to copy from it, and an encoder
on becoming a good linear code; both have answers in closed form. This

1. makes each conv of the encoder keep the principal components of what it reads (in the pixels'
   metric), its SiLU nearly linear, and writes them beside the LR latents' numbers in a token;
2. finds the linear map from a token to each patch of latents that it stands for (least squares);
3. gives each place in a token's cell heads that look there (`backbones.wan.published`), and those
   left over the newest token at each place of a row and column, which is what a video goes on from:
   their values are that place's map, their outputs least squares again, on what attention really
   reads of frames in the past and of frames behind it.

`--out` is a run like any other. `pretrain` goes on from it:

    longtake pretrain tiny-wan-2x2x2 --data stores/clips --out runs/first --start runs/start \
        --set backbone.weights=runs/start/checkpoint-0/backbone

`--out` is a new folder. Exit 2: bad input.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ...core.config import load_experiment
from ...core.data.store import Store
from ...core.errors import LongtakeError, UserError
from ...core.plugin_errors import exit_code
from ...core.tools.files import check_out_folder, only_parts
from ..common import command_line
from .begin import begin, write


def parser() -> argparse.ArgumentParser:
    """Return what the command takes."""
    result = command_line("closed_form", __doc__)
    result.add_argument("experiment", help="a shipped name, or file.py:NAME")
    result.add_argument("--data", type=Path, required=True, help="a latent store to begin on")
    result.add_argument("--out", type=Path, required=True, help="the run that is written")
    result.add_argument(
        "--batches", type=int, default=60, help="of windows, as the experiment has them"
    )
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(words)
    try:
        _, experiment = load_experiment(options.experiment)
        check_out_folder(options.out)
        if options.out.is_dir() and not only_parts(options.out):
            raise UserError(f"--out {options.out} is a folder with files in it: name a new one")
        store = Store.open(options.data)
        fitting = begin(experiment, store, options.batches)
        loss, zero = fitting.mean_loss()
        if not math.isfinite(loss):
            raise UserError(f"{options.data}: {options.batches} batches of it are too few")
        facts = {"loss": round(loss, 4), "of_zero": round(zero, 4)}
        write(fitting, experiment, store, options.out, facts)
    except LongtakeError as error:
        return exit_code(error, "closed_form")
    print(f"{options.out}: loss {loss:.3f} from pure noise; of a guess of zero {zero:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
