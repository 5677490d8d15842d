"""`longtake generate`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import attrs
import typer
from attrs import frozen

from ..errors import LongtakeError, UserError, printable
from ..tools.words import counted
from . import options as o

if TYPE_CHECKING:
    from ..take.events import Done, Event
    from ..take.storyboard import Section, Storyboard
    from ..take.take import Take

ASKS_FROM = 3  # segments to be made again, from which on a person is asked
STORY = "storyboard: native JSON, .srt, .vtt or plain text"


def generate(
    run: Annotated[
        str | None,
        typer.Argument(help="a run's folder, or a shipped name; known of a take", metavar="[RUN]"),
    ] = None,
    out: Annotated[Path, o.out_option("the take's folder")] = Path("take"),
    story: Annotated[Path | None, typer.Option(help=STORY)] = None,
    prompt: Annotated[str | None, typer.Option(help="of one section, or with --redo")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="length of the section, or of each one of a plain text")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", "--image_path", help="a picture to begin with")
    ] = None,
    extend: Annotated[Path | None, typer.Option(help="a video to begin with")] = None,
    extend_from: Annotated[
        float | None, typer.Option(help="seconds of that video to go on from; all else is cut")
    ] = None,
    deliver: Annotated[
        str | None,
        typer.Option(
            help="the frames of that video: keep (its own; default) or recode (as the codec gives "
            "them back)"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="base of the seeds; with --redo that segment's", min=0)
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--infer_steps", help="sampling steps", min=1)
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", "--guidance_scale", help="weight of the prompt", min=0.0),
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", "--negative_prompt", help="what not to show")
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, one of the run's")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="a LoRA file, or file@scale; may be repeated")
    ] = None,
    sets: o.Sets = None,
    segments: Annotated[
        int | None, typer.Option(help="stop after so many new segments", min=0)
    ] = None,
    gain: Annotated[
        int,
        typer.Option(help="draws by which the report measures memory_gain of new segments", min=0),
    ] = 0,
    redo: Annotated[
        int | None, typer.Option(help="make segment K, and those behind it, anew")
    ] = None,
    keep_seed: Annotated[bool, typer.Option("--keep-seed", help="with --redo: its seed")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="with --redo: K alone for now")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="the order before the last edit")] = False,
    branch: Annotated[Path | None, typer.Option(help="a new take of the first segments")] = None,
    at: Annotated[int | None, typer.Option(help="with --branch: how many segments")] = None,
    drop_after: Annotated[int | None, typer.Option(help="end the take behind segment K")] = None,
    tidy: Annotated[
        bool, typer.Option("--tidy", help="remove what no order names or can be made again")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--dry_run", help="say what would be made, make nothing")
    ] = False,
    resume: Annotated[
        str | None, typer.Option(help="accepted: the same command always goes on")
    ] = None,
    fps: Annotated[float | None, typer.Option(hidden=True)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print events as JSON lines")] = False,
) -> None:
    """Make a long video from a storyboard, segment by segment; the same command goes on.

    Example: longtake generate runs/whole --out walk --prompt "A dog on a beach" --seconds 10
    """
    if fps is not None:
        raise UserError("--fps: the frame rate is the backbone's; leave it out")
    edits = {
        "--redo": redo is not None, "--undo": undo, "--branch": branch is not None,
        "--drop-after": drop_after is not None, "--tidy": tidy,
    }  # fmt: skip
    named = [name for name, given in edits.items() if given]
    _check(named, prompt, story, seconds, redo, keep_seed, stop, at, branch)
    if image is not None and extend is not None:
        raise UserError("--image and --extend: a take begins with one of the two")
    if extend_from is not None and extend is None:
        raise UserError("--extend-from goes with --extend")
    _check_values(prompt, negative, seed, steps, guidance, extend_from)
    asked = Asked(
        board=None if story is None else _board(story, seconds), run=run, out=out, story=story,
        prompt=prompt, seconds=seconds, image=image, extend=extend,
        extend_from=extend_from, deliver=deliver, seed=seed, steps=steps, guidance=guidance,
        negative=negative, gain=gain,
        size=size, loras=tuple(lora or ()), sets=tuple(sets or ()), segments=segments, yes=yes,
        as_json=as_json, dry_run=dry_run,
    )  # fmt: skip
    exists = _is_take(out)
    if named and not exists:
        raise UserError(f"{named[0]}: {out} is no take")
    if exists:
        _check_idle(asked, named)
    if dry_run and not exists:
        from ..take.folder import TakeFolder

        TakeFolder.check_new(out)
        with tempfile.TemporaryDirectory() as place:
            trial = _create(attrs.evolve(asked, out=Path(place) / "take"))
            _begin_new(asked, trial)
            _dry_run(asked, trial)
        return
    take = _open(asked) if exists else _create(asked)
    if redo is not None:
        _redo(asked, take, redo, keep_seed, stop)
    elif drop_after is not None:
        _drop(asked, take, drop_after)
    elif undo:
        _undo(asked, take)
    elif branch is not None:
        _branch(asked, take, branch, at)
    elif tidy:
        _tidy(asked, take)
    elif dry_run:
        _dry_run_on(asked, take)
    else:
        _run(asked, take, new=not exists)


@frozen(kw_only=True)
class Asked:
    """The options of the verb, as they were given; the storyboard is read once, as a pipe is."""

    board: Storyboard | None
    run: str | None
    out: Path
    story: Path | None
    prompt: str | None
    seconds: float | None
    image: Path | None
    extend: Path | None
    extend_from: float | None
    deliver: str | None
    seed: int | None
    steps: int | None
    guidance: float | None
    negative: str | None
    gain: int
    size: str | None
    loras: tuple[str, ...]
    sets: tuple[str, ...]
    segments: int | None
    yes: bool
    as_json: bool
    dry_run: bool


def _check(
    named: list[str], prompt: str | None, story: Path | None, seconds: float | None,
    redo: int | None, keep_seed: bool, stop: bool, at: int | None, branch: Path | None,
) -> None:  # fmt: skip
    """Refuse options that do not go together."""
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)}: one of them at a time")
    if named and story is not None:
        raise UserError(f"{named[0]} and --story: one of them at a time")
    if named and prompt is not None and redo is None:
        raise UserError(f"{named[0]} and --prompt: one of them at a time")
    if redo is None and (keep_seed or stop):
        raise UserError(f"{'--keep-seed' if keep_seed else '--stop'} goes with --redo")
    if at is not None and branch is None:
        raise UserError("--at goes with --branch")
    if story is not None and prompt is not None:
        raise UserError("--story and --prompt: one of them at a time")
    if prompt is not None and not named and seconds is None:
        raise UserError("--prompt goes with --seconds: how long the section is to be")
    if seconds is not None and prompt is None and story is None:
        raise UserError("--seconds goes with --prompt, or with a --story of plain text")
    if seconds is not None and not seconds > 0:
        raise UserError(f"--seconds {seconds:g}: more than 0")


def _check_values(
    prompt: str | None, negative: str | None, seed: int | None, steps: int | None,
    guidance: float | None, extend_from: float | None,
) -> None:  # fmt: skip
    """Refuse values that a storyboard could not hold, before anything is read or written."""
    from ..take.storyboard import read_given

    read_given("prompt", prompt, "--prompt")
    read_given("negative", negative, "--negative")
    read_given("seed", seed, "--seed")
    read_given("steps", steps, "--steps")
    read_given("guidance", guidance, "--guidance")
    read_given("duration", extend_from, "--extend-from")


def _is_take(out: Path) -> bool:
    try:
        return (out / "spec.json").exists()
    except OSError as error:
        raise UserError(f"--out {printable(str(out))}: {error.strerror}") from None


def _check_idle(asked: Asked, named: list[str]) -> None:
    """Refuse options of sections where the take gets none: they would do nothing."""
    if "--redo" in named or asked.prompt is not None or asked.story is not None:
        return
    if asked.extend is not None or asked.image is not None:
        return  # the same command goes on
    given = {
        "--seed": asked.seed, "--steps": asked.steps, "--guidance": asked.guidance,
        "--negative": asked.negative, "--lora": asked.loras or None,
    }  # fmt: skip
    useless = [name for name, value in given.items() if value is not None]
    if useless:
        what = f"{named[0]} makes" if named else "there are"
        raise UserError(
            f"{useless[0]}: {what} no new sections, and those of {asked.out} keep their own; it "
            "goes with --prompt, --story or --redo"
        )


def _create(asked: Asked) -> Take:
    """Begin a take; what is asked for is read first, so that nothing is left of what is refused."""
    from ..take.take import Take

    if asked.run is None:
        raise UserError(f"{asked.out} is no take yet: name the RUN that makes it")
    board = asked.board
    beginning = asked.extend or asked.image
    size, seed, size_named = asked.size, asked.seed, "--size"
    if board is not None:
        if size is None and board.size is not None:
            size, size_named = board.size, board.place("size")
        seed = board.seed if seed is None else seed
        beginning = beginning or (board.beginning[0] if board.beginning else None)
    if board is None and asked.prompt is None and beginning is None:
        raise UserError("nothing to make: --story, or --prompt and --seconds, or --extend a video")
    sets = list(asked.sets)
    sets += [] if asked.steps is None else [f"generate.sampler.steps={asked.steps}"]
    sets += [] if asked.guidance is None else [f"generate.sampler.guidance={asked.guidance}"]
    take = Take.create(
        asked.out,
        run=o.find_run(asked.run),
        size=size,
        size_named=size_named,
        like=beginning,
        seed=seed,
        negative=asked.negative or "",
        sets=sets,
    )
    try:
        take.use_loras(asked.loras)
    except UserError:
        take.discard()
        raise
    return take


def _open(asked: Asked) -> Take:
    from ..take.take import Take

    run = None if asked.run is None else o.find_run(asked.run)
    take = Take.open(asked.out, run, sets=asked.sets)
    own = take.folder.spec["size"]
    if asked.size is not None and asked.size != f"{own[1]}x{own[0]}":
        raise UserError(f"--size {asked.size}: {asked.out} is {own[1]}x{own[0]}")
    take.use_loras(asked.loras)
    return take


def _board(story: Path, seconds: float | None) -> Storyboard:
    from ..take.storyboard import read_storyboard

    return read_storyboard(story, seconds)


def _filled(asked: Asked) -> Storyboard | None:
    """Return the storyboard that is asked for, with the options that hold where it says nothing."""
    board = asked.board
    if board is None:
        return None
    return attrs.evolve(
        board,
        steps=asked.steps if board.steps is None else board.steps,
        guidance=asked.guidance if board.guidance is None else board.guidance,
        negative=asked.negative if board.negative is None else board.negative,
        seed=board.seed if asked.seed is None else asked.seed,
        size=board.size if asked.size is None else None,
    )


def _story(asked: Asked) -> Storyboard | Section | None:
    """Return what is asked for: a storyboard, one more section, or None."""
    from ..take.storyboard import Section

    if asked.prompt is None:
        return _filled(asked)
    return Section(
        prompt=asked.prompt, seconds=asked.seconds, negative=asked.negative, steps=asked.steps,
        guidance=asked.guidance,
    )  # fmt: skip


def _begin(asked: Asked, take: Take) -> None:
    """Begin with the video or the picture that was named, unless the take has it already."""
    if asked.extend is None and asked.image is None:
        return
    line = take.begin(
        asked.extend, image=asked.image, until=asked.extend_from, deliver=asked.deliver
    )
    if not asked.as_json:
        print(line, file=sys.stderr)


def _begin_new(asked: Asked, take: Take) -> None:
    """Begin a new take; also with what the storyboard names, whose line the run says."""
    _begin(asked, take)
    board = asked.board
    if board is not None and board.beginning is not None:
        file, is_picture = board.beginning
        video, image = (None, file) if is_picture else (file, None)
        line = take.begin(video, image=image, deliver=asked.deliver)
        if asked.dry_run and not asked.as_json:
            print(line, file=sys.stderr)
    elif asked.deliver is not None and asked.extend is None and asked.image is None:
        raise UserError("--deliver goes with --extend, or with a take that begins with a video")


def _run(asked: Asked, take: Take, *, new: bool) -> None:
    """Make what is asked for, and what is still to be made."""
    replace = asked.yes
    try:
        (_begin if take.order.entries else _begin_new)(asked, take)
        if asked.deliver is not None:
            take.deliver_source(asked.deliver)
        story = _story(asked)
        plan = None if story is None else take.plan(story, seed=asked.seed)
    except UserError:
        if new:
            take.discard()
        raise
    drawn = asked.seed is None and (asked.board is None or asked.board.seed is None)
    if new and drawn and not asked.as_json:
        print(f"seed {take.folder.spec['seed']}", file=sys.stderr)
    if plan is not None and not replace:
        if plan.lost and sys.stdin.isatty() and not asked.as_json:
            replace = _agreed(asked, f"this {plan.losses()}", len(plan.lost), always=True)
    _follow(
        asked,
        take,
        take.run(
            story,
            segments=asked.segments,
            seed=asked.seed,
            replace=replace,
            gain=asked.gain,
            original=asked.story,
        ),
    )


def _agreed(asked: Asked, what: str, count: int, *, always: bool = False) -> bool:
    """Say what an edit costs; on a terminal, ask where it is much. Return whether to go on."""
    if asked.as_json:
        return True
    print(what, file=sys.stderr)
    if asked.yes or not sys.stdin.isatty() or (count < ASKS_FROM and not always):
        return True
    return typer.confirm("go on?", err=True)


def _redo(asked: Asked, take: Take, number: int, keep_seed: bool, stop: bool) -> None:
    from ..take.order import draw_seed, spans

    order = take.order
    order.check_redo(number)
    entry = order.entries[number - 1]
    lost = [n for n in range(number, len(order.entries) + 1) if order.entries[n - 1].id is not None]
    pending = entry.id is None and (asked.seed in (None, entry.seed) or keep_seed)
    seed = asked.seed
    if seed is None and not keep_seed:
        # the same command, after it was stopped, keeps the seed that it drew
        same = pending and order.open and asked.prompt in (None, entry.prompt)
        seed = entry.seed if same else draw_seed()
    shown = entry.seed if keep_seed else seed
    cost = _seconds_of(take, lost)
    again = f"segments {spans(lost)} are made again" if lost else "nothing made is lost"
    what = f"segment {number} with seed {shown}: {again}{cost}"
    if asked.dry_run:
        prompts = {"prompt": asked.prompt, "negative": asked.negative}
        given = {key: text.strip() for key, text in prompts.items() if text is not None}
        notes = take.unread(order.redone(number, **given), fetch=False)
        data = {"kind": "plan", "remakes": lost, "seed": shown, "notes": notes}
        _print(asked, data, "\n".join([what, *notes]))
        return
    if not _agreed(asked, what, len(lost)):
        return
    take.redo(
        number, prompt=asked.prompt, seed=seed, keep_seed=keep_seed, negative=asked.negative,
        steps=asked.steps, guidance=asked.guidance,
    )  # fmt: skip
    limit = 1 if stop else asked.segments
    _follow(asked, take, take.run(segments=limit, gain=asked.gain, grow=False))


def _drop(asked: Asked, take: Take, number: int) -> None:
    from ..take.order import spans

    order = take.order
    order.check_number(number, "--drop-after", least=0)
    gone = list(range(number + 1, len(order.entries) + 1))
    what = f"segments {spans(gone)} leave the take" if gone else "nothing lies behind it"
    if asked.dry_run:
        _print(asked, {"kind": "plan", "drops": gone}, what)
    elif _agreed(asked, f"{what} (--undo brings them back)" if gone else what, len(gone)):
        take.drop_after(number)
        _follow(asked, take, take.run(segments=asked.segments, gain=asked.gain, grow=False))


def _undo(asked: Asked, take: Take) -> None:
    if asked.dry_run:
        raise UserError("--undo has nothing to say before it is done: leave --dry-run out")
    order = take.undo()
    left = sum(entry.id is None for entry in order.entries)
    text = f"back to {counted(len(order.entries), 'segment')}, {left} of them to make"
    if not asked.as_json:
        print(text, file=sys.stderr)
    _follow(asked, take, take.run(segments=asked.segments, gain=asked.gain, grow=False))


def _branch(asked: Asked, take: Take, out: Path, at: int | None) -> None:
    count = take.order.made if at is None else at
    if asked.dry_run:
        take.check_branch(out, at=at)
    else:
        take.branch(out, at=at)
    first = counted(count, "segment")
    text = f"{out}: a take of the first {first}; go on: longtake generate --out {out} …"
    _print(asked, {"kind": "branch", "out": str(out), "segments": count}, text)


def _tidy(asked: Asked, take: Take) -> None:
    found = take.garbage()
    size = sum(f.stat().st_size for p in found for f in (p.rglob("*") if p.is_dir() else [p])
               if f.is_file())  # fmt: skip
    data = {"kind": "tidy", "paths": [str(path) for path in found], "bytes": size}
    lines = [*map(str, found), f"{len(found)} to remove, {size / 1e6:.1f} MB"]
    _print(asked, data, "\n".join(lines))
    if asked.dry_run or not found:
        return
    if not asked.yes:
        if not sys.stdin.isatty() or asked.as_json:
            raise UserError("--tidy: add --yes to remove these")
        if not typer.confirm("remove these?", err=True):
            return
    take.tidy()


def _dry_run_on(asked: Asked, take: Take) -> None:
    """Say what would be made of a take that is there; its beginning is checked, too."""
    from ..take.order import Order

    beginning = None if asked.board is None else asked.board.beginning
    file = asked.extend or asked.image
    if file is not None:
        beginning = (file, asked.extend is None)
    line = ""
    if beginning is not None:
        path, picture = beginning
        source = take.check_beginning(
            path, picture=picture, until=asked.extend_from, deliver=asked.deliver
        )
        line = take.beginning_line(source)
    if not take.order.entries and beginning is not None:  # it would begin with that: try on a copy
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "take"
            take.folder.branch(out, Order())
            trial = _open(attrs.evolve(asked, out=out))
            trial.notes = take.notes
            _begin_new(asked, trial)
            _dry_run(asked, trial)
        return
    if beginning is not None:
        if not asked.as_json:
            print(line, file=sys.stderr)
    elif asked.deliver is not None:
        take.check_deliver(asked.deliver)
    _dry_run(asked, take)


def _dry_run(asked: Asked, take: Take) -> None:
    """Say what would be made, with lengths, tokens and time; nothing is written."""
    from ..take.forecast import forecast

    story = _story(asked)
    plan = None if story is None else take.plan(story, seed=asked.seed)
    order = take.order if plan is None else plan.order
    found = forecast(take, order)
    rows, notes = ((), ()) if plan is None else (plan.rows, plan.notes)
    last = order.entries[-1] if order.entries else None
    if last is not None and last.section is not None and last.end is None:
        if plan is not None or not order.ended:
            rows = (*rows, "the last section goes on until it is stopped (--segments)")
    remarks = () if asked.board is None else asked.board.remarks
    notes = (*take.notes, *remarks, *notes, *take.unread(order, fetch=False))
    losses = "" if plan is None else plan.losses()
    data = {
        "kind": "plan", "rows": list(rows), "notes": list(notes),
        "remakes": [] if plan is None else list(plan.remade),
        "drops": [] if plan is None else list(plan.dropped), **found.to_json(),
    }  # fmt: skip
    if not asked.as_json:
        print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
    _print(asked, data, "\n".join([*rows, *([losses] if losses else []), *found.lines()]))


def _seconds_of(take: Take, numbers: list[int]) -> str:
    """Return how long some segments took, in words; "" where that is not known."""
    try:
        times = [take.segment(number).stored.made.get("seconds") for number in numbers]
    except UserError:  # one is gone or damaged, which is why it is made again
        return ""
    known = [float(x) for x in times if x]
    return f", about {sum(known):.0f} s" if known and len(known) == len(times) else ""


def _print(asked: Asked, data: dict[str, Any], text: str) -> None:
    print(json.dumps(data, ensure_ascii=False) if asked.as_json else text)


def _follow(asked: Asked, take: Take, events: Generator[Event, None, None]) -> None:
    """Show what happens, to the end; at Ctrl-C say what is done, and end with 130."""
    from ..tools.progress import progress_bar

    last: dict[str, Any] = {}
    try:
        with progress_bar("segment") as report:
            for event in events:
                if asked.as_json:
                    if event.kind != "preview":
                        print(json.dumps(event.to_json(), ensure_ascii=False), flush=True)
                    last = event.to_json() if event.kind == "step" else last
                else:
                    last = _show(event, report, last)
                if event.kind == "done":
                    _check_promise(event)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        events.close()  # where it came between two events, the take is still held
        _stopped(take, last)


def _show(event: Event, report: Any, last: dict[str, Any]) -> dict[str, Any]:
    data = event.to_json()
    if event.kind == "note":
        print(data["text"], file=sys.stderr)
    elif event.kind == "step":
        eta = data["eta_all"]
        left = f", {eta:.0f} s left in all" if eta else ""
        report(data["done"], data["total"], f"segment {data['segment']}/{data['segments']}{left}")
        return data
    elif event.kind == "segment":
        took = "was there" if data["adopted"] else f"{data['took']:.1f} s"
        print(
            f"segment {data['segment']}/{data['segments']}: {data['duration']:.2f} s of video, "
            f"seed {data['seed']}, {data['tokens']:,} memory tokens, {took}",
            file=sys.stderr,
        )
    elif event.kind == "done":
        print("\n".join(_ending(event)))  # type: ignore[arg-type]
    return last


def _check_promise(done: Done) -> None:
    """Raise LongtakeError where other frames were delivered than were promised."""
    if any(line.startswith("error: ") for line in done.report):
        raise LongtakeError(f"what was delivered is not what was promised: {done.files[0]}")


def _ending(done: Done) -> list[str]:
    """Return the last lines: what was delivered, and its lengths."""
    asked = "" if done.asked is None else f"asked {done.asked:.2f} s, "
    lines = [
        f"{counted(done.segments, 'segment')}, {counted(done.frames, 'frame')}, "
        f"{done.duration:.2f} s: {asked}"
        f"snapped {done.snapped:.2f} s, delivered {done.delivered:.2f} s of new video"
    ]
    lines += [*done.report, *map(str, done.files)]
    return lines + ([f"{counted(done.to_make, 'segment')} to make"] if done.to_make else [])


def _stopped(take: Take, last: dict[str, Any]) -> NoReturn:
    """Deliver what is made, say it in one line, and end with 130."""
    order = take.order
    total = sum(entry.latents for entry in order.entries[: order.made])
    if order.made:
        take.deliver()
        take.report()
    seconds = take.frames_of(0, total) / take.folder.fps if total else 0.0
    where = ""
    if last:
        where = f" in segment {last['segment']} at step {last['done']} of {last['total']}"
    print(
        f"longtake: stopped{where}; {counted(order.made, 'segment')} ({seconds:.1f} s) in "
        f"{take.root}; go on: longtake generate --out {take.root}",
        file=sys.stderr,
    )
    sys.exit(130)
