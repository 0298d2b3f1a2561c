"""What tests of the server share: a small model behind HTTP on this machine, and the official client."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from puna.chat import Assistant, load
from tests.reference.tiny import random_model, write_tiny_checkpoint

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("msgspec")
pytest.importorskip("prometheus_client")

MODEL = "tiny"
CONTEXT_LEN = 2048
PATIENCE_SECONDS = 600.0
"""After which something that does not happen counts as a fault, on a machine that may be very busy."""


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Running:
    """A server in a thread of this process."""

    def __init__(self, assistant: Assistant, **settings: Any) -> None:
        from puna.serve.app import Server, Settings
        from puna.serve.stepping import ThreadStepper

        self.listening = listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.assistant = assistant
        chosen = Settings(**{"model": MODEL} | settings)
        stepper = ThreadStepper(assistant, chosen.events_per_second)
        self.server = Server(assistant.prompter, stepper, chosen)
        self._uvicorn = uvicorn.Server(uvicorn.Config(self.server.app, log_level="critical", access_log=False))
        serve = self._uvicorn.serve(sockets=[listening])
        self._thread = threading.Thread(target=lambda: asyncio.run(serve), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()

    def get(self, path: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> Reply:
        request = urllib.request.Request(self.url + path, data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return Reply(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, dict(error.headers), error.read())

    def post(self, path: str, document: Any, headers: dict[str, str] | None = None) -> Reply:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.get(path, {"Content-Type": "application/json"} | (headers or {}), body)

    @property
    def n_disconnects(self) -> int:
        return int(self.server.metrics.disconnects._value.get())

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Returns once something holds; if it does not in time, that is a fault."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, "it never comes about"
            time.sleep(0.001)

    def wait_until_busy(self) -> None:
        """Returns once the model works."""
        self.wait_until(lambda: bool(self.server.worker.held.n_running))

    def wait_until_idle(self) -> None:
        """Returns once nothing runs and nothing is held, neither here nor by the model for others."""
        worker, state, engine = self.server.worker, self.server.state, self.assistant.engine
        self.wait_until(
            lambda: (
                not (worker.held.n_running or worker.held.n_waiting or worker.n_open or state.n_body_bytes)
                and not any((engine.load.n_running, engine.load.n_waiting, *engine.load.n_held_blocks))
            )
        )


@pytest.fixture(scope="session")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    """A random model with room for definitions of tools, which take many tokens where each byte is one."""
    torch.set_num_threads(1)
    small = load(write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")
    config = replace(small.config, text=replace(small.config.text, context_len=CONTEXT_LEN))
    return Assistant(random_model(config), small.tokenizer)


@pytest.fixture(scope="session")
def running(assistant: Assistant) -> Iterator[Running]:
    server = Running(assistant)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def client(running: Running) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE_SECONDS)


def picture(color: str = "red") -> Image.Image:
    return Image.new("RGB", (40, 20), color)


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
