"""The door: one program with verbs. Verbs import what they need when they are called."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .core.cli import options as o
from .core.cli.export import export
from .core.cli.options import Door, stopped
from .core.cli.probe import probe
from .core.cli.show import show
from .core.errors import LongtakeError

app = typer.Typer(
    name="longtake",
    cls=Door,
    help="The past of a video as a short memory that a video diffusion transformer reads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


@app.command("list")
def list_(as_json: o.Json = False) -> None:
    """List what plugs in: compressors, backbones, maskers, retrievers, metrics, experiments.

    Example: longtake list
    """
    from .core import show as describe

    found = describe.list_plugins()
    _print(found) if as_json else describe.print_plugins(found)


app.command()(show)


@app.command()
def cache(
    experiment: o.ExperimentArg,
    videos: Annotated[Path, typer.Option(help="a folder of videos, a list of them, or one video")],
    out: Annotated[Path, o.out("the store's folder")],
    workers: Annotated[int, typer.Option(help="processes on this machine", min=1)] = 1,
    rank: o.Rank = None,
    world: o.World = None,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Turn videos and captions into a latent store; resumes where it stopped.

    Example: longtake cache tiny-wan-2x2x2 --videos clips/ --out stores/clips
    """
    from .core.cli import cache as verb

    verb.cache(
        experiment, sets or [], videos, out,
        workers=workers, rank=rank, world=world, as_json=as_json,
    )  # fmt: skip


@app.command()
def pretrain(
    experiment: o.ExperimentArg,
    data: o.Data,
    out: Annotated[Path, o.out("the run's folder")],
    resume: Annotated[str | None, typer.Option(help="latest: go on where the run is")] = None,
    start: o.Start = None,
    seed: Annotated[int | None, o.Seed] = None,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Stage I: train the encoder (and LoRA) to give back any frame of the past.

    An experiment without compressors, such as tiny-base, is Stage 0: a plain video model.

    Example: longtake pretrain tiny-wan-2x2x2 --data stores/clips --out runs/first
    """
    from .core.cli import pretrain as verb

    changes = [*(sets or []), *([] if seed is None else [f"train.seed={seed}"])]
    verb.pretrain(experiment, changes, data, out, resume=resume, start=start, as_json=as_json)


@app.command()
def retrieve(
    run: o.RunArg,
    video: Annotated[Path, typer.Argument(help="the video to remember")],
    at: Annotated[str, typer.Option(help="times in seconds, such as 3.2,7.5")],
    out: Annotated[Path, o.out("folder for the images")] = Path("retrieved"),
    steps: Annotated[int | None, typer.Option(help="sampling steps; 1 is the mean")] = None,
    seed: Annotated[int, typer.Option(help="seed of the noise", min=0, max=2**63 - 1)] = 0,
    as_json: o.Json = False,
) -> None:
    """Give frames at given times out of a video's memory, as images and as a strip.

    Example: longtake retrieve tiny-wan-2x2x2 holiday.mp4 --at 3.2,7.5
    """
    from .core.cli import retrieve as verb

    verb.retrieve(run, video, at, out, steps=steps, seed=seed, as_json=as_json)


@app.command()
def measure(
    run: o.RunArg,
    data: o.Data,
    out: Annotated[Path | None, o.out("folder for report.html; default RUN/measure")] = None,
    beside: o.Beside = None,
    picture: o.PictureOut = None,
    clips: o.ClipNames = "",
    credit: o.Credit = "",
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Measure what the memory gives back, masked and unmasked, against floors and the ceiling.

    Example: longtake measure runs/first --data stores/val --beside runs/other
    """
    from .core.cli import measure as verb

    shown = verb.PictureOptions.of(picture, clips, credit)
    verb.measure(run, data, out, sets or [], beside=beside or [], picture=shown, as_json=as_json)


@app.command()
def bench(
    experiment: o.ExperimentArg = "tiny-wan-2x2x2",
    out: Annotated[Path | None, o.out("also write the result here, as JSON")] = None,
    data: o.BenchData = None,
    as_json: o.Json = False,
) -> None:
    """Measure start-up, loader, encoder and append on this machine, each beside its yardstick.

    Example: longtake bench
    """
    from .core.cli import bench as verb

    verb.bench(experiment, out, data, as_json=as_json)


@app.command()
def demo(
    video: Annotated[Path | None, typer.Option(help="a video; default: a built-in clip")] = None,
    out: Annotated[Path, o.out("folder for the report")] = Path("longtake-demo"),
    steps: Annotated[int, typer.Option(help="training steps on the clip", min=0)] = 20,
    as_json: o.Json = False,
) -> None:
    """The whole story on a CPU in minutes: video, cache, memory, retrieved frames, report.

    Example: longtake demo
    """
    from .core.cli import demo as verb

    verb.demo(video, out, steps=steps, as_json=as_json)


app.command()(export)
app.command()(probe)


def main() -> NoReturn:
    """Run the program; exit 0 done, 1 failed, 2 bad input with one clear line."""
    try:
        app(standalone_mode=True)
    except LongtakeError as error:
        print(f"longtake: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        stopped()
    except BrokenPipeError:
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
