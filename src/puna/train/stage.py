"""The part of a model that one rank trains, from ids or states to states or the loss: one forward of one batch.

In: rows of packed documents, and from the stage before the states. Out: states for the next stage, or at the end the
summed loss of this rank's tokens over the weights of the whole step. Losses of all ranks and batches add up to the
step's loss, and so do their gradients. What the router should be punished for is added where it arises, so that a
stage needs nothing of the others but states.
Not here: how weights are spread over ranks (`spread`), which batch is whose (`loop`).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from puna.model.attention import KVStore
from puna.model.moe import Experts, Route
from puna.model.rope import query_temperature, text_frequencies, text_rotation
from puna.model.transformer import Llama
from puna.train.banded import Banded
from puna.train.context import Stretch
from puna.train.exchange import experts_across, join, split, sum_over
from puna.train.mesh import Mesh
from puna.train.next_token import ChunkLoss, add_gradient, head_chunk, head_loss, normalise
from puna.train.pack import PADDING, Batch
from puna.train.recipe import LossRecipe


class Measured(NamedTuple):
    """What a forward saw, detached: the sum of weight times nats, float32 scalar, on last stages; this rank's part of
    the balance loss, the mean over all layers of the model, float32 scalar; and the share of all tokens of the batch
    that each expert of this stage's MoE layers got from this rank, float32 [L E]."""

    nats: Tensor
    balance: Tensor
    load: Tensor


class Inputs(NamedTuple):
    """Batches of one step as tensors, one below the other: what `Stage.forward` takes, as `pack.Batch` has it."""

    ids: Tensor
    positions: Tensor
    documents: Tensor
    targets: Tensor
    weights: Tensor
    tiles: Tensor

    @classmethod
    def of(cls, batches: list[Batch], device: torch.device) -> "Inputs":
        return cls(*(torch.cat([getattr(batch, name) for batch in batches]).to(device) for name in cls._fields))


class Stage(nn.Module):
    """Holds some layers of a `Llama`, the first stage its embedding and vision tower too, the last one its head."""

    def __init__(self, model: Llama, mesh: Mesh, loss: LossRecipe, *, compiled: bool = False) -> None:
        """Takes `model` apart: what other stages hold is removed from it. `compiled`: the head's loss is a graph."""
        super().__init__()
        n, stages = model.config.text.n_layers, mesh.layout.pipeline
        self.config, self.mesh, self.options = model.config, mesh, loss
        self.is_first, self.is_last = mesh.stage == 0, mesh.stage == stages - 1
        kept = nn.ModuleList()  # under the numbers that they have in the model, and so under its names
        self.layers = range(n * mesh.stage // stages, n * (mesh.stage + 1) // stages)
        for layer in self.layers:
            kept.add_module(str(layer), model.layers[layer])
        model.layers = kept
        if not self.is_first:
            del model.embedding
            model.vision = model.projector = None
        if not self.is_last:
            del model.norm, model.head
        self.model = model
        self.step_weight = 1.0
        self.batch_share = 1.0
        self.measured: list[Measured] = []
        self.head_chunk = torch.compile(head_chunk, fullgraph=True, dynamic=False) if compiled else head_chunk

    def begin_step(self, step_weight: float, batch_share: float) -> None:
        """Sets what losses are divided by: the loss weights of the whole step; `batch_share` scales router losses."""
        self.step_weight, self.batch_share = step_weight, batch_share
        self.measured.clear()

    def forward(
        self,
        x: Tensor,
        ids: Tensor,
        positions: Tensor,
        documents: Tensor,
        targets: Tensor,
        weights: Tensor,
        tiles: Tensor | None = None,
    ) -> Tensor:
        """ids, positions, documents, targets int64 [B S] and weights float32 [B S] are whole rows, tiles uint8
        [I 3 s s] theirs, if any; x [B*S/context D] is what the stage before returned, anything in the first stage.

        Returns states [B*S/context D], or in the last stage the loss, float32 [1].
        """
        layout = self.mesh.layout
        length = ids.shape[1] // layout.context
        own = slice(length * self.mesh.context_rank, length * (self.mesh.context_rank + 1))
        if self.is_first:
            x = self.model.embed(ids[:, own].flatten(), self._features(ids, tiles, own))  # T D
        store: KVStore
        if layout.context == 1:
            store = Banded(self.config.text, positions, documents)
        else:
            place, group = self.mesh.context_rank, self.mesh.context
            store = Stretch(self.config.text, positions, documents, place, group)
        x, balance, load = self._layers(x, positions[:, own].flatten(), store, documents[:, own].flatten() != PADDING)
        nats = x.new_zeros((), dtype=torch.float32)
        if self.is_last:
            x, nats = self._loss(self.model.norm(x), targets[:, own].flatten(), weights[:, own].flatten())
        self.measured.append(Measured(nats, balance, load))
        return x

    def _features(self, ids: Tensor, tiles: Tensor | None, own: slice) -> Tensor | None:
        """Returns the features [M D] of the patch tokens of this rank's stretch, in order."""
        if tiles is None or not len(tiles):
            return None
        with sdpa_kernel(SDPBackend.MATH):  # as in `next_token`
            features = self.model.embed_tiles(normalise(tiles).to(self.model.embedding.weight.dtype))
        is_patch = ids.eq(-1 if self.config.patch_id is None else self.config.patch_id)  # B S
        places = (is_patch.flatten().cumsum(0) - 1).view(is_patch.shape)[:, own]
        mine = places[is_patch[:, own]]
        return features[mine] if len(mine) else features[:1]  # of no token, but the tower takes part all the same

    def _layers(self, x: Tensor, positions: Tensor, store: KVStore, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        text = self.config.text
        rotation = text_rotation(positions, text_frequencies(text).to(x.device))
        scale = text.query_temperature
        temperature = None if scale is None else query_temperature(positions, scale)
        share = counts.float() / sum_over(counts.sum(), self.mesh.context).clamp(min=1)  # T, of the whole rows'
        balances, loads = [x.new_zeros((), dtype=torch.float32)], []
        for layer in self.model.layers:
            x, route = self._run(layer, x, rotation, temperature, store)
            if route is not None:
                x, balance, load = self._with_router_loss(x, route, share)
                balances.append(balance)
                loads.append(load)
        load = torch.stack(loads) if loads else x.new_zeros((0, 0), dtype=torch.float32)
        return x, torch.stack(balances).sum(), load

    def _run(self, layer: nn.Module, *inputs: object) -> tuple[Tensor, Route | None]:
        if self.mesh.layout.recompute and torch.is_grad_enabled():
            out: tuple[Tensor, Route | None] = checkpoint(layer, *inputs, use_reentrant=False)
            return out
        out = layer(*inputs)
        return out

    def _with_router_loss(self, x: Tensor, route: Route, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x with the gradients of the layer's part of the router losses, as `next_token.router_losses` has
        them of the whole rows of the batch; and detached this rank's part of the balance and its load, float32 [E]."""
        n_layers, n_experts = len(self.config.text.moe_layers), self.config.text.n_experts
        logits = route.logits.float()  # T E
        own_load = (F.one_hot(route.experts, n_experts).float().mean(1) * share[:, None]).sum(0)  # E
        load = sum_over(own_load, self.mesh.context)
        balance = n_experts * (load * (logits.softmax(-1) * share[:, None]).sum(0)).sum()
        z = (logits.logsumexp(-1).square() * share).sum()
        loss = (self.options.balance * balance + self.options.z * z) * self.batch_share / n_layers
        return add_gradient(x, loss), balance.detach() / n_layers, own_load

    def _loss(self, states: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        learnt = weights.nonzero().squeeze(1)  # R
        head = own(self.model.head.weight)  # V/tensor D
        tensor, first = self.mesh.tensor, len(head) * self.mesh.tensor_rank

        def chunk(states: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> ChunkLoss:
            if tensor.size() == 1:
                return self.head_chunk(states, head, targets, weights)
            return head_chunk_across(states, head, targets - first, weights, tensor)

        nats = head_loss(states[learnt], head, targets[learnt], weights[learnt], self.options.chunk, chunk)
        return torch.stack([nats / self.step_weight]), nats.detach()  # no view, which FSDP2 warns of


class ExpertsAcross(nn.Module):
    """The routed experts that this rank holds of one layer. Takes the place of `model.moe.Experts`, for all of which it
    answers: tokens are dealt out among the ranks that share a matrix, and each then goes to the rank of its expert.
    """

    def __init__(self, experts: Experts, mesh: Mesh) -> None:
        super().__init__()
        self.gate_up, self.down, self.mesh, self.product = experts.gate_up, experts.down, mesh, experts.product

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        tensor = self.mesh.tensor
        rows, scores, experts = split(x, tensor), split(scores, tensor), split(experts, tensor)
        weights = own(self.gate_up), own(self.down)
        return join(experts_across(rows, scores, experts, *weights, self.mesh.expert, self.product), tensor)


def own(weight: Tensor) -> Tensor:
    """Returns this rank's part of a weight, differentiable."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def head_chunk_across(
    states: Tensor, head: Tensor, targets: Tensor, weights: Tensor, group: torch.distributed.ProcessGroup
) -> ChunkLoss:
    """Returns what `next_token.head_chunk` does, for a head whose rows [V/ranks D] the ranks of a group have dealt out.

    states [C D], targets (counted from this rank's first row) int64 [C] and weights [C] are the same on all ranks.
    """
    logits = (states @ head.T).float()  # C V/ranks
    most = logits.amax(-1)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group)
    is_target = torch.arange(len(head), device=head.device) == targets[:, None]  # C V/ranks
    sums = torch.stack([(logits - most[:, None]).exp().sum(-1), torch.where(is_target, logits, 0.0).sum(-1)])
    total, of_target = sum_over(sums, group)  # C, C
    normaliser = total.log() + most
    by_logits = (((logits - normaliser[:, None]).exp() - is_target.float()) * weights[:, None]).to(states.dtype)
    return ChunkLoss(normaliser - of_target, sum_over(by_logits @ head, group), by_logits.T @ states)
