"""Where Triton's kernels are tested: on a GPU where there is one, in Triton's interpreter on the CPU elsewhere."""

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The device on which kernels run here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
