"""Tests of puna.train.vocab: ranks, merges derived from them, and the agreement of the two reference tokenizers."""

import json
from pathlib import Path
from random import Random

import pytest

from puna.errors import ConfigError
from puna.train.vocab import (
    N_SPECIAL,
    PATTERN,
    balanced_sample,
    byte_letters,
    learn_ranks,
    merges_of,
    special_tokens,
    write_tokenizer,
)

TEXTS = [
    "The little red hen found a grain of wheat. “Who will help me?” she asked.",
    "यह एक छोटा सेब है। वह लाल है।",
    "هذه تفاحة حمراء صغيرة. ما هذا؟",
    "นี่คือแอปเปิลสีแดง 1234 ลูก",
    "Đây là quả táo đỏ.\n\n  It's 12345!  \r\n\tend",
] * 3


@pytest.fixture(scope="module")
def ranks() -> list[bytes]:
    pytest.importorskip("tokenizers")
    return learn_ranks(TEXTS, 400)


def test_ranks_begin_with_the_bytes_and_are_distinct(ranks: list[bytes]) -> None:
    assert ranks[:256] == [bytes([value]) for value in range(256)]
    assert len(set(ranks)) == len(ranks) == 400


def test_too_few_texts_are_refused_with_the_number() -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(ConfigError, match="n_ranks"):
        learn_ranks(["aa"], 400)


def test_every_learnt_token_is_made_of_two_earlier_ones(ranks: list[bytes]) -> None:
    table = {token: rank for rank, token in enumerate(ranks)}
    made = {left + right for left, right in merges_of(table)}
    assert made == set(ranks[256:])


def test_merges_come_in_the_order_of_the_ranks() -> None:
    table = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5}
    assert merges_of(table) == [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"ab", b"c")]


def test_special_tokens_are_distinct_and_fill_their_places() -> None:
    names = special_tokens()
    assert len(set(names)) == len(names) == N_SPECIAL
    assert names[0] == "<|begin_of_text|>"
    assert names[-1].startswith("<|reserved_special_token_")


def test_every_byte_has_its_own_letter() -> None:
    assert len(set(byte_letters().values())) == 256


def test_both_references_give_the_same_ids_and_the_text_comes_back(ranks: list[bytes], tmp_path: Path) -> None:
    tokenizers, tiktoken = pytest.importorskip("tokenizers"), pytest.importorskip("tiktoken")
    write_tokenizer(ranks, tmp_path)
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    slow = tiktoken.Encoding(
        "cria", pat_str=PATTERN, mergeable_ranks={token: rank for rank, token in enumerate(ranks)}, special_tokens={}
    )
    rng = Random(0)
    letters = sorted(set("".join(TEXTS)))
    texts = TEXTS[:5] + ["".join(rng.choices(letters, k=60)) for _ in range(200)]
    for text in texts:
        ids = fast.encode(text).ids
        assert ids == slow.encode(text)
        assert fast.decode(ids) == text


def test_special_tokens_follow_the_ranks(ranks: list[bytes], tmp_path: Path) -> None:
    write_tokenizer(ranks, tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    assert [entry["id"] for entry in added] == list(range(400, 400 + N_SPECIAL))
    assert [entry["content"] for entry in added] == list(special_tokens())


def test_the_chat_template_renders_headers_pictures_and_the_reply(ranks: list[bytes], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(ranks, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n<|image|>Hi<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    )


def test_a_sample_gives_every_language_its_share() -> None:
    texts = {"en": ["x" * 100] * 1000, "th": ["y" * 100] * 5}
    sample = balanced_sample(Random(0), texts, 1000)
    assert sum(text[0] == "x" for text in sample) == 10
    assert sum(text[0] == "y" for text in sample) == 10
    assert len(balanced_sample(Random(0), {"th": texts["th"]}, 10_000)) == 20
