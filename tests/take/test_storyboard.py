"""Storyboards are read with all they say, and what is wrong with one is said with its lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.errors import UserError
from longtake.core.sample.spec import Sampler
from longtake.core.take.storyboard import (
    Section,
    Storyboard,
    read_given,
    read_storyboard,
    scan_lines,
    told_by,
)

NATIVE = """\
{"format": 1,
 "title": "Shore",
 "prompt": "Watercolour.",
 "negative": "blurry",
 "seed": 40,
 "guidance": 4,
 "sections": [
  {"start": 0, "end": 5, "prompt": " A dog runs. ", "note": "first"},
  {"start": 5, "end": 9.1, "prompt": "It finds a shell.", "cut": true, "negative": "",
   "seed": 7, "steps": 12, "memory": "since_cut"},
  {"start": 9.1, "end": null, "prompt": "It sleeps."}
 ]}
"""
TWO_CUES = """\
1
00:00:00,000 --> 00:00:02,500
A dog <i>runs</i>
on a beach.

2
00:00:03,000 --> 00:00:06,000
It sleeps.
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, text: str, seconds: float | None = None) -> list[str]:
    with pytest.raises(UserError) as error:
        read_storyboard(written(path, text), seconds)
    return str(error.value).split("\n")


def section_lines(tmp_path: Path, *rows: str, top: str = "") -> list[str]:
    """Return the faults of native JSON whose sections begin on line 3, one a line."""
    text = '{"format": 1' + top + ',\n "sections": [\n' + ",\n".join(rows) + "\n]}\n"
    return refused(tmp_path / "story.json", text)


def test_native_json_is_read_with_all_it_says(tmp_path):
    board = read_storyboard(written(tmp_path / "story.json", NATIVE))
    assert (board.title, board.prompt, board.seed, board.guidance) == (
        "Shore",
        "Watercolour.",
        40,
        4,
    )
    first, second, last = board.sections
    assert (first.seconds, second.seconds, last.seconds) == (5.0, 4.1, None)
    assert (first.prompt, first.note, first.cut, first.memory) == (
        "A dog runs.",
        "first",
        False,
        "all",
    )
    assert (second.cut, second.seed, second.steps, second.memory) == (True, 7, 12, "since_cut")
    assert second.where == "story.json, line 9: sections[1]"
    assert board.seconds is None
    whole = board.complete()
    assert [one.prompt for one in whole][2] == "Watercolour. It sleeps."
    assert [one.negative for one in whole] == ["blurry", "", "blurry"], "an empty one is one's own"
    assert [one.seed for one in whole] == [None, 7, None], "a base seed is no section's"
    assert [one.guidance for one in whole] == [4, 4, 4]


def test_times_that_a_program_summed_up_follow_each_other(tmp_path):
    rows = [(0.0, 0.1), (0.1, 0.1 + 0.2), (0.3, 0.7), (0.1 + 0.6, 2.0)]
    sections = [{"start": a, "end": b, "prompt": "A"} for a, b in rows]
    text = json.dumps({"format": 1, "sections": sections})
    board = read_storyboard(written(tmp_path / "a.json", text))
    assert [s.seconds for s in board.sections] == pytest.approx([0.1, 0.2, 0.4, 1.3])
    assert board.seconds == 2.0


def test_what_is_told_by_content_then_by_suffix():
    assert told_by(NATIVE, ".txt") == "json"
    assert told_by(TWO_CUES, ".txt") == "srt"
    assert told_by("WEBVTT\n\n00:01.000 --> 00:02.000\nA", ".txt") == "vtt"
    assert told_by("A dog.\n\nIt sleeps.", ".md") == "text"
    assert told_by("{red} light over a bay", ".txt") == "text"
    assert told_by("{red} light over a bay", ".json") == "json"
    assert told_by("words", ".srt") == "srt"


def test_a_cue_is_a_section_and_a_gap_belongs_to_the_one_before(tmp_path):
    board = read_storyboard(written(tmp_path / "a.srt", TWO_CUES))
    assert [s.prompt for s in board.sections] == ["A dog runs on a beach.", "It sleeps."]
    assert [s.seconds for s in board.sections] == [3.0, 3.0]
    assert board.sections[1].where == "a.srt, line 7: cue 2"
    assert board.remarks == ("a.srt, line 2: cue 1 goes on to 3 s, the next one's start",)

    web = "WEBVTT\n\nNOTE a --> b\n\n00:01.000 --> 00:02.000 align:left\nA dog &amp; a cat.\n"
    board = read_storyboard(written(tmp_path / "a.vtt", web))
    assert [(s.prompt, s.seconds) for s in board.sections] == [("A dog & a cat.", 2.0)]
    assert board.remarks == ("a.vtt, line 5: cue 1 begins at 0 s, not at 1 s",)


def test_blank_cues_and_those_of_no_length_are_named(tmp_path):
    text = (
        TWO_CUES
        + "\n3\n00:00:06,000 --> 00:00:06,000\nBlink.\n\n4\n00:00:07,000 --> 00:00:08,000\n\n"
    )
    board = read_storyboard(written(tmp_path / "a.srt", text))
    assert len(board.sections) == 2
    assert "a.srt, line 11: cue 3 has no length, passed over" in board.remarks
    assert "a.srt, line 15: cue 4 has no text, passed over" in board.remarks


def test_a_paragraph_is_a_section(tmp_path):
    path = written(tmp_path / "a.txt", "\nA dog\n runs.\n\n \nIt sleeps.\n")
    board = read_storyboard(path, 4)
    assert [(s.prompt, s.seconds) for s in board.sections] == [
        ("A dog runs.", 4),
        ("It sleeps.", 4),
    ]
    assert [s.where for s in board.sections] == ["a.txt, line 2", "a.txt, line 6"]
    assert refused(path, "A dog.") == [
        "a.txt is plain text, a section a paragraph: say how many seconds each one lasts"
    ]
    assert "seconds must be more than 0 s" in refused(path, "A dog.", -1)[0]


def test_seconds_are_for_plain_text_alone(tmp_path):
    assert "leave the seconds out" in refused(tmp_path / "a.srt", TWO_CUES, 4)[0]
    assert "leave the seconds out" in refused(tmp_path / "a.json", NATIVE, 4)[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", ""),
        ("a.json", '{"format": 1, "sections": []}'),
        ("a.json", '{"format": 1}'),
        ("a.srt", " \n"),
        ("a.vtt", "WEBVTT\n\nNOTE nothing\n"),
        ("a.txt", "\n\n"),
    ],
)
def test_an_empty_storyboard(tmp_path, name, text):
    line = f"{name} holds no section: give at least one with a prompt and a duration"
    assert refused(tmp_path / name, text, 1.0 if name == "a.txt" else None) == [line]


GOOD = '{"duration": 2, "prompt": "A"}'
AT_8 = '{"start": 0, "end": 8, "prompt": "A"}'


@pytest.mark.parametrize(
    ("rows", "faults"),
    [
        ([AT_8, '{"start": 8, "end": 6, "prompt": "B"}'],
         ["line 4: sections[1] ends (6 s) before it starts (8 s)"]),
        ([AT_8, '{"start": 8,\n "end": 8, "prompt": "B"}'],
         ["line 5: sections[1] ends (8 s) when it starts (8 s)"]),
        ([AT_8, '{"start": 7.5, "end": 9, "prompt": "B"}'],
         ["line 4: sections[1].start is 7.5 s, sections[0] ends at 8 s: no overlaps are allowed"]),
        ([AT_8, '{"start": 8.5, "end": 9, "prompt": "B"}'],
         ["line 4: sections[1].start is 8.5 s, sections[0] ends at 8 s: no gaps are allowed"]),
        (['{"start": 1, "end": 8, "prompt": "A"}'],
         ["line 3: sections[0].start is 1 s: the first section starts at 0"]),
        ([GOOD, '{"promt": "B", "duration": 1}'],
         ["line 4: sections[1] has no prompt", "line 4: sections[1].promt is unknown; prompt?"]),
        (['{"seconds": 5, "prompt": "A"}'],
         ["line 3: sections[0] has no length: give it start and end, or a duration",
          "line 3: sections[0].seconds is unknown; duration?"]),
        ([GOOD, AT_8],
         ["line 4: sections[1] gives its time by start and end, sections[0] by duration: "
          "use one way for all"]),
        (['{"duration": 2, "end": 2, "prompt": "A"}'],
         ["line 3: sections[0] has an end and a duration: give one of them"]),
        (['{"duration": null, "prompt": "A"}', GOOD],
         ["line 3: sections[0].duration is null: "
          "only the last section of 2 may last until stopped"]),
        (['{"duration": -1, "prompt": "A"}'],
         ["line 3: sections[0].duration must be more than 0 s and at most 86400 s, not -1 s"]),
        (['{"duration": NaN, "prompt": "A"}'],
         ["line 3: sections[0].duration must be a finite number, not nan"]),
        (['{"duration": "5", "prompt": "A"}'],
         ["line 3: sections[0].duration must be a number, not '5'"]),
        (['{"duration": 2, "prompt": " "}'],
         ["line 3: sections[0].prompt is blank: say what the section shows"]),
        (['{"duration": 2, "prompt": ["A"]}'],
         ["line 3: sections[0].prompt must be text, not ['A']"]),
        (['{"duration": 2, "prompt": "A", "cut": "True"}'],
         ["line 3: sections[0].cut must be true or false, not 'True'"]),
        (['{"duration": 2, "prompt": "A", "memory": "some"}'],
         ["line 3: sections[0].memory must be one of all, since_cut, none, not 'some'"]),
        (['{"duration": 2, "prompt": "A", "seed": -1}'],
         ["line 3: sections[0].seed must be 0 or more and less than 2^63, not -1"]),
        (['{"duration": 2, "prompt": "A", "seed": true}'],
         ["line 3: sections[0].seed must be a whole number, not true"]),
        (['{"duration": 2, "prompt": "A", "steps": 0}'],
         ["line 3: sections[0].steps must be 1 or more, not 0"]),
        (['{"duration": 2, "prompt": "A", "guidance": -0.5}'],
         ["line 3: sections[0].guidance must be 0 or more, not -0.5"]),
        (['{"duration": 2, "prompt": "A",\n "prompt": "B"}'],
         ["line 4: sections[0].prompt is given twice, first on line 3"]),
        (['{"duration": 2, "prompt": "A", "image": "no.png"}'],
         ["line 3: sections[0].image names no.png, which is no file beside story.json"]),
        ([GOOD, '{"duration": 2, "prompt": "A", "image": "story.json"}'],
         ["line 4: sections[1].image is for the first section, or for one with a cut"]),
        (['{"duration": 2, "prompt": "A", "end_image": "story.json"}'],
         ["line 3: sections[0].end_image needs bridges, which this version does not make; "
          "leave it out"]),
        ([GOOD, '"B"', "7"],
         ["line 4: sections[1] must be an object, not 'B'",
          "line 5: sections[2] must be an object, not 7"]),
    ],
)  # fmt: skip
def test_faults_of_sections_with_their_lines(tmp_path, rows, faults):
    assert section_lines(tmp_path, *rows) == [f"story.json, {line}" for line in faults]


@pytest.mark.parametrize(
    ("top", "faults"),
    [
        ('{"format": 2,',
         ["line 1: format 2 is newer than this longtake reads (1): update longtake"]),
        ('{"format": 0,', ["line 1: format must be 1, not 0"]),
        ('{', ['line 1: the storyboard has no format: it begins with "format": 1']),
        ('{"format": 1,\n\n"sizes": "832x480",', ["line 3: sizes is unknown; size?"]),
        ('{"format": 1, "size": "832 x 480",',
         ["line 1: size must be WIDTHxHEIGHT in pixels, such as 832x480, not '832 x 480'"]),
        ('{"format": 1, "source": "story.json",\n"image": "story.json",',
         ["line 2: image and source: a take begins with one of the two"]),
        ('{"format": 1,\n"title": 3, "segment_seconds": 0,',
         ["line 2: segment_seconds must be more than 0 s and at most 86400 s, not 0 s",
          "line 2: title must be text, not 3"]),
    ],
)  # fmt: skip
def test_faults_of_the_storyboard_with_their_lines(tmp_path, top, faults):
    found = refused(tmp_path / "story.json", top + f' "sections": [{GOOD}]' + "}")
    assert found == [f"story.json, {line}" for line in faults]


def test_other_json_is_refused_in_a_line(tmp_path):
    path = tmp_path / "story.json"
    assert refused(path, "[]") == ["story.json must be an object with sections, not a list"]
    assert refused(path, '{"format": 1,\n "sections": [,]}') == [
        "story.json, line 2, column 15: no JSON: Expecting value"
    ]
    assert refused(path, '{"format": 1, "sections": {}}') == [
        "story.json, line 1: sections must be a list of objects, not an object"
    ]
    assert "is unknown" in refused(path, '{"format": 1,\n"section": []}')[0]
    long = ",".join([GOOD.replace("2", "86400")] * 2)
    assert refused(path, f'{{"format": 1, "sections": [{long}]}}') == [
        "story.json lasts 172800 s in all: at most 86400 s"
    ]


def test_all_faults_are_said_but_no_more_than_twenty(tmp_path):
    found = section_lines(tmp_path, *['{"duration": 0, "prompt": ""}'] * 15)
    assert len(found) == 21
    assert found[0].startswith("story.json, line 3: sections[0].duration")
    assert found[19].startswith("story.json, line 12: sections[9].prompt")
    assert found[20] == "story.json: and 10 more"


def test_faults_of_subtitles_with_their_lines(tmp_path):
    text = (
        "1\n00:00:00,000 --> 00:00:05,000\nA\n\n"
        "2\n00:00:04,000 --> 00:00:06,000\nB\n\n"
        "words alone\nof two lines\n\n"
        "4\n00:00:08,000 --> 00:00:07,000\nC\n\n"
        "5\n00:00:08,00x --> 00:00:09,000\nD\n"
    )
    assert refused(tmp_path / "story.srt", text) == [
        "story.srt, line 6: cue 2 starts at 4 s, cue 1 ends at 5 s",
        "story.srt, line 9: text without a time before it; "
        "a cue begins like 00:00:01,000 --> 00:00:04,000",
        "story.srt, line 13: the cue ends before it starts",
        "story.srt, line 17: no time that can be read; "
        "it should be like 00:00:01,000 --> 00:00:04,000",
    ]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("A dancer [0s: she bows] [1.1s-3.3s: she spins]", 1, "timed prompts"),
        ("A dancer\n\n[0-5s] she bows", 3, "timed prompts"),
        ("A dancer [/duration=5s]", 1, "Wan2GP"),
        ("0:A dog;;;-1:It sleeps", 1, "musubi-tuner's sections"),
        ("# c\nA dog runs --w 832 --h 480", 2, "musubi-tuner's options"),
        ("A dog\n---\nIt sleeps", 2, "parted by ---"),
        ("prompts = [\n'A dog']", 1, "Python list"),
        ("id,prompt_index,prompt\n6,0,A storm", 1, "CSV"),
    ],
)
def test_marks_of_other_programs_are_not_read_as_words(tmp_path, text, line, what):
    found = refused(tmp_path / "story.txt", text, 5)
    assert len(found) == 1
    assert found[0].startswith(f"story.txt, line {line}: ")
    assert what in found[0]


def test_numbers_and_brackets_in_words_are_words(tmp_path):
    text = "[character1] counts: 1, 2; a street --- at 5s past noon [3]; she says a | b."
    assert read_storyboard(written(tmp_path / "a.txt", text), 5).sections[0].prompt == text


def test_files_beside_the_storyboard_are_found(tmp_path):
    written(tmp_path / "first.png", "x")
    text = '{"format": 1, "image": "first.png", "sections": [' + GOOD + "]}"
    assert read_storyboard(written(tmp_path / "a.json", text)).image == tmp_path / "first.png"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"prompt": ""}, "prompt is blank"),
        ({"prompt": 3}, "prompt must be text"),
        ({"prompt": "A", "seconds": 0}, "seconds must be more than 0 s"),
        ({"prompt": "A", "seconds": float("inf")}, "seconds must be a finite number"),
        ({"prompt": "A", "cut": None}, "cut must be true or false"),
        ({"prompt": "A", "memory": "some"}, "memory must be one of"),
        ({"prompt": "A", "seed": 2**63}, "seed must be 0 or more"),
    ],
)
def test_sections_made_in_python_keep_the_same_rules(values, what):
    with pytest.raises(UserError, match=what):
        Section(**values)


def test_storyboards_made_in_python_keep_the_same_rules():
    section = Section(prompt="A", seconds=1)
    with pytest.raises(UserError, match="holds no section"):
        Storyboard(sections=())
    with pytest.raises(UserError, match="section 1 has no length"):
        Storyboard(sections=(Section(prompt="A"), section))
    with pytest.raises(UserError, match="one of the two"):
        Storyboard(sections=(section,), source="a.mp4", image="a.png")
    assert section == Section(prompt=" A ", seconds=1.0, note="b", where="c")


LETTERS = st.characters(categories=("L", "N", "P", "S", "Zs"))
WORDS = st.text(LETTERS, min_size=1, max_size=12).filter(str.strip)
SECTIONS = st.builds(
    Section,
    prompt=WORDS,
    seconds=st.decimals("0.001", "900", places=3).map(float),
    negative=st.none() | WORDS,
    seed=st.none() | st.integers(0, 2**63 - 1),
    guidance=st.none() | st.floats(0, 20),
    steps=st.none() | st.integers(1, 99),
    cut=st.booleans(),
    memory=st.sampled_from(["all", "since_cut", "none"]),
    note=st.none() | WORDS,
)
BOARDS = st.builds(
    Storyboard,
    sections=st.lists(SECTIONS, min_size=1, max_size=5).map(tuple),
    title=st.none() | WORDS,
    prompt=st.just("") | WORDS,
    negative=st.none() | WORDS,
    seed=st.none() | st.integers(0, 99),
    size=st.none() | st.just("832x480"),
    segment_seconds=st.none() | st.floats(0.1, 90),
)


@settings(deadline=None, max_examples=60)
@given(board=BOARDS, indent=st.none() | st.integers(0, 3))
def test_any_storyboard_comes_back_from_its_json(tmp_path_factory, board, indent):
    path = tmp_path_factory.getbasetemp() / "any.json"
    found = read_storyboard(written(path, json.dumps(board.to_json(), indent=indent)))
    assert found == board
    assert [s.note for s in found.sections] == [s.note for s in board.sections]


KEYS = st.text(max_size=3) | st.sampled_from(
    ["format", "sections", "prompt", "start", "end", "duration", "cut", "seed", "image", "size"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.integers(-3, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(data=JSON, indent=st.none() | st.integers(0, 2))
def test_any_json_is_a_storyboard_or_is_refused_in_lines(tmp_path_factory, data, indent):
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = json.dumps({"format": 1, "sections": data}, indent=indent)
    try:
        read_storyboard(written(path, text))
    except UserError as error:
        assert all(line.startswith("any.json") for line in str(error).split("\n"))


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(data=JSON, indent=st.none() | st.integers(0, 2))
def test_every_value_of_a_json_text_has_its_line(data, indent):
    text = json.dumps(data, indent=indent)
    found = dict(scan_lines(text))

    def places(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
        inner: Any = value.items() if isinstance(value, dict) else []
        inner = enumerate(value) if isinstance(value, list) else inner
        return {path}.union(*(places(one, (*path, key)) for key, one in inner))

    assert set(found) == places(data)
    rows = text.split("\n")
    for path, line in found.items():
        if path and isinstance(path[-1], str):
            assert f"{json.dumps(path[-1])}:" in rows[line - 1]
    assert max(found.values()) <= len(rows)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    lines=st.lists(st.text(max_size=20), max_size=12),
    suffix=st.sampled_from([".srt", ".vtt", ".txt", ".json"]),
)
def test_any_text_is_a_storyboard_or_is_refused(tmp_path_factory, lines, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        read_storyboard(path, 2.0 if suffix == ".txt" else None)
    except UserError as error:
        assert str(error).startswith("any.")


def test_lists_in_lists_and_half_characters_are_faults_like_any_other(tmp_path: Path) -> None:
    deep = "[" * 900 + "]" * 900
    for text, fault in (
        (f'"format": 1, "sections": [{deep}]', "sections[0] must be an object, not [[[a list]]]"),
        (f'"format": {deep}, "sections": [1]', "format must be a whole number, not [[[a list]]]"),
    ):
        with pytest.raises(UserError) as error:
            read_storyboard(written(tmp_path / "story.json", f"{{{text}}}"))
        assert str(error.value).splitlines()[0] == f"story.json, line 1: {fault}"
    with pytest.raises(UserError, match="prompt must be text in UTF-8, not 'a\ufffd'"):
        Section(prompt="a\udcff")
    with pytest.raises(UserError, match="image must be a path in UTF-8, not 'a\ufffd.png'"):
        Section(prompt="a", image=Path("a\udcff.png"))
    with pytest.raises(UserError, match="steps must be at most 10000, not 1000000"):
        Section(prompt="a", steps=1_000_000)
    with pytest.raises(ValueError, match="between 1 and 10000"):
        Sampler(steps=10**30)


def test_a_value_that_is_given_is_held_to_the_rules_of_files() -> None:
    assert read_given("prompt", " a ") == "a" and read_given("seed", None) is None
    with pytest.raises(UserError, match="--size must be WIDTHxHEIGHT in pixels, .*, not '²x³'"):
        read_given("size", "²x³", "--size")
