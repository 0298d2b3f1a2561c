"""The tokenizer over HTTP: /tokenize, /detokenize, /tokenizer_info, as vLLM has them.

Not here: anything that runs the model.
"""

import asyncio
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Send

from puna.prompt.vocab import BEGIN_OF_TEXT, END_OF_TEXT, END_OF_TURN, PAD
from puna.serve import convert, schema, stream
from puna.serve.endpoint import Endpoint
from puna.serve.sending import json_response, send_document
from puna.serve.state import State


def routes(state: State) -> list[Route]:
    """Returns these routes."""
    return [
        Route("/tokenize", Endpoint(state, schema.TokenizeRequest, _tokenize), methods=["POST"]),
        Route("/detokenize", Endpoint(state, schema.DetokenizeRequest, _detokenize), methods=["POST"]),
        Route("/tokenizer_info", partial(_info, state)),
    ]


async def _tokenize(state: State, asked: schema.TokenizeRequest, send: Send) -> None:
    tokenizer = state.prompter.tokenizer
    async with state.converting:
        ids = await asyncio.to_thread(convert.tokenized, state.prompter, asked, state.settings.limits)
    names = [stream.show(tokenizer, id_).token for id_ in ids] if asked.return_token_strs else msgspec.UNSET
    document = schema.Tokens(count=len(ids), max_model_len=state.context_len, tokens=ids, token_strs=names)
    await send_document(send, document)


async def _detokenize(state: State, asked: schema.DetokenizeRequest, send: Send) -> None:
    await send_document(send, schema.Text(prompt=state.prompter.tokenizer.decode(asked.tokens)))


async def _info(state: State, _: Request) -> Response:
    special = state.prompter.tokenizer.special
    ends = [name for name in (END_OF_TEXT, END_OF_TURN) if name in special]
    return json_response(
        schema.TokenizerInfo(
            bos_token=BEGIN_OF_TEXT if BEGIN_OF_TEXT in special else None,
            eos_token=ends[0] if ends else None,
            pad_token=PAD if PAD in special else None,
            vocab_size=state.prompter.tokenizer.vocab_size,
            max_model_len=state.context_len,
            chat_template=None,
        )
    )
