"""Bytes of a step grow with what is in it, and a prompt is read as far as there is room for its keys."""

from dataclasses import replace

import pytest

from puna.card.memory import SCHEMES
from puna.engine import engine
from puna.plan.forward import MAX_STEP_TOKENS, kernels_bytes, step_tokens, torch_bytes
from puna.presets import CRIA, MAVERICK, SCOUT


def test_a_step_is_as_long_as_the_engines() -> None:
    assert MAX_STEP_TOKENS == engine.MAX_STEP_TOKENS


@pytest.mark.parametrize(
    ("sequences", "context", "tokens"), [(1, 1, 1), (1, 100, 100), (1, 4000, 128), (4, 4000, 512), (64, 4000, 2048)]
)
def test_a_step_reads_a_chunk_of_each_sequence(sequences: int, context: int, tokens: int) -> None:
    assert step_tokens(CRIA.text, sequences, context) == tokens
    whole = replace(CRIA.text, rope_layers=frozenset())
    assert step_tokens(whole, sequences, context) == min(MAX_STEP_TOKENS, sequences * context)


def test_a_step_needs_more_for_more_tokens_and_logits() -> None:
    few, many, wide = (torch_bytes(SCOUT, *n) for n in ((1, 1), (8192, 1), (1, 8192)))
    assert few < many < wide


@pytest.mark.parametrize("config", [SCOUT, MAVERICK, CRIA], ids=["scout", "maverick", "cria"])
def test_kernels_keep_rows_in_float32_and_less_beside_small_weights(config: object) -> None:
    plain, small = (kernels_bytes(config, 2048, 1, SCHEMES[name]) for name in ("none", "int4"))  # type: ignore[arg-type]
    assert torch_bytes(config, 2048, 1) < small < plain  # type: ignore[arg-type]
