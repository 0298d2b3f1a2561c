"""Ids of a unigram vocabulary against the tokenizers library, normalisation included."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from puna.errors import ConfigError
from puna.guard.unigram import CharacterMap, Unigram

# Five rules as SentencePiece 0.2.3 compiles them: full-width A, the ligature fi, the ideographic space, e with a
# combining acute, Roman numeral four.
CHARSMAP = (
    "AAQAAACQAQBlPAMAzAACAIEdAAAKAACAhYACAKMFAAAEAACAgAQCAIANAAAAAACArBgCAIEFAAAHAACAoQUAAAIAAIARAAAAEAAAABMAAAAS"
    "AAAAFQAAABQAAAAXAAAAFgAAABkAAAAYAAAAGwAAALzQAgAdAAAAHAAAAB8AAAAeAAAAIQAAACAAAAAjAAAAIgAAACUAAAAkAAAAJwAAACYA"
    "AAApAAAAKAAAACsAAAAqAAAALQAAACwAAAAvAAAALgAAADEAAAAwAAAAMwAAADIAAAA1AAAANAAAADcAAAA2AAAAOQAAADgAAAA7AAAAOgAA"
    "AD0AAAA8AAAAPwAAAD4AAABBAAAAQAAAAEMAAABCAAAARQAAAEQAAABHAAAARgAAAEkAAABIAAAASwAAAEoAAABNAAAATAAAAE8AAABOAAAA"
    "UQAAAFAAAABTAAAAUgAAAFUAAABUAAAAVwAAAFYAAABZAAAAWAAAAFsAAABaAAAAXQAAAFwAAABfAAAAXgAAAGEAAABgAAAAYwAAAGIAAABl"
    "AAAAZAAAAGcAAABmAAAAaQAAAGgAAABrAAAAagAAAG0AAABsAAAAbwAAAG4AAABxAAAAcAAAAHMAAAByAAAAdQAAAHQAAAB3AAAAdgAAAHkA"
    "AAB4AAAAewAAAHoAAAB9AAAAfAAAAH8AAAB+AAAAgQAAAIAAAACDAAAAggAAAIUAAACEAAAA4hgAAOM8AACJAAAAiAAAAIsAAADvsAAAjQAA"
    "AIwAAACPAAAAjgAAAJEAAACQAAAAkwAAAJIAAACVAAAAlAAAAJcAAACWAAAAmQAAAJgAAACbAAAAmgAAAJ0AAACcAAAAnwAAAJ4AAAChAAAA"
    "oAAAAKMAAACiAAAApQAAAKQAAACnAAAApgAAAKkAAACoAAAAqwAAAKoAAACtAAAArAAAAK8AAACuAAAAsQAAALAAAACzAAAAsgAAALUAAAC0"
    "AAAAtwAAALYAAAC5AAAAuAAAALsAAAC6AAAAvQAAALwAAAC/AAAAvgAAAMEAAADAAAAAwwAAAMIAAADFAAAAxAAAAMcAAADGAAAAyQAAAMgA"
    "AADLAAAAygAAAM0AAADMAAAAzwAAAM4AAADRAAAA0AAAANMAAADSAAAA1QAAANQAAADXAAAA1gAAANkAAADYAAAA2wAAANoAAADdAAAA3AAA"
    "AN8AAADeAAAA4QAAAOAAAADjAAAA4gAAAOUAAADkAAAA5wAAAOYAAADpAAAA6AAAAOsAAADqAAAA7QAAAOwAAADvAAAA7gAAAPEAAADwAAAA"
    "8wAAAPIAAAD1AAAA9AAAAPcAAAD2AAAA+QAAAPgAAAD7AAAA+gAAAP0AAAD8AAAA/wAAAP4AAAAgAEEASVYAZmkAw6kA"
)
WORDS = "the rule of all rules is to ignore no rule and to re-read them A fi IV é กฎ नियम ة".split()


def write_tokenizer(file: Path, normalizer: dict[str, Any] | None = None) -> Path:
    """Writes a tokenizer.json in the shape of Prompt Guard 2's, over the letters and some parts of WORDS."""
    rng = random.Random(0)
    pieces = ["\u2581", *sorted({char for word in WORDS for char in word})]
    pieces += sorted({word[:n] for word in WORDS for n in (2, 3)} | {f"\u2581{word}" for word in WORDS})
    names = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
    vocab = [[name, 0.0] for name in names] + [
        [piece, -rng.uniform(2, 9)] for piece in dict.fromkeys(pieces) if piece not in names
    ]
    steps: list[dict[str, Any]] = [
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": name,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for number, name in enumerate(names)
        ],
        "normalizer": normalizer or {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def test_ids_are_those_of_the_library(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers (test time only)")
    file = write_tokenizer(tmp_path / "tokenizer.json")
    ours, library = Unigram.load(file), tokenizers.Tokenizer.from_file(str(file))
    rng = random.Random(1)
    texts = [
        "",
        " ",
        "  the  rules ",
        "xyz qqq",
        "Ａ ﬁ Ⅳ e\u0301",
        "กฎกฎ नियम",
        "the\u2581rule",
        "\u3000the",
        "a\nb\tc",
    ]
    for _ in range(400):
        parts = [rng.choice([*WORDS, rng.choice("xqz!?\u0301\u200b😀"), " "]) for _ in range(rng.randrange(1, 12))]
        texts.append("".join(rng.choice(["", " "]) + part for part in parts))
    for text in texts:
        assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids, repr(text)


def test_names_of_special_tokens_in_a_text_stay_text(tmp_path: Path) -> None:
    vocabulary = Unigram.load(write_tokenizer(tmp_path / "tokenizer.json"))
    assert not set(vocabulary.special.values()) - {vocabulary.unknown_id} & set(vocabulary.encode("[CLS] the [SEP]"))


def test_table_replaces_whole_graphemes_before_characters() -> None:
    table = CharacterMap.read(base64.b64decode(CHARSMAP))
    assert table.apply("Ａ\u3000ﬁne Ⅳ cafe\u0301") == "A fine IV café"
    with pytest.raises(ConfigError, match="names"):
        CharacterMap.read(b"\xff\xff\0\0ab")


def test_what_might_change_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="BertNormalizer"):
        Unigram.load(write_tokenizer(tmp_path / "tokenizer.json", {"type": "BertNormalizer"}))
    (tmp_path / "other.json").write_text('{"model": {"type": "BPE"}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="BPE"):
        Unigram.load(tmp_path / "other.json")
