from dataclasses import replace

import pytest
import torch

from puna.bench import work
from puna.config import LlamaConfig
from puna.model.transformer import Llama
from puna.presets import CRIA
from tests.reference.tiny import tiny_config


def measured_model() -> LlamaConfig:
    """The model whose floors were once worked out by hand: 12 layers, all of 16 experts, chunks of 8192."""
    text = replace(
        CRIA.text,
        width=1536,
        n_layers=12,
        n_heads=12,
        n_kv_heads=4,
        head_dim=128,
        vocab_size=32768,
        context_len=131072,
        rope_layers=frozenset(range(12)) - {3, 7, 11},
        chunk_len=8192,
        moe_layers=frozenset(range(12)),
        n_experts=16,
        n_active_experts=1,
        expert_width=2048,
        dense_width=4096,
    )
    return replace(CRIA, text=text, vision=None, patch_id=None)


BF16 = work.Limits(read_bytes=47e9, flops=900e9)


def weights_of(config: LlamaConfig, bits: float) -> dict[str, int]:
    parts = work.count_parameters(config).parts()
    return {part: int(n * bits / 8) for part, n in parts.items()}


def test_a_token_reads_the_parameters_counted_by_hand() -> None:
    assert work.read_parameters(measured_model()) / 1e6 == pytest.approx(352.6, abs=0.05)


def test_a_token_of_a_prompt_costs_the_operations_counted_by_hand() -> None:
    assert work.prefill_flops(measured_model()) / 1e9 == pytest.approx(0.605, abs=0.0005)


@pytest.mark.parametrize(
    "batch, context, bf16, four_bits", [(1, 128, 67, 237), (1, 2048, 62, 189), (8, 128, 194, 690), (16, 128, 268, 952)]
)
def test_floors_of_decoding_equal_those_worked_out_by_hand(
    batch: int, context: int, bf16: float, four_bits: float
) -> None:
    config = measured_model()
    limits = BF16._replace(flops=1e15)  # the table by hand looks at memory alone
    # The table leaves out keys and values at context 128: 1 % of the bytes at most in bf16, 12 % in 4 bits at batch 16.
    keys = context if context > 128 else 0

    def floor(bits: float) -> float:
        return work.decode_floor(config, weights_of(config, bits), limits, batch, keys, element_bytes=2)

    assert floor(16) == pytest.approx(bf16, rel=0.01)
    assert floor(4.5) == pytest.approx(four_bits, rel=0.01)


def test_floor_of_prefill_is_the_matrix_product() -> None:
    config = measured_model()
    floor = work.prefill_floor(config, weights_of(config, 16), BF16, 2048)
    assert floor == pytest.approx(1490, rel=0.01)


def test_floor_of_a_short_prompt_is_the_memory() -> None:
    config = measured_model()
    weights = weights_of(config, 16)
    assert work.prefill_floor(config, weights, BF16, 1) == pytest.approx(
        work.decode_floor(config, weights, BF16, 1, 0, 2)
    )


def test_bytes_of_weights_are_those_of_the_model() -> None:
    model = Llama(tiny_config()).to(torch.bfloat16)
    found = work.weight_bytes(model)
    assert sum(found.values()) == sum(parameter.nbytes for parameter in model.parameters())
    assert {part: n // 2 for part, n in found.items()} == {
        part: n for part, n in work.count_parameters(model.config).parts().items() if n
    }


def test_bytes_of_packed_weights_count() -> None:
    class Packed:
        data = torch.zeros(48, dtype=torch.uint8)

    model = Llama(tiny_config())
    before = work.weight_bytes(model)
    linear = model.layers[0].attention.output
    n_plain = linear.weight.nbytes
    linear.register_parameter("weight", None)
    linear.packed = Packed()
    assert work.weight_bytes(model)["attention"] == before["attention"] - n_plain + 48
