"""What a server says of itself: its model, its health, its version, its counts.

Not here: anything that runs the model.
"""

from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from puna import __version__
from puna.serve import schema
from puna.serve.sending import json_response
from puna.serve.state import State


def routes(state: State) -> list[Route]:
    """Returns these routes."""
    return [
        Route("/health", partial(_health, state)),
        Route("/ready", partial(_ready, state)),
        Route("/version", _version),
        Route("/metrics", partial(_metrics, state)),
        Route("/v1/models", partial(_models, state)),
        Route("/v1/models/{model:path}", partial(_model, state)),
    ]


async def _health(state: State, _: Request) -> Response:
    alive = state.worker.is_alive
    return json_response({"status": "ok" if alive else "the model does not run any more"}, 200 if alive else 503)


async def _ready(state: State, _: Request) -> Response:
    screen = state.settings.screen
    guards = {} if screen is None else {"guards": screen.to_dict()}
    if state.is_draining or not state.worker.is_alive:
        return json_response({"status": "draining"} | guards, 503)
    if screen is not None and not screen.is_ready:
        return json_response({"status": "a guard is unavailable, so nothing passes"} | guards, 503)
    return json_response({"status": "ready"} | guards)


async def _version(_: Request) -> Response:
    return json_response({"version": __version__})


async def _metrics(state: State, _: Request) -> Response:
    await state.worker.expert_counts()
    return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _models(state: State, _: Request) -> Response:
    return json_response(schema.ModelList(object="list", data=[_card(state, name) for name in state.models]))


async def _model(state: State, request: Request) -> Response:
    name = request.path_params["model"]
    state.require_model(name)
    return json_response(_card(state, name))


def _card(state: State, name: str) -> schema.ModelCard:
    return schema.ModelCard(
        id=name,
        object="model",
        created=state.created,
        owned_by="puna",
        max_model_len=state.context_len,
        parent=state.settings.model if name in state.settings.adapters else None,
    )
