"""What tests of evaluation share: a small random model."""

import pytest

from puna.chat import Assistant, load
from tests.reference.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return load(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model"), device="cpu")
