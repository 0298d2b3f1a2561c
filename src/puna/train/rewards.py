"""What a reply is worth, where a program can tell: 1 for right and 0 for wrong, or between.

In: a reply as text and the `answer` of its line, which says what is asked for:

    {"kind": "exact", "accept": ["cat"]}        equals one of these, letter case, accents' form and a last point aside
    {"kind": "number", "value": 3}              is this number; digits of any script, a comma for a point
    {"kind": "format", "pattern": "[A-D]"}      the whole reply matches a regular expression
    {"kind": "language", "language": "hi"}      is a text in this language, at least `words` (5) words long
    {"kind": "refusal", "language": "de"}       declines, in this language
    {"kind": "any"}                             is anything: for replies that a model judges (`synthesize`)
    {"kind": "calls", "calls": [{"name": "get_weather", "arguments": {"city": "Lima"}}]}

Further kinds, such as one that runs code, are given to `reward` by whoever has them.
Not here: who made the reply (`rollout`), what a reward changes (`reinforce`).
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from puna.errors import PromptError
from puna.prompt.message import TextPart, Tool
from puna.prompt.parse import parse
from puna.train import wordings
from puna.train.prepare.language import LANGUAGES, language
from puna.train.prepare.words import phrase

Answer = Mapping[str, Any]
Judge = Callable[[str, Answer, Sequence[Tool]], float]


def reward(reply: str, answer: Answer, tools: Sequence[Tool] = (), more: Mapping[str, Judge] | None = None) -> float:
    """Returns what `reply` is worth, within 0..1. Raises PromptError as `check` does."""
    return _judge(answer, more)(reply, answer, tools)


def check(answer: object, where: str, more: Mapping[str, Judge] | None = None) -> None:
    """Raises PromptError, naming the place, for an `answer` that nothing here can judge."""
    if not isinstance(answer, Mapping):
        raise PromptError(f"{where}: answer is {answer!r}; give an object with kind and what it asks for")
    try:
        _judge(answer, more)("", answer, ())
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, re.error) as error:
        kind = answer.get("kind")
        raise PromptError(
            f"{where}: answer of kind {kind!r} is incomplete or wrong ({error!r}); see rewards"
        ) from error


def is_exact(reply: str, answer: Answer, tools: Sequence[Tool]) -> float:
    """Whether the reply is one of the accepted texts."""
    return float(_plain(reply) in {_plain(each) for each in answer["accept"]})


def is_number(reply: str, answer: Answer, tools: Sequence[Tool]) -> float:
    """Whether the reply is the number, and nothing but it and a unit of one word or sign."""
    wanted = float(answer["value"])
    digits = "".join(str(unicodedata.digit(c, c)) for c in reply.strip())
    found = re.fullmatch(r"\D{0,2}(-?\d+(?:[.,]\d+)?)\s*[^\s\d]*", digits)
    return float(found is not None and float(found[1].replace(",", ".")) == wanted)


def is_formed(reply: str, answer: Answer, tools: Sequence[Tool]) -> float:
    """Whether the reply matches the pattern from end to end."""
    return float(re.compile(answer["pattern"], re.DOTALL).fullmatch(reply.strip()) is not None)


def is_in_language(reply: str, answer: Answer, tools: Sequence[Tool]) -> float:
    """Whether the reply is a text in the language."""
    wanted, least = _language(answer), int(answer.get("words", 5))
    if wanted in ("th", "hi", "ar"):  # scripts tell, and Thai has no blanks
        return float(len(reply) >= 4 * least and language(reply, phrase(reply)) == wanted)
    return float(len(reply.split()) >= least and language(reply, phrase(reply)) == wanted)


def is_refusal(reply: str, answer: Answer, tools: Sequence[Tool]) -> float:
    """Whether the reply begins as this language's refusals do: with their first three words, or eight letters."""
    return float(_plain(reply).startswith(_opening(wordings.DECLINE[_language(answer)])))


def are_calls(reply: str, answer: Answer, tools: Sequence[Tool]) -> float:
    """Whether the reply calls what is wanted with the arguments wanted, in any order of calls; half for the names."""
    made = parse(reply, tools)
    said = "".join(part.text for part in made.content if isinstance(part, TextPart)).strip()
    found = sorted((call.name, repr(sorted(call.arguments.items()))) for call in made.tool_calls)
    wanted = sorted((call["name"], repr(sorted(call["arguments"].items()))) for call in answer["calls"])
    if found == wanted:
        return 1.0 if not said else 0.75
    return 0.5 if found and [name for name, _ in found] == [name for name, _ in wanted] else 0.0


_JUDGES: Mapping[str, Judge] = {
    "any": lambda reply, answer, tools: 1.0,
    "exact": is_exact,
    "number": is_number,
    "format": is_formed,
    "language": is_in_language,
    "refusal": is_refusal,
    "calls": are_calls,
}


def _judge(answer: Answer, more: Mapping[str, Judge] | None) -> Judge:
    known = {**_JUDGES, **(more or {})}
    kind = answer.get("kind")
    if kind not in known:
        raise PromptError(f"answer.kind is {kind!r}; use one of {', '.join(known)}")
    return known[kind]


def _language(answer: Answer) -> str:
    tag = str(answer["language"])
    if tag not in LANGUAGES[:-1]:
        raise PromptError(f"answer.language is {tag!r}; use one of {', '.join(LANGUAGES[:-1])}")
    return tag


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().rstrip(".。।!").strip().casefold()


def _opening(text: str) -> str:
    words = _plain(text).split()
    return " ".join(words[:3]) if len(words) > 3 else _plain(text)[:8]
