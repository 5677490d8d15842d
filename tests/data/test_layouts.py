"""Every layout that videos and captions come in gives the same videos, or one line that says why.

No test here opens a video: what a source names may be missing.
"""

import csv
import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.data.captions import Caption, untimed_captions
from longtake.core.data.sources import caption_of, find_sources, notes_on
from longtake.core.errors import UserError

from .odd_files import shared_case, video

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


def by_finetrainers(root):
    (root / "prompt.txt").write_text(f"{CAT}\n{DOG}\n")
    (root / "videos.txt").write_text("clips/a.mp4\nb.mp4\n")
    return root


def by_finetrainers_named(root):
    return by_finetrainers(root) / "videos.txt"


def by_diffusion_pipe(root):
    write_json(root / "captions.json", {"clips/a.mp4": [CAT, "variant"], "b.mp4": DOG})
    return root


def by_musubi_extension(root):
    (root / "clips" / "a.caption").write_text(CAT)
    (root / "b.caption").write_text(DOG + "\n")
    return root


def by_double_suffix(root):
    (root / "clips" / "a.mp4.txt").write_text(CAT)
    (root / "b.mp4.caption").write_text(DOG)
    return root


def by_json_beside(root):
    write_json(root / "clips" / "a.json", {"prompt": CAT, "seed": 3})
    write_json(root / "b.json", {"caption": DOG})
    return root


def by_data(root):
    rows = [{"media_path": "clips/a.mp4", "caption": CAT}, {"video_file": "b.mp4", "caption": DOG}]
    return write_json(root / "any.json", {"version": 1, "data": rows})


def by_another_csv_in_folder(root):
    rows = [["video", "vace_video", "prompt"], ["clips/a.mp4", "x.mp4", CAT], ["b.mp4", "", DOG]]
    write_json(root / "settings.json", {"seed": 3})
    return write_table(root / "metadata_vace.csv", rows).parent


def by_another_jsonl_in_folder(root):
    return by_musubi(root).parent


LAYOUTS = [
    by_finetrainers, by_finetrainers_named, by_diffusion_pipe, by_musubi_extension,
    by_double_suffix, by_json_beside, by_data, by_another_csv_in_folder,
    by_another_jsonl_in_folder,
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
    ("l.json", '{"data": {"b.mp4": "x"}}', "l.json: is no list of videos"),
    ("l.json", '{"data": [{"media_path": "b.mp4"}]}', "l.json, entry 1: has no caption"),
    ("l.json", '{"b.mp4": [3]}', "l.json, entry 1: the caption is [3]"),
    ("set.toml", "x = 1", "a TOML is not read; give the folder of its videos"),
    ("set.toml", "[[d", "a TOML is not read"),
    ("set.toml", '[[datasets]]\nvideo_directory = "clips"', "give its video_directory: --videos /"),
    ("set.toml", '[[directory]]\npath = "/no/clips"', "give its path: --videos /no/clips"),
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


def notes(videos):
    return notes_on(videos, find_sources(videos))


def test_names_that_share_a_short_hash_are_two_clips(tmp_path):
    names = ["17138/clip.mp4", "175108/clip.mp4"]  # 7a6ff855 both
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found = find_sources(tmp_path)
    assert [source.name for source in found] == names
    assert found[0].id == "clip-7a6ff855" and found[1].id.startswith("clip-7a6ff855")
    assert len({source.id for source in found}) == 2
    (tmp_path / "list.csv").write_text("video,caption\n175108/clip.mp4,b\n17138/clip.mp4,a\n")
    assert [source.id for source in find_sources(tmp_path / "list.csv")] == [x.id for x in found]


def test_where_captions_stand_is_known(folder):
    (folder / "b.txt").write_text("x")
    found = {source.name: source.origin for source in find_sources(folder)}
    assert found == {"b.mp4": ".txt", "clips/a.mp4": ""}
    write_table(
        folder / "mine, new.csv", [["video", "prompt"], ["clips/a.mp4", CAT], ["b.mp4", ""]]
    )
    found = {source.name: source.origin for source in find_sources(folder)}
    assert found == {"b.mp4": ".txt", "clips/a.mp4": "mine, new.csv"}
    (folder / "mine, new.csv").unlink()
    assert {s.origin for s in find_sources(by_finetrainers(folder))} == {
        "prompt.txt and videos.txt"
    }


def test_prompts_and_videos_that_do_not_match_are_refused(folder):
    by_finetrainers(folder)
    (folder / "prompt.txt").write_text(CAT)
    refused(folder, "prompt.txt and videos.txt have 1 and 2 lines")
    (folder / "prompt.txt").write_text("")
    (folder / "videos.txt").write_text("\n")
    refused(folder, "videos.txt: lists no video")
    (folder / "metadata.csv").write_text("video,prompt\n")
    refused(folder, "metadata.csv and prompt.txt and videos.txt are both in it")


def test_what_a_list_in_a_folder_leaves_out_is_said(folder):
    write_table(folder / "some.csv", ROWS[:2])
    assert list(listed(folder)) == ["clips/a.mp4"]
    assert notes(folder) == ["not in the list, not used: b.mp4"]
    assert notes(folder / "some.csv") == []


def test_lists_that_are_not_used_are_named(folder):
    for name in ("one.csv", "two.csv"):
        write_table(folder / name, ROWS)
    (folder / "three.csv").write_text("id,score\n1,2\n")
    write_table(folder / "four.csv", [["video", "prompt"], ["gone.mp4", "x"]])
    assert listed(folder) == {"b.mp4": (), "clips/a.mp4": ()}
    found = notes(folder)
    assert found[0] == "lists that are not used: one.csv, two.csv; name the one to use"
    assert "four.csv: names no video that is there" in found
    assert any(note.startswith("three.csv, line 1: id, score: no names") for note in found)
    by_text(folder)
    assert notes(folder) == []  # every video has a caption


def test_files_beside_a_video_that_are_no_captions_as_we_read_them_are_named(folder):
    (folder / "b.tags").write_text("x")
    (folder / "b.en.srt").write_text("x")
    (folder / "b.png").touch()
    [note] = notes(folder)
    assert ".en.srt (1), .tags (1)" in note and "captions stand in .txt, .caption" in note
    (folder / "b.txt").write_text("x")
    assert notes(folder) == []


@pytest.mark.parametrize("suffix", [".MTS", ".vob", ".m2t", ".asf", ".f4v", ".ogm"])
def test_containers_of_cameras_and_discs_are_taken(folder, suffix):
    (folder / f"c{suffix}").touch()
    assert f"c{suffix}" in listed(folder)


def test_a_file_that_may_be_a_video_is_named(folder):
    (folder / "c.movie").touch()
    assert notes(folder) == ["may be videos, not used: c.movie; name one to use it"]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"start": 1, "end": 2.5}, (1, 2.5)),
        ({"start_time": "0:01.5", "end_time": "2"}, (1.5, 2)),
        ({"frame_idx": "12:36", "fps": 12}, (1, 3)),
        ({"frame_idx": [0, 36], "fps": "24"}, (0, 1.5)),
    ],
)
def test_a_row_about_a_part_of_a_video_captions_that_part(folder, part, expected):
    path = write_lines(folder / "l.jsonl", [{"path": "b.mp4", "cap": ["x", "y"]} | part])
    start, end = expected
    assert listed(path) == {"b.mp4": (Caption(start=start, end=end, text="x"),)}
    [note] = notes(path)
    assert note.startswith("l.jsonl: ") and note.endswith("whole videos are cached")


@pytest.mark.parametrize(
    "part", [{"frame_idx": "12:36"}, {"start": 3, "end": 1}, {"start": "a", "end": "b"}]
)
def test_a_part_that_cannot_be_read_is_named(folder, part):
    path = write_lines(folder / "l.jsonl", [{"path": "b.mp4", "cap": "x"} | part])
    assert listed(path) == {"b.mp4": untimed_captions("x")}
    [note] = notes(path)
    assert next(iter(part)) in note and "captions hold for whole videos" in note


def test_two_parts_of_one_video_are_two_captions_in_time(folder):
    rows = [["video", "prompt", "start", "end"], ["b.mp4", "y", 2, 4], ["b.mp4", "x", 0, 2]]
    found = listed(write_table(folder / "l.csv", rows))
    assert found == {
        "b.mp4": (Caption(start=0, end=2, text="x"), Caption(start=2, end=4, text="y"))
    }
    refused(write_table(folder / "l.csv", [*rows, ["b.mp4", "z", "", ""]]), "line 4", "keep one")


def test_a_crop_in_a_list_is_named_once(folder):
    rows = [{"path": name, "cap": "x", "crop": [0, 9, 0, 9]} for name in ("b.mp4", "clips/a.mp4")]
    path = write_lines(folder / "l.jsonl", rows)
    assert notes(path) == ["l.jsonl: crop is not applied: whole frames are cached"]


def test_cues_and_segments_of_no_length_are_named_and_passed_over(folder):
    cues = "1\n00:00,0 --> 00:02,0\none\n\n2\n00:02,0 --> 00:02,0\nspoon\n"
    (folder / "b.srt").write_text(cues)
    segments = [{"time_range_s": [0, 2], "prompt": "one"}, {"time_range_s": [2, 2], "prompt": "x"}]
    write_json(folder / "clips" / "a.json", {"segments": segments})
    one = (Caption(start=0, end=2, text="one"),)
    assert listed(folder) == {"b.mp4": one, "clips/a.mp4": one}
    assert notes(folder) == [
        "b.srt, line 6: a cue of no length, passed over",
        "a.json, segment 2: of no length, passed over",
    ]


def test_timed_captions_count_from_the_start_of_the_file(tmp_path):
    """Players begin with the sound: a video that starts a second later has captions earlier."""
    path = video(
        tmp_path / "a.mkv", 16, codec="ffv1", stamps=[1000 + 125 * k for k in range(16)], sound=3.0
    )
    (tmp_path / "a.srt").write_text(
        "1\n00:00,0 --> 00:01,0\nblack\n\n2\n00:01,0 --> 00:02,0\none\n\n"
        "3\n00:02,0 --> 00:03,0\ntwo\n"
    )
    assert caption_of(path, 0.0, 0.9) == "one" and caption_of(path, 1.1, 1.9) == "two"


SHARED = {
    "finetrainers_two_files": ("prompt.txt and videos.txt", ["videos/00000", "videos/00001"]),
    "diffusion_pipe_captions_json": ("captions.json", ["video1", "video2"]),
    "musubi_dir_caption_ext": (".caption", ["video1", "video2"]),
    "diffsynth_csv_vace": ("metadata_vace.csv", ["video1"]),
    "musubi_toml": (".txt", ["video_dir/video1"]),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_cases_of_other_programs(tmp_path, name):
    origin, names = SHARED[name]
    root = tmp_path / "x"
    shutil.copytree(shared_case(f"files/datasets/{name}"), root)
    for stem in names:
        (root / f"{stem}.mp4").parent.mkdir(exist_ok=True)
        (root / f"{stem}.mp4").touch()
    found = find_sources(root)
    assert [source.name for source in found] == [f"{stem}.mp4" for stem in names]
    assert all(source.captions and source.origin == origin for source in found)
    if (root / "dataset.toml").exists():
        refused(root / "dataset.toml", f"give its video_directory: --videos {root}/video_dir")


def test_no_caption_that_is_there_is_passed_over_in_silence(folder):
    header = ["video", "caption", "prompt"]
    rows = [header, ["b.mp4", "", DOG], ["clips/a.mp4", CAT, "another"]]
    path = write_table(folder / "metadata.csv", rows)
    sources = find_sources(folder)
    assert [source.captions[0].text for source in sources] == [DOG, CAT]
    assert "metadata.csv: prompt not used, caption is" in notes_on(folder, sources)
    write_table(path, [["video", "prompt", "prompt"], ["b.mp4", CAT, DOG]])
    refused(folder, "metadata.csv, line 1: two columns are called prompt; keep one")
    path.unlink()
    for name in ("train.parquet", "data.yaml", "b.ass"):
        (folder / name).write_bytes(b"PAR1")
    notes = notes_on(folder, find_sources(folder))
    assert any("may hold captions, not read: data.yaml, train.parquet;" in note for note in notes)
    assert any("no caption was found in files beside videos: .ass (1)" in note for note in notes)
    refused(folder / "train.parquet", "no PARQUET is read; write it as CSV, JSON or JSONL")


@pytest.mark.parametrize("name", ["captions.txt", "caption.txt"])
def test_a_pair_of_text_files_has_every_name_that_finetrainers_knows(folder, name):
    (folder / name).write_text(f"{CAT}\n{DOG}\n")
    (folder / "videos.txt").write_text("clips/a.mp4\nb.mp4\n")
    assert [source.captions[0].text for source in find_sources(folder)] == [DOG, CAT]
