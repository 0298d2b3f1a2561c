"""The guards of a conversation, run as a policy says: what goes into a model, what comes from outside, what comes out.

In: a policy and guards; messages. Out: `Ruling`s about what people wrote, messages whose tool results are cleaned and
marked, and a `Gate` for each answer. A guard that fails, is missing or takes too long is a finding, and the policy
decides what follows. Not here: holding an answer back (`gate`), one guard's judgement (`guard`).

Nothing that anybody wrote is logged: a line of the log has a salted hash, by which repetitions can be told.
"""

import hashlib
import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from puna.chat import Assistant
from puna.guard import content
from puna.guard.guard import (
    Context,
    Guard,
    Health,
    Point,
    TextGuard,
    code_guard,
    failed,
    hidden_guard,
    injection_guard,
    judge,
    self_test,
)
from puna.guard.hazards import NAMES
from puna.guard.lexicon import LexiconGuard
from puna.guard.marking import cut, mark
from puna.guard.policy import Decision, Policy, decide
from puna.guard.prompt_guard import prompt_guard
from puna.guard.ruling import Finding, Ruling, Tally
from puna.guard.verdict import Verdict
from puna.prompt.message import ImagePart, Message, TextPart

CACHE_LEN = 4096  # verdicts of texts, by hash: a conversation is sent again with every turn
N_THREADS = 8

_log = logging.getLogger("puna.guard")


class Cleaned(NamedTuple):
    """Messages of which those from outside are safe to read, and what was found in them."""

    messages: tuple[Message, ...]
    rulings: tuple[Ruling, ...]


class Pipeline:
    """Runs guards under one policy. All methods may be called from any thread."""

    def __init__(
        self, policy: Policy, guards: Iterable[Guard] = (), *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Tests each guard that the policy names. One that is missing or fails its test counts as failing always."""
        self.policy = policy
        self.tally = Tally()
        self._clock = clock
        self._salt = secrets.token_bytes(16)
        self._remembered: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="puna-guard")
        given = {guard.name: guard for guard in guards}
        self.health = tuple(_health(name, given.get(name)) for name in policy.guards)
        self._guards = {health.guard: given[health.guard] for health in self.health if health.ok}
        _log_start(policy, self.health)

    def close(self) -> None:
        """Ends the threads in which guards run."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def is_slow(self) -> bool:
        """Says whether a check of an answer may take long, since a model judges it."""
        names = self.policy.at("assistant_output").guards
        return any(self._guards[name].backend in {"weights", "judge"} for name in names if name in self._guards)

    @property
    def summary(self) -> str:
        """A line for people: which protections stand, and what they do not see."""
        if self.policy.is_off:
            return "protections are off"
        stand = ", ".join(f"{each.guard} ({each.backend if each.ok else 'unavailable'})" for each in self.health)
        blind = sum(len(each.unknown) for each in self.health if each.guard == "content")
        partial = f"; {blind} of {len(NAMES)} hazards are not seen" if blind else ""
        return f"protections: {self.policy.name}: {stand}{partial}"

    def guard(self, name: str) -> Guard | None:
        """Returns the guard of that name, None where it is missing or does not work."""
        return self._guards.get(name)

    # What goes in -----------------------------------------------------------------------------------------------------

    def begin(self, messages: Sequence[Message]) -> "Future[Ruling]":
        """Begins to judge what people wrote, beside whatever the caller does meanwhile."""
        return self._pool.submit(self.check_input, messages)

    def check_input(self, messages: Sequence[Message]) -> Ruling:
        """Returns the ruling about all that users wrote, and system messages where the policy looks at them.

        The last turn of a user is judged by all guards, together with what came before it; earlier ones, which a client
        may have made up, by those that read texts.
        """
        places = [i for i, message in enumerate(messages) if message.role == "user"]
        findings: list[Finding] = []
        for i in places:
            context = Context(point="user_input", messages=tuple(messages[: i + 1]))
            names = self.policy.at("user_input").guards
            findings += self._findings(context, [name for name in names if i == places[-1] or self._reads_text(name)])
        for message in messages:
            if message.role == "system":
                context = Context(point="system", messages=(message,))
                findings += self._findings(context, list(self.policy.at("system").guards))
        return self._rule("user_input", findings, "".join(message.text for message in messages))

    def check(self, context: Context) -> Ruling:
        """Returns the ruling about the last message of `context`, by all guards of its point."""
        findings = self._findings(context, list(self.policy.at(context.point).guards))
        return self._rule(context.point, findings, context.text)

    # What comes from outside ------------------------------------------------------------------------------------------

    def clean(self, messages: Sequence[Message]) -> Cleaned:
        """Returns the messages with the results of tools cleaned and marked, and a ruling about each result."""
        cleaned, rulings = [], []
        for message in messages:
            if message.role == "tool" and self.policy.at("tool_result").guards:
                text, ruling = self.clean_text(message.text, "tool_result")
                rulings.append(ruling)
                if text != message.text:
                    images = tuple(part for part in message.content if isinstance(part, ImagePart))
                    message = replace(message, content=(TextPart(text), *images))
            cleaned.append(message)
        return Cleaned(tuple(cleaned), tuple(rulings))

    def clean_text(self, text: str, point: Point) -> tuple[str, Ruling]:
        """Returns a text from outside as a model may read it, and the ruling about what it was.

        Passages that the policy has rewritten are cut out. Where there are none to cut, where what is left is still
        bad, or where a guard could not judge, all of it is replaced: the conversation goes on without it.
        """
        station = self.policy.at(point)
        ruling = self.check(Context.of_text(text, point))
        if self.policy.mode == "audit":
            return text, ruling
        kept = text
        if ruling.action == "rewrite" and ruling.spans:
            kept = cut(text, ruling.spans, self.policy.notice)
            again = self.check(Context.of_text(kept, point))
            kept = self.policy.notice if again.action in {"rewrite", "block", "escalate"} else kept
        elif ruling.action in {"rewrite", "block", "escalate"}:
            kept = self.policy.notice
        if kept != text:
            self.tally.count_stop(ruling)
        marks = station.mark == "always" or (station.mark == "flagged" and ruling.action != "allow")
        return (mark(kept) if marks else kept), ruling

    # One guard --------------------------------------------------------------------------------------------------------

    def judge(self, name: str, context: Context, *, remember: bool = False, offset: int = 0) -> Finding:
        """Returns what a guard finds in `context` and what follows; its text begins `offset` characters in."""
        began = self._clock()
        verdict = self._verdict(name, context, remember)
        if offset:
            spans = tuple(replace(span, start=span.start + offset, end=span.end + offset) for span in verdict.spans)
            verdict = replace(verdict, spans=spans)
        decision = decide(self.policy.at(context.point), name, verdict)
        finding = Finding(guard=name, verdict=verdict, decision=decision, seconds=self._clock() - began)
        self.tally.count(context.point, finding)
        return finding

    def judge_alone(self, name: str, context: Context) -> Finding:
        """Returns what a guard finds, whatever the policy makes of it: for those who ask for its opinion."""
        began = self._clock()
        verdict = self._verdict(name, context, remember=True)
        decision = Decision(verdict.action, verdict.codes, verdict.spans, verdict.status != "ok")
        finding = Finding(guard=name, verdict=verdict, decision=decision, seconds=self._clock() - began)
        self.tally.count(context.point, finding)
        return finding

    def log(self, ruling: Ruling, text: str) -> None:
        """Writes a line about a ruling that is not "allow", without a word of what was judged."""
        if ruling.action != "allow" or ruling.failed:
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=8).hexdigest()
            _log.info(json.dumps(ruling.to_dict() | {"text_hash": digest}))

    def _rule(self, point: Point, findings: Sequence[Finding], text: str) -> Ruling:
        ruling = Ruling(point=point, policy=self.policy, findings=tuple(findings))
        if ruling.stops:
            self.tally.count_stop(ruling)
        self.log(ruling, text)
        return ruling

    def _findings(self, context: Context, names: Sequence[str]) -> list[Finding]:
        return [self.judge(name, context, remember=True) for name in names]

    def _reads_text(self, name: str) -> bool:
        return isinstance(self._guards.get(name), TextGuard)

    def _verdict(self, name: str, context: Context, remember: bool) -> Verdict:
        guard = self._guards.get(name)
        if guard is None:
            return failed(name, "rules", "the guard is missing or did not pass its test")
        if guard.backend in {"weights", "judge"}:
            return self._in_time(guard, context)
        if not (remember and isinstance(guard, TextGuard)):
            return judge(guard, context)
        key = hashlib.blake2b(
            json.dumps([guard.name, context.point, context.language, context.text]).encode(), key=self._salt
        ).digest()
        with self._lock:
            known = self._remembered.get(key)
        if known is None:
            known = judge(guard, context)
            if known.status == "ok":
                self._remember(key, known)
        return known

    def _remember(self, key: bytes, verdict: Verdict) -> None:
        with self._lock:
            self._remembered[key] = verdict
            while len(self._remembered) > CACHE_LEN:
                self._remembered.popitem(last=False)

    def _in_time(self, guard: Guard, context: Context) -> Verdict:
        """Returns a slow guard's verdict, or that it took too long; it goes on then, and nobody waits for it."""
        answer: Future[Verdict] = Future()

        def run() -> None:
            answer.set_result(judge(guard, context))

        threading.Thread(target=run, name=f"puna-guard-{guard.name}", daemon=True).start()
        try:
            return answer.result(self.policy.timeout_seconds)
        except TimeoutError:
            return failed(guard.name, guard.backend, f"no verdict within {self.policy.timeout_seconds} seconds")


def make(policy: Policy, assistant: Assistant | None = None) -> Pipeline:
    """Returns the guards that a policy names, made and tested. Raises WeightsError or ConfigError for a content guard.

    `assistant` is the chat model, which judges contents where the policy says `content = "judge"`.
    """
    makers: dict[str, Callable[[], Guard]] = {
        "content": lambda: _content(policy, assistant),
        "injection": lambda: injection_guard() if policy.injection == "auto" else prompt_guard(Path(policy.injection)),
        "code": code_guard,
        "hidden": hidden_guard,
    }
    return Pipeline(policy, [makers[name]() for name in policy.guards])


def _content(policy: Policy, assistant: Assistant | None) -> Guard:
    """Returns the content guard that a policy asks for. "auto" is the lexicon: a judge never measured is no guard."""
    if policy.content in {"auto", "lexicon"}:
        return LexiconGuard()
    if policy.content == "judge":
        return content.content_guard(None, assistant)
    return content.content_guard(policy.content, None)


def _health(name: str, guard: Guard | None) -> Health:
    if guard is None:
        return Health(name, "rules", False, "there is no guard of that name here", (), ())
    return self_test(guard)


def _log_start(policy: Policy, health: Sequence[Health]) -> None:
    """Says which protections stand, and loudly which do not."""
    if policy.is_off:
        _log.warning("protections are off: policy %s checks nothing", policy.name)
        return
    for each in health:
        state = {"guard": each.guard, "backend": each.backend, "ok": each.ok, "unknown": list(each.unknown)}
        _log.log(logging.INFO if each.ok else logging.ERROR, json.dumps({"policy": policy.name} | state))
    if policy.mode == "audit":
        _log.warning("policy %s audits only: nothing is stopped", policy.name)
