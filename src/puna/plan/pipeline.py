"""A training step as tasks: layers of every stage, batch after batch, with what ranks exchange around them.

In: the seconds of `step`. Out: tasks for `simulate`, and what became of them. A stage has one stream of arithmetic and
three of links: weights gathered and gradients reduced (which may run ahead and behind), rows of experts and sums of a
team (for which arithmetic waits), and what is handed to the next stage. Ranks of a stage do the same, so one of each
stage is simulated; that experts are unevenly chosen is in their seconds. Batches pass in the order "one forward, one
backward" (Megatron-LM, arXiv 2104.04473, section 2.2). A long step's middle is a repetition: `MOST_BATCHES` are run,
and the rest is counted at the pace that the pipeline has then reached.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from puna.plan import simulate
from puna.plan.shares import layers_of
from puna.plan.simulate import Span, Task, Tasks
from puna.plan.step import Exchange, Step

MOST_BATCHES = 4
"""Batches for each stage that are simulated; beyond, the pipeline only repeats itself."""


class Stream(NamedTuple):
    """Where a task runs: a stage, and its arithmetic ("compute"), "weights", "rows" or "states"."""

    stage: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """A step: its seconds, those of what was simulated, and how long stages computed, waited for links, or waited for
    each other (shares of the simulated time, means over the stages)."""

    seconds: float
    batches: int
    computing: float
    exchanging: float
    tasks: tuple[Task, ...]
    spans: tuple[Span, ...]

    @property
    def idle(self) -> float:
        """Share of the time in which a stage neither computed nor waited for its own exchanges: bubbles."""
        return max(0.0, 1 - self.computing - self.exchanging)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values, without the tasks."""
        return {
            "seconds": self.seconds,
            "computing": self.computing,
            "exchanging": self.exchanging,
            "idle": self.idle,
            "simulated_batches": self.batches,
            "simulated_tasks": len(self.tasks),
        }


def simulated(step: Step) -> Simulated:
    """Returns one training step."""
    layout = step.job.layout
    few = min(step.batches, MOST_BATCHES * layout.pipeline)
    made = tasks(step, few)
    spans = simulate.run(made)
    seconds = simulate.length(spans)
    if few < step.batches:
        fewer = max(1, few - layout.pipeline)
        seconds_before = simulate.length(simulate.run(tasks(step, fewer)))
        seconds += (seconds - seconds_before) / (few - fewer) * (step.batches - few)
    busy = simulate.busy_seconds(made, spans)
    whole = simulate.length(spans) * layout.pipeline
    return Simulated(
        seconds=seconds,
        batches=few,
        computing=sum(busy.get(Stream(s, "compute"), 0.0) for s in range(layout.pipeline)) / whole,
        exchanging=sum(busy.get(Stream(s, "rows"), 0.0) for s in range(layout.pipeline)) / whole,
        tasks=tuple(made),
        spans=tuple(spans),
    )


def tasks(step: Step, batches: int) -> list[Task]:
    """Returns the tasks of a step of so many batches a reader."""
    stages = step.job.layout.pipeline
    made = Tasks([])
    arrived: dict[tuple[str, int, int], int] = {}  # (direction, stage, batch) -> the task that hands it over
    orders = [list(order(stage, stages, batches)) for stage in range(stages)]
    last: list[int | None] = [None] * stages
    # Listed so that what a task waits for stands before it: stages take turns, each as far as it can.
    places = [0] * stages
    while any(place < len(each) for place, each in zip(places, orders, strict=True)):
        for stage in range(stages):
            while places[stage] < len(orders[stage]):
                direction, batch = orders[stage][places[stage]]
                source = stage - 1 if direction == "forward" else stage + 1
                needs = arrived.get((direction, source, batch))
                if needs is None and 0 <= source < stages:
                    break
                warm = batch < stages - stage
                last[stage] = _pass(step, made, stage, direction, last[stage], needs, warm)
                _hand_over(step, made, arrived, stage, direction, batch, last[stage])
                places[stage] += 1
    for stage in range(stages):
        _end(step, made, stage, last[stage])
    return made.tasks


def order(stage: int, stages: int, batches: int) -> Iterator[tuple[str, int]]:
    """Yields (direction, batch) as a stage does them: forward until the first comes back, then in turn."""
    ahead = min(stages - stage, batches)
    for batch in range(ahead):
        yield "forward", batch
    for batch in range(batches):
        yield "backward", batch
        if ahead + batch < batches:
            yield "forward", ahead + batch


def _pass(
    step: Step, made: Tasks, stage: int, direction: str, before: int | None, needs: int | None, warm: bool
) -> int:
    """Adds a stage's pass of one batch; returns its last task of arithmetic.

    Without a pipeline weights are gathered for each pass, and gradients reduced after it. In one, as torch's stages do,
    weights stay together from a batch's way back to the next one's way there (`warm`: there is none before), and
    gradients are reduced at the end of the step.
    """
    compute, weights, rows = Stream(stage, "compute"), _weights(step, stage), Stream(stage, "rows")
    forward = direction == "forward"
    layers = list(layers_of(step.job.config.text.n_layers, step.job.layout.pipeline, stage))
    at: int | None = needs
    times = 1.0 if forward else step.backward
    recompute, alone = step.job.layout.recompute, step.job.layout.pipeline == 1
    is_last = stage == step.job.layout.pipeline - 1
    if alone and forward:
        made.add(weights, step.around(stage)[0].seconds, "gather", [before])
    if is_last and not forward:
        at = made.add(compute, step.head()[0], "head", [at, before])
        at = _exchange(made, rows, step.head_sums(), "sum", at)
    for index in layers if forward else reversed(layers):
        layer = step.layer(index)
        gathers = layer.gather.seconds and (alone or warm or not forward)
        gathered = made.add(weights, layer.gather.seconds, "gather") if gathers else None
        ways = (layer.keys, layer.attention_sums, layer.dispatch, layer.experts_sums)
        keys, first, dispatch, second = (way.there if forward else way.back_again(recompute) for way in ways)
        at = _exchange(made, rows, keys, "keys", at)
        at = made.add(compute, layer.attention * times, f"{direction} attention", [at, before, gathered])
        at = _exchange(made, rows, first, "sum", at)
        at = _exchange(made, rows, dispatch, "dispatch", at)
        at = made.add(compute, layer.experts * times, f"{direction} experts", [at])
        at = _exchange(made, rows, dispatch, "combine", at)
        at = _exchange(made, rows, second, "sum", at)
        if alone and not forward and layer.reduce.seconds:
            made.add(weights, layer.reduce.seconds, "reduce", [at])
    if alone and not forward:
        made.add(weights, step.around(stage)[1].seconds, "reduce", [at])
    assert at is not None, "a stage has layers"
    return at


def _weights(step: Step, stage: int) -> Stream:
    """Where weights are gathered and gradients reduced: beside arithmetic, but on processors, whose cores do both."""
    return Stream(stage, "compute" if step.cluster.hardware.is_cpu else "weights")


def _exchange(made: Tasks, stream: Stream, exchange: Exchange, kind: str, after: int | None) -> int | None:
    return made.add(stream, exchange.seconds, kind, [after]) if exchange.seconds else after


def _hand_over(
    step: Step,
    made: Tasks,
    arrived: dict[tuple[str, int, int], int],
    stage: int,
    direction: str,
    batch: int,
    at: int | None,
) -> None:
    target = stage + 1 if direction == "forward" else stage - 1
    assert at is not None
    if 0 <= target < step.job.layout.pipeline:
        at = made.add(Stream(stage, "states"), step.hand_over().seconds, "hand over", [at])
    arrived[direction, stage, batch] = at


def _end(step: Step, made: Tasks, stage: int, before: int | None) -> None:
    """After the last batch: what a pipeline's stage has left to reduce, the sum over replicas, the update."""
    weights, seconds = _weights(step, stage), 0.0
    if step.job.layout.pipeline > 1:
        layers = layers_of(step.job.config.text.n_layers, step.job.layout.pipeline, stage)
        seconds = sum(each.seconds for each in step.around(stage))
        seconds += sum(step.layer(index).reduce.seconds for index in layers)
    at = made.add(weights, seconds, "reduce", [before])
    at = made.add(weights, step.replicas(stage).seconds, "replicas", [at])
    made.add(Stream(stage, "compute"), step.update(stage), "update", [at])
