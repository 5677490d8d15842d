"""`longtake bench kernels`: the encoder beside its plain form and its peers, and the goals."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from longtake.core.errors import UserError
from longtake.core.graphed import GraphedStep
from longtake.core.kernel_bench import peers
from longtake.core.kernel_bench.bench import (
    EncoderBench,
    Form,
    chosen_setups,
    goal_lines,
    streaming_error,
)
from longtake.core.kernel_bench.goals import judge
from longtake.core.kernel_bench.peers import CannotRun, Peer, PlainEncoder
from longtake.core.kernel_bench.setups import MEASURED, EncoderSetup, encoder_setups
from longtake.core.tools.timing import count_flop, floor_seconds, times_floor

from ..program import run

CPU = torch.device("cpu")
SETUPS = encoder_setups(tiny=True)


def bench(setup: EncoderSetup = SETUPS[1]) -> EncoderBench:
    return EncoderBench(setup, Form.of(CPU, full=False), CPU, torch.float32)


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_the_plain_form_is_the_encoder(setup: EncoderSetup) -> None:
    odd = attrs.evolve(setup, height=72, width=88)  # 9×11 latents: cells that are cut at both edges
    encoder, history = odd.encoder(CPU, torch.float64), odd.history(3.0, CPU, torch.float64)
    plain = PlainEncoder.of(odd, CPU, torch.float64)
    with torch.no_grad():
        tokens = encoder(history).parts[0].tokens
        torch.testing.assert_close(plain(history.latents, history.lr[odd.rate]), tokens)
    assert tokens.abs().min() > 0, "weights that begin at zero would hide the convs"


def test_streaming_is_exact() -> None:
    assert all(streaming_error(setup, CPU) <= 1e-12 for setup in SETUPS)


@torch.no_grad()
def test_peers_that_run_are_measured_and_others_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "traced", peers.autotuned)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    ways = bench().encode(4.0)["ways"]
    assert ways.pop("torch.compile max-autotune") == {
        "skipped": "torch.compile needs a C++ compiler on a CPU, and there is none"
    }
    assert list(ways) == ["ours", "eager NCDHW", "eager channels_last_3d"]
    for way in ways.values():
        assert way["error"] < 1e-6 and len(way["passes"]) == 2
        for one in way["passes"]:
            assert one["over_floor"] > 0 and one["cpu_seconds"] > 0


@torch.no_grad()
def test_a_peer_that_fails_ends_nothing() -> None:
    def fails(*_: object) -> Any:
        raise RuntimeError("no engine\nmore words")

    def cannot(*_: object) -> Any:
        raise CannotRun("no card")

    found = [Peer(name="a", make=fails), Peer(name="b", make=cannot)]
    calls, left = bench()._made(found, SETUPS[1].history(2.0, CPU, torch.float32))
    assert calls == {}
    assert left == {"a": {"skipped": "RuntimeError: no engine"}, "b": {"skipped": "no card"}}


@torch.no_grad()
def test_an_append_costs_the_same_behind_any_history() -> None:
    one, other = bench().append(4.0), bench().append(8.0)
    for key in ("gflop", "least_mib", "state_mib", "tokens"):
        assert one[key] == other[key] > 0
    assert other["state_grows_mib"] == 0


@torch.no_grad()
def test_a_step_is_measured_beside_its_graph_and_what_is_not_here_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways = bench().append(4.0)["ways"]
    no_graph = {"skipped": "there is no CUDA graph: the device is cpu"}
    no_kernels = {"skipped": "kernels are for GPUs, ours is the reference here"}
    assert ways == {
        "ours, CUDA graph": no_graph,
        "ours, without kernels": no_kernels,
        "ours, without kernels, CUDA graph": no_kernels,
    }

    def rerun(work: Any) -> Any:
        made = work()
        return made, lambda: [made[name].copy_(x) for name, x in work().items()]

    monkeypatch.setattr(peers, "cannot_record", lambda device: "")
    monkeypatch.setattr(peers, "GraphedStep", functools.partial(GraphedStep, record=rerun))
    way = bench().append(4.0)["ways"]["ours, CUDA graph"]
    assert way["over_floor"] > 0 and len(way["passes"]) == 2


@torch.no_grad()
def test_attention_of_a_second_is_measured_with_its_window_full() -> None:
    found = bench().attention()
    batch, frames, cells, width = found["cells"]
    assert (batch, frames, width) == (1, SETUPS[1].second // 2, 8) and cells > 1
    inner, rows = 2 * 4, frames * cells
    assert round(found["gflop"] * 1e9) == rows * inner * (8 * width + 4 * 4 * cells)
    assert found["ways"]["ours"]["over_floor"] > 0
    assert "skipped" in found["ways"]["ours, without kernels"]


@pytest.mark.slow
@torch.no_grad()
def test_other_memories_are_those_of_diffusers_at_this_size() -> None:
    from diffusers.models.transformers import transformer_hunyuan_video_framepack as released

    others = bench().others(4.0)
    assert all("skipped" not in way and way["gflop"] > 0 for way in others.values())
    history, shapes = SETUPS[1].history(4.0, CPU, torch.float32), SETUPS[1].geometry
    embed = released.HunyuanVideoHistoryPatchEmbed(shapes.channels, shapes.width)
    twice = count_flop(lambda: embed(history.latents[:, :, -1:]))
    assert others["FramePack's history patches"]["gflop"] > twice / 1e9


def test_floors_count_what_cpus_do_in_attention() -> None:
    q, k = torch.randn(1, 2, 8, 4), torch.randn(1, 2, 16, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flop(lambda: attend(q, k, k)) == 2 * (2 * 2 * 8 * 16 * 4)
    limits = {"flop_per_second": 100.0, "copy_bytes_per_second": 10.0}
    assert floor_seconds(1000, 10, limits) == 10 and floor_seconds(100, 1000, limits) == 100
    waited = {"seconds": 40.0, "cpu_seconds": 20.0}
    assert times_floor(waited, 1000, 10, limits) == 4.0
    assert times_floor(waited, 1000, 10, {**limits, "cpu": limits}) == 2.0


def figures(**changes: Any) -> dict[str, Any]:
    way = {"seconds": 1.0, "over_floor": 1.4, "peak_mib": 100.0}
    peer = {"seconds": 1.5, "over_floor": 2.0, "peak_mib": 150.0}
    whole = {"input_mib": 10.0, "two_largest_activations_mib": 80.0}
    append = {"seconds": 0.02, "over_floor": 1.6, "state_mib": 3.0, "peak_mib": 9.0, "ways": {}}
    return {
        "encode": {"20 s": {**whole, "ways": {"ours": way, "eager channels_last_3d": peer}}},
        "append": {"20 s": {**append, "encode_over_append": 50.0}, "300 s": append},
        "others": {"its GEMM alone": {"seconds": 0.1}},
        "streaming_error": 1e-16,
        **changes,
    }


def test_goals_are_judged_where_something_can() -> None:
    cuda = {"device": "cuda", "name": "NVIDIA H200"}
    found = {g.asked: g for g in judge({"x": figures()}, cuda, "full")}
    assert found["20 s encoded in ≤ 2.0× the floor"].met is True
    assert found["≥ 1.3× faster than eager channels_last_3d"].met is True
    assert found["≥ 1.8× faster than eager NCDHW"].met is None, "it was not measured"
    assert found["a second appended in ≤ 1.5× the floor"].why == "it asks for a CPU"
    cpu = {g.asked: g for g in judge({"x": figures()}, {"device": "cpu", "name": ""}, "full")}
    assert cpu["20 s encoded in ≤ 1.5× the floor"].met is True
    assert cpu["a second appended in ≤ 1.5× the floor"].met is False
    assert cpu["20 s encoded in ≤ 2.0× the floor"].met is None
    tiny = judge({"x": figures(streaming_error=1e-9)}, cuda, "tiny")
    assert [g.asked for g in tiny if g.met is False] == [
        "streamed as encoded whole, float64 ≤ 1e-12"
    ]
    names = {g.goal for g in judge({"x": figures()}, cuda, "full")}
    assert names == {f"G{n}" for n in range(1, 13)}
    assert any(
        line.startswith("not judged: G3 ") for line in goal_lines(list(map(attrs.asdict, tiny)))
    )


def test_encoders_are_chosen_by_name() -> None:
    assert {setup.name for setup in chosen_setups([], full=True)} == set(MEASURED)
    name = "wan21-1.3b 4x4x2"
    assert [setup.name for setup in chosen_setups([name, name], full=True)] == [name]
    with pytest.raises(UserError, match="--encoder wan22-5b 4x4: no such encoder; known: wan22"):
        chosen_setups(["wan22-5b 4x4"], full=True)


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    code, told, said = run("bench", "kernels", "--tiny", "--out", out, "--json")
    assert code == 0, said
    found = json.loads(told)
    assert found == json.loads(out.read_text(encoding="utf-8"))
    assert found["form"] == "tiny" and found["machine"]["versions"]["torch"] == torch.__version__
    assert set(found["encoders"]) == {setup.name for setup in SETUPS}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("bench", "--tiny"), "--tiny goes with `longtake bench kernels`"),
        (("bench", "--encoder", "x"), "--encoder goes with `longtake bench kernels`"),
        (("bench", "kernels", "--data", "store"), "--data goes with `longtake bench EXPERIMENT`"),
        (("bench", "kernels", "--full", "--encoder", "5b"), "--encoder 5b: no such encoder"),
    ],
)
def test_options_of_the_other_bench_are_refused(words: tuple[str, ...], line: str) -> None:
    code, out, said = run(*words)
    assert (code, out) == (2, "") and line in said and len(said.splitlines()) == 1
