"""Content guards on models: scores and codes from the engine, what fails is not safe, what is not asked is unknown."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from puna import load
from puna.chat import Assistant
from puna.errors import PromptError
from puna.guard.content import LexiconGuard, content_guard, model_guard, template_of
from puna.guard.content_answer import read
from puna.guard.content_prompt import GUARD4, Turn
from puna.guard.guard import Context, judge, self_test
from puna.guard.hazards import NAMES
from puna.prompt.message import ImagePart, Message, TextPart
from puna.weights.checkpoint import save_hf
from tests.reference.scripted import CRIA, END, guard_config, random_guard, scripted

# The vocabulary has no token for either word: "sa" "fe" and "un" "sa" "fe".
SAFE = {"sa": {"fe": 30.0}, "fe": {END: 30.0}}
CODE = {"\n": {"S": 30.0}, "S": {"9": 4.0, "1": 2.0}, "9": {END: 30.0}, "1": {END: 30.0}}
HELLO = Context.of_text("Hello there.")


def guard_that_says(script: Mapping[str, Mapping[str, float]], **options: Any) -> Any:
    return model_guard(scripted(script), **options)


def unsafe(then: Mapping[str, Mapping[str, float]], logit: float = 3.0) -> dict[str, Mapping[str, float]]:
    return {"\n\n": {"un": logit, "sa": 1.0}, "un": {"sa": 30.0}, "sa": {"fe": 30.0}, "fe": {"\n": 30.0}} | dict(then)


def test_safe_answer_allows_with_its_probability() -> None:
    verdict = guard_that_says({"\n\n": {"sa": 3.0, "un": 0.5}} | SAFE).check(HELLO)
    assert (verdict.action, verdict.codes, verdict.status, verdict.backend) == ("allow", (), "ok", "weights")
    assert verdict.score == pytest.approx(1 / (1 + math.exp(2.5)), rel=1e-5)
    assert verdict.coverage == tuple(NAMES)
    assert verdict.unknown == ()
    assert max(verdict.scores.values()) <= verdict.score


def test_unsafe_answer_blocks_with_codes_and_the_score_of_each() -> None:
    verdict = guard_that_says(unsafe(CODE)).check(HELLO)
    assert (verdict.action, verdict.codes) == ("block", ("S9",))
    assert verdict.score == pytest.approx(1 / (1 + math.exp(-2.0)), rel=1e-5)
    chance = math.exp(4) / (math.exp(4) + math.exp(2) + guard_config().text.vocab_size - 2)
    assert verdict.scores["S9"] == pytest.approx(verdict.score * chance, rel=1e-4)
    assert verdict.scores["S9"] > verdict.scores["S1"] > verdict.scores["S2"]


@pytest.mark.parametrize("logit", [0.9, 1.1])
def test_threshold_decides_over_a_readable_answer(logit: float) -> None:
    guard = guard_that_says(unsafe({"fe": {END: 30.0}}, logit=logit))
    assert guard.check(HELLO).action == ("allow" if logit < 1 else "block")
    assert replace(guard, flag_at=0.4, block_at=0.9).check(HELLO).action == "flag"


@pytest.mark.parametrize(
    "script",
    [
        {"\n\n": {"I": 30.0, "un": 0.0, "sa": 1.0}, "I": {END: 30.0}},
        {"\n\n": {END: 30.0, "sa": 1.0}},
        {"\n\n": {"sa": 30.0}, "sa": {"fe": 30.0}, "fe": {"\n": 30.0}} | CODE,
        {"\n\n": {"sa": 30.0}, "sa": {"sa": 30.0}},
    ],
)
def test_an_answer_that_nobody_can_read_is_blocked(script: Mapping[str, Mapping[str, float]]) -> None:
    verdict = guard_that_says(script).check(HELLO)
    assert (verdict.action, verdict.status, verdict.codes, verdict.coverage) == ("block", "error", (), ())
    assert verdict.reason is not None
    assert verdict.reason.startswith("unparseable")
    assert verdict.unknown == tuple(NAMES)


def test_unsafe_without_a_code_and_with_an_unknown_one_stay_unsafe() -> None:
    bare = guard_that_says(unsafe({"fe": {END: 30.0}})).check(HELLO)
    assert (bare.action, bare.reason) == ("block", "unsafe without a code")
    strange = guard_that_says(unsafe({"\n": {"S": 30.0}, "S": {"15": 30.0}, "15": {END: 30.0}})).check(HELLO)
    assert (strange.action, strange.reason) == ("block", "unknown code S15")


def test_what_is_unsafe_only_under_excluded_codes_passes() -> None:
    guard = guard_that_says(unsafe(CODE), excluded=["S9"])
    verdict = guard.check(HELLO)
    assert verdict.action == "allow"
    assert verdict.unknown == ("S9",)
    assert "S9" not in verdict.coverage
    assert "S9" not in guard.asked(0)


def test_own_categories_are_asked_about_as_they_are_written() -> None:
    guard = guard_that_says(unsafe(CODE), categories={"S1": "Spoilers", "S9": "Puns: bad ones"})
    assert guard.check(HELLO).coverage == ("S1", "S9")
    ids = guard.prompt([Turn("User", "Hi")], guard.asked(0)).ids
    assert "\nS1: Spoilers\nS9: Puns: bad ones\n<END UNSAFE" in guard.assistant.tokenizer.decode(ids)
    with pytest.raises(PromptError, match="T1"):
        guard_that_says(SAFE, categories={"T1": "Tea"})
    with pytest.raises(PromptError, match="S15"):
        guard_that_says(SAFE, excluded=["S15"])


def test_up_to_five_pictures_are_judged_and_s14_is_not_asked_beside_them() -> None:
    guard = guard_that_says({"\n\n": {"sa": 3.0}} | SAFE)
    images = [ImagePart(Image.fromarray(np.full((16, 16, 3), 40 * i, dtype=np.uint8))) for i in range(6)]
    shown = Context(point="user_input", messages=(Message("user", (*images[:5], TextPart("What is it?"))),))
    verdict = judge(guard, shown)
    assert (verdict.action, verdict.unknown) == ("allow", ("S14",))
    too_many = judge(guard, Context(point="user_input", messages=(Message("user", tuple(images)),)))
    assert (too_many.action, too_many.status) == ("block", "skipped")
    later = Message("user", (ImagePart(images[0].image), TextPart("And this?")))
    told = Message("assistant", (TextPart("Grey."),))
    assert judge(guard, Context(point="user_input", messages=(*shown.messages, told, later))).status == "ok"


def test_a_text_longer_than_the_context_is_judged_in_parts_that_cover_it() -> None:
    guard = model_guard(scripted({"\n\n": {"sa": 3.0}} | SAFE, context_len=1100))
    words = " ".join(f"word{i}" for i in range(600))
    views = guard.views([Turn("User", "Old."), Turn("Agent", "Old."), Turn("User", words)], guard.asked(0))
    assert len(views) > 2
    covered = np.zeros(len(words), dtype=bool)
    for view in views:
        start = words.index(view[-1].text)
        covered[start : start + len(view[-1].text)] = True
        assert len(guard.prompt(view, guard.asked(0)).ids) <= 1060
    assert covered.all()
    assert guard.check(Context.of_text(words)).action == "allow"


def test_the_policy_is_read_once() -> None:
    guard = guard_that_says({"\n\n": {"sa": 3.0}} | SAFE)
    guard.check(HELLO)
    prompt = guard.prompt([Turn("User", "Something else.")], guard.asked(0))
    piece = next(guard.assistant.stream(prompt, max_new_tokens=1))
    n_policy = next(i for i, (a, b) in enumerate(zip(prompt.ids, _ids(guard, "Other"), strict=False)) if a != b)
    assert piece.n_cached > n_policy - 32


def _ids(guard: Any, text: str) -> list[int]:
    ids: list[int] = guard.prompt([Turn("User", text)], guard.asked(0)).ids
    return ids


def test_dense_guard_checkpoint_gives_the_logits_and_the_verdict_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers (test time only)")
    config, folder = guard_config(), tmp_path / "guard"
    save_hf(random_guard(config), config, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((CRIA / name).read_bytes())
    assistant = load(folder, dtype="float32", device="cpu")
    assert not assistant.config.text.moe_layers
    assert assistant.config.text.chunk_len is None
    guard = replace(model_guard(assistant), n_top=config.text.vocab_size)
    prompt = guard.prompt([Turn("User", "What is it?"), Turn("Agent", "A tree.")], guard.asked(0))

    published = transformers.Llama4Config.from_pretrained(folder)
    published.text_config.attention_chunk_size = 1 << 20  # None, as published, stumbles in its masks
    model = transformers.Llama4ForConditionalGeneration.from_pretrained(folder, config=published, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt.ids])).logits[0]
        torch.testing.assert_close(assistant.logits(prompt.ids), logits, rtol=1e-4, atol=1e-4)
        made = model.generate(torch.tensor([prompt.ids]), max_new_tokens=8, do_sample=False)[0, len(prompt.ids) :]
    reply = guard.ask([prompt], 8)[0]
    assert reply.text == assistant.tokenizer.decode(made.tolist())
    safe, unsafe_ = (assistant.tokenizer.encode(word)[0] for word in ("safe", "unsafe"))
    assert guard.unsafe(reply) == pytest.approx(logits[-1][[safe, unsafe_]].softmax(0)[1].item(), rel=1e-4)
    assert read(reply.text) == read(assistant.tokenizer.decode(made.tolist()))


def test_self_test_finds_out_a_model_that_always_says_the_same() -> None:
    for script in ({"\n\n": {"sa": 3.0}} | SAFE, unsafe(CODE)):
        health = self_test(guard_that_says(script))
        assert not health.ok
        assert "probes told right" in health.detail


def test_a_chat_model_that_cannot_judge_gives_way_to_the_lexicon() -> None:
    assert isinstance(content_guard(), LexiconGuard)
    assert isinstance(content_guard(chat=scripted({"\n\n": {"sa": 3.0}} | SAFE)), LexiconGuard)


def test_template_follows_the_vocabulary() -> None:
    assistant: Assistant = scripted(SAFE)
    assert template_of(assistant) is GUARD4
