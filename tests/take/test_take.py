"""A take: made, gone on with, edited, rebuilt from its latents, and never half written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve

from longtake.core.cache.encode import MultiRateEncoder
from longtake.core.errors import LongtakeError, UserError
from longtake.core.interfaces.codec import from_bytes
from longtake.core.interfaces.compressor import MemoryEncoder, State
from longtake.core.model import compressor_needs
from longtake.core.registry import build
from longtake.core.sample.spec import MemoryBudget
from longtake.core.take import delivery as delivery_file
from longtake.core.take import past as past_file
from longtake.core.take import setup as setup_file
from longtake.core.take import source as source_file
from longtake.core.take import work as work_file
from longtake.core.take.past import whole_memory
from longtake.core.take.report import every_frame
from longtake.core.take.source import read_source
from longtake.core.take.storyboard import Section, Storyboard
from longtake.core.take.take import Take
from longtake.core.tools.files import claimed_folder
from longtake.core.values.grid import Rate
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, drop_oldest
from longtake.core.video.read import read_frames
from longtake.core.video.write import count_frames
from longtake.plugins.compressors.specs import Window

from ..test_export_verb import make_run
from .kit import (
    TWO,
    begun,
    clip,
    copy,
    done,
    experiment,
    heard,
    kinds,
    opened,
    runs,
    same,
    with_sound,
)


def pixels(take: Take) -> torch.Tensor:
    """The frames of a take, uint8 `[1, 3, F, P, Q]`."""
    return torch.from_numpy(np.stack(list(take.frames()))).permute(3, 0, 1, 2)[None]


def lr_of(take: Take) -> dict[Rate, torch.Tensor]:
    codec = build(take.experiment.backbone.codec)
    lowres = MultiRateEncoder.of(codec, compressor_needs(take.experiment).rates)
    lowres.push(from_bytes(pixels(take)))
    return lowres.joined()


def test_a_take_is_what_was_asked_for(whole: Take) -> None:
    order = whole.order
    assert [entry.latents for entry in order.entries] == [5, 4]
    assert [entry.seed for entry in order.entries] == [4, 5]
    assert whole.latents().shape == (1, 16, 9, 4, 8)
    assert count_frames(whole.root / "take.mp4") == 33 == sum(1 for _ in whole.frames())
    segment = whole.segment(2)
    assert (segment.prompt, segment.first, segment.seconds) == ("a cat", 5, 2.0)
    assert len(list(segment.frames())) == 16
    told = json.loads((whole.root / "segments" / segment.id / "segment.json").read_text())
    assert told["recipe"]["prompt"] == "a cat" and told["made"]["tokens"] > 0
    assert (whole.root / "segments" / segment.id / "preview.png").exists()


@torch.no_grad()
def test_memory_segment_by_segment_is_the_memory_of_the_whole(whole: Take) -> None:
    model, latents = whole.model_of(), whole.latents()
    at_once = model.encoder(History(latents=latents, lr=lr_of(whole))).joined()
    by_segment = whole.memory().joined()
    assert at_once is not None and by_segment is not None
    scale = at_once.tokens.abs().max()
    assert torch.allclose(at_once.tokens, by_segment.tokens, atol=1e-5 * float(scale))
    assert torch.equal(at_once.positions, by_segment.positions)


def test_all_but_latents_is_made_again_bit_for_bit(whole: Take, tmp_path: Path) -> None:
    other = copy(whole, tmp_path / "other")
    shutil.rmtree(other.root / "cache")
    (other.root / "take.mp4").unlink()
    assert kinds(other.run()) == ["pixels", "pixels", "done"]
    same(whole, other)


@pytest.mark.parametrize("lost", ["memory.safetensors", "lr.safetensors", "clip.mp4"])
def test_what_is_damaged_of_one_segment_is_made_again(
    lost: str, whole: Take, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The streams are begun in the middle, and give the same."""
    other = copy(whole, tmp_path / "other")
    path = other.root / "cache" / other.segment(2).id / lost
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    shutil.rmtree(other.root / "cache" / other.segment(1).id, ignore_errors=True)
    other.memory()
    assert path.read_bytes() == before
    assert f"{lost} is damaged" in caplog.text


@pytest.mark.slow
def test_stopped_at_every_event_and_gone_on_it_is_the_same(
    whole: Take, run: Path, tmp_path: Path
) -> None:
    take, stops = begun(tmp_path / "take", run), 0
    while True:
        events = take.run(list(TWO))
        seen = []
        for event in events:
            seen.append(event.kind)
            if event.kind == "step" or (event.kind == "segment" and stops % 2):
                break
        events.close()
        stops += 1
        take = opened(take.root)
        if seen[-1] == "done" or stops == 2:
            break
    assert done(take.run(list(TWO)))["segments"] == 2
    same(whole, take)


@pytest.mark.slow
def test_a_segment_that_was_made_before_a_crash_is_adopted(whole: Take, tmp_path: Path) -> None:
    other = copy(whole, tmp_path / "other")
    order = other.order
    other.folder.write_order(order.with_id(2, None))  # renamed into place, not named yet
    made = [e for e in other.run() if e.kind == "segment"]
    assert [e.to_json()["adopted"] for e in made] == [True]
    assert other.order.entries == order.entries


@pytest.mark.slow
def test_a_storyboard_given_again_goes_on(whole: Take, tmp_path: Path) -> None:
    other = copy(whole, tmp_path / "other")
    ids = [entry.id for entry in other.order.entries]
    assert kinds(other.run(list(TWO))) == ["done"]
    longer = [*TWO, Section(prompt="a bird", seconds=1.0)]
    assert done(other.run(longer))["segments"] == 3
    assert [entry.id for entry in other.order.entries][:2] == ids
    changed = [TWO[0], Section(prompt="a fox", seconds=1.5), longer[2]]
    with pytest.raises(UserError, match=r"--yes remakes segments 2-3, or another --out"):
        list(other.run(changed))
    with pytest.raises(UserError, match="--yes drops segments 2-3"):
        list(other.run([TWO[0]]))
    assert done(other.run(changed, replace=True))["segments"] == 3
    assert [e.prompt for e in other.order.entries] == ["a dog", "a fox", "a bird"]
    assert other.order.entries[0].id == ids[0]


@pytest.mark.slow
def test_sections_one_by_one_are_asked_for_late(run: Path, tmp_path: Path) -> None:
    take, asked = begun(tmp_path / "take", run), []

    def story():  # type: ignore[no-untyped-def]
        for number in range(3):
            asked.append(len(take.order.entries))
            yield Section(prompt=f"section {number}", seconds=0.6)

    segments = take.make(story())
    next(segments)
    assert asked == [0]
    segments.close()
    assert take.order.made == 1
    # the same section again, after it was stopped, is not a second one
    assert done(take.run(iter([Section(prompt="section 0", seconds=0.6)])))["segments"] == 1
    assert done(take.run(iter([Section(prompt="section 0", seconds=0.6)])))["segments"] == 2


@pytest.mark.slow
def test_an_open_section_goes_on_until_it_is_stopped(run: Path, tmp_path: Path) -> None:
    take = begun(tmp_path / "take", run)
    assert done(take.run([Section(prompt="on and on")], segments=2))["segments"] == 2
    assert done(take.run(segments=1))["segments"] == 3
    entries = take.order.entries
    assert [e.seed for e in entries] == [4, 5, 6] and {e.section for e in entries} == {0}
    assert kinds(take.run([Section(prompt="on and on")], segments=0)) == ["done"]


@pytest.mark.slow
def test_where_nothing_is_to_be_made_no_model_is_loaded(
    whole: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = copy(whole, tmp_path / "take")

    def load(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(setup_file, "load_model", load)
    assert done(take.run())["segments"] == 2
    take.drop_after(1)
    assert done(take.run())["frames"] == 17


@pytest.mark.slow
def test_redo_undo_and_drop(whole: Take, run: Path, tmp_path: Path) -> None:
    take = copy(whole, tmp_path / "take")
    first = [entry.id for entry in take.order.entries]
    order = take.redo(1, prompt="a wolf", seed=77)
    assert [e.id for e in order.entries] == [None, None]
    assert [(e.prompt, e.seed) for e in order.entries] == [("a wolf", 77), ("a cat", 5)]
    assert done(take.run(segments=1))["to_make"] == 1
    assert done(take.run())["to_make"] == 0
    again = [entry.id for entry in take.order.entries]
    assert not set(again) & set(first)
    assert [e.id for e in take.undo().entries] == first  # nothing that was made is lost
    list(take.run())
    same(whole, take)
    take.redo(2, keep_seed=True)  # nothing is changed: what is there is found
    assert [e.to_json()["adopted"] for e in take.run() if e.kind == "segment"] == [True]
    assert take.drop_after(1).entries[0].id == first[0]
    assert done(take.run())["frames"] == 17
    assert count_frames(take.root / "take.mp4") == 17
    assert [e.id for e in take.undo().entries] == first
    gone = take.tidy()
    assert {p.name for p in gone if p.parent.name == "segments"} == set(again)
    for _ in range(8):
        try:
            take.undo()
        except UserError as error:
            assert "nothing to undo" in str(error)
            break
    with pytest.raises(UserError, match="segments 1 to"):
        whole.segment(9)


@pytest.mark.slow
def test_a_branch_is_a_take_of_its_own(whole: Take, tmp_path: Path) -> None:
    branch = whole.branch(tmp_path / "branch", at=1)
    story = iter([Section(prompt="a fish", seconds=1.0)])
    assert done(branch.run(story))["segments"] == 2
    assert branch.order.entries[0].id == whole.order.entries[0].id
    assert len(whole.order.entries) == 2
    assert torch.equal(branch.latents()[:, :, :5], whole.latents()[:, :, :5])
    with pytest.raises(UserError, match="something is there already"):
        whole.branch(tmp_path / "branch")
    with pytest.raises(UserError, match="--at 5"):
        whole.branch(tmp_path / "none", at=5)


def test_a_video_goes_on(run: Path, tmp_path: Path) -> None:
    video = clip(tmp_path / "mine.mp4", seconds=4.5)
    take = begun(tmp_path / "take", run)
    line = take.begin(video)
    assert "33 frames at 8 fps (4.12 s), 3 frames at its beginning left out" in line
    told = done(take.run([TWO[1]]))
    assert told["frames"] == 33 + 16 and told["delivered"] == 2.0
    assert count_frames(take.root / "new.mp4") == 16
    # the original frames come first, as they were read
    shown = read_frames(take.root / "take.mp4", fps=8).frames[:33].astype(int)
    source = read_frames(video, fps=8, size=(32, 64)).frames[3:].astype(int)
    assert np.abs(shown - source).mean() < 3
    # LR latents of the source are those of its own pixels, those behind it of what is decoded
    before = take.memory()
    video.unlink()  # it is not needed any more
    shutil.rmtree(take.root / "cache")
    again = opened(take.root).memory()
    a, b = before.joined(), again.joined()
    assert a is not None and b is not None and torch.equal(a.tokens, b.tokens)
    with pytest.raises(UserError, match="another beginning needs another take"):
        take.begin(clip(tmp_path / "other.mp4", seed=6))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec"), [("mine.mp4", "aac"), ("mine.mkv", "pcm_s16le")])
def test_the_sound_of_a_source_goes_along(run: Path, tmp_path: Path, name: str, codec: str) -> None:
    """It keeps its time: what is left out at the beginning is, and it ends with the source."""
    source = with_sound(tmp_path / name, codec, seconds=4.4)
    take = begun(tmp_path / "take", run)
    line = take.begin(source)
    assert f"its sound ({codec}) goes along" in line
    list(take.run([Section(prompt="x", seconds=1.0)]))
    found = read_source(take.folder)
    assert found is not None and found.skip == 2
    source.unlink()
    tone = heard(take.root / "take.mp4")
    assert tone is not None
    left_out, end = found.skip / 8, (found.skip + found.frames) / 8
    assert abs(tone[0] - (0.5 - left_out)) < 0.1 and abs(tone[1] - (4.4 - left_out)) < 0.15
    assert tone[1] < end
    assert heard(take.root / "new.mp4") is None
    assert count_frames(take.root / "take.mp4") == take.frames_of(0, take.order.latents)
    first = (take.root / "take.mp4").read_bytes()
    (take.root / "take.mp4").unlink()
    take.deliver()
    assert (take.root / "take.mp4").read_bytes() == first


@pytest.mark.slow
def test_a_source_can_be_delivered_recoded(run: Path, tmp_path: Path) -> None:
    """All frames are the codec's then; the choice is kept, and can be taken back."""
    take = begun(tmp_path / "take", run)
    take.begin(clip(tmp_path / "mine.mp4"))
    list(take.run([Section(prompt="x", seconds=1.0)]))
    kept = (take.root / "take.mp4").read_bytes()
    take.deliver_source("recode")
    list(opened(take.root).run())
    shown = np.stack(list(every_frame(take.root / "take.mp4"))).astype(np.float32)
    coded = np.stack(list(take.frames())).astype(np.float32)
    own = np.stack(list(every_frame(tmp_path / "mine.mp4"))).astype(np.float32)
    assert shown.shape == coded.shape and np.abs(shown - coded).mean() < 3
    assert (take.root / "take.mp4").read_bytes() != kept and len(own) < len(shown)
    assert take.report().facts.segments[1].psnr is None
    opened(take.root).deliver_source("keep")
    list(opened(take.root).run())
    assert (take.root / "take.mp4").read_bytes() == kept


@pytest.mark.slow
def test_a_source_is_encoded_as_in_training(run: Path, tmp_path: Path) -> None:
    video = clip(tmp_path / "mine.mp4")
    take = begun(tmp_path / "take", run)
    take.begin(video)
    list(take.run(segments=0))
    frames = torch.from_numpy(read_frames(video, fps=8, size=(32, 64)).frames)
    tensor = from_bytes(frames.permute(3, 0, 1, 2)[None])
    codec = build(take.experiment.backbone.codec)
    latents, _ = codec.encode(tensor)
    assert torch.equal(take.latents(), latents)
    lowres = MultiRateEncoder.of(codec, compressor_needs(take.experiment).rates)
    lowres.push(tensor)
    model = take.model_of()
    with torch.no_grad():
        at_once = model.encoder(History(latents=latents, lr=lowres.joined())).joined()
    by_take = take.memory().joined()
    assert at_once is not None and by_take is not None
    assert torch.allclose(at_once.tokens, by_take.tokens, atol=1e-4)


@pytest.mark.slow
def test_a_picture_is_one_latent(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "mine.png"
    Image.fromarray(np.full((40, 72, 3), 90, np.uint8)).save(picture)
    take = begun(tmp_path / "take", run)
    take.begin(image=picture)
    assert done(take.run([TWO[1]]))["frames"] == 17
    assert [entry.latents for entry in take.order.entries] == [1, 4]


@pytest.mark.slow
def test_a_source_of_many_segments_is_read_once_for_its_clips(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_file, "SECONDS", 1.0)
    take = begun(tmp_path / "take", run)
    take.begin(clip(tmp_path / "mine.mp4"))
    list(take.run(segments=0))
    assert len(take.order.entries) > 2
    before = [take.past(memory=False).clip(i).read_bytes() for i in range(take.order.made)]
    shutil.rmtree(take.root / "cache")
    opens: list[Path] = []
    read = source_file.iter_frames

    def counted(path: Path, **options: object) -> object:
        opens.append(path)
        return read(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(source_file, "iter_frames", counted)
    list(take.run(segments=0))
    assert len(opens) == 1
    clips = [take.past(memory=False).clip(i) for i in range(take.order.made)]
    assert [path.read_bytes() for path in clips] == before
    # one clip alone is the same
    clips[1].unlink()
    take.deliver()
    assert clips[1].read_bytes() == before[1]


@pytest.mark.slow
def test_memory_steps_once_over_each_segment_of_video_and_take(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never over less, which is why no CUDA graph of a step is kept (kernels/README.md)."""
    monkeypatch.setattr(source_file, "SECONDS", 1.0)
    steps, step = [], MemoryEncoder.step

    def counted(
        encoder: MemoryEncoder, state: list[State] | None, chunk: History
    ) -> tuple[list[State], Memory]:
        steps.append(chunk.size.time)
        return step(encoder, state, chunk)

    monkeypatch.setattr(MemoryEncoder, "step", counted)
    take = begun(tmp_path / "take", run)
    take.begin(clip(tmp_path / "mine.mp4"))
    list(take.run(list(TWO)))
    assert len(steps) > 4
    assert steps == [entry.latents for entry in take.order.entries]


@pytest.mark.slow
def test_a_cut_and_no_memory(run: Path, tmp_path: Path) -> None:
    take = begun(tmp_path / "take", run)
    sections = [
        TWO[0],
        Section(prompt="a cat", seconds=1.0, memory="none"),
        Section(prompt="a cow", seconds=1.0, cut=True),
        Section(prompt="a hen", seconds=1.0, memory="since_cut"),
    ]
    made = [e.to_json() for e in take.run(sections) if e.kind == "segment"]
    tokens = [event["tokens"] for event in made]
    assert tokens[1] == 0 < tokens[3] < tokens[2]


@pytest.mark.slow
def test_a_window_ends_at_a_cut(tmp_path: Path) -> None:
    base = experiment()
    spec = evolve(base, compressors=(*base.compressors, Window(latents=2)))
    take = begun(tmp_path / "take", runs(tmp_path, spec))
    sections = [Section(prompt=str(i), seconds=1.0, cut=i == 2) for i in range(4)]
    list(take.run(sections))
    parts = [segment.stored.made["parts"] for segment in take.segments()]
    assert [p.get("1.window-2", 0) > 0 for p in parts] == [False, True, False, True]
    assert all(p["0.conv-2x2x2"] > 0 for p in parts[1:])


def test_previews_are_the_colours_of_latents(run: Path, tmp_path: Path) -> None:
    take = begun(tmp_path / "take", run)
    for event in take.run([TWO[0]]):
        if event.kind == "preview":
            assert event.rgb().shape == (5, 3, 4, 8)  # type: ignore[attr-defined]
            assert "make" not in event.to_json()
            break


@pytest.mark.slow
def test_the_budget_drops_the_oldest(run: Path, tmp_path: Path) -> None:
    sets = ["generate.budget.max_history_seconds=1.2"]
    take = begun(tmp_path / "take", run, sets=sets)
    sections = [Section(prompt=str(i), seconds=1.0) for i in range(5)]
    made = [e.to_json()["tokens"] for e in take.run(sections) if e.kind == "segment"]
    assert made[-1] == made[-2] and take.segment(5).stored.made["dropped"] > 0


@pytest.mark.slow
def test_a_cache_that_grows_gives_what_a_fresh_one_gives(tmp_path: Path) -> None:
    """With `isolated-causal` attention only what is new is remembered; going on replays it."""
    base = experiment()
    backbone = evolve(base.backbone, attention="isolated-causal", memory_time=0.0, cache_block=2)
    run = runs(tmp_path, evolve(base, backbone=backbone))
    sections = [Section(prompt=str(i), seconds=1.0) for i in range(4)]
    one, other = begun(tmp_path / "one", run), begun(tmp_path / "other", run)
    list(one.run(sections))
    for _ in range(4):
        list(opened(other.root).run(sections, segments=1))
    same(one, other)
    for take in (one, other):
        take.redo(2, seed=9)
    list(one.run())  # the same object, which has remembered what is now another past
    list(opened(other.root).run())
    same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full", "isolated-causal"])
def test_what_the_budget_dropped_is_held_no_longer(tmp_path: Path, attention: str) -> None:
    """What a segment reads of memory taken over piece by piece is what it reads of the whole."""
    base = experiment()
    if attention != "full":
        backbone = evolve(base.backbone, attention=attention, memory_time=0.0, cache_block=2)
        base = evolve(base, backbone=backbone)
    budget = MemoryBudget(max_history_seconds=2.0, keep_first_seconds=0.5)
    base = evolve(base, generate=evolve(base.generate, budget=budget))
    take = begun(tmp_path / "take", runs(tmp_path, base))
    take.take_plan(take.plan(Storyboard(sections=[Section(prompt="a", seconds=1.0)] * 6)))
    worker = work_file.Worker(take, limit=None)
    for event in worker.all_to_be_made():
        if event.kind != "segment":
            continue
        held = worker.remembering
        assert held is not None and held.taken == event.segment - 1
        assert all(one is None for one in worker.past.settled[: held.taken])
        if event.segment > 1:
            past = take.past(until=event.segment - 1)
            past.follow()
            whole = drop_oldest(whole_memory(past.memory()[0], Memory()), held.limit)
            kept, own = held.kept.joined(), whole.joined()
            assert kept is not None and own is not None
            assert torch.equal(kept.tokens, own.tokens)
            assert torch.equal(kept.positions, own.positions)


@pytest.mark.slow
def test_a_model_in_memory_makes_a_take(run: Path, whole: Take, tmp_path: Path) -> None:
    take = Take.create(tmp_path / "take", model=whole.model_of(), seed=3, device="cpu")
    assert done(take.run([TWO[0]]))["segments"] == 1
    with pytest.raises(UserError, match="made with a model in memory"):
        opened(take.root)


# What goes wrong


@pytest.mark.slow
def test_an_edited_segment_is_refused_with_the_ways_out(whole: Take, tmp_path: Path) -> None:
    take = copy(whole, tmp_path / "take")
    path = take.root / "segments" / take.segment(2).id / "latents.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    match = r"is not what was written \(sha256\): put it back, --redo 2 or --drop-after 1"
    with pytest.raises(UserError, match=match):
        list(opened(take.root).run())
    path.write_bytes(data[:200])
    with pytest.raises(UserError, match="put it back, --redo 2 or --drop-after 1"):
        list(opened(take.root).run())
    shutil.rmtree(path.parent)
    with pytest.raises(UserError, match=r"which is gone.*--redo 2, or --drop-after 1"):
        list(opened(take.root).run())
    take.redo(2, seed=9)
    assert done(opened(take.root).run())["segments"] == 2


def test_a_newer_take_is_refused(whole: Take, tmp_path: Path) -> None:
    take = copy(whole, tmp_path / "take")
    for name in ("order.json", "spec.json"):
        data = json.loads((take.root / name).read_text())
        (take.root / name).write_text(json.dumps(data | {"format": 2}))
        with pytest.raises(UserError, match="has take format 2, this longtake reads 1: update"):
            opened(take.root).order  # noqa: B018


def test_two_writers_are_refused(whole: Take, tmp_path: Path) -> None:
    take = copy(whole, tmp_path / "take")
    with claimed_folder(take.root), pytest.raises(UserError, match="in use by this very process"):
        list(take.run())
    events = take.run()
    next(events)
    with pytest.raises(UserError, match="in use"):
        opened(take.root).undo()


def test_another_encoder_is_refused(whole: Take, run: Path, tmp_path: Path) -> None:
    base = experiment()
    (conv,) = base.compressors
    make_run(tmp_path / "other", evolve(base, compressors=(evolve(conv, channels=(6, 6)),)))
    take = copy(whole, tmp_path / "take")
    with pytest.raises(UserError, match="memory would not fit; begin a new take"):
        opened(take.root, run=tmp_path / "other")
    assert opened(take.root, run=run).order.made == 2


def test_latents_that_are_no_numbers_are_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = begun(tmp_path / "take", run)
    for weight in take.model_of().backbone.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(LongtakeError, match=r"segment 1 came out as not a number at step 1 of 2"):
        list(take.run([TWO[0]]))
    assert not list((take.root / "segments").glob("*"))


@pytest.mark.slow
def test_short_memory_says_what_is_safe(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = begun(tmp_path / "take", run)
    list(take.run([TWO[0]]))

    def short(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(take.model_of().backbone), "velocity", short)
        with pytest.raises(LongtakeError, match=r"at segment 2, step 1 \(.* 1 segment safe"):
            list(take.run(list(TWO)))
    with monkeypatch.context() as patch:
        patch.setattr(past_file.Decoding, "frames", short)
        with pytest.raises(LongtakeError, match="segment 2 is sampled and safe; decoding ran out"):
            list(take.run())
    assert take.order.made == 2
    assert kinds(take.run()) == ["pixels", "done"]


def test_a_full_disk_is_foreseen_and_met(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = begun(tmp_path / "take", run)
    with monkeypatch.context() as patch:
        patch.setattr(
            work_file.shutil, "disk_usage", lambda _: type("U", (), {"free": 4e8 - 3.9e8})
        )
        with pytest.raises(LongtakeError, match=r"GB free, segment 1 needs .*: 0 segments safe"):
            list(take.run([TWO[0]]))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("longtake.core.take.folder.write_tensors", full)
        with pytest.raises(LongtakeError, match=r"no space left writing .*0 segments safe"):
            list(take.run())
    assert not list((take.root / "segments").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("longtake.core.video.write._copy_packets", full)
        match = r"no space left writing .*take.mp4: 1 segment safe"
        with pytest.raises(LongtakeError, match=match):
            list(take.run())
    assert done(take.run())["segments"] == 1


@pytest.mark.slow
def test_a_source_that_is_no_use(run: Path, tmp_path: Path) -> None:
    take = begun(tmp_path / "take", run)
    with pytest.raises(UserError, match="3 frames at 8 fps: 5 or more"):
        take.begin(clip(tmp_path / "short.mp4", seconds=0.4))
    video = clip(tmp_path / "mine.mp4")
    take.begin(video)
    clip(video, seed=8)
    with pytest.raises(UserError, match=r"changed since the take began, or is gone \(sha256\)"):
        list(take.run())


def test_delivered_is_snapped(whole: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = copy(whole, tmp_path / "take")
    (take.root / "take.mp4").unlink()
    monkeypatch.setattr(delivery_file, "join_videos", lambda *_: 30)
    with pytest.raises(LongtakeError, match="has 30 frames, its latents have 33"):
        take.deliver()


@pytest.mark.slow
def test_video_and_report_are_written_on_the_way(run: Path, tmp_path: Path) -> None:
    take = begun(tmp_path / "take", run, sets=["generate.deliver_every=1"])
    seen: list[tuple[int | None, int]] = []
    for event in take.run(list(TWO)):
        if event.kind == "step":
            path = take.root / "report.json"
            joins = len(json.loads(path.read_text())["joins"]) if path.exists() else -1
            seen.append((count_frames(take.root / "take.mp4"), joins))
    assert seen == [(None, -1), (None, -1), (17, 0), (17, 0)]


def test_sections_that_cannot_be(run: Path, tmp_path: Path) -> None:
    take = begun(tmp_path / "take", run)
    with pytest.raises(UserError, match="less than one step"):
        list(take.run([Section(prompt="x", seconds=0.05)]))
    board = Storyboard(sections=TWO, segment_seconds=12)
    with pytest.raises(UserError, match="this run makes at most .* leave it out"):
        list(take.run(board))
    with pytest.raises(UserError, match="other sizes"):
        begun(tmp_path / "sized", run, size="64x33")
    with pytest.raises(UserError, match="is a take already"):
        begun(take.root, run)
