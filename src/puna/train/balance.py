"""Even loads without a loss: each expert has a bias by which it is chosen, and which its score does not know.

In: how many tokens each expert got in a step. Out: biases, a little higher where that was too few and lower where it
was too many; the gradient sees nothing of them. Files of the published layouts have no place for a bias. So it is
taken back while the learning rate decays, to nothing in the last step: what is exported routes as what was trained.
Source: arXiv 2408.15664, algorithm 1; the mean of a layer's biases is kept at 0 (torchtitan, issue 1506).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from puna.model.moe import MoE
from puna.train.recipe import ScheduleRecipe


class Balance:
    """The biases of the layers that a process trains. `rate` 0 leaves the router alone."""

    def __init__(self, model: nn.Module, moe_layers: Iterable[int], schedule: ScheduleRecipe, rate: float) -> None:
        """model: a Llama, or a stage's part of one, whose layers bear the model's numbers."""
        self.rate, self.schedule = rate, schedule
        own = {
            int(name.split(".")[-2]): (name, module)
            for name, module in model.named_modules()
            if isinstance(module, MoE)
        }
        self.rows = {row: own[layer][1] for row, layer in enumerate(sorted(moe_layers)) if layer in own} if rate else {}
        self.biases = {
            f"{own[layer][0]}.bias": torch.zeros(own[layer][1].router.out_features)
            for row, layer in enumerate(sorted(moe_layers))
            if row in self.rows
        }

    def apply(self, step: int) -> None:
        """Gives the router the biases of `step`, from 0: call it before the step, and behind a checkpoint's reading."""
        left = self.schedule.steps - 1 - step
        share = min(1.0, left / self.schedule.decay_steps) if self.schedule.decay_steps else float(left > 0)
        for moe, bias in zip(self.rows.values(), self.biases.values(), strict=True):
            moe.bias = (bias * share).to(moe.router.weight.device)

    @torch.no_grad()
    def learn(self, load: Tensor) -> None:
        """load float32 [L E]: the share of the step's tokens that each expert of every MoE layer got."""
        for row, bias in zip(self.rows, self.biases.values(), strict=True):
            bias += self.rate * torch.sign(load[row].mean() - load[row])
            bias -= bias.mean()
