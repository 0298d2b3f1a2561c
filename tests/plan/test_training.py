"""What training takes of each rank. Bytes that ranks really hold are compared in tests/train/test_plan.py."""

from dataclasses import replace

import pytest
import torch

from puna.card import params
from puna.model.transformer import Llama
from puna.plan.activations import Kept, Shape
from puna.plan.shares import Training
from puna.plan.training import Job, is_matrix, ranks
from puna.presets import CRIA, MAVERICK, SCOUT
from puna.train import optim

SHAPE = Shape(rows=1, row_len=8192)


def planned(layout: Training, job: Job | None = None) -> list[int]:
    job = Job(config=SCOUT, layout=layout, shape=SHAPE, accumulate=64) if job is None else job
    return [held.stays for held in ranks(job, Kept(job.config, job.layout, job.shape))]


@pytest.mark.parametrize("config", [CRIA, MAVERICK], ids=["cria", "maverick"])
def test_matrices_are_those_that_the_optimiser_takes(config: object) -> None:
    with torch.device("meta"):
        real = {name: optim.is_matrix(name, each) for name, each in Llama(config).named_parameters()}  # type: ignore[arg-type]
    assert {each.name: is_matrix(each) for each in params.weights(config)} == real


def test_ranks_hold_each_number_once_whatever_divides_them() -> None:
    """16 bytes a number: weight, gradient and master; and Muon's one moment, AdamW's two (embedding, head, vectors)."""
    alone = sum(planned(Training(shard=2, pipeline=4))) * 1.0
    for layout in (Training(shard=8, expert=8), Training(tensor=8, expert=4), Training(shard=4, context=2, expert=8)):
        total = sum(planned(layout))
        kept_by_all = layout.tensor > 1  # norms, router and tower are whole on every tensor rank, but sharded over none
        assert alone <= total * 1.001 and total < alone * (1.2 if kept_by_all else 1.001)


def test_adamw_takes_a_moment_more_than_muon() -> None:
    job = Job(config=CRIA, layout=Training(), shape=replace(SHAPE, row_len=128), accumulate=1)
    (muon,), (adamw,) = planned(Training(), job), planned(Training(), replace(job, matrices="adamw"))
    matrices = sum(each.size for each in params.weights(CRIA) if is_matrix(each))
    assert adamw - muon == 4 * matrices


def test_the_bars_of_a_rank_add_up_to_its_peak() -> None:
    job = Job(config=SCOUT, layout=Training(shard=64, expert=16, recompute=True), shape=SHAPE, accumulate=64)
    for held in ranks(job, Kept(SCOUT, job.layout, SHAPE)):
        assert sum(held.parts().values()) == held.peak
