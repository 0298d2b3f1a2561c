"""The server: routes, and what a server owes its host and its clients.

In: an assistant and settings. Out: an ASGI application, and `run`, which serves it until it is told to stop. Here live
the table of status codes, keys, limits while reading, disconnects, and the end: on SIGTERM nothing new is accepted,
what runs is finished, a second signal ends at once.
Not here: what requests mean (`convert`), the model (`worker`), the shape of answers (`stream`, `schema`), reading files
and the environment (`cli`).

No line of the log holds anything that a user wrote.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import re
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from puna import __version__
from puna.chat import Assistant
from puna.errors import CapacityError, ConfigError, PromptError
from puna.prompt.vocab import BEGIN_OF_TEXT, END_OF_TEXT, END_OF_TURN, PAD
from puna.serve import convert, schema, stream
from puna.serve.convert import Job, Limits, Refusal
from puna.serve.metrics import PREFIX, Metrics
from puna.serve.worker import Answers, Worker

OPEN_PATHS = ("/health", "/ready")
"""What is answered without a key."""

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_PLACE = re.compile(r" - at `\$\.?(.*)`$")
_T = TypeVar("_T")
_log = logging.getLogger("puna.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server behaves. `keys` are the API keys that open it; none leaves it open to whoever reaches it."""

    model: str
    keys: tuple[str, ...] = ()
    max_open: int = 256  # answers in progress or waiting; more are told to come back
    max_body_bytes: int = 32 * 2**20
    body_seconds: float = 60.0  # for a whole body to arrive
    ping_seconds: float = 15.0  # of silence in a stream
    conversions_at_once: int = 2  # requests that become prompts at the same time: decoding pictures takes memory
    metrics_prefix: str = PREFIX
    limits: Limits = field(default_factory=Limits)


class Server:
    """One assistant behind HTTP. `app` is the ASGI application; `drain` begins the end."""

    def __init__(self, assistant: Assistant, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._assistant = assistant
        self._settings = settings
        self._clock = clock
        self._created = int(clock())
        self._draining = False
        self._converting = asyncio.Semaphore(settings.conversions_at_once)
        self.metrics = Metrics(settings.model, settings.metrics_prefix)
        self.worker = Worker(assistant, self.metrics, max_open=settings.max_open)
        self.app = self._application()

    def drain(self) -> None:
        """Refuses new work from now on; what runs goes on."""
        self._draining = True

    def _application(self) -> ASGIApp:
        routes = [
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/version", lambda _: _json({"version": __version__})),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/tokenizer_info", self._tokenizer_info),
            Route("/v1/chat/completions", _Endpoint(self._chat), methods=["POST"]),
            Route("/v1/completions", _Endpoint(self._complete), methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            Refusal: lambda _, error: _refused(error),
            PromptError: lambda _, error: _refused(convert.refusal_of(error)),
            CapacityError: lambda _, error: _refused(_busy(str(error), 429)),
            HTTPException: lambda _, error: _refused(Refusal(error.status_code, error.detail, headers=error.headers)),
            Exception: lambda _, error: _refused(_fault()),
        }
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        return _Log(_Keys(app, self._settings.keys))

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.worker.start()
        try:
            yield
        finally:
            await self.worker.stop()

    # Small things -----------------------------------------------------------------------------------------------------

    async def _health(self, _: Request) -> Response:
        alive = self.worker.is_alive
        return _json({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)

    async def _ready(self, _: Request) -> Response:
        ready = self.worker.is_alive and not self._draining
        return _json({"status": "ready" if ready else "draining"}, 200 if ready else 503)

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _models(self, _: Request) -> Response:
        return _json(schema.ModelList(object="list", data=[self._card()]))

    async def _model(self, request: Request) -> Response:
        self._require_model(request.path_params["model"])
        return _json(self._card())

    async def _tokenize(self, request: Request) -> Response:
        asked = await self._read(request, schema.TokenizeRequest)
        async with self._converting:
            ids = await asyncio.to_thread(convert.tokenized, self._assistant, asked, self._settings.limits)
        names = [stream.show(self._assistant.tokenizer, id_).token for id_ in ids] if asked.return_token_strs else None
        return _json(
            schema.Tokens(
                count=len(ids), max_model_len=self._context_len, tokens=ids, token_strs=names or msgspec.UNSET
            )
        )

    async def _detokenize(self, request: Request) -> Response:
        asked = await self._read(request, schema.DetokenizeRequest)
        return _json(schema.Text(prompt=self._assistant.tokenizer.decode(asked.tokens)))

    async def _tokenizer_info(self, _: Request) -> Response:
        special = self._assistant.tokenizer.special
        ends = [name for name in (END_OF_TEXT, END_OF_TURN) if name in special]
        return _json(
            schema.TokenizerInfo(
                bos_token=BEGIN_OF_TEXT if BEGIN_OF_TEXT in special else None,
                eos_token=ends[0] if ends else None,
                pad_token=PAD if PAD in special else None,
                vocab_size=self._assistant.tokenizer.vocab_size,
                max_model_len=self._context_len,
                chat_template=None,
            )
        )

    @property
    def _context_len(self) -> int:
        return self._assistant.config.text.context_len

    def _card(self) -> schema.ModelCard:
        return schema.ModelCard(
            id=self._settings.model,
            object="model",
            created=self._created,
            owned_by="puna",
            max_model_len=self._context_len,
        )

    def _require_model(self, name: str | None) -> None:
        if name not in (None, self._settings.model):
            message = f"model {str(name)[:200]!r} does not exist: this server has {self._settings.model!r}"
            raise Refusal(404, message, param="model", code="model_not_found")

    async def _read(self, request: Request, kind: type[_T]) -> _T:
        """Returns a request's body as `kind`. Raises Refusal when it is too long, too slow or not what it should be."""
        if self._draining:
            raise _busy("the server is going down: try another one", 503)
        body = await self._body(request)
        try:
            asked = msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            place = _PLACE.search(str(error))
            unknown = re.search(r"unknown field `([^`]*)`", str(error))
            named = ".".join(filter(None, (place[1] if place else "", unknown[1] if unknown else "")))
            remedy = ": it is not known here, leave it out" if unknown else ""
            raise Refusal(400, f"{error}{remedy}", param=named or None) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, f"the body is not valid JSON: {error}") from error
        self._require_model(getattr(asked, "model", None))
        return asked

    async def _body(self, request: Request) -> bytes:
        most = self._settings.max_body_bytes
        too_long = Refusal(413, f"the body has more than {most} bytes: send less", headers={"Connection": "close"})
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_long
        except TimeoutError as error:
            raise Refusal(408, "the body took too long to arrive: try again") from error
        return bytes(body)

    # Making text ------------------------------------------------------------------------------------------------------

    async def _chat(self, request: Request, send: Send) -> None:
        asked = await self._read(request, schema.ChatRequest)
        limits = self._settings.limits
        with self.worker.place(convert.n_choices(asked, limits)):
            await self._unless_gone(request, self._answer_chat(asked, send))

    async def _answer_chat(self, asked: schema.ChatRequest, send: Send) -> None:
        async with self._converting:
            job = await asyncio.to_thread(convert.chat_job, self._assistant, asked, self._settings.limits)
        growing = [
            stream.GrowingChat(
                index,
                self._assistant.tokenizer,
                job.tools,
                most_calls=1 if asked.parallel_tool_calls is False else None,
                new_call_id=lambda: _new_id("call_"),
            )
            for index in range(job.n)
        ]
        head = self._head("chatcmpl-", "chat.completion")
        async with self.worker.answer([(job.prompt, job.options)]) as answers:
            sheet = _Sheet(head, len(job.prompt.ids), asked, [each.open() for each in growing])
            push = [[each.push for each in growing]]
            if asked.stream:
                await self._stream(send, sheet, answers, push)
            else:
                choices = await _whole(sheet, answers, push, stream.whole_chat)
                await self._send(send, schema.ChatCompletion(**head, choices=choices, usage=sheet.usage()))

    async def _complete(self, request: Request, send: Send) -> None:
        asked = await self._read(request, schema.CompletionRequest)
        with self.worker.place(convert.n_choices(asked, self._settings.limits)):
            await self._unless_gone(request, self._answer_completion(asked, send))

    async def _answer_completion(self, asked: schema.CompletionRequest, send: Send) -> None:
        async with self._converting:
            jobs = await asyncio.to_thread(convert.completion_jobs, self._assistant, asked, self._settings.limits)
        n = 1 if asked.n is None else asked.n
        growing = [[self._growing_completion(asked, i * n + j) for j in range(n)] for i in range(len(jobs))]
        first = [each for i, job in enumerate(jobs) for each in await self._echoes(asked, job, growing[i])]
        head = self._head("cmpl-", "text_completion")
        prompts = [(job.prompt, job.options) for job in jobs if job.n]
        async with self.worker.answer(prompts) as answers:
            sheet = _Sheet(head, sum(len(job.prompt.ids) for job in jobs), asked, first)
            push = [[each.push for each in row] for row in growing]
            if asked.stream:
                await self._stream(send, sheet, answers, push)
            else:
                choices = await _whole(sheet, answers, push, stream.whole_completion)
                await self._send(send, schema.Completion(**head, choices=choices, usage=sheet.usage()))

    def _growing_completion(self, asked: schema.CompletionRequest, index: int) -> stream.GrowingCompletion:
        return stream.GrowingCompletion(index, self._assistant.tokenizer, wants_logprobs=asked.logprobs is not None)

    async def _echoes(
        self, asked: schema.CompletionRequest, job: Job, growing: Sequence[stream.GrowingCompletion]
    ) -> list[schema.CompletionChoice]:
        """Returns the first chunk of each choice of a prompt: the prompt itself, where that is wanted."""
        if not asked.echo:
            return []
        wanted = asked.logprobs is not None
        expected = await self.worker.prompt_logprobs(job.prompt, asked.logprobs or 0) if wanted else []
        finish = None if job.n else "length"
        return [each.echo(job.text, job.prompt.ids, expected, finish) for each in growing]

    def _head(self, prefix: str, kind: str) -> dict[str, Any]:
        """Returns what all chunks of an answer begin with."""
        return {
            "id": _new_id(prefix),
            "object": kind,
            "created": int(self._clock()),
            "model": self._settings.model,
        }

    async def _unless_gone(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` to its end, or drops it as soon as the client has left."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_left(request.receive))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.metrics.disconnects.inc()
                return
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
        working.result()

    async def _send(self, send: Send, answer: msgspec.Struct) -> None:
        response = _json(answer)
        await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body})

    async def _stream(self, send: Send, sheet: "_Sheet", answers: Answers, push: "_Push") -> None:
        """Sends events as pieces come. What fails after the first one is told as an event, the status being sent."""
        await send({"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS})
        try:
            await _send_part(send, b"".join(map(sheet.event, sheet.first)))
            while not answers.is_over:
                try:
                    async with asyncio.timeout(self._settings.ping_seconds):
                        pieces = await answers.next()
                except TimeoutError:
                    await _send_part(send, stream.PING)
                    continue
                chunks = [chunk for index, piece in pieces if (chunk := sheet.push(push, index, piece)) is not None]
                await _send_part(send, b"".join(map(sheet.event, chunks)))
            await _send_part(send, sheet.last_event() + stream.DONE)
        except Exception:  # the status is sent, so an event must say it
            _log.exception("a stream failed")
            await _send_part(send, stream.event(schema.Error(error=_fault().body)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_Push = Sequence[Sequence[Callable[[Any], Any]]]  # by prompt and sample: a piece in, a chunk or None out

_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects events would make a stream pointless
]


class _Sheet:
    """What one answer's events have in common, and its count of tokens."""

    def __init__(
        self,
        head: dict[str, Any],
        prompt_tokens: int,
        asked: schema.MakingRequest,
        first: Sequence[Any],
    ) -> None:
        options = asked.stream_options or schema.StreamOptions()
        self.first = list(first)
        self._head = head | ({"object": "chat.completion.chunk"} if head["object"] == "chat.completion" else {})
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._cached_tokens: dict[int, int] = {}  # by prompt
        self._at_end = options.include_usage
        self._always = options.include_usage and options.continuous_usage_stats

    def push(self, push: _Push, index: int, piece: Any) -> Any:
        """Counts a piece and returns the chunk that it makes, if any."""
        self._completion_tokens += piece.token is not None
        self._cached_tokens[index] = max(piece.n_cached, self._cached_tokens.get(index, 0))
        return push[index][piece.sample](piece)

    def usage(self) -> schema.Usage:
        """Returns the counts so far."""
        return stream.usage(self._prompt_tokens, self._completion_tokens, sum(self._cached_tokens.values()))

    def event(self, choice: Any) -> bytes:
        """Returns the event of one chunk. Where usage is wanted at the end only, the others hold null, as OpenAI's."""
        usage = self.usage() if self._always else None if self._at_end else msgspec.UNSET
        return stream.event(schema.Chunk(**self._head, choices=[choice], usage=usage))

    def last_event(self) -> bytes:
        """Returns the event with the usage and no choices, empty where it is not wanted."""
        if not self._at_end:
            return b""
        return stream.event(schema.Chunk(**self._head, choices=[], usage=self.usage()))


async def _whole(sheet: _Sheet, answers: Answers, push: _Push, join: Callable[[Sequence[Any]], _T]) -> list[_T]:
    """Waits for all answers and returns the choices in order, each joined from its chunks."""
    chunks = list(sheet.first)
    while not answers.is_over:
        for index, piece in await answers.next():
            chunk = sheet.push(push, index, piece)
            if chunk is not None:
                chunks.append(chunk)
    of_choice: dict[int, list[Any]] = {}
    for chunk in chunks:
        of_choice.setdefault(chunk.index, []).append(chunk)
    return [join(of_choice[index]) for index in sorted(of_choice)]


class _Endpoint:
    """An endpoint that sends its answer itself, for as long as it likes."""

    def __init__(self, act: Callable[[Request, Send], Coroutine[Any, Any, None]]) -> None:
        self._act = act

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._act(Request(scope, receive, send), send)
        except ClientDisconnect:  # while the body was read: nobody waits for an answer
            return
        except (Refusal, PromptError, CapacityError):
            raise
        except Exception as error:  # told here, since what reaches the HTTP server closes the connection
            _log.exception("a request failed")
            raise _fault() from error


class _Keys:
    """Lets only those in who have a key. Comparing takes the same time for every wrong key."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS and not self._opens(scope):
            message = "no API key that is valid here: send the header Authorization: Bearer KEY"
            headers = {"WWW-Authenticate": "Bearer"}
            refusal = Refusal(401, message, code="invalid_api_key", kind=_KINDS[401], headers=headers)
            await _refused(refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _opens(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, each) for each in self._digests]  # all, so that order does not show
        return kind.lower() == b"bearer" and any(matches)


class _Log:
    """Writes one line of JSON per request: what was asked, how it ended, how long it took."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.monotonic(), 0

        async def watched(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = round(time.monotonic() - begin, 4)
            line = {"method": scope["method"], "path": scope["path"][:200], "status": status, "seconds": seconds}
            _log.info(json.dumps(line))


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_part(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _json(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _refused(refusal: Refusal) -> Response:
    body = msgspec.structs.replace(refusal.body, type=_KINDS.get(refusal.status, refusal.body.type))
    response = _json(schema.Error(error=body), refusal.status)
    response.headers.update(refusal.headers)
    return response


def _busy(message: str, status: int) -> Refusal:
    return Refusal(status, message, code="overloaded", kind="overloaded_error", headers={"Retry-After": "1"})


def _fault() -> Refusal:
    return Refusal(500, "something failed here, not in the request: the server's log says what", kind="server_error")


def _new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex


# Running ----------------------------------------------------------------------------------------------------------


class _Uvicorn(uvicorn.Server):
    """Ends with exit code 0 after the first signal once all is finished, and at once after the second."""

    def __init__(self, config: uvicorn.Config, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_drain = on_drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_drain()
        self.force_exit = self.should_exit
        self.should_exit = True


def run(
    assistant: Assistant, settings: Settings, *, host: str, port: int, drain_seconds: int, say: Callable[[str], None]
) -> None:
    """Serves until SIGINT or SIGTERM, then finishes what runs for at most `drain_seconds`.

    `say` gets the address that clients use, once connections to it are taken. Raises ConfigError when the address is
    not free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}; choose another, or 0 for any free port") from error
    server = Server(assistant, settings)
    config = uvicorn.Config(
        server.app,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    say(f"http://{shown}:{listening.getsockname()[1]}/v1")
    _Uvicorn(config, server.drain).run(sockets=[listening])
