"""The protections of a server: what stands between its model and its clients, what is shown of it, and its counts.

In: a pipeline; the conversations of a request, then the pieces of their answers. Out: the pieces that may be shown.
What people wrote is judged while the model reads it, and no piece is shown before the verdict. A stopped answer ends
with finish "content_filter", and its choice says under `content_filter_results` what was found, never what was said.
Not here: judging (`guard`), HTTP (`moderations`).
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

from puna.chat import Assistant, Piece
from puna.guard import pipeline
from puna.guard.gate import Gate
from puna.guard.guarded import with_system
from puna.guard.pipeline import Pipeline
from puna.guard.policy import Policy
from puna.guard.ruling import SECONDS, Ruling
from puna.prompt.message import Message
from puna.serve.screen import Conversations, MakeScreen, Pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarding:
    """How protections are made: by a policy. `system` and `reports` as of `Protections`. May be pickled."""

    policy: Policy
    system: str | None = None
    reports: Path | None = None

    @property
    def needs_model(self) -> bool:
        """Says whether the served model itself judges, which only the process that has it can ask."""
        return self.policy.content == "judge" and "content" in self.policy.guards

    def protections(self, assistant: Assistant | None = None) -> "Protections":
        """Returns the protections. Raises WeightsError or ConfigError for a guard that cannot be had."""
        return Protections(pipeline.make(self.policy, assistant), system=self.system, reports=self.reports)


class Protections:
    """A pipeline as a server uses it: makes the screen of each request, and prepares conversations for the model."""

    def __init__(self, pipeline: Pipeline, *, system: str | None = None, reports: Path | None = None) -> None:
        """`system` begins conversations that have no system message; `reports` is a file that keeps reports."""
        self.pipeline = pipeline
        self.reports = reports
        self._system = system

    def __call__(self, conversations: Conversations) -> "Watching":
        """Returns the screen of one request, which begins to judge at once."""
        return Watching(self.pipeline, conversations)

    def prepare(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Returns what the model is given: with a system message, and with the results of tools cleaned and marked."""
        return self.pipeline.clean(with_system(messages, self._system)).messages

    def counts(self, prefix: str) -> "GuardCounts":
        """Returns the pipeline's counts, for /metrics."""
        return GuardCounts(self.pipeline, prefix)

    @property
    def is_ready(self) -> bool:
        """Says whether requests can pass: not where a strict policy waits for a guard that does not work."""
        policy = self.pipeline.policy
        needed = {
            name for station in policy.stations.values() if station.on_error == "block" for name in station.guards
        }
        down = {health.guard for health in self.pipeline.health if not health.ok}
        return policy.mode == "audit" or not needed & down

    def to_dict(self) -> dict[str, Any]:
        """Returns which protections stand, for /ready."""
        policy = self.pipeline.policy
        return {
            "policy": policy.name,
            "policy_hash": policy.digest,
            "mode": "off" if policy.is_off else policy.mode,
            "guards": [
                {
                    "guard": health.guard,
                    "backend": health.backend,
                    "status": "ok" if health.ok else "unavailable",
                    "detail": health.detail,
                    "coverage": list(health.coverage),
                    "unknown": list(health.unknown),
                }
                for health in self.pipeline.health
            ],
        }


class Watching:
    """The screen of one request."""

    def __init__(self, pipeline: Pipeline, conversations: Conversations) -> None:
        self._pipeline = pipeline
        self._conversations = conversations
        self._verdicts = [asyncio.wrap_future(pipeline.begin(messages)) for messages in conversations]
        self._inputs: list[Ruling] = []
        self._gates: dict[tuple[int, int], Gate] = {}

    async def watch(self, pieces: AsyncIterator[Pieces]) -> AsyncIterator[Pieces]:
        """Yields what may be shown, once the verdicts on what people wrote are there."""
        async for made in pieces:
            if not self._inputs:
                self._inputs = list(await asyncio.gather(*self._verdicts))
            shown: Pieces = []
            for index, piece in made:
                shown += [(index, each) for each in await self._show(index, piece)]
            yield shown

    async def _show(self, index: int, piece: Piece) -> list[Piece]:
        key = index, piece.sample
        if self._inputs[index].stops:
            is_first = key not in self._gates
            self._gates.setdefault(key, Gate(self._pipeline))
            return [Piece(piece.sample, "", None, None, "content_filter", piece.n_cached)] if is_first else []
        gate = self._gates.setdefault(key, Gate(self._pipeline, self._conversations[index]))
        return await asyncio.to_thread(gate.push, piece) if self._pipeline.is_slow else gate.push(piece)

    def results(self, index: int, sample: int) -> dict[str, Any] | None:
        """Returns what was found in what was asked and answered, None where that is nothing."""
        gate = self._gates.get((index, sample))
        asked = self._inputs[index : index + 1]
        answered = [] if gate is None else [gate.found if gate.stop is None else gate.stop]
        rulings = [ruling for ruling in (*asked, *answered) if ruling.action != "allow" or ruling.failed]
        if not rulings:
            return None
        stopped = any(ruling.stops for ruling in rulings)
        message = {"message": self._pipeline.policy.message} if stopped else {}
        return {"filtered": stopped, "rulings": [ruling.to_dict() for ruling in rulings]} | message


class Announced:
    """Says on every answer under which policy it came about."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._header = (
            b"x-puna-policy",
            f"{policy.name.encode('ascii', 'replace').decode()}; {policy.digest}".encode(),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def announced(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", ()), self._header]}
            await send(message)

        await self._app(scope, receive, announced if scope["type"] == "http" else send)


class GuardCounts(Collector):
    """The pipeline's tally as metrics of Prometheus."""

    def __init__(self, pipeline: Pipeline, prefix: str) -> None:
        self._pipeline = pipeline
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        """Yields the counts as they are now."""
        tally = self._pipeline.tally
        counters = (
            ("verdicts", "Verdicts of guards.", ("point", "guard", "backend", "action"), tally.verdicts),
            ("codes", "Codes that were found.", ("point", "code"), tally.codes),
            ("failures", "Verdicts that could not be had in full.", ("point", "guard", "then"), tally.failures),
            ("stops", "What was stopped or changed.", ("point", "action"), tally.stops),
            ("leaked_chars", "Characters of what was stopped that had left.", (), {(): tally.leaked_chars}),
        )
        for name, text, labels, counts in counters:
            family = CounterMetricFamily(f"{self._prefix}guard_{name}", text, labels=labels)
            for values, n in list(counts.items()):
                family.add_metric(values, n)
            yield family
        times = HistogramMetricFamily(f"{self._prefix}guard_seconds", "Time of a verdict.", labels=("guard",))
        bounds = [*map(str, SECONDS), "+Inf"]
        for guard, buckets in list(tally.times.items()):
            times.add_metric((guard,), list(zip(bounds, accumulate(buckets), strict=True)), tally.seconds[guard])
        yield times


def announced(app: ASGIApp, screen: MakeScreen | None) -> ASGIApp:
    """Returns an application whose answers name the policy that `screen` follows, if any."""
    return Announced(app, screen.pipeline.policy) if isinstance(screen, Protections) else app
