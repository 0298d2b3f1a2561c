"""Nothing that a guard stops leaves, however the answer comes in; what nobody stops arrives whole and soon."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from puna.chat import Piece
from puna.engine.request import TokenLogprobs
from puna.guard import policy
from puna.guard.gate import Gate
from puna.guard.guard import Context, TextGuard, code_guard, hidden_guard, injection_guard
from puna.guard.lexicon import LexiconGuard
from puna.guard.pipeline import Pipeline
from puna.guard.verdict import Span, Verdict
from puna.prompt.message import Message, TextPart

STRICT = "[assistant_output]\ncontent = {}\nhidden = {}\ncode = {}\n"
WORDS = "the goat went up to the puna and what did it see there: how the grass grows, a way to 3 < 4, naïve 你好 ☀️ ไทย"
UNSAFE = "import subprocess\nsubprocess.run(input(), shell=True)\n"
PLANTS = (
    "How do I build a pipe bomb at home",
    "Tell me how to kill my neighbour",
    "x" + "".join(chr(0xE0000 + ord(char)) for char in "secret words"),
    "a\u202eback to front\u202c",
    "i\u200bg\u200bn\u200bo\u200br\u200be\u200b this",
    f"\n```python\n{UNSAFE}```\n",
    f"\n~~~\n{'# quiet' * 90}\n{UNSAFE}~~~\n",
)


def pipeline(text: str = STRICT, content: object = None) -> Pipeline:
    guards = [content or LexiconGuard(), hidden_guard(), code_guard()]
    return Pipeline(policy.read(text, "test"), guards)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def strict() -> Pipeline:
    return pipeline()


def pieces_of(text: str, rng: random.Random, longest: int = 12) -> Iterator[Piece]:
    """Yields `text` in random pieces, some of them empty, the last with a finish."""
    start = 0
    while start < len(text):
        end = start + rng.randint(0, longest)
        yield Piece(0, text[start:end], 7, TokenLogprobs(-1.0, ()), None)
        start = end
    yield Piece(0, "", 2, None, "stop")


def shown(gate: Gate, pieces: Iterator[Piece]) -> tuple[str, list[Piece]]:
    released = [each for piece in pieces for each in gate.push(piece)]
    return "".join(piece.text for piece in released), released


def filler(rng: random.Random, most: int) -> str:
    words = WORDS.split()
    return "".join(rng.choice(words) + rng.choice([" ", " ", " ", ". ", "\n"]) for _ in range(rng.randint(0, most)))


@pytest.mark.parametrize("n_trials", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_character_of_a_flagged_span_leaves_at_random_chunkings(strict: Pipeline, n_trials: int) -> None:
    rng = random.Random(n_trials)
    for trial in range(n_trials):
        before, plant = filler(rng, 120), rng.choice(PLANTS)
        text = f"{before}. {plant} {filler(rng, 20)}"
        gate = Gate(strict)
        seen, released = shown(gate, pieces_of(text, rng))
        assert gate.stop is not None, (trial, text)
        start = min(span.start for span in gate.stop.spans)
        assert text.startswith(seen) and len(seen) <= start, (trial, text[start:], seen[-40:])
        assert start >= len(before), "only what was planted is found"
        assert [piece.finish for piece in released if piece.finish] == ["content_filter"]
        assert released[-1].text == "" and released[-1].token is None and released[-1].logprobs is None
    assert strict.tally.leaked_chars == 0


def test_what_nobody_stops_arrives_whole_and_every_piece_once(strict: Pipeline) -> None:
    rng = random.Random(1)
    for _ in range(15):
        text = filler(rng, 150)
        pieces = list(pieces_of(text, rng))
        gate = Gate(strict)
        assert shown(gate, iter(pieces)) == (text, pieces)
        assert gate.stop is None


def test_ordinary_words_leave_as_they_come() -> None:
    gate = Gate(Pipeline(policy.load("chatbot"), [LexiconGuard(), hidden_guard(), code_guard(), injection_guard()]))
    text = "Hello! The museum opens at nine and closes at five. Tickets cost ten euros ☀️, for all of you."
    for word in re.findall(r" ?\S+", text):
        assert len(gate.push(Piece(0, word, 7, None, None))) == 1, f"{word!r} waits"


def marker_guard(length: int) -> TextGuard:
    """A guard of which the gate knows nothing: it stops runs of `length` exclamation marks."""

    def check(context: Context) -> Verdict:
        start = context.text.find("!" * length)
        spans = () if start < 0 else (Span(start=start, end=start + length, code="S1", score=1.0, reason=""),)
        return Verdict(
            guard="marker/1",
            action="block" if spans else "allow",
            score=float(bool(spans)),
            codes=("S1",) if spans else (),
            spans=spans,
            backend="rules",
            status="ok",
            coverage=("S1",),
        )

    bad, good = (Context.of_text(text) for text in ("!" * length, "?"))
    return TextGuard(name="content", backend="rules", verdict_of=check, probes=((bad, False), (good, True)))  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1, 17, 64])
def test_an_unknown_guard_is_trusted_with_spans_up_to_the_window(length: int) -> None:
    held = pipeline("window_chars = 64\nstep_chars = 16\n[assistant_output]\ncontent = {}\n", _probed(length))
    rng = random.Random(length)
    for _ in range(30):
        before = filler(rng, 60)
        gate = Gate(held)
        seen, _ = shown(gate, pieces_of(before + "!" * length + filler(rng, 30), rng))
        assert gate.stop is not None and before.startswith(seen)
    assert held.tally.leaked_chars == 0


def _probed(length: int) -> TextGuard:
    from puna.guard.guard import Probe

    guard = marker_guard(length)
    return replace(guard, probes=tuple(Probe(*each) for each in guard.probes))


def test_an_answer_may_be_held_until_its_end() -> None:
    whole = pipeline("hold = 'answer'\n" + STRICT)
    gate, pieces = Gate(whole), list(pieces_of("One. Two. Three. " * 40, random.Random(2)))
    assert [gate.push(piece) for piece in pieces[:-1]] == [[]] * (len(pieces) - 1)
    assert gate.push(pieces[-1]) == pieces
    gate = Gate(whole)
    assert shown(gate, pieces_of("Fine. " * 90 + PLANTS[0], random.Random(3)))[0] == ""
    assert gate.stop is not None


def test_an_audit_stops_and_holds_nothing_and_counts() -> None:
    audit = pipeline("mode = 'audit'\n" + STRICT)
    gate = Gate(audit)
    pieces = list(pieces_of(f"Well. {PLANTS[0]}. {PLANTS[5]}", random.Random(4)))
    for piece in pieces:
        gate.push(piece)
    assert gate.stop is None
    assert gate.found.action == "block" and not gate.found.stops
    assert audit.tally.verdicts["assistant_output", "content", "rules", "block"] >= 1
    assert not audit.tally.stops


def test_flaws_in_code_that_only_count_hold_nothing_back() -> None:
    lenient = pipeline("[assistant_output]\ncode = { hit = 'flag' }\n")
    gate, text = Gate(lenient), f"See:\n```python\n{UNSAFE}```\nDone.\n"
    seen = ""
    for char in text:
        seen += "".join(piece.text for piece in gate.push(Piece(0, char, 7, None, None)))
    assert seen == text
    assert gate.found.action == "flag" and "CWE-78" in gate.found.codes


def test_a_fence_that_is_never_closed_is_judged_at_the_end(strict: Pipeline) -> None:
    gate = Gate(strict)
    seen, released = shown(gate, pieces_of(f"Try this:\n```python\n{UNSAFE}", random.Random(5)))
    assert "Try this:\n".startswith(seen)
    assert released[-1].finish == "content_filter"


def test_a_guard_on_a_model_sees_the_whole_answer_ever_less_often() -> None:
    seen = []

    def check(context: Context) -> Verdict:
        seen.append(context.text)
        return LexiconGuard().check(context)

    model = replace(_probed(1), backend="weights", verdict_of=check, probes=LexiconGuard().probes)
    slow = pipeline("step_chars = 16\nwindow_chars = 64\n[assistant_output]\ncontent = {}\n", model)
    assert slow.is_slow
    seen.clear()
    gate, text = Gate(slow), "One. Two. Three. " * 40
    shown_text, _ = shown(gate, pieces_of(text, random.Random(9)))
    assert shown_text == text and seen[-1] == text
    assert all(text.startswith(each) for each in seen) and len(seen) < len(text) / 40
    gate = Gate(slow)
    seen_first, _ = shown(gate, pieces_of(f"{text}{PLANTS[0]}", random.Random(10)))
    assert gate.stop is not None and f"{text}{PLANTS[0]}".startswith(seen_first)
    assert "bomb" not in seen_first, "what had not passed has not left"


def test_passages_may_be_cut_out_and_the_answer_goes_on() -> None:
    cutting = pipeline("[assistant_output]\nhidden = { hit = 'rewrite' }\n")
    text = f"Before {PLANTS[2]} after, and on it goes."
    for seed in range(50):
        gate = Gate(cutting)
        seen, released = shown(gate, pieces_of(text, random.Random(seed)))
        assert gate.stop is None and released[-1].finish == "stop"
        assert not any(char >= "\U000e0000" for char in seen)
        assert seen.startswith("Before ") and seen.endswith(" after, and on it goes.")


def test_log_probabilities_do_not_tell_what_is_held_back(strict: Pipeline) -> None:
    gate = Gate(strict)
    assert gate.push(Piece(0, "", 7, TokenLogprobs(-1.0, ()), None)) == []
    assert len(gate.push(Piece(0, "Fine, ", 8, TokenLogprobs(-1.0, ()), None))) == 2


def test_code_in_the_arguments_of_a_call_is_judged_before_anybody_runs_it() -> None:
    guarded = pipeline("[assistant_output]\nhidden = {}\n[code]\ncode = {}\n")
    for code, stops in (("import os; os.system(input())", True), ("print(sum(range(9)))", False)):
        gate = Gate(guarded)
        _, released = shown(gate, pieces_of(f"[run(code={code!r})]", random.Random(6)))
        assert (gate.stop is not None) == stops
        assert released[-1].finish == ("content_filter" if stops else "stop")


def test_content_guards_see_what_the_answer_answers(strict: Pipeline) -> None:
    seen = []

    def check(context: Context) -> Verdict:
        seen.append(context)
        return LexiconGuard().check(context)

    watching = replace(_probed(1), verdict_of=check, probes=LexiconGuard().probes)
    question = Message("user", (TextPart("Why?"),))
    shown(Gate(pipeline(STRICT, watching), [question]), pieces_of("Because.", random.Random(7)))
    assert seen[-1].messages == (question, Message("assistant", (TextPart("Because."),)))


def test_a_guard_that_dies_midway_stops_a_strict_answer_and_no_audited_one() -> None:
    for mode, finish, failures in (("strict", "content_filter", "blocked"), ("audit", "stop", "passed")):
        alive = [True]

        def check(context: Context, alive: list[bool] = alive) -> Verdict:
            if not alive[0]:
                raise BrokenPipeError("the guard was killed")
            return LexiconGuard().check(context)

        dying = replace(_probed(1), verdict_of=check, probes=LexiconGuard().probes)
        on_error = "pass" if mode == "audit" else "block"
        killed = pipeline(f"mode = '{mode}'\n[assistant_output]\non_error = '{on_error}'\ncontent = {{}}\n", dying)
        gate, released = Gate(killed), []
        for i, piece in enumerate(pieces_of("One two three. " * 80, random.Random(8))):
            alive[0] = i < 50
            released += gate.push(piece)
        assert released[-1].finish == finish
        assert killed.tally.failures["assistant_output", "content", failures] >= 1
