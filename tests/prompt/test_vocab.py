"""The table of special tokens."""

from typing import Any

import pytest

from puna.errors import PromptError
from puna.prompt import vocab


def test_the_table_equals_metas_in_names_and_order(meta_tokenizer: Any) -> None:
    assert list(meta_tokenizer.special_tokens) == list(vocab.SPECIAL_NAMES)


def test_the_table_has_2048_different_names() -> None:
    assert len(vocab.SPECIAL_NAMES) == len(set(vocab.SPECIAL_NAMES)) == vocab.N_SPECIAL


@pytest.mark.parametrize(
    ("name", "index"),
    [
        (vocab.BEGIN_OF_TEXT, 0),
        (vocab.END_OF_TURN, 8),
        (vocab.PYTHON_START, 16),
        (vocab.PAD, 18),
        (vocab.IMAGE_START, 80),
        (vocab.TILE_Y_SEPARATOR, 85),
        (vocab.IMAGE, 90),
        (vocab.PATCH, 92),
        ("<|reasoning_thinking_end|>", 1143),
    ],
)
def test_published_indices_hold(name: str, index: int) -> None:
    assert vocab.SPECIAL_NAMES[index] == name


def test_a_missing_special_token_is_named() -> None:
    with pytest.raises(PromptError, match=r"<\|patch\|> is not in this vocabulary"):
        vocab.special_id({}, vocab.PATCH)
