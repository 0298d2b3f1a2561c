import pytest
import torch

from puna.adapters.spec import Spec, begin, busiest, check
from puna.config import LlamaConfig
from puna.errors import ConfigError
from tests.adapters.toys import EVERYTHING, adapter_for
from tests.reference.tiny import tiny_config


def test_default_corrects_every_matrix_of_the_layers_but_the_router(config: LlamaConfig) -> None:
    names = Spec().shapes(config)
    assert names["layers.1.moe.experts.gate_up"] == (4, 64, 32)
    assert {name.split(".", 2)[2] for name in names if name.startswith("layers.1.")} == {
        *(f"attention.{name}.weight" for name in ("query", "key", "value", "output")),
        *(f"moe.shared.{name}.weight" for name in ("gate", "up", "down")),
        "moe.experts.gate_up",
        "moe.experts.down",
    }


def test_router_and_head_and_the_tower_are_corrected_where_that_is_asked_for() -> None:
    names = Spec(targets=frozenset({"router", "head", "projector", "vision"})).shapes(tiny_config())
    assert {"layers.1.moe.router.weight", "head.weight", "projector.weight"} < names.keys()
    assert {"vision.patch.weight", "vision.layers.0.mlp.up.weight", "vision.adapter.down.weight"} < names.keys()
    assert not any(name.endswith("bias") or "norm" in name or "positions" in name for name in names)


def test_only_the_named_experts_have_factors(config: LlamaConfig) -> None:
    adapter = begin(config, Spec(rank=2, experts={1: (0, 3)}), torch.Generator())
    assert adapter["layers.1.moe.experts.down"].a.shape == (2, 2, 32)
    assert adapter["layers.1.moe.experts.down"].experts == (0, 3)
    assert "layers.3.moe.experts.down" not in adapter and "layers.3.attention.key.weight" in adapter


def test_busiest_experts_are_those_of_most_tokens(config: LlamaConfig) -> None:
    counts = torch.tensor([[5, 9, 0, 9], [1, 2, 3, 4]])
    assert busiest(config, counts, 0.5) == {1: (1, 3), 3: (2, 3)}
    assert busiest(config, counts, 0.01) == {1: (1,), 3: (3,)}


def test_a_new_adapter_changes_nothing_and_comes_from_its_generator_alone(config: LlamaConfig) -> None:
    one, other = (begin(config, Spec(rank=4), torch.Generator().manual_seed(3)) for _ in range(2))
    for name, factors in one.items():
        assert not factors.b.any() and torch.equal(factors.a, other[name].a)
        assert factors.a.abs().max() <= factors.a.shape[-1] ** -0.5 < 1.1 * factors.a.abs().max() + 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": 0},
        {"targets": frozenset({"norms"})},
        {"targets": frozenset({"attention"}), "experts": {1: (0,)}},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Spec(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("experts", [{0: (1,)}, {1: (4,)}, {1: (2, 1)}, {1: (1, 1)}])
def test_experts_that_the_model_does_not_have_are_refused(
    config: LlamaConfig, experts: dict[int, tuple[int, ...]]
) -> None:
    with pytest.raises(ConfigError, match="experts"):
        Spec(experts=experts).shapes(config)


def test_targets_that_the_model_does_not_have_are_refused(config: LlamaConfig) -> None:
    with pytest.raises(ConfigError, match="vision"):
        Spec(targets=frozenset({"attention", "vision"})).shapes(config)


def test_adapter_of_another_model_is_refused_by_name(config: LlamaConfig) -> None:
    adapter = adapter_for(config, Spec(rank=2, targets=EVERYTHING))
    check(adapter, config)
    head = adapter["head.weight"]
    with pytest.raises(ConfigError, match=r"head\.weight"):
        check({"head.weight": head._replace(a=head.a[:, 1:])}, config)
    with pytest.raises(ConfigError, match=r"tail\.weight"):
        check({"tail.weight": head}, config)
