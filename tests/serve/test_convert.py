import base64
from typing import Any

import msgspec
import pytest
from PIL import Image

from puna.chat import Assistant
from puna.errors import PromptError
from puna.serve.convert import (
    Job,
    Limits,
    Refusal,
    chat_job,
    completion_jobs,
    n_choices,
    refusal_of,
    tokenized,
)
from puna.serve.endpoint import refusal_from
from puna.serve.schema import ChatRequest, CompletionRequest, TokenizeRequest
from tests.serve.conftest import CONTEXT_LEN, data_url, picture

HELLO = [{"role": "user", "content": "Hello"}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SCHEMA = "response_format.json_schema.schema"


def chat(assistant: Assistant, **fields: Any) -> Job:
    document = {"model": "tiny", "messages": HELLO} | fields
    return chat_job(assistant, msgspec.convert(document, ChatRequest), Limits())


def complete(assistant: Assistant, **fields: Any) -> list[Job]:
    request = msgspec.convert({"model": "tiny", "prompt": "ab"} | fields, CompletionRequest)
    return completion_jobs(assistant.prompter, request, Limits())


def asking(*urls: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": url} for url in urls]}]


def test_a_chat_request_has_the_prompt_that_the_assistant_makes(assistant: Assistant) -> None:
    job = chat(assistant, max_tokens=5, temperature=0, top_k=3, seed=7, n=2, stop="x")
    assert job.prompt.ids == assistant.prompt(HELLO).ids
    assert job.options == {
        "temperature": 0,
        "top_k": 3,
        "seed": 7,
        "max_new_tokens": 5,
        "stop": ["x"],
        "n": 2,
    }
    assert chat(assistant, max_tokens=5, max_completion_tokens=6).options["max_new_tokens"] == 6


def test_tools_that_must_not_be_called_are_not_shown(assistant: Assistant) -> None:
    assert chat(assistant, tools=[ADD]).tools[0].name == "add"
    assert "add" in assistant.tokenizer.decode(chat(assistant, tools=[ADD]).prompt.ids)
    assert chat(assistant, tools=[ADD], tool_choice="none") == chat(assistant)
    with pytest.raises(PromptError, match=r"tools\[0\]"):
        chat(assistant, tools=[{"type": "retrieval"}])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": [ADD]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}, "tools": [ADD]}, "tool_choice"),
        ({"tool_choice": "required", "tools": [ADD], "guided_regex": "a"}, "guided_regex"),
        ({"tools": [ADD], "structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, SCHEMA),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}}, SCHEMA),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}, SCHEMA),
        ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json"),
        ({"guided_json": {"description": "x" * 100_001}}, "guided_json"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "start: other"}, "guided_grammar"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"cache_salt": "a"}, "cache_salt"),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"continue_final_message": True}, "messages"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {}}, "stream_options"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(assistant: Assistant, fields: dict[str, Any], param: str) -> None:
    with pytest.raises((Refusal, PromptError)) as refused:
        chat(assistant, **fields)
    refusal = refusal_from(refused.value)
    assert (refusal.status, refusal.body.param) == (400, param), refusal


def test_harmless_fields_are_taken_without_effect(assistant: Assistant) -> None:
    harmless = {"user": "u", "metadata": {"a": 1}, "store": False, "logit_bias": {}, "modalities": ["text"]}
    harmless |= {"service_tier": "auto", "response_format": {"type": "text"}, "tool_choice": "auto"}
    assert chat(assistant, **harmless) == chat(assistant)


def test_too_many_answers_are_refused_before_anything_is_read() -> None:
    def asked(**fields: Any) -> int:
        return n_choices(msgspec.convert({"model": "m"} | fields, CompletionRequest), Limits())

    assert asked(prompt="a") == asked(prompt=[1, 2, 3]) == 1
    assert asked(prompt=["a", "b"], n=3) == asked(prompt=[[1], [2]], n=3) == 6
    for fields in ({"prompt": "a", "n": 0}, {"prompt": "a", "n": 65}, {"prompt": ["a"] * 65, "n": 2}):
        with pytest.raises(Refusal, match="n "):
            asked(**fields)


def test_prompts_of_a_completion_may_be_texts_or_ids(assistant: Assistant) -> None:
    bos, ids = assistant.tokenizer.bos_id, assistant.tokenizer.encode("ab")
    assert [job.prompt.ids for job in complete(assistant, prompt=["ab", "b"])] == [[bos, *ids], [bos, ids[1]]]
    # Ids are taken as they are: no second begin_of_text.
    for prompt in ([bos, *ids], [[bos, *ids]]):
        (job,) = complete(assistant, prompt=prompt)
        assert (job.prompt.ids, job.text) == ([bos, *ids], "ab")
    for prompt in ([], [[]], ["a", 1], [300], [-1], [assistant.config.patch_id]):
        with pytest.raises(Refusal, match="prompt"):
            complete(assistant, prompt=prompt)


def test_nothing_is_made_only_where_the_prompt_is_echoed(assistant: Assistant) -> None:
    assert complete(assistant, echo=True, max_tokens=0)[0].n == 0
    with pytest.raises(Refusal, match="max_tokens"):
        complete(assistant, max_tokens=0)
    with pytest.raises(Refusal, match="suffix"):
        complete(assistant, suffix="x")
    with pytest.raises(Refusal, match="best_of"):
        complete(assistant, best_of=2)


def test_a_prompt_beyond_the_context_has_the_code_that_clients_know(assistant: Assistant) -> None:
    for fields in ({"messages": [{"role": "user", "content": "x" * CONTEXT_LEN}]}, {"max_tokens": CONTEXT_LEN - 5}):
        with pytest.raises(Refusal, match="context holds 2048") as refused:
            chat(assistant, **fields)
        assert refused.value.body.code == "context_length_exceeded"


def test_pictures_in_data_urls_give_the_tiles_of_the_picture(assistant: Assistant) -> None:
    image = picture()
    expected = assistant.prompt([{"role": "user", "content": [{"type": "image", "image": image}]}])
    for link in (data_url(image), {"url": data_url(image), "detail": "auto"}):
        job = chat(assistant, messages=asking(link))
        assert job.prompt.ids == expected.ids
        assert job.prompt.tiles is not None and expected.tiles is not None
        assert job.prompt.tiles.equal(expected.tiles)


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("https://example.com/a.png", "no data URL"),
        ("/etc/hostname", "no data URL"),
        ({"url": None}, "no data URL"),
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/png;base64,aGVsbG8=", "not an image"),
        (data_url(picture(), "BMP"), "not an image"),
        ({"url": data_url(picture()), "size": 1}, "unknown field"),
    ],
)
def test_other_pictures_are_refused(assistant: Assistant, link: object, problem: str) -> None:
    with pytest.raises(Refusal, match=problem) as refused:
        chat(assistant, messages=asking(link))
    assert str(refused.value.body.param).startswith("messages[0].content[0]")
    with pytest.raises(Refusal, match="no data URL"):
        chat(assistant, messages=[{"role": "user", "content": [{"type": "image", "image": "/etc/hostname"}]}])


def test_pictures_are_measured_before_they_are_decoded(assistant: Assistant) -> None:
    bomb = data_url(Image.new("1", (5000, 5000)))
    with pytest.raises(Refusal, match="25000000 pixels"):
        chat(assistant, messages=asking(bomb))
    with pytest.raises(Refusal, match="6 images"):
        chat(assistant, messages=asking(*[data_url(picture())] * 6))
    request = msgspec.convert({"model": "m", "messages": asking(data_url(picture()))}, ChatRequest)
    with pytest.raises(Refusal, match="more than 10 bytes"):
        chat_job(assistant.prompter, request, Limits(max_image_bytes=10))


def test_a_damaged_picture_is_the_clients_mistake(assistant: Assistant) -> None:
    data = base64.b64decode(data_url(Image.effect_noise((64, 64), 50)).partition(",")[2])
    cut = "data:image/png;base64," + base64.b64encode(data[: len(data) // 2]).decode()
    with pytest.raises(PromptError, match="damaged"):
        chat(assistant, messages=asking(cut))


def test_the_field_that_an_error_begins_with_becomes_its_param() -> None:
    assert refusal_of(PromptError("temperature is -1: give 0 or more")).body.param == "temperature"
    assert refusal_of(PromptError("messages[0].content: is a number")).body.param == "messages[0].content"
    assert refusal_of(PromptError("Something else")).body.param is None


def test_tokenize_reads_texts_and_conversations(assistant: Assistant) -> None:
    ids = assistant.tokenizer.encode("a<|eot|>")
    assert tokenized(assistant, TokenizeRequest(prompt="a<|eot|>"), Limits()) == [assistant.tokenizer.bos_id, *ids]
    assert tokenized(assistant, TokenizeRequest(prompt="a<|eot|>", add_special_tokens=False), Limits()) == ids
    assert tokenized(assistant, TokenizeRequest(messages=HELLO), Limits()) == assistant.prompt(HELLO).ids
    with pytest.raises(Refusal, match="give one of the two"):
        tokenized(assistant, TokenizeRequest(), Limits())
