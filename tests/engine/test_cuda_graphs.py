"""The runner of graphs: buckets, buffers and what goes without a graph. On the CPU a graph is a function run again."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'puna[gpu]'")

from torch import Tensor

from puna.engine.cuda_graphs import Captured, GraphRunner, bucket_for, capture_on_gpu
from tests.engine.twins import Twins, two_layers
from tests.reference.tiny import random_ids, random_model

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # sums in another order, in float32


def run_again(compute: Callable[[], Tensor]) -> Captured:
    """What a graph does, without one: the same function into the same result."""
    result = compute()

    def replay() -> None:
        result.copy_(compute())

    return Captured(replay, result)


def runner(twins: Twins, buckets: tuple[int, ...] = (1, 4)) -> GraphRunner:
    capture = capture_on_gpu if torch.cuda.is_available() else run_again
    return GraphRunner(twins.model, twins.caches[1], buckets=buckets, capture=capture)


def test_the_smallest_bucket_that_holds_a_batch_takes_it() -> None:
    assert [bucket_for(n, (1, 4, 8)) for n in (1, 2, 4, 8, 9)] == [1, 4, 4, 8, None]


def test_replayed_steps_equal_the_plain_runner_just_before_at_and_behind_a_chunk_border(device: torch.device) -> None:
    twins = Twins(random_model(two_layers()), device)
    graphs = runner(twins)
    for pieces in ([(0, 17)], [(1, 4)], [(1, 4)], [(0, 1), (1, 1)], [(1, 1)]):
        # Text 1 reads positions 7, 8 and 9 by replay: the last of a chunk, the first of the next, and one behind it.
        batch = twins.batch([(text, random_ids(n, text * 100 + n)) for text, n in pieces])
        torch.testing.assert_close(graphs.run(batch), twins.plain.run(batch), **TOLERANCE)
    assert graphs.steps == {"written out": 1, "replayed": 4}


def test_only_the_rows_that_are_wanted_come_back_and_stay_as_they_are(device: torch.device) -> None:
    twins = Twins(random_model(two_layers()), device)
    graphs = runner(twins)
    first = twins.batch([(0, [1, 2, 3])])
    wanted = graphs.run(first._replace(wanted=first.wanted[2:]))
    kept = wanted.clone()
    graphs.run(twins.batch([(0, [4, 5])]))
    assert wanted.shape == (1, 64) and torch.equal(wanted, kept)


def test_a_decoding_step_that_no_graph_takes_warns_once_and_is_right(device: torch.device) -> None:
    twins = Twins(random_model(two_layers()), device)
    graphs = runner(twins, buckets=(1,))
    with pytest.warns(RuntimeWarning, match="2 rows fits no CUDA graph") as caught:
        for ids in ([1, 2], [3, 4]):
            batch = twins.batch([(0, ids)])
            torch.testing.assert_close(graphs.run(batch), twins.plain.run(batch), **TOLERANCE)
    assert len(caught) == 1 and graphs.steps == {"written out": 2}


@pytest.mark.gpu
def test_all_graphs_can_be_captured_ahead() -> None:
    device = torch.device("cuda")
    twins = Twins(random_model(two_layers()), device)
    graphs = GraphRunner(twins.model, twins.caches[1], buckets=(1, 2))
    graphs.prepare()
    batch = twins.batch([(0, [1])])
    torch.testing.assert_close(graphs.run(batch), twins.plain.run(batch), **TOLERANCE)
    assert graphs.steps == {"replayed": 1}
