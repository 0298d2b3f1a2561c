"""Operations of a token, counted by hand, and where the peak that they are held against comes from."""

from typing import Any

import pytest

from puna.config import LlamaConfig
from puna.hardware import KINDS
from puna.model.count import count_parameters
from puna.train.recipe import from_dict
from puna.train.watch.work import token_flops, work_of


def test_a_token_takes_six_operations_for_each_parameter_but_the_embedding(
    tables: dict[str, Any], tiny_model_config: LlamaConfig
) -> None:
    count = count_parameters(tiny_model_config)
    used = count.attention + count.router + count.active_experts + count.shared_experts + count.dense
    work = work_of(from_dict(tables), tiny_model_config, "")
    assert work.token_flops == 6 * (used + count.norms + count.head)
    assert work.peak_flops is None and work.peak_source == "not known: log.peak_tflops declares it"
    assert work_of(from_dict(tables), tiny_model_config, "NVIDIA H100 PCIe").peak_flops is None  # slower than SXM


def test_what_does_not_train_takes_a_third_less_and_factors_take_all(tiny_model_config: LlamaConfig) -> None:
    text = tiny_model_config.text
    whole, none = token_flops(tiny_model_config), token_flops(tiny_model_config, {})
    assert none == pytest.approx(whole * 4 / 6)
    head = text.vocab_size * text.width
    assert token_flops(tiny_model_config, {"head.weight": head}) == none + 2 * head
    factors = {"layers.0.attention.query.weight_factors.a": 10, "layers.1.moe.experts.down_factors.b": 100}
    share = text.n_active_experts / text.n_experts
    assert token_flops(tiny_model_config, factors) == none + 6 * (10 + 100 * share)
    assert token_flops(tiny_model_config, {"embedding.weight": head, "vision.norm_in.weight": 16}) == none


@pytest.mark.parametrize(
    ("declared", "processor", "peak", "source"),
    [
        (0.5, "NVIDIA H100 80GB HBM3", 1e12, "0.5 TFLOP/s declared, times 2"),
        (
            0.0,
            "NVIDIA H100 80GB HBM3",
            2 * 989.4e12,
            f"989.4 TFLOP/s of {KINDS['h100'].name} by its datasheet, times 2",
        ),
        (0.0, "NVIDIA H200", 2 * 989.4e12, f"989.4 TFLOP/s of {KINDS['h200'].name} by its datasheet, times 2"),
    ],
    ids=["declared", "h100", "h200"],
)
def test_the_peak_is_the_declared_one_or_that_of_a_known_gpu_times_ranks(
    declared: float, processor: str, peak: float, source: str, tables: dict[str, Any], tiny_model_config: LlamaConfig
) -> None:
    recipe = from_dict(tables | {"log": {"peak_tflops": declared}, "parallel": {"replicate": 2}})
    work = work_of(recipe, tiny_model_config, processor)
    assert work.peak_flops == pytest.approx(peak) and work.peak_source == source
