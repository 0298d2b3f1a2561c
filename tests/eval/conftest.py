"""What tests of evaluation share: a small random model, and data of our own."""

from pathlib import Path

import pytest

from puna.chat import Assistant, load
from puna.eval import own
from tests.reference.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return load(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model"), device="cpu")


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the name of a task, the folder that has items of our own for it."""
    return own.write(tmp_path_factory.mktemp("own"))
