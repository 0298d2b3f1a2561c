"""Clients that people have already, unmodified, against the model that ships: chat, tools, pictures, schemas."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from puna.chat import load
from tests.route.test_cria import pytestmark as needs_cria
from tests.serve.conftest import MODEL, Running

pydantic = pytest.importorskip("pydantic")

pytestmark = [needs_cria, pytest.mark.slow]

CAT = Path(__file__).parents[2] / "examples" / "pictures" / "cat.png"
HELLO: Any = [{"role": "user", "content": "Hello!"}]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["color", "sure"],
    "additionalProperties": False,
}


class Guess(pydantic.BaseModel):
    """What color something has."""

    color: Literal["red", "blue"]
    sure: bool


def url() -> str:
    return "data:image/png;base64," + base64.b64encode(CAT.read_bytes()).decode()


@pytest.fixture(scope="module")
def cria() -> Iterator[Running]:
    server = Running(load("cria", device="cpu"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def asked(cria: Running) -> str:
    """What the model says to HELLO, without any client."""
    document = cria.post("/v1/chat/completions", {"model": MODEL, "messages": HELLO, "temperature": 0}).document
    text = document["choices"][0]["message"]["content"]
    assert text
    return str(text)


@pytest.fixture(scope="module")
def seen(cria: Running) -> str:
    """What the model says of the picture, without any client."""
    content = [{"type": "image_url", "image_url": {"url": url()}}, {"type": "text", "text": "What is this?"}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 20}
    return str(cria.post("/v1/chat/completions", body).document["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def openai_client(cria: Running) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=cria.url + "/v1", api_key="none", max_retries=0, timeout=120)


def test_openai_chat(openai_client: Any, asked: str, seen: str) -> None:
    chat = openai_client.chat.completions
    assert chat.create(model=MODEL, messages=HELLO, temperature=0).choices[0].message.content == asked
    with chat.stream(model=MODEL, messages=HELLO, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.content == asked
    link = {"type": "image_url", "image_url": {"url": url(), "detail": "auto"}}
    messages = [{"role": "user", "content": [link, {"type": "text", "text": "What is this?"}]}]
    whole = chat.create(model=MODEL, messages=messages, temperature=0, max_tokens=20)
    assert whole.choices[0].message.content == seen


def test_openai_chat_parses_schemas_and_tools(openai_client: Any) -> None:
    import openai

    chat = openai_client.chat.completions
    parsed = chat.parse(model=MODEL, messages=HELLO, response_format=Guess, max_tokens=100)
    assert isinstance(parsed.choices[0].message.parsed, Guess)
    tool = openai.pydantic_function_tool(Guess)
    forced = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100}
    message = chat.parse(model=MODEL, messages=HELLO, **forced).choices[0].message
    (call,) = message.tool_calls
    assert isinstance(call.function.parsed_arguments, Guess)
    with chat.stream(model=MODEL, messages=HELLO, temperature=0, **forced) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert isinstance(streamed.message.tool_calls[0].function.parsed_arguments, Guess)
    result = {"role": "tool", "tool_call_id": call.id, "content": "right"}
    again = chat.create(model=MODEL, messages=[*HELLO, message, result], tools=[tool], max_tokens=8)
    assert again.choices[0].message.role == "assistant"


def test_openai_responses(openai_client: Any, asked: str, seen: str) -> None:
    responses = openai_client.responses
    assert responses.create(model=MODEL, input="Hello!", temperature=0).output_text == asked
    with responses.stream(model=MODEL, input="Hello!", temperature=0) as stream:
        assert stream.get_final_response().output_text == asked
    content = [{"type": "input_image", "image_url": url(), "detail": "auto"}]
    content.append({"type": "input_text", "text": "What is this?"})
    whole = responses.create(
        model=MODEL, input=[{"role": "user", "content": content}], temperature=0, max_output_tokens=20
    )
    assert whole.output_text == seen
    parsed = responses.parse(model=MODEL, input="Hello!", text_format=Guess, max_output_tokens=100)
    assert isinstance(parsed.output_parsed, Guess)


def test_openai_responses_call_tools_and_read_what_they_gave(openai_client: Any) -> None:
    import openai

    tool = openai.pydantic_function_tool(Guess)["function"] | {"type": "function"}
    forced = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    with openai_client.responses.stream(model=MODEL, input="Hello!", temperature=0, **forced) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        (call,) = stream.get_final_response().output
    assert call.name == "Guess" and Guess(**json.loads(call.arguments)) and "".join(deltas) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "right"}
    items = [*HELLO, call, result]
    assert openai_client.responses.create(model=MODEL, input=items, tools=[tool], max_output_tokens=8).output


@pytest.fixture(scope="module")
def claude(cria: Running) -> Any:
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(base_url=cria.url, api_key="none", max_retries=0, timeout=120)


def test_anthropic_messages(claude: Any, asked: str, seen: str) -> None:
    greedy = {"temperature": 0}
    whole = claude.messages.create(model=MODEL, max_tokens=500, messages=HELLO, extra_body=greedy)
    assert (whole.content[0].text, whole.stop_reason) == (asked, "end_turn")
    with claude.messages.stream(model=MODEL, max_tokens=500, messages=HELLO, extra_body=greedy) as stream:
        assert "".join(stream.text_stream) == asked
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(CAT.read_bytes()).decode()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    question = [{"role": "user", "content": content}]
    whole = claude.messages.create(model=MODEL, max_tokens=20, messages=question, extra_body=greedy)
    assert whole.content[0].text == seen
    counted = claude.messages.count_tokens(model=MODEL, messages=question).input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_anthropic_messages_go_on_from_a_beginning(claude: Any, asked: str) -> None:
    begun = [*HELLO, {"role": "assistant", "content": asked[:6]}]
    whole = claude.messages.create(model=MODEL, max_tokens=500, messages=begun, extra_body={"temperature": 0})
    assert asked[:6] + whole.content[0].text == asked
    counted = claude.messages.count_tokens(model=MODEL, messages=begun).input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_anthropic_messages_call_tools_and_parse(claude: Any) -> None:
    tool = {"name": "guess", "input_schema": SCHEMA, "strict": True}
    choice = {"type": "tool", "name": "guess", "disable_parallel_tool_use": True}
    fields = {"model": MODEL, "max_tokens": 100, "messages": HELLO, "tools": [tool], "tool_choice": choice}
    with claude.messages.stream(**fields, extra_body={"temperature": 0}) as stream:
        streamed = stream.get_final_message()
    whole = claude.messages.create(**fields, extra_body={"temperature": 0})
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    assert whole.content[0].input == streamed.content[0].input and Guess(**whole.content[0].input)
    result = {"type": "tool_result", "tool_use_id": whole.content[0].id, "content": "right"}
    turns = [*HELLO, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(model=MODEL, max_tokens=8, messages=turns, tools=[tool]).role == "assistant"
    parsed = claude.messages.parse(model=MODEL, max_tokens=100, messages=HELLO, output_format=Guess)
    assert isinstance(parsed.parsed_output, Guess)


@pytest.fixture(scope="module", params=["chat", "responses"])
def llm(cria: Running, request: pytest.FixtureRequest) -> Any:
    langchain = pytest.importorskip("langchain_openai")
    return langchain.ChatOpenAI(
        base_url=cria.url + "/v1",
        api_key="none",
        model=MODEL,
        temperature=0,
        max_retries=0,
        use_responses_api=request.param == "responses",
    )


def test_langchain_invoke_and_stream(llm: Any, asked: str, seen: str) -> None:
    assert llm.invoke("Hello!").text == asked
    assert "".join(chunk.text for chunk in llm.stream("Hello!")) == asked
    content = [{"type": "image_url", "image_url": {"url": url()}}, {"type": "text", "text": "What is this?"}]
    question = [{"role": "user", "content": content}]
    assert llm.invoke(question, max_tokens=20).text == seen


def test_langchain_bind_tools_and_structured_output(llm: Any) -> None:
    bound = llm.bind_tools([Guess], tool_choice="any", parallel_tool_calls=False)
    call = bound.invoke("Hello!").tool_calls[0]
    assert call["name"] == "Guess" and Guess(**call["args"])
    streamed = None
    for chunk in bound.stream("Hello!"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None and streamed.tool_calls[0]["args"] == call["args"]
    assert isinstance(llm.with_structured_output(Guess).invoke("Hello!"), Guess)
    assert isinstance(llm.with_structured_output(Guess, method="function_calling").invoke("Hello!"), Guess)


NODE = """
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";
const [url, model, schema, image] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello!" }];
const said = {};
said.whole = (await openai.chat.completions.create({ model, messages, temperature: 0 })).choices[0].message.content;
said.streamed = "";
for await (const chunk of await openai.chat.completions.create({ model, messages, temperature: 0, stream: true }))
  said.streamed += chunk.choices[0]?.delta?.content ?? "";
const content = [{ type: "image_url", image_url: { url: image } }, { type: "text", text: "What is this?" }];
const seen = { model, messages: [{ role: "user", content }], temperature: 0, max_tokens: 20 };
said.seen = (await openai.chat.completions.create(seen)).choices[0].message.content;
const parameters = JSON.parse(schema);
const tools = [{ type: "function", function: { name: "guess", parameters, strict: true } }];
const calling = openai.chat.completions.stream({ model, messages, tools, tool_choice: "required",
  parallel_tool_calls: false, temperature: 0 });
said.call = (await calling.finalChatCompletion()).choices[0].message.tool_calls[0].function;
const response_format = { type: "json_schema", json_schema: { name: "guess", schema: parameters, strict: true } };
said.parsed = (await openai.chat.completions.parse({ model, messages, response_format })).choices[0].message.content;
said.response = (await openai.responses.create({ model, input: "Hello!", temperature: 0 })).output_text;
const stream = openai.responses.stream({ model, input: "Hello!", temperature: 0 });
said.events = [];
for await (const event of stream) said.events.push(event.type);
said.responded = (await stream.finalResponse()).output_text;
const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const growing = anthropic.messages.stream({ model, max_tokens: 500, messages, temperature: 0 });
said.message = await growing.finalText();
console.log(JSON.stringify(said));
"""


def test_node(cria: Running, asked: str, seen: str, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("needs npm and node")
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}', "utf-8")
    install = [npm, "install", "--no-audit", "--no-fund", "openai@7", "@anthropic-ai/sdk@1"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm found no clients: {installed.stderr[-200:]}")
    (tmp_path / "ask.js").write_text(NODE, "utf-8")
    command = [node, "ask.js", cria.url, MODEL, json.dumps(SCHEMA), url()]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    said = json.loads(run.stdout)
    for name in ("whole", "streamed", "response", "responded", "message"):
        assert said[name] == asked
    assert said["seen"] == seen
    assert said["call"]["name"] == "guess" and Guess(**json.loads(said["call"]["arguments"]))
    assert Guess(**json.loads(said["parsed"]))
    assert (said["events"][0], said["events"][-1]) == ("response.created", "response.completed")
