"""A tuning run as data: frozen values read from a TOML file, as `recipe` reads those of pre-training.

In: the text of a recipe and `table.key=value` overrides. Out: a checked `TuneRecipe`. Tables that both kinds of runs
share are those of `recipe`; here are the base, conversations, what is aimed at, and adapters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from puna.meter import Site
from puna.train.recipe import (
    BatchRecipe,
    CheckpointRecipe,
    ComputeRecipe,
    LogRecipe,
    LossRecipe,
    OptimizerRecipe,
    ParallelRecipe,
    ScheduleRecipe,
    SpikesRecipe,
    build,
    digest_of,
    read_tables,
    require,
)

KINDS = ("supervised", "preference", "reinforce", "distill")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecipe:
    """The model that is tuned: `base` is what `puna.load` takes, a name, a folder or a hub id.

    quantize  "int4", "int8" or "fp8" keeps its matrices in small numbers that do not train: QLoRA; "": as they are
    frozen    parts, as `model.count` names them, that do not train: "vision", "router" ...
    seed      of what an adapter starts with
    """

    base: str
    quantize: str = ""
    frozen: tuple[str, ...] = ()
    seed: int = 1

    def __post_init__(self) -> None:
        known = ("", "int4", "int8", "fp8")
        require(self.quantize in known, "model.quantize", self.quantize, 'one of "int4", "int8", "fp8", or empty')


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatsRecipe:
    """Conversations: JSON lines as `chats` reads them, and what is learnt of them.

    store         folder in which they are kept as numbers
    too_long      what happens to one that no row holds: "refuse" ends the run, "drop", or "truncate" cuts its end off
    learn         "all" turns of the assistant, or the "last"
    learn_header  whether the tokens that open its turn are learnt too
    passes        times per epoch, by source; sources that are not named are seen once
    """

    chats: tuple[str, ...]
    held_out: str = ""
    store: str
    seed: int = 1
    too_long: str = "refuse"
    learn: str = "all"
    learn_header: bool = False
    tool_style: str = "pythonic"
    passes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = ("refuse", "drop", "truncate")
        require(self.too_long in kinds, "data.too_long", self.too_long, '"refuse", "drop" or "truncate"')
        require(self.learn in ("all", "last"), "data.learn", self.learn, '"all" or "last"')
        require(self.tool_style in ("pythonic", "json"), "data.tool_style", self.tool_style, '"pythonic" or "json"')
        for source, passes in self.passes.items():
            require(passes >= 0, f"data.passes.{source}", passes, "zero (never seen) or positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRecipe:
    """Which conversations are too easy to be worth a step. Zero, or an empty name: not asked.

    easy_accuracy  those are dropped of whose learnt tokens the base guesses at least this share
    easy_nats      those whose learnt tokens cost the base at most so many nats on average
    score          field of a line that holds somebody's judgement, a number: below `least_score` it is dropped
    """

    easy_accuracy: float = 0.0
    easy_nats: float = 0.0
    score: str = ""
    least_score: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.easy_accuracy <= 1, "filter.easy_accuracy", self.easy_accuracy, "within 0..1")
        require(self.easy_nats >= 0, "filter.easy_nats", self.easy_nats, "zero or more")

    @property
    def asks_base(self) -> bool:
        """Whether the base must read the conversations first."""
        return bool(self.easy_accuracy or self.easy_nats)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveRecipe:
    """What is aimed at; each kind has a table of its own name for the rest."""

    kind: str

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "objective.kind", self.kind, f"one of {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRecipe:
    """DPO, as `preference` explains it. `normalise` divides log-probabilities by lengths; `nll` is the weight of the
    better answer's own loss."""

    beta: float = 0.1
    normalise: bool = False
    nll: float = 0.0

    def __post_init__(self) -> None:
        require(self.beta > 0, "preference.beta", self.beta, "positive")
        require(self.nll >= 0, "preference.nll", self.nll, "zero or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceRecipe:
    """Online reinforcement, as `reinforce` explains it.

    prompts, samples      tasks of a round, and replies to each; updates: steps that learn from one round
    max_new_tokens        of a reply
    level                 "token" (GRPO) or "sequence" (GSPO, whose clips are about 3e-4)
    clip_low, clip_high   how far a ratio may fall below and rise above 1 and still count
    truncate              most that a token weighs more in this trainer than in the engine
    kl                    weight of the divergence from the base; above 0 the base stays in memory
    normalise             divides advantages by their group's standard deviation
    tries                 how often tasks are drawn anew for groups that teach nothing
    look_every            rounds after which held-out tasks are answered again; 0: before the first and after the last
    """

    prompts: int = 8
    samples: int = 8
    updates: int = 1
    max_new_tokens: int = 64
    level: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    truncate: float = 2.0
    kl: float = 0.0
    normalise: bool = True
    tries: int = 3
    look_every: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts", "updates", "max_new_tokens", "tries", "clip_low", "clip_high", "truncate"):
            require(getattr(self, name) > 0, f"reinforce.{name}", getattr(self, name), "positive")
        require(self.samples > 1, "reinforce.samples", self.samples, "2 or more: replies are compared")
        require(self.level in ("token", "sequence"), "reinforce.level", self.level, '"token" or "sequence"')
        require(self.kl >= 0, "reinforce.kl", self.kl, "zero or more")
        require(self.look_every >= 0, "reinforce.look_every", self.look_every, "zero (never on the way) or positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecipe:
    """What a model learns from a larger one, as `distill` explains it.

    teacher      a name, a folder or a hub id; quantize: "int4", "int8" or "fp8" has it in small numbers
    top_k        how many successors of each token are kept from one reading before the first step; 0: it reads along
    soft         weight of its opinion at the first step, `soft_last` at the last; the rest is what was written
    """

    teacher: str = ""
    quantize: str = ""
    top_k: int = 0
    temperature: float = 1.0
    soft: float = 1.0
    soft_last: float = 1.0

    def __post_init__(self) -> None:
        known = ("", "int4", "int8", "fp8")
        require(self.quantize in known, "distill.quantize", self.quantize, 'one of "int4", "int8", "fp8", or empty')
        require(self.top_k >= 0, "distill.top_k", self.top_k, "zero (the teacher reads along) or positive")
        require(self.temperature > 0, "distill.temperature", self.temperature, "positive")
        require(0 <= self.soft <= 1, "distill.soft", self.soft, "within 0..1")
        require(0 <= self.soft_last <= 1, "distill.soft_last", self.soft_last, "within 0..1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRecipe:
    """Factors instead of weights: rank, alpha (corrections are scaled by alpha / rank) and which maps have them, as
    `adapters.spec` names them; none named: all linear maps of the decoder. `experts_share` below 1: of each layer's
    experts only those that the data goes to."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    experts_share: float = 1.0

    def __post_init__(self) -> None:
        require(self.rank > 0, "lora.rank", self.rank, "positive")
        require(0 < self.experts_share <= 1, "lora.experts_share", self.experts_share, "above 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRecipe:
    """How far routing moves from the base's: on how many `batches` of the data, and after how many steps again, besides
    the beginning and the end."""

    batches: int = 2
    every_steps: int = 0

    def __post_init__(self) -> None:
        require(self.batches >= 0, "drift.batches", self.batches, "zero (never measured) or positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRecipe:
    """One tuning run, whole."""

    model: BaseRecipe
    data: ChatsRecipe
    batch: BatchRecipe
    objective: ObjectiveRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    compute: ComputeRecipe
    loss: LossRecipe = field(default_factory=lambda: LossRecipe(balance=0.0))
    filter: FilterRecipe = field(default_factory=FilterRecipe)
    preference: PreferenceRecipe = field(default_factory=PreferenceRecipe)
    reinforce: ReinforceRecipe = field(default_factory=ReinforceRecipe)
    distill: DistillRecipe = field(default_factory=DistillRecipe)
    lora: LoraRecipe | None = None
    drift: DriftRecipe = field(default_factory=DriftRecipe)
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    checkpoint: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    spikes: SpikesRecipe = field(default_factory=SpikesRecipe)
    energy: Site = field(default_factory=Site)
    log: LogRecipe = field(default_factory=LogRecipe)

    def __post_init__(self) -> None:
        needs_teacher = self.objective.kind == "distill" and not self.distill.teacher
        require(not needs_teacher, "distill.teacher", self.distill.teacher, "the model that is learnt from")
        small, has_lora, ranks = bool(self.model.quantize), self.lora is not None, self.parallel.world
        require(
            not small or has_lora,
            "model.quantize",
            self.model.quantize,
            "empty, or add [lora]: small numbers do not train",
        )
        require(
            not (has_lora and self.model.frozen),
            "model.frozen",
            self.model.frozen,
            "empty with [lora]: only factors train",
        )
        require(self.loss.bias_rate == 0, "loss.bias_rate", self.loss.bias_rate, "0: biases belong to pre-training")
        plain = self.objective.kind == "supervised" and not has_lora and not self.model.frozen
        require(
            ranks == self.parallel.replicate or plain,
            "parallel",
            self.parallel.product,
            "replicas alone, but for supervised tuning of all weights",
        )
        require(not self.compute.matmul, "compute.matmul", self.compute.matmul, "empty: it is for pre-training")
        require(
            not self.compute.compile or (plain and ranks == 1),
            "compute.compile",
            True,
            "false, but for supervised tuning of all weights on one rank",
        )

    @property
    def start(self) -> str:
        """The base, by name or folder."""
        return self.model.base

    @property
    def digest(self) -> str:
        """64 hexadecimal digits; equal for two recipes that tune the same weights with the same files."""
        tables = self.to_dict()
        del tables["drift"]
        return digest_of(tables)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(path: str | Path, overrides: Sequence[str] = ()) -> TuneRecipe:
    """Returns the recipe in the TOML file `path`, changed by `overrides` such as `schedule.steps=100`.

    Raises ConfigError, naming the field, its value and the remedy, as `recipe.read` does.
    """
    return from_dict(read_tables(path, overrides))


def from_dict(tables: Mapping[str, Any]) -> TuneRecipe:
    """Returns the recipe that nested `tables` describe. Raises ConfigError as `read` does."""
    return build(TuneRecipe, tables)
