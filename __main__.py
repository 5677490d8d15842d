"""The door: one program with verbs. Verbs import what they need when they are called."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .core.errors import LongtakeError
from .core.verbs.door import Door, stopped

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

ExperimentArg = Annotated[
    str, typer.Argument(help="a shipped name, module:name, or file.py:name", metavar="EXPERIMENT")
]
RunArg = Annotated[str, typer.Argument(help="a run's folder, or a shipped name", metavar="RUN")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="change one field, such as compressor.rate=2x2x2; may be repeated"),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Seed = typer.Option(help="same as --set train.seed=", min=0, max=2**62)
Data = Annotated[Path, typer.Option("--data", help="a latent store, made by `longtake cache`")]


def _out(help_text: str) -> Any:
    return typer.Option("--out", "--output_dir", help=help_text)


def _print(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List what plugs in: compressors, backbones, maskers, retrievers, metrics, experiments.

    Example: longtake list
    """
    from .core import describe

    found = describe.list_plugins()
    _print(found) if as_json else describe.print_plugins(found)


@app.command()
def show(
    experiment: ExperimentArg,
    sets: Sets = None,
    fields: Annotated[bool, typer.Option(help="print what every field means")] = False,
    as_json: Json = False,
) -> None:
    """Show an experiment resolved, and the context lengths of its memory.

    Example: longtake show tiny-wan-2x2x2 --set compressor.rate=4x4x2
    """
    from .core import describe, edge

    name, found = edge.load_experiment(experiment)
    found = edge.apply_sets(found, sets or [])
    data = describe.show(name, found)
    _print(data) if as_json else describe.print_show(data, fields=fields)


@app.command()
def cache(
    experiment: ExperimentArg,
    videos: Annotated[Path, typer.Option(help="a folder of videos, or one video")],
    out: Annotated[Path, _out("the store's folder")],
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Turn videos (x.mp4 with its caption in x.txt) into a latent store; resumes where it stopped.

    Example: longtake cache tiny-wan-2x2x2 --videos clips/ --out stores/clips
    """
    from .core.verbs import cache as verb

    verb.cache(experiment, sets or [], videos, out, as_json=as_json)


@app.command()
def pretrain(
    experiment: ExperimentArg,
    data: Data,
    out: Annotated[Path, _out("the run's folder")],
    resume: Annotated[str | None, typer.Option(help="latest: go on where the run is")] = None,
    start: Annotated[
        Path | None, typer.Option(help="begin with the weights of another run or checkpoint")
    ] = None,
    seed: Annotated[int | None, Seed] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Stage I: train the encoder (and LoRA) to give back any frame of the past.

    Example: longtake pretrain tiny-wan-2x2x2 --data stores/clips --out runs/first
    """
    from .core.verbs import pretrain as verb

    changes = [*(sets or []), *([] if seed is None else [f"train.seed={seed}"])]
    verb.pretrain(experiment, changes, data, out, resume=resume, start=start, as_json=as_json)


@app.command()
def retrieve(
    run: RunArg,
    video: Annotated[Path, typer.Argument(help="the video to remember")],
    at: Annotated[str, typer.Option(help="times in seconds, such as 3.2,7.5")],
    out: Annotated[Path, _out("folder for the images")] = Path("retrieved"),
    steps: Annotated[int | None, typer.Option(help="sampling steps; 1 is the mean")] = None,
    seed: Annotated[int, typer.Option(help="seed of the noise", min=0, max=2**63 - 1)] = 0,
    as_json: Json = False,
) -> None:
    """Give frames at given times out of a video's memory, as images and as a strip.

    Example: longtake retrieve tiny-wan-2x2x2 holiday.mp4 --at 3.2,7.5
    """
    from .core.verbs import retrieve as verb

    verb.retrieve(run, video, at, out, steps=steps, seed=seed, as_json=as_json)


@app.command()
def measure(
    run: RunArg,
    data: Data,
    out: Annotated[Path | None, _out("folder for report.html; default RUN/measure")] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Measure what the memory gives back, masked and unmasked, against floors and the ceiling.

    Example: longtake measure runs/first --data stores/val
    """
    from .core.verbs import measure as verb

    verb.measure(run, data, out, sets or [], as_json=as_json)


@app.command()
def bench(
    out: Annotated[Path | None, _out("also write the result here, as JSON")] = None,
    as_json: Json = False,
) -> None:
    """Measure start-up, loader, encoder and append on this machine, each beside its yardstick.

    Example: longtake bench
    """
    from .core.verbs import bench as verb

    verb.bench(out, as_json=as_json)


@app.command()
def demo(
    video: Annotated[Path | None, typer.Option(help="a video; default: a built-in clip")] = None,
    out: Annotated[Path, _out("folder for the report")] = Path("longtake-demo"),
    steps: Annotated[int, typer.Option(help="training steps on the clip", min=0)] = 20,
    as_json: Json = False,
) -> None:
    """The whole story on a CPU in minutes: video, cache, memory, retrieved frames, report.

    Example: longtake demo
    """
    from .core.verbs import demo as verb

    verb.demo(video, out, steps=steps, as_json=as_json)


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
