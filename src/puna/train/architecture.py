"""The model that a recipe names, as a configuration."""

import json
from pathlib import Path

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.presets import PRESETS
from puna.weights.configs import from_hf


def architecture(name: str, key: str) -> LlamaConfig:
    """Returns what `name` says, a preset or a file in Hugging Face's layout that ends in `.json`.

    Raises ConfigError, naming the `key` of the recipe, when there is none of that name.
    """
    if name.endswith(".json"):
        file = Path(name)
        if not file.is_file():
            raise ConfigError(f"{key}: {name} does not exist; give a config.json or one of {', '.join(PRESETS)}")
        beside = file.with_name("preprocessor_config.json")  # of a checkpoint, how many tiles a picture may have
        preprocessor = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
        return from_hf(json.loads(file.read_text(encoding="utf-8")), preprocessor)
    if name not in PRESETS:
        raise ConfigError(f"{key}: {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
