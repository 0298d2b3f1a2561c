"""POST /v1/chat/completions: OpenAI's chat, whole or as a stream.

In: a chat request. Out: its answer. The other APIs have files like this one beside it.
Not here: what the request means (`convert`), the chunks (`stream`), HTTP (`endpoint`).
"""

from collections.abc import AsyncIterator

from msgspec import UNSET
from starlette.routing import Route
from starlette.types import Send

from puna.serve import making, schema
from puna.serve.endpoint import Endpoint, failed_event
from puna.serve.making import ChatMaking
from puna.serve.sending import send_document, send_events
from puna.serve.state import State
from puna.serve.stream import Events


def routes(state: State) -> list[Route]:
    """Returns the routes of chat."""
    return [Route("/v1/chat/completions", Endpoint(state, schema.ChatRequest, _answer), methods=["POST"])]


async def _answer(state: State, asked: schema.ChatRequest, send: Send) -> None:
    kind = "chat.completion.chunk" if asked.stream else "chat.completion"
    head = state.head("chatcmpl-", kind, asked.model, asked.request_id)
    async with making.chat(state, asked) as made:
        ids = made.jobs[0].prompt.ids if asked.return_token_ids else UNSET
        if asked.stream:
            events = _events(made, Events(head, asked.stream_options, ids))
            await send_events(state.watch, send, events, failed=failed_event)
        else:
            choices = await made.whole()
            answer = schema.ChatCompletion(**head, choices=choices, usage=made.usage(), prompt_token_ids=ids)
            await send_document(send, answer)


async def _events(made: ChatMaking, events: Events) -> AsyncIterator[bytes]:
    async for chunks in made.chunks():
        yield events.of(chunks, made.usage)
    yield events.end(made.usage())
