"""Bad and odd files through the whole of `cache`: the right frames, or one line with the reason.

Every case is a folder; its test says which frames are cached of which video, at which size and with
which captions, and which videos are listed as not used, and why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from attrs import evolve, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.cache.cache import CacheResult, cache
from longtake.core.data.captions import Caption, untimed_captions
from longtake.core.data.store import clip_path, read_index
from longtake.core.errors import UserError
from longtake.core.tools.files import open_tensors

from ..small import small
from .odd_files import (
    broken_inside,
    camera,
    cut,
    gif,
    image,
    numbers,
    turned,
    video,
    with_clap,
    with_pixel_crop,
)

ALL = list(range(13))
FFV1 = {"codec": "ffv1"}


@frozen
class Good:
    """Cached: these frames (at 8 fps), the video's width and height, its captions."""

    frames: list[int] = field(factory=lambda: ALL)
    size: tuple[int, int] = (48, 32)
    captions: tuple[Caption, ...] | None = None


@frozen
class Case:
    """How a folder is made, what becomes of each of its videos; `fatal` where nothing is cached."""

    build: Callable[[Path], Path | None]
    good: dict[str, Good] = field(factory=dict)
    bad: dict[str, str] = field(factory=dict)
    fatal: str = ""
    seconds: float = 0.1  # cache.min_seconds


def run(videos: Path, out: Path, seconds: float = 0.1) -> CacheResult:
    experiment = small()
    experiment = evolve(experiment, cache=evolve(experiment.cache, min_seconds=seconds))
    device = torch.device("cpu")
    return cache(experiment, videos, out, rates=frozenset(), pixels=True, device=device)


def one_line(text: str) -> bool:
    return bool(text) and text.isprintable() and bool(text.encode()) and "Errno" not in text


def nothing_half_written(out: Path) -> bool:
    clips = {path.stem for path in out.glob("clips/*")}
    return clips == {r.id for r in read_index(out)} and not list(out.rglob("*.part"))


def check_good(out: Path, name: str, good: Good) -> None:
    [record] = [record for record in read_index(out) if record.source == name]
    usable = 1 + (len(good.frames) - 1) // 4 * 4
    with open_tensors(clip_path(out, record.id)) as file:
        pixels, latents = file.get_tensor("pixels"), file.get_tensor("latents")
    assert numbers(pixels.numpy()) == good.frames[:usable] and record.frames == usable
    assert record.placement.split()[0] == "{}x{}".format(*good.size)
    assert latents.shape[1:] == (record.latents, record.height, record.width)
    assert torch.isfinite(latents).all()
    named = untimed_captions(Path(name).stem.replace("-", " ").replace("_", " "))
    assert record.captions == (named if good.captions is None else good.captions)


def check(case: Case, folder: Path, out: Path) -> None:
    videos = case.build(folder) or folder
    if case.fatal:
        with pytest.raises(UserError, match=case.fatal) as caught:
            run(videos, out, case.seconds)
        assert one_line(str(caught.value)) and not out.exists()
        return
    video(folder / "zz-good.mp4") if videos.is_dir() else None  # the rest goes on
    outcomes = {outcome.source: outcome for outcome in run(videos, out, case.seconds).outcomes}
    others = {"zz-good.mp4"} & set(outcomes)
    assert set(outcomes) == {*case.good, *case.bad, *others}
    for name, reason in case.bad.items():
        said = outcomes[name].detail
        assert outcomes[name].status == "bad" and reason in said and one_line(said), said
    for name, good in case.good.items():
        assert outcomes[name].status == "cached"
        check_good(out, name, good)
    assert nothing_half_written(out)


def made(name: str, good: Good | None = None, **how: object) -> Case:
    """A case of one video that `video` writes."""

    def build(folder: Path) -> None:
        video(folder / name, **how)

    return Case(build, {name: good or Good()})


def raw(name: str, data: bytes, reason: str) -> Case:
    """A case of one file of these bytes that is no video."""

    def build(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return Case(build, bad={name: f"{name}: {reason}"})


def with_file(name: str, data: str | bytes, **outcome: object) -> Case:
    """A case of a.mp4 and one more file; a list is what is cached."""

    def build(folder: Path) -> Path:
        video(folder / "a.mp4")
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return folder / name if name.startswith("list") else folder

    return Case(build, **outcome)


REALTIME = {"crf": "4", "deadline": "realtime"}
MEDIA = {
    "mp4": made("a.mp4"),
    "mov": made("a.mov"),
    "mkv": made("a.mkv", **FFV1),
    "webm": made("a.webm", codec="libvpx-vp9", options=REALTIME),
    "webm with alpha": made(
        "a.webm", codec="libvpx", pix_fmt="yuva420p",
        options={"crf": "4", "b": "2M", "auto-alt-ref": "0"},
    ),
    "avi": made("a.avi", codec="rawvideo", pix_fmt="bgr24"),
    "ts": made("a.ts"),
    "flv": made("a.flv"),
    "mpg, which knows no 8 fps": made(
        "a.mpg", Good([0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37]),
        codec="mpeg1video", rate=25, count=39,
    ),
    "mov with alpha": made("a.mov", codec="qtrle", pix_fmt="argb"),
    "gif": Case(lambda d: gif(d / "a.gif", [120] * 13) and None, {"a.gif": Good(ALL)}),
    "gif whose frames last differently": Case(
        lambda d: gif(d / "a.gif", [250, 120, 500, 120]) and None,
        {"a.gif": Good([0, 0, 1, 2, 2])},
    ),
    "10 bit": made("a.mkv", pix_fmt="yuv420p10le", **FFV1),
    "4:4:4": made("a.mp4", pix_fmt="yuv444p"),
    "gray": made("a.mkv", pix_fmt="gray", **FFV1),
    "B-frames and an open GOP": made(
        "a.mp4", options={"bf": "3", "crf": "0", "x264-params": "open-gop=1:keyint=6"}
    ),
    "keyframes only": made("a.mp4", options={"g": "1", "crf": "0"}),
    "interlaced": made(
        "a.mp4", options={"flags": "+ildct+ilme", "x264-params": "tff=1", "crf": "0"}
    ),
    "sound that lasts longer": made("a.mp4", sound=3.0),
    "one pixel": made("a.mkv", Good(size=(1, 1)), size=(1, 1), **FFV1),
    "prime sides": made("a.mkv", Good(size=(47, 31)), size=(31, 47), **FFV1),
    "flat": made("a.mkv", Good(size=(512, 4)), size=(4, 512), **FFV1),
    "tall": made("a.mkv", Good(size=(4, 512)), size=(512, 4), **FFV1),
    "turned": Case(lambda d: turned(d / "a.mp4") and None, {"a.mp4": Good(size=(32, 48))}),
    "pixels twice as wide": made("a.mkv", Good(size=(96, 32)), aspect=Fraction(2)),
    "pixels of no possible shape": made("a.mkv", aspect=Fraction(1, 10)),
    "uneven frames": made(
        "a.mkv", Good([0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3]),
        count=4, stamps=[0, 130, 1000, 1500], **FFV1,
    ),
    "negative start": made("a.mkv", stamps=[k * 125 - 500 for k in range(13)], **FFV1),
    "late start": made("a.mp4", stamps=[k * 125 + 10_000 for k in range(13)]),
    "late start in a transport stream": made(
        "a.ts", stamps=[k * 125 + 10_000 for k in range(13)]
    ),
    "two frames of one moment": made(
        "a.mkv", Good([0, 1, 3, 4, 5, 6, 7, 8, 9]),
        stamps=[0, 125, 250, *range(250, 1500, 125)], **FFV1,
    ),
    "240 fps": made(
        "a.mp4", Good([0, 30, 0, 30, 0], (24, 16)), count=150, rate=240, size=(16, 24)
    ),
    "1 fps": made("a.mp4", Good([0] * 8 + [1] * 8 + [2] * 5), count=3, rate=1),
    "one frame": made("a.mp4", Good([0]), count=1),
    "one frame where a second is asked for": evolve(
        made("a.mp4", count=1), good={}, bad={"a.mp4": "a.mp4: too short: 1 frames"}, seconds=1.0
    ),
    "a name with spaces and signs": made("größe 100%03d 字 👨‍👩‍👧.mp4"),
    "a name of 250 letters": made("a" * 246 + ".mp4"),
    "a name of two lines": Case(
        lambda d: video(d / "v.mp4").rename(d / "a\nb.mp4") and None, {"a\ufffdb.mp4": Good()}
    ),
    "a name that is no UTF-8": Case(
        lambda d: video(d / "v.mp4").rename(d / os.fsdecode(b"caf\xe9.mp4")) and None,
        {"caf\ufffd.mp4": Good()},
    ),
    "a name like an option": made("-i.mp4", Good(captions=untimed_captions("i"))),
    "a link to a video": Case(
        lambda d: (d / "b.mp4").symlink_to(video(d / ".hidden.mp4")), {"b.mp4": Good()}
    ),
    "an index cut off": Case(
        lambda d: cut(video(d / "a.mp4"), 0.5) and None,
        bad={"a.mp4": "a.mp4: not a video that FFmpeg can read"},
    ),
    "an end cut off": Case(
        lambda d: cut(video(d / "a.mkv", 40, codec="ffv1"), 0.5) and None,
        {"a.mkv": Good(list(range(18)))},
    ),
    "broken packets": Case(
        lambda d: broken_inside(d / "a.mkv") and None,
        {"a.mkv": Good([0, 1, 2, 3, 4, 4, 4, 4, 8, 9, 10, 11, 12])},
    ),
    "EXIF in every frame": Case(
        lambda d: camera(d / "a.avi", 13) and None, {"a.avi": Good()}
    ),
    "a clean aperture": Case(
        lambda d: with_clap(d / "a.mp4") and None, {"a.mp4": Good(size=(40, 24))}
    ),
    "a crop in Matroska": Case(
        lambda d: with_pixel_crop(d / "a.mkv") and None, {"a.mkv": Good(size=(48, 24))}
    ),
    "an avi with B-frames": made("a.avi", options={"bf": "3", "crf": "0"}),
    "a disc": made(
        "a.vob", Good([0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37]),
        codec="mpeg2video", rate=25, count=39,
    ),
    "a camera's stream": made("a.MTS"),
    "no frames": evolve(made("a.mp4", count=0), good={}, bad={"a.mp4": "has no video stream"}),
    "sound alone": evolve(
        made("a.mp4", frames=False, sound=1.0), good={}, bad={"a.mp4": "has no video stream"}
    ),
    "a picture with a video's name": Case(
        lambda d: image(d / "a.mp4", "JPEG") and None,
        bad={"a.mp4": "a.mp4: too short: 1 frames"}, seconds=1.0,
    ),
    "empty": raw("a.mp4", b"", "is empty"),
    "zeros": raw("a.mp4", bytes(5000), "not a video that FFmpeg can read"),
    "text": raw("a.mp4", b"This is a text.\n" * 40, "not a video that FFmpeg can read"),
    "a page of the web": raw("a.mp4", b"<!doctype html><title>404</title>\n" * 9, "not a video"),
    "a pointer of Git LFS": raw(
        "a.mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "not a vi"
    ),
    "a folder named like a video": Case(
        lambda d: (d / "a.mp4").mkdir() or video(d / "a.mp4" / "b.mp4") and None,
        {"a.mp4/b.mp4": Good()},
    ),
    "a link in a ring": Case(
        lambda d: (d / "a.mp4").symlink_to("a.mp4"), bad={"a.mp4": "a.mp4: no such file"}
    ),
    "a folder in a ring": Case(
        lambda d: (d / "ring").symlink_to(".") or video(d / "a.mp4") and None, {"a.mp4": Good()}
    ),
    "a link to nowhere": Case(
        lambda d: (d / "a.mp4").symlink_to("b.mp4"), bad={"a.mp4": "a.mp4: no such file"}
    ),
}  # fmt: skip

SAID = {"a.mp4": Good(captions=untimed_captions("a dog"))}
CUE = Caption(start=0, end=1, text="a dog")
SRT = "1\n00:00:00,000 --> 00:00:01,000\na dog\n"
WORDS = {
    "a caption": with_file("a.txt", "\ufeffa dog\r\n", good=SAID),
    "a blank caption": with_file("a.txt", " \n", good={"a.mp4": Good()}),
    "a binary caption": with_file("a.txt", b"\x7fELF\0\0", bad={"a.mp4": "a.txt: is binary"}),
    "a caption in Latin 1": with_file(
        "a.txt", b"a\ncaf\xe9", bad={"a.mp4": "a.txt, line 2: byte 0xe9 is not UTF-8"}
    ),
    "subtitles": with_file("a.srt", SRT, good={"a.mp4": Good(captions=(CUE,))}),
    "subtitles with a cue of no length": with_file(
        "a.srt", SRT + "\n2\n00:00:01,000 --> 00:00:01,000\na cat\n",
        good={"a.mp4": Good(captions=(CUE,))},
    ),
    "bad subtitles": with_file(
        "a.srt", SRT.replace("-->", "->"), bad={"a.mp4": "a.srt, line 1: text without a time"}
    ),
    "bad timed captions": with_file(
        "a.json", '{"segments": [{]}', bad={"a.mp4": "a.json, line 1, column 16: no JSON"}
    ),
    "other JSON beside": with_file("a.json", '{"seed": 3}', good={"a.mp4": Good()}),
    "a table of Excel": with_file(
        "list.csv", "video;prompt\r\na.mp4;a dog\r\n".encode("utf-16"), good=SAID
    ),
    "a table without a header": with_file(
        "list.csv", "a.mp4,a dog\n", fatal=r"list.csv, line 1: a.mp4, a dog: no names of columns"
    ),
    "a table with a bare comma": with_file(
        "list.csv", "video,prompt\na.mp4,a dog, a cat\n", fatal=r"list.csv, line 2: 3 fields"
    ),
    "a broken line": with_file(
        "list.jsonl", '{"video": "a.mp4", "prompt": "a dog"}\n{"vi\n', fatal="list.jsonl, line 2"
    ),
    "half a character": with_file(
        "list.json", '[{"video": "a.mp4", "prompt": "\\ud83d"}]', fatal="half a character"
    ),
    "a list of what is not there": with_file(
        "list.csv", "video,prompt\nb.mp4,x\na.mp4,a dog\n,\n.,x\n" + "x" * 300 + ".mp4,x\n",
        good=SAID,
        bad={
            "b.mp4": "b.mp4: no such file", ".": "is a folder, not a video",
            "x" * 300 + ".mp4": "cannot be read (File name too long)",
        },
    ),
    "a video listed with two captions": with_file(
        "list.csv", "video,prompt\na.mp4,x\n./a.mp4,y\n", fatal=r"line 3: a.mp4 .* list.csv, line 2"
    ),
}  # fmt: skip
CASES = MEDIA | WORDS


def test_there_are_fifty_and_more() -> None:
    assert len(CASES) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_right_outcome(tmp_path: Path, name: str) -> None:
    (tmp_path / "videos").mkdir()
    check(CASES[name], tmp_path / "videos", tmp_path / "store")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def refuse(self: Path, *how: object, **more: object) -> object:
        if self.name == "a.mp4":
            raise PermissionError(13, "Permission denied")
        return real(self, *how, **more)

    def build(folder: Path) -> None:
        video(folder / "a.mp4")
        monkeypatch.setattr(Path, "open", refuse)

    (tmp_path / "videos").mkdir()
    case = Case(build, bad={"a.mp4": "a.mp4: cannot be read (Permission denied)"})
    check(case, tmp_path / "videos", tmp_path / "store")


DAMAGE = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=9)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(media=DAMAGE, words=DAMAGE, share=st.floats(0.2, 1), kind=st.sampled_from(["mp4", "mkv"]))
def test_damage_anywhere_has_an_outcome(
    tmp_path_factory: pytest.TempPathFactory,
    media: list[tuple[float, int]],
    words: list[tuple[float, int]],
    share: float,
    kind: str,
) -> None:
    """Whatever bytes change in a video and its captions: cached, listed with a line, no more."""
    root = tmp_path_factory.mktemp("damage")
    (root / "videos").mkdir()
    video(root / "videos" / "b.mp4")
    path = video(root / "videos" / f"a.{kind}")
    cut(path, share)
    segments = [{"time_range_s": [0, 1], "prompt": "a dog"}]
    beside = root / "videos" / "a.json"
    beside.write_text(json.dumps({"segments": segments}))
    for file, damage in ((path, media), (beside, words)):
        data = bytearray(file.read_bytes())
        for where, value in damage:
            data[int(where * len(data))] = value
        file.write_bytes(data)
    found = {outcome.source: outcome for outcome in run(root / "videos", root / "store").outcomes}
    assert found["b.mp4"].status == "cached" and nothing_half_written(root / "store")
    odd = found[f"a.{kind}"]
    assert odd.status == "cached" or (odd.status == "bad" and one_line(odd.detail))
