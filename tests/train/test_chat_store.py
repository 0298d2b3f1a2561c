"""What an assistant says is learnt and nothing else; what is too long is refused, dropped or cut, and counted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from puna.config import LlamaConfig
from puna.errors import PromptError
from puna.prompt.tokenizer import Tokenizer
from puna.train.chat_store import Choices, store_chats
from puna.train.store import Store
from tests.train.chat_lines import CHATS, PAIRS, write_lines

CHOICES = Choices(longest=200)
HIDDEN = "#"
TURNS: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "assistant\n\nsun?"},
        {"role": "assistant", "content": "grass"},
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "on it", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]},
        {"role": "tool", "content": "herd"},
        {"role": "assistant", "content": "a herd"},
    ]
}


@pytest.fixture
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(tiny)


def stored(lines: Sequence[dict[str, Any]], choices: Choices, tiny: Path, config: LlamaConfig, folder: Path) -> Store:
    path = write_lines(folder / "chats.jsonl", lines)
    file = tiny / "tokenizer.json"
    return store_chats([path], folder / "store", Tokenizer.load(tiny), file, config.vision, choices, lambda line: None)


def learnt(store: Store, tokenizer: Tokenizer, document: int = 0) -> str:
    own = range(store.offsets[document], store.offsets[document + 1])
    return "".join(tokenizer.decode([int(store.ids[i])]) if store.weights[i] else HIDDEN for i in own)


def test_words_calls_and_ends_of_the_assistant_are_learnt(
    tiny: Path, tiny_model_config: LlamaConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    store = stored([TURNS], CHOICES, tiny, tiny_model_config, tmp_path)
    pieces = [piece for piece in learnt(store, tokenizer).split(HIDDEN) if piece]
    assert pieces == ["grass<|eot|>", "on it[look()]<|eom|>", "a herd<|eot|>"]
    counts = store.facts["counts"]
    assert counts["conversations"] == 1 and counts["learnt"] == sum(store.weights)


def test_a_plain_text_is_learnt_with_its_end(
    tiny: Path, tiny_model_config: LlamaConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    store = stored([TURNS, {"source": "book", "text": "a herd"}], CHOICES, tiny, tiny_model_config, tmp_path)
    assert learnt(store, tokenizer, 1) == HIDDEN + "a herd<|end_of_text|>"
    assert store.source_names[store.sources[1]] == "book"


def test_the_last_turn_alone_or_with_its_header_may_be_learnt(
    tiny: Path, tiny_model_config: LlamaConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    choices = replace(CHOICES, learn="last", learn_header=True)
    store = stored([TURNS], choices, tiny, tiny_model_config, tmp_path)
    pieces = [piece for piece in learnt(store, tokenizer).split(HIDDEN) if piece]
    assert pieces == ["<|header_start|>assistant<|header_end|>\n\na herd<|eot|>"]


def test_pictures_are_read_and_never_learnt(
    tiny: Path, tiny_model_config: LlamaConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    Image.new("RGB", (32, 16), "red").save(tmp_path / "a.png")
    asked = {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "?"}]}
    lines = [{"messages": [asked, {"role": "assistant", "content": "red"}]}] * 2
    store = stored(lines, CHOICES, tiny, tiny_model_config, tmp_path)
    assert [piece for piece in learnt(store, tokenizer).split(HIDDEN) if piece] == ["red<|eot|>"]
    assert len(store.tiles) == 3 and store.tile_refs.tolist() == [0, 1, 2] * 2  # two tiles and the global one, once


def test_a_preference_is_two_documents_of_which_the_answers_are_learnt(
    tiny: Path, tiny_model_config: LlamaConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    store = stored(PAIRS[:1], CHOICES, tiny, tiny_model_config, tmp_path)
    texts = [learnt(store, tokenizer, document).strip(HIDDEN) for document in range(2)]
    assert texts == ["grass <|eot|>", "herd<|eot|>"] and store.facts["is_preference"]
    with pytest.raises(PromptError, match=r"line 2: preferences and other conversations are mixed"):
        stored([PAIRS[0], CHATS[0]], CHOICES, tiny, tiny_model_config, tmp_path)


def test_what_is_too_long_is_refused_dropped_or_cut(
    tiny: Path, tiny_model_config: LlamaConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lines = [CHATS[0], TURNS]
    with pytest.raises(PromptError, match=r"line 2: has \d+ tokens, and a row 60; raise batch.row_len"):
        stored(lines, replace(CHOICES, longest=60), tiny, tiny_model_config, tmp_path)
    dropped = stored(lines, replace(CHOICES, longest=60, too_long="drop"), tiny, tiny_model_config, tmp_path)
    assert dropped.n_documents == 1 and dropped.facts["counts"]["dropped"] == 1
    cut = stored(lines, replace(CHOICES, longest=100, too_long="truncate"), tiny, tiny_model_config, tmp_path)
    assert cut.offsets[2] - cut.offsets[1] == 100 and cut.facts["counts"]["truncated"] == 1


def test_a_conversation_that_teaches_nothing_is_refused(
    tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path
) -> None:
    with pytest.raises(PromptError, match="line 1: nothing in it is learnt"):
        stored([{"messages": [{"role": "user", "content": "?"}]}], CHOICES, tiny, tiny_model_config, tmp_path)


def test_another_picture_under_the_same_name_makes_another_store(
    tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path
) -> None:
    asked = {"role": "user", "content": [{"type": "image", "path": "a.png"}]}
    lines = [{"messages": [asked, {"role": "assistant", "content": "red"}]}]
    digests = set()
    for colour in ("red", "blue"):
        Image.new("RGB", (16, 16), colour).save(tmp_path / "a.png")
        digests.add(stored(lines, CHOICES, tiny, tiny_model_config, tmp_path).digest)
    assert len(digests) == 2
