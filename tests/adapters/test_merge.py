import pytest
import torch

from puna.adapters.merge import merge, merged
from puna.adapters.spec import Spec
from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.model.transformer import Llama
from puna.quant import swap
from tests.adapters.toys import EVERYTHING, adapter_for


def test_merged_weight_is_rounded_once(config: LlamaConfig) -> None:
    adapter = adapter_for(config, Spec(rank=3, alpha=5, targets=frozenset({"attention"})))
    name = "layers.0.attention.query.weight"
    weight = torch.randn(32, 32).bfloat16()
    a, b, scale, _ = adapter[name]
    exact = weight.double() + scale * b.double() @ a.double()
    got = merged(name, weight, adapter)
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()  # half a step of bfloat16


def test_experts_without_factors_keep_their_bits(config: LlamaConfig) -> None:
    adapter = adapter_for(config, Spec(rank=3, targets=frozenset({"experts"}), experts={1: (2,)}))
    weight = torch.randn(4, 64, 32)
    got = merged("layers.1.moe.experts.gate_up", weight, adapter)
    assert [torch.equal(got[i], weight[i]) for i in range(4)] == [True, True, False, True]
    assert merged("layers.1.moe.experts.down", weight, {}) is weight


def test_model_in_small_numbers_is_refused_before_anything_is_changed(model: Llama, config: LlamaConfig) -> None:
    swap.quantize(model, swap.Policy(to="int8", parts=swap.EXPERTS))
    adapter = adapter_for(config, Spec(rank=3, targets=EVERYTHING))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with pytest.raises(ConfigError, match="small numbers"):
        merge(model, adapter)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
