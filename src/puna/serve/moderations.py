"""Judging without answering: /v1/moderations as OpenAI's, shields as Llama Stack's, and reports of bad answers.

In: texts and pictures to be judged; a reference to an answer. Out: one result per input, in order, with OpenAI's
categories and the hazard codes behind them; verdicts of single guards; a receipt. A category that no guard here can see
has no input types applied to it, and its hazards are "unknown", never safe. Of a report only its reference and hashes
are kept. Not here: guards, policies (`guard`).

Source of the shapes: OpenAI's API reference, moderations; llama-stack `apis/shields` and `apis/safety`.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Send

from puna.guard.guard import Context, Point, judge
from puna.guard.hazards import NAMES, OPENAI, OPENAI_CATEGORIES, to_openai
from puna.guard.lexicon import LexiconGuard
from puna.guard.pipeline import Pipeline
from puna.guard.ruling import Finding
from puna.guard.verdict import Verdict
from puna.prompt.message import Message
from puna.serve import convert, schema
from puna.serve.endpoint import Endpoint
from puna.serve.guarding import Protections
from puna.serve.refusal import Refusal, require
from puna.serve.sending import json_response, send_document
from puna.serve.state import State, new_id

OF_PICTURES = frozenset(
    {"self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "violence", "violence/graphic"}
)
"""The categories that OpenAI's own moderation applies to pictures."""

LEVELS = {"allow": "info", "flag": "warn", "rewrite": "warn", "escalate": "error", "block": "error"}
POINTS: Mapping[str, Point] = {"user": "user_input", "assistant": "assistant_output", "tool": "tool_result"}

_log = logging.getLogger("puna.guard")


class ModerationRequest(schema.Received, kw_only=True, frozen=True):
    """POST /v1/moderations. Strings are judged one by one, parts belong together. `model` may say anything."""

    input: str | list[str | dict[str, Any]]
    asked_model: str | None = msgspec.field(default=None, name="model")


class ModerationResult(msgspec.Struct, kw_only=True, frozen=True):
    """The judgement of one input. What follows `category_applied_input_types` is ours, beside OpenAI's shape."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]
    hazards: dict[str, str]  # of each code: "unsafe", "safe" or "unknown"
    hazard_scores: dict[str, float]
    backend: str
    status: str


class Moderation(msgspec.Struct, kw_only=True, frozen=True):
    """The answer to a moderation request: one result per input."""

    id: str
    model: str
    results: list[ModerationResult]


class ShieldRequest(schema.Received, kw_only=True, frozen=True):
    """POST /v1/safety/run-shield. `params` may name the `point` that the last message stands at."""

    shield_id: str
    messages: list[dict[str, Any]]
    params: dict[str, Any] | None = None


class Violation(msgspec.Struct, kw_only=True, frozen=True):
    """What a shield found."""

    violation_level: str
    user_message: str
    metadata: dict[str, Any]


class ShieldAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of a shield: null where nothing was found."""

    violation: Violation | None


class Report(schema.Received, kw_only=True, frozen=True):
    """POST /v1/feedback/report: an answer that should not have been, or a refusal that should not."""

    response_id: str
    reason: str  # such as a hazard code, "refusal", "wrong"
    text: str | None = None  # what was said; only its hash is kept
    comment: str | None = None  # likewise


class Receipt(msgspec.Struct, kw_only=True, frozen=True):
    """What was kept of a report."""

    id: str
    created: int
    response_id: str
    reason: str
    text_sha256: str | None
    comment_sha256: str | None


def routes(state: State) -> list[Route]:
    """Returns what judges without answering."""
    return [
        Route("/v1/moderations", Endpoint(state, ModerationRequest, _moderate), methods=["POST"]),
        Route("/v1/shields", partial(_shields, state)),
        Route("/v1/shields/{shield}", partial(_shield, state)),
        Route("/v1/safety/run-shield", Endpoint(state, ShieldRequest, _run_shield), methods=["POST"]),
        Route("/v1/feedback/report", Endpoint(state, Report, _report), methods=["POST"]),
    ]


# Moderations ----------------------------------------------------------------------------------------------------------


async def _moderate(state: State, asked: ModerationRequest, send: Send) -> None:
    inputs = [asked.input] if isinstance(asked.input, str) else asked.input
    most = state.settings.limits.max_choices
    require(0 < len(inputs) <= most, "input", f"holds {len(inputs)} inputs: give 1 to {most}")
    async with state.converting:
        contexts = await asyncio.to_thread(_contexts, state, inputs)
        verdicts = [await asyncio.to_thread(_content_verdict, state, context) for context in contexts]
    results = [
        result_of(verdict, has_images=bool(context.messages[-1].images))
        for verdict, context in zip(verdicts, contexts, strict=True)
    ]
    await send_document(send, Moderation(id=new_id("modr-"), model=verdicts[0].guard, results=results))


def _contexts(state: State, inputs: Sequence[str | dict[str, Any]]) -> list[Context]:
    """Returns what is judged: each string by itself, or all parts together."""
    are_parts = [isinstance(each, dict) for each in inputs]
    if any(are_parts) and not all(are_parts):
        raise Refusal(400, "input mixes strings and parts: give one kind", param="input")
    contents = [list(inputs)] if any(are_parts) else inputs
    documents = [{"role": "user", "content": content} for content in contents]
    messages = convert.read_messages(documents, state.settings.limits)
    return [Context(point="user_input", messages=(message,)) for message in messages]


def _content_verdict(state: State, context: Context) -> Verdict:
    pipeline = pipeline_of(state)
    if pipeline is not None and "content" in pipeline.policy.guards:
        return pipeline.judge_alone("content", context).verdict
    return judge(LexiconGuard(), context)


def result_of(verdict: Verdict, *, has_images: bool) -> ModerationResult:
    """Returns a verdict in OpenAI's categories. What could not be judged is flagged: nobody has called it safe."""
    is_unsafe = verdict.action != "allow" or verdict.status == "error"
    codes = [code for code in verdict.codes if code in NAMES] if verdict.action != "allow" else []
    seen = set(verdict.coverage) if verdict.status != "error" else set()
    scores = {code: verdict.scores.get(code, verdict.score if code in codes else 0.0) for code in seen}
    hazards = {
        code: "unsafe" if code in codes else "safe" if code in seen and verdict.status == "ok" else "unknown"
        for code in NAMES
    }
    of_category = {each: [code for code in seen if each in OPENAI.get(code, ())] for each in OPENAI_CATEGORIES}
    saw_images = has_images and verdict.status == "ok"
    return ModerationResult(
        flagged=is_unsafe,
        categories=to_openai(codes),
        category_scores={
            each: max((scores[code] for code in known), default=0.0) for each, known in of_category.items()
        },
        category_applied_input_types={
            each: (["text", "image"] if saw_images and each in OF_PICTURES else ["text"]) if known else []
            for each, known in of_category.items()
        },
        hazards=hazards,
        hazard_scores={code: round(scores[code], 6) for code in NAMES if code in scores},
        backend=verdict.backend,
        status=verdict.status,
    )


def pipeline_of(state: State) -> Pipeline | None:
    """Returns the pipeline that protects this server, None where there is none."""
    screen = state.settings.screen
    return screen.pipeline if isinstance(screen, Protections) else None


# Shields --------------------------------------------------------------------------------------------------------------


async def _shields(state: State, _: Request) -> Response:
    return json_response({"data": list(_known_shields(state).values())})


async def _shield(state: State, request: Request) -> Response:
    return json_response(_require_shield(state, request.path_params["shield"]))


def _known_shields(state: State) -> dict[str, dict[str, Any]]:
    pipeline = pipeline_of(state)
    return {
        health.guard: {
            "identifier": health.guard,
            "type": "shield",
            "provider_id": health.backend,
            "params": {"status": "ok" if health.ok else "unavailable", "unknown": list(health.unknown)},
        }
        for health in ([] if pipeline is None else pipeline.health)
    }


def _require_shield(state: State, name: str) -> dict[str, Any]:
    known = _known_shields(state)
    if name not in known:
        listed = ", ".join(known) or "none: its protections are off"
        raise Refusal(404, f"shield {name[:200]!r} does not exist: this server has {listed}", param="shield_id")
    return known[name]


async def _run_shield(state: State, asked: ShieldRequest, send: Send) -> None:
    _require_shield(state, asked.shield_id)
    async with state.converting:
        messages = await asyncio.to_thread(convert.read_messages, asked.messages, state.settings.limits)
        finding = await asyncio.to_thread(_find, state, asked, messages)
    verdict = finding.verdict
    if verdict.action == "allow" and verdict.status == "ok":
        await send_document(send, ShieldAnswer(violation=None))
        return
    level = LEVELS["block" if verdict.status == "error" else verdict.action]
    pipeline = pipeline_of(state)
    message = "" if pipeline is None else pipeline.policy.message
    await send_document(
        send,
        ShieldAnswer(violation=Violation(violation_level=level, user_message=message, metadata=finding.to_dict())),
    )


def _find(state: State, asked: ShieldRequest, messages: Sequence[Message]) -> Finding:
    params = dict(asked.params or {})
    point = params.pop("point", POINTS.get(messages[-1].role, "system"))
    if params or point not in (*POINTS.values(), "retrieved", "system", "code"):
        wrong = next(iter(params), "point")
        raise Refusal(
            400, f"params.{wrong}: give point, one of {', '.join(POINTS.values())}, retrieved", param="params"
        )
    pipeline = pipeline_of(state)
    assert pipeline is not None, "there is a shield"
    return pipeline.judge_alone(asked.shield_id, Context(point=point, messages=tuple(messages)))


# Reports --------------------------------------------------------------------------------------------------------------


async def _report(state: State, asked: Report, send: Send) -> None:
    for name, most in (("response_id", 200), ("reason", 100)):
        if not 0 < len(getattr(asked, name)) <= most:
            raise Refusal(400, f"{name} has {len(getattr(asked, name))} characters: give 1 to {most}", param=name)
    receipt = Receipt(
        id=new_id("report-"),
        created=int(state.clock()),
        response_id=asked.response_id,
        reason=asked.reason,
        text_sha256=_sha256(asked.text),
        comment_sha256=_sha256(asked.comment),
    )
    line = json.dumps(msgspec.to_builtins(receipt))
    _log.warning("report %s", line)
    screen = state.settings.screen
    if isinstance(screen, Protections) and screen.reports is not None:
        with screen.reports.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    await send_document(send, receipt)


def _sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
