"""A training run as data: frozen values read from a TOML file, with overrides from the command line.

In: the text of a recipe and `table.key=value` overrides. Out: a checked `Recipe`, and its digest, by which a checkpoint
recognises the run that it belongs to. It does not know what the values do: each package reads its own table.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

from puna.errors import ConfigError
from puna.meter import Site

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """Which model: `preset` names one of `puna.presets`, or ends in `.json`: a Hugging Face configuration file.

    `start` is the folder of a checkpoint to begin from, such as the `model` of an earlier run; empty: random weights.
    """

    preset: str
    seed: int
    start: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecipe:
    """Documents (JSON lines), where their tokenised store lies, and how often each source is seen in an epoch.

    A source that `passes` does not name is seen once. `held_out` may be empty: then nothing is measured at the end.
    """

    documents: str
    held_out: str
    tokenizer: str
    store: str
    seed: int
    passes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for source, passes in self.passes.items():
            require(passes >= 0, f"data.passes.{source}", passes, "zero (never seen) or positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecipe:
    """The fixed shape of a batch: `rows` of `row_len` tokens and room for `tiles`, packed from `window` documents.

    A step sums the gradients of `accumulate` batches.
    """

    rows: int
    row_len: int
    tiles: int
    window: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "row_len", "window", "accumulate"):
            require(getattr(self, name) > 0, f"batch.{name}", getattr(self, name), "positive")
        require(self.tiles >= 0, "batch.tiles", self.tiles, "zero or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerRecipe:
    """Constants of Muon and AdamW. Both share `lr`; embedding, head, router and all that looks at pictures (tower and
    projector) may scale it. `matrices` says which of them updates matrices; AdamW has all else."""

    lr: float
    embedding_lr_scale: float = 1.0
    head_lr_scale: float = 1.0
    router_lr_scale: float = 1.0
    vision_lr_scale: float = 1.0
    weight_decay: float
    momentum: float
    beta1: float
    beta2: float
    eps: float
    clip_norm: float
    matrices: str = "muon"

    def __post_init__(self) -> None:
        require(self.matrices in ("muon", "adamw"), "optimizer.matrices", self.matrices, '"muon" or "adamw"')


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecipe:
    """How `optimizer.lr`, found for a small model, becomes that of another width and depth (`train.transfer`).

    `base` is the small model, named as in `model.preset`. Branches of layers shrink with depth to the power of
    -`depth_exponent`.
    """

    base: str
    depth_exponent: float = 1.0

    def __post_init__(self) -> None:
        good = 0.5 <= self.depth_exponent <= 1
        require(good, "transfer.depth_exponent", self.depth_exponent, "within 0.5 (Depth-muP) and 1 (CompleteP)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthenRecipe:
    """How a model comes to read longer texts than before (`train.lengthen`).

    context_len        tokens that it reads at most, rows of this run included
    chunk_len          what a query of a chunked layer is confined to; 0: as before
    factor             by which wavelengths of RoPE over `original_context / low_factor` tokens are stretched; those
                       under `original_context / high_factor` stay, and between the two it is gradual. 0: as before
    original_context   tokens that it was trained on before
    """

    context_len: int
    chunk_len: int = 0
    factor: float = 0.0
    low_factor: float = 1.0
    high_factor: float = 1.0
    original_context: int = 0

    def __post_init__(self) -> None:
        require(self.context_len > 0, "lengthen.context_len", self.context_len, "positive")
        require(self.chunk_len >= 0, "lengthen.chunk_len", self.chunk_len, "zero (as before) or positive")
        require(self.factor == 0 or self.factor >= 1, "lengthen.factor", self.factor, "zero (as before) or 1 and more")
        known = not self.factor or self.original_context > 0
        require(known, "lengthen.original_context", self.original_context, "what the model was trained on before")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecipe:
    """Warm-up, stable, decay: `decay_steps` at the end fall linearly to `final_fraction` of the learning rate."""

    steps: int
    warmup_steps: int
    decay_steps: int
    final_fraction: float

    def __post_init__(self) -> None:
        require(self.steps > 0, "schedule.steps", self.steps, "positive")
        both = self.warmup_steps + self.decay_steps
        require(both <= self.steps, "schedule.warmup_steps + decay_steps", both, f"at most the {self.steps} steps")
        require(0 <= self.final_fraction <= 1, "schedule.final_fraction", self.final_fraction, "within 0..1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRecipe:
    """Coefficients of the router's losses, and how many rows of logits exist at a time. `bias_rate` is by how much a
    step moves the biases that even loads out without a loss (`train.balance`); 0: there are none."""

    balance: float
    z: float = 0.0
    chunk: int = 1024
    bias_rate: float = 0.0

    def __post_init__(self) -> None:
        require(self.bias_rate >= 0, "loss.bias_rate", self.bias_rate, "zero (no biases) or positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeRecipe:
    """How the sums are done. Part of the digest: another number of threads adds in another order. `compile`: the
    model is a graph, on several ranks each layer is. `device` is "cpu" or "cuda"; `matmul` "fp8" multiplies in eight
    bits (`train.fp8`), empty in `dtype`.
    """

    dtype: str
    compile: bool
    threads: int
    device: str = "cpu"
    matmul: str = ""

    def __post_init__(self) -> None:
        require(self.dtype in ("bfloat16", "float32"), "compute.dtype", self.dtype, '"bfloat16" or "float32"')
        require(self.threads > 0, "compute.threads", self.threads, "positive")
        require(self.device in ("cpu", "cuda"), "compute.device", self.device, '"cpu" or "cuda"')
        require(self.matmul in ("", "fp8"), "compute.matmul", self.matmul, '"fp8", or empty: as dtype')
        if self.matmul == "fp8":
            require(self.dtype == "bfloat16", "compute.dtype", self.dtype, '"bfloat16" with matmul = "fp8"')
            require(not self.compile, "compute.compile", True, 'false with matmul = "fp8", whose experts are no graph')


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelRecipe:
    """How many ranks there are along each direction, as `train.mesh` explains them. `recompute` keeps only what goes
    into each layer and computes the layer again on the way back: less memory for a third more work.

    The digest leaves it out: a run goes on on other ranks, with the same tokens.
    """

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in ("pipeline", "replicate", "shard", "context", "tensor", "expert"):
            require(getattr(self, name) > 0, f"parallel.{name}", getattr(self, name), "positive")

    @property
    def world(self) -> int:
        """All ranks."""
        return self.pipeline * self.replicate * self.shard * self.context * self.tensor

    @property
    def readers(self) -> int:
        """Batches that are read at the same time."""
        return self.replicate * self.shard

    @property
    def product(self) -> str:
        """How the number of ranks comes about, in words."""
        names = ("pipeline", "replicate", "shard", "context", "tensor")
        return " x ".join(f"{name} {getattr(self, name)}" for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecipe:
    """When the state is written: at whichever comes first. Zero means never for that reason. `keep`: how many of the
    newest stay on disk. Not part of the digest."""

    every_steps: int = 0
    every_seconds: float = 300.0
    keep: int = 1

    def __post_init__(self) -> None:
        require(self.keep > 0, "checkpoint.keep", self.keep, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikesRecipe:
    """What becomes of a step whose loss or gradient is not finite, or far above the last ones' (`train.spikes`).

    `action`: "stop" ends the run and names the documents; "skip" reads on, and ends the run when `in_a_row` steps were
    left out. `sigma`: by how many standard deviations of the last `window` steps a loss or a gradient norm must exceed
    their mean to be far above; zero: only what is not finite counts. Not part of the digest: a run that stopped may go
    on with another choice.
    """

    action: str = "stop"
    sigma: float = 0.0
    window: int = 128
    in_a_row: int = 10

    def __post_init__(self) -> None:
        require(self.action in ("stop", "skip"), "spikes.action", self.action, '"stop" or "skip"')
        require(self.sigma >= 0, "spikes.sigma", self.sigma, "zero (only what is not finite) or positive")
        require(self.window >= 4, "spikes.window", self.window, "4 or more")
        require(self.in_a_row > 0, "spikes.in_a_row", self.in_a_row, "positive")


SINKS = ("tensorboard", "wandb")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecipe:
    """Who is told of each step besides the run's own log: `sinks` of `train.sinks`. Not part of the digest.

    `peak_tflops` declares the most that one rank's processor computes, in 10^12 operations a second, for the
    utilisation that the page shows; zero: taken from `puna.hardware` for a GPU that it knows.
    """

    sinks: tuple[str, ...] = ()
    peak_tflops: float = 0.0

    def __post_init__(self) -> None:
        for sink in self.sinks:
            require(sink in SINKS, "log.sinks", sink, f"of {', '.join(SINKS)}")
        require(self.peak_tflops >= 0, "log.peak_tflops", self.peak_tflops, "zero (not declared) or positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesRecipe:
    """What the weights of the moment write, for people who watch (`train.samples`): after every so many steps what
    follows each of `prompts`, and the answers to the first `pictures` held-out questions about pictures, of at most
    `max_tokens` tokens. `every_steps` 0: never; `temperature` 0: the most probable token. Not part of the digest:
    training does not notice.
    """

    prompts: tuple[str, ...] = ()
    pictures: int = 0
    every_steps: int = 0
    max_tokens: int = 64
    temperature: float = 0.0

    def __post_init__(self) -> None:
        for name in ("pictures", "every_steps", "temperature"):
            require(getattr(self, name) >= 0, f"samples.{name}", getattr(self, name), "zero or more")
        require(self.max_tokens > 0, "samples.max_tokens", self.max_tokens, "positive")
        is_asked = bool(self.prompts) or self.pictures > 0
        require(is_asked or not self.every_steps, "samples.prompts", "none", "one or more, or samples.pictures")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run, whole."""

    model: ModelRecipe
    data: DataRecipe
    batch: BatchRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    loss: LossRecipe
    compute: ComputeRecipe
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    checkpoint: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    spikes: SpikesRecipe = field(default_factory=SpikesRecipe)
    transfer: TransferRecipe | None = None
    lengthen: LengthenRecipe | None = None
    energy: Site = field(default_factory=Site)
    log: LogRecipe = field(default_factory=LogRecipe)
    samples: SamplesRecipe = field(default_factory=SamplesRecipe)

    def __post_init__(self) -> None:
        is_alone = self.parallel.world == 1
        whole = self.compute.matmul != "fp8" or self.parallel.tensor == 1
        require(whole, "parallel.tensor", self.parallel.tensor, '1 with compute.matmul = "fp8": rows are rounded whole')
        every = self.samples.every_steps
        require(is_alone or not every, "samples.every_steps", every, "0 on several ranks: none holds the whole model")
        if self.lengthen is not None:
            longest = self.lengthen.context_len
            fits = self.batch.row_len <= longest
            require(fits, "batch.row_len", self.batch.row_len, f"at most lengthen.context_len, {longest}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def start(self) -> str:
        """The folder of the weights that the run begins with, empty for random ones."""
        return self.model.start

    @property
    def digest(self) -> str:
        """64 hexadecimal digits; equal for two recipes that train the same weights from the same files."""
        return digest_of(self.to_dict())


class RunRecipe(Protocol):
    """What the loop, checkpoints and records ask of a recipe, whatever is trained: `Recipe`, or tuning's."""

    @property
    def batch(self) -> BatchRecipe: ...
    @property
    def optimizer(self) -> OptimizerRecipe: ...
    @property
    def schedule(self) -> ScheduleRecipe: ...
    @property
    def loss(self) -> LossRecipe: ...
    @property
    def compute(self) -> ComputeRecipe: ...
    @property
    def parallel(self) -> ParallelRecipe: ...
    @property
    def checkpoint(self) -> CheckpointRecipe: ...
    @property
    def spikes(self) -> SpikesRecipe: ...
    @property
    def energy(self) -> Site: ...
    @property
    def log(self) -> LogRecipe: ...
    @property
    def start(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


_LATER: Mapping[str, Any] = {
    "transfer": None,
    "lengthen": None,
    "compute.matmul": "",
    "optimizer.vision_lr_scale": 1.0,
    "reinforce.look_every": 0,
}
"""Tables and keys that came after the first runs, and what they are where they are not used."""


_APART = ("checkpoint", "spikes", "parallel", "energy", "log", "samples")
"""Tables that may change while a run is paused."""


def digest_of(tables: Mapping[str, Any]) -> str:
    """Returns a recipe's digest, without the tables that may change. What came later is not in it until it is used, so
    that earlier runs go on."""
    kept = {name: table for name, table in tables.items() if name not in _APART}
    return hashlib.sha256(json.dumps(_used(kept), sort_keys=True).encode()).hexdigest()


def _used(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns a table without what came later and is not used; `path` is its name with a dot behind it."""
    kept = {key: value for key, value in table.items() if path + key not in _LATER or value != _LATER[path + key]}
    tables = {key: _used(value, f"{path}{key}.") for key, value in kept.items() if isinstance(value, Mapping)}
    return kept | tables


def read(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe in the TOML file `path`, changed by `overrides` such as `schedule.steps=100`.

    Raises ConfigError naming the field, its value and the remedy: for a missing file, text that is not TOML, an unknown
    or missing key, a value of the wrong kind or outside its range.
    """
    return from_dict(read_tables(path, overrides))


def from_dict(tables: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that nested `tables` describe. Raises ConfigError as `read` does."""
    return build(Recipe, tables)


def read_tables(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the tables of a TOML file with `overrides` in them. Raises ConfigError where it is none."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"recipe {file}: no such file; give the path of a recipe such as recipes/cria.toml")
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {file}: not TOML ({error}); correct the file") from error
    for text in overrides:
        override(tables, text)
    return tables


def build(kind: type[_Kind], tables: Mapping[str, Any]) -> _Kind:
    """Returns a recipe of the dataclass `kind` from nested `tables`. Raises ConfigError as `read` does."""
    recipe: _Kind = _build(kind, tables, "")
    return recipe


def override(tables: dict[str, Any], text: str) -> None:
    """Sets one value in nested `tables` from `table.key=value`; the value is TOML, or else taken as a string."""
    name, equals, value = text.partition("=")
    path = [part.strip() for part in name.split(".")]
    if not equals or not all(path):
        raise ConfigError(f"override {text!r}: not of the form table.key=value; write for example schedule.steps=100")
    for part in path[:-1]:
        tables = tables.setdefault(part, {})
        if not isinstance(tables, dict):
            raise ConfigError(f"override {text!r}: {part} is a value, not a table; name a key of a table")
    tables[path[-1]] = _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _build(kind: type, table: Any, path: str) -> Any:
    """Returns a dataclass of `kind` from `table`; `path` is its name in messages, empty for the whole recipe."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: {table!r} is not a table; write it as [{path}]")
    hints = get_type_hints(kind)
    prefix = f"{path}." if path else ""
    for key in table:
        if key not in hints:
            near = get_close_matches(key, hints, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"{prefix}{key}: unknown key (value {table[key]!r}); {remedy}")
    values = {key: _value(hints[key], value, prefix + key) for key, value in table.items()}
    optional = {f.name for f in fields(kind) if _has_default(f)}
    missing = [name for name in hints if name not in values and name not in optional]
    if missing:
        raise ConfigError(f"{prefix}{missing[0]}: missing; add it to the recipe")
    return kind(**values)


def _has_default(item: Any) -> bool:
    return item.default is not MISSING or item.default_factory is not MISSING


def _value(kind: Any, value: Any, path: str) -> Any:
    if get_origin(kind) is UnionType:
        if value is None:  # a checkpoint says so; a file leaves the key out
            return None
        kind = next(each for each in get_args(kind) if each is not type(None))
    if is_dataclass(kind) and isinstance(kind, type):
        return _build(kind, value, path)
    if get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: {value!r} is not a table; write it as [{path}]")
        return {str(key): _value(get_args(kind)[1], item, f"{path}.{key}") for key, item in value.items()}
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_value(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{path}: {value!r} is not of the right kind; give a {kind.__name__}")
    return value


def require(good: bool, name: str, value: object, remedy: str) -> None:
    """Raises ConfigError for the value of a key that is not good."""
    if not good:
        raise ConfigError(f"{name}: {value!r} is not possible; it must be {remedy}")
