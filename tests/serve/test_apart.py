import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puna.chat import Assistant
from puna.errors import DeviceError, WeightsError
from puna.guard import policy
from puna.serve import apart, app
from puna.serve.app import Settings
from puna.serve.guarding import Guarding
from puna.serve.orders import Begin, End
from tests.reference.tiny import write_tiny_checkpoint
from tests.serve.conftest import MODEL, PATIENCE_SECONDS, Running, data_url, picture

HELLO: Any = [{"role": "user", "content": "Hello"}]
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 8, "messages": HELLO}
SEEN = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": data_url(picture())}}]
ENDLESS = GREEDY | {"max_tokens": 1900, "ignore_eos": True, "stream": True, "n": 3}
ASKED: list[dict[str, Any]] = [
    {},
    {"messages": [{"role": "user", "content": SEEN}]},
    {"temperature": 1.5, "seed": 3, "n": 2, "stop": ["0"]},
    {"logprobs": True, "top_logprobs": 2, "return_token_ids": True, "return_routed_experts": True},
    {"structured_outputs": {"regex": "[ab]{3}c"}},
]


class Apart:
    """A server whose HTTP is in a process of its own; this process has the model."""

    def __init__(self, assistant: Assistant, **settings: Any) -> None:
        chosen = Settings(**{"model": MODEL} | settings)
        address = app.listen("127.0.0.1", 0, chosen)
        self.url = address.url.removesuffix("/v1")
        self.face = apart.Face(assistant, chosen, None, address.listening, drain_seconds=10)
        self.error: Exception | None = None
        self.face.__enter__()
        self._stepping = threading.Thread(target=self._step)
        self._stepping.start()

    def _step(self) -> None:
        try:
            self.face.step()
        except DeviceError as error:
            self.error = error

    def join(self) -> None:
        self._stepping.join(PATIENCE_SECONDS)
        assert not self._stepping.is_alive(), "the model still runs for nobody"
        self.face.__exit__()

    def connect(self, asked: dict[str, Any]) -> socket.socket:
        body = json.dumps(asked).encode()
        connection = socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout=PATIENCE_SECONDS)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection


@pytest.fixture(scope="module")
def parted(assistant: Assistant) -> Iterator[Apart]:
    server = Apart(assistant)
    yield server
    if server.face.process.poll() is None:
        server.face.stop()
    server.join()


def post(url: str, asked: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    request = urllib.request.Request(url + path, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def metrics(server: Apart) -> str:
    with urllib.request.urlopen(server.url + "/metrics", timeout=PATIENCE_SECONDS) as reply:
        text: str = reply.read().decode()
    return text


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never comes about"
        time.sleep(0.01)


def test_two_processes_answer_as_one_does(parted: Apart, running: Running) -> None:
    for fields in ASKED:
        (_, one), (_, other) = (post(server.url, GREEDY | fields) for server in (running, parted))
        assert json.loads(one)["choices"] == json.loads(other)["choices"], fields
        streamed = post(parted.url, GREEDY | fields | {"stream": True})[1].split(b"\n\n")
        texts: dict[int, str] = {}
        for event in streamed[:-2]:
            for choice in json.loads(event.removeprefix(b"data: "))["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
        assert list(texts.values()) == [choice["message"]["content"] for choice in json.loads(one)["choices"]], fields


def test_a_prompt_is_scored_and_a_wrong_one_refused_by_the_other_process(parted: Apart, running: Running) -> None:
    asked = {"model": MODEL, "prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0}
    one, other = (json.loads(post(server.url, asked, "/v1/completions")[1]) for server in (running, parted))
    assert one["choices"] == other["choices"]
    status, body = post(parted.url, GREEDY | {"n": 64, "allowed_token_ids": [10**6]})
    assert status == 400 and "allowed_token_ids" in json.loads(body)["error"]["message"]


def test_a_client_that_leaves_frees_the_model_in_the_other_process(parted: Apart, assistant: Assistant) -> None:
    with parted.connect(ENDLESS) as connection:
        connection.recv(100)
        wait_until(lambda: assistant.engine.load.n_running == 3)
    wait_until(lambda: not any((assistant.engine.load.n_running, *assistant.engine.load.n_held_blocks)))


def test_a_failing_step_is_told_to_the_client_and_counted(parted: Apart, assistant: Assistant) -> None:
    norm = assistant.model.norm.weight
    sound = norm.clone()
    norm.fill_(float("nan"))
    try:
        status, body = post(parted.url, GREEDY)
    finally:
        norm.copy_(sound)
    assert status == 500 and b"nan" not in body.lower()
    assert post(parted.url, GREEDY)[0] == 200
    text = metrics(parted)
    assert 'puna_engine_failures_total{model_name="tiny"} 1.0' in text and "puna_expert_tokens_total" in text
    wait_until(lambda: 'num_requests_running{model_name="tiny"} 0.0' in metrics(parted))


def test_a_request_whose_grammar_is_compiled_can_be_dropped(assistant: Assistant) -> None:
    """Neither the compiled nor the uncompiled request reaches the model after its client has left."""
    one, other = socket.socketpair()
    with one, other, contextlib.closing(apart._Inbox(one, assistant.prompter)) as inbox:
        _, options = assistant.prepare(HELLO, regex="[ab]{3}c")
        begin = Begin(7, assistant.prompt(HELLO), options)
        for order in (begin, End(7, None), begin._replace(number=8)):
            apart._send(other, apart._packed(order))
        (begun,) = inbox.take(True) or ()
        assert isinstance(begun, Begin) and begun.number == 8
        assert type(begun.options["grammar"]).__name__ == "Matcher"
        assert inbox.take(False) == []
        other.close()
        assert inbox.take(True) is None


def test_when_http_dies_the_model_ends_with_an_error(parted: Apart) -> None:
    """The last test of this server: nothing is served afterwards."""
    with parted.connect(ENDLESS) as connection:
        connection.recv(100)
        parted.face.process.kill()
        parted.join()
    assert isinstance(parted.error, DeviceError) and "-9" in str(parted.error)


@pytest.mark.slow
def test_what_keeps_http_from_starting_is_told_here(assistant: Assistant, tmp_path: Path) -> None:
    guarding = Guarding(policy=replace(policy.load("chatbot"), content=str(tmp_path / "none")))
    address = app.listen("127.0.0.1", 0, Settings(model=MODEL))
    face = apart.Face(assistant, Settings(model=MODEL), guarding, address.listening, drain_seconds=1)
    with pytest.raises(WeightsError, match="none"), face:
        pass
    assert face.process.poll() is not None


@pytest.mark.slow
def test_when_the_model_dies_http_goes_too(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-m", "puna", "serve", str(model), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        url = json.loads(process.stdout.readline())["url"].removesuffix("/v1")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
        assert len(children) == 1 and urllib.request.urlopen(url + "/health").status == 200
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: not _is_there(int(children[0])))
        assert "the process that runs the model has ended" in process.stderr.read()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2]
