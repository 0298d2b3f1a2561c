import pytest

from puna.model.count import count_parameters
from puna.model.transformer import Llama
from puna.presets import PRESETS
from tests.reference.tiny import random_model, tiny_config


@pytest.mark.parametrize(
    ("preset", "total", "activated"),
    [("scout", 108.64, 17.17), ("maverick", 401.58, 17.18), ("guard4", 12.00, 11.13)],
)
def test_released_models_have_the_published_sizes_in_billions(preset: str, total: float, activated: float) -> None:
    count = count_parameters(PRESETS[preset])
    assert (round(count.total / 1e9, 2), round(count.activated / 1e9, 2)) == (total, activated)


def test_parts_add_up_to_every_parameter_of_a_model() -> None:
    model: Llama = random_model(tiny_config())
    count = count_parameters(tiny_config())
    assert count.total == sum(count.parts().values()) == sum(p.numel() for p in model.parameters())
    assert all(count.parts().values())
    assert count.active_experts * 4 == count.routed_experts
