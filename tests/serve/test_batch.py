import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import puna
from puna.chat import Assistant
from puna.errors import ConfigError
from puna.serve import batch
from puna.serve.batch import Item, Result
from tests.serve.conftest import MODEL, data_url, picture


def chat(custom_id: str, text: str = "Hello", **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body | fields}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(source: Path, target: Path, ask: batch.Answer, at_once: int = 8) -> batch.Summary:
    return asyncio.run(batch.run(source, target, ask, model=MODEL, at_once=at_once, say=lambda _: None))


async def echo(item: Item) -> Result:
    """Answers with what was asked, in any order."""
    await asyncio.sleep(random.random() / 1000)
    return Result(b'{"id": "%s"}\n' % item.identity.encode(), True, 1, 2)


def test_each_line_gets_its_answer_in_order_and_says_what_is_wrong_with_it(
    assistant: Assistant, tmp_path: Path
) -> None:
    seen = [
        {"type": "image_url", "image_url": {"url": data_url(picture())}},
        {"type": "text", "text": "What?"},
    ]
    lines = [
        chat("long", max_tokens=60),
        {
            "custom_id": "plain",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": MODEL, "prompt": [[1, 2], [3]], "max_tokens": 2, "temperature": 0, "logprobs": 1},
        },
        "no JSON",
        "",
        chat("picture", messages=[{"role": "user", "content": seen}]),
        chat("model", model="another"),
        chat("stream", stream=True),
        chat("get") | {"method": "GET"},
        chat("far") | {"url": "http://elsewhere/v1/chat/completions"},
        chat("more") | {"more": 1},
        {"custom_id": "less"},
        chat("n", n=3),
    ]
    source, target = write(tmp_path / "in", lines), tmp_path / "out"
    summary = asyncio.run(batch.run_here(source, target, assistant, model=MODEL, at_once=4, say=lambda _: None))
    answers = {each["custom_id"]: each for each in read(target)}
    assert list(answers) == ["long", "plain", None, "picture", "model", "stream", "get", "far", "more", "less", "n"]
    assert (summary.lines, summary.answered, summary.failed) == (11, 4, 7)
    codes = {name: each["error"]["code"] for name, each in answers.items() if each["error"]}
    assert codes == {
        **dict.fromkeys((None, "more", "less"), "invalid_line"),
        "stream": "invalid_body",
        "get": "invalid_method",
        "far": "invalid_url",
    }
    statuses = {name: each["response"]["status_code"] for name, each in answers.items() if each["response"]}
    assert statuses == {"long": 200, "plain": 200, "picture": 200, "n": 200, "model": 404}
    assert answers["model"]["response"]["body"]["error"]["code"] == "model_not_found"
    bodies = {name: answers[name]["response"]["body"] for name in ("long", "picture", "n", "plain")}
    for name, document in (("long", lines[0]), ("picture", lines[4])):
        message = assistant.chat(
            document["body"]["messages"],  # type: ignore[index]
            temperature=0.0,
            max_new_tokens=document["body"]["max_tokens"],  # type: ignore[index]
        )
        assert bodies[name]["choices"][0]["message"]["content"] == message.text  # type: ignore[union-attr]
    assert len(bodies["n"]["choices"]) == 3 and len(bodies["plain"]["choices"]) == 2
    assert summary.completion_tokens == sum(body["usage"]["completion_tokens"] for body in bodies.values())


def test_a_run_that_was_stopped_asks_only_what_is_left(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in", [chat(str(i)) for i in range(50)]), tmp_path / "out"
    asked: list[int] = []

    async def until_lost(item: Item) -> Result:
        if item.number == 30:
            await asyncio.sleep(0.02)
            raise RuntimeError("power is out")
        result = await echo(item)
        asked.append(item.number)
        return result

    with pytest.raises(RuntimeError):
        run(source, target, until_lost)
    with target.open("ab") as out:
        out.write(b'{"id": "torn')
    kept = len(asked)

    async def again(item: Item) -> Result:
        assert item.number not in asked
        return await echo(item)

    summary = run(source, target, again)
    assert summary.kept <= kept and summary.kept + summary.answered == 50
    assert [each["id"] for each in read(target)] == [item.identity for item in batch.read(source, MODEL)]
    assert run(source, target, again).answered == 0
    assert not target.with_name("out.early").exists()


def test_output_of_another_input_or_model_and_the_input_itself_are_refused(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in", [chat("a"), chat("b")]), tmp_path / "out"
    run(source, target, echo)
    with pytest.raises(ConfigError, match="which is IN"):
        run(source, source, echo)
    with pytest.raises(ConfigError, match="line 2 answers no line 2"):
        run(write(tmp_path / "other", [chat("a"), chat("c")]), target, echo)
    with pytest.raises(ConfigError, match="for this model"):
        asyncio.run(batch.run(source, target, echo, model="another", at_once=1, say=print))


def test_no_more_lines_are_held_than_are_answered_at_once(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [chat(str(i)) for i in range(100)])
    held = most = 0

    async def counting(item: Item) -> Result:
        nonlocal held, most
        held += 1
        most = max(most, held)
        result = await echo(item)
        held -= 1
        return result

    run(source, tmp_path / "out", counting, at_once=5)
    assert most == 5


def test_a_line_that_is_too_long_is_said_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_LINE_BYTES", 400)
    source = write(tmp_path / "in", [chat("a"), chat("b", text="x" * 5000), chat("c"), "", chat("d")])
    items = list(batch.read(source, MODEL))
    assert [item.line is None for item in items] == [False, True, False, False]
    assert [item.number for item in items] == [0, 1, 2, 3] and items[-1].end == source.stat().st_size


@pytest.mark.slow
def test_a_killed_program_goes_on_and_repeats_no_finished_line(tmp_path: Path) -> None:
    lines = [chat(str(i), f"Tell me of the number {i}.", model="cria", max_tokens=1 + i * 37 % 90) for i in range(500)]
    source, target, whole = write(tmp_path / "in", lines), tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "puna", "batch", str(source)]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    finished: list[bytes] = []
    for _ in range(2):
        running = subprocess.Popen([*command, str(target)], stderr=subprocess.DEVNULL)
        n, deadline = len(finished), time.monotonic() + 120
        while not target.exists() or target.read_bytes().count(b"\n") < n + 30:
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
        kept = target.read_bytes().rpartition(b"\n")[0].split(b"\n")
        assert kept[: len(finished)] == finished  # not written anew, since ids and times would differ
        finished = kept
    early = target.with_name("out.early").read_bytes().splitlines(keepends=True)
    early = [entry.partition(b" ")[2] for entry in early if entry.endswith(b"\n")]
    done = subprocess.run([*command, str(target), "--json"], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["kept"] >= len(finished) and json.loads(done.stdout)["failed"] == 0
    content = target.read_bytes()
    assert content.split(b"\n")[: len(finished)] == finished and all(entry in content for entry in early)

    def texts(path: Path) -> list[tuple[str, str]]:
        choices = [(each["custom_id"], each["response"]["body"]["choices"][0]) for each in read(path)]
        return [(name, choice["message"]["content"]) for name, choice in choices]

    assert texts(target) == texts(whole)


@pytest.mark.slow
def test_every_command_of_the_page_about_batches_does_what_it_says(tmp_path: Path) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "batch.md").read_text("utf-8")
    (requests,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    tmp_path.joinpath("requests.jsonl").write_text(requests, "utf-8")
    tmp_path.joinpath("DIR").symlink_to(Path(puna.__file__).parent / "assets" / "cria")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PUNA_DEVICE": "cpu"}
    bin_ = Path(sys.executable).parent
    n_run = 0
    with contextlib.ExitStack() as stack:
        if find_spec("ray") is not None:
            address = stack.enter_context(ray_cluster())
            environment["RAY_ADDRESS"] = address
        for command in commands:
            if "--ray" in command and find_spec("ray") is None:
                continue
            argv = command.replace("HOST:PORT", environment.get("RAY_ADDRESS", "")).split()
            argv[0] = str(bin_ / argv[0])
            done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, (command, done.stderr[-2000:])
            if "--json" in argv:
                assert json.loads(done.stdout)["kept"] == 4
            n_run += 1
    outputs = {path.stem: read(path) for path in tmp_path.glob("*.jsonl") if path.name != "requests.jsonl"}
    assert len(outputs) == n_run - 1 >= 3
    for lines in outputs.values():
        assert [each["custom_id"] for each in lines] == ["hello", "story", "scored", "mistaken"]
        assert [each["response"]["status_code"] for each in lines] == [200, 200, 200, 400]
    texts = {name: [choice(each) for each in lines[:2]] for name, lines in outputs.items()}
    hello, _ = texts.pop("divided")  # its sums have another order, which a sampled text may show
    assert [hello, texts["answers"][1]] == texts["answers"]
    assert all(each == texts["answers"] for each in texts.values()), texts


def choice(line: Any) -> str:
    found = line["response"]["body"]["choices"][0]
    text: str = found["message"]["content"] if "message" in found else found["text"]
    return text


@contextlib.contextmanager
def ray_cluster() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    try:
        yield nodes.address
    finally:
        nodes.shutdown()
