"""Text to ids and back, against Meta's code and against Hugging Face's."""

import base64
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import ConfigError, PromptError
from puna.prompt.tokenizer import MAX_PIECE_CHARS, MAX_RUN_CHARS, SPLIT_PATTERN, Tokenizer
from puna.prompt.vocab import SPECIAL_NAMES

SHARED = Path(__file__).parents[2].parent / "shared"

LANGUAGES = ("arb", "deu", "eng", "fra", "hin", "ind", "ita", "por_PT", "spa", "tgl", "tha", "vie")

EMOJI = "😀👍🏽👨‍👩‍👧‍👦🇩🇪❤️‍🔥🏴󠁧󠁢󠁥󠁮󠁧󠁿1️⃣🤷🏿‍♀️"

LONG_TEXTS = (
    "a" * (MAX_RUN_CHARS + 1),
    " " * (2 * MAX_RUN_CHARS + 1) + "x" * MAX_RUN_CHARS + "\n" * (MAX_RUN_CHARS + 1),
    "ab " * (MAX_PIECE_CHARS // 3 + 10),
    "\x1c\x85\u3000" * MAX_RUN_CHARS,
    "é" * (MAX_PIECE_CHARS - 1) + "  \n" * 5,
    "z" * (MAX_RUN_CHARS - 1) + "😀" + " " + "z" * (MAX_RUN_CHARS + 1) + "'ll",
)


def _random_text(generator: random.Random) -> str:
    """Any code points, surrogates included, mixed with blanks and the pieces that the split pattern treats apart."""
    extra = [" ", "\n", "\r\n", "'S", "'ll", "123", "\u0301", "<|eot|>", "\ud83d\ude00", "\udc00", "/"]
    chars = [chr(generator.randrange(sys.maxunicode + 1)) if generator.random() < 0.6 else generator.choice(extra)]
    for _ in range(generator.randrange(40)):
        top = generator.choice((0x80, 0x250, 0x3000, sys.maxunicode + 1))
        chars.append(chr(generator.randrange(top)) if generator.random() < 0.7 else generator.choice(extra))
    return "".join(chars)


def _slices(text: str, number: int, generator: random.Random) -> list[str]:
    starts = [generator.randrange(max(len(text) - 1, 1)) for _ in range(number)]
    return [text[start : start + generator.randrange(1, 300)] for start in starts]


def _code() -> str:
    return "\n".join(Path(module.__file__).read_text("utf-8") for module in (json, random, base64) if module.__file__)


def _same(ours: Tokenizer, theirs: Any, text: str) -> bool:
    return ours.encode(text) == theirs.encode(text, bos=False, eos=False)


def test_ids_equal_metas_on_5000_texts(released: Tokenizer, meta_tokenizer: Any) -> None:
    folder = SHARED / "corpus" / "udhr"
    if not folder.is_dir():
        pytest.skip("needs ../shared/corpus/udhr")
    generator = random.Random(0)
    texts = [_random_text(generator) for _ in range(1500)]
    texts += _slices(_code(), 500, generator) + _slices(EMOJI * 5, 200, generator)
    for language in LANGUAGES:
        texts += _slices((folder / f"{language}.txt").read_text("utf-8"), 250, generator)
    assert len(texts) >= 5000
    assert [text for text in texts if not _same(released, meta_tokenizer, text)] == []


@pytest.mark.parametrize("text", LONG_TEXTS, ids=range(len(LONG_TEXTS)))
def test_ids_equal_metas_where_long_text_is_cut(text: str, released: Tokenizer, meta_tokenizer: Any) -> None:
    assert _same(released, meta_tokenizer, text)


def test_the_pattern_and_the_table_equal_metas(released: Tokenizer, meta_tokenizer: Any) -> None:
    assert meta_tokenizer.O200K_PATTERN == SPLIT_PATTERN
    assert dict(released.special) == meta_tokenizer.special_tokens
    assert released.vocab_size == meta_tokenizer.n_words == 202048
    assert released.bos_id == meta_tokenizer.bos_id == 200000
    assert released.stop_ids == set(meta_tokenizer.stop_tokens) == {200001, 200007, 200008}


def test_surrogate_pairs_become_their_character_and_lone_ones_a_mark(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_decoding_returns_the_encoded_text(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


@given(parts=st.lists(st.sampled_from((*SPECIAL_NAMES[:120], "a", " ", "<|", "|>", "\n"))))
@settings(max_examples=100, deadline=None)
def test_text_never_becomes_a_special_token(parts: list[str], tokenizer: Tokenizer) -> None:
    assert not any(tokenizer.is_special(token_id) for token_id in tokenizer.encode("".join(parts)))


def test_the_bytes_of_all_ids_are_those_that_decoding_gives(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.token_bytes()
    assert len(tokens) == tokenizer.vocab_size
    ids = tokenizer.encode("Añadir 12 piñas, 山の上\n")
    assert b"".join(tokens[id_] for id_ in ids) == tokenizer.decode_bytes(ids)
    assert [tokens[id_].decode() for id_ in tokenizer.special.values()] == list(tokenizer.special)


def test_special_tokens_show_as_their_names_and_are_left_out_of_bytes(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("hé"), tokenizer.special["<|eot|>"]]
    assert tokenizer.decode(ids) == "<|begin_of_text|>hé<|eot|>"
    assert tokenizer.decode_bytes(ids) == "hé".encode()


@pytest.mark.parametrize("unknown", [-1, 100_000, 2**70])
def test_an_unknown_id_is_named(unknown: int, tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=f"token id {unknown} is not in this vocabulary"):
        tokenizer.decode([65, unknown])


# Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json that Hugging Face's library trained: 600 merges and three special tokens at the end."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=856, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator([_code(), EMOJI * 30, "Grüße an the théâtre, ภาษาไทย हिन्दी " * 20], trainer)
    model.add_special_tokens(["<|begin_of_text|>", "<|eot|>", "<|image|>"])
    path: Path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    model.save(str(path))
    return path


def test_a_hugging_face_file_gives_the_ids_of_hugging_face(trained: Path) -> None:
    theirs = pytest.importorskip("tokenizers").Tokenizer.from_file(str(trained))
    ours = Tokenizer.load(trained)
    generator = random.Random(1)
    texts = _slices(_code(), 300, generator) + _slices(EMOJI * 5, 50, generator) + ["", " ", "  \n x", "ภาษาไทย हिन्दी"]
    assert [text for text in texts if ours.encode(text) != theirs.encode(text).ids] == []
    assert ours.vocab_size == theirs.get_vocab_size() == 859
    assert ours.special == {"<|begin_of_text|>": 856, "<|eot|>": 857, "<|image|>": 858}
    assert ours.stop_ids == {857}


def test_special_tokens_of_a_hugging_face_file_cannot_be_typed(trained: Path) -> None:
    ours = Tokenizer.load(trained)
    theirs = pytest.importorskip("tokenizers").Tokenizer.from_file(str(trained))
    assert theirs.encode("<|eot|>").ids == [857]
    assert 857 not in ours.encode("<|eot|>")


def test_a_directory_is_searched_for_either_file(trained: Path, tmp_path: Path) -> None:
    assert Tokenizer.load(trained.parent).vocab_size == 859
    lines = [base64.b64encode(bytes([byte])) + b" %d" % byte for byte in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    ours = Tokenizer.load(tmp_path)
    assert ours.bos_id == 256
    assert ours.vocab_size == 256 + 2048


def _altered(trained: Path, folder: Path, change: str) -> Path:
    document = json.loads(trained.read_text("utf-8"))
    model = document["model"]
    match change:
        case "order":
            model["merges"][10], model["merges"][200] = model["merges"][200], model["merges"][10]
        case "missing merge":
            del model["merges"][50]
        case "missing byte":
            del model["vocab"]["Ġ"]
        case "normalizer":
            document["normalizer"] = {"type": "NFC"}
        case "pre_tokenizer":
            document["pre_tokenizer"] = {"type": "Whitespace"}
        case "type":
            model["type"] = "Unigram"
        case "shared id":
            document["added_tokens"][0]["id"] = 5
        case "pattern":
            document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "("}
        case "alphabet":
            model["vocab"]["日"] = 4000
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document), "utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("order", "out of the order of the token ids"),
        ("missing merge", "has no merge that makes it"),
        ("missing byte", "is out of the order"),
        ("normalizer", "normalizer 'NFC' would change the text"),
        ("pre_tokenizer", "pre_tokenizer must be Split"),
        ("type", "model.type 'Unigram'"),
        ("shared id", "two tokens share an id"),
        ("pattern", "split pattern is not a usable regular expression"),
        ("alphabet", "not a tokenizer.json"),
    ],
)
def test_a_file_that_would_give_other_ids_is_refused(change: str, reason: str, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        Tokenizer.load(_altered(trained, tmp_path, change))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.model", b"\x0a\x0e\x0a\x05<unk>", "line 2: expected a base64 token"),
        ("tokenizer.model", b"YQ== 0\nYg== x", "line 2: expected a base64 token"),
        ("tokenizer.model", b"YQ== 0\nYg== 7", "ranks are not 0 to 1"),
        ("tokenizer.model", b"YQ== 0\nYg== 1", "byte 0x00 has no token"),
        ("tokenizer.model", b"", "byte 0x00 has no token"),
        ("tokenizer.json", b"{", "not a tokenizer.json"),
        ("tokenizer.json", b"[]", "not a tokenizer.json"),
        ("tokenizer.json", b"{}", "KeyError: 'model'"),
        ("tokenizer.json", b"\xff\xfe", "not a tokenizer.json"),
        ("tokenizer.txt", b"", "ends in .json"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        Tokenizer.load(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds neither"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        Tokenizer.load(tmp_path / "tokenizer.json")
