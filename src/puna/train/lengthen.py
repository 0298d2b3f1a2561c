"""A model that reads longer texts than it was trained on: what the table [lengthen] of a recipe makes of its shape.

In: a configuration and the table. Out: the configuration that trains, and that is written with the weights, so whoever
loads them turns positions as they were trained. No weight changes its shape.
Not here: long texts (`haystack`), rows whose positions several ranks share (`context`).
Source: the stretching is Scout's, "llama3" with factor 16 (llama-models `models/llama4/args.py`).
"""

from dataclasses import replace

from puna.config import LlamaConfig, RopeScaling
from puna.train.recipe import LengthenRecipe


def lengthened(config: LlamaConfig, table: LengthenRecipe | None) -> LlamaConfig:
    """Returns `config` as a recipe's [lengthen] has it; as it is where there is none. Twice is the same as once."""
    if table is None:
        return config
    text = replace(config.text, context_len=table.context_len)
    if table.chunk_len:
        text = replace(text, chunk_len=table.chunk_len)
    if table.factor:
        scaling = RopeScaling(
            factor=table.factor,
            low_factor=table.low_factor,
            high_factor=table.high_factor,
            original_context=table.original_context,
        )
        text = replace(text, rope_scaling=scaling)
    return replace(config, text=text)
