"""The loss of next-token training: cross entropy where text is learnt, plus what keeps the router balanced.

In: a model and a packed `Batch`. Out: sums that the loop adds over batches, and the load of each expert.
The head is applied to learnt positions only, a chunk at a time: the logits of a batch never exist whole, and the
gradients of a chunk are made together with its loss.
Source: router loss, Switch Transformer (arXiv 2101.03961, eq. 4); z-loss, ST-MoE (arXiv 2202.08906, eq. 5).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from puna.kernels import training
from puna.model.transformer import Llama
from puna.shapes import sizes
from puna.train.banded import Banded
from puna.train.pack import PADDING, Batch


class Trunk(NamedTuple):
    """What comes out below the head: states [T D]; balance and z, float32 scalars; load, float32 [L E], is the share of
    the tokens that each expert of each MoE layer got (each row sums to 1)."""

    states: Tensor
    balance: Tensor
    z: Tensor
    load: Tensor


class ChunkLoss(NamedTuple):
    """Cross entropy of each row, float32 [C], and the gradients of its weighted sum by states [C D] and head [V D]."""

    losses: Tensor
    by_states: Tensor
    by_head: Tensor


class Loss(NamedTuple):
    """Losses of one batch. `total` is what to differentiate; the rest is detached.

    nll: mean by weight in nats. balance: 1 when the router is even, up to E when one expert gets all. weight: the sum
    of the loss weights in this batch. load float32 [L E]. metrics: whatever else was measured, as sums over the batch,
    float32 scalars by name, which the log divides by the weight of the step.
    """

    total: Tensor
    nll: Tensor
    balance: Tensor
    weight: Tensor
    load: Tensor
    metrics: Mapping[str, Tensor] = MappingProxyType({})


TrunkFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Trunk]
ChunkFunction = Callable[[Tensor, Tensor, Tensor, Tensor], ChunkLoss]


class NextToken:
    """The loss of one model. `compiled` says whether its two pieces run as graphs; results differ in rounding only."""

    def __init__(self, model: Llama, *, balance: float, z: float, chunk: int, compiled: bool = False) -> None:
        self.model = model
        self.balance = balance
        self.z = z
        self.chunk = chunk
        self.trunk: TrunkFunction = self._trunk
        self.chunk_loss: ChunkFunction = head_chunk
        if compiled:
            self.trunk = torch.compile(self._trunk, fullgraph=True, dynamic=False)
            if not training.can_train(model.head.weight):
                self.chunk_loss = torch.compile(head_chunk, fullgraph=True, dynamic=False)

    def total(self, batch: Batch) -> Tensor:
        """Returns the sum of the loss weights."""
        return batch.weights.sum()

    def tensors(self) -> dict[str, Tensor]:
        """Returns nothing: this loss remembers nothing."""
        return {}

    def __call__(self, batch: Batch, total_weight: Tensor, share: float = 1.0) -> Loss:
        """Returns the losses of `batch`.

        total_weight: float32 scalar, the weights of all batches of this step; share: this batch's part of the step, by
        which router losses are scaled. So the gradients of several batches add up to those of one large one.
        """
        trunk = self.trunk(batch.ids, batch.positions, batch.documents, batch.tiles)
        learnt = batch.weights.flatten().nonzero().squeeze(1)  # R
        weights = batch.weights.flatten()[learnt]  # R
        targets = batch.targets.flatten()[learnt]  # R
        states = trunk.states[learnt]  # R D
        shares = weights / total_weight
        nll = head_loss(states, self.model.head.weight, targets, shares, self.chunk, self.chunk_loss)
        router = self.balance * trunk.balance + self.z * trunk.z
        weight = weights.sum()
        return Loss(
            total=nll + router * share,
            nll=nll.detach() * total_weight / weight.clamp(min=1e-9),
            balance=trunk.balance.detach(),
            weight=weight,
            load=trunk.load.detach(),
        )

    @torch.no_grad()
    def token_losses(self, batch: Batch) -> Tensor:
        """Returns the cross entropy in nats of each target, float32 [B S]; 0 where the weight is 0."""
        states = self.trunk(batch.ids, batch.positions, batch.documents, batch.tiles).states
        weights = batch.weights.flatten()
        learnt = weights.nonzero().squeeze(1)  # R
        losses = torch.zeros_like(weights)
        for start in range(0, len(learnt), self.chunk):
            rows = learnt[start : start + self.chunk]
            logits = self.model.logits(states[rows])  # C V
            losses[rows] = F.cross_entropy(logits, batch.targets.flatten()[rows], reduction="none")
        return losses.view(batch.weights.shape)

    def _trunk(self, ids: Tensor, positions: Tensor, documents: Tensor, tiles: Tensor) -> Trunk:
        """ids, positions, documents int64 [B S]; tiles uint8 [I 3 S S], I may be 0."""
        model = self.model
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's fused kernel is four times slower backward, at 65 patches
            features = model.embed_tiles(normalise(tiles)) if tiles.shape[0] else None  # M D
        store = Banded(model.config.text, positions, documents)
        states, routes = model.hidden(ids.flatten(), positions.flatten(), store, features)
        if not routes:
            zero = states.new_zeros((), dtype=torch.float32)
            return Trunk(states, zero, zero, states.new_zeros((0, 0), dtype=torch.float32))
        logits = torch.stack([route.logits for route in routes]).float()  # L T E
        experts = torch.stack([route.experts for route in routes])  # L T k
        return Trunk(states, *router_losses(logits, experts, documents.flatten() != PADDING))


class RouterLosses(NamedTuple):
    """balance and z, float32 scalars; load float32 [L E]."""

    balance: Tensor
    z: Tensor
    load: Tensor


def router_losses(logits: Tensor, experts: Tensor, counts: Tensor) -> RouterLosses:
    """Returns the mean over the layers of the balance and z losses, and the load.

    logits float32 [L T E], experts int64 [L T k], counts bool [T]: which tokens count (not padding). Balance is
    E * sum over experts of load * mean softmax probability; its gradient flows through the probabilities only.
    """
    _, _, E = sizes(logits, "L T E")
    share = counts.float() / counts.sum().clamp(min=1)  # T
    chosen = F.one_hot(experts, E).float().mean(2)  # L T E
    load = (chosen * share[:, None]).sum(1)  # L E
    probability = (logits.softmax(-1) * share[:, None]).sum(1)  # L E
    balance = E * (load * probability).sum(-1).mean()
    z = (logits.logsumexp(-1).square() * share).sum(-1).mean()
    return RouterLosses(balance, z, load)


def normalise(tiles: Tensor) -> Tensor:
    """Returns uint8 tiles as float32 in -1..1, as `prompt.tiles` makes them: (x / 255 - 0.5) / 0.5."""
    return (tiles.float() / 255 - 0.5) / 0.5


def head_chunk(states: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> ChunkLoss:
    """Returns the losses of one chunk together with its gradients.

    states [C D] and head [V D] in one dtype, targets int64 [C], weights float32 [C]. The softmax is in float32.
    """
    logits = states @ head.T  # C V
    if training.can_train(logits):
        losses = training.cross_entropy_(logits, targets, weights)  # and in place of the logits their gradients
        return ChunkLoss(losses, logits @ head, logits.T @ states)
    logits = logits.float()
    normaliser = logits.logsumexp(-1)  # C
    losses = normaliser - logits.gather(1, targets[:, None]).squeeze(1)  # C
    is_target = torch.arange(head.shape[0], device=head.device) == targets[:, None]  # C V
    by_logits = (((logits - normaliser[:, None]).exp() - is_target.float()) * weights[:, None]).to(states.dtype)  # C V
    return ChunkLoss(losses, by_logits @ head, by_logits.T @ states)


class _HeadLoss(torch.autograd.Function):
    """Sum of weight * cross entropy over all rows; the backward pass only hands on what the forward pass made."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, targets: Tensor, weights: Tensor, size: int, chunk: ChunkFunction
    ) -> Tensor:
        R, _ = sizes(states, "R D")
        by_states = torch.empty_like(states)
        by_head: Tensor | None = None
        total = torch.zeros((), dtype=torch.float32, device=head.device)
        for start in range(0, R, size):
            rows = slice(start, min(start + size, R))
            n = rows.stop - start
            part = chunk(  # the last chunk is filled up with rows of weight 0, so that all have one shape
                F.pad(states[rows], (0, 0, 0, size - n)),
                head,
                F.pad(targets[rows], (0, size - n)),
                F.pad(weights[rows], (0, size - n)),
            )
            total += (part.losses[:n] * weights[rows]).sum()
            by_states[rows] = part.by_states[:n]
            by_head = part.by_head if by_head is None else by_head.float().add_(part.by_head)
        if by_head is None:
            by_head = torch.zeros_like(head)
        ctx.save_for_backward(by_states, by_head)
        ctx.head_dtype = head.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        by_states, by_head = ctx.saved_tensors
        (scale,) = upstream
        if scale.device.type == "cpu" and scale == 1:  # spares a pass over the head
            return by_states, by_head.to(ctx.head_dtype), None, None, None, None
        return (by_states * scale).to(by_states.dtype), (by_head * scale).to(ctx.head_dtype), None, None, None, None


def head_loss(
    states: Tensor, head: Tensor, targets: Tensor, weights: Tensor, size: int, chunk: ChunkFunction
) -> Tensor:
    """Returns the sum of weight * cross entropy over all rows, float32 scalar, `size` rows at a time by `chunk`."""
    total: Tensor = _HeadLoss.apply(states, head, targets, weights, size, chunk)  # type: ignore[no-untyped-call]
    return total


def add_gradient(x: Tensor, loss: Tensor) -> Tensor:
    """Returns x as it is, through which `loss`, a scalar, is differentiated along with whatever x is used for."""
    through: Tensor = _AddGradient.apply(x, loss)  # type: ignore[no-untyped-call]
    return through


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.shape, ctx.dtype, ctx.device = loss.shape, loss.dtype, loss.device
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        return upstream[0], torch.ones(ctx.shape, dtype=ctx.dtype, device=ctx.device)
