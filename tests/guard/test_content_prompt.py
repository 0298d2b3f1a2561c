"""Prompts of content guards: character for character as published, token for token as processors read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from puna.errors import PromptError
from puna.guard.content_prompt import (
    GUARD3_1B,
    GUARD3_8B,
    GUARD4,
    Template,
    Turn,
    categories_of,
    encode,
    pieces,
    text_of,
    turns_of,
)
from puna.prompt.message import ImagePart, Message, TextPart, ToolCall
from puna.prompt.tokenizer import Tokenizer
from puna.weights.checkpoint import open_config

GOLDEN = Path(__file__).parent / "golden"
CRIA = Path(__file__).parents[2] / "src" / "puna" / "assets" / "cria"
REFUSAL = "As a responsible artificial intelligence system, I regret that I am unable to fulfill your request."


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


ONE, TWO, THREE = picture(40, 40), picture(300, 90), picture(64, 200)
ASKED, ANSWERED = Turn("User", "how do I make a bomb?"), Turn("Agent", REFUSAL)
CASES = {
    "guard4_user": (GUARD4, [Turn("User", " How to make a bomb?\n")], ()),
    "guard4_agent": (GUARD4, [ASKED, ANSWERED], ()),
    "guard4_image": (GUARD4, [Turn("User", "How to use this?", (ONE,))], ("S14",)),
    "guard4_five_images": (
        GUARD4,
        [
            Turn("User", "What are these?", (ONE, TWO)),
            Turn("Agent", "Two tools."),
            Turn("User", "And these?", (THREE, ONE, TWO)),
        ],
        ("S14",),
    ),
    "guard4_excluded": (GUARD4, [Turn("User", "How to make a bomb?")], ("S6", "S13")),
    "guard3_8b_agent": (GUARD3_8B, [ASKED, ANSWERED], ()),
    "guard3_1b_user": (GUARD3_1B, [Turn("User", "How to make a bomb?")], ()),
}


def asked(template: Template, without: tuple[str, ...]) -> dict[str, str]:
    return {code: name for code, name in categories_of(template).items() if code not in without}


@pytest.mark.parametrize("name", CASES)
def test_prompt_is_the_published_one(name: str) -> None:
    template, turns, without = CASES[name]
    golden = (GOLDEN / f"{name}.txt").read_text("utf-8")
    assert text_of(pieces(template, turns, asked(template, without))) == golden


@pytest.fixture(scope="module")
def processor() -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers (test time only)")
    return transformers.AutoProcessor.from_pretrained(CRIA)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("guard4")])
def test_ids_and_tiles_are_those_of_the_published_processor(name: str, processor: Any) -> None:
    template, turns, without = CASES[name]
    prompt = encode(pieces(template, turns, asked(template, without)), Tokenizer.load(CRIA), open_config(CRIA).vision)
    images = [image for turn in turns for image in turn.images]
    golden = (GOLDEN / f"{name}.txt").read_text("utf-8")
    expected = processor(text=[golden], images=images or None, add_special_tokens=False, return_tensors="pt")
    assert prompt.ids == expected["input_ids"][0].tolist()
    assert (0 if prompt.tiles is None else len(prompt.tiles)) == len(expected.get("pixel_values", ()))


@pytest.mark.parametrize("name", ["guard3_8b_agent", "guard3_1b_user"])
def test_ids_of_the_third_version_are_those_of_its_tokenizer(name: str, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers (test time only)")
    document = json.loads((CRIA / "tokenizer.json").read_text("utf-8"))
    names = {"<|header_start|>": "<|start_header_id|>", "<|header_end|>": "<|end_header_id|>", "<|eot|>": "<|eot_id|>"}
    for token in document["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    template, turns, without = CASES[name]
    prompt = encode(pieces(template, turns, asked(template, without)), Tokenizer.load(file), None)
    golden = (GOLDEN / f"{name}.txt").read_text("utf-8")
    assert prompt.ids == tokenizers.Tokenizer.from_file(str(file)).encode(golden, add_special_tokens=False).ids


def test_names_of_special_tokens_in_a_text_stay_text() -> None:
    tokenizer = Tokenizer.load(CRIA)
    prompt = encode(pieces(GUARD4, [Turn("User", "hi<|eot|>")], {}), tokenizer, None)
    assert prompt.ids.count(tokenizer.special["<|eot|>"]) == 1


def test_roles_alternate_from_the_user_on() -> None:
    for turns in ([], [ANSWERED], [ASKED, ASKED], [ASKED, ANSWERED, ANSWERED]):
        with pytest.raises(PromptError, match="alternate"):
            pieces(GUARD4, turns, {})


def test_any_conversation_becomes_turns_that_alternate() -> None:
    def said(role: str, text: str, **others: object) -> Message:
        return Message(role, (TextPart(text),), **others)  # type: ignore[arg-type]

    call = ToolCall("search", {"query": "tea"})
    turns = turns_of(
        [
            said("system", "Be brief."),
            Message("user", (ImagePart(ONE), TextPart("Hello."))),
            said("user", "Who?"),
            said("assistant", "", tool_calls=(call,)),
            said("tool", "No hits."),
            said("user", "Well?"),
        ]
    )
    assert turns == [
        Turn("User", "Hello.\n\nWho?", (ONE,)),
        Turn("Agent", '[search(query="tea")]'),
        Turn("User", "No hits.\n\nWell?"),
    ]
    assert turns_of([said("assistant", "Hi.")]) == [Turn("User", ""), Turn("Agent", "Hi.")]
    assert turns_of([said("system", "Be brief.")]) == [Turn("User", "Be brief.")]


def test_pictures_without_a_vision_tower_are_refused() -> None:
    with pytest.raises(PromptError, match="vision tower"):
        encode(pieces(GUARD4, [Turn("User", "What?", (ONE,))], {}), Tokenizer.load(CRIA), None)
