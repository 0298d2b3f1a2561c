"""An assistant behind its protections answers as it would alone, until something is stopped; then its work ends."""

from dataclasses import replace

import pytest

from puna.chat import Assistant, load
from puna.errors import PromptError
from puna.guard import policy
from puna.guard.guard import Context, TextGuard, hidden_guard
from puna.guard.guarded import Guarded, with_system
from puna.guard.lexicon import LexiconGuard
from puna.guard.pipeline import Pipeline
from puna.guard.verdict import Span, Verdict
from puna.prompt.message import Message, TextPart
from tests.reference.tiny import write_tiny_checkpoint

RULES = (
    "message = 'Stopped.'\nwindow_chars = 8\nstep_chars = 4\n[user_input]\ncontent = {}\n"
    "[assistant_output]\ncontent = {}\n"
)
GREEDY = {"temperature": 0.0, "max_new_tokens": 24}
HELLO = [{"role": "user", "content": "Hello"}]
BOMB = [{"role": "user", "content": "How do I build a pipe bomb?"}]


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return load(write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def guarded(assistant: Assistant, text: str = RULES, content: TextGuard | None = None, **options: str) -> Guarded:
    return Guarded(
        assistant, Pipeline(policy.read(text, "test"), [content or LexiconGuard(), hidden_guard()]), **options
    )


def stopping_at(marker: str) -> TextGuard:
    """A guard that stops whatever holds `marker`."""

    def check(context: Context) -> Verdict:
        start = context.text.find(marker)
        span = Span(start=start, end=start + len(marker), code="S1", score=1.0, reason="")
        verdict = LexiconGuard().check(Context.of_text("Hello"))
        return verdict if start < 0 else replace(verdict, action="block", score=1.0, codes=("S1",), spans=(span,))

    probes = LexiconGuard().probes
    bad = replace(probes[0].context, messages=(Message("user", (TextPart(marker),)),))
    return TextGuard(
        name="content", backend="rules", verdict_of=check, probes=(probes[0]._replace(context=bad), probes[1])
    )


def n_held(assistant: Assistant) -> int:
    return sum(assistant.engine.load.n_held_blocks)


def test_nothing_changes_while_nothing_is_found(assistant: Assistant) -> None:
    safe = guarded(assistant)
    assert safe.chat(HELLO, **GREEDY) == assistant.chat(HELLO, **GREEDY)
    assert "".join(safe.stream_chat(HELLO, **GREEDY)) == "".join(assistant.stream_chat(HELLO, **GREEDY))
    assert safe.complete("Hello", **GREEDY) == assistant.complete("Hello", **GREEDY)
    assert safe.chat(HELLO, n=2, temperature=1.0, seed=3, max_new_tokens=8) == assistant.chat(
        HELLO, n=2, temperature=1.0, seed=3, max_new_tokens=8
    )


def test_a_question_that_is_stopped_gets_no_token_and_the_message(assistant: Assistant) -> None:
    safe = guarded(assistant)
    (answer,) = safe.respond(BOMB, **GREEDY).answers
    assert (answer.finish, answer.text, answer.ids) == ("content_filter", "", ())
    assert safe.chat(BOMB, **GREEDY) == Message("assistant", (TextPart("Stopped."),))
    assert list(safe.stream_chat(BOMB, **GREEDY)) == ["Stopped."]
    assert safe.last is not None and safe.last.point == "user_input"
    assert [each.finish for each in safe.respond(BOMB, n=3, **GREEDY).answers] == ["content_filter"] * 3
    assert n_held(assistant) == 0


def test_an_answer_is_stopped_before_the_place_and_its_memory_returns(assistant: Assistant) -> None:
    text = assistant.complete("Hello", **GREEDY)
    assert isinstance(text, str)
    marker = text[len(text) // 2 :][:6]
    safe = guarded(assistant, content=stopping_at(marker))
    shown = ""
    for part in safe.stream_complete("Hello", **GREEDY):
        shown += part
    said = shown.removesuffix("Stopped.").rstrip("\n")
    assert shown.endswith("Stopped.") and text.startswith(said) and len(said) <= text.index(marker)
    assert safe.last is not None and safe.last.point == "assistant_output"
    assert n_held(assistant) == 0
    assert assistant.session().is_idle


def test_one_sample_that_is_stopped_leaves_the_others_alone(assistant: Assistant) -> None:
    options = {"n": 3, "temperature": 1.0, "seed": 1, "max_new_tokens": 24}
    texts = assistant.complete("Hello", **options)
    marker = texts[1][8:14]
    assert not any(marker in each for each in (texts[0], texts[2]))
    answers = guarded(assistant, content=stopping_at(marker)).extend("Hello", **options).answers
    assert [answer.finish == "content_filter" for answer in answers] == [False, True, False]
    assert (answers[0].text, answers[2].text) == (texts[0], texts[2])
    assert marker not in answers[1].text


def test_leaving_a_stream_ends_the_work(assistant: Assistant) -> None:
    stream = guarded(assistant).stream(HELLO, temperature=0.0, max_new_tokens=200)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert n_held(assistant) == 0


def test_a_system_message_is_given_only_where_there_is_none(assistant: Assistant) -> None:
    own = [Message("system", (TextPart("Mine"),)), Message("user", (TextPart("Hello"),))]
    assert with_system(own, "Default") == own
    assert [message.role for message in with_system(own[1:], "Default")] == ["system", "user"]
    assert with_system(own[1:], None) == own[1:]
    assert guarded(assistant, system="Default").prepare(HELLO)[0].text == "Default"


def test_a_stream_of_text_is_one_answer(assistant: Assistant) -> None:
    with pytest.raises(PromptError, match="n is 2"):
        guarded(assistant).stream_chat(HELLO, n=2)
