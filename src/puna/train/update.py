"""One update: the passes of a step's batches, then the optimiser. In one process, or on all ranks alike.

In: this process's batches of a step. Out: new weights, and what all batches of all ranks showed.
Not here: when a run ends, what is logged (`loop`).
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from puna.config import LlamaConfig
from puna.errors import DeviceError
from puna.model.transformer import Llama
from puna.train import mesh as meshes
from puna.train.mesh import Mesh
from puna.train.next_token import Loss
from puna.train.objective import Objective
from puna.train.optim import Optimizer
from puna.train.pack import Batch
from puna.train.passes import Passes
from puna.train.recipe import RunRecipe
from puna.train.spikes import Limits
from puna.train.spread import spread
from puna.train.stage import Measured, Stage

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others: as long as the slowest needs for a step, its first with compilation."""

NO_LIMITS = Limits()
Names = Callable[[Batch], list[str]]


class Seen(NamedTuple):
    """What the batches of a step showed together. nats: the sum of weight times cross entropy; weight: that of the
    weights. balance: mean of the batches, 1 is even. load float32 [L E]: share of the tokens that each expert got.
    metrics: what an objective measured besides, as means by weight. refused: why no update was made, else empty;
    suspects: the documents in question, then.
    """

    nats: float
    weight: float
    balance: float
    load: Tensor
    tokens: int
    tiles: int
    grad_norm: float
    metrics: Mapping[str, float] = MappingProxyType({})
    refused: str = ""
    suspects: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """Nats per learnt token."""
        return self.nats / max(self.weight, 1.0)


class Update(Protocol):
    """Makes one update at `lr_share` of the peak learning rate. None is made, and the weights are as they were, where
    loss or gradient are not finite or above `limits`: on all ranks alike."""

    def __call__(self, batches: Sequence[Batch], lr_share: float, names: Names, limits: Limits = NO_LIMITS) -> Seen: ...


class OneProcess:
    """The update of a whole model by one process."""

    def __init__(self, loss: Objective, optimizer: Optimizer, device: torch.device | str) -> None:
        self.loss, self.optimizer, self.device = loss, optimizer, device

    def __call__(self, batches: Sequence[Batch], lr_share: float, names: Names, limits: Limits = NO_LIMITS) -> Seen:
        own = torch.stack([self.loss.total(batch) for batch in batches]).sum()
        total = self.summed(own).clamp(min=1.0).to(self.device)
        share = float(self.summed(torch.tensor(float(len(batches)))))
        losses: list[Loss] = []
        wrong: list[str] = []
        for batch in batches:
            part = self.loss(batch.to(self.device), total, share=1 / share)
            part.total.backward()  # type: ignore[no-untyped-call]
            losses.append(part)
            if not limits.allow_loss(float(part.nll)):
                wrong += names(batch)
        self.sum_gradients()
        seen = _updated(self.seen(batches, losses, total), self.optimizer, lr_share, limits)
        if not seen.refused:
            return seen
        suspects = self.of_all(wrong) or self.of_all([name for batch in batches for name in names(batch)])
        return seen._replace(suspects=tuple(suspects))

    def seen(self, batches: Sequence[Batch], losses: Sequence[Loss], total: Tensor) -> Seen:
        """Returns what the batches showed together."""
        return Seen(
            nats=sum(float(part.nll) * float(part.weight) for part in losses),
            weight=sum(float(part.weight) for part in losses),
            balance=sum(float(part.balance) for part in losses) / len(losses),
            load=torch.stack([part.load for part in losses]).mean(0).cpu(),  # L E
            tokens=sum(batch.n_tokens for batch in batches),
            tiles=sum(batch.n_tiles for batch in batches),
            grad_norm=math.nan,
            metrics={
                name: sum(float(part.metrics[name]) for part in losses) / float(total) for name in losses[0].metrics
            },
        )

    def summed(self, own: Tensor) -> Tensor:
        """Returns the sum over all processes: there is one."""
        return own

    def of_all(self, own: list[str]) -> list[str]:
        """Returns what all processes name."""
        return own

    def sum_gradients(self) -> None:
        """Gradients are those of all processes' batches already."""


class Replicas(OneProcess):
    """The update of a model of which every rank has the whole, and reads other batches than the others."""

    def summed(self, own: Tensor) -> Tensor:
        """Returns the sum over all ranks."""
        total = own.detach().clone().to(self.device)
        distributed.all_reduce(total)
        return total

    def of_all(self, own: list[str]) -> list[str]:
        """Returns what all ranks name."""
        return _of_all(own)

    def sum_gradients(self) -> None:
        """Adds up the gradients of all ranks, one after the other in the same order on each."""
        for parameter in self.optimizer.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def seen(self, batches: Sequence[Batch], losses: Sequence[Loss], total: Tensor) -> Seen:
        """Returns what the batches of all ranks showed together."""
        own = super().seen(batches, losses, total)
        world = distributed.get_world_size()
        values = [own.nats, own.weight, own.balance / world, own.tokens, own.tiles, *own.metrics.values()]
        sums = self.summed(
            torch.tensor([*values, *(own.load.flatten() / world).tolist()], dtype=torch.float64)
        ).tolist()
        n = len(values)
        return Seen(
            nats=sums[0],
            weight=sums[1],
            balance=sums[2],
            load=torch.tensor(sums[n:]).view(own.load.shape),
            tokens=round(sums[3]),
            tiles=round(sums[4]),
            grad_norm=math.nan,
            metrics=dict(zip(own.metrics, sums[5:n], strict=True)),
        )


class ManyRanks:
    """The update of a model that is spread over ranks."""

    def __init__(self, stage: Stage, optimizer: Optimizer, recipe: RunRecipe, device: torch.device) -> None:
        self.stage, self.optimizer = stage, optimizer
        self.passes = Passes(stage, getattr(torch, recipe.compute.dtype), device)

    def __call__(self, batches: Sequence[Batch], lr_share: float, names: Names, limits: Limits = NO_LIMITS) -> Seen:
        seen = _updated(self._together(batches, self.passes(batches)), self.optimizer, lr_share, limits)
        if not seen.refused:
            return seen
        return seen._replace(suspects=tuple(_of_all([name for batch in batches for name in names(batch)])))

    def _together(self, batches: Sequence[Batch], measured: Sequence[Measured]) -> Seen:
        """Adds up what all ranks have seen, in one go. Ranks that share rows or matrices count the same things."""
        stage, layout, text = self.stage, self.stage.mesh.layout, self.stage.config.text
        n_batches = len(batches) * layout.readers
        load = torch.zeros(len(text.moe_layers), text.n_experts if text.moe_layers else 0)
        mine = [row for row, layer in enumerate(sorted(text.moe_layers)) if layer in stage.layers]
        load[mine] = torch.stack([each.load for each in measured]).sum(0).cpu() / n_batches
        weight = sum(float(batch.weights.sum()) for batch in batches)
        sums = torch.tensor(
            [
                sum(float(each.nats) for each in measured) / layout.tensor,
                sum(float(each.balance) for each in measured) / layout.tensor / n_batches,
                weight / (layout.tensor * layout.context * layout.pipeline),
                sum(batch.n_tokens for batch in batches) / (layout.tensor * layout.context * layout.pipeline),
                sum(batch.n_tiles for batch in batches) / (layout.tensor * layout.context * layout.pipeline),
                *(load.flatten() / layout.tensor).tolist(),
            ],
            dtype=torch.float64,
        ).to(self.passes.device)
        distributed.all_reduce(sums)
        nats, balance, weight, tokens, tiles, *loads = sums.tolist()
        shares = torch.tensor(loads).view(load.shape)
        return Seen(nats, weight, balance, shares, round(tokens), round(tiles), math.nan)


def join(recipe: RunRecipe, config: LlamaConfig, device_type: str) -> Mesh:
    """Returns the mesh of the processes that torchrun started. Raises DeviceError outside of it, ConfigError when the
    recipe's [parallel] does not fit them or the model."""
    meshes.check(recipe.parallel, config, recipe.batch)
    if not distributed.is_initialized():
        try:
            _meet("nccl" if device_type == "cuda" else "gloo")
        except ValueError as error:
            n = recipe.parallel.world
            raise DeviceError(
                f"parallel: {recipe.parallel.product} are {n} ranks, and no others run ({error}); start them with "
                f"torchrun --nproc-per-node {n} -m puna train ..."
            ) from error
    return meshes.build(recipe.parallel, device_type)


def _meet(backend: str) -> None:
    """Joins the processes that torchrun started. It keeps one store over its restarts, with the addresses of dead ranks
    in it (torch 2.13), so that each restart needs names of its own. Raises ValueError where none were started."""
    store, rank, world = next(iter(rendezvous("env://", timeout=PATIENCE)))
    own = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=PATIENCE)


def on_ranks(model: Llama, mesh: Mesh, recipe: RunRecipe) -> tuple[Stage, Optimizer]:
    """Returns this rank's stage of the float32 `model`, which is used up, and its optimiser."""
    stage = spread(model, mesh, recipe.loss, getattr(torch, recipe.compute.dtype))
    return stage, Optimizer(stage.model.named_parameters(), recipe.optimizer, stages=recipe.parallel.pipeline)


def _updated(seen: Seen, optimizer: Optimizer, lr_share: float, limits: Limits) -> Seen:
    """Makes the update, unless what all ranks have seen, or the norm of their gradients, is above the limits."""
    norm = float(optimizer.step(lr_share, limits.norm if limits.allow_loss(seen.loss) else -math.inf))
    return seen._replace(grad_norm=norm, refused=limits.broken(seen.loss, norm))


def _of_all(own: list[str]) -> list[str]:
    found: list[list[str]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return list(dict.fromkeys(name for names in found for name in names))
