"""Records are found by the names of files, the nearest first."""

from pathlib import Path

import pytest

from puna.card.records import gather, total
from puna.errors import ConfigError
from puna.presets import CRIA


def test_the_first_folder_that_has_a_file_wins(folder: Path, tmp_path: Path) -> None:
    nearer = tmp_path / "nearer"
    nearer.mkdir()
    (nearer / "card.toml").write_text('name = "other"\n')
    found = gather("toy", CRIA, [nearer, folder])
    assert found.declared.name == "other" and len(found.training) == 2 and found.weights_bytes == 5000
    assert list(found.held_out) == ["toy", "untrained"] and set(found.sources) >= {"card.toml", "training.json"}


def test_a_result_alone_belongs_to_the_model(folder: Path) -> None:
    (folder / "evaluation.json").write_text('{"model": "x", "exactness": {}, "compression": {}}')
    assert list(gather("toy", CRIA, [folder]).held_out) == ["toy"]


@pytest.mark.parametrize(
    "name", ["training.json", "results.json", "evaluation.json", "safety.json", "quantization-int4.json"]
)
@pytest.mark.parametrize("text", ["{", "[]", "3", '{"model": "x"}'])
def test_a_file_that_is_no_record_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        gather("toy", CRIA, [folder])


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    assert total([1.0, 2.0]) == 3.0 and total([1.0, None]) is None and total([]) is None
