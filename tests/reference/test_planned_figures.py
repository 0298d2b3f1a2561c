"""Plans against figures that others published: contexts of Scout and Maverick on eight GPUs, speeds of training.

One number is taken from each engine's habits (`share` of the memory that it gives to weights, keys and values); nothing
else is fitted. The bounds here are the errors that docs/plan.md states.
"""

from dataclasses import replace

import pytest

from puna.card import memory
from puna.config import LlamaConfig
from puna.hardware import KINDS
from puna.meter import Site
from puna.plan.activations import Shape
from puna.plan.cluster import parse
from puna.plan.shares import Training
from puna.plan.step import Assumed
from puna.plan.train import CARD_KG_PER_KWH, Length, Trained
from puna.plan.training import Job
from puna.presets import MAVERICK, SCOUT

VLLM, SGLANG = 0.73, 0.60
"""Shares of the memory that vLLM's and SGLang's published contexts leave to weights, keys and values."""


def longest(config: LlamaConfig, scheme: str, kind: str, share: float, hybrid: bool) -> float:
    """Tokens of one sequence on eight GPUs that share all weights, the vision tower too, which ours keep whole;
    `hybrid`: chunked layers keep one chunk."""
    text = config.text
    room = int(KINDS[kind].memory_bytes * share) - memory.model_bytes(config, memory.SCHEMES[scheme]) // 8
    own = replace(text, n_heads=text.n_heads // 8, n_kv_heads=1)
    if hybrid:
        return memory.longest(own, room)
    return min(room / memory.uniform_bytes(own, 1), text.context_len)


@pytest.mark.parametrize(
    ("config", "scheme", "kind", "share", "hybrid", "published", "error"),
    [
        (SCOUT, "none", "h100", VLLM, False, 1.28e6, 0.12),  # vllm-project/vllm#16104
        (SCOUT, "none", "h200", VLLM, False, 3.6e6, 0.08),  # vLLM's blog, 2025-04-05
        (MAVERICK, "fp8-experts", "h100", VLLM, False, 430e3, 0.27),
        (MAVERICK, "fp8-experts", "h200", VLLM, False, 1e6, 0.05),  # the model's own limit
        (SCOUT, "none", "h100", SGLANG, False, 1e6, 0.05),  # sgl-project/sglang, docs/basic_usage/llama4.md
        (SCOUT, "none", "h200", SGLANG, False, 2.5e6, 0.05),
        (SCOUT, "none", "h100", SGLANG, True, 5e6, 0.30),
        (SCOUT, "none", "h200", SGLANG, True, 10e6, 0.06),
    ],
)
def test_published_contexts_are_met(
    config: LlamaConfig, scheme: str, kind: str, share: float, hybrid: bool, published: float, error: float
) -> None:
    found = longest(config, scheme, kind, share, hybrid)
    kept = "hybrid" if hybrid else "uniform"
    print(f"{kind} {scheme} {kept}: {found:,.0f} of {published:,.0f}, {found / published - 1:+.1%}")
    assert found == pytest.approx(published, rel=error)


def trained(config: LlamaConfig, hardware: str, layout: Training, batch: int, numbers: str) -> Trained:
    shape = Shape(rows=1, row_len=8192, scores=False)
    job = Job(config=config, layout=layout, shape=shape, accumulate=batch, matrices="adamw")
    site = Site(location_kg_per_kwh=CARD_KG_PER_KWH)
    return Trained(job, parse(hardware), Assumed(numbers=numbers), Length(tokens=40e12, site=site))  # type: ignore[arg-type]


SCOUT_512 = Training(pipeline=4, replicate=2, shard=64, expert=16, recompute=True)
MAVERICK_512 = Training(pipeline=4, replicate=2, shard=64, expert=64, recompute=True)


@pytest.mark.parametrize(
    ("config", "hardware", "layout", "batch", "numbers", "published", "error"),
    [
        (SCOUT, "h100:512", SCOUT_512, 2048, "bfloat16", 2222, 0.10),  # the card: 40 T tokens in 5.0 M GPU hours
        (MAVERICK, "h100:512", MAVERICK_512, 2048, "bfloat16", 2568, 0.10),  # 22 T tokens in 2.38 M
        (SCOUT, "gb200:64", Training(shard=64, expert=16), 256, "fp8", 13_783, 0.10),  # NeMo 25.07
        (SCOUT, "gb200:256", Training(shard=256, expert=16, recompute=True), 256, "bfloat16", 6169, 0.10),  # torchao
        (SCOUT, "gb200:256", Training(shard=256, expert=16, recompute=True), 256, "fp8", 7401, 0.15),
    ],
)
def test_published_speeds_of_training_are_met(
    config: LlamaConfig, hardware: str, layout: Training, batch: int, numbers: str, published: float, error: float
) -> None:
    run = trained(config, hardware, layout, batch, numbers)
    found = run.tokens_per_second / run.cluster.count
    print(f"{hardware} {numbers}: {found:,.0f} of {published:,.0f} tokens/s and GPU, {found / published - 1:+.1%}")
    assert found == pytest.approx(published, rel=error)


def test_energy_and_emissions_of_scout_are_about_those_of_the_card() -> None:
    run = trained(SCOUT, "h100:512", SCOUT_512, 2048, "bfloat16")
    assert run.gpu_hours == pytest.approx(5.0e6, rel=0.1)
    assert run.emitted.location_kg == pytest.approx(1354e3, rel=0.1)
