"""The built-in clip: deterministic, cut where it says, and truly coming back to earlier views."""

import socket

import numpy as np
import pytest

from longtake.core.errors import UserError
from longtake.core.video import builtin_clip as clip
from longtake.core.video.decode import probe
from longtake.core.video.read import read_frames

SMALL = {"height": 48, "width": 80}


@pytest.fixture(scope="module")
def frames():
    return np.stack(list(clip.builtin_clip(fps=8, **SMALL)))


def difference(a, b):
    return float(np.abs(a.astype(float) - b).mean())


def test_length_size_and_type(frames):
    assert frames.shape == (160, 48, 80, 3) and frames.dtype == np.uint8
    assert next(clip.builtin_clip()).shape == (288, 512, 3)


@pytest.mark.slow
def test_the_same_second_is_the_same_at_any_rate_and_on_any_run(frames):
    faster = np.stack(list(clip.builtin_clip(seconds=20, fps=24, **SMALL)))
    assert np.array_equal(faster[::3], frames)


def test_cuts_are_where_the_shots_say_and_nowhere_else(frames):
    steps = [difference(a, b) for a, b in zip(frames, frames[1:], strict=False)]
    cuts = {round(shot.start * 8) for shot in clip.SHOTS[1:]}
    assert len(cuts) == len(clip.SHOTS) - 1
    hard = min(steps[cut - 1] for cut in cuts)
    soft = max(step for index, step in enumerate(steps) if index + 1 not in cuts)
    assert hard > 1.5 * soft


def test_shots_join_and_fill_the_clip():
    shots = clip.shots(10.0)
    assert shots[0].start == 0 and shots[-1].end == 10.0
    assert all(
        a.end == b.start and a.photo != b.photo for a, b in zip(shots, shots[1:], strict=False)
    )
    assert [shot.start for shot in shots] == [shot.start / 2 for shot in clip.SHOTS]


def test_a_return_looks_like_the_earlier_visit_and_unlike_the_shot_before(frames):
    photos = [shot.photo for shot in clip.SHOTS]
    again = [shot for n, shot in enumerate(clip.SHOTS) if shot.photo in photos[:n]]
    assert len(again) >= 4
    for shot in again:
        earlier = [s for s in clip.SHOTS if s.photo == shot.photo and s.end <= shot.start]
        seen = np.concatenate([frames[round(s.start * 8) : round(s.end * 8)] for s in earlier])
        begin = round(shot.start * 8)
        nearest = min(difference(frames[begin], old) for old in seen)
        assert nearest < 0.5 * difference(frames[begin], frames[begin - 1])


def test_every_photograph_is_credited_and_free():
    assert {shot.photo for shot in clip.SHOTS} <= {credit.photo for credit in clip.CREDITS}
    assert {credit.licence for credit in clip.CREDITS} == {"CC0", "public domain"}


def test_no_network_is_asked(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the clip asked for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    assert next(clip.builtin_clip(**SMALL)).any()


def test_written_and_read_back(tmp_path):
    path = tmp_path / "new folder" / "clip.mp4"
    clip.write_builtin_clip(path, seconds=2.0, fps=8, **SMALL)
    info = probe(path)
    assert (info.width, info.height, info.fps) == (80, 48, 8.0) and abs(info.seconds - 2) < 1e-6
    source = np.stack(list(clip.builtin_clip(seconds=2.0, fps=8, **SMALL)))
    assert difference(read_frames(path, fps=8).frames, source) < 6


@pytest.mark.parametrize("bad", [{"seconds": 0}, {"fps": -1}, {"height": 0}, {"width": -5}])
def test_impossible_clips_are_refused_at_once(bad):
    with pytest.raises(UserError):
        clip.builtin_clip(**bad)


def test_a_missing_photograph_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(clip.resources, "files", lambda _package: tmp_path)
    with pytest.raises(UserError, match="astronaut.png"):
        clip.builtin_clip()
