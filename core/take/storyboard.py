"""Read storyboards: native JSON, SubRip and WebVTT, plain text; and what one is as a value.

    {"format": 1, "prompt": "Watercolour.", "sections": [
      {"duration": 5, "prompt": "A dog runs on a beach."},
      {"duration": 4.5, "prompt": "It finds a shell.", "cut": true, "seed": 7}]}

A subtitle file is a section a cue; a plain text is a section a paragraph, all equally long. What a
file is, its content says before its suffix. Everything that is wrong with a file is said at once,
each fault in one line with the line of the file. How lengths become latents: `snapping`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from attrs import Attribute, define, evolve, field, frozen

from ..config.convert import read_bool, read_float, read_int, read_str
from ..config.faults import in_json, not_among
from ..data.subtitles import (
    TIMING,
    Cue,
    decode_text,
    parse_cues,
    parse_json,
    read_whole_file,
)
from ..errors import UserError, is_utf8, printable
from ..sample.spec import STEPS
from ..tools.words import closest

FORMAT = 1
MOST_FAULTS = 20  # of a file that are said
LONGEST = 24 * 3600.0  # seconds of a storyboard
SAME = 1e-6  # seconds; times that sums of decimals move apart by less are one
SEEDS = 2**63
GUIDANCE = 1000  # more comes out as not a number
MEMORIES = ("all", "since_cut", "none")
NO_SECTION = "holds no section: give at least one with a prompt and a duration"
SHOWN = 40  # characters of an unknown key

Kind = Literal["json", "srt", "vtt", "text"]
Place = tuple[str | int, ...]  # of a JSON value, such as ("sections", 3, "end")


def _text(value: Any) -> str:
    return read_str(value).strip()


def _title(value: Any) -> str:
    text = _text(value)
    if any(ord(letter) < 32 and letter not in "\t\n\r" for letter in text):
        raise ValueError(f"must be text without control characters, not {in_json(text)}")
    return text


def _prompt(value: Any) -> str:
    text = _text(value)
    if not text:
        raise ValueError("is blank: say what the section shows")
    return text


def _format(value: Any) -> int:
    number = read_int(value)
    if number > FORMAT:
        raise ValueError(f"{number} is newer than this longtake reads ({FORMAT}): update longtake")
    if number != FORMAT:
        raise ValueError(f"must be {FORMAT}, not {number}")
    return number


def _seed(value: Any) -> int:
    number = read_int(value)
    if not 0 <= number < SEEDS:
        raise ValueError(f"must be 0 or more and less than 2^63, not {in_json(number)}")
    return number


def _guidance(value: Any) -> float:
    number = read_float(value)
    if number < 0:
        raise ValueError(f"must be 0 or more, not {number:g}")
    if number > GUIDANCE:
        raise ValueError(f"must be at most {GUIDANCE}, not {number:g}")
    return number


def _steps(value: Any) -> int:
    number = read_int(value)
    if number < 1:
        raise ValueError(f"must be 1 or more, not {in_json(number)}")
    if number > STEPS:
        raise ValueError(f"must be at most {STEPS}, not {in_json(number)}")
    return number


def _size(value: Any) -> str:
    text = _text(value)
    if not re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", text):
        raise ValueError(f"must be WIDTHxHEIGHT in pixels, such as 832x480, not {in_json(value)}")
    return text


def _length(value: Any) -> float:
    number = read_float(value)
    if not 0 < number <= LONGEST:
        raise ValueError(
            f"must be more than 0 s and at most {in_seconds(LONGEST)}, not {in_seconds(number)}"
        )
    return number


def _moment(value: Any) -> float:
    number = read_float(value)
    if not 0 <= number <= LONGEST:
        raise ValueError(f"must be 0 to {in_seconds(LONGEST)}, not {in_seconds(number)}")
    return number


def _memory(value: Any) -> str:
    if value not in MEMORIES:
        raise ValueError(not_among(value, MEMORIES))
    return str(value)


def _file(value: Any) -> Path:
    text = str(value) if isinstance(value, Path) else read_str(value)
    if not is_utf8(text):
        raise ValueError(f"must be a path in UTF-8, not {in_json(printable(text))}")
    if not text.strip() or "\0" in text:
        raise ValueError(f"must be the path of a file, not {in_json(value)}")
    return Path(text)


# What each field holds: the functions return its value, and raise ValueError where it is none.
READ: Mapping[str, Callable[[Any], Any]] = {
    "format": _format, "title": _title, "prompt": _text, "negative": _text, "seed": _seed,
    "guidance": _guidance, "steps": _steps, "size": _size, "segment_seconds": _length,
    "source": _file, "image": _file,
}  # fmt: skip
READ_SECTION: Mapping[str, Callable[[Any], Any]] = {
    "start": _moment, "end": _moment, "duration": _length, "prompt": _prompt, "negative": _text,
    "seed": _seed, "guidance": _guidance, "steps": _steps, "cut": read_bool, "memory": _memory,
    "image": _file, "note": _text,
}  # fmt: skip
# What other programs and our own Python call these fields.
MEANT = {
    "seconds": "duration", "length": "duration", "text": "prompt", "caption": "prompt",
    "negative_prompt": "negative", "guidance_scale": "guidance", "infer_steps": "steps",
    "num_inference_steps": "steps", "image_path": "image", "video": "source", "name": "title",
}  # fmt: skip
LATER = {"end_image": "needs bridges, which this version does not make; leave it out"}
# Marks of other programs' storyboards: their brackets would else be read as words of a prompt.
FOREIGN = (
    (r"\[\s*[\d.]+\s*(s?\s*-\s*[\d.]+\s*)?s\s*[:\]]", "timed prompts in brackets"),
    (r"\[/\w+", "Wan2GP's directives"),
    (r";;;\s*-?\d+(-\d+)?:", "musubi-tuner's sections"),
    (r"(?m)\s--(w|h|f|d|s|g|n|i|ei|vs)\s+\S+", "musubi-tuner's options"),
    (r"(?m)^---\s*$", "a list parted by ---"),
    (r"\Aprompts\s*=\s*\[", "a Python list"),
    (r"\A\s*id\s*,\s*prompt", "a CSV table"),
)


def _checked(read: Callable[[Any], Any], *, needed: bool = False) -> Any:
    """Return a validator for what Python gives, with the rules of the same field in a file."""

    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is None and not needed:
            return
        try:
            read(value)
        except ValueError as error:
            raise UserError(f"{attribute.name} {error}") from None

    return check


def _strip(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _to_path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and value.strip() else value


def _text_field(read: Callable[[Any], Any] = _text, **options: Any) -> Any:
    needed = "default" not in options
    return field(converter=_strip, validator=_checked(read, needed=needed), **options)


def _path_field() -> Any:
    return field(default=None, converter=_to_path, validator=_checked(_file))


def _field(read: Callable[[Any], Any], default: Any = None) -> Any:
    return field(default=default, validator=_checked(read, needed=default is not None))


@frozen(kw_only=True)
class Section:
    """What one part of a take shows, and for how long. None: as in the sections around it.

    Equal are sections of which the same is made: notes and places in files do not count.

    Attributes:
        prompt: what it shows.
        seconds: of new video that are asked for, more than 0; None: until stopped, legal in the
            last section only.
        negative: what it should not show.
        seed: of its first segment; the next ones have one more each.
        guidance: weight of the prompt, 0 or more.
        steps: of the sampler, 1 or more.
        cut: a hard cut where it begins: the uncompressed window is dropped, memory is kept.
        memory: what it may remember: `all`, `since_cut` (what came after the last cut) or `none`.
        image: picture that it begins with; of the first section, or of one with `cut`.
        note: for people, not read.
        where: file, line and name, for messages; "" where it comes from no file.

    Raises:
        UserError: a value that is none of these.
    """

    prompt: str = _text_field(_prompt)
    seconds: float | None = _field(_length)
    negative: str | None = _text_field(default=None)
    seed: int | None = _field(_seed)
    guidance: float | None = _field(_guidance)
    steps: int | None = _field(_steps)
    cut: bool = _field(read_bool, default=False)
    memory: str = _field(_memory, default="all")
    image: Path | None = _path_field()
    note: str | None = _text_field(default=None, eq=False)
    where: str = field(default="", eq=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return it as a section of native JSON, without what is as in a section of no options."""
        known = {"duration": self.seconds, "prompt": self.prompt}
        names = ("negative", "seed", "guidance", "steps", "note")
        known |= {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        known |= {"cut": True} if self.cut else {}
        known |= {"memory": self.memory} if self.memory != "all" else {}
        return known | ({"image": str(self.image)} if self.image is not None else {})


def _in_order(sections: Iterable[Section]) -> tuple[Section, ...]:
    return tuple(sections)


def _check_order(board: Storyboard, _: Attribute[Any], sections: tuple[Section, ...]) -> None:
    if not sections or not all(isinstance(section, Section) for section in sections):
        raise UserError(f"{board.name or 'a storyboard'} {NO_SECTION}")
    for number, section in enumerate(sections, start=1):
        if section.seconds is None and number < len(sections):
            raise UserError(f"section {number} has no length, and is not the last one")
    total = sum(exact(section.seconds or 0.0) for section in sections)
    if total > LONGEST:
        whole = f"{board.name or 'the storyboard'} lasts {in_seconds(float(total))} in all"
        raise UserError(f"{whole}: at most {in_seconds(LONGEST)}")


@frozen(kw_only=True)
class Storyboard:
    """Sections in their order, without gaps, and what holds for all of them.

    Attributes:
        sections: at least one.
        title: of the video, for people.
        prompt: goes before every section's prompt.
        negative, guidance, steps: of the sections that have none of their own.
        seed: base of all seeds of sections that have none of their own.
        size: `WIDTHxHEIGHT` in pixels; None: the take's.
        segment_seconds: length of the longest segment; None: the run's.
        source: video that the take goes on from; not together with `image`.
        image: picture that the take begins with.
        name: of the file, for messages.
        places: of the file, by field: file, line and name, for messages.
        original: what the file held, of which a take keeps a copy; b"" where there was none.
        remarks: lines for the user on what was read otherwise than it stands there.

    Raises:
        UserError: a value that is none of these.
    """

    title: str | None = _text_field(default=None)
    prompt: str = _text_field(default="")
    negative: str | None = _text_field(default=None)
    seed: int | None = _field(_seed)
    guidance: float | None = _field(_guidance)
    steps: int | None = _field(_steps)
    size: str | None = _field(_size)
    segment_seconds: float | None = _field(_length)
    source: Path | None = _path_field()
    image: Path | None = _path_field()
    sections: tuple[Section, ...] = field(converter=_in_order, validator=_check_order)
    name: str = field(default="", eq=False)
    places: Mapping[str, str] = field(factory=dict, eq=False, repr=False)
    original: bytes = field(default=b"", eq=False, repr=False)
    remarks: tuple[str, ...] = field(default=(), eq=False)

    def __attrs_post_init__(self) -> None:
        if self.source is not None and self.image is not None:
            raise UserError("source and image: a take begins with one of the two")

    def place(self, key: str) -> str:
        """Return where a field is given, for messages; of no file, the storyboard's."""
        return self.places.get(key) or f"{self.name or 'the storyboard'}: {key}"

    @property
    def seconds(self) -> float | None:
        """Seconds of new video that are asked for; None: until stopped."""
        if self.sections[-1].seconds is None:
            return None
        return float(sum(exact(section.seconds or 0.0) for section in self.sections))

    @property
    def beginning(self) -> tuple[Path, bool] | None:
        """The video or picture that the take begins with, and whether it is a picture."""
        picture = self.image or self.sections[0].image
        file = self.source or picture
        return None if file is None else (file, self.source is None)

    def complete(self) -> tuple[Section, ...]:
        """Return the sections as each is asked for: prompts and settings that hold for all put in.

        Seeds stay: what follows from the base seed is a segment's, not a section's.
        """
        return tuple(
            evolve(
                section,
                prompt=f"{self.prompt} {section.prompt}".strip(),
                negative=self.negative if section.negative is None else section.negative,
                guidance=self.guidance if section.guidance is None else section.guidance,
                steps=self.steps if section.steps is None else section.steps,
            )
            for section in self.sections
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as native JSON, with a duration a section; reading it gives an equal one."""
        known: dict[str, Any] = {"format": FORMAT}
        for name in READ:
            value = getattr(self, name, None)
            if value is not None and value != "":
                known[name] = str(value) if isinstance(value, Path) else value
        return known | {"sections": [section.to_json() for section in self.sections]}


def read_given(key: str, value: Any, name: str = "") -> Any:
    """Return a value that was given for a field of a section, by the rules of files; None stays.

    Args:
        key: of the field.
        value: that was given.
        name: what messages call it, such as `--seed`; "": as the field.

    Raises:
        UserError: it is no such value.
    """
    if value is None:
        return None
    try:
        return (READ_SECTION.get(key) or READ[key])(value)
    except ValueError as error:
        raise UserError(f"{name or key} {error}") from None


def in_seconds(seconds: float) -> str:
    """Return seconds as messages show them."""
    return f"{seconds:.9g} s"


def exact(seconds: float) -> Fraction:
    """Return a number of seconds as it is written: 0.1 is a tenth, so sums do not drift."""
    return Fraction(repr(float(seconds)))


def read_storyboard(path: Path, seconds: float | None = None) -> Storyboard:
    """Read a storyboard.

    Paths in it are beside the file; of a pipe, in the working directory. A gap between subtitles
    belongs to the cue before it, and is named among the remarks.

    Args:
        path: of native JSON, an .srt or .vtt file or plain text.
        seconds: length of each section of a plain text; files of other kinds have their own.

    Raises:
        UserError: all that is wrong with it (the first 20 faults), one line each; or `seconds` are
            missing for plain text, or given for a file with times of its own.
    """
    name = printable(path.name)
    data = read_whole_file(path)  # once: of a pipe there is nothing more
    return evolve(_read(decode_text(data, name), name, path, seconds), original=data)


def _read(text: str, name: str, path: Path, seconds: float | None) -> Storyboard:
    if not text.strip():
        raise UserError(f"{name} {NO_SECTION}")
    kind = told_by(text, path.suffix)
    if kind == "text":
        return _read_plain(text, name, seconds)
    if seconds is not None:
        raise UserError(f"{name} says itself how long its sections are: leave the seconds out")
    if kind == "json":
        folder = Path() if path.is_relative_to("/dev") else path.parent
        return _JsonReader(name, folder, *_parse(text, name)).storyboard()
    return _read_cues(text, name, web=kind == "vtt")


def told_by(text: str, suffix: str) -> Kind:
    """Return which kind of storyboard a text is, by its content, else by the file's suffix."""
    start = text.lstrip("\ufeff \t\n")
    if re.match(r'\{\s*["}]|\[\s*[{"\]]', start):
        return "json"
    if re.match(r"WEBVTT\b", start):
        return "vtt"
    if any(TIMING.fullmatch(line) for line in start.split("\n", 2)[:2]):
        return "vtt" if suffix.lower() == ".vtt" else "srt"
    kinds: dict[str, Kind] = {".json": "json", ".srt": "srt", ".vtt": "vtt"}
    return kinds.get(suffix.lower(), "text")


@define
class _Faults:
    """What is wrong with a file, by line."""

    name: str
    found: list[tuple[int, str]] = field(factory=list)

    def add(self, line: int, what: str) -> None:
        self.found.append((line, what))

    def refuse(self) -> None:
        """Raise UserError if there are any: the first ones, in the order of the file."""
        if not self.found:
            return
        lines = [f"{self.name}, line {line}: {what}" for line, what in sorted(self.found)]
        more = len(lines) - MOST_FAULTS
        rest = [f"{self.name}: and {more} more"] if more > 0 else []
        raise UserError("\n".join(lines[:MOST_FAULTS] + rest))


def _read_plain(text: str, name: str, seconds: float | None) -> Storyboard:
    """Return a section a paragraph, its lines joined."""
    for pattern, what in FOREIGN:
        if match := re.search(pattern, text):
            before = match.start() + len(match[0]) - len(match[0].lstrip())
            line, shown = text.count("\n", 0, before) + 1, " ".join(match[0].split())
            raise UserError(
                f"{name}, line {line}: {shown!r} looks like {what}, which this version does not "
                "read: write one paragraph a section, or native JSON"
            )
    if seconds is None:
        raise UserError(
            f"{name} is plain text, a section a paragraph: say how many seconds each one lasts"
        )
    paragraphs: list[tuple[int, list[str]]] = []
    blank = True
    for number, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            if blank:
                paragraphs.append((number, []))
            paragraphs[-1][1].append(row.strip())
        blank = not row.strip()
    return Storyboard(
        name=name,
        sections=tuple(
            Section(prompt=" ".join(lines), seconds=seconds, where=f"{name}, line {number}")
            for number, lines in paragraphs
        ),
    )


def _read_cues(text: str, name: str, *, web: bool) -> Storyboard:
    """Return a section a cue; what is passed over and gaps belong to the cue before."""
    wrong: list[UserError] = []
    cues = list(parse_cues(text, name, web=web, faults=wrong))
    faults, remarks, told = _Faults(name), [], []
    for error in wrong:
        place = re.match(rf"{re.escape(name)}, line (\d+): ", str(error))
        if place is None:
            raise error
        faults.add(int(place[1]), str(error)[place.end() :])
    last: Cue | None = None
    for cue in cues:
        if last is not None and cue.start < last.end:
            before = f"cue {last.number} ends at {in_seconds(last.end)}"
            what = f"cue {cue.number} starts at {in_seconds(cue.start)}, {before}"
            faults.add(cue.line, what)
        if cue.end > LONGEST:
            faults.add(cue.line, f"cue {cue.number} ends after {in_seconds(LONGEST)}")
        if not cue.text or cue.start == cue.end:
            what = "no text" if not cue.text else "no length"
            remarks.append(f"{name}, line {cue.line}: cue {cue.number} has {what}, passed over")
        else:
            told.append(cue)
        last = cue
    faults.refuse()
    if not told:
        raise UserError(f"{name} {NO_SECTION}")
    starts = [0.0, *(cue.start for cue in told[1:])]
    ends = [*starts[1:], told[-1].end]
    if told[0].start > 0:
        remarks.append(f"{_place(name, told[0])} begins at 0 s, not at {in_seconds(told[0].start)}")
    for cue, end in zip(told, ends, strict=True):
        if end > cue.end:
            remarks.append(
                f"{_place(name, cue)} goes on to {in_seconds(end)}, the next one's start"
            )
    sections = [
        Section(
            prompt=cue.text,
            seconds=float(exact(end) - exact(start)),
            where=_place(name, cue),
        )
        for cue, start, end in zip(told, starts, ends, strict=True)
    ]
    return Storyboard(name=name, sections=tuple(sections), remarks=tuple(remarks))


def _place(name: str, cue: Cue) -> str:
    return f"{name}, line {cue.line}: cue {cue.number}"


def _parse(text: str, name: str) -> tuple[Any, dict[Place, int], _Faults]:
    """Return a JSON text's data, the line of each of its values, and the keys given twice."""
    data, faults = parse_json(text, name), _Faults(name)
    lines: dict[Place, int] = {}
    for path, line in scan_lines(text):
        if path in lines and path and isinstance(path[-1], str):
            faults.add(line, f"{_in_words(path)} is given twice, first on line {lines[path]}")
        lines.setdefault(path, line)
    return data, lines, faults


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,\n]|[^\s{}\[\]:,"]+')


@define
class _Open:
    """A list or object of which some is read: its path, and where in it the next value stands."""

    path: Place
    at: str | int | None  # None: in an object, before a key


def _path_of_next(around: Sequence[_Open]) -> Place:
    if not around or around[-1].at is None:
        return ()
    return (*around[-1].path, around[-1].at)


def scan_lines(text: str) -> Iterator[tuple[Place, int]]:
    """Yield path and line of every value of a JSON text, in order; of a member that of its key.

    Args:
        text: JSON that can be parsed, with newlines as line ends.
    """
    line, around = 1, list[_Open]()
    for token in _TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif token in ("}", "]"):
            around.pop()
        elif token == ",":
            last = around[-1]
            last.at = last.at + 1 if isinstance(last.at, int) else None
        elif token != ":" and around and around[-1].at is None:
            around[-1].at = key = str(json.loads(token))
            yield (*around[-1].path, key), line
        elif token != ":":
            path = _path_of_next(around)
            if not (path and isinstance(path[-1], str)):
                yield path, line
            if token in ("{", "["):
                around.append(_Open(path, None if token == "{" else 0))


def _in_words(path: Place) -> str:
    """Return a path as messages show it, such as `sections[3].end`."""
    words = ""
    for step in path:
        if isinstance(step, int):
            words += f"[{step}]"
        else:
            key = printable(step)
            key = key if len(key) <= SHOWN else key[: SHOWN - 3] + "..."
            words += f".{key}" if words else key
    return words or "the storyboard"


@define
class _JsonReader:
    """Reads the data of native JSON; what is wrong goes to `faults`, and reading goes on."""

    name: str
    folder: Path
    data: Any
    lines: Mapping[Place, int]
    faults: _Faults

    def storyboard(self) -> Storyboard:
        if not isinstance(self.data, dict):
            raise UserError(f"{self.name} must be an object with sections, not a list")
        known = self.fields((), self.data, READ, ("sections",))
        if "format" not in self.data:
            self.wrong((), f'has no format: it begins with "format": {FORMAT}')
        elif self.data["format"] is None:
            self.wrong(("format",), f"must be {FORMAT}, not null")
        known.pop("format", None)
        if known.get("source") is not None and known.get("image") is not None:
            self.wrong(("image",), "and source: a take begins with one of the two")
        sections = self.sections(known.get("source") or known.get("image"))
        self.faults.refuse()
        places = {key: f"{self.name}, line {self.lines[(key,)]}: {key}" for key in known}
        return Storyboard(name=self.name, sections=sections, places=places, **known)

    def wrong(self, path: Place, what: str) -> None:
        """Note a fault of a value, or of the nearest one around it that the file has."""
        there = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in self.lines)
        self.faults.add(self.lines[there], f"{_in_words(path)} {what}")

    def fields(
        self,
        path: Place,
        data: Mapping[str, Any],
        known: Mapping[str, Callable[[Any], Any]],
        others: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return the values of an object that can be read; null counts as not given."""
        values: dict[str, Any] = {}
        for key, raw in data.items():
            place = (*path, key)
            if key in LATER and path:
                self.wrong(place, LATER[key])
            elif key in others:
                continue
            elif key not in known:
                meant = MEANT.get(key.lower())
                like = meant if meant in known else closest(key.lower(), [*known, *others])
                hint = f"{like}?" if like else f"there are {', '.join([*known, *others])}"
                self.wrong(place, f"is unknown; {hint}")
            elif raw is not None:
                try:
                    value = known[key](raw)
                    values[key] = self.there(value) if isinstance(value, Path) else value
                except ValueError as error:
                    self.wrong(place, str(error))
        return values

    def there(self, path: Path) -> Path:
        """Return the path of a file that is named beside the storyboard.

        Raises:
            ValueError: there is none.
        """
        found = self.folder / path
        try:
            exists = found.is_file()
        except OSError:  # a name too long, a folder that may not be read
            exists = False
        if not exists:
            raise ValueError(f"names {printable(str(path))}, which is no file beside {self.name}")
        return found

    def sections(self, begins_with: Path | None) -> tuple[Section, ...]:
        rows = self.data.get("sections")
        if rows is None or rows == []:
            self.faults.refuse()  # a misspelt name of `sections`, before that there are none
            raise UserError(f"{self.name} {NO_SECTION}")
        if not isinstance(rows, list):
            self.wrong(("sections",), f"must be a list of objects, not {in_json(rows)}")
            return ()
        timing = _Timing(self, rows)
        sections = []
        for index, row in enumerate(rows):
            path: Place = ("sections", index)
            if not isinstance(row, dict):
                self.wrong(path, f"must be an object, not {in_json(row)}")
                continue
            known = self.fields(path, row, READ_SECTION)
            if row.get("prompt") is None:
                self.wrong(path, "has no prompt")
            if "image" in known and begins_with and index == 0:
                self.wrong((*path, "image"), f"and {begins_with.name}: a take begins with one")
            if "image" in known and index > 0 and known.get("cut") is not True:
                self.wrong((*path, "image"), "is for the first section, or for one with a cut")
            seconds = timing.seconds(index, row, known)
            known = {key: known[key] for key in known.keys() - {"start", "end", "duration"}}
            if "prompt" in known:
                where = f"{self.name}, line {self.lines[path]}: {_in_words(path)}"
                sections.append(Section(seconds=seconds, where=where, **known))
        return tuple(sections)


@define
class _Timing:
    """Reads the times of sections in their order, and checks that they follow each other.

    All sections give their times in the same way: that of the first.
    """

    reader: _JsonReader
    rows: list[Any]
    now: float | None = 0.0  # where the next section begins; None: not known, for a fault before

    def seconds(self, index: int, row: Mapping[str, Any], known: Mapping[str, Any]) -> float | None:
        """Return how long a section lasts; None: until stopped, or its times are wrong."""
        path: Place = ("sections", index)
        style, first = _style(row), _style(self.rows[0])
        before, self.now = self.now, None
        if "end" in row and "duration" in row:
            self.reader.wrong(path, "has an end and a duration: give one of them")
            return None
        if not {"end", "duration"} & set(style):
            self.reader.wrong(path, "has no length: give it start and end, or a duration")
            return None
        if index and style != first and {"end", "duration"} & set(first):
            ways = f"{' and '.join(style)}, sections[0] by {' and '.join(first)}"
            self.reader.wrong(path, f"gives its time by {ways}: use one way for all")
            return None
        start, way = known.get("start"), "end" if "end" in row else "duration"
        if row.get("start") is not None and start is None:
            return None  # it is none, which is said already
        if start is None or (before is not None and abs(start - before) < SAME):
            start = before
        elif before is not None:
            self._apart(index, start, before)
        if row[way] is None:
            if index < len(self.rows) - 1:
                what = f"is null: only the last section of {len(self.rows)} may last until stopped"
                self.reader.wrong((*path, way), what)
            return None
        if way not in known:
            return None
        length = known[way]
        if way == "duration":
            self.now = None if start is None else float(exact(start) + exact(length))
            return float(length)
        self.now = length
        if start is not None and length <= start:
            self._reversed(path, start, length)
            return None
        return None if start is None else float(exact(length) - exact(start))

    def _apart(self, index: int, start: float, before: float) -> None:
        place: Place = ("sections", index, "start")
        if index == 0:
            self.reader.wrong(place, f"is {in_seconds(start)}: the first section starts at 0")
            return
        end = f"sections[{index - 1}] ends at {in_seconds(before)}"
        what = "no overlaps" if start < before else "no gaps"
        self.reader.wrong(place, f"is {in_seconds(start)}, {end}: {what} are allowed")

    def _reversed(self, path: Place, start: float, end: float) -> None:
        order = "when" if start == end else "before"
        what = f"ends ({in_seconds(end)}) {order} it starts ({in_seconds(start)})"
        lines = self.reader.lines
        self.reader.faults.add(lines[(*path, "end")], f"{_in_words(path)} {what}")


def _style(row: Any) -> tuple[str, ...]:
    return tuple(
        key for key in ("start", "end", "duration") if isinstance(row, dict) and key in row
    )
