import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from puna.adapters.attach import AdaptedExperts, AdaptedLinear, adapter_of, attach, detach, trained
from puna.adapters.merge import merge
from puna.adapters.spec import Spec, Target
from puna.config import LlamaConfig
from puna.engine.engine import Engine, score
from puna.engine.request import Request, Sampling
from puna.errors import ConfigError
from puna.kernels import native
from puna.kernels.formats import dequantize
from puna.kernels.low_rank import Factors
from puna.model.mask import Packed
from puna.model.transformer import Llama, set_parameter
from puna.quant import swap
from tests.adapters.toys import EVERYTHING, adapter_for
from tests.reference.tiny import random_ids, random_model, tiny_config

IDS = random_ids(12, seed=0)
KEY = "layers.0.attention.key.weight"


def logits(model: Llama, ids: Sequence[int] = IDS) -> Tensor:
    store = Packed.single(model.config.text, len(ids))
    out: Tensor = model(torch.tensor(ids), torch.arange(len(ids)), store)
    return out


def small_model(config: LlamaConfig, to: swap.Format) -> tuple[Llama, Llama]:
    """A model in small numbers, unpacked, and one with the same numbers written out."""
    small = random_model(config)
    swap.quantize(small, swap.Policy(to=to), arrange=lambda weight: weight)
    written = random_model(config)
    for name, weight in swap_numbers(small).items():
        set_parameter(written, name, weight)
    return small, written


def swap_numbers(model: Llama) -> dict[str, Tensor]:
    found = {}
    for path, part in model.named_modules():
        leaves = {swap.SmallLinear: ("weight",), swap.SmallExperts: ("gate_up", "down")}.get(type(part), ())
        found |= {f"{path}.{leaf}": dequantize(getattr(part, leaf), torch.float32) for leaf in leaves}
    return found


@pytest.mark.parametrize("target", sorted(EVERYTHING))
def test_each_kind_of_map_with_an_adapter_gives_what_merged_weights_give(
    model: Llama, config: LlamaConfig, target: Target
) -> None:
    adapter = adapter_for(config, Spec(rank=3, targets=frozenset({target})))
    base = logits(model)
    attach(model, adapter)
    adapted = logits(model)
    detach(model)
    merge(model, adapter)
    torch.testing.assert_close(adapted, logits(model), rtol=1e-4, atol=1e-5)
    assert (adapted - base).abs().max() > 1e-2


def test_tower_and_projector_with_an_adapter_give_what_merged_weights_give() -> None:
    config = tiny_config()
    model, tiles = random_model(config), torch.rand(2, 3, 16, 16) * 2 - 1
    adapter = adapter_for(config, Spec(rank=3, targets=frozenset({"vision", "projector"})))
    base = model.embed_tiles(tiles)
    attach(model, adapter)
    adapted = model.embed_tiles(tiles)
    detach(model)
    merge(model, adapter)
    torch.testing.assert_close(adapted, model.embed_tiles(tiles), rtol=1e-4, atol=1e-5)
    assert (adapted - base).abs().max() > 1e-3


def test_few_experts_with_an_adapter_give_what_merged_weights_give(model: Llama, config: LlamaConfig) -> None:
    adapter = adapter_for(config, Spec(rank=3, targets=frozenset({"experts"}), experts={1: (1, 2), 3: (0,)}))
    attach(model, adapter)
    adapted = logits(model)
    detach(model)
    merge(model, adapter)
    torch.testing.assert_close(adapted, logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", swap.FORMATS)
def test_small_base_with_an_adapter_gives_and_learns_what_its_numbers_do(config: LlamaConfig, to: swap.Format) -> None:
    small, written = small_model(config, to)
    adapter = adapter_for(config, Spec(rank=3))
    gradients = []
    for model in (small, written):
        attach(model, {name: each._replace(a=each.a.clone(), b=each.b.clone()) for name, each in adapter.items()})
        gradients.append(torch.autograd.grad(logits(model).square().sum(), list(trained(model).values())))
    torch.testing.assert_close(logits(small), logits(written), rtol=1e-4, atol=1e-4)
    for name, ours, theirs in zip(trained(small), *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()), msg=name)


def doubled(factors: Factors) -> Factors:
    return factors._replace(a=factors.a.double(), b=factors.b.double())


def test_gradients_of_a_linear_map_are_its_slopes(model: Llama, config: LlamaConfig) -> None:
    adapter = adapter_for(config, Spec(rank=2, targets=frozenset({"attention"})))
    part = AdaptedLinear(model.get_submodule("layers.0.attention.key").double(), doubled(adapter[KEY]))
    x = torch.randn(3, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: part(x), (x, part.weight_factors.a, part.weight_factors.b))


def test_gradients_of_few_experts_are_their_slopes(model: Llama, config: LlamaConfig) -> None:
    spec = Spec(rank=1, targets=frozenset({"experts"}), experts={1: (1, 3)})
    up, down = (doubled(adapter_for(config, spec)[f"layers.1.moe.experts.{leaf}"]) for leaf in ("gate_up", "down"))
    part = AdaptedExperts(model.get_submodule("layers.1.moe.experts").double(), up, down, n_experts=4)
    x, scores = torch.randn(4, 32, dtype=torch.float64), torch.rand(4, 1, dtype=torch.float64)
    experts = torch.tensor([[3], [0], [1], [3]])

    def run(x: Tensor, scores: Tensor, *_: Tensor) -> Tensor:
        out: Tensor = part(x, scores, experts)
        return out

    inputs = (x.requires_grad_(), scores.requires_grad_(), *(each for each in part.parameters() if each.requires_grad))
    assert torch.autograd.gradcheck(
        run, inputs, fast_mode=True
    )  # each number by itself: tests/kernels/test_low_rank.py


def test_only_factors_train_and_their_names_are_those_of_the_base(model: Llama, config: LlamaConfig) -> None:
    model.requires_grad_(True)
    adapter = adapter_for(config, Spec(rank=2))
    attach(model, adapter)
    training = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert training == {id(parameter) for parameter in trained(model).values()}
    assert trained(model).keys() == {f"{name}.{leaf}" for name, leaf in itertools.product(adapter, ("a", "b"))}


def test_detached_model_is_what_it_was_and_the_adapter_too(model: Llama, config: LlamaConfig) -> None:
    parts, adapter = dict(model.named_modules()), adapter_for(config, Spec(rank=2, targets=EVERYTHING))
    attach(model, adapter)
    assert adapter_of(model).keys() == adapter.keys()
    back = detach(model)
    assert dict(model.named_modules()) == parts
    for name, factors in adapter.items():
        assert torch.equal(back[name].a, factors.a) and back[name].scale == factors.scale


def test_step_of_an_optimiser_changes_factors_and_nothing_else(model: Llama, config: LlamaConfig) -> None:
    attach(model, adapter_for(config, Spec(rank=2)))
    frozen = {name: each.clone() for name, each in model.named_parameters() if not each.requires_grad}
    before = {name: each.detach().clone() for name, each in trained(model).items()}
    logits(model).square().mean().backward()
    torch.optim.SGD(trained(model).values(), lr=0.1).step()
    assert all(torch.equal(each, frozen[name]) for name, each in model.named_parameters() if not each.requires_grad)
    assert not any(torch.equal(each, before[name]) for name, each in trained(model).items())


def test_engine_answers_with_the_factors_of_that_moment(model: Llama, config: LlamaConfig) -> None:
    request = Request(ids=IDS, sampling=Sampling(temperature=0, max_new_tokens=6))
    attach(model, adapter_for(config, Spec(rank=3)))
    engine = Engine(model, kv_bytes=1 << 20)
    before = engine.run([request])[0][0].ids
    torch.testing.assert_close(score(model, IDS), logits(model).detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for factor in trained(model).values():
            factor *= 3
    engine.forget()
    after = engine.run([request])[0][0].ids
    merge_into = random_model(config)
    merge(merge_into, adapter_of(model))
    assert after == Engine(merge_into, kv_bytes=1 << 20).run([request])[0][0].ids != before


def test_second_adapter_packed_weights_and_another_model_are_refused(model: Llama, config: LlamaConfig) -> None:
    adapter = adapter_for(config, Spec(rank=2, targets=frozenset({"attention"})))
    attach(model, adapter)
    with pytest.raises(ConfigError, match="already"):
        attach(model, adapter)
    detach(model)
    with pytest.raises(ConfigError, match="no tail"):
        attach(model, {"tail": adapter["layers.0.attention.query.weight"]})
    if native.available():
        swap.quantize(model, swap.Policy(to="int8"))
        with pytest.raises(ConfigError, match="packed"):
            attach(model, adapter)


@pytest.mark.slow  # compiles
def test_compiled_layers_learn_what_plain_ones_do(config: LlamaConfig) -> None:
    gradients = []
    for is_compiled in (False, True):
        model = random_model(config)
        attach(model, adapter_for(config, Spec(rank=2)))
        if is_compiled:
            for layer in model.layers:
                assert isinstance(layer, nn.Module)
                layer.compile()
        gradients.append(torch.autograd.grad(logits(model).square().mean(), list(trained(model).values())))
    for name, plain, compiled in zip(trained(model), *gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-5, msg=name)
