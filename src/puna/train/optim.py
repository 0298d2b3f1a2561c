"""Muon for matrices and AdamW for everything else, over float32 master weights, and the learning-rate schedule.

In: the gradients on a model's parameters, of whatever dtype. Out: new parameters, the rounded masters. The state is the
masters and moments; the learning rate is a pure function of the step. Matrices of one shape are updated together.
Of parameters that are spread over ranks (`shards`) a rank keeps and updates its parts; a matrix that is divided is put
together for its Newton-Schulz iteration alone.

Sources: Muon, K. Jordan et al. 2024, "Muon: an optimizer for hidden layers" (momentum, Newton-Schulz coefficients);
scale of its updates, "Muon is Scalable for LLM Training" (arXiv 2502.16982, eq. 4), by which it shares AdamW's learning
rate and weight decay; AdamW, arXiv 1711.05101; warm-up, stable, decay: MiniCPM (arXiv 2404.06395, section 4).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from puna.kernels import training
from puna.train.recipe import OptimizerRecipe, ScheduleRecipe
from puna.train.shards import PIECE, has_whole_matrices, local, norm, part_of, spread_like, whole
from puna.train.transfer import Scale

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of one iteration a x + b x^3 + c x^5 on the singular values. Source: K. Jordan et al. 2024."""

NEWTON_SCHULZ_STEPS = 5

UPDATE_RMS = 0.2
"""Root mean square of a Muon update at learning rate 1, about that of AdamW. Source: arXiv 2502.16982."""

NOT_MATRICES = ("embedding.weight", "head.weight", "moe.router.weight", "vision.positions", "vision.patch.weight")
"""Endings of two-dimensional parameters that AdamW updates: tables of rows, and the router, whose rows are experts."""


def learning_rate(schedule: ScheduleRecipe, step: int) -> float:
    """Returns the share of the peak learning rate at `step`, from 0: linear warm-up, then 1, then linear decay."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    left = schedule.steps - step
    if left > schedule.decay_steps:
        return 1.0
    share = max(left, 0) / max(schedule.decay_steps, 1)
    return schedule.final_fraction + (1 - schedule.final_fraction) * share


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon updates the parameter: a linear map [out in] or a stack of experts [E out in]."""
    return parameter.dim() >= 2 and not name.endswith(NOT_MATRICES)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Returns about U V^T, bfloat16, of each matrix U S V^T in `matrices` [M rows columns], by Newton-Schulz."""
    a, b, c = NEWTON_SCHULZ
    rows, columns = matrices.shape[-2:]
    x = matrices.mT if rows > columns else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()  # M short long
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT  # M short short
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if rows > columns else x


class Slice(NamedTuple):
    """Matrices first to first + n of a stack are those of parameter `name`, or what this rank has of them."""

    name: str
    first: int
    n: int


@dataclass(slots=True, kw_only=True)
class Stack:
    """All Muon matrices of one shape [rows columns], and this rank's parts of their masters and momenta, float32
    [M rows columns]: whole matrices, or of each the same stretch."""

    shape: tuple[int, int]
    lr_scale: float
    slices: tuple[Slice, ...]
    master: Tensor
    momentum: Tensor


@dataclass(slots=True, kw_only=True)
class Group:
    """AdamW's parameters that share a learning rate, decay and epsilon; float32 parts, in the order of `names`."""

    names: tuple[str, ...]
    lr_scale: float
    weight_decay: float
    eps: float
    master: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]


class Optimizer:
    """Updates the parameters of one model in place. Reads their `.grad` and clears it."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        recipe: OptimizerRecipe,
        stages: int = 1,
        scales: Mapping[str, Scale] = MappingProxyType({}),
    ) -> None:
        """The masters start as the parameters, which then become their rounded images: pass them in float32 first, and
        change their dtype with `cast` afterwards. `stages`: of a pipeline, each of which has other parameters. `scales`
        of parameters whose rates are those of another width (`transfer`)."""
        self.recipe = recipe
        self.stages = stages
        self.parameters = dict(parameters)
        self.step_count = 0
        matrices = {n: p for n, p in self.parameters.items() if is_matrix(n, p) and recipe.matrices == "muon"}
        self.stacks = _stacks(matrices, recipe, scales)
        self.groups = _groups({n: p for n, p in self.parameters.items() if n not in matrices}, recipe, scales)

    @torch.no_grad()
    def step(self, lr_share: float, most: float = math.inf) -> Tensor:
        """Applies one update at `lr_share` of the peak learning rate; returns the norm of all gradients, unclipped.

        Gradients are clipped to `clip_norm` together. A parameter without a gradient counts as having a zero one. When
        the norm is not finite or above `most` the gradients are forgotten, and nothing else is changed.
        """
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.parameters.items()}
        length = norm(gradients, self.stages)
        if not torch.isfinite(length) or length > most:
            self._forget()
            return length
        scale = float((self.recipe.clip_norm / (length + 1e-6)).clamp(max=1.0))
        self.step_count += 1
        lr = self.recipe.lr * lr_share
        own = {name: local(gradient) for name, gradient in gradients.items()}
        for stack in self.stacks:
            self._muon(stack, own, scale, lr)
        for group in self.groups:
            self._adamw(group, own, scale, lr)
        self._forget()
        return length

    def _forget(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors of the state by name and kind, spread as their parameters are: the live ones."""
        found: dict[str, Tensor] = {}
        for stack in self.stacks:
            for part in stack.slices:
                for kind in ("master", "momentum"):
                    rows = getattr(stack, kind)[part.first : part.first + part.n]
                    found[f"{part.name}.{kind}"] = rows.view(local(self.parameters[part.name]).shape)
        for group in self.groups:
            for kind in ("master", "first", "second"):
                found |= {f"{n}.{kind}": part for n, part in zip(group.names, getattr(group, kind), strict=True)}
        return {name: spread_like(part, self.parameters[name.rpartition(".")[0]]) for name, part in found.items()}

    @torch.no_grad()
    def write_parameters(self) -> None:
        """Sets every parameter to its master, rounded to the parameter's dtype."""
        for stack in self.stacks:
            self._write_stack(stack)
        for group in self.groups:
            torch._foreach_copy_([local(self.parameters[n]) for n in group.names], group.master)

    def masters(self) -> dict[str, Tensor]:
        """Returns the float32 weights by parameter name, in the shape of the parameters and spread as they are."""
        found = self.tensors()
        return {name: found[f"{name}.master"] for name in self.parameters}

    def _muon(self, stack: Stack, gradients: Mapping[str, Tensor], scale: float, lr: float) -> None:
        shape = stack.master.shape[1:]
        gradient = torch.cat([gradients[s.name].reshape(s.n, *shape) for s in stack.slices]).float().mul_(scale)
        stack.momentum.lerp_(gradient, 1 - self.recipe.momentum)
        update = self._orthogonal(stack, gradient.lerp_(stack.momentum, self.recipe.momentum))  # Nesterov
        stack.master.mul_(1 - lr * self.recipe.weight_decay)
        stack.master.add_(update, alpha=-lr * stack.lr_scale * UPDATE_RMS * max(stack.shape) ** 0.5)
        self._write_stack(stack)

    def _orthogonal(self, stack: Stack, parts: Tensor) -> Tensor:
        """Returns this rank's parts [M rows columns] of the orthogonalised matrices of which all ranks have `parts`."""
        if parts.shape[1:] == stack.shape:
            return orthogonalise(parts)
        spread = [self.parameters[s.name] for s in stack.slices]
        matrices = torch.stack([whole(part, like) for part, like in zip(parts, spread, strict=True)])
        return torch.stack([part_of(m, like) for m, like in zip(orthogonalise(matrices), spread, strict=True)])

    def _write_stack(self, stack: Stack) -> None:
        for part in stack.slices:
            parameter = local(self.parameters[part.name])
            parameter.copy_(stack.master[part.first : part.first + part.n].reshape(parameter.shape))

    def _adamw(self, group: Group, gradients: Mapping[str, Tensor], scale: float, lr: float) -> None:
        lr, t = lr * group.lr_scale, self.step_count
        step = training.AdamWStep(
            scale=scale,
            beta1=self.recipe.beta1,
            beta2=self.recipe.beta2,
            eps=group.eps,
            kept=1 - lr * group.weight_decay,
            rate=lr / (1 - self.recipe.beta1**t),
            correction=(1 - self.recipe.beta2**t) ** 0.5,
        )
        for name, *state in zip(group.names, group.master, group.first, group.second, strict=True):
            parameter, gradient = local(self.parameters[name]), gradients[name].contiguous()
            if training.can_update(parameter):
                training.adamw_(step, gradient, parameter, *state)
            else:
                self._adamw_in_pieces(group, scale, lr, gradient, parameter, *state)

    def _adamw_in_pieces(self, group: Group, scale: float, lr: float, *tensors: Tensor) -> None:
        """`training.adamw_` in torch's words, piece after piece: a pass over it while its gradient, made float32, is
        still in the cache. tensors: gradient, parameter, master, first and second moment."""
        fixed: Any = {
            "fused": True,
            "grad_scale": torch.tensor(1 / scale, device=tensors[0].device),  # by which it divides
            "amsgrad": False,
            "maximize": False,
            "beta1": self.recipe.beta1,
            "beta2": self.recipe.beta2,
            "lr": lr,
            "weight_decay": group.weight_decay,
            "eps": group.eps,
        }
        pieces = (torch.split(x.view(-1), PIECE) for x in tensors)
        for gradient, rounded, master, first, second in zip(*pieces, strict=True):
            before = torch.tensor(float(self.step_count - 1), device=master.device)
            adamw([master], [gradient.float()], [first], [second], [], [before], **fixed)
            rounded.copy_(master)


def cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Changes the dtype of all parameters in place; the parameter objects stay the same."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _stacks(matrices: Mapping[str, Tensor], recipe: OptimizerRecipe, scales: Mapping[str, Scale]) -> list[Stack]:
    """Groups matrices by shape and rate. Gate and up of an expert, stored as one [2F D], are two maps, made orthogonal
    apart."""
    by_shape: dict[tuple[Any, ...], list[tuple[str, Tensor]]] = {}  # alike on all ranks, whose parts may be empty
    for name, parameter in matrices.items():
        halves = 2 if name.endswith("gate_up") else 1
        assert has_whole_matrices(parameter) or parameter.dim() == 2, f"{name}: experts are kept whole"
        rows = local(parameter).float()
        rows = rows.reshape(rows.shape[:-2].numel() * halves, rows.shape[-2] // halves, rows.shape[-1])
        shape = parameter.shape[-2] // halves, parameter.shape[-1]
        lr_scale = _lr_scale(name, recipe) * scales.get(name, Scale()).muon
        spread = parameter.dim(), getattr(parameter, "placements", None)  # whole experts, divided matrices
        by_shape.setdefault((shape, lr_scale, spread), []).append((name, rows))
    stacks = []
    for (shape, lr_scale, _), parts in by_shape.items():
        slices, first = [], 0
        for name, rows in parts:
            slices.append(Slice(name, first, len(rows)))
            first += len(rows)
        master = torch.cat([rows for _, rows in parts])
        momentum = torch.zeros_like(master)
        stacks.append(Stack(shape=shape, lr_scale=lr_scale, slices=tuple(slices), master=master, momentum=momentum))
    return stacks


def _groups(parameters: Mapping[str, Tensor], recipe: OptimizerRecipe, scales: Mapping[str, Scale]) -> list[Group]:
    """Matrices, the head and patch weights decay; the embedding, gains, biases and routers do not."""
    by_kind: dict[tuple[float, float, float], list[tuple[str, Tensor]]] = {}
    for name, parameter in parameters.items():
        decays = is_matrix(name, parameter) or name.endswith(("head.weight", "vision.patch.weight"))
        scale = scales.get(name, Scale())
        decay = recipe.weight_decay / scale.adamw if decays else 0.0  # their product stays what it was
        kind = _lr_scale(name, recipe) * scale.adamw, decay, recipe.eps * scale.eps
        by_kind.setdefault(kind, []).append((name, local(parameter).float().clone()))
    return [
        Group(
            names=tuple(name for name, _ in parts),
            lr_scale=lr_scale,
            weight_decay=decay,
            eps=eps,
            master=[master for _, master in parts],
            first=[torch.zeros_like(master) for _, master in parts],
            second=[torch.zeros_like(master) for _, master in parts],
        )
        for (lr_scale, decay, eps), parts in by_kind.items()
    ]


def _lr_scale(name: str, recipe: OptimizerRecipe) -> float:
    if name.startswith(("vision.", "projector.")):
        return recipe.vision_lr_scale
    scales = {
        "embedding.weight": recipe.embedding_lr_scale,
        "head.weight": recipe.head_lr_scale,
        "moe.router.weight": recipe.router_lr_scale,
    }
    return next((scale for ending, scale in scales.items() if name.endswith(ending)), 1.0)
