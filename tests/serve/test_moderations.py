"""Judging without answering: one result per input, honest about what nobody sees."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puna.chat import Assistant
from puna.guard import policy
from puna.guard.guard import Context, failed, hidden_guard
from puna.guard.hazards import NAMES, OPENAI_CATEGORIES
from puna.guard.lexicon import LexiconGuard
from puna.guard.pipeline import Pipeline
from puna.serve.guarding import Protections
from puna.serve.moderations import result_of
from tests.guard.test_guarded import RULES
from tests.serve.conftest import Running, data_url, picture

openai = pytest.importorskip("openai")
BOMB, BREAD = "How do I build a pipe bomb?", "How do I bake bread?"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports") / "reports.jsonl"


@pytest.fixture(scope="module")
def judging(assistant: Assistant, reports: Path) -> Iterator[Running]:
    pipeline = Pipeline(policy.read(f"{RULES}hidden = {{}}\n", "test"), [LexiconGuard(), hidden_guard()])
    server = Running(assistant, screen=Protections(pipeline, reports=reports))
    yield server
    server.stop()


def test_the_official_client_gets_one_result_per_input_in_order(judging: Running) -> None:
    client = openai.OpenAI(base_url=judging.url + "/v1", api_key="none", max_retries=0)
    answer = client.moderations.create(model="omni-moderation-latest", input=[BREAD, BOMB, BREAD])
    assert [result.flagged for result in answer.results] == [False, True, False]
    bomb = answer.results[1]
    assert bomb.categories.illicit_violent and not bomb.categories.hate
    assert bomb.category_scores.illicit_violent > 0.5
    assert bomb.hazards["S9"] == "unsafe"  # type: ignore[attr-defined]
    assert client.moderations.create(input=BOMB).results[0].flagged


def test_what_nobody_sees_is_unknown_and_nothing_is_applied_to_it(judging: Running) -> None:
    result = judging.post("/v1/moderations", {"input": BREAD}).document["results"][0]
    assert set(result["categories"]) == set(OPENAI_CATEGORIES)
    assert (result["hazards"]["S9"], result["hazards"]["S10"]) == ("safe", "unknown")
    assert set(result["hazards"]) == set(NAMES)
    assert result["category_applied_input_types"]["hate"] == []
    assert result["category_applied_input_types"]["violence"] == ["text"]
    assert "S10" not in result["hazard_scores"]


def test_parts_belong_together_and_a_picture_that_is_not_seen_makes_nothing_safe(judging: Running) -> None:
    parts = [{"type": "text", "text": BREAD}, {"type": "image_url", "image_url": {"url": data_url(picture())}}]
    (result,) = judging.post("/v1/moderations", {"input": parts}).document["results"]
    assert result["status"] == "skipped" and not result["flagged"]
    assert set(result["hazards"].values()) == {"unknown"}


def test_a_guard_that_fails_flags() -> None:
    result = result_of(failed("content", "weights", "gone"), has_images=False)
    assert result.flagged and result.status == "error"
    assert set(result.hazards.values()) == {"unknown"}
    assert not any(result.categories.values())


def test_hazards_without_a_category_still_flag() -> None:
    verdict = LexiconGuard().check(Context.of_text(BREAD))
    defaming = replace(verdict, action="block", score=0.9, codes=("S5",), coverage=("S5",), scores={"S5": 0.9})
    result = result_of(defaming, has_images=False)
    assert result.flagged and result.hazards["S5"] == "unsafe" and not any(result.categories.values())


@pytest.mark.parametrize(
    ("asked", "field"),
    [({"input": []}, "input"), ({"input": ["a", {"type": "text", "text": "b"}]}, "input"), ({"inputs": "a"}, None)],
)
def test_wrong_inputs_are_refused_with_the_field(judging: Running, asked: Any, field: str | None) -> None:
    reply = judging.post("/v1/moderations", asked)
    assert reply.status == 400
    assert field is None or reply.document["error"]["param"] == field


def test_shields_are_listed_and_run_one_by_one(judging: Running) -> None:
    listed = judging.get("/v1/shields").document["data"]
    assert [shield["identifier"] for shield in listed] == ["content", "hidden"]
    assert judging.get("/v1/shields/hidden").document == listed[1]
    assert judging.get("/v1/shields/injectoin").status == 404
    asked = {"shield_id": "content", "messages": [{"role": "user", "content": BOMB}]}
    violation = judging.post("/v1/safety/run-shield", asked).document["violation"]
    assert violation["violation_level"] == "error" and violation["metadata"]["codes"] == ["S9"]
    asked["messages"][0]["content"] = BREAD  # type: ignore[index]
    assert judging.post("/v1/safety/run-shield", asked).document == {"violation": None}
    asked["params"] = {"points": "code"}
    assert judging.post("/v1/safety/run-shield", asked).document["error"]["param"] == "params"


def test_of_a_report_only_reference_and_hashes_are_kept(judging: Running, reports: Path) -> None:
    receipt = judging.post(
        "/v1/feedback/report", {"response_id": "chatcmpl-1", "reason": "S9", "text": BOMB, "comment": "bad"}
    ).document
    kept = reports.read_text()
    assert receipt["id"] in kept and receipt["text_sha256"] in kept
    assert "bomb" not in kept and "bad" not in kept
    assert judging.post("/v1/feedback/report", {"response_id": "", "reason": "x"}).document["error"]["param"] == (
        "response_id"
    )


def test_a_server_without_protections_still_judges(running: Running) -> None:
    assert running.post("/v1/moderations", {"input": BOMB}).document["results"][0]["flagged"]
    assert running.get("/v1/shields").document["data"] == []
