"""Captions in time: which one a moment has, shots by name, SRT, WebVTT and timed JSON."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.data.captions import Caption, caption_at, shot_captions, untimed_captions
from longtake.core.data.sources import captions_beside
from longtake.core.data.subtitles import read_segments, read_subtitles
from longtake.core.errors import UserError, printable


def said(start, end, text):
    return Caption(start=start, end=end, text=text)


def written(path, text, **how):
    path.write_text(text, **({"encoding": "utf-8"} | how))
    return path


def refused(read, path, *parts):
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text


PIECES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(pieces=PIECES, start=st.integers(0, 60), length=st.integers(1, 60), last=st.booleans())
def test_a_stretch_has_the_caption_that_covers_most_of_it(pieces, start, length, last):
    captions = [said(b, b + n, str(k)) for k, (b, n) in enumerate(pieces)]
    captions += [said(30, None, "rest")] if last else []
    counts = [
        sum(c.start <= t and (c.end is None or t < c.end) for t in range(start, start + length))
        for c in captions
    ]
    best = max(counts, default=0)
    expected = captions[counts.index(best)].text if best else ""
    assert caption_at(captions, start, start + length) == expected


def test_a_moment_has_a_caption_too():
    captions = (said(0, 2, "a"), said(2, 4, "b"))
    assert [caption_at(captions, t, t) for t in (0, 1.9, 2, 3.9, 4)] == ["a", "a", "b", "b", ""]
    assert caption_at((), 0, 1) == ""


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.floats(-1, 100), max_size=6))
def test_shots_cover_the_video_without_gap_or_overlap(cuts):
    found = shot_captions("big buck", cuts)
    assert found[0].start == 0 and found[-1].end is None
    assert all(a.end == b.start and a.start < a.end for a, b in pairwise(found))
    inner = {cut for cut in cuts if cut > 0}
    assert {caption.start for caption in found[1:]} == inner
    numbered = [f"big buck, shot {k}" for k in range(1, len(inner) + 2)]
    assert [caption.text for caption in found] == (numbered if inner else ["big buck"])


def test_a_blank_caption_is_none():
    assert untimed_captions(" \n\t") == () and untimed_captions(" a cat \n") == (
        said(0, None, "a cat"),
    )


SRT = """1
00:00:00,000 --> 00:00:04,000
A <i>cat</i> sits
on a wall.

2
00:00:04,000 --> 01:02:03,500
{\\an8}It jumps &amp; runs.


3
1:02:03,5 --> 1:02:04
"""
VTT = """WEBVTT - made by hand
Kind: captions

NOTE this --> is no cue
and neither is this

STYLE
::cue { color: red }

intro
00:00.000 --> 00:04.000 align:start position:0%
<v Jane>A <c.loud>cat</c> sits
on a wall.

00:04.000 --> 01:02:03.500
It jumps &amp; runs.
"""
CUES = (said(0, 4, "A cat sits on a wall."), said(4, 3723.5, "It jumps & runs."))


def test_subrip_and_webvtt_give_their_cues(tmp_path):
    subrip = read_subtitles(written(tmp_path / "a.srt", SRT))
    assert subrip == (CUES[0], said(4, 3723.5, "It jumps &amp; runs."))
    assert read_subtitles(written(tmp_path / "a.vtt", VTT)) == CUES


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_line_ends_and_marks_do_not_matter(tmp_path, end, coding):
    data = VTT.replace("\n", end).encode(coding)
    (tmp_path / "a.VTT").write_bytes(data)
    assert read_subtitles(tmp_path / "a.VTT") == CUES
    (tmp_path / "b.txt").write_bytes(f"Ein Käfer{end}".encode(coding))
    assert captions_beside(tmp_path / "b.mp4") == untimed_captions("Ein Käfer")


def test_cues_without_a_blank_line_between_are_kept_apart(tmp_path):
    text = "1\n00:01,0 --> 00:02,0\none\n2\n00:03,0 --> 00:04,0\ntwo\n00:05,0 --> 00:06,0\n3 < 4"
    found = read_subtitles(written(tmp_path / "a.srt", text))
    assert [caption.text for caption in found] == ["one", "two", "3 < 4"]


CLOCKS = st.tuples(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59999))


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(CLOCKS, min_size=2, max_size=8, unique=True), text=st.text("ab<&0 -", min_size=1)
)
def test_any_cues_come_back(tmp_path_factory, times, text):
    """The start of a cue is the number of seconds that its clock shows; order does not matter."""
    clocks = sorted(times)
    cues = [
        " --> ".join(f"{h:02}:{m:02}:{s // 1000:02},{s % 1000:03}" for h, m, s in pair)
        for pair in pairwise(clocks)
    ]
    blocks = [f"{k}\n{cue}\nx{text}" for k, cue in enumerate(cues)]
    path = tmp_path_factory.mktemp("srt") / "a.srt"
    found = read_subtitles(written(path, "\n\n".join(reversed(blocks))))
    assert [c.start for c in found] == pytest.approx(
        [h * 3600 + m * 60 + s / 1000 for h, m, s in clocks[:-1]]
    )


BAD_CUES = [
    ("a.srt", "hello\nthere\n", "line 1: text without a time"),
    ("a.srt", "1\n00:00:01,000 --> 00:00:02,000\nok\n\nstray\n", "line 5: text without a time"),
    ("a.srt", "1\n\n00:00:01,000 --> 00:00:02,000\nx\n", "line 1: text without a time"),
    ("a.srt", "1\n00:00:01,000 --> soon\nx\n", "line 2: no time that can be read"),
    ("a.srt", "1\n00:00:04,000 --> 00:00:02,000\nx\n", "line 2: the cue ends before"),
    ("a.vtt", "00:01.000 --> 00:02.000\nx\n", "line 1: WebVTT begins with"),
    ("a.vtt", "WEBVTT\n\nNOTE a\nb\n\nstray\n", "line 6: text without a time"),
]


@pytest.mark.parametrize(("name", "text", "reason"), BAD_CUES)
def test_bad_cues_are_named_with_their_line(tmp_path, name, text, reason):
    refused(read_subtitles, written(tmp_path / name, text), f"{name}, {reason}")


def test_files_without_a_cue_say_nothing(tmp_path):
    for name, text in (("a.srt", "\n \n"), ("a.vtt", ""), ("b.vtt", "WEBVTT\n")):
        assert read_subtitles(written(tmp_path / name, text)) == ()


def timed(tmp_path, value):
    return written(tmp_path / "a.json", json.dumps(value))


def test_timed_captions_come_by_their_start(tmp_path):
    segments = [
        {"time_range_s": [4, 9.5], "prompt": "it jumps", "seed": 3},
        {"time_range_s": [0, 4], "prompt": " a cat "},
        {"time_range_s": [9.5, None], "caption": "gone"},
    ]
    found = read_segments(timed(tmp_path, {"segments": segments, "fps": 24}))
    assert found == (said(0, 4, "a cat"), said(4, 9.5, "it jumps"), said(9.5, None, "gone"))


@pytest.mark.parametrize("value", [{}, {"seed": 1}, [1], 3, None, "text"])
def test_other_json_beside_a_video_is_passed_over(tmp_path, value):
    assert read_segments(timed(tmp_path, value)) == ()


RANGES = [[4], [4, 2], [-1, 2], [0, True], ["0", 2], "0-4", None, [0, 1e400], [0, [1]]]


@pytest.mark.parametrize("found", RANGES)
def test_a_wrong_range_is_named_with_its_segment(tmp_path, found):
    good = {"time_range_s": [0, 4], "prompt": "x"}
    path = timed(tmp_path, {"segments": [good, {"time_range_s": found, "prompt": "x"}]})
    refused(read_segments, path, "a.json, segment 2: time_range_s is", "0 ≤ start < end")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"segments": {}}, "segments is no list"),
        ({"segment": []}, "segment is unknown; timed captions stand in `segments`"),
        ({"segments": [3]}, "segment 1: no time_range_s"),
        ({"segments": [{"time_range": [0, 1], "prompt": "x"}]}, "segment 1: no time_range_s"),
        ({"segments": [{"time_range_s": [0, 1]}]}, "segment 1: no prompt"),
        ({"segments": [{"time_range_s": [0, 1], "prompt": " "}]}, "segment 1: no prompt"),
    ],
)
def test_bad_segments(tmp_path, value, reason):
    refused(read_segments, timed(tmp_path, value), "a.json", reason)


def test_broken_json_is_named_with_its_line(tmp_path):
    refused(read_segments, written(tmp_path / "a.json", '{\n"segments": [\n,]}'), "a.json, line 3")
    refused(read_segments, written(tmp_path / "b.json", "[" * 100_000), "b.json, line 1: no JSON")
    refused(read_segments, written(tmp_path / "c.json", '{"a": "\\ud83d"}'), "half a character")


def test_timed_captions_go_before_those_of_the_whole(tmp_path):
    video = tmp_path / "a.mp4"
    written(tmp_path / "a.txt", "the whole")
    assert captions_beside(video) == untimed_captions("the whole")
    written(tmp_path / "a.SRT", "1\n00:01,0 --> 00:02,0\none")
    assert captions_beside(video) == (said(1, 2, "one"),)
    segment = {"time_range_s": [1, 2], "prompt": "one"}
    timed(tmp_path, {"segments": [segment]})
    assert captions_beside(video) == (said(1, 2, "one"),)
    timed(tmp_path, {"segments": [segment | {"prompt": "two"}]})
    refused(captions_beside, video, "a.json and a.SRT caption a.mp4 differently: keep one")


@pytest.mark.parametrize("name", ["a.txt", "a.srt", "a.vtt", "a.json"])
def test_a_file_that_is_no_utf8_text_is_named(tmp_path, name):
    (tmp_path / name).write_bytes("one\ncafé".encode("latin-1"))
    refused(captions_beside, tmp_path / "a.mp4", f"{name}, line 2: byte 0xe9", "as UTF-8")
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\0\0")
    refused(captions_beside, tmp_path / "a.mp4", name, "binary data")


def test_names_are_one_line_of_utf8():
    assert printable("größe 👨‍👩‍👧 100%.mp4") == "größe 👨‍👩‍👧 100%.mp4"
    odd = printable("a\nb\x1b[31m\udce9\u2028.mp4")
    assert odd.encode() and "\n" not in odd and "\x1b" not in odd and odd.endswith(".mp4")
