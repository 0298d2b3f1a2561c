"""Tests of puna.train.lessons: chats that tuning reads, answers that follow, splits that are kept."""

import json
import unicodedata
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from puna.eval.refusal import refuses
from puna.train import chats, lessons, wordings
from puna.train.corpus import Picture, write_records
from puna.train.drawings import Fonts
from puna.train.lessons import KINDS, Facts, compose, prefer
from puna.train.questions import LANGUAGES
from puna.train.sources import Emoji

N_CHATS = 300


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    emoji = []
    corpus = tmp_path / "corpus"
    for number in range(8):
        names = {language: f"thing {number} {language}" for language in LANGUAGES}
        emoji.append(Emoji(code=f"1f{number}", kind="fruit", names=names, files={}))
        for style in ("noto", "twemoji"):
            (corpus / "pictures" / style).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(corpus / "pictures" / style / f"1f{number}-0.png")
    return Facts(
        emoji=emoji,
        pages=[(language, Picture("pictures/noto/1f0-0.png"), f"Once, {language}.") for language in LANGUAGES],
        words={language: ["word"] for language in LANGUAGES},
        fonts=Fonts.__new__(Fonts),
        corpus=corpus,
        folder=tmp_path / "lessons",
        split="lessons",
    )


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds that draw letters need the Noto fonts, which are not here."""
    kept = {composer: weight for composer, weight in KINDS.items() if composer.__name__ != "lesson"}
    monkeypatch.setattr(lessons, "KINDS", kept)


def records(facts: Facts, split: str) -> list[dict[str, Any]]:
    return [dict(record) for record in compose(Random(0), replace(facts, split=split), N_CHATS)]


@pytest.mark.usefixtures("undrawn")
def test_every_lesson_is_a_chat_that_tuning_reads(facts: Facts) -> None:
    write_records(facts.folder / "lessons.jsonl", records(facts, "lessons"))
    found = list(chats.read(facts.folder / "lessons.jsonl"))
    assert len(found) == N_CHATS
    for chat in found:
        assert chat.messages[-1].role == "assistant"
        assert chat.facts["answer"]["kind"] in ("exact", "number", "calls", "refusal", "language")
    assert {language for chat in found for language in [chat.facts["language"]]} == set(LANGUAGES)


@pytest.mark.usefixtures("undrawn")
def test_the_reply_is_what_the_answer_accepts(facts: Facts) -> None:
    by_kind = defaultdict(list)
    for record in records(facts, "lessons"):
        by_kind[record["answer"]["kind"]].append(record)
    for record in by_kind["exact"]:
        assert record["messages"][-1]["content"] in record["answer"]["accept"]
    for record in by_kind["number"]:
        assert record["messages"][-1]["content"] == str(record["answer"]["value"])
    for record in by_kind["refusal"]:
        assert record["messages"][-1]["content"] == wordings.DECLINE[record["answer"]["language"]]
    for record in by_kind["calls"]:
        (call,) = record["messages"][-1]["tool_calls"]
        (wanted,) = record["answer"]["calls"]
        assert json.loads(call["function"]["arguments"]) == wanted["arguments"]
        (tool,) = (t["function"] for t in record["tools"] if t["function"]["name"] == wanted["name"])
        assert set(tool["parameters"]["properties"]) == set(wanted["arguments"])
        assert all(str(value) in record["messages"][0]["content"] for value in wanted["arguments"].values())
    assert all(by_kind[kind] for kind in ("exact", "number", "refusal", "calls", "language"))


@pytest.mark.usefixtures("undrawn")
def test_tasks_end_with_the_question(facts: Facts) -> None:
    assert all(record["messages"][-1]["role"] in ("user", "tool") for record in records(facts, "tasks"))


@pytest.mark.usefixtures("undrawn")
def test_a_preference_has_two_different_replies(facts: Facts) -> None:
    write_records(facts.folder / "preferences.jsonl", list(prefer(Random(0), facts, 60)))
    found = list(chats.read(facts.folder / "preferences.jsonl"))
    assert len(found) == 60
    assert all(chat.chosen and chat.rejected and chat.chosen != chat.rejected for chat in found)


@pytest.mark.usefixtures("undrawn")
def test_what_is_held_out_is_in_no_lesson(facts: Facts) -> None:
    def told(split: str) -> tuple[set[str], set[str]]:
        found = records(facts, split)
        names = {tool["function"]["name"] for record in found for tool in record.get("tools", ())}
        requests = {r["messages"][0]["content"] for r in found if r["source"] in ("refusal", "harmless")}
        return names - {"get_weather", "set_timer", "multiply"}, requests

    learnt, held_out = told("lessons"), told("held_out")
    assert all(held_out) and not learnt[0] & held_out[0] and not learnt[1] & held_out[1]
    values = {split: set(replace(facts, split=split).of(lessons.CITIES)) for split in ("lessons", "tasks", "held_out")}
    assert values["lessons"] == values["tasks"] and not values["lessons"] & values["held_out"]


@pytest.mark.usefixtures("undrawn")
def test_a_system_prompt_holds_in_every_turn(facts: Facts) -> None:
    found = [record for record in records(facts, "lessons") if record["source"] == "system"]
    assert all(record["messages"][0]["role"] == "system" for record in found)
    for record in found:
        replies = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
        instruction = record["messages"][0]["content"]
        for word in lessons.CLOSINGS:
            if f"“{word}”" in instruction and record["language"] == "en":
                assert all(reply.startswith(word) or reply.endswith(word) for reply in replies)


def test_wordings_speak_all_languages_in_nfc() -> None:
    tables = [value for name, value in vars(wordings).items() if name.isupper() and isinstance(value, dict)]
    assert len(tables) > 15
    for table in tables:
        assert tuple(table) == LANGUAGES
        for value in table.values():
            for text in (value,) if isinstance(value, str) else value:
                assert text == unicodedata.normalize("NFC", text).strip()
    for requests in (wordings.HARMFUL, wordings.HARMLESS):
        assert len({len(of_language) for of_language in requests.values()}) == 1


def test_what_is_harmless_is_not_declined() -> None:
    assert not any(refuses(reply) for reply in wordings.MORE_THAN_I_KNOW.values())
