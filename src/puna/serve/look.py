"""The page at /, and the numbers that it shows: what the model is, what the server does now, which experts it uses.

In: the files of `page/`, read once. Out: routes. Everything that the page needs comes from here, so it works without a
network; its policy lets it run no other script, and send nothing elsewhere. The page itself needs no key, since a
browser sends none when it opens one; the numbers need one where all others do.
Not here: the API that the page talks to.

Source: Content Security Policy Level 3; Trusted Types; RFC 9110, section 13 (ETag, If-None-Match).
"""

import asyncio
import hashlib
import importlib.util
import mimetypes
import time
from collections.abc import AsyncIterator
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from puna import __version__
from puna.guard import hazards, persona
from puna.serve.sending import json_response
from puna.serve.state import State

SECONDS_BETWEEN_SAMPLES = 1.0

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",  # pictures that were chosen, before and after they are sent
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # so that no text of a model can ever become markup
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",  # kept, and asked about by its ETag
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def routes(state: State) -> list[Route]:
    """Returns these routes; none where the settings leave the page out."""
    if not state.settings.page:
        return []
    page = _read_page()
    return [
        Route("/", partial(_send_file, page["index.html"])),
        *(Route(f"/page/{name}", partial(_send_file, file)) for name, file in page.items()),
        Route("/look/model", partial(_model, state)),
        Route("/look/live", partial(_live, state)),
        Route("/look/experts", partial(_experts, state)),
    ]


def _read_page() -> dict[str, _File]:
    """Returns the page's files by name."""
    found = {}
    for entry in (files("puna.serve") / "page").iterdir():
        content = entry.read_bytes()
        media_type = mimetypes.guess_type(entry.name)[0] or "application/octet-stream"
        found[entry.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


async def _send_file(file: _File, request: Request) -> Response:
    headers = _HEADERS | {"ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


async def _model(state: State, _: Request) -> Response:
    config, limits = state.prompter.config, state.settings.limits
    vision = config.vision
    return json_response(
        {
            "name": state.settings.model,
            "version": __version__,
            "context_len": state.context_len,
            "moe_layers": sorted(config.text.moe_layers),
            "n_experts": config.text.n_experts,
            "vision": vision
            and {
                "tile_size": vision.tile_size,
                "max_tiles": vision.max_tiles,
                "tokens_per_tile": vision.tokens_per_tile,
            },
            "limits": {
                "max_images": limits.max_images,
                "max_image_bytes": limits.max_image_bytes,
                "max_image_pixels": limits.max_image_pixels,
            },
            "system_prompt": persona.default(state.settings.model),
            "hazards": hazards.NAMES,
            "abilities": {
                "grammars": importlib.util.find_spec("llguidance") is not None,
                "routed_experts": state.worker.tells_routes,
                "guards": state.settings.screen is not None,
            },
        }
    )


async def _experts(state: State, _: Request) -> Response:
    return json_response({"counts": await state.worker.expert_counts()})


async def _live(state: State, _: Request) -> Response:
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_samples(state), media_type="text/event-stream", headers=headers)


async def _samples(state: State) -> AsyncIterator[bytes]:
    """Yields the server's numbers as events, until the client leaves or the server goes down."""
    before, then = state.metrics.totals(), time.monotonic()
    while not state.is_draining:
        totals, now = state.metrics.totals(), time.monotonic()
        seconds = max(now - then, SECONDS_BETWEEN_SAMPLES)
        rates = {name: (totals[name] - before[name]) / seconds for name in ("prompt_tokens", "generation_tokens")}
        yield b"data: " + msgspec.json.encode(_sample(state, rates)) + b"\n\n"
        before, then = totals, now
        await asyncio.sleep(SECONDS_BETWEEN_SAMPLES)


def _sample(state: State, rates: dict[str, float]) -> dict[str, Any]:
    held = state.worker.held
    return {
        "running": held.n_running,
        "waiting": held.n_waiting,
        "kv_use": held.kv_use,
        "read_per_second": rates["prompt_tokens"],
        "generated_per_second": rates["generation_tokens"],
    }
