"""Adapters from files to answers: over one model in Python, by name over HTTP, and merged on the command line."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import puna
from puna.adapters.spec import Spec
from puna.chat import Assistant
from puna.cli import main
from puna.errors import PromptError, WeightsError
from puna.weights import peft
from puna.weights.checkpoint import open_config
from tests.adapters.toys import adapter_for
from tests.reference.tiny import write_tiny_checkpoint

SAY = [{"role": "user", "content": "one two three"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "ignore_stop_ids": True}
NAMES = ("first", "second")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_tiny_checkpoint(folder / "model")
    config = open_config(folder / "model")
    for seed, name in enumerate(NAMES):
        peft.save(adapter_for(config, Spec(rank=4), seed), config, folder / name, base="tiny")
    return folder


@pytest.fixture(scope="module")
def llama(folder: Path) -> Assistant:
    return puna.load(folder / "model", adapters={name: folder / name for name in NAMES})


def text_of(llama: Assistant, **options: Any) -> str:
    return llama.respond(SAY, **GREEDY, **options).answers[0].text


def test_each_adapter_answers_under_its_name(
    llama: Assistant, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [text_of(llama), *(text_of(llama, adapter=name) for name in NAMES)]
    assert len(set(texts)) == 3
    assert text_of(puna.load(folder / "model")) == texts[0]
    main(["convert", str(folder / "model"), str(folder / "merged"), "--to", "hf", "--adapter", str(folder / "second")])
    capsys.readouterr()
    assert text_of(puna.load(folder / "merged")) == texts[2]


def test_answers_with_and_without_adapters_grow_together(llama: Assistant) -> None:
    session, names = llama.session(), [None, "first", "second", "first"]
    prompt = llama.prompt(SAY)
    numbers = [session.begin(prompt, **GREEDY, adapter=name) for name in names]
    texts = dict.fromkeys(numbers, "")
    while not session.is_idle:
        for number, piece in session.step():
            texts[number] += piece.text
    assert [texts[number] for number in numbers] == [text_of(llama, adapter=name) for name in names]


def test_what_was_not_loaded_is_refused(llama: Assistant, folder: Path) -> None:
    assert llama.adapters == NAMES
    with pytest.raises(PromptError, match="'first', 'second'"):
        llama.chat(SAY, adapter="third")
    with pytest.raises(WeightsError, match="adapter_config"):
        puna.load(folder / "model", adapters={"none": folder / "model"})


@pytest.fixture(scope="module")
def url(llama: Assistant) -> Iterator[str]:
    serve = pytest.importorskip("tests.serve.conftest")
    running = serve.Running(llama, adapters=llama.adapters)
    yield running.url
    running.stop()


def fetch(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data)) as reply:
        return json.load(reply)


def test_server_lists_adapters_with_their_parent(url: str) -> None:
    cards = fetch(f"{url}/v1/models")["data"]
    assert [(card["id"], card.get("parent")) for card in cards] == [("tiny", None), *((name, "tiny") for name in NAMES)]
    assert fetch(f"{url}/v1/models/second")["parent"] == "tiny"


@pytest.mark.parametrize("model", ["tiny", *NAMES])
def test_server_answers_as_the_model_that_is_named(url: str, llama: Assistant, model: str) -> None:
    asked = {"model": model, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    adapter = None if model == "tiny" else model
    answer = fetch(f"{url}/v1/chat/completions", asked | {"messages": SAY})
    assert answer["model"] == model
    assert answer["choices"][0]["message"]["content"] == text_of(llama, adapter=adapter)
    scored = fetch(f"{url}/v1/completions", asked | {"prompt": "one two", "echo": True, "logprobs": 0, "max_tokens": 1})
    expected = llama.prompt_logprobs(llama.text_prompt("one two"), adapter=adapter)
    got = scored["choices"][0]["logprobs"]["token_logprobs"][1 : len(expected) + 1]
    assert got == pytest.approx([each.chosen for each in expected], abs=1e-4)


def test_commands_answer_with_the_adapter_that_is_given(
    llama: Assistant, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--adapter", f"second={folder / 'second'}", "--max-new-tokens", "12", "--temperature", "0", "--guard", "off"]
    assert main(["chat", str(folder / "model"), "-m", "one two three", "--json", *own]) == 0
    said = json.loads(capsys.readouterr().out)
    wanted = llama.respond(SAY, temperature=0, max_new_tokens=12, adapter="second").answers[0].message
    assert (said["adapter"], said["message"]) == ("second", wanted.to_dict())
    assert main(["complete", "one two", "--model", str(folder / "model"), *own]) == 0
    text = llama.complete("one two", adapter="second", temperature=0, max_new_tokens=12)
    assert capsys.readouterr().out == f"{text}\n"


def test_lines_of_a_file_choose_their_adapters_by_name(
    llama: Assistant, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("puna.serve.batch")
    names = [*NAMES, "base", "third"]
    bodies = (
        {"model": name, "messages": SAY, "temperature": 0, "max_tokens": 12, "ignore_eos": True} for name in names
    )
    lines = [{"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body} for body in bodies]
    (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    given = [part for name in NAMES for part in ("--adapter", f"{name}={folder / name}")]
    asked = ["batch", str(tmp_path / "in"), str(tmp_path / "out"), str(folder / "model"), "--name", "base"]
    assert main([*asked, "--guard", "off", *given]) == 0
    capsys.readouterr()
    *answers, lost = [json.loads(line)["response"] for line in (tmp_path / "out").read_text("utf-8").splitlines()]
    texts = [answer["body"]["choices"][0]["message"]["content"] for answer in answers]
    assert texts == [text_of(llama, adapter=name) for name in NAMES] + [text_of(llama)]
    assert lost["status_code"] == 404


@pytest.mark.parametrize("command", ["serve", "chat", "batch"])
@pytest.mark.parametrize(
    ("given", "part"),
    [(["first"], "NAME=DIR"), (["=dir"], "NAME=DIR"), (["first="], "NAME=DIR"), (["a=b", "a=c"], "'a' twice")],
)
def test_adapter_without_a_name_or_directory_of_its_own_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, given: list[str], part: str
) -> None:
    asked = {"chat": ["-m", "x", "{}"], "serve": ["{}"], "batch": [str(folder / "model" / "config.json"), "out", "{}"]}
    argv = [each.format(folder / "model") for each in asked[command]]
    assert main([command, *argv, *(word for each in given for word in ("--adapter", each))]) == 2
    assert part in capsys.readouterr().err


def test_names_that_cannot_be_told_apart_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = f"model={folder / 'first'}"
    assert main(["serve", str(folder / "model"), "--adapter", first]) == 2
    assert "another name" in capsys.readouterr().err
    assert main(["chat", str(folder / "model"), "-m", "x", "--adapter", first, "--adapter", "b=c"]) == 2
    assert "model and b" in capsys.readouterr().err
