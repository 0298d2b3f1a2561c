"""Tests of puna.train.corpus: the form of documents, and that nothing held out is told."""

import json
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from puna.train import corpus
from puna.train.corpus import Document, Picture
from puna.train.questions import LANGUAGES, Turn
from puna.train.sources import Emoji, Gloss, Story, StoryPage

CORPUS = Path(__file__).parents[2] / "corpus" / "cria"


def story(work: str = "0001", language: str = "en", n_pages: int = 4, source: str = "asp") -> Story:
    pages = tuple(
        StoryPage(
            text=f"Page {at} of {work} in {language}.", picture=f"{work}_{at:02d}.jpg" if source == "asp" else None
        )
        for at in range(n_pages)
    )
    return Story(
        source=source,
        work=work,
        language=language,
        title=f"Title {work} {language}",
        pages=pages,
        text_by="Ana",
        drawn_by="Ben",
        translated_by="",
    )


def emoji(code: str, kind: str = "fruit", styles: tuple[str, ...] = ("noto", "twemoji", "openmoji")) -> Emoji:
    names = {language: f"{code} {language}" for language in LANGUAGES}
    return Emoji(code=code, kind=kind, names=names, files={style: Path(f"{style}.png") for style in styles})


def texts(document: Document) -> str:
    return "\n".join(document.texts())


def test_a_plain_document_lists_its_parts() -> None:
    document = Document(id="a", source="asp", language="en", content=(Picture("pictures/a.jpg"), "Once."))
    assert document.record() == {
        "id": "a",
        "source": "asp",
        "language": "en",
        "content": [{"type": "image", "path": "pictures/a.jpg"}, {"type": "text", "text": "Once."}],
    }


def test_a_chat_shows_its_pictures_in_the_first_question_only() -> None:
    turns = (Turn("en", "What is this?", "a"), Turn("fr", "Qu'est-ce que c'est ?", "b"))
    record: Any = Document(id="a", source="emoji", language="en", turns=turns, pictures=(Picture("p.png"),)).record()
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"] * 2
    assert [part["type"] for part in record["messages"][0]["content"]] == ["image", "text"]
    assert [part["type"] for part in record["messages"][2]["content"]] == ["text"]
    assert record["messages"][1]["content"] == "a"


def test_texts_are_written_in_nfc() -> None:
    record: Any = Document(id="a", source="asp", language="fr", content=("cafe\u0301",)).record()
    assert record["content"][0]["text"] == "café"


def test_story_texts_tell_every_page_once() -> None:
    told = story(n_pages=300)
    for number in (0, 1):
        pieces = list(corpus.story_texts(told, number))
        whole = "\n".join(map(texts, pieces))
        assert len(pieces) > 1
        assert all(whole.count(page.text) == 1 for page in told.pages)


def test_page_documents_show_each_page_with_its_own_picture() -> None:
    for number, size in ((0, 96), (1, 192)):
        documents = list(corpus.page_documents(story(), number))
        assert len(documents) == 4
        assert documents[2].content[0] == Picture(f"pictures/stories/{size}/0001_02.jpg")
    (joined,) = corpus.page_documents(story(), 2)
    assert len(joined.content) == 8


def test_a_story_without_pictures_gives_no_page_documents() -> None:
    assert all(not list(corpus.page_documents(story(source="pb"), number)) for number in range(4))


def test_parallel_pages_translate_from_english_where_it_exists() -> None:
    stories = [story("0001", language) for language in ("fr", "en", "hi")]
    documents = list(corpus.parallel_pages(Random(0), stories))
    into_hindi = [turn for document in documents if document.language == "hi" for turn in document.turns]
    assert len(into_hindi) == 4
    assert into_hindi[0].question == "Translate into Hindi: Page 0 of 0001 in en."
    assert into_hindi[0].answer == "Page 0 of 0001 in hi."


def test_an_emoji_document_answers_with_the_name_in_the_language_of_the_question() -> None:
    for seed in range(30):
        document = corpus.emoji_documents(Random(seed), emoji("1f34e"), Picture("p.png"), "e")
        for turn in document.turns[:4]:
            assert turn.answer == f"1f34e {turn.language}"


def test_glosses_of_common_words_are_all_told() -> None:
    common = [Gloss(lemma=f"word{n}", part="noun", senses=("a thing",), examples=(), n_uses=1) for n in range(20)]
    rare = [Gloss(lemma=f"rare{n}", part="noun", senses=("a thing",), examples=(), n_uses=0) for n in range(20)]
    documents = list(corpus.gloss_documents(Random(0), common + rare, 25, 2))
    told = "\n".join(texts(document) for document in documents if not document.turns)
    assert all(f"word{n}: a thing" in told for n in range(20))
    assert told.count("rare") == 5
    assert sum(bool(document.turns) for document in documents) == 2


def test_held_out_works_are_held_out_in_all_languages_and_never_entangled() -> None:
    stories = [story(f"{n:04d}", language) for n in range(9) for language in ("en", "fr", "hi")[: 3 if n < 6 else 1]]
    stories += [story(f"{n:04d}", source="pb") for n in range(4)]
    entangled = frozenset({("asp", "0000"), ("pb", "0000")})
    works = corpus.hold_out_works(Random(0), stories, entangled, 8)
    assert len(works) == 8
    assert not works & entangled


def test_works_that_share_a_picture_are_entangled(tmp_path: Path) -> None:
    stories = [story("0001", n_pages=1), story("0002", n_pages=1), story("0003", n_pages=1)]
    for number, one in enumerate(stories):
        color = (0, 0, 0) if number < 2 else (255, 255, 255)
        Image.new("RGB", (8, 8), color).save(tmp_path / str(one.pages[0].picture))
    assert corpus.entangled_works(stories, tmp_path) == {("asp", "0001"), ("asp", "0002")}


def test_held_out_emoji_are_no_part_of_another_and_no_signs() -> None:
    all_emoji = [emoji("1f34e"), emoji("1f468"), emoji("1f468-200d-1f33e"), emoji("2795", kind="sign"), emoji("1f34f")]
    assert corpus.hold_out_emoji(Random(0), all_emoji, 2) == {"1f34e", "1f34f"}


@pytest.fixture(scope="module")
def lines() -> dict[str, list[dict[str, Any]]]:
    if not (CORPUS / "train.jsonl").is_file():
        pytest.skip("the corpus is not there; run scripts/corpus")
    return {
        name: [json.loads(line) for line in (CORPUS / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("train", "held_out")
    }


def paths(record: dict[str, Any]) -> set[str]:
    parts = list(record.get("content", ()))
    for message in record.get("messages", ()):
        parts += [] if isinstance(message["content"], str) else message["content"]
    return {part["path"] for part in parts if part["type"] == "image"}


def test_no_held_out_picture_is_trained_on(lines: dict[str, list[dict[str, Any]]]) -> None:
    shown = {path for record in lines["train"] for path in paths(record)}
    asked: dict[str, set[str]] = defaultdict(set)
    for record in lines["held_out"]:
        asked[record["set"]] |= paths(record)
    unseen = {Path(path).stem.rsplit("-", 1)[0] for path in asked["emoji_object"]}
    seen = {Path(path).stem.rsplit("-", 1)[0] for path in shown if "/noto/" in path or "/twemoji/" in path}
    assert len(unseen) == 150
    assert not unseen & seen
    assert asked["emoji_seen"] <= shown
    assert not any("openmoji" in path for path in shown)
    for held_out in ("stories", "chart", "page", "scene"):
        assert asked[held_out] and not asked[held_out] & shown


def test_no_held_out_story_is_trained_on(lines: dict[str, list[dict[str, Any]]]) -> None:
    def works(records: list[dict[str, Any]]) -> set[tuple[str, ...]]:
        return {tuple(record["id"].split("-")[:2]) for record in records if record["source"] in ("asp", "pb")}

    held_out = works(lines["held_out"])
    assert len(held_out) == 20
    assert not held_out & works(lines["train"])
