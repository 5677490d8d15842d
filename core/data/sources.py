"""Find the videos and photographs to cache, and the captions that users keep for them.

Captions stand in a list of videos, or in a file beside a video: for `x.mp4` `x.json`, `x.srt` or
`x.vtt` (timed), `x.txt` or `x.caption`, all of them also as `x.mp4.txt`.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from ..errors import UserError, printable
from ..experiment import FilmSpec
from ..video.decode import VideoError, starts_late
from .captions import Caption, caption_at, name_in_words, untimed_captions
from .films import Film, Picture, check_photo, make_films
from .lists import SUFFIXES as LISTS
from .lists import WORDS, Row, read_pair, read_rows
from .subtitles import parse_json, read_segments, read_subtitles, read_text_file

SUFFIXES = frozenset(
    ".mp4 .mov .mkv .webm .avi .m4v .mpg .mpeg .ts .m2ts .wmv .flv .ogv .3gp .gif .mxf "
    ".mts .m2t .vob .asf .f4v .3g2 .ogm .divx .m2v .mpe .qt .dv .y4m".split()
)
PHOTOS = frozenset(".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .avif".split())
# Pictures that are not read: of telephones and cameras, which few systems know, and others.
OTHER_PHOTOS = frozenset(
    ".heic .heif .jxl .jp2 .dng .nef .cr2 .cr3 .arw .orf .raf .rw2 .pef .tga .psd .exr .hdr".split()
)
# Lists that are looked for inside a folder, by the names that their makers give them. Where none is
# there, a single one under any name is taken.
LISTS_INSIDE = (
    "metadata.csv",
    "metadata.tsv",
    "metadata.jsonl",
    "metadata.json",
    "videos2caption.json",
    "captions.json",
)
PAIR = (
    ("videos.txt", "video.txt"),
    ("prompt.txt", "prompts.txt", "captions.txt", "caption.txt"),
)
# Files that may hold captions, and are not read.
TABLES = (".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".ods", ".yaml", ".yml", ".toml")
SUBTITLES = (".ass", ".ssa")  # which systems count as sound
TIMED: dict[str, Callable[[Path, list[str]], tuple[Caption, ...]]] = {
    ".json": read_segments,
    ".srt": read_subtitles,
    ".vtt": read_subtitles,
}
TEXTS = (".txt", ".caption", ".prompt", ".cap")
NAMED = 5  # files named in a note that may be long
SHORT, LONG = 8, 32  # digits of a hash in a clip's id
FILM = "-film"  # in a film's id between that of its photograph and its number


@frozen(kw_only=True)
class Source:
    """A video or a film to cache: where it is, what it is called in the store, its captions.

    Attributes:
        path: may name a file that does not exist (a list may): reading it says so.
        id: names its clip; the same whether a folder or a list inside it was given.
        name: its path below the folder, as it can be printed.
        captions: none where none was given; in seconds of the file's clock.
        origin: where they stand: a list's name, or the suffix of the file beside the video.
        notes: what of them was passed over, a line each.
        fault: why its captions cannot be read, in one line; the video must not be used then.
        film: what is to be filmed, where `path` is a photograph; None: `path` is a video.
    """

    path: Path
    id: str
    name: str
    captions: tuple[Caption, ...] = ()
    origin: str = ""
    notes: tuple[str, ...] = ()
    fault: str = ""
    film: Film | None = None


def find_films(photos: Path, spec: FilmSpec) -> list[Source]:
    """Find the photographs of a folder (searched below, too) and return their films, by name.

    A film's name is its photograph's path below the folder and its number. Its captions are
    those beside its photographs (of the whole), else their names in words, each for the shots that
    show it.

    Raises:
        UserError: there is no such folder, it cannot be read, or it has no photograph in it.
    """
    if not photos.is_dir():
        raise UserError(f"--photos {photos}: no such folder")
    try:
        paths = sorted(path for path in _walk(photos) if path.suffix.lower() in PHOTOS)
    except OSError as error:
        place = printable(os.fsdecode(error.filename or photos))
        raise UserError(f"--photos {place}: cannot be read ({error.strerror})") from None
    if not paths:
        some = ", ".join(sorted(PHOTOS))
        raise UserError(f"--photos {photos}: no photograph in it (looked for {some})")
    found = _distinct(_source(path, photos) for path in paths)
    found = list(map(_checked, found))
    sound = {one.name: one for one in found if not one.fault}
    pictures = [
        Picture(name=name, caption=_whole_caption(one), path=one.path)
        for name, one in sound.items()
    ]
    films = make_films(pictures, spec)
    filmed = [_film_source(sound[film.pictures[0].name], film) for film in films]
    faulty = [one for one in found if one.fault]
    return sorted([*filmed, *faulty], key=lambda source: source.name)


def _checked(photo: Source) -> Source:
    """Return a photograph with what is wrong with its file, and what was warned of."""
    notes: list[str] = []
    fault = photo.fault or check_photo(photo.path, notes)
    return attrs.evolve(photo, fault=fault, notes=(*photo.notes, *notes))


def _whole_caption(photo: Source) -> str:
    return caption_at(photo.captions, 0.0, float("inf")) or name_in_words(photo.path)


def _film_source(photo: Source, film: Film) -> Source:
    return attrs.evolve(
        photo,
        id=f"{photo.id}{FILM}{film.number}",
        name=f"{photo.name} film {film.number}",
        captions=film.captions(),
        film=film,
    )


def photo_of(film: str) -> str:
    """Return the id of the photograph that a film of this id is of."""
    return film.rpartition(FILM)[0]


def find_sources(videos: Path) -> list[Source]:
    """Find the videos of a folder (searched below, too) or of a list, or the one file; by name.

    - A folder: every video below it that is not hidden, with the captions beside each
      (`captions_beside`). A list inside it goes before: one under a usual name (`LISTS_INSIDE`,
      `PAIR`), else the only one that names videos which are there. Then the videos are those of the
      list.
    - A list (CSV, TSV, JSON, JSONL, see `read_rows`; the two text files of `read_pair`): paths are
      relative to the list's folder, else to `videos` in it, else to the working directory. Where a
      caption is blank, the files beside the video count. A video that is not there is returned
      nevertheless.
    - Anything else is one video.

    Raises:
        UserError: nothing is there, no video is in the folder, a folder cannot be read, two lists
            are in it, a list is faulty, or lists a video twice with other captions; a TOML.
    """
    try:
        if videos.is_dir():
            return _folder(videos)
        if not videos.is_file():
            raise UserError(f"--videos {videos}: no such file or folder")
    except OSError as error:
        place = printable(os.fsdecode(error.filename or videos))
        raise UserError(f"--videos {place}: cannot be read ({error.strerror})") from None
    if videos.suffix.lower() == ".toml":
        raise UserError(f"--videos {videos}: a TOML is not read{_toml_hint(videos)}")
    if videos.suffix.lower() in TABLES:
        kind = videos.suffix[1:].upper()
        raise UserError(f"--videos {videos}: no {kind} is read; write it as CSV, JSON or JSONL")
    pair = _pair(videos.parent)
    if videos.suffix.lower() in LISTS or videos in pair:
        return _listed(pair if videos in pair else (videos,), videos.parent)
    return [_source(videos, videos.parent)]


def _folder(root: Path) -> list[Source]:
    lists: list[Sequence[Path]] = [
        (path,) for name in LISTS_INSIDE if (path := root / name).is_file()
    ]
    lists += [pair] if (pair := _pair(root)) else []
    if len(lists) > 1:
        names = " and ".join(_list_name(paths) for paths in lists)
        raise UserError(f"--videos {root}: {names} are both in it; name the one to use")
    if lists:
        return _listed(lists[0], root)
    paths = sorted(path for path in _walk(root) if path.suffix.lower() in SUFFIXES)
    others, _ = _other_lists(root, paths)
    if len(others) == 1:
        return _listed(others, root)
    if not paths:
        some = ", ".join(sorted(SUFFIXES)[:6])
        raise UserError(f"--videos {root}: no video in it (looked for {some} ...){_hint(root)}")
    return _distinct(_source(path, root) for path in paths)


def _pair(root: Path) -> tuple[Path, ...]:
    """Return the file of prompts and that of videos in a folder; () where they are not both."""
    videos, prompts = ([root / name for name in names if _is_file(root / name)] for names in PAIR)
    return (prompts[0], videos[0]) if videos and prompts else ()


def _rows(paths: Sequence[Path]) -> list[Row]:
    return read_pair(paths[1], paths[0]) if len(paths) == 2 else read_rows(paths[0])


def _list_name(paths: Sequence[Path]) -> str:
    return " and ".join(printable(path.name) for path in paths)


def _other_lists(root: Path, videos: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Return the lists of a folder that have no usual name, and why other files are none.

    A list names a video that is there; a file beside a video of its name is about that one.
    """
    beside = {video.stem for video in videos if video.parent == root}
    beside |= {video.name for video in videos if video.parent == root}
    lists, reasons = [], []
    for path in sorted(root.iterdir()):
        if path.suffix.lower() not in LISTS or path.stem in beside or not _is_file(path):
            continue
        try:
            rows = read_rows(path)
        except UserError as error:
            reasons.append(str(error))
            continue
        if any(_is_file(_located(row.video, root)) for row in rows):
            lists.append(path)
        else:
            reasons.append(f"{printable(path.name)}: names no video that is there")
    return lists, reasons


def _hint(root: Path) -> str:
    """Return how to use a list in the folder that has another name, "" where there is none."""
    lists = sorted(path.name for path in root.iterdir() if path.suffix.lower() in LISTS)
    if lists:
        return f"; to use {printable(lists[0])}, name it"
    tomls = sorted(path for path in root.iterdir() if path.suffix.lower() == ".toml")
    return f"; {printable(tomls[0].name)} is not read{_toml_hint(tomls[0])}" if tomls else ""


def _toml_hint(path: Path) -> str:
    """Return which videos a dataset's TOML names (musubi-tuner, diffusion-pipe), "" for none."""
    try:
        tables = _tables(tomllib.loads(read_text_file(path)))
    except (UserError, tomllib.TOMLDecodeError, RecursionError):
        return ""
    for table in tables:
        for key in ("video_directory", "video_jsonl_file", "path"):
            if isinstance(table.get(key), str):
                beside = path.parent / table[key]  # else relative to where its program is run
                place = str(beside) if beside.exists() else table[key]
                return f"; give its {key}: --videos {printable(place)}"
    return "; give the folder of its videos"


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    """Yield a table of a TOML and all those inside it."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, (dict, list)):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _tables(inside)


def notes_on(videos: Path, sources: Sequence[Source]) -> list[str]:
    """Return what is in a folder of videos, or beside one, and not used; a line each, none twice.

    Videos that its list does not name, lists and files beside videos that are no captions as they
    are read here (where a video has none), files that may be videos; then what each source notes.
    """
    notes = [note for source in sources for note in source.notes]
    if videos.is_dir():
        files = list(_walk(videos))
        notes += _left_out(files, sources)
        if not all(source.captions for source in sources):
            lists, reasons = _other_lists(videos, (source.path for source in sources))
            if len(lists) > 1:
                names = _short_list(printable(path.name) for path in lists)
                reasons = [f"lists that are not used: {names}; name the one to use", *reasons]
            if all(source.origin[:1] in ("", ".") for source in sources):  # from no list
                notes += [*reasons, *_tables_in(videos)]
    notes += _unread_beside(sources)
    return list(dict.fromkeys(notes))


def notes_on_photos(photos: Path, videos: Sequence[Source], films: Sequence[Source]) -> list[str]:
    """Return what is in a folder of photographs and not used; a line each, none twice.

    What each film notes, then pictures of kinds that are not read, and videos.

    Args:
        photos: the folder.
        videos: of the same run, which may be in it.
        films: of its photographs.
    """
    notes = [note for film in films for note in film.notes]
    used = {os.path.realpath(source.path) for source in (*videos, *films)}
    unused = sorted(path for path in _walk(photos) if os.path.realpath(path) not in used)
    moving = [path for path in unused if _is_kind(path, "video", SUFFIXES)]
    rest = sorted({*unused} - {*moving})
    others = [path for path in rest if _is_kind(path, "image", OTHER_PHOTOS)]
    if others:
        kinds = ", ".join(sorted(PHOTOS))
        notes.append(f"pictures, not filmed: {_names(others)}; photographs are {kinds}")
    if moving:
        notes.append(f"may be videos, not filmed: {_names(moving)}; --videos takes videos")
    return list(dict.fromkeys(notes))


def _is_kind(path: Path, kind: str, suffixes: Set[str]) -> bool:
    """Return whether a file is of a kind by its name: here, or as the system has it."""
    guessed = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix.lower() in suffixes or guessed.startswith(f"{kind}/")


def _tables_in(root: Path) -> Iterator[str]:
    """Yield which files of a folder may hold captions in a kind that is not read."""
    names = sorted(p.name for p in root.iterdir() if p.suffix.lower() in TABLES and _is_file(p))
    if names:
        found = _short_list(map(printable, names))
        yield f"may hold captions, not read: {found}; lists are CSV, TSV, JSON or JSONL"


def _left_out(files: Iterable[Path], sources: Sequence[Source]) -> Iterator[str]:
    used = {os.path.realpath(source.path) for source in sources}
    unused = sorted(path for path in files if os.path.realpath(path) not in used)
    listed = [path for path in unused if path.suffix.lower() in SUFFIXES]
    if listed:
        yield f"not in the list, not used: {_names(listed)}"
    kinds = [path for path in sorted({*unused} - {*listed}) if _is_kind(path, "video", SUFFIXES)]
    if kinds:
        yield f"may be videos, not used: {_names(kinds)}; name one to use it"


def _unread_beside(sources: Sequence[Source]) -> Iterator[str]:
    """Yield the suffixes of files beside videos without captions that might hold some."""
    folders: dict[Path, list[str]] = {}
    ends: dict[str, int] = {}
    for source in sources:
        if source.captions or source.fault:
            continue
        folder = source.path.parent
        if folder not in folders:
            folders[folder] = sorted(os.listdir(folder)) if folder.is_dir() else []
        for name in folders[folder]:
            end = name.removeprefix(source.path.stem)
            kind = (mimetypes.guess_type(name)[0] or "").split("/")[0]
            media = kind in ("video", "image", "audio") and not name.lower().endswith(SUBTITLES)
            if name.startswith(source.path.stem + ".") and name != source.path.name and not media:
                if Path(name).suffix.lower() not in SUFFIXES:
                    ends[end] = ends.get(end, 0) + 1
    if ends:
        found = _short_list(f"{printable(end)} ({count})" for end, count in sorted(ends.items()))
        read = ", ".join((*TEXTS, *TIMED))
        yield f"no caption was found in files beside videos: {found}; captions stand in {read}"


def _names(paths: Iterable[Path]) -> str:
    return _short_list(printable(path.name) for path in paths)


def _short_list(names: Iterable[str]) -> str:
    all_names = list(names)
    more = f" ... and {len(all_names) - NAMED} more" if len(all_names) > NAMED else ""
    return ", ".join(all_names[:NAMED]) + more


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, through links to folders, each folder once, none hidden."""
    seen = set()

    def refuse(error: OSError) -> None:
        raise error

    for here, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
        if real not in seen:
            yield from (Path(here, file) for file in files if not file.startswith("."))
        seen.add(real)


def _listed(lists: Sequence[Path], root: Path) -> list[Source]:
    sources: dict[str, tuple[Row, Source]] = {}
    for row in _rows(lists):
        path = _located(row.video, root)
        source = _source(path, root, row, _list_name(lists))
        earlier, first = sources.setdefault(os.path.realpath(path), (row, source))
        if earlier.captions == row.captions:
            continue
        if _is_part(earlier) and _is_part(row):  # two parts of one video
            captions = sorted({*first.captions, *source.captions}, key=lambda c: (c.start, c.text))
            joined = attrs.evolve(first, captions=tuple(captions))
            sources[os.path.realpath(path)] = (row, joined)
        else:
            raise UserError(
                f"{row.where}: {source.name} stands there with another caption than in "
                f"{earlier.where}; keep one"
            )
    return _distinct(
        sorted((source for _, source in sources.values()), key=lambda source: source.name)
    )


def _is_part(row: Row) -> bool:
    return bool(row.captions) and all(caption.end is not None for caption in row.captions)


def _located(written: str, root: Path) -> Path:
    """Return where a listed video is: the first place that has it, else where it should be."""
    names = [written, written.replace("\\", "/")]
    folders = [root, root / "videos", Path()]
    paths = [folder / name for name in names for folder in folders]
    return next((path for path in paths if _exists(path)), paths[0])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def _source(path: Path, root: Path, row: Row | None = None, origin: str = "") -> Source:
    captions, notes, fault = row.captions if row else (), row.notes if row else (), ""
    if not captions:
        try:
            beside = read_beside(path)
            captions, origin, notes = beside.captions, beside.origin, (*notes, *beside.notes)
        except UserError as error:
            fault = str(error)
    name = _name(path, root)
    return Source(
        path=path,
        id=_id(path, name, SHORT),
        name=printable(name),
        captions=captions,
        origin=origin,
        notes=notes,
        fault=fault,
    )


def _id(path: Path, name: str, digits: int) -> str:
    """Return the id of a source: its file's name, and digits of a hash of its own."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:digits]
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in path.stem)
    short = stem.encode()[:80].decode(errors="ignore")  # bytes: disks count a name's length in them
    return f"{short}-{digest}"


def _distinct(sources: Iterable[Source]) -> list[Source]:
    """Return the sources, a longer id given to one whose id an earlier one has.

    Of 10,000 folders that each have a `clip.mp4` two share their short digits once in a hundred
    times, and one of the two would be lost.
    """
    found: dict[str, Source] = {}
    for source in sources:
        if source.id in found:
            source = attrs.evolve(source, id=_id(source.path, source.name, LONG))
        found[source.id] = source
    return list(found.values())


def _name(path: Path, root: Path) -> str:
    """Return a path below the root, as it is where it lies elsewhere; with slashes."""
    path, root = Path(os.path.normpath(path)), Path(os.path.normpath(root))
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


@frozen(kw_only=True)
class Beside:
    """The captions beside a video, the suffix of their file, and what of it was passed over."""

    captions: tuple[Caption, ...] = ()
    origin: str = ""
    notes: tuple[str, ...] = ()


def captions_beside(path: Path) -> tuple[Caption, ...]:
    """Read the captions beside a video, in seconds of the file's clock; as `read_beside`."""
    return read_beside(path).captions


def read_beside(path: Path) -> Beside:
    """Read the captions beside a video; none where there are none.

    Timed captions (`x.json`, `x.srt`, `x.vtt`) go before those of the whole: the first of `TEXTS`
    that says something, then the caption or prompt that `x.json` holds. Two timed files must say
    the same. A blank file says nothing.

    Raises:
        UserError: a file cannot be read as what it is, or two timed ones differ.
    """
    notes: list[str] = []
    files = [(file, read(file, notes)) for end, read in TIMED.items() if (file := _file(path, end))]
    timed = [(file, captions) for file, captions in files if captions]
    for file, captions in timed[1:]:
        if captions != timed[0][1]:
            names = f"{printable(timed[0][0].name)} and {printable(file.name)}"
            raise UserError(f"{names} caption {printable(path.name)} differently: keep one")
    if timed:
        file, captions = timed[0]
        return Beside(captions=captions, origin=_end(path, file), notes=tuple(notes))
    for end in (*TEXTS, ".json"):
        beside = _file(path, end)
        if beside:
            text = read_text_file(beside)
            captions = _caption_in_json(text, beside) if end == ".json" else untimed_captions(text)
            if captions:
                return Beside(captions=captions, origin=_end(path, beside), notes=tuple(notes))
    return Beside(notes=tuple(notes))


def _end(video: Path, beside: Path) -> str:
    """Return the suffix of a file beside a video: ".txt" or ".mp4.txt"."""
    return printable(beside.name.removeprefix(video.stem))


def _caption_in_json(text: str, path: Path) -> tuple[Caption, ...]:
    """Return the caption that an object names as one; none where it is of another kind."""
    data = parse_json(text, printable(path.name)) if text.strip() else {}
    said = [data[key] for key in WORDS if key in data] if isinstance(data, dict) else []
    return untimed_captions(said[0]) if said and isinstance(said[0], str) else ()


def _file(video: Path, suffix: str) -> Path | None:
    """Return the file beside `video` with that suffix, in small or capital letters."""
    for end in (suffix, suffix.upper()):
        for beside in (video.with_suffix(end), video.with_name(video.name + end)):
            if beside != video and _is_file(beside):
                return beside
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long with this suffix; no such file can be there
        return False


def caption_of(path: Path, start: float = 0.0, end: float = float("inf")) -> str:
    """Read the caption beside a video that covers most of [start, end) seconds.

    "" where there are captions, but none covers it; without captions, the video's name in words.

    Raises:
        UserError: the captions beside it cannot be read.
    """
    captions = on_video_clock(path, captions_beside(path))
    return caption_at(captions, start, end) if captions else name_in_words(path)


def on_video_clock(path: Path, captions: tuple[Caption, ...]) -> tuple[Caption, ...]:
    """Return captions in seconds after the video's first frame; those that end before it go.

    Players count from the start of the file, which may begin with sound alone. Captions of the
    whole, and those of a file that cannot be read (reading it says so), stay as they are.
    """
    if all(caption.start == 0 and caption.end is None for caption in captions):
        return captions
    try:
        late = starts_late(path)
    except VideoError:
        return captions
    if not late:
        return captions
    return tuple(
        Caption(
            start=max(0.0, caption.start - late),
            end=None if caption.end is None else caption.end - late,
            text=caption.text,
        )
        for caption in captions
        if caption.end is None or caption.end > late
    )
