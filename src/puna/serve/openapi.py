"""GET /openapi.json: what can be asked here and what is answered, made from the values that travel.

In: what the server is. Out: an OpenAPI 3.1 document. Where a field's type is looser than what is read in the end,
`openapi_shapes` says more. A request that fits the document and is refused all the same needs what no schema can say:
more context than there is, a picture that is none, a text that was to be JSON.
Not here: routes (each file has its own), the values.

Source: OpenAPI 3.1.1. It says nothing of event streams: their schema is that of one event, as readers of 3.1 take it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from puna import __version__
from puna.serve import openapi_shapes
from puna.serve.openapi_operations import EVENTS, OPERATIONS, PAGE, Operation
from puna.serve.openapi_ranges import ranges
from puna.serve.sending import json_response
from puna.serve.state import State

JSON = "application/json"

_REF = "#/components/schemas/{name}"
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def routes(state: State) -> list[Route]:
    """Returns this route."""

    async def answer(_: Request) -> Response:
        return json_response(document(state))

    return [Route("/openapi.json", answer)]


def document(state: State) -> dict[str, Any]:
    """Returns the document of a server."""
    operations = OPERATIONS + (PAGE if state.settings.page else ())
    kinds = [kind for each in operations for kind in _kinds(each)] + list(openapi_shapes.SHAPES.values())
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    of_kind = _Schemas(kinds, list(schemas))
    _loosen(components)
    _tighten(components, of_kind, state)
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method] = _operation(each, of_kind, state)
    security = {"securitySchemes": _KEYS} if state.settings.keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "puna", "version": __version__},
        "paths": paths,
        "components": {"schemas": components} | security,
    }


def _loosen(components: dict[str, Any]) -> None:
    """Allows what is read although the described values do not have it."""
    empty = {"enum": openapi_shapes.EMPTY}
    for name in (each.__name__ for each in openapi_shapes.Described.__subclasses__()):
        components[name]["additionalProperties"] = empty
    for name, field in openapi_shapes.EMPTY_TOO:
        components[name]["properties"][field]["anyOf"].append(empty)
    for name in openapi_shapes.UNTAGGED:
        components[name]["required"].remove("type")


def _tighten(components: dict[str, Any], schemas: "_Schemas", state: State) -> None:
    """Says of fields what their types do not."""
    held, requests = ranges(state), {each.request.__name__ for each in OPERATIONS if each.request}
    for name, component in components.items():
        fields = component.get("properties", {})
        for field in fields:
            kind = openapi_shapes.SHAPES.get((name, field))
            shape = fields[field] if kind is None else schemas[kind]
            otherwise = held.get(field, {}) if name in requests else {}
            fields[field] = _held(shape, held.get(f"{name}.{field}", otherwise))


class _Schemas:
    """JSON schemas of kinds, which need not be hashable."""

    def __init__(self, kinds: Sequence[Any], schemas: Sequence[dict[str, Any]]) -> None:
        self._of_kind = list(zip(kinds, schemas, strict=True))

    def __getitem__(self, kind: Any) -> dict[str, Any]:
        return next(schema for known, schema in self._of_kind if known == kind)


def _kinds(operation: Operation) -> Iterator[Any]:
    for kind in (operation.request, operation.answer, *operation.events, operation.error):
        if kind is not None and not isinstance(kind, str):
            yield kind


def _operation(operation: Operation, schemas: _Schemas, state: State) -> dict[str, Any]:
    answer = operation.answer
    content: dict[str, Any] = {answer: {}} if isinstance(answer, str) else {JSON: {"schema": schemas[answer]}}
    if operation.events:
        data = {"anyOf": [schemas[kind] for kind in operation.events]}
        content[EVENTS] = {"schema": _event(data, operation.done)}
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for status in operation.others:
        responses[str(status)] = {"description": "Not so.", "content": content}
    for status, description in _errors(operation, bool(state.settings.keys)).items():
        schema_of_error = schemas[operation.error]
        responses[str(status)] = {"description": description, "content": {JSON: {"schema": schema_of_error}}}
    made: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.request is not None:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas[operation.request]}}}
    if found := re.findall(r"{(\w+)}", operation.path):
        made["parameters"] = [_in_path(name, state) for name in found]
    if state.settings.keys and not operation.is_open:
        made["security"] = [{name: []} for name in _KEYS]
    return made


def _in_path(name: str, state: State) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "minLength": 1}
    if name == "model":
        schema = {"enum": [*state.models]}
    elif name == "name":
        schema = {"enum": sorted(file.name for file in (files("puna.serve") / "page").iterdir())}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _errors(operation: Operation, needs_key: bool) -> dict[int, str]:
    """Returns what else may happen, by status."""
    errors = {500: "Something failed here, not in the request."}
    if needs_key and not operation.is_open:
        errors[401] = "No key that is valid here."
    if operation.request is not None or "{" in operation.path:
        errors[404] = "Not here: another model, for one."
    if operation.request is not None:
        errors |= {
            400: "Something in the request that is not understood, or not done here.",
            408: "The body took too long.",
            413: "The body is too long.",
            429: "Too much is going on: come back after the seconds in Retry-After.",
            503: "The server is going down.",
            504: "The answer took longer than is allowed here.",
        }
    return dict(sorted(errors.items()))


def _event(data: Mapping[str, Any], done: str | None) -> dict[str, Any]:
    """Returns the schema of an event, whose data is JSON but for the last one's where `done` says so."""
    text = {"type": "string", "contentMediaType": JSON, "contentSchema": data}
    return {
        "type": "object",
        "properties": {
            "event": {"type": "string"},
            "data": text if done is None else {"anyOf": [{"const": done}, text]},
        },
        "required": ["data"],
    }


_OF_TYPE = {
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum"),
    "string": ("minLength", "maxLength", "pattern"),
    "array": ("minItems", "maxItems", "items"),
    "object": ("propertyNames", "additionalProperties", "maxProperties"),
}


def _held(shape: dict[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a schema held to more: each of its alternatives to what concerns its type, or all of it to a choice."""
    if "enum" in held or "anyOf" in held:
        return dict(held)
    if "anyOf" in shape:
        return shape | {"anyOf": [_held(each, held) for each in shape["anyOf"]]}
    concerned = _OF_TYPE.get(shape.get("type", ""), ())
    return shape | {name: value for name, value in held.items() if name in concerned}
