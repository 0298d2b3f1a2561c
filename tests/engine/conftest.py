import pytest
import torch

from puna.model.transformer import Llama
from tests.reference.tiny import random_model, tiny_config


@pytest.fixture(scope="session")
def model() -> Llama:
    torch.set_num_threads(1)
    return random_model(tiny_config())


@pytest.fixture
def device() -> torch.device:
    """Where Triton's kernels run: on a GPU where there is one, in Triton's interpreter on the CPU elsewhere."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
