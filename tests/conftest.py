"""What all tests share: markers that are skipped with their reason, and a torchvision that can be imported."""

import os
from importlib.util import find_spec

import pytest
import torch

from tests.reference.ranks import four_ranks, two_ranks  # noqa: F401  (fixtures)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # on the CPU; Triton asks once, when it is first imported
if find_spec("torchvision") is not None:
    import tests.reference.torchvision_on_cpu  # noqa: F401  (before anything imports torchvision)


@pytest.fixture(autouse=True)
def _damaged_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta's reference, once imported, has the imaging library accept truncated files in the whole process."""
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {}
    if not config.getoption("--slow"):
        skips["slow"] = pytest.mark.skip(reason="slow: runs with --slow")
    if any("gpu" in item.keywords for item in items) and not torch.cuda.is_available():
        skips["gpu"] = pytest.mark.skip(reason="gpu: no CUDA device here")
    for item in items:
        for marker in skips.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(skips[marker])
