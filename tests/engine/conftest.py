import pytest
import torch

from puna.model.transformer import Llama
from tests.reference.tiny import random_model, tiny_config


@pytest.fixture(scope="session")
def model() -> Llama:
    torch.set_num_threads(1)
    return random_model(tiny_config())
