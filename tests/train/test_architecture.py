"""A recipe names a model by a preset or by a configuration file."""

from pathlib import Path

import pytest

from puna.errors import ConfigError
from puna.presets import CRIA
from puna.train.architecture import architecture
from puna.weights.checkpoint import open_config


def test_a_preset_and_a_file_name_a_model(tiny: Path) -> None:
    assert architecture("cria", "model.preset") == CRIA
    assert architecture(str(tiny / "config.json"), "model.preset").text == open_config(tiny).text


@pytest.mark.parametrize("name", ["behemoth", "none.json"])
def test_what_is_not_there_is_refused_with_the_key_and_the_presets(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"transfer.base: '?{name}'? .* of scout, maverick"):
        architecture(name, "transfer.base")
