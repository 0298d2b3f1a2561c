"""The card's own count of parameters, held against the model that it never imports."""

from dataclasses import replace

import pytest
import torch

from puna.card.params import PARTS, count, weights
from puna.config import LlamaConfig
from puna.model.count import count_parameters
from puna.model.transformer import Llama
from puna.presets import CRIA, PRESETS

TEXT_ONLY = replace(CRIA, vision=None)
HALF_DENSE = replace(CRIA, text=replace(CRIA.text, moe_layers=frozenset({1, 5}), n_active_experts=2))


@pytest.mark.parametrize("config", [CRIA, TEXT_ONLY, HALF_DENSE], ids=["cria", "text only", "half dense"])
def test_weights_are_those_of_the_model_by_name_and_shape(config: LlamaConfig) -> None:
    with torch.device("meta"):
        model = Llama(config)
    ours = {weight.name: weight.shape for weight in weights(config)}
    assert ours == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_those_of_the_model(name: str) -> None:
    ours, models = count(PRESETS[name]), count_parameters(PRESETS[name])
    assert (ours.parts, ours.total, ours.activated) == (models.parts(), models.total, models.activated)
    assert tuple(ours.parts) == PARTS


def test_a_token_reads_what_it_activates_without_embedding_and_norms() -> None:
    parameters = count(CRIA)
    assert parameters.activated - parameters.read == parameters.parts["embedding"] + parameters.parts["norms"]
