"""What all routes of a server share: its model, how it is to behave, and what it counts.

In: what stands before a model, who runs it, and settings. Out: one `State`, which every file of routes is given.
Not here: routes, HTTP.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from puna.chat import Prompter
from puna.prompt.message import Message
from puna.serve.convert import Limits, Refusal
from puna.serve.fetch import Fetcher
from puna.serve.metrics import PREFIX, Metrics
from puna.serve.screen import MakeScreen
from puna.serve.sending import Watch
from puna.serve.worker import Stepper, Worker

_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server behaves. `keys` are the API keys that open it; none leaves it open to whoever reaches it."""

    model: str
    adapters: tuple[str, ...] = ()  # that were loaded over it; each answers under its own name
    keys: tuple[str, ...] = ()
    max_open: int = 256  # answers in progress or waiting; more are told to come back
    max_body_bytes: int = 32 * 2**20
    max_bodies_bytes: int = 2**30  # of all requests that are not finished
    body_seconds: float = 60.0  # for a whole body to arrive
    events_per_second: float = 1000  # of all streams together, beside the first and the last of each; 0: one a token
    ping_seconds: float = 15.0  # of silence in a stream
    stall_seconds: float = 60.0  # that a client may take to read what was sent, before it counts as gone
    request_seconds: float | None = None  # for an answer, waiting included; None sets no limit
    origins: tuple[str, ...] = ()  # of web pages that may ask, such as https://chat.example.org
    conversions_at_once: int = 2  # requests that become prompts at the same time: decoding pictures takes memory
    metrics_prefix: str = PREFIX
    image_hosts: tuple[str, ...] = ()  # that pictures are fetched from, over https; none fetches nothing
    fetches_at_once: int = 4  # requests whose pictures are fetched at the same time
    page: bool = True  # whether there is a page at /
    screen: MakeScreen | None = None  # makes what protects each request; None lets everything through
    limits: Limits = field(default_factory=Limits)


class State:
    """One model behind HTTP."""

    def __init__(
        self, prompter: Prompter, stepper: Stepper, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self.prompter = prompter
        self.settings = settings
        self.clock = clock
        self.created = int(clock())
        self.n_body_bytes = 0  # of all requests that are not finished
        self.is_draining = False  # new work is refused, what runs goes on
        self.metrics = Metrics(settings.model, settings.metrics_prefix)
        if settings.screen is not None:
            self.metrics.add(settings.screen.counts(settings.metrics_prefix))
        layers = sorted(prompter.config.text.moe_layers)
        self.worker = Worker(stepper, self.metrics, layers=layers, max_open=settings.max_open)
        self.watch = Watch(ping_seconds=settings.ping_seconds, stall_seconds=settings.stall_seconds)
        hosts, most = settings.image_hosts, settings.limits.max_image_bytes
        self.fetcher = Fetcher(hosts=hosts, max_bytes=most) if hosts else None
        self.fetching = asyncio.Semaphore(settings.fetches_at_once)
        self.converting = asyncio.Semaphore(settings.conversions_at_once)

    @property
    def context_len(self) -> int:
        return self.prompter.config.text.context_len

    def prepare(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Returns a conversation as the model is to read it: protections may add to it and cut out of it."""
        screen = self.settings.screen
        return messages if screen is None else screen.prepare(messages)

    @property
    def models(self) -> tuple[str, ...]:
        """What clients may name: the base, then its adapters."""
        return (self.settings.model, *self.settings.adapters)

    def named(self, model: str | None) -> str:
        """Returns the name of the model that a request means."""
        return self.settings.model if model is None else model

    def require_model(self, name: str | None) -> None:
        """Raises a 404 for the name of a model that is not here; None means the base."""
        if name not in (None, *self.models):
            there = ", ".join(repr(each) for each in self.models)
            message = f"model {str(name)[:200]!r} does not exist: this server has {there}"
            raise Refusal(404, message, param="model", code="model_not_found")

    def head(self, prefix: str, kind: str, model: str | None, name: str | None = None) -> dict[str, Any]:
        """Returns what a model's answer begins with in OpenAI's API, under a new id or the one that its client gave it.

        Raises Refusal for a name that is too long or strange.
        """
        if name is not None and not _NAME.fullmatch(name):
            raise Refusal(400, "request_id is no name: give up to 128 letters, digits and _ . : -", param="request_id")
        return {
            "id": new_id(prefix) if name is None else prefix + name,
            "object": kind,
            "created": int(self.clock()),
            "model": self.named(model),
        }


def new_id(prefix: str) -> str:
    """Returns an id that nothing else has."""
    return prefix + secrets.token_hex(16)
