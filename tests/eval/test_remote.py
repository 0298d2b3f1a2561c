"""A server's model: the same answers and log-likelihoods as in process, and errors that say what to do."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from puna.chat import Assistant
from puna.errors import ConfigError, DeviceError
from puna.eval.ask import Question, Reply
from puna.eval.local import LocalModel
from puna.eval.remote import PROBE, RemoteModel
from puna.eval.task import Choice, Compare, Completion, Likelihood, Passage, Prompt, user


def question(prompt: Prompt, key: str = "q", n: int = 1, temperature: float = 0.0) -> Question:
    return Question(key=key, prompt=prompt, n=n, max_new_tokens=8, temperature=temperature, seed=5)


def replies(model: RemoteModel | LocalModel, *questions: Question) -> dict[str, tuple[Reply, ...]]:
    return {question.key: found for question, found in model.answers(questions)}


@pytest.fixture(scope="module")
def server(assistant: Assistant) -> Iterator[Any]:
    pytest.importorskip("uvicorn")
    from tests.serve.conftest import Running

    running = Running(assistant)
    yield running
    running.stop()


def test_server_answers_as_the_model_in_process(assistant: Assistant, server: Any, tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    questions = [
        question(Completion(text="Once upon", stops=("e",)), "completion"),
        question(user("What is it?", tmp_path / "red.png"), "picture"),
        question(user("Say something."), "samples", n=3, temperature=1.0),
        question(Choice(text="The capital is ", continuations=("Lima", "La Paz, é"), labels=("A", "B")), "choice"),
        question(Choice(text="é:", continuations=(" A", " B"), labels=("A", "B")), "letters"),
    ]
    here, there = replies(LocalModel(assistant), *questions), replies(RemoteModel(server.url + "/v1"), *questions)
    for key in ("completion", "picture", "samples"):
        assert [reply.text for reply in there[key]] == [reply.text for reply in here[key]], key
    for key in ("choice", "letters"):
        assert there[key][0].details["logprobs"] == pytest.approx(here[key][0].details["logprobs"], abs=1e-4)
        assert there[key][0].text == here[key][0].text


def test_server_reads_passages(assistant: Assistant, server: Any) -> None:
    passage = question(Passage(text="Llamas graze on the púna."))
    found = [replies(model, passage)["q"][0].text for model in (LocalModel(assistant), RemoteModel(server.url + "/v1"))]
    here, there = (Likelihood.read(text) for text in found)
    assert here and there and there.n_tokens == here.n_tokens
    assert there.logprob == pytest.approx(here.logprob, abs=1e-3)


def test_what_a_server_tells_of_itself(assistant: Assistant, server: Any) -> None:
    model = RemoteModel(server.url + "/v1/")
    assert (model.name, model.context_len, model.count("four")) == ("tiny", 512, 4)
    assert model.identity == {"model": "tiny", "url": server.url + "/v1"}


def test_item_that_a_server_refuses_does_not_end_the_run(server: Any) -> None:
    found = replies(
        RemoteModel(server.url + "/v1"),
        question(Completion(text="x" * 600, stops=()), "long"),
        question(Completion(text="x", stops=(), images=("a.png",)), "picture"),
        question(user("Hi"), "short"),
    )
    assert "the server refuses it: 400" in found["long"][0].refusal
    assert "take no pictures" in found["picture"][0].refusal and not found["short"][0].refusal


def test_comparison_with_a_reference_needs_both_models_here(server: Any) -> None:
    with pytest.raises(ConfigError, match="load both with MODEL"):
        replies(RemoteModel(server.url + "/v1"), question(Compare(text="x")))


# Servers of others ------------------------------------------------------------------------------------------------


class Other(ThreadingHTTPServer):
    """A server that answers what it is told: (status, document) by path, the last one for ever."""

    def __init__(self, answers: dict[str, list[tuple[int, Any]]]) -> None:
        self.given: list[tuple[str, Any, str | None]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                self.given.append((handler.path, json.loads(body or "null"), handler.headers.get("Authorization")))
                queue = answers.get(handler.path, [(404, {"detail": "Not Found"})])
                status, document = queue.pop(0) if len(queue) > 1 else queue[0]
                data = document if isinstance(document, bytes) else json.dumps(document).encode()
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data)

            do_POST = do_GET  # noqa: N815

            def log_message(handler, *_: Any) -> None:  # noqa: N805
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


MODELS = [(200, {"data": [{"id": "first"}, {"id": "second", "max_model_len": 99}]})]
CHOICE = Choice(text="x", continuations=(" a", " b"), labels=("A", "B"))


def answered(text: str, **more: Any) -> tuple[int, Any]:
    return 200, {
        "choices": [{"index": 0, "text": text, "finish_reason": "stop", **more}],
        "usage": {"completion_tokens": 1},
    }


@pytest.mark.parametrize(
    "answer", [answered("x"), answered("x", logprobs=None), (400, {"error": {"message": "echo is not supported"}})]
)
def test_server_without_log_probabilities_is_a_clear_error(answer: tuple[int, Any]) -> None:
    with Other({"/v1/models": MODELS, "/v1/completions": [answer]}) as other:
        with pytest.raises(ConfigError, match=r"needs log-probabilities of prompts .* such as puna serve"):
            replies(RemoteModel(other.url), question(CHOICE))
        other.shutdown()


def test_offsets_that_count_the_token_before_the_text_are_shifted_back() -> None:
    def echoed(text: str, last: float) -> tuple[int, Any]:
        logprobs = {"tokens": ["<s>", text[:1], text[1:], "!"], "token_logprobs": [None, -1.0, last, -9.0]}
        return answered(text + "!", logprobs=logprobs | {"text_offset": [0, 3, 4, 3 + len(text)]})

    halves = {
        "tokens": [PROBE[:9], PROBE[9:], "!"],
        "token_logprobs": [None, -1, -1],
        "text_offset": [0, 9, len(PROBE)],
    }
    probe = answered("", logprobs=halves)
    answers = [probe, echoed("x a", -2.0), echoed("x b", -1.5)]
    with Other({"/v1/models": MODELS, "/v1/completions": answers}) as other:
        ((reply,),) = replies(RemoteModel(other.url), question(CHOICE)).values()
        assert reply.details["logprobs"] == [-2.0, -1.5] and reply.text == "B"
        other.shutdown()


def test_busy_server_is_asked_again_and_a_lost_one_ends_the_run() -> None:
    pauses: list[float] = []
    busy = (503, {"error": {"message": "come back"}})
    chat = answered("", message={"content": "yes"})
    with Other({"/v1/models": MODELS, "/v1/chat/completions": [busy, (429, b"later"), chat]}) as other:
        model = RemoteModel(other.url, key="secret", sleep=pauses.append)
        assert replies(model, question(user("Hi")))["q"][0].text == "yes" and pauses == [0.5, 1.0]
        assert {key for _, _, key in other.given} == {"Bearer secret"}
        other.shutdown()
    with pytest.raises(DeviceError, match=r"no answer after 6 tries .*the same command goes on later"):
        replies(model, question(user("Hi")))
    assert len(pauses) == 7


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, "is not served there .*check address and model"),
        ({"/v1/models": [(401, {"error": {"message": "no key"}})]}, "refuses us .*--api-key-file"),
        ({"/v1/models": [(200, b"<html>")]}, "other than JSON"),
        ({"/v1/models": [(200, {"data": []})]}, "lists no model; name one as MODEL"),
    ],
)
def test_address_that_is_no_such_server_is_a_clear_error(answers: dict[str, Any], message: str) -> None:
    with Other(answers) as other:
        with pytest.raises(ConfigError, match=message):
            RemoteModel(other.url)
        other.shutdown()
    with pytest.raises(ConfigError, match="give an address such as"):
        RemoteModel("localhost:8000")


def test_model_is_the_first_that_is_listed_or_the_named_one() -> None:
    with Other({"/v1/models": MODELS}) as other:
        assert RemoteModel(other.url).name == "first"
        assert RemoteModel(other.url, model="second").context_len == 99
        assert RemoteModel(other.url, model="hidden").name == "hidden"
        other.shutdown()
