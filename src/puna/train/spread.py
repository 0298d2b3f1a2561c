"""A model spread over ranks: every weight in parts, by torch's own means, so that each rank keeps and trains few bytes.

In: a whole model and a `Mesh`. Out: a `Stage` whose parameters are DTensors. Matrices are cut as the one table in
`parallel` says, which serving uses too; routed experts go whole to the ranks that share them; what is left of each is
sharded over all ranks that read other tokens (FSDP) and put together again, layer by layer, when it is needed.
Gradients are summed, never averaged: the loss is divided by the weights of the whole step (`stage`).
Source: torch.distributed.fsdp.fully_shard; torch.distributed.tensor.parallel.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import Replicate

from puna.model.transformer import Block, Llama
from puna.parallel import cuts_of
from puna.train.mesh import Mesh
from puna.train.recipe import LossRecipe
from puna.train.stage import ExpertsAcross, Stage


def spread(model: Llama, mesh: Mesh, loss: LossRecipe, dtype: torch.dtype, *, compiled: bool = False) -> Stage:
    """Returns the stage of this rank. `model` float32, whole and the same on every rank, is used up.

    Sums are made in `dtype`; weights and their gradients stay float32. `compiled`: each layer runs as graphs, around
    its routed experts, whose rows are counted anew in each step.
    """
    stage = Stage(model, mesh, loss, compiled=compiled)
    if mesh.layout.tensor > 1:
        _share_matrices(model, mesh.dense["tensor"])
    dense, experts = mesh.dense["replicate", "fsdp"], mesh.experts["replicate", "fsdp"]
    precision = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # angles, temperatures and loss weights are float32 on purpose
    )
    for layer in stage.model.layers:
        assert isinstance(layer, Block), "a decoder is a list of blocks"
        if layer.moe is not None:
            own = ExpertsAcross(layer.moe.experts, mesh)
            _deal_out(own, mesh.experts["expert"])
            layer.moe.experts = fully_shard(own, mesh=experts, mp_policy=precision)  # type: ignore[assignment]
        if compiled:
            _compile(layer, n_layers=len(stage.layers))
        fully_shard(layer, mesh=dense, mp_policy=precision)
    if stage.model.vision is not None:
        fully_shard(stage.model.vision, mesh=dense, mp_policy=precision)
    fully_shard(stage, mesh=dense, mp_policy=precision)
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return stage


def _compile(layer: Block, n_layers: int) -> None:
    """Has the forward of a layer run as graphs. What puts its weights together stays outside: hooks of the module."""
    graphs = torch._dynamo.config
    graphs.recompile_limit = max(graphs.recompile_limit, 4 * n_layers)  # each layer is one, and counts as another try
    layer.forward = torch.compile(layer.forward, dynamic=False)  # type: ignore[method-assign]


def _share_matrices(model: Llama, tensor: DeviceMesh) -> None:
    plan: dict[str, ParallelStyle] = {}
    for name, parameter in model.named_parameters():
        cuts = cuts_of(name)
        if not cuts or parameter.dim() != 2:
            continue
        module = name.removesuffix(".weight")
        if name.startswith("embedding."):
            plan[module] = RowwiseParallel(input_layouts=Replicate())
        else:
            plan[module] = ColwiseParallel() if cuts[0].axis == -2 else RowwiseParallel()
    parallelize_module(model, tensor, plan)


def _deal_out(experts: nn.Module, neighbours: DeviceMesh) -> None:
    """Leaves of each stack [E out in] the experts of this rank."""
    for name, weight in list(experts.named_parameters()):
        part = weight.detach().chunk(neighbours.size())[neighbours.get_local_rank()].clone()
        spread_out = DTensor.from_local(part, neighbours, [Shard(0)], run_check=False)
        setattr(experts, name, nn.Parameter(spread_out))
