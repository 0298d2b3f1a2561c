"""Tests of puna.train.looks: what is asked about which picture, and that nothing held out is shown."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from puna.train.looks import Looks, emoji_looks, kept_texts, look_turn, replayed
from puna.train.questions import KINDS, LANGUAGES
from puna.train.sources import Emoji

CORPUS = Path(__file__).parents[2] / "corpus" / "cria"
LOOKS = Looks(
    seed=0, variants=3, icon_variants=1, sign_variants=2, questions=2, large_pages=0.5,
    scenes=0, charts=0, printed_pages=0, printed_words=0, receipts=0, replay={},
)  # fmt: skip


@pytest.fixture
def apple(tmp_path: Path) -> Emoji:
    files = {}
    for style, color in (("noto", "red"), ("twemoji", "orange")):
        files[style] = tmp_path / f"{style}.png"
        Image.new("RGBA", (64, 64), color).save(files[style])
    names = {language: f"apple {language}" for language in LANGUAGES}
    return Emoji(code="1f34e", kind="fruit", names=names, files=files)


def test_each_picture_is_asked_about_in_other_languages_and_listed_once(apple: Emoji, tmp_path: Path) -> None:
    documents = list(emoji_looks(Random(0), LOOKS, [apple], {}, tmp_path))
    asked = [document for document in documents if document.source == "look"]
    assert len(documents) == 2 * 3 * (2 + 1 + 1)
    named = [document for document in documents if document.source == "named"]
    assert {document.turns[0].answer for document in named} == {"apple en"}
    assert len({document.pictures for document in named}) == len(named) == 6
    assert all(len(document.turns) == 1 and len(document.pictures) == 1 for document in asked)
    assert set(Counter(document.language for document in asked).values()) == {1}
    assert len({document.pictures for document in asked}) == 6
    (listed,) = (d for d in documents if d.id == "look-noto-1f34e-0-names" and "looks" not in str(d.content[0]))
    assert all("apple" in line for line in str(listed.content[1]).splitlines())
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("looks/*/*.png")}
    assert len(written) == 4 and written < {document.pictures[0].path for document in asked}


def test_most_questions_ask_for_the_name(apple: Emoji) -> None:
    turns = [look_turn(Random(seed), apple, "de") for seed in range(100)]
    kinds = sum(turn.answer == KINDS["fruit"]["de"] for turn in turns)
    assert 0 < kinds < 30
    assert sum(turn.answer == "apple de" for turn in turns) == 100 - kinds


def test_texts_and_pairs_of_emoji_are_kept() -> None:
    kept = ["asp-1-en-pages0-1", "pb-1-en-text0-0", "emoji-pair-7"]
    records: list[dict[str, Any]] = [{"id": name, "source": name.split("-")[0]} for name in kept]
    shown_anew = [{"id": "emoji-1f34e-0-1f34e-0", "source": "emoji"}, {"id": "scene-0-1", "source": "scene"}]
    large = [{"id": f"asp-{work}-en-pages1-0", "source": "asp"} for work in range(100)]
    found = [record["id"] for record in kept_texts(Random(0), LOOKS, [*records, *shown_anew, *large])]
    assert found[:3] == kept
    assert 30 < len(found) - 3 < 70


def test_some_chats_and_texts_of_some_sources_are_read_again() -> None:
    chats = [{"id": f"{source}-{i}", "source": source, "messages": []} for i in range(3) for source in ("look", "page")]
    picture, text = {"type": "image", "path": "a.png"}, {"type": "text", "text": "Once "}
    pages = [
        {"id": f"asp-{i}", "source": "asp", "content": parts} for i, parts in enumerate(([picture, text], [text] * 2))
    ]
    found = list(replayed([*pages, *chats], {"look": 2, "chart": 5, "asp": 2}))
    assert [record["id"] for record in found] == ["asp-1", "look-0", "look-1"]
    assert found[0] == {"id": "asp-1", "source": "asp", "text": "Once Once "}


def test_no_held_out_emoji_and_no_held_out_style_is_shown() -> None:
    if not (CORPUS / "looks.jsonl").is_file():
        pytest.skip("the corpus is not there; run scripts/corpus")
    held_out = set(json.loads((CORPUS / "sources.json").read_text())["counts"]["held_out_emoji"])
    for line in (CORPUS / "looks.jsonl").open(encoding="utf-8"):
        if "openmoji" in line:
            raise AssertionError(line)
        record = json.loads(line)
        if record["source"] in ("look", "named", "names"):
            assert record["id"].split("-", 2)[2].split("-")[0] not in held_out, record["id"]
