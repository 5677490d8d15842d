"""Experiment: everything that a run depends on, as one value (design §4), and the specs in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
from attrs import field, frozen
from attrs.validators import optional

from .interfaces.spec import (
    BackboneSpec,
    CompressorSpec,
    LoRA,
    MaskerSpec,
    MetricSpec,
    RangeCheck,
    RetrieverSpec,
    between,
    doc,
    each,
    ge,
    gt,
    in_,
    instance_of,
    unit,
)
from .sample.spec import MemoryBudget, Sampler
from .values.grid import Rate, shared_period

S = TypeVar("S")


def _check_speed(instance: object, attribute: object, value: float) -> None:
    if not 0.1 <= value <= 10 or f"{value:g}" == "1":  # as clips are called
        raise ValueError(f"a speed is 0.1 to 10, and not 1: not {value}")


_other_speed = RangeCheck(range="0.1 to 10, not 1", check=_check_speed)


def _check_span(instance: object, attribute: object, value: tuple[float, float]) -> None:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"needs two numbers of seconds, 0 < first <= second, not {value}")


def _check_zoom(instance: object, attribute: object, value: tuple[float, float]) -> None:
    if not 1 <= value[0] <= value[1]:
        raise ValueError(f"needs two numbers, 1 <= first <= second, not {value}")


@frozen(kw_only=True)
class Motions:
    """How often the camera of a film moves how: shares of its shots, in any unit."""

    still: float = field(default=1.0, validator=ge(0.0), metadata=doc("it stands still, ≥ 0"))
    pan: float = field(default=3.0, validator=ge(0.0), metadata=doc("it looks elsewhere, ≥ 0"))
    zoom: float = field(default=2.0, validator=ge(0.0), metadata=doc("it zooms in or out, ≥ 0"))
    turn: float = field(default=1.0, validator=ge(0.0), metadata=doc("it turns upright, ≥ 0"))
    mixed: float = field(default=3.0, validator=ge(0.0), metadata=doc("all three at once, ≥ 0"))

    def __attrs_post_init__(self) -> None:
        if not sum(attrs.astuple(self)) > 0:
            raise ValueError("one of the motions needs a share above 0")


@frozen(kw_only=True)
class FilmSpec:
    """How `cache --photos` films photographs with a virtual camera."""

    clips: int = field(default=2, validator=ge(1), metadata=doc("films of each photograph, ≥ 1"))
    seconds: float = field(
        default=20.0, validator=gt(0.0), metadata=doc("length of a film, seconds, > 0")
    )
    photos: int = field(
        default=2,
        validator=ge(1),
        metadata=doc("pictures that a film cuts between, its own photograph among them, ≥ 1"),
    )
    textures: float = field(
        default=0.15,
        validator=unit,
        metadata=doc("share of the further pictures that are a random texture, 0 to 1"),
    )
    texts: float = field(
        default=0.1,
        validator=unit,
        metadata=doc("share of the further pictures that are a page of random text, 0 to 1"),
    )
    shot: tuple[float, float] = field(
        default=(1.5, 5.0),
        validator=_check_span,
        metadata=doc("shortest and longest shot, seconds"),
    )
    cuts: float = field(
        default=0.5,
        validator=unit,
        metadata=doc("share of shots that begin with a cut, 0 to 1; others go on from the last"),
    )
    returns: float = field(
        default=0.4,
        validator=unit,
        metadata=doc("share of shots that come back to an earlier view, 0 to 1"),
    )
    motions: Motions = field(
        factory=Motions,
        validator=instance_of(Motions),
        metadata=doc("how often the camera stands, pans, zooms, turns"),
    )
    zoom: tuple[float, float] = field(
        default=(1.2, 3.5),
        validator=_check_zoom,
        metadata=doc("least and greatest zoom, ≥ 1; never beyond one pixel for one"),
    )
    angle: float = field(
        default=15.0, validator=between(0.0, 90.0), metadata=doc("greatest turn, degrees, 0 to 90")
    )
    aspect: float = field(
        default=16 / 9,
        validator=gt(0.0),
        metadata=doc("width over height of a film, which its bucket comes from, > 0"),
    )
    seed: int = field(
        default=0, validator=between(0, 2**62), metadata=doc("seed of all films, 0 to 2^62")
    )

    def __attrs_post_init__(self) -> None:
        if self.textures + self.texts > 1:
            raise ValueError(
                f"textures {self.textures:g} and texts {self.texts:g} are shares of one whole: "
                "together 1 at most"
            )


@frozen(kw_only=True)
class CacheSpec:
    """How videos become a latent store."""

    area: int = field(
        default=96 * 160,
        validator=ge(64),
        metadata=doc("pixels of a frame: size buckets hold at least this many, ≥ 64"),
    )
    max_aspect: float = field(
        default=3.0, validator=ge(1.0), metadata=doc("longest side over shortest of a bucket, ≥ 1")
    )
    min_seconds: float = field(
        default=4.0, validator=gt(0.0), metadata=doc("shorter videos are refused, seconds, > 0")
    )
    rates: tuple[Rate, ...] = field(
        default=(),
        validator=each(instance_of(Rate)),
        metadata=doc("LR rates to cache beside those that the plugins need"),
    )
    pixels: bool = field(
        default=True,
        validator=instance_of(bool),
        metadata=doc("keep the frames too (uint8): measuring compares with them"),
    )
    mirror: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc("cache every video a second time, mirrored left to right, to train on"),
    )
    reverse: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc("cache every clip once more run backwards, to train on"),
    )
    speeds: tuple[float, ...] = field(
        default=(),
        validator=each(_other_speed),
        metadata=doc(
            "cache every clip once more at each of these speeds, to train on: 2 is twice as fast; "
            "with `mirror` and `reverse` all combinations are cached"
        ),
    )
    film: FilmSpec = field(
        factory=FilmSpec,
        validator=instance_of(FilmSpec),
        metadata=doc("how photographs are filmed (`cache --photos`)"),
    )
    dtype: str = field(
        default="float16",
        validator=in_(("float32", "float16", "bfloat16")),
        metadata=doc("number type of cached latents: float32, float16 or bfloat16"),
    )
    cuts: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc(
            "look for hard cuts, for captions by shot (the extra longtake[cuts]); false keeps "
            "those found before"
        ),
    )
    chunk: int = field(
        default=32, validator=ge(4), metadata=doc("frames decoded at a time, ≥ 4: bounds memory")
    )

    def __attrs_post_init__(self) -> None:
        names = [f"{speed:g}" for speed in self.speeds]  # what the clips are called by
        if len(set(names)) < len(names):
            raise ValueError(
                f"speeds {list(self.speeds)} has one twice (six digits count): keep one"
            )


def _check_decay(instance: object, attribute: object, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"must be 0 (off) or a decay above 0 and below 1, not {value:g}")


def _check_crop(instance: object, attribute: object, value: tuple[int, int]) -> None:
    if min(value) < 0 or (min(value) == 0) != (max(value) == 0):
        raise ValueError(f"needs two numbers of latents, both ≥ 1, or 0 and 0 for none: {value}")


@frozen(kw_only=True)
class TrainSpec:
    """How Stage 0, Stage I (Eq. 3) and Stage II (Eq. 4) train."""

    steps: int = field(default=2000, validator=ge(1), metadata=doc("optimizer steps, ≥ 1"))
    batch: int = field(
        default=6, validator=ge(1), metadata=doc("samples in a batch over all processes, ≥ 1")
    )
    accumulate: int = field(
        default=1,
        validator=ge(1),
        metadata=doc("micro-batches a step's batch is dealt into, ≥ 1: less memory, same step"),
    )
    seconds: tuple[float, float] = field(
        default=(4.0, 20.0),
        validator=_check_span,
        metadata=doc("shortest and longest window of Stage 0 and I, seconds"),
    )
    crop: tuple[int, int] = field(
        default=(0, 0),
        validator=_check_crop,
        metadata=doc("train on random crops of so many latent rows and columns; 0, 0 whole frames"),
    )
    trains: str = field(
        default="lora",
        validator=in_(("lora", "all", "encoder")),
        metadata=doc("lora: adapters + encoder; all: a small DiT from scratch too; encoder alone"),
    )
    adapter: LoRA = field(
        default=LoRA(), validator=instance_of(LoRA), metadata=doc("the adapters of `trains: lora`")
    )
    optimizer: str = field(
        default="adamw",
        validator=in_(("adamw", "muon")),
        metadata=doc("adamw, or muon for the matrices of the blocks and adamw for the rest"),
    )
    optimizer_bits: int = field(
        default=32,
        validator=in_((32, 8)),
        metadata=doc("bits of AdamW's moments: 32, or 8 (needs bitsandbytes and a GPU)"),
    )
    rate: float = field(
        default=1e-4, validator=gt(0.0), metadata=doc("learning rate after the warm-up, > 0")
    )
    warmup: int = field(default=100, validator=ge(0), metadata=doc("steps of linear warm-up, ≥ 0"))
    decay: float = field(
        default=0.0,
        validator=unit,
        metadata=doc("last share of the steps over which the rate falls to zero, 0 to 1"),
    )
    weight_decay: float = field(
        default=0.01, validator=ge(0.0), metadata=doc("AdamW weight decay of matrices, ≥ 0")
    )
    betas: tuple[float, float] = field(
        default=(0.9, 0.99),
        validator=each(between(0.0, 0.99999)),
        metadata=doc("AdamW betas, 0 to 0.99999"),
    )
    clip: float = field(
        default=1.0, validator=gt(0.0), metadata=doc("largest norm of the gradient, > 0")
    )
    ema: float = field(
        default=0.0,
        validator=_check_decay,
        metadata=doc("decay a step of the average of the weights that users read; 0 off, below 1"),
    )
    memory_dropout: float = field(
        default=0.1, validator=unit, metadata=doc("chance that a batch trains without memory")
    )
    text_dropout: float = field(
        default=0.1, validator=unit, metadata=doc("chance that a sample trains without its caption")
    )
    mean: float = field(
        default=0.0,
        validator=between(-10, 10),
        metadata=doc("mean of the logit-normal of t, −10 to 10"),
    )
    std: float = field(
        default=1.0, validator=between(0.01, 10), metadata=doc("its standard deviation")
    )
    pure: float = field(
        default=0.0,
        validator=unit,
        metadata=doc("share of samples at t = 1, pure noise, which one-step retrieval starts from"),
    )
    weigh: float = field(
        default=0.0,
        validator=between(0, 2),
        metadata=doc("exponent of a channel's reach into pixels in the loss: 0 Eq. 3, 2 as pixels"),
    )
    precision: str = field(
        default="auto",
        validator=in_(("auto", "fp32", "bf16")),
        metadata=doc("fp32, bf16 (autocast) or auto: bf16 on a GPU and on CPUs that compute in it"),
    )
    checkpointing: bool = field(
        default=False, validator=instance_of(bool), metadata=doc("gradient checkpointing in G")
    )
    compile: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc(
            "torch.compile of each block of G: minutes at the start, then cheaper steps of the "
            "same numbers within rounding; needs triton on a GPU, a C++ compiler on a CPU"
        ),
    )
    seed: int = field(
        default=0, validator=between(0, 2**62), metadata=doc("seed of everything, 0 to 2^62")
    )
    save_every: int = field(
        default=500, validator=ge(1), metadata=doc("steps between checkpoints, ≥ 1")
    )
    save_minutes: float = field(
        default=0.0,
        validator=ge(0.0),
        metadata=doc("minutes after which a checkpoint is due besides save_every, ≥ 0; 0 off"),
    )
    keep: int = field(
        default=2, validator=ge(1), metadata=doc("checkpoints kept, the newest ones, ≥ 1")
    )
    log_every: int = field(default=20, validator=ge(1), metadata=doc("steps between logs, ≥ 1"))
    gain_every: int = field(
        default=200,
        validator=ge(1),
        metadata=doc("steps between measuring memory_gain and drawing retrieved frames, ≥ 1"),
    )

    def __attrs_post_init__(self) -> None:
        if self.optimizer_bits != 32 and self.optimizer != "adamw":
            raise ValueError(
                f"optimizer_bits {self.optimizer_bits} is of adamw, {self.optimizer} keeps 32"
            )
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} cannot be dealt into accumulate {self.accumulate} equal parts"
            )


@frozen(kw_only=True)
class FinetuneSpec:
    """What Stage II trains on beside `train`: a clip is cut into a past and the target behind it.

    The cut is a latent h ≡ 1 modulo the lcm of the time rates, so that memory covers all that lies
    before it.
    """

    past: tuple[float, float] = field(
        default=(2.0, 20.0),
        validator=_check_span,
        metadata=doc("shortest and longest past that memory is made of, seconds"),
    )
    target: tuple[float, float] = field(
        default=(2.0, 5.0),
        validator=_check_span,
        metadata=doc("shortest and longest target, the video to go on with, seconds"),
    )
    borders: float = field(
        default=0.25,
        validator=unit,
        metadata=doc("share of the samples cut at a border of shots, where the clip has one"),
    )
    cuts_inside: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc("let hard cuts lie inside a target; false: it begins at a cut or has none"),
    )
    beginnings: float = field(
        default=0.5,
        validator=unit,
        metadata=doc(
            "share of the batches without memory (train.memory_dropout) that are beginnings of "
            "clips, as a take's first segment; of the others the past is hidden"
        ),
    )
    encoder: str = field(
        default="trainable",
        validator=in_(("trainable", "frozen")),
        metadata=doc(
            "trainable: the encoder goes on training; frozen: it stays as Stage I left it"
        ),
    )
    start: str = field(
        default="encoder",
        validator=in_(("encoder", "adapters", "both", "none")),
        metadata=doc(
            "what comes from the run that --start names: encoder (the paper's: LoRA begins "
            "afresh), adapters, both; none: without pretraining"
        ),
    )
    corruption: str = field(
        default="none",
        validator=in_(("none", "noise", "frames")),
        metadata=doc(
            "noise in the past, against drift: noise, in 9 of 10 samples of one level up to 1/3; "
            "frames, of a level for each latent frame; none"
        ),
    )

    def __attrs_post_init__(self) -> None:
        if self.encoder == "frozen" and self.start in ("none", "adapters"):
            raise ValueError(
                f"encoder frozen stays as Stage I left it, and with start {self.start} it comes "
                "from no run: start encoder or both, or encoder trainable"
            )


@frozen(kw_only=True)
class Target:
    """A range that a measured figure should lie in: the report says whether it does."""

    metric: str = field(
        validator=instance_of(str),
        metadata=doc("which metric, by its plugin's name, such as psnr; others are not judged"),
    )
    low: float = field(
        validator=instance_of((int, float)),
        metadata=doc("the least that is asked for, in the metric's unit"),
    )
    high: float | None = field(
        default=None,
        validator=optional(instance_of((int, float))),
        metadata=doc("the most that is asked for; null: more is always good"),
    )
    over: str | None = field(
        default=None,
        validator=optional(instance_of(str)),
        metadata=doc(
            "a floor by its name in the report: asked is to be better than it by `low`; null: "
            "asked is the figure itself, of retrievers that sample"
        ),
    )
    rate: Rate | None = field(
        default=None,
        validator=optional(instance_of(Rate)),
        metadata=doc("asked only where all compressors have this rate; null: always"),
    )
    source: str = field(
        default="",
        validator=instance_of(str),
        metadata=doc("whose figure it is, where it is another's, to be read after `the … of`"),
    )

    def holds_for(self, rates: Sequence[str]) -> bool:
        """Return whether it is asked of a memory whose compressors have these rates."""
        return self.rate is None or tuple(rates) == (str(self.rate),)


@frozen(kw_only=True)
class MeasureSpec:
    """What `measure` looks at."""

    seconds: float = field(
        default=10.0, validator=gt(0.0), metadata=doc("length of the history, seconds, > 0")
    )
    long_seconds: float = field(
        default=20.0,
        validator=ge(0.0),
        metadata=doc("clips of this length are measured at it, too, seconds; 0 or ≤ seconds: off"),
    )
    seed: int = field(
        default=0, validator=between(0, 2**62), metadata=doc("seed of noise and Ω, 0 to 2^62")
    )
    draws: int = field(
        default=8,
        validator=ge(1),
        metadata=doc("noise draws a clip for memory_gain, ≥ 1: more narrows nothing but its noise"),
    )
    targets: tuple[Target, ...] = field(
        default=(),
        validator=each(instance_of(Target)),
        metadata=doc("ranges that figures should lie in, which the report judges them by"),
    )


def _check_size(instance: object, attribute: object, value: str | None) -> None:
    if value is not None and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", value):
        raise ValueError(f"must be WIDTHxHEIGHT in pixels, such as 832x480, or null, not {value!r}")


@frozen(kw_only=True)
class GenerateSpec:
    """How a take is made, segment by segment (Eq. 4)."""

    sampler: Sampler = field(
        default=Sampler(),
        validator=instance_of(Sampler),
        metadata=doc("from noise to latents; a section may have steps and guidance of its own"),
    )
    size: str | None = field(
        default=None,
        validator=_check_size,
        metadata=doc("WIDTHxHEIGHT of the video, one of the buckets; null: the 16:9 one"),
    )
    segment_seconds: float = field(
        default=5.0625,
        validator=gt(0.0),
        metadata=doc("the longest segment that is sampled at once, seconds (81 frames at 16 fps)"),
    )
    budget: MemoryBudget = field(
        default=MemoryBudget(),
        validator=instance_of(MemoryBudget),
        metadata=doc("how much of the past stays in memory"),
    )
    grid: int | None = field(
        default=None,
        validator=optional(ge(1)),
        metadata=doc(
            "latents that segments are multiples of; null: where all time rates of the memory meet"
        ),
    )
    deliver_every: int = field(
        default=0,
        validator=ge(0),
        metadata=doc(
            "segments after which take.mp4 and the report are written before the end, ≥ 0; 0: at "
            "the end alone"
        ),
    )


def evolved(spec: Any, changed: Mapping[tuple[str | int, ...], Any]) -> Any:
    """Return a spec, or a tuple of specs, with other values at some paths.

    Raises:
        ValueError, TypeError: a spec refuses its values.
    """
    if not changed:
        return spec
    if () in changed:
        return changed[()]
    below: dict[str | int, dict[tuple[str | int, ...], Any]] = {}
    for path, value in changed.items():
        below.setdefault(path[0], {})[path[1:]] = value
    if isinstance(spec, tuple):
        return tuple(evolved(member, below.get(i, {})) for i, member in enumerate(spec))
    new = {str(name): evolved(getattr(spec, str(name)), rest) for name, rest in below.items()}
    return attrs.evolve(spec, **new)


def as_tuples(value: Any) -> Any:
    """Return a plain value with tuples for lists, as specs hold it."""
    return tuple(as_tuples(x) for x in value) if isinstance(value, list | tuple) else value


STAGE_TWO = "finetune."  # begins keys of a recipe that only Stage II reads


def stage_recipe(recipe: Mapping[str, Any], *, finetunes: bool) -> dict[str, Any]:
    """Return a recipe as the experiments of a stage read it.

    Stage II reads `finetune.train.rate` as `train.rate`, in place of Stage I's, and so for `cache`.
    """
    own = {key: value for key, value in recipe.items() if not key.startswith(STAGE_TWO)}
    if not finetunes:
        return own
    second = {key: value for key, value in recipe.items() if key.startswith(STAGE_TWO)}
    return own | {second_stage_key(key): value for key, value in second.items()}


def second_stage_key(key: str) -> str:
    """Return the path of the field that a key of a recipe is for in Stage II."""
    shared = (f"{STAGE_TWO}train.", f"{STAGE_TWO}cache.")
    return key.removeprefix(STAGE_TWO) if key.startswith(shared) else key


def _by_recipe(name: str, cls: type[S]) -> S:
    """Return the default of a part of an experiment: what its backbone's recipe says of it."""

    def make(experiment: Any) -> S:
        backbone = getattr(experiment, "backbone", None)  # None: of JSON whose backbone is faulty
        finetunes = getattr(experiment, "finetune", None) is not None
        raw = backbone.recipe if isinstance(backbone, BackboneSpec) else {}
        recipe = stage_recipe(raw, finetunes=finetunes)
        found = {tuple(key.split(".")): as_tuples(value) for key, value in recipe.items()}
        lists = ("measure", "targets")  # they are an experiment's own, beside the recipe's
        part: S = evolved(
            cls(), {p[1:]: v for p, v in found.items() if p[0] == name and p != lists}
        )
        return part

    return attrs.Factory(make, takes_self=True)


@frozen(kw_only=True)
class Experiment:
    """A backbone, its memory, and how they are cached, trained, measured and make takes.

    `cache`, `train`, `measure` and `generate` are by default as the recipe of the backbone has them
    for the stage that it trains.
    """

    name: str = field(
        validator=instance_of(str), metadata=doc("what runs and reports call the experiment")
    )
    backbone: BackboneSpec = field(
        validator=instance_of(BackboneSpec),
        metadata=doc("the video DiT; implies codec, text encoder and fps"),
    )
    compressors: tuple[CompressorSpec, ...] = field(
        validator=each(instance_of(CompressorSpec)),
        metadata=doc(
            "encoders whose tokens stand side by side in one memory; none: Stage 0, a video model"
        ),
    )
    masker: MaskerSpec = field(
        validator=instance_of(MaskerSpec), metadata=doc("how Stage I hides all frames but Ω")
    )
    retrievers: tuple[RetrieverSpec, ...] = field(
        validator=each(instance_of(RetrieverSpec), at_least=1),
        metadata=doc("what `measure` compares; the first that reads memory is what others use"),
    )
    metrics: tuple[MetricSpec, ...] = field(
        validator=each(instance_of(MetricSpec), at_least=1), metadata=doc("figures of a frame")
    )
    finetune: FinetuneSpec | None = field(
        default=None,
        validator=optional(instance_of(FinetuneSpec)),
        metadata=doc("Stage II: how clips are cut into past and target; null: Stage 0 or I"),
    )
    cache: CacheSpec = field(
        default=_by_recipe("cache", CacheSpec),
        validator=instance_of(CacheSpec),
        metadata=doc("the latent store"),
    )
    train: TrainSpec = field(
        default=_by_recipe("train", TrainSpec),
        validator=instance_of(TrainSpec),
        metadata=doc("how the stage trains: II under `finetune`, 0 without compressors, else I"),
    )
    measure: MeasureSpec = field(
        default=_by_recipe("measure", MeasureSpec),
        validator=instance_of(MeasureSpec),
        metadata=doc("measuring"),
    )
    generate: GenerateSpec = field(
        default=_by_recipe("generate", GenerateSpec),
        validator=instance_of(GenerateSpec),
        metadata=doc("takes"),
    )

    @property
    def period(self) -> int:
        """Where all time rates of the memory meet, in latents: their least common multiple."""
        return shared_period(self.rates)

    @property
    def rates(self) -> tuple[Rate, ...]:
        """The rates of the memory, in the order of its compressors and of those in them."""
        return tuple(dict.fromkeys(_rates(self.compressors)))

    @property
    def remembers(self) -> bool:
        """Whether there is a memory; without one, training is Stage 0."""
        return bool(self.compressors)

    @property
    def stage(self) -> str:
        """The stage that it trains: `base` (Stage 0), `pretrain` (I) or `finetune` (II)."""
        if self.finetune is not None:
            return "finetune"
        return "pretrain" if self.remembers else "base"

    def __attrs_post_init__(self) -> None:
        if self.finetune is not None and not self.remembers:
            raise ValueError("finetune is Stage II, which needs a memory: name a compressor")
        if len(set(self.compressors)) < len(self.compressors):
            raise ValueError("two compressors are the same: the second would remember nothing new")
        self.backbone.check_rates(self.rates)

    @property
    def memory_block(self) -> int:
        """Latents of a block by which a take's memory goes where there is a budget."""
        return self.backbone.memory_block(self.rates)


def _rates(value: Any) -> Iterator[Rate]:
    """Yield the rates that a spec names, and those of the specs in it."""
    if isinstance(value, Rate):
        yield value
    elif isinstance(value, tuple):
        for member in value:
            yield from _rates(member)
    elif attrs.has(type(value)):
        for attribute in attrs.fields(type(value)):
            yield from _rates(getattr(value, attribute.name))
