"""The ranks of a training run: how many along each direction, and who talks with whom.

In: the [parallel] table of a recipe and the processes that torchrun started. Out: a `Mesh`: torch's device meshes, on
which weights are sharded, and the groups in which ranks exchange numbers. Ranks are numbered stage after stage, and
within a stage neighbours talk most:

    pipeline     stages of consecutive layers
    replicate    whole copies of a stage; gradients are summed over them at the end
    shard        ranks that each keep a part of every weight and read other rows (FSDP)
    context      ranks that share the positions of each row
    tensor       ranks that share each matrix of attention, dense and shared feed-forward, embedding and head
    expert       of all shard x context x tensor ranks, so many deal the routed experts out among them

Not here: what is sharded how (`spread`), what is computed (`stage`).
"""

import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import distributed
from torch.distributed import DistError, ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.train.recipe import BatchRecipe, ParallelRecipe

_LOST = re.compile(r"gloo|nccl|connection|broken pipe|timed out", re.IGNORECASE)
"""Words of errors about connections that broke and waits that ended, which gloo raises without a class of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The ranks seen from one of them.

    dense    torch's mesh (pipeline, replicate, fsdp, tensor), where fsdp is shard x context
    experts  the same ranks as (pipeline, replicate, fsdp, expert): other weights, other neighbours
    context  the ranks that share this one's rows
    data     the ranks of this stage that read other tokens than each other: over them a loss is summed
    """

    layout: ParallelRecipe
    dense: DeviceMesh
    experts: DeviceMesh
    context: ProcessGroup
    data: ProcessGroup

    @property
    def stage(self) -> int:
        return self.dense.get_local_rank("pipeline")

    @property
    def context_rank(self) -> int:
        return self.dense.get_local_rank("fsdp") % self.layout.context

    @property
    def tensor_rank(self) -> int:
        return self.dense.get_local_rank("tensor")

    @property
    def reader(self) -> int:
        """Which of the different batches of a step this rank reads: equal for ranks that share rows."""
        shard = self.dense.get_local_rank("fsdp") // self.layout.context
        return self.dense.get_local_rank("replicate") * self.layout.shard + shard

    @property
    def tensor(self) -> ProcessGroup:
        return self.dense.get_group("tensor")

    @property
    def expert(self) -> ProcessGroup:
        return self.experts.get_group("expert")


def build(layout: ParallelRecipe, device_type: str) -> Mesh:
    """Returns the mesh of this rank; all ranks call it. torch.distributed must have `layout.world` ranks.

    Raises ConfigError when it has another number.
    """
    world = distributed.get_world_size()
    if world != layout.world:
        raise ConfigError(
            f"parallel: {layout.product} is {layout.world} ranks, but {world} run; start {layout.world}, or change it"
        )
    fsdp, each = layout.shard * layout.context, layout.shard * layout.context * layout.tensor
    dense = init_device_mesh(
        device_type,
        (layout.pipeline, layout.replicate, fsdp, layout.tensor),
        mesh_dim_names=("pipeline", "replicate", "fsdp", "tensor"),
    )
    experts = init_device_mesh(
        device_type,
        (layout.pipeline, layout.replicate, each // layout.expert, layout.expert),
        mesh_dim_names=("pipeline", "replicate", "fsdp", "expert"),
    )
    ranks = torch.arange(world).view(layout.pipeline, layout.replicate, layout.shard, layout.context, layout.tensor)
    return Mesh(
        layout=layout,
        dense=dense,
        experts=experts,
        context=_own_group(ranks.movedim(3, -1).reshape(-1, layout.context)),
        data=_own_group(ranks.movedim(4, 1).reshape(layout.pipeline * layout.tensor, -1)),
    )


def check(layout: ParallelRecipe, config: LlamaConfig, batch: BatchRecipe) -> None:
    """Raises ConfigError, naming field, value and remedy, when a model cannot be trained on such ranks."""
    text = config.text
    each = layout.shard * layout.context * layout.tensor
    _divides("tensor", layout.tensor, text.n_heads, "n_heads")
    _divides("tensor", layout.tensor, text.n_kv_heads, "n_kv_heads")
    _divides("tensor", layout.tensor, text.vocab_size, "vocab_size")
    if len(text.moe_layers) < text.n_layers:
        _divides("tensor", layout.tensor, text.dense_width, "dense_width")
    if text.moe_layers:
        _divides("tensor", layout.tensor, text.expert_width, "expert_width")
        _divides("expert", layout.expert, text.n_experts, "n_experts")
        _divides("tensor", layout.tensor, batch.rows * batch.row_len // layout.context, "tokens of a rank's rows")
    _divides("expert", layout.expert, each, "shard x context x tensor")
    _divides("context", layout.context, batch.row_len, "batch.row_len")
    if layout.pipeline > text.n_layers:
        raise ConfigError(f"parallel.pipeline: {layout.pipeline} exceeds the {text.n_layers} layers; use fewer stages")
    least = layout.readers * layout.pipeline
    if batch.accumulate % layout.readers or batch.accumulate < least:
        raise ConfigError(
            f"batch.accumulate: {batch.accumulate} batches a step; replicate x shard, {layout.readers} ranks, read "
            f"equal numbers of them, and each of {layout.pipeline} stages needs one at a time; use a multiple of "
            f"{layout.readers} from {least} on"
        )


def is_loss(error: BaseException) -> bool:
    """Says whether an error is what torch.distributed raises when other ranks are gone or silent."""
    return isinstance(error, DistError) or (type(error) is RuntimeError and bool(_LOST.search(str(error))))


def _divides(field: str, parts: int, size: int, what: str) -> None:
    if size % parts:
        fitting = ", ".join(str(n) for n in range(1, min(size, 64) + 1) if size % n == 0)
        raise ConfigError(f"parallel.{field}: {parts} does not divide {what}, {size}; use one of {fitting}")


def _own_group(rows: torch.Tensor) -> ProcessGroup:
    """Makes a group of each row of ranks, as every rank must, and returns the one that this rank is in."""
    groups = [(row, distributed.new_group(row)) for row in rows.tolist()]
    return next(cast(ProcessGroup, group) for row, group in groups if distributed.get_rank() in row)
