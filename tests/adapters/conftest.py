from dataclasses import replace

import pytest

from puna.config import LlamaConfig
from puna.model.transformer import Llama
from tests.reference.tiny import random_model, tiny_config


@pytest.fixture(scope="session")
def config() -> LlamaConfig:
    """The tiny model's decoder, whose experts are wide enough for groups of 32."""
    whole = tiny_config()
    return replace(whole, vision=None, patch_id=None, text=replace(whole.text, expert_width=32, dense_width=64))


@pytest.fixture
def model(config: LlamaConfig) -> Llama:
    return random_model(config)
