"""Which goals the measured encoder meets; each has a bar that some device and form can judge.

Source: kernels.md §8 (G1 to G12); the others of them are judged elsewhere, and named so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

Figures = Mapping[str, Any]
OURS = "ours"
FLAT = 1.15  # an append behind the longest history over one behind the shortest
LARGE_GPUS = ("H100", "H200")
ELSEWHERE = (
    ("G3", "every conv ≥ 0.9× the library's speed", "judged by the tile sweep of the fused convs"),
    ("G5", "a step in 12 GB", "judged by `memory-cap` of the GPU day"),
    ("G6", "the price of memory", "judged by `backbones` of the GPU day"),
    ("G7", "the memory update of a chunk", "judged by `backbones` of the GPU day"),
    ("G9", "gates without a GPU", "judged by the tests of kernels/"),
    ("G10", "fp16 accumulation", "judged by the tests of kernels/"),
    ("G12", "the stem that reads bytes", "there is no such kernel"),
)


@frozen(kw_only=True)
class Goal:
    """One goal, and what was measured.

    Attributes:
        goal: its name.
        encoder: that it was judged on; "": none.
        asked: what it asks for.
        measured: the figure that is held against it; None: there is none here.
        met: whether it is reached; None: nothing here can judge.
        why: what kept it from being judged; "": nothing.
    """

    goal: str
    encoder: str
    asked: str
    measured: float | None
    met: bool | None
    why: str = ""


def judge(cases: Mapping[str, Figures], machine: Figures, form: str) -> list[Goal]:
    """Return every goal, judged where device and form can judge it.

    Args:
        cases: figures of encoders by name, as `measure_encoder` gives them.
        machine: that they were measured on.
        form: `tiny` or `full`; sizes of the tiny form say nothing of time.
    """
    found = [goal for name, case in cases.items() for goal in _Judge(name, case, machine, form)]
    elsewhere = [
        Goal(goal=goal, encoder="", asked=asked, measured=None, met=None, why=where)
        for goal, asked, where in ELSEWHERE
    ]
    return [*found, *elsewhere]


def cost(way: Figures) -> float:
    """Return the seconds of a way: of its threads on a CPU, which other work lengthens less."""
    return float(way.get("cpu_seconds", way["seconds"]))


class _Judge:
    """Judges one encoder."""

    def __init__(self, name: str, case: Figures, machine: Figures, form: str) -> None:
        self.name, self.case = name, case
        self.tiny = "the tiny form: its sizes say nothing of time" if form == "tiny" else ""
        self.no_cuda = self.tiny or ("" if machine["device"] == "cuda" else "it asks for a GPU")
        large = any(gpu in str(machine["name"]) for gpu in LARGE_GPUS)
        self.no_large = self.no_cuda or ("" if large else "it asks for an H100 or H200")
        cpu = machine["device"] == "cpu"
        self.no_cpu = self.tiny or ("" if cpu else "it asks for a CPU")

    def __iter__(self) -> Iterator[Goal]:
        yield from self._append()
        yield from self._encode()
        yield from self._memory()
        yield from self._beside_a_patchifier()
        yield from self._cpu()

    def _append(self) -> Iterator[Goal]:
        append, exact = self.case["append"], self.case["streaming_error"]
        yield self._most("G1", "streamed as encoded whole, float64 ≤ 1e-12", exact, 1e-12, "")
        for seconds, least in (("20 s", 20.0), ("60 s", 60.0)):
            ratio = append.get(seconds, {}).get("encode_over_append")
            asked = f"a second behind {seconds} ≥ {least:g}× faster than to encode all"
            yield self._least("G1", asked, ratio, least, self.tiny)
        first, *_, last = append.values()
        # of the same operations, each beside the device's limits of its own moment
        flat = last["over_floor"] / first["over_floor"]
        yield self._most("G1", f"an append flat in history, ≤ {FLAT}×", flat, FLAT, self.tiny)
        graph = append.get("20 s", {}).get("ways", {}).get("ours, CUDA graph", {}).get("seconds")
        took = None if graph is None else 1e3 * graph
        yield self._most("G1", "a second appended in ≤ 0.15 ms", took, 0.15, self.no_large)

    def _encode(self) -> Iterator[Goal]:
        ways = self._first["ways"]
        over = ways[OURS]["over_floor"]
        yield self._most("G2", "20 s encoded in ≤ 2.0× the floor", over, 2.0, self.no_large)
        for peer, least in (
            ("eager channels_last_3d", 1.3),
            ("eager NCDHW", 1.8),
            ("torch.compile max-autotune", 1.05),
        ):
            way = ways.get(peer, {})
            ratio = cost(way) / cost(ways[OURS]) if "seconds" in way else None
            asked = f"≥ {least}× faster than {peer}"
            yield self._least("G2", asked, ratio, least, self.no_cuda)
        eager, own = ways.get("eager NCDHW", {}).get("peak_mib"), ways[OURS].get("peak_mib")
        share = own / eager if own and eager else None
        yield self._most("G2", "peak memory ≤ 0.5× eager's", share, 0.5, self.no_cuda)

    def _memory(self) -> Iterator[Goal]:
        first = self._first
        bound = first["input_mib"] + 1.3 * first["two_largest_activations_mib"]
        own = first["ways"][OURS].get("peak_mib")
        asked = "peak ≤ input + 1.3 × its two largest activations"
        share = None if own is None else own / bound
        yield self._most("G4", asked, share, 1.0, self.no_cuda)
        shortest, *_, longest = self.case["append"].values()
        grown = longest["state_mib"] / shortest["state_mib"]
        yield self._most("G4", "state constant while streaming", grown, 1.0, "")
        peaks = [one["peak_mib"] for one in (shortest, longest)]
        ratio = peaks[1] / peaks[0] if all(peaks) else None
        yield self._most("G4", "peak constant while streaming, ≤ 1.01×", ratio, 1.01, self.no_cuda)

    def _beside_a_patchifier(self) -> Iterator[Goal]:
        others, append = self.case["others"], next(iter(self.case["append"].values()))
        whole = others.get("large patchifier of all history", {})
        ratio = cost(append) / cost(whole) if "seconds" in whole else None
        asked = "an append costs ≤ the large patchifier over all history"
        yield self._most("G8", asked, ratio, 1.0, self.tiny)
        product = others.get("its GEMM alone", {})
        own = self._first["ways"][OURS]
        ratio = cost(own) / cost(product) if "seconds" in product else None
        yield self._most("G8", "an encode costs ≤ 12× that GEMM", ratio, 12.0, self.tiny)

    def _cpu(self) -> Iterator[Goal]:
        encode = self._first["ways"][OURS]["over_floor"]
        append = next(iter(self.case["append"].values()))["over_floor"]
        yield self._most("G11", "20 s encoded in ≤ 1.5× the floor", encode, 1.5, self.no_cpu)
        yield self._most("G11", "a second appended in ≤ 1.5× the floor", append, 1.5, self.no_cpu)

    @property
    def _first(self) -> Figures:
        first: Figures = next(iter(self.case["encode"].values()))
        return first

    def _most(self, goal: str, asked: str, measured: float | None, bar: float, why: str) -> Goal:
        return self._goal(goal, asked, measured, why, measured is not None and measured <= bar)

    def _least(self, goal: str, asked: str, measured: float | None, bar: float, why: str) -> Goal:
        return self._goal(goal, asked, measured, why, measured is not None and measured >= bar)

    def _goal(self, goal: str, asked: str, measured: float | None, why: str, met: bool) -> Goal:
        why = why or ("" if measured is not None else "it was not measured")
        return Goal(
            goal=goal,
            encoder=self.name,
            asked=asked,
            measured=measured,
            met=None if why else met,
            why=why,
        )
