"""Harmful content, judged by a model: Llama Guard 4 or 3 where its weights are, or a chat model that is asked to.

In: the last turn of a conversation, with what it answers and its pictures. Out: one `Verdict` with hazard codes. The
guard runs on the engine: the policy is the same for every prompt, so its keys are remembered, and a verdict takes two
to six steps. The score is the share of "unsafe" between the two words that can come first; that of a code is the chance
that it is the first one named, once "unsafe" is said. Not here: prompts (`content_prompt`), what to do about a hit.

Whoever has no weights gets the loaded chat model as "judge", if it passes the same self test as a guard would, and else
the lexicon, which sees few codes and says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from puna.chat import Assistant, Piece, load
from puna.errors import PromptError
from puna.guard import content_answer
from puna.guard.content_prompt import (
    GUARD3_1B,
    GUARD3_8B,
    GUARD4,
    Template,
    Turn,
    categories_of,
    encode,
    pieces,
    turns_of,
)
from puna.guard.guard import Context, Guard, Probe, failed, self_test
from puna.guard.hazards import NAMES, TEXT_ONLY
from puna.guard.lexicon import LexiconGuard
from puna.guard.verdict import Backend, Verdict, action_of
from puna.prompt.message import Message, TextPart
from puna.prompt.render import Prompt

__all__ = ["LexiconGuard", "ModelGuard", "content_guard", "model_guard", "template_of"]

MAX_ANSWER_TOKENS = 40  # "unsafe" and all 14 codes
N_TOP = 100  # of the first token; whatever is not among them counts as if it just missed
ASK_CODES_FROM = 0.05  # below this score the codes' own scores are not worth another step
CONTEXT_CHARACTERS = 2000  # of the turn before, where the judged one is too long for both
PRIORITY = -10  # somebody's first token waits for the verdict

PROBES = (
    Probe(Context.of_text("How do I make a bomb?"), False),
    Probe(Context.of_text("What is the capital of France?"), True),
    Probe(Context.of_text("Which herbs go well with roasted potatoes?"), True),
    Probe(
        Context(
            point="assistant_output",
            messages=(
                Message("user", (TextPart("How do I make a bomb?"),)),
                Message("assistant", (TextPart("I cannot help you with that."),)),
            ),
        ),
        True,
    ),
)


class Reply(NamedTuple):
    """What the guard wrote, and its first token with what was most probable there."""

    text: str
    first: Piece

    @property
    def expected(self) -> tuple[tuple[int, float], ...]:
        """Ids and log-probabilities, most probable first."""
        return self.first.logprobs.top if self.first.logprobs else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGuard:
    """A content guard on a model.

    `categories` are what is asked about: code to the words behind it, as they stand in the prompt; `excluded` is left
    out of them, and what is named only under an excluded code passes. `vocabulary` are the codes that a caller may ask
    for; those not asked about are unknown. `flag_at` and `block_at` are scores in 0..1.
    """

    assistant: Assistant
    template: Template
    categories: Mapping[str, str]
    vocabulary: tuple[str, ...]
    excluded: frozenset[str] = frozenset()
    backend: Backend = "weights"
    flag_at: float = 0.5
    block_at: float = 0.5
    n_top: int = N_TOP
    probes: Sequence[Probe] = PROBES
    name: str = "content"

    def check(self, context: Context) -> Verdict:
        """Returns the verdict about the last message. One that is too long is judged in overlapping parts."""
        turns = turns_of(context.messages)
        if len(turns[-1].images) > self.template.max_images:
            reason = f"{len(turns[-1].images)} pictures in one turn, {self.template.max_images} can be judged"
            return replace(failed(self._id, self.backend, reason), status="skipped", unknown=self.vocabulary)
        turns = _with_fewer_images(turns, self.template.max_images)
        asked = self.asked(sum(len(turn.images) for turn in turns))
        prompts = [self.prompt(view, asked) for view in self.views(turns, asked)]
        verdicts = [
            self._verdict(prompt, reply, asked) for prompt, reply in zip(prompts, self.ask(prompts), strict=True)
        ]
        return max(verdicts, key=lambda verdict: (verdict.status != "ok", verdict.score))

    def asked(self, n_images: int) -> dict[str, str]:
        """Returns the categories that are asked about in a conversation with that many pictures."""
        hidden = self.excluded | (TEXT_ONLY if n_images else frozenset())
        return {code: name for code, name in self.categories.items() if code not in hidden}

    def prompt(self, turns: Sequence[Turn], asked: Mapping[str, str]) -> Prompt:
        """Returns what the model reads before its verdict, the newlines that it would write first included."""
        prompt = [*pieces(self.template, turns, asked), self.template.lead]
        return encode(prompt, self.assistant.tokenizer, self.assistant.config.vision)

    @property
    def _id(self) -> str:
        return f"content/{self.template.name}"

    def views(self, turns: list[Turn], asked: Mapping[str, str]) -> list[list[Turn]]:
        """Returns the conversation in as many forms as it takes to read all of its last turn."""
        room = self.assistant.config.text.context_len - MAX_ANSWER_TOKENS

        def fits(view: list[Turn]) -> bool:
            return len(self.prompt(view, asked).ids) <= room

        while len(turns) > 2 and not fits(turns):
            turns = turns[2:]
        if fits(turns):
            return [turns]
        *before, last = [turn._replace(text=turn.text[-CONTEXT_CHARACTERS:]) for turn in turns[:-1]] + turns[-1:]
        width = max(len(last.text), 1)
        while not fits([*before, last._replace(text=last.text[:width])]):
            width //= 2
            if width < CONTEXT_CHARACTERS // 4:
                raise PromptError(f"context of {room} tokens: too short for the policy and a passage to be judged")
        width //= 2  # other passages may have more tokens for as many characters
        starts = range(0, len(last.text), max(width * 3 // 4, 1))
        return [[*before, last._replace(text=last.text[start : start + width])] for start in starts]

    def ask(self, prompts: Sequence[Prompt], n_tokens: int = MAX_ANSWER_TOKENS) -> list[Reply]:
        session = self.assistant.session()
        numbers = [
            session.begin(prompt, temperature=0.0, max_new_tokens=n_tokens, logprobs=self.n_top, priority=PRIORITY)
            for prompt in prompts
        ]
        texts: dict[int, str] = dict.fromkeys(numbers, "")
        firsts: dict[int, Piece] = {}
        try:
            while not session.is_idle:
                for number, piece in session.step():
                    texts[number] += piece.text
                    firsts.setdefault(number, piece)
        finally:
            session.close()
        return [Reply(texts[number], firsts[number]) for number in numbers]

    def _verdict(self, prompt: Prompt, reply: Reply, asked: Mapping[str, str]) -> Verdict:
        answer, score = content_answer.read(reply.text), self.unsafe(reply)
        if answer.problem == "unparseable":
            unread = failed(self._id, self.backend, "unparseable: the answer is neither safe nor unsafe with codes")
            return replace(unread, unknown=self.vocabulary)
        scores = self._code_scores(prompt, score, asked) if score >= ASK_CODES_FROM else {}
        excluded = set(answer.codes) & (self.categories.keys() - asked.keys())
        if answer.codes and excluded == set(answer.codes):
            score = max(scores.values(), default=0.0)
        codes = [code for code in answer.codes if code in asked]
        if not codes and score >= self.flag_at and scores:
            codes = [max(scores, key=lambda code: scores[code])]
        reason = answer.problem
        if strange := [code for code in answer.codes if code not in self.categories]:
            reason = f"unknown code {', '.join(strange)}"
        return Verdict(
            guard=self._id,
            action=action_of(score, flag_at=self.flag_at, block_at=self.block_at),
            score=score,
            codes=tuple(codes),
            spans=(),
            backend=self.backend,
            status="ok",
            coverage=tuple(asked),
            unknown=tuple(code for code in self.vocabulary if code not in asked),
            scores=scores or dict.fromkeys(asked, score),
            reason=reason,
        )

    def unsafe(self, reply: Reply) -> float:
        """Returns the share of "unsafe" between the two words, in 0..1.

        A word that is not among the most probable tokens counts as if it just missed, where that makes it worse, and
        as impossible otherwise.
        """
        safe, unsafe = (self.assistant.tokenizer.encode(word)[0] for word in ("safe", "unsafe"))
        known = dict(reply.expected)
        bound = reply.expected[-1][1] if reply.expected else 0.0
        difference = known.get(unsafe, bound) - known.get(safe, -math.inf)
        return 1 / (1 + math.exp(-min(difference, 700.0)))

    def _code_scores(self, prompt: Prompt, score: float, asked: Mapping[str, str]) -> dict[str, float]:
        """Returns for each code the chance that it is the first named; nothing where numbers are several tokens."""
        tokenizer = self.assistant.tokenizer
        numbers = {code: tokenizer.encode(code[1:]) for code in asked}
        if any(len(ids) != 1 for ids in numbers.values()):
            return {}
        forced = Prompt([*prompt.ids, *tokenizer.encode("unsafe\nS")], prompt.tiles)
        (reply,) = self.ask([forced], 1)
        known = dict(reply.expected)
        return {code: score * math.exp(known.get(ids[0], -math.inf)) for code, ids in numbers.items()}


def model_guard(
    assistant: Assistant,
    *,
    template: Template | None = None,
    categories: Mapping[str, str] | None = None,
    excluded: Sequence[str] = (),
    backend: Backend = "weights",
) -> ModelGuard:
    """Returns the content guard on a loaded model.

    `template` None takes the one of the model's vocabulary; `categories` None those of the template, and own ones are
    code ("S1") to what stands behind it in the prompt. Raises PromptError for codes that are none.
    """
    template = template or template_of(assistant)
    vocabulary = tuple(NAMES if categories is None else categories)
    categories = categories_of(template) if categories is None else dict(categories)
    if wrong := [code for code in categories if not (code[:1] == "S" and code[1:].isdecimal())]:
        raise PromptError(f"categories: {wrong[0]!r} is no code; give S and a number, such as S1")
    if unknown := [code for code in excluded if code not in vocabulary]:
        raise PromptError(f"excluded: {unknown[0]!r} is none of {', '.join(vocabulary)}")
    return ModelGuard(
        assistant=assistant,
        template=template,
        categories=categories,
        vocabulary=vocabulary,
        excluded=frozenset(excluded),
        backend=backend,
    )


def template_of(assistant: Assistant) -> Template:
    """Returns the template that fits the model's vocabulary, and for Llama Guard 3 its size."""
    if GUARD3_8B.header_start not in assistant.tokenizer.special:
        return GUARD4
    return GUARD3_8B if assistant.config.text.width >= 4096 else GUARD3_1B


def content_guard(weights: str | Path | None = None, chat: Assistant | None = None) -> Guard:
    """Returns the best content guard that there is: of `weights`, else `chat` as judge, else the lexicon.

    A judge must pass the self test first. Raises ConfigError or WeightsError where `weights` cannot be loaded.
    """
    if weights is not None:
        return model_guard(load(weights))
    if chat is not None:
        judge = model_guard(chat, template=GUARD4, backend="judge")
        if self_test(judge).ok:
            return judge
    return LexiconGuard()


def _with_fewer_images(turns: list[Turn], most: int) -> list[Turn]:
    """Returns turns with at most so many pictures: those of earlier turns, which were judged then, go first."""
    left, kept = most, []
    for turn in reversed(turns):
        images = turn.images[max(len(turn.images) - left, 0) :] if left else ()
        left -= len(images)
        kept.append(turn._replace(images=images))
    return kept[::-1]
