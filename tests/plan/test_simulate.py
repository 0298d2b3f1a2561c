"""Events against what can be worked out by hand: chains, pipelines, failures."""

from dataclasses import replace

import pytest

from puna.hardware import Collective, Link
from puna.plan import failures, simulate
from puna.plan.activations import Shape
from puna.plan.cluster import Cluster, parse
from puna.plan.failures import Habits
from puna.plan.pipeline import order, simulated
from puna.plan.shares import Training
from puna.plan.simulate import Task
from puna.plan.step import Assumed, Step
from puna.plan.training import Job
from puna.presets import CRIA, SCOUT

GATHERS = ("gather", "reduce")


def test_a_stream_works_in_order_and_waits_for_others() -> None:
    tasks = [Task("a", 2.0, "x"), Task("b", 1.0, "y", (0,)), Task("a", 1.0, "x"), Task("a", 1.0, "x", (1,))]
    spans = simulate.run(tasks)
    assert [span.start for span in spans] == [0.0, 2.0, 2.0, 3.0]
    assert simulate.length(spans) == 4.0 and simulate.busy_seconds(tasks, spans) == {"a": 4.0, "b": 1.0}


@pytest.mark.parametrize(("stages", "batches"), [(1, 3), (2, 2), (4, 8), (4, 32)])
def test_a_pipeline_takes_as_long_as_its_formula_says(stages: int, batches: int) -> None:
    """One forward, one backward, each of one second: batches + stages - 1 of both. Source: arXiv 2104.04473."""
    tasks: list[Task] = []
    done: dict[tuple[str, int, int], int] = {}
    orders = [list(order(stage, stages, batches)) for stage in range(stages)]
    while any(orders):
        for stage, left in enumerate(orders):
            while left:
                direction, batch = left[0]
                source = stage - 1 if direction == "forward" else stage + 1
                if 0 <= source < stages and (direction, source, batch) not in done:
                    break
                needs = [done[direction, source, batch]] if 0 <= source < stages else []
                needs += [done["forward", stage, batch]] if direction == "backward" else []
                done[direction, stage, batch] = len(tasks)
                tasks.append(Task(stage, 1.0, direction, tuple(needs)))
                left.pop(0)
    assert simulate.length(simulate.run(tasks)) == 2 * (batches + stages - 1)


def step(layout: Training, batch: int) -> Step:
    job = Job(config=SCOUT, layout=layout, shape=Shape(rows=1, row_len=8192, scores=False), accumulate=batch)
    return Step(job, parse(f"h100:{layout.world}"), Assumed())


def test_counting_on_is_as_good_as_simulating_all_batches() -> None:
    layout = Training(pipeline=2, shard=16, expert=16)
    few, many = (simulated(step(layout, 16 * n)) for n in (8, 16))
    assert few.batches == many.batches == 8  # the second half of 16 is counted on
    more = simulated(step(layout, 16 * 24))
    assert more.seconds - many.seconds == pytest.approx(many.seconds - few.seconds, rel=0.01)


def test_more_stages_without_more_batches_leave_more_idle() -> None:
    idle = [simulated(step(Training(pipeline=p, shard=16, expert=16), 16 * 8)).idle for p in (2, 4, 8)]
    assert idle[0] < idle[1] < idle[2]


def on_processors(layout: Training, rates: dict[Collective, Link], *, is_cpu: bool = True) -> Step:
    hardware = replace(parse("h100").hardware, is_cpu=is_cpu, collectives=rates)
    job = Job(config=CRIA, layout=layout, shape=Shape(rows=1, row_len=512), accumulate=2, matrices="adamw")
    return Step(job, Cluster(hardware=hardware, count=layout.world), Assumed())


def test_links_of_processors_take_their_cores_and_those_of_gpus_do_not() -> None:
    rates: dict[Collective, Link] = {
        "gather": Link(150e9, 0.0),
        "reduce": Link(150e9, 0.0),
    }  # about as long as products
    processors, gpus = (simulated(on_processors(Training(shard=2), rates, is_cpu=each)) for each in (True, False))
    assert processors.computing == pytest.approx(1.0) and gpus.computing < 0.9
    assert gpus.seconds < 0.9 * processors.seconds


def test_each_collective_takes_what_was_measured_of_it() -> None:
    rates: dict[Collective, Link] = {"gather": Link(1e9, 0.5), "reduce": Link(0.5e9, 0.5), "sum": Link(2e9, 0.5)}
    layer = on_processors(Training(tensor=2), rates, is_cpu=False).layer(0)
    sums = layer.attention_sums
    assert sums.there.seconds == pytest.approx(0.5 + sums.there.n_bytes / 2e9)
    assert sums.back == sums.there.times(3)  # of query, key and value, one by one
    gathered, reduced = (getattr(on_processors(Training(shard=2), rates, is_cpu=False).layer(0), n) for n in GATHERS)
    assert gathered.seconds == pytest.approx(2 * 0.5 + gathered.n_bytes / 1e9)  # dense parts, and experts
    assert reduced.seconds == pytest.approx(2 * 0.5 + reduced.n_bytes / 0.5e9)


def test_failures_cost_what_theory_says() -> None:
    """Young 1974: of the time, save/interval + interval/(2 mtbf) + restart/mtbf, while all of these are small."""
    habits = Habits(mtbf_seconds=10_000, save_seconds=5, restart_seconds=100, interval_seconds=300)
    assert failures.best_interval(10_000, 5) == pytest.approx(316, abs=1)
    run = failures.simulate(2e7, habits, seed=1)
    assert 1 / run.share - 1 == pytest.approx(5 / 300 + 305 / 20_000 + 100 / 10_000, rel=0.06)
    assert run.failures == pytest.approx(run.seconds / 10_000, rel=0.05)


def test_a_run_without_failures_takes_its_work_and_its_checkpoints() -> None:
    run = failures.simulate(1000, Habits(mtbf_seconds=1e15, save_seconds=1, restart_seconds=9, interval_seconds=100))
    assert run == (1009.0, 9.0, 0.0, 0.0, 0)
