"""The return probe: clips that leave a view and come back, and what is asked of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from longtake.backbones.codecs.specs import Dct
from longtake.core import config
from longtake.core.data.store import Store
from longtake.core.experiment import Experiment
from longtake.core.interfaces.codec import frames_of
from longtake.core.model import build_model
from longtake.core.registry import build
from longtake.core.tools.files import write_json
from longtake.core.train.checkpoint import load_run, save_model
from longtake.core.video.builtin_clip import CREDITS, render_shots
from longtake.core.video.read import read_frames
from longtake.core.video.write import write_video
from longtake.experiments.returns import __main__ as returns
from longtake.experiments.returns import clips as return_clips
from longtake.experiments.returns.ask import (
    ANSWERS,
    CEILING,
    FIRST,
    LAST,
    OWN,
    TRUTH,
    ReturnProbe,
    ReturnResult,
    encode_as_whole,
    over_clips,
    probe_clip,
)
from longtake.experiments.returns.clips import (
    ASKED,
    FRAMES,
    LEFT,
    PHOTOS,
    RETURN,
    SECONDS,
    SIZE,
    TIMES,
    build_clips,
    first_seen,
    likeness,
    script,
)
from longtake.experiments.returns.page import ProbeDescription, page
from longtake.plugins.compressors.specs import Window

from .small import RATE, small

SEEN = {"pan": 15, "cut": 16, "back": 16}  # latents of the history at 8 fps
FPS = [8.0, 16.0, 24.0, 30.0]


def save_run(folder: Path, experiment: Experiment) -> Path:
    """A run that trained nothing: its weights are random."""
    write_json(folder / "spec.json", {"experiment": config.to_json(experiment)})
    save_model(folder / "checkpoint-1", build_model(experiment))
    return folder


def write_real(folder: Path) -> Path:
    """Three videos: one leaves its view, one stays, one is short."""
    wide = np.random.default_rng(0).integers(0, 255, (4, 40, 3)).repeat(8, 0).repeat(8, 1)
    picture = wide.astype(np.uint8)
    goes = np.stack([picture[:, 2 * k : 2 * k + 48] for k in range(130)])
    folder.mkdir()
    write_video(folder / "goes.mp4", goes, 16)
    write_video(folder / "stays.mp4", np.repeat(goes[:1], 130, axis=0), 16)
    write_video(folder / "short.mp4", goes[:40], 16)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with runs, videos, and `out` of a probe over one small photograph."""
    root = tmp_path_factory.mktemp("returns")
    own = small()
    save_run(root / "own", own)
    save_run(root / "window", attrs.evolve(own, compressors=(Window(latents=3),)))
    save_run(root / "without", attrs.evolve(own, compressors=()))
    more = attrs.evolve(own.backbone, codec=Dct(channels=48))
    save_run(root / "more", attrs.evolve(own, compressors=(Window(),), backbone=more))
    write_real(root / "videos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(return_clips, "PHOTOS", PHOTOS[:1])
        patch.setattr(return_clips, "SIZE", (96, 64))
        assert returns.main(asked(root)) == 0
        yield root


def asked(root: Path) -> list[str]:
    given = [str(root / "own"), "--videos", str(root / "videos"), "--out", str(root / "out")]
    return [*given, "--window-run", str(root / "window")]


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("fps", FPS)
def test_only_latents_wholly_after_the_return_are_asked(kind: str, fps: float) -> None:
    times, latents = TIMES[kind], 1 + (int(SECONDS * fps) - 1) // 4
    seen, wanted = times.seen(fps, 4, latents), times.asked(fps, 4, latents)
    assert len(wanted) == ASKED
    assert all(frame / fps >= RETURN for index in wanted for frame in frames_of(index, 4))
    assert all(frame / fps < times.leaves for j in range(seen) for frame in frames_of(j, 4))
    assert frames_of(seen, 4)[-1] / fps >= times.leaves - 1e-3  # no latent less than there could be
    assert kind == "pan" or wanted[0] - seen <= 1  # nor are there unseen latents between


def test_at_8_fps_the_history_ends_right_before_the_return() -> None:
    for kind, seen in SEEN.items():
        assert TIMES[kind].seen(8.0, 4, 21) == seen
        assert TIMES[kind].asked(8.0, 4, 21) == (16, 17, 18, 19)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pan", "cut"])
@pytest.mark.parametrize("place", range(len(PHOTOS)))
def test_photographs_leave_the_view_and_come_back(kind: str, place: int) -> None:
    other = CREDITS[(place + 1) % len(CREDITS)].photo
    size = (SIZE[0] // 4, SIZE[1] // 4)
    frames = list(render_shots(script(kind, PHOTOS[place], other), SECONDS, 8.0, size))
    last = frames[4 * (SEEN[kind] - 1)]
    for frame in frames[61:77]:
        assert likeness(frames[0], frame) > 60
        assert likeness(last, frame) < LEFT
    assert likeness(frames[0], frames[48]) < LEFT


@pytest.mark.parametrize("photo", PHOTOS)
def test_the_ends_of_a_pan_share_no_pixel(photo: str) -> None:
    near, far = return_clips.UNLIKE.get(photo, (return_clips.NEAR, return_clips.FAR))
    assert near.zoom == far.zoom >= 2.5
    part = 1 / near.zoom  # of the picture at zoom 1, which the photograph may be larger than
    moved = [(1 - part) * abs(a - b) for a, b in ((near.across, far.across), (near.down, far.down))]
    assert max(moved) >= part


def test_means_and_page_of_made_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def result(name: str, memory: float) -> ReturnResult:
        psnr = {**dict.fromkeys((*ANSWERS[1:], LAST, FIRST, CEILING), 20.0), ANSWERS[0]: memory}
        return ReturnResult(name=name, seen=15, asked=(18, 19), psnr=psnr, shown=shown)

    shown = {TRUTH: torch.zeros(3, 64, 96, dtype=torch.uint8)}
    clips = [result("pan-astronaut", 21.0), result("cut-astronaut", 23.0)]
    over = over_clips(clips)
    assert over["all"]["psnr"]["memory"]["mean"] == 22.0 and over["pan"]["clips"] == 1
    assert over["all"]["memory_over"]["none"]["mean"] == 2.0
    description = ProbeDescription(
        run="runs/x", window=None, experiment="x", fps=8.0, stride=4, left_out={"a.mp4": "short"}
    )
    text = page(description, clips, over)
    assert "asked of runs/x" in text and "a.mp4: short" in text and "+2.00 [" in text
    assert returns.main([str(tmp_path / "nonesuch"), "--out", str(tmp_path / "out")]) == 2
    assert "no such run" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_video_comes_back_to_its_first_frames(made: Path) -> None:
    clip = read_frames(made / "out" / "clips" / "back-goes.mp4", fps=16).frames
    assert len(clip) == FRAMES
    for frame in (121, 140, 152):
        first = round(16 * first_seen("back", frame / 16))
        assert first < 40
        assert likeness(clip[first], clip[frame]) > 25
        assert likeness(clip[120], clip[frame]) < LEFT
    names = {path.stem for path in (made / "out" / "clips").iterdir()}
    assert names == {"pan-astronaut", "cut-astronaut", "back-goes"}


@pytest.mark.slow
def test_every_way_answers_and_all_is_written(made: Path) -> None:
    found = json.loads((made / "out" / "returns.json").read_text())
    assert {clip["kind"]: clip["seen"] for clip in found["clips"]} == SEEN
    for clip in found["clips"]:
        assert set(clip["psnr"]) == {*ANSWERS, LAST, FIRST, CEILING}
        assert all(math.isfinite(value) for value in clip["psnr"].values())
        assert clip["psnr"][FIRST] > 25 and clip["psnr"][FIRST] > clip["psnr"][LAST] + 9
        assert "shown" not in clip
    assert set(found["over"]) == {"all", "pan", "cut", "back"}
    assert found["over"]["all"]["clips"] == 3
    assert found["left_out"].keys() == {"stays.mp4", "short.mp4"}
    assert (made / "out" / "returns.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_page_says_how_it_was_asked(made: Path) -> None:
    text = (made / "out" / "returns.md").read_text()
    assert "trained with its own memory" in text and "flatters memory" in text
    assert f"`{OWN}` is {made / 'window'}" in text
    assert "beyond the history" in text and "nothing says" in text
    assert "the history is 15 latents, to 7.00 s, asked are 4 latents of 7.62 to 9.50 s" in text
    assert "Clips of 10.1 s at 8 fps" in text and "pixels" in text
    assert "short.mp4: 2.5 s long, 7.6 s are needed" in text


@pytest.mark.slow
def test_a_second_run_uses_what_is_there(made: Path) -> None:
    out = made / "out"
    kept = [path for part in ("clips", "store/clips") for path in (out / part).iterdir()]
    before = {path: path.stat().st_mtime_ns for path in kept}
    first = json.loads((out / "returns.json").read_text())["clips"]
    assert returns.main(asked(made)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert json.loads((out / "returns.json").read_text())["clips"] == first


@pytest.mark.slow
def test_a_history_encoded_alone_is_that_of_a_causal_codec(made: Path) -> None:
    store = Store.open(made / "out" / "store")
    past = store.window(store.records[0], 0, 15, [RATE], True)
    alone = encode_as_whole(build(small().backbone.codec), past)
    torch.testing.assert_close(alone.latents, past.latents, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(alone.lr[RATE], past.lr[RATE], atol=2e-2, rtol=2e-2)


@pytest.mark.slow
def test_a_window_as_own_memory_answers_as_the_window_alone(made: Path) -> None:
    store = Store.open(made / "out" / "store")
    found = probe_clip(ReturnProbe.of(load_run(made / "window"), store), store.records[0]).psnr
    assert found["memory"] == found["memory and window"] == found["window"] != found["none"]
    assert OWN not in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{root}/nonesuch"], "no such run"),
        (["{root}/without"], "has no memory to probe"),
        (["{root}/own", "--videos", "{root}/nonesuch"], "no such folder"),
        (["{root}/own", "--videos", "{root}/own"], "holds no video to run back"),
        (["{root}/own", "--window-run", "{root}/nonesuch"], "no such run"),
        (["{root}/own", "--window-run", "{root}/own"], "not trained with the `window` compressor"),
        (["{root}/own", "--window-run", "{root}/more"], "the codec of its backbone"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], says: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [one.format(root=made) for one in arguments]
    assert returns.main([*given, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip()
    assert says in told
    assert len(told.splitlines()) == 1
    assert not list((tmp_path / "out").rglob("*.md"))


@pytest.mark.slow
def test_clips_of_another_plan_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "clips" / "pan-astronaut.mp4", np.zeros((9, 64, 96, 3), np.uint8), 16)
    assert returns.main([str(made / "own"), "--out", str(tmp_path)]) == 2
    assert "clips of another version" in capsys.readouterr().err


def test_a_clip_of_another_video_of_that_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(return_clips, "write_video", lambda *_: None)
    monkeypatch.setattr(return_clips, "_back", lambda *_: "")
    folder, videos = tmp_path / "clips", tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"one")
    (videos / "empty.mp4").write_bytes(b"")
    clips = build_clips(folder, videos)
    folder.mkdir()
    assert build_clips(folder, videos) == clips
    assert len(build_clips(folder).clips) == len(clips.clips) - 2
    (videos / "below").mkdir()
    (videos / "below" / "b.avi").write_bytes(b"two")  # wherever `cache` finds videos
    (videos / "below" / ".b.mp4").write_bytes(b"hidden")
    assert len(build_clips(folder, videos).clips) == len(clips.clips) + 1
    (videos / "a.mp4").write_bytes(b"another")
    with pytest.raises(return_clips.UserError, match="the clip of another video called a"):
        build_clips(folder, videos)


@pytest.mark.slow
def test_videos_that_never_leave_their_view_are_no_clips(made: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "stays.mp4").symlink_to(made / "videos" / "stays.mp4")
    with pytest.raises(return_clips.UserError, match="never leaves its first view"):
        build_clips(tmp_path / "clips", tmp_path / "videos")
