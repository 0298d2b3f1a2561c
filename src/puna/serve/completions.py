"""POST /v1/completions: plain continuation of texts or ids, with echoes and log-probabilities as evaluations need them.

In: a completion request. Out: its answer. Not here: what the request means (`convert`), the chunks (`stream`), HTTP.
"""

from collections.abc import AsyncIterator

from starlette.routing import Route
from starlette.types import Send

from puna.serve import making, schema
from puna.serve.endpoint import Endpoint, failed_event
from puna.serve.making import CompletionMaking
from puna.serve.sending import send_document, send_events
from puna.serve.state import State
from puna.serve.stream import Events


def routes(state: State) -> list[Route]:
    """Returns the routes of plain completion."""
    return [Route("/v1/completions", Endpoint(state, schema.CompletionRequest, _answer), methods=["POST"])]


async def _answer(state: State, asked: schema.CompletionRequest, send: Send) -> None:
    head = state.head("cmpl-", "text_completion", asked.model, asked.request_id)
    async with making.completion(state, asked) as made:
        if asked.stream:
            await send_events(state.watch, send, _events(made, Events(head, asked.stream_options)), failed=failed_event)
        else:
            choices = await made.whole()
            await send_document(send, schema.Completion(**head, choices=choices, usage=made.usage()))


async def _events(made: CompletionMaking, events: Events) -> AsyncIterator[bytes]:
    async for chunks in made.chunks():
        yield events.of(chunks, made.usage)
    yield events.end(made.usage())
