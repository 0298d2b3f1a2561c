import asyncio
import json
from typing import Any

import pytest

from puna.chat import Assistant
from puna.serve.app import Settings
from puna.serve.desk import Desk, Reply
from tests.serve.conftest import MODEL, Running

CHAT = {"model": MODEL, "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}


def ask(assistant: Assistant, *posts: tuple[str, Any]) -> list[Reply]:
    async def together() -> list[Reply]:
        async with Desk(assistant, Settings(model=MODEL)) as desk:
            return await asyncio.gather(*(desk.post(path, json.dumps(body).encode()) for path, body in posts))

    return asyncio.run(together())


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/chat/completions", CHAT),
        (
            "/v1/completions",
            {"model": MODEL, "prompt": "ab", "max_tokens": 4, "temperature": 0, "echo": True, "logprobs": 1},
        ),
        ("/v1/chat/completions", CHAT | {"temperature": 9e9, "top_p": -1}),
        ("/v1/chat/completions", {"model": "another", "messages": []}),
        ("/v1/nothing", {}),
    ],
)
def test_a_desk_answers_as_the_server_does(assistant: Assistant, running: Running, path: str, body: Any) -> None:
    over_http = running.post(path, body)
    (reply,) = ask(assistant, (path, body))
    assert reply.status == over_http.status
    here, there = json.loads(reply.body), over_http.document
    assert here.keys() == there.keys()
    assert [here.get(name) for name in ("choices", "error")] == [there.get(name) for name in ("choices", "error")]


def test_a_post_that_is_cancelled_stops_computing(assistant: Assistant) -> None:
    async def leave() -> None:
        async with Desk(assistant, Settings(model=MODEL, max_open=1)) as desk:
            long = json.dumps(CHAT | {"max_tokens": 2000}).encode()
            posting = asyncio.ensure_future(desk.post("/v1/chat/completions", long))
            await asyncio.sleep(0.05)
            posting.cancel()
            await asyncio.gather(posting, return_exceptions=True)
            assert (await desk.post("/v1/chat/completions", json.dumps(CHAT).encode())).status == 200

    asyncio.run(leave())
