"""Every layout that videos and captions come in gives the same videos, or one line that says why.

No test here opens a video: what a source names may be missing.
"""

import csv
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.data.captions import Caption, untimed_captions
from longtake.core.data.sources import caption_of, find_sources
from longtake.core.errors import UserError

CAT, DOG = "A cat, on a wall", 'A dog says "hello"'


@pytest.fixture
def folder(tmp_path):
    """A folder with clips/a.mp4 and b.mp4."""
    for name in ("clips/a.mp4", "b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    return tmp_path


def listed(videos):
    return {source.name: source.captions for source in find_sources(videos)}


def refused(videos, *parts):
    with pytest.raises(UserError) as caught:
        find_sources(videos)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def write_lines(path, values):
    path.write_text("\n\n".join(map(json.dumps, values)) + "\n")
    return path


def write_table(path, rows, **how):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, **how).writerows(rows)
    return path


ROWS = [["video", "prompt", "seed"], ["clips/a.mp4", CAT, "1"], [], ["b.mp4", DOG, "2"]]


def by_text(root):
    (root / "clips" / "a.txt").write_text(CAT + "\n")
    (root / "b.txt").write_text(DOG)
    return root


def by_musubi(root):
    rows = [{"video_path": "clips/a.mp4", "caption": CAT}, {"video_path": "b.mp4", "caption": DOG}]
    return write_lines(root / "train.jsonl", rows)


def by_musubi_absolute(root):
    rows = [{"video_path": str(root / "clips" / "a.mp4"), "caption": CAT}]
    return write_lines(root / "train.jsonl", [*rows, {"video_path": "b.mp4", "caption": DOG}])


def by_csv(root):
    return write_table(root / "metadata.csv", ROWS)


def by_csv_in_folder(root):
    return by_csv(root).parent


def by_excel(root):
    return write_table(root / "list.CSV", ROWS, delimiter=";", lineterminator="\r\n")


def by_tabs(root):
    return write_table(root / "list.tsv", ROWS, delimiter="\t")


def by_diffsynth_json(root):
    rows = [{"video": "clips\\a.mp4", "prompt": CAT}, {"video": "b.mp4", "prompt": DOG, "n": 1}]
    return write_json(root / "metadata.json", rows)


def by_fastvideo(root):
    size = {"width": 848, "height": 480}
    rows = [{"path": "clips/a.mp4", "resolution": size, "fps": 30.0, "cap": [CAT, "other"]}]
    write_json(root / "videos2caption.json", [*rows, {"path": "b.mp4", "cap": DOG}])
    return root


def by_videox(root):
    rows = [{"file_path": "clips/a.mp4", "text": CAT, "type": "video"}]
    return write_json(root / "any.json", [*rows, {"file_path": "b.mp4", "text": DOG}])


def by_hub(root):
    rows = [{"file_name": "clips/a.mp4", "text": CAT}, {"file_name": "b.mp4", "text": DOG}]
    return write_lines(root / "metadata.jsonl", rows).parent


LAYOUTS = [
    by_text, by_musubi, by_musubi_absolute, by_csv, by_csv_in_folder, by_excel, by_tabs,
    by_diffsynth_json, by_fastvideo, by_videox, by_hub,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_videos_and_captions(folder, layout):
    found = find_sources(layout(folder))
    by_hand = {source.name: source.id for source in find_sources(folder / "clips" / "a.mp4")}
    assert list(by_hand) == ["a.mp4"]
    assert [(source.name, source.captions, source.fault) for source in found] == [
        ("b.mp4", untimed_captions(DOG), ""),
        ("clips/a.mp4", untimed_captions(CAT), ""),
    ]
    assert [source.path.read_bytes() for source in found] == [b"video"] * 2
    assert [source.id for source in found] == [s.id for s in sorted_by_name(folder)]


def sorted_by_name(folder):
    """The sources of the bare folder: a list must not change what clips are called."""
    for path in folder.iterdir():
        if path.suffix not in ("", ".mp4"):
            path.unlink()
    return sorted(find_sources(folder), key=lambda source: source.name)


TIMED = {
    "a.json": '{"segments": [{"time_range_s": [0, 4], "prompt": "one"}]}',
    "a.srt": "1\n00:00:00,000 --> 00:00:04,000\none\n",
    "a.vtt": "WEBVTT\n\n00:00.000 --> 00:04.000\none\n",
}


@pytest.mark.parametrize("name", TIMED)
def test_timed_captions_beside_a_video(folder, name):
    (folder / "clips" / name).write_text(TIMED[name])
    (folder / "clips" / "a.txt").write_text("the whole")
    one = (Caption(start=0, end=4, text="one"),)
    assert listed(folder) == {"b.mp4": (), "clips/a.mp4": one}
    assert listed(folder / "clips" / "a.mp4") == {"a.mp4": one}
    assert caption_of(folder / "clips" / "a.mp4") == "one"
    assert caption_of(folder / "clips" / "x_y-z.mp4") == "x y z"


def test_segments_may_stand_in_a_list(folder):
    rows = [{"video_path": "b.mp4", "segments": json.loads(TIMED["a.json"])["segments"]}]
    found = listed(write_lines(folder / "l.jsonl", rows))
    assert found == {"b.mp4": (Caption(start=0, end=4, text="one"),)}
    rows[0]["segments"][0]["time_range_s"] = [4]
    refused(write_lines(folder / "l.jsonl", rows), "l.jsonl, line 1, segment 1: time_range_s")


def test_a_blank_caption_leaves_the_word_to_the_files_beside(folder):
    (folder / "b.txt").write_text("beside")
    for blank in ("", "  ", None, [], ["", " "]):
        rows = [{"video": "b.mp4", "prompt": blank}, {"video": "clips/a.mp4", "prompt": blank}]
        found = listed(write_json(folder / "metadata.json", rows))
        assert found == {"b.mp4": untimed_captions("beside"), "clips/a.mp4": ()}


def test_captions_that_cannot_be_read_are_the_fault_of_their_video_alone(folder):
    (folder / "b.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "clips" / "a.srt").write_text("hello")
    found = {source.name: source.fault for source in find_sources(folder)}
    assert found["clips/a.mp4"].startswith("a.srt, line 1: text without a time")
    assert found["b.mp4"].startswith("b.txt, line 1: byte") and "UTF-8" in found["b.mp4"]


def test_a_listed_video_that_is_missing_is_given_nevertheless(folder):
    path = write_table(folder / "l.csv", [["video", "prompt"], ["no.mp4", "x"], ["b.mp4", "y"]])
    missing = find_sources(path)[1]
    assert (missing.name, missing.path) == ("no.mp4", folder / "no.mp4")
    longest = [["video", "prompt"], ["x" * 5000, "x"]]
    assert find_sources(write_table(folder / "l.csv", longest))[0].captions == untimed_captions("x")


def test_where_a_relative_path_is_looked_for(folder, tmp_path, monkeypatch):
    (folder / "work").mkdir()
    monkeypatch.chdir(folder / "work")
    (folder / "videos").mkdir()
    (folder / "work" / "c.mp4").touch()
    path = write_json(folder / "l.json", [{"path": "c.mp4", "cap": "x"}])
    places = []
    for place in ("work", "videos", "."):
        (folder / place / "c.mp4").touch()
        places.append(find_sources(path)[0].path.resolve())
    assert places == [(folder / place / "c.mp4").resolve() for place in ("work", "videos", ".")]


def test_a_video_listed_twice_counts_once_unless_its_captions_differ(folder):
    rows = [["video", "prompt"], ["b.mp4", "x"], ["./clips/../b.mp4", "x"]]
    assert listed(write_table(folder / "l.csv", rows)) == {"b.mp4": untimed_captions("x")}
    rows[2][1] = "y"
    refused(
        write_table(folder / "l.csv", rows), "l.csv, line 3: b.mp4", "l.csv, line 2", "keep one"
    )


FAULTY = [
    ("l.csv", "", "l.csv, line 1: nothing: no names of columns"),
    ("l.csv", "video,prompt\n", "l.csv: lists no video"),
    ("l.csv", "b.mp4,a dog\nclips/a.mp4,a cat\n", "line 1: b.mp4, a dog: no names"),
    ("l.csv", "vidoe,prompt\nb.mp4,x\n", "is vidoe meant to be video?"),
    ("l.csv", "video,promt\nb.mp4,x\n", "is promt meant to be prompt?"),
    ("l.csv", "Video,prompt\nb.mp4,x\n", "is Video meant to be video?"),
    ("l.csv", "id,prompt\n1,x\n", "has no path of a video (found id, prompt)"),
    ("l.csv", "video,prompt\nb.mp4,a dog, a cat\n", "line 2: 3 fields, but 2 columns"),
    ("l.csv", "video,prompt\nb.mp4\n", "line 2: 1 fields, but 2 columns"),
    ("l.csv", 'video,prompt\nb.mp4,"x\n', "l.csv, line 2: no CSV: unexpected end"),
    ("l.csv", 'video,prompt\nb.mp4,"x"y\n', "l.csv, line 2: no CSV"),
    ("l.csv", "video,prompt\n,x\n", "line 2: the video's path is ''"),
    ("l.csv", "video,prompt\n\n\nb.mp4,x\n ,x\n", "line 5: the video's path"),
    ("l.csv", f"video,prompt\nb.mp4,{'x' * 200_000}\n", "line 2: no CSV: field larger"),
    ("l.jsonl", '{"video_path": "b.mp4", "caption": "x"}\n{"video', "l.jsonl, line 2, column"),
    ("l.jsonl", '{"video_path": "b.mp4"}\n', "l.jsonl, line 1: has no caption"),
    ("l.jsonl", '{"video_pat": "b.mp4", "caption": "x"}\n', "video_pat meant to be video_path?"),
    ("l.jsonl", '["b.mp4", "x"]\n', "l.jsonl, line 1: is no object such as"),
    ("l.jsonl", "\n\n", "l.jsonl: lists no video"),
    ("l.jsonl", "{}\n", "line 1: has no path of a video (it is empty)"),
    ("l.json", '[{"video": 3, "prompt": "x"}]', "l.json, entry 1: the video's path is 3"),
    ("l.json", '[{"video": "b.mp4", "prompt": 3}]', "entry 1: the caption is 3; it should be text"),
    ("l.json", '[{"video": "b.mp4", "prompt": [3]}]', "entry 1: the caption is [3]"),
    ("l.json", '[{"video": "b\\u0000.mp4", "prompt": "x"}]', "entry 1: 'b\\x00.mp4' can be no"),
    ("l.json", '[{"video": "\\ud83d.mp4", "prompt": "x"}]', "l.json: holds half a character"),
    ("l.json", '{"video": "b.mp4", "prompt": "x"}', "l.json: is no list of videos"),
    ("l.json", '{"segments": []}', "timed captions of one video; give the video"),
    ("l.json", '[{"video": "b.mp4",\n"prompt": "x"},]', "l.json, line 2, column"),
    ("l.json", "[" * 100_000, "no JSON that can be read"),
    ("l.json", "[]", "l.json: lists no video"),
]


@pytest.mark.parametrize(("name", "text", "reason"), FAULTY)
def test_a_faulty_list_is_one_line_with_its_place(folder, name, text, reason):
    (folder / name).write_text(text)
    refused(folder / name, name, reason)


@pytest.mark.parametrize("name", ["l.csv", "l.json", "l.jsonl"])
@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8")))
def test_no_bytes_end_in_another_error(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(data)
    try:
        assert find_sources(path)
    except UserError as error:
        text = str(error)
        assert name in text and "\n" not in text and text.encode()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.dictionaries(
        st.from_regex(r"[a-z ]{1,8}[a-z]\.mp4", fullmatch=True).map(str.strip),
        st.text(st.characters(codec="utf-8", exclude_characters="\r\0")),
        min_size=1,
        max_size=4,
    )
)
def test_any_caption_comes_back_from_every_kind_of_list(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("lists")
    entries = [{"video": name, "prompt": text} for name, text in rows.items()]
    expected = {name: untimed_captions(text) for name, text in rows.items()}
    assert listed(write_json(root / "l.json", entries)) == expected
    assert listed(write_lines(root / "l.jsonl", entries)) == expected
    table = [["video", "prompt"], *rows.items()]
    assert listed(write_table(root / "l.csv", table, quoting=csv.QUOTE_ALL)) == expected


def test_two_lists_in_a_folder_are_refused(folder):
    by_csv(folder)
    by_fastvideo(folder)
    refused(folder, "metadata.csv and videos2caption.json", "name the one to use")


def test_what_is_no_folder_of_videos(tmp_path):
    refused(tmp_path / "none", "no such file or folder")
    refused(tmp_path, "no video in it")
    (tmp_path / "train.jsonl").touch()
    refused(tmp_path, "no video in it", "to use train.jsonl, name it")


def test_folders_are_searched_once_each_through_links_and_not_where_hidden(folder):
    (folder / ".hidden").mkdir()
    for name in (".hidden/c.mp4", ".d.mp4", "clips/notes.txt"):
        (folder / name).touch()
    (folder / "e.mp4").mkdir()
    (folder / "e.mp4" / "F.MOV").touch()
    (folder / "clips" / "loop").symlink_to(folder)
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "g.mp4").touch()
    (folder / "linked").symlink_to(elsewhere)
    (folder / "round.mp4").symlink_to("round.mp4")
    names = ["b.mp4", "clips/a.mp4", "e.mp4/F.MOV", "linked/g.mp4", "round.mp4"]
    assert [source.name for source in find_sources(folder)] == names


def test_a_folder_that_may_not_be_read_is_named(folder, monkeypatch):
    real = os.scandir

    def refuse(path):
        if str(path).endswith("clips"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused(folder, "Permission denied", "clips")


def test_odd_names_are_stored_on_one_line_and_fit_a_disk(tmp_path):
    names = [b"caf\xe9.mp4", b"new\nline.mp4", ("字" * 83 + ".mp4").encode(), b"a" * 251 + b".mp4"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    found = find_sources(tmp_path)
    assert len({source.id for source in found}) == len(names)
    for source in found:
        assert source.name.encode() and "\n" not in source.name and source.path.exists()
        assert len(source.id.encode()) < 100 and source.id.encode().decode().isprintable()
