"""One model on several ranks: how it is divided, what each rank holds, and what ranks do together.

In: a configuration and a `Layout`. Out: for each rank its `Share` (names and slices of parameters, by one table of
cuts), its `Mesh` (the other ranks, and the few collectives), and its model: a `Llama` of a smaller configuration.

    layout       Layout(tensor=2, expert=2, pipeline=2) on 8 ranks
    stages       each holds consecutive layers: ranks 0-3 the first half, ranks 4-7 the second
    team         the ranks of one stage. They see the same tokens, share each layer, and add up once after attention
                 and once after the feed-forward. Whole heads and columns go to each, of everything but routed experts
    experts      within a team, `expert` groups of `tensor` ranks; each group holds its part of the experts, each cut in
                 `tensor`

A rank's share of a configuration is a configuration: fewer heads, narrower layers, and layer kinds renumbered from the
model's own layer numbers, so that caches and masks need not know of ranks. The vision tower is whole on every rank and
tiles are dealt out. Everything here is called by all ranks alike, with the same ids; who tells them is another's
business (`engine.ranks`). Why so: docs/decisions/009.
Source: Megatron-LM, arXiv 1909.08053 section 3 (columns, then rows, then one sum).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from puna.config import LlamaConfig, TextConfig, require
from puna.errors import ConfigError, DeviceError
from puna.kernels.formats import GROUP, Int4, Small, shape
from puna.kernels.low_rank import Factors
from puna.model.attention import KVStore
from puna.model.deltas import Deltas, through
from puna.model.moe import Experts, MoE, Route
from puna.model.rope import Rotation
from puna.model.transformer import Block, Hidden, Llama
from puna.shapes import sizes

PATIENCE = timedelta(minutes=5)
"""How long a rank waits for the others within a step before it gives them up."""

FOREVER = timedelta(days=365)
"""How long ranks wait for something to do. A rank that dies closes its connections, which ends the wait at once."""

HEAD_LEN = 1024
"""Numbers of a message that go out at once: enough for a step that decodes, which then takes one broadcast."""


# How a model is divided ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Into how many parts a model is divided along each direction; the product is the number of ranks.

    Ranks are numbered stage after stage, within a stage expert group after expert group. Neighbours talk most.
    """

    tensor: int = 1
    expert: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for field in ("tensor", "expert", "pipeline"):
            require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")

    @property
    def team(self) -> int:
        """Ranks that share each layer of a stage."""
        return self.tensor * self.expert

    @property
    def world(self) -> int:
        """All ranks."""
        return self.team * self.pipeline

    @classmethod
    def of(
        cls, world: int, *, tensor: int | None = None, expert: int | None = None, pipeline: int | None = None
    ) -> "Layout":
        """Returns the layout of `world` ranks: what is not given is 1, but tensor takes all ranks that are left.

        Raises ConfigError when the product is not `world`.
        """
        expert, pipeline = (1 if n is None else n for n in (expert, pipeline))
        left = max(1, world // max(1, expert * pipeline))
        layout = cls(tensor=left if tensor is None else tensor, expert=expert, pipeline=pipeline)
        if layout.world != world:
            raise ConfigError(
                f"tensor {layout.tensor} x expert {layout.expert} x pipeline {layout.pipeline} is {layout.world}, but "
                f"{world} ranks run; choose them so that the product is {world}, or have torchrun start {layout.world}"
            )
        return layout

    def check(self, config: LlamaConfig) -> None:
        """Raises ConfigError, naming field, value and remedy, when a model cannot be divided so."""
        text, team = config.text, self.team
        field = "tensor x expert" if self.expert > 1 else "tensor"
        _divides(team, field, text.n_heads, "n_heads")
        _divides(team, field, text.vocab_size, "vocab_size")
        if text.n_kv_heads % team and team % text.n_kv_heads:
            raise ConfigError(
                f"{field}: {team} neither divides the {text.n_kv_heads} n_kv_heads nor is a multiple of them, so that "
                "each could be kept by several ranks; use a number that is"
            )
        if len(text.moe_layers) < text.n_layers:
            _divides(team, field, text.dense_width, "dense_width")
        if text.moe_layers:
            _divides(team, field, text.expert_width, "expert_width")
            _divides(self.expert, "expert", text.n_experts, "n_experts")
        if self.pipeline > text.n_layers:
            raise ConfigError(
                f"pipeline: {self.pipeline} exceeds the {text.n_layers} n_layers; use at most as many stages"
            )


class Cut(NamedTuple):
    """A parameter is cut along `axis`, counted from its end, into as many parts as `over` names.

    "team": one part a rank; "kv_heads": likewise, but where there are more ranks than key heads, neighbours keep the
    same one, so that queries stay beside their keys; "tensor" and "expert": see the module. `stacked` matrices lie one
    after another along the axis, and each is cut.
    """

    axis: int
    over: Literal["team", "kv_heads", "tensor", "expert"]
    stacked: int = 1


_EXPERT, _OUT, _IN = -3, -2, -1

# The split table. What it does not name is kept whole by every rank: norms, router, vision tower, projector.
_CUTS: tuple[tuple[str, tuple[Cut, ...]], ...] = (
    (r"(embedding|head)\.weight", (Cut(_OUT, "team"),)),
    (r"layers\.\d+\.attention\.query\.weight", (Cut(_OUT, "team"),)),
    (r"layers\.\d+\.attention\.(key|value)\.weight", (Cut(_OUT, "kv_heads"),)),
    (r"layers\.\d+\.attention\.output\.weight", (Cut(_IN, "team"),)),
    (r"layers\.\d+\.(mlp|moe\.shared)\.(gate|up)\.weight", (Cut(_OUT, "team"),)),
    (r"layers\.\d+\.(mlp|moe\.shared)\.down\.weight", (Cut(_IN, "team"),)),
    (r"layers\.\d+\.moe\.experts\.gate_up", (Cut(_EXPERT, "expert"), Cut(_OUT, "tensor", stacked=2))),
    (r"layers\.\d+\.moe\.experts\.down", (Cut(_EXPERT, "expert"), Cut(_IN, "tensor"))),
)


def cuts_of(name: str) -> tuple[Cut, ...]:
    """Returns how the parameter `name` is cut; () for one that every rank of its stage keeps whole."""
    return next((cuts for pattern, cuts in _CUTS if re.fullmatch(pattern, name)), ())


class Share:
    """What one rank holds of a model. Raises ConfigError where the layout does not divide it.

    `layers` are the model's numbers of the layers held; `config` describes the share, in which they count from 0.
    """

    def __init__(self, config: LlamaConfig, layout: Layout, rank: int) -> None:
        layout.check(config)
        self.layout, self.rank, self.whole = layout, rank, config
        self.stage, self.member = divmod(rank, layout.team)
        self.expert_group, self.tensor_part = divmod(self.member, layout.tensor)
        n_layers = config.text.n_layers
        self.layers = range(n_layers * self.stage // layout.pipeline, n_layers * (self.stage + 1) // layout.pipeline)
        self.config = replace(config, text=self._text())

    @property
    def is_first(self) -> bool:
        """Whether this stage embeds ids."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage makes logits."""
        return self.stage == self.layout.pipeline - 1

    @property
    def experts(self) -> range:
        """The experts of each layer that this rank holds, or a part of each."""
        n_held = self.whole.text.n_experts // self.layout.expert
        return range(n_held * self.expert_group, n_held * (self.expert_group + 1))

    def own_name(self, name: str) -> str | None:
        """Returns what the model's parameter `name` is called in this share; None for one of another stage."""
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            return f"layers.{int(layer) - self.layers.start}.{rest}" if int(layer) in self.layers else None
        if name.startswith("embedding."):
            return name if self.is_first else None
        if name.startswith("head."):
            return name if self.is_last else None
        return name

    def part(self, name: str, weight: Tensor | Small) -> Tensor | Small:
        """Returns this rank's part of the model's parameter `name`, in whatever numbers; see `cut` and `cut_small`."""
        return self.cut(name, weight) if isinstance(weight, Tensor) else self.cut_small(name, weight)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Returns this rank's part of the model's parameter `name`, in memory of its own.

        tensor may also be one expert [out in] of a parameter [E out in]: then the part of that expert.
        """
        cuts = [cut for cut in cuts_of(name) if -cut.axis <= tensor.dim()]
        kept = list(tensor.shape)
        for cut in cuts:
            if kept[cut.axis] > 1:
                kept[cut.axis] //= self._part(cut)[1]
        return self._view(tensor, cuts).reshape(kept).clone()

    def cut_small(self, name: str, weight: Small) -> Small:
        """Returns this rank's part of a quantised parameter: the codes that its numbers have in the whole.

        A scale that all columns of a row share goes to every part of the row. Raises ConfigError where a cut would go
        through a group of columns with one scale.
        """
        n_parts = {cut.axis: self._part(cut)[1] for cut in cuts_of(name)}.get(_IN, 1)
        width = shape(weight)[_IN]
        if isinstance(weight, Int4) and width // n_parts % GROUP:
            raise ConfigError(
                f"tensor: {n_parts} parts of the {width} columns of {name} would cut groups of {GROUP} that share a "
                "scale; use fewer, or quantise each part by itself"
            )
        return type(weight)(*(self.cut(name, tensor) for tensor in weight))

    def part_of_adapter(self, adapter: Mapping[str, Factors]) -> dict[str, Factors]:
        """Returns this rank's part of corrections of the model's parameters, under the names that those have here.

        b is cut with the outputs, a with the inputs, both with the experts; what a layer sums adds up the parts.
        """
        parts = {}
        for name, factors in adapter.items():
            own_name = self.own_name(name)
            part = None if own_name is None else self._factors(name, factors)
            if own_name is not None and part is not None:
                parts[own_name] = part
        return parts

    def paste(self, name: str, whole: Tensor, part: Tensor) -> None:
        """Writes this rank's part of a parameter into the whole: with every rank of a team, `cut` undone."""
        view = self._view(whole, cuts_of(name))
        view.copy_(part.reshape(view.shape))

    def _factors(self, name: str, factors: Factors) -> Factors | None:
        """The part of one parameter's factors; None where none of the experts corrected is here."""
        a, b, ids = factors.a, factors.b, factors.experts
        if a.dim() == 3:
            every = range(len(a)) if ids is None else ids
            own = [i for i, expert in enumerate(every) if expert in self.experts]
            if not own:
                return None
            a, b = a[own], b[own]
            ids = None if ids is None else tuple(ids[i] - self.experts.start for i in own)
        cuts = cuts_of(name)
        a = self._only(a, [cut for cut in cuts if cut.axis == _IN])
        b = self._only(b, [cut for cut in cuts if cut.axis == _OUT])
        return Factors(a, b, factors.scale, ids)

    def _only(self, tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
        kept = list(tensor.shape)
        for cut in cuts:
            kept[cut.axis] //= self._part(cut)[1]
        return self._view(tensor, cuts).reshape(kept).clone()

    def _text(self) -> TextConfig:
        text, team = self.whole.text, self.layout.team
        first, held = self.layers.start, set(self.layers)
        return replace(
            text,
            n_layers=len(self.layers),
            n_heads=text.n_heads // team,
            n_kv_heads=max(1, text.n_kv_heads // team),
            rope_layers=frozenset(layer - first for layer in text.rope_layers & held),
            moe_layers=frozenset(layer - first for layer in text.moe_layers & held),
            dense_width=text.dense_width // team,
            expert_width=text.expert_width // team,
        )

    def _part(self, cut: Cut) -> tuple[int, int]:
        """Which part this rank has, of how many."""
        if cut.over == "kv_heads":
            n_parts = min(self.layout.team, self.whole.text.n_kv_heads)
            return self.member * n_parts // self.layout.team, n_parts
        return {
            "team": (self.member, self.layout.team),
            "tensor": (self.tensor_part, self.layout.tensor),
            "expert": (self.expert_group, self.layout.expert),
        }[cut.over]

    def _view(self, tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
        """The part as a view of the whole, stacked matrices still apart: one axis more for each cut."""
        for cut in cuts:
            if tensor.shape[cut.axis] > 1:  # else a scale for all columns
                part, n_parts = self._part(cut)
                tensor = torch.unflatten(tensor, cut.axis, (cut.stacked, n_parts, -1)).select(cut.axis - 1, part)
        return tensor


def _divides(parts: int, field: str, size: int, what: str) -> None:
    if size % parts:
        fitting = ", ".join(str(n) for n in range(1, min(size, 64) + 1) if size % n == 0)
        raise ConfigError(f"{field}: {parts} does not divide the {size} of {what}; use one of {fitting}")


# What ranks do together ---------------------------------------------------------------------------------------------


class Mesh:
    """The ranks that run one model, seen from one of them. All ranks call the same methods in the same order.

    A method raises DeviceError when another rank has died or does not come within `patience`. After that none works.
    """

    def __init__(self, layout: Layout, *, patience: timedelta = PATIENCE) -> None:
        """Expects an initialised torch.distributed with `layout.world` ranks; see `connect`. Makes the groups."""
        self.layout, self.rank = layout, distributed.get_rank()
        stage, member = divmod(self.rank, layout.team)
        teams = [range(first, first + layout.team) for first in range(0, layout.world, layout.team)]
        columns = [range(first, layout.world, layout.team) for first in range(layout.team)]
        self._team = [_group(ranks, patience) for ranks in teams][stage]
        self._column = [_group(ranks, patience) for ranks in columns][member]
        self._messages = distributed.new_group(backend="gloo", timeout=FOREVER)

    @property
    def is_leader(self) -> bool:
        """Whether this rank tells the others what to do."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """Returns the sum of the team's tensors of this shape; equal bits on all its ranks. `x` is used up."""
        if self.layout.team > 1:
            with _together("adding up the team's parts"):
                distributed.all_reduce(x, group=self._team)
        return x

    def join_columns(self, x: Tensor) -> Tensor:
        """Returns the columns of all ranks of the team, side by side: [R C] -> [R team*C]."""
        return torch.cat(self._gathered(x, self.layout.team, self._team), dim=1)

    def join_rows(self, x: Tensor) -> Tensor:
        """Returns the rows of all ranks, below one another: [R C] -> [world*R C]."""
        return torch.cat(self._gathered(x, self.layout.world, None))

    def to_next_stage(self, x: Tensor) -> None:
        """Sends `x` to the rank at the same place in the next stage."""
        with _together("sending to the next stage"):
            distributed.send(x.contiguous(), self.rank + self.layout.team, group=self._column)

    def from_last_stage(self, x: Tensor) -> Tensor:
        """Fills `x` with what the last stage has in it, in every stage, and returns it."""
        if self.layout.pipeline > 1:
            source = self.layout.world - self.layout.team + self.rank % self.layout.team
            with _together("waiting for the last stage"):
                distributed.broadcast(x, source, group=self._column)
        return x

    def from_stage_before(self, x: Tensor) -> Tensor:
        """Fills `x` with what the rank at the same place in the stage before sends, and returns it."""
        with _together("waiting for the stage before"):
            distributed.recv(x, self.rank - self.layout.team, group=self._column)
        return x

    def from_leader(self, x: Tensor) -> Tensor:
        """Fills `x` with what it holds on rank 0, on every rank, and returns it."""
        if self.layout.world > 1:
            with _together("waiting for rank 0"):
                distributed.broadcast(x, 0)
        return x

    def say(self, numbers: Sequence[int]) -> None:
        """Sends `numbers`, int64 each, from rank 0 to all others, which are in `hear`."""
        framed = torch.tensor([len(numbers), *numbers])
        head = F.pad(framed[:HEAD_LEN], (0, max(0, HEAD_LEN - len(framed))))
        with _together("telling the others"):
            distributed.broadcast(head, 0, group=self._messages)
            if len(framed) > HEAD_LEN:
                distributed.broadcast(framed[HEAD_LEN:].clone(), 0, group=self._messages)

    def hear(self) -> list[int]:
        """Returns the next numbers that rank 0 says, for which it waits however long that takes."""
        head = torch.empty(HEAD_LEN, dtype=torch.int64)
        with _together("listening to rank 0"):
            distributed.broadcast(head, 0, group=self._messages)
            length, *numbers = head.tolist()
            if length >= HEAD_LEN:
                rest = torch.empty(length + 1 - HEAD_LEN, dtype=torch.int64)
                distributed.broadcast(rest, 0, group=self._messages)
                numbers += rest.tolist()
        return numbers[:length]

    def _gathered(self, x: Tensor, n: int, group: ProcessGroup | None) -> list[Tensor]:
        sizes(x, "R C")
        if n == 1:
            return [x]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(n)]
        with _together("gathering the parts of all"):
            distributed.all_gather(parts, x.contiguous(), group=group)
        return parts


def connect(layout: Layout, device: torch.device, *, patience: timedelta = PATIENCE) -> Mesh:
    """Returns the mesh of the processes that torchrun started, as its environment describes them.

    Raises DeviceError outside of torchrun, ConfigError when it started another number of processes than the layout has.
    """
    if not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            distributed.init_process_group(backend, timeout=patience)
        except ValueError as error:
            raise DeviceError(
                f"several ranks: not started by torchrun ({error}); use torchrun --nproc-per-node {layout.world} ..."
            ) from error
    world = distributed.get_world_size()
    if world != layout.world:
        raise ConfigError(f"layout: has {layout.world} ranks, but {world} run; start {layout.world}, or change it")
    return Mesh(layout, patience=patience)


def own_device(device: torch.device) -> torch.device:
    """Returns the GPU that is this rank's on its host, where a GPU is meant and none is named."""
    if device == torch.device("cuda"):
        device = torch.device("cuda", distributed.get_node_local_rank(fallback_rank=0))
        torch.cuda.set_device(device)
    return device


def disconnect() -> None:
    """Leaves the other ranks, at the end of a program."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _group(ranks: range, patience: timedelta) -> ProcessGroup | None:
    """A group that all ranks make, those outside too; None where there is nobody to talk to."""
    return distributed.new_group(list(ranks), timeout=patience) if len(ranks) > 1 else None


@contextmanager
def _together(doing: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises for a lost connection and for a wait that ended
        reason = next(iter(str(error).splitlines()), "")
        raise DeviceError(
            f"ranks: lost another rank while {doing} ({reason}); its own output says why; restart all"
        ) from error


# The model of one rank ----------------------------------------------------------------------------------------------


class ShareOfLlama(Llama):
    """The model of one rank: built on the meta device, filled with the parts of `share`. All ranks call alike.

    `config` is that of the whole model; stores are asked with the layer numbers of `share.config`. Logits come out on
    every rank, equal to the last bit. In a pipeline the states do not: those of `hidden` are normed in the last stage,
    elsewhere they are what went on to the next; and only the routes of a stage's layers are known.
    """

    def __init__(self, share: Share, mesh: Mesh) -> None:
        super().__init__(share.config)
        text = share.config.text
        self.config = share.whole
        self.share, self.mesh = share, mesh
        self.layers = nn.ModuleList(ShareOfBlock(share, mesh, layer) for layer in range(text.n_layers))
        n_rows = text.vocab_size // share.layout.team
        if share.is_first:
            self.embedding = ShareOfEmbedding(n_rows, text.width, mesh, n_rows * share.member)
        else:
            del self.embedding
        if share.is_last:
            self.head = nn.Linear(text.width, n_rows, bias=False)
        else:
            del self.head

    def embed_tiles(self, tiles: Tensor) -> Tensor:
        """As the whole model's. Each rank reads its part of the tiles, and all get all features."""
        n_each = -(-len(tiles) // self.mesh.layout.world)
        n_missing = n_each * self.mesh.layout.world - len(tiles)
        dealt = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, n_missing))[n_each * self.mesh.rank :][:n_each]
        features = self.mesh.join_rows(super().embed_tiles(dealt))
        return features[: len(features) - len(features) // (len(tiles) + n_missing) * n_missing]

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        store: KVStore,
        features: Tensor | None = None,
        deltas: Deltas | None = None,
    ) -> Hidden:
        if self.share.is_first:
            x = self.embed(ids, features)
        else:
            x = self.mesh.from_stage_before(self.norm.weight.new_empty(len(ids), self.config.text.width))  # T D
        x, routes = self.run_layers(x, positions, store, deltas)
        if self.share.is_last:
            return Hidden(self.norm(x), routes)
        self.mesh.to_next_stage(x)
        return Hidden(x, routes)

    def logits(self, states: Tensor, deltas: Deltas | None = None) -> Tensor:
        R, _ = sizes(states, "R D")
        if R == 0:
            return states.new_empty(0, self.config.text.vocab_size, dtype=torch.float32)
        if self.share.is_last:
            rows = self.mesh.join_columns(super().logits(states, deltas))
        else:
            rows = states.new_empty(R, self.config.text.vocab_size, dtype=torch.float32)
        return self.mesh.from_last_stage(rows)


class ShareOfEmbedding(nn.Embedding):
    """The rows from id `first` on. Ids of other ranks add nothing, so that the sum is exact."""

    def __init__(self, n_rows: int, width: int, mesh: Mesh, first: int) -> None:
        super().__init__(n_rows, width, _weight=torch.empty(n_rows, width))
        self.mesh, self.first = mesh, first

    def forward(self, ids: Tensor) -> Tensor:
        rows = ids - self.first
        is_here = (rows >= 0) & (rows < self.num_embeddings)
        return self.mesh.sum(super().forward(rows.where(is_here, 0)) * is_here[:, None])  # T D


class ShareOfBlock(Block):
    """A layer of which every rank of the team makes a part: one sum after attention, one after the feed-forward."""

    def __init__(self, share: Share, mesh: Mesh, layer: int) -> None:
        super().__init__(share.config.text, layer)
        self.mesh = mesh
        if self.moe is not None:
            self.moe = ShareOfMoE(share)

    def forward(
        self, x: Tensor, rotation: Rotation, temperature: Tensor | None, store: KVStore, deltas: Deltas | None = None
    ) -> tuple[Tensor, Route | None]:
        x = x + self.mesh.sum(self.attention(self.attention_norm(x), rotation, temperature, store, deltas))
        h = self.feed_forward_norm(x)
        if self.moe is None:
            assert self.mlp is not None
            return x + self.mesh.sum(self.mlp(h, deltas)), None
        out, route = self.moe(h, deltas)
        return x + self.mesh.sum(out), route


class ShareOfMoE(MoE):
    """The whole router, some experts and some columns of the shared one. What it returns is a summand.

    Every rank sees every token, so nothing is exchanged: a rank runs its experts for the tokens that chose them.
    """

    def __init__(self, share: Share) -> None:
        super().__init__(share.config.text)
        whole, held = share.whole.text, share.experts
        self.held = held
        self.experts = Experts(
            replace(
                whole, n_experts=len(held), n_active_experts=1, expert_width=whole.expert_width // share.layout.tensor
            )
        )

    def forward(self, x: Tensor, deltas: Deltas | None = None) -> tuple[Tensor, Route]:
        logits = through(self.router, x, deltas)  # T E
        best, experts = logits.topk(self.n_active, dim=-1)  # T k
        scores = best.float().sigmoid().to(x.dtype)  # T k
        out: Tensor = self.shared(x, deltas)  # T D
        token, choice = ((experts >= self.held.start) & (experts < self.held.stop)).nonzero(as_tuple=True)  # R R
        if len(token):
            own = experts[token, choice, None] - self.held.start  # R 1
            of_own = None if deltas is None else deltas.of_rows(token)
            out = out.index_add(0, token, self.routed(x[token], scores[token, choice, None], own, of_own))  # T D
        return out, Route(logits, experts)
