"""One step's forward and backward passes over a stage: batch after batch, or through torch's pipeline schedules.

In: this rank's batches of a step. Out: gradients on the parameters, and what was measured on the way.
Not here: the update (`optim`), which batches come next (`pack`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from puna.train.exchange import sum_over
from puna.train.pack import Batch
from puna.train.stage import Inputs, Measured, Stage


class Passes:
    """Runs the passes of one stage; `dtype` is that of the states which go from stage to stage."""

    def __init__(self, stage: Stage, dtype: torch.dtype, device: torch.device) -> None:
        self.stage, self.dtype, self.device = stage, dtype, device
        self._schedule: Schedule1F1B | None = None

    def __call__(self, batches: Sequence[Batch]) -> list[Measured]:
        """Leaves the gradients of all ranks' batches of the step on the parameters. Every step has as many batches."""
        layout = self.stage.mesh.layout
        weight = torch.stack([batch.weights.sum() for batch in batches]).sum().to(self.device)
        total = float(sum_over(weight, self.stage.mesh.data)) / layout.context  # whose ranks count the same rows
        self.stage.begin_step(max(total, 1.0), 1 / (len(batches) * layout.readers))
        if layout.pipeline == 1:
            for batch in batches:
                inputs = Inputs.of([batch], self.device)
                self.stage(inputs.ids, *inputs).backward()
        else:
            self._pipelined(Inputs.of(list(batches), self.device), len(batches))
        return list(self.stage.measured)

    def _pipelined(self, inputs: Inputs, n_batches: int) -> None:
        if self._schedule is None:
            rows, row_len = inputs.ids.shape
            self._schedule = self._planned(n_batches, rows // n_batches, row_len)
        given = {name: each for name, each in inputs._asdict().items() if len(each)}  # tiles may be none at all
        first = (inputs.ids,) if self.stage.is_first else ()
        target = {"target": inputs.targets} if self.stage.is_last else {}
        self._schedule.step(*first, **target, **given)  # type: ignore[arg-type]

    def _planned(self, n_batches: int, rows: int, row_len: int) -> Schedule1F1B:
        """What goes from stage to stage has one shape; told so, torch need not try it out with a forward."""
        mesh = self.stage.mesh
        tokens = rows * row_len // mesh.layout.context
        states = torch.empty(tokens, self.stage.config.text.width, dtype=self.dtype, device="meta", requires_grad=True)
        ids = torch.empty(rows, row_len, dtype=torch.int64, device="meta")
        piece = PipelineStage(
            self.stage,
            mesh.stage,
            mesh.layout.pipeline,
            self.device,
            input_args=(ids if self.stage.is_first else states,),
            output_args=(torch.empty(1, device="meta", requires_grad=True) if self.stage.is_last else states,),
            group=mesh.dense.get_group("pipeline"),
        )
        return Schedule1F1B(piece, n_batches, loss_fn=_as_it_is, scale_grads=False)


def _as_it_is(loss: Tensor, target: Tensor) -> Tensor:
    """The last stage returns its loss; torch's schedules want a function that makes one of an output."""
    return loss.sum()
