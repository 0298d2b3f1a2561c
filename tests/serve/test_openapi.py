import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import puna
from puna.chat import Assistant, load
from puna.serve.app import ROUTES, Server, Settings
from puna.serve.openapi import document
from puna.serve.stepping import ThreadStepper
from tests.serve.conftest import MODEL, Running

jsonschema_rs = pytest.importorskip("jsonschema_rs")  # comes with schemathesis


@pytest.fixture(scope="module")
def described(assistant: Assistant) -> dict[str, Any]:
    return document(Server(assistant.prompter, ThreadStepper(assistant), Settings(model=MODEL)).state)


def validator(described: dict[str, Any], name: str) -> Any:
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
    )


def test_every_route_is_described_and_nothing_else(assistant: Assistant, described: dict[str, Any]) -> None:
    state = Server(assistant.prompter, ThreadStepper(assistant), Settings(model=MODEL)).state
    served = {re.sub(r":\w+", "", route.path) for of_file in ROUTES for route in of_file(state)}
    assert set(described["paths"]) == {re.sub("^/page/.*", "/page/{name}", path) for path in served}


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    text = json.dumps(described)
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names and names <= set(described["components"]["schemas"])
    assert "$defs" not in text


def test_a_key_is_asked_for_where_the_server_has_one(assistant: Assistant) -> None:
    guarded = document(Server(assistant.prompter, ThreadStepper(assistant), Settings(model=MODEL, keys=("k",))).state)
    assert (
        guarded["paths"]["/v1/models"]["get"]["security"]
        and "401" in guarded["paths"]["/v1/models"]["get"]["responses"]
    )
    assert "security" not in guarded["paths"]["/health"]["get"]
    assert set(guarded["components"]["securitySchemes"]) == {"bearer", "key"}


@pytest.mark.parametrize(
    ("name", "fields", "fits"),
    [
        ("ChatRequest", {"messages": [{"role": "user", "content": "x"}]}, True),
        ("ChatRequest", {"messages": [{"role": "king", "content": "x"}]}, False),
        ("ChatRequest", {"messages": [{"role": "user", "content": "x"}], "n": 0}, False),
        ("ChatRequest", {"messages": [{"role": "user", "content": "x"}], "best": 1}, False),
        ("ChatRequest", {"messages": [{"role": "user", "content": "x", "name": ""}]}, True),
        ("ChatRequest", {"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, False),
        ("CompletionRequest", {"prompt": [[1, 2], [3]]}, True),
        ("CompletionRequest", {"prompt": [[1, 2], "x"]}, False),
        ("ResponsesRequest", {"input": [{"role": "user", "content": "x"}]}, True),
        ("ResponsesRequest", {"input": "x", "previous_response_id": "resp_1"}, False),
        ("MessagesRequest", {"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}, True),
        ("MessagesRequest", {"messages": [{"role": "user", "content": "x"}]}, False),
        ("CountRequest", {"messages": [{"role": "user", "content": [{"type": "document"}]}]}, False),
    ],
)
def test_what_fits_the_document_is_what_is_read(
    described: dict[str, Any], running: Running, name: str, fields: dict[str, Any], fits: bool
) -> None:
    paths = {
        "ChatRequest": "/v1/chat/completions",
        "CompletionRequest": "/v1/completions",
        "ResponsesRequest": "/v1/responses",
        "MessagesRequest": "/v1/messages",
        "CountRequest": "/v1/messages/count_tokens",
    }
    least = {"ResponsesRequest": {"max_output_tokens": 1}, "MessagesRequest": {}, "CountRequest": {}}
    asked = {"model": MODEL} | least.get(name, {"max_tokens": 1}) | fields
    assert validator(described, name).is_valid(asked) == fits
    assert (running.post(paths[name], asked).status == 200) == fits


def test_answers_and_events_fit_the_document(described: dict[str, Any], running: Running) -> None:
    hello: Any = [{"role": "user", "content": "Hello"}]
    for path, asked in (
        ("/v1/chat/completions", {"messages": hello, "max_tokens": 2, "logprobs": True, "top_logprobs": 1}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2, "logprobs": 1, "echo": True}),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 2, "top_logprobs": 1}),
        ("/v1/messages", {"messages": hello, "max_tokens": 2}),
    ):
        content = described["paths"][path]["post"]["responses"]["200"]["content"]
        whole = jsonschema_rs.Draft202012Validator(
            content["application/json"]["schema"] | {"components": described["components"]}
        )
        whole.validate(running.post(path, {"model": MODEL, "temperature": 0} | asked).document)
        data = content["text/event-stream"]["schema"]["properties"]["data"]
        event = data["anyOf"][1]["contentSchema"] if "anyOf" in data else data["contentSchema"]
        of_event = jsonschema_rs.Draft202012Validator(event | {"components": described["components"]})
        body = running.post(path, {"model": MODEL, "temperature": 0, "stream": True} | asked).body.decode()
        events = [part.partition("data: ")[2] for part in body.split("\n\n") if part]
        for each in events:
            if each != "[DONE]":
                of_event.validate(json.loads(each))
        assert len(events) >= 3


def test_the_document_is_served(running: Running) -> None:
    served = running.get("/openapi.json").document
    assert served["openapi"].startswith("3.1.")
    assert served["components"]["schemas"]["ChatRequest"]["properties"]["model"] == {"enum": [MODEL]}


HOOKS = """
import re
import schemathesis

BEYOND = re.compile("{beyond}")

@schemathesis.check
def what_fits_is_refused_for_what_no_schema_says(ctx, response, case):
    if case.meta and case.meta.generation.mode.is_positive and response.status_code == 400:
        message = response.json()["error"]["message"]
        assert BEYOND.search(message), message
"""
BEYOND = (
    "Expected `int.*got `float`",  # 1.0 is an integer in JSON schema
    "the context holds",
    "is no data URL|is not an image|no web address|not valid base64",
    "the tools given are|there are no tools",
    "is for streams|needs logprobs|needs echo|only n itself|asks for .* answers",
    "give one of the two|follows one of them|choose one of the two|mixes strings and parts",
    "is not valid JSON|is not a JSON schema|cannot be followed|is no object",
    "cannot be continued|is true beside add_generation_prompt",
    "images: at most|tools belong to messages|leads nowhere",
    "give ids of text|is no id|prompt is empty|max_tokens is 0",
)
CRIA = Path(puna.__file__).parent / "assets" / "cria"


@pytest.fixture
def small_cria(tmp_path: Path) -> Iterator[Running]:
    """The model that ships, with a context that an answer fills soon."""
    folder = shutil.copytree(CRIA, tmp_path / "cria")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["text_config"]["max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    server = Running(load(folder, device="cpu"))
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.skipif(not list(CRIA.glob("*.safetensors")), reason="the weights of cria are not there")
def test_thousands_of_requests_made_from_the_document_meet_no_fault(small_cria: Running, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS.format(beyond="|".join(BEYOND)), "utf-8")
    expected = '[checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "400", "404"]\n'
    (tmp_path / "schemathesis.toml").write_text(expected, "utf-8")
    program = Path(sys.executable).with_name("st")
    command = [str(program), "--config-file", "schemathesis.toml", "run", f"{small_cria.url}/openapi.json"]
    command += ["--checks", "all", "--phases", "coverage,fuzzing", "--max-examples", "150", "--seed", "1"]
    command += [
        "--exclude-path",
        "/look/live",
        "--request-timeout",
        "600",
        "--max-response-time",
        "600",
        "--no-color",
    ]  # that one never ends
    env = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    print(run.stdout[-1500:])
    assert run.returncode == 0, run.stdout[-10_000:]
    small_cria.wait_until_idle()
