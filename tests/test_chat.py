import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from PIL import Image

import puna
from puna.chat import Assistant, ChatOptions, Options, Piece, Timings, Usage, _answer, load
from puna.engine.request import TokenLogprobs
from puna.errors import ConfigError, DeviceError, PromptError
from puna.kernels.formats import Fp8
from puna.model.mask import Packed
from puna.parallel import Layout
from puna.prompt.message import Message, TextPart, Tool, ToolCall
from puna.quant import swap
from puna.weights import compressed
from tests.reference.tiny import random_model, tiny_config, write_tiny_checkpoint

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    torch.set_num_threads(1)
    return load(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")), device="cpu")


def picture() -> Image.Image:
    return Image.new("RGB", (40, 20), "red")


def test_load_comes_with_the_package_without_importing_torch_before() -> None:
    assert puna.load is load
    with pytest.raises(AttributeError, match="nothing"):
        puna.nothing  # noqa: B018


def test_chat_returns_a_message_of_the_assistant(assistant: Assistant) -> None:
    reply = assistant.chat(HELLO, max_new_tokens=5, seed=1)
    assert isinstance(reply, Message)
    assert (reply.role, reply.tool_calls) == ("assistant", ())
    assert reply == assistant.chat([Message("user", (TextPart("Hello"),))], max_new_tokens=5, seed=1)


def test_several_answers_differ_and_each_equals_the_one_of_its_seed(assistant: Assistant) -> None:
    several = assistant.chat(HELLO, max_new_tokens=8, seed=1, n=3, temperature=2.0)
    assert several == [assistant.chat(HELLO, max_new_tokens=8, seed=s, temperature=2.0) for s in (1, 2, 3)]
    texts = assistant.complete("ab", max_new_tokens=8, seed=1, n=2, temperature=2.0)
    assert len(set(texts)) == 2


@pytest.mark.parametrize("seed", range(5))
def test_streamed_text_equals_the_whole(assistant: Assistant, seed: int) -> None:
    reply = assistant.chat(HELLO, max_new_tokens=30, seed=seed, temperature=1.5)
    assert isinstance(reply, Message)
    assert "".join(assistant.stream_chat(HELLO, max_new_tokens=30, seed=seed, temperature=1.5)) == reply.text
    whole = assistant.complete("ab", [picture()], max_new_tokens=30, seed=seed)
    assert "".join(assistant.stream_complete("ab", [picture()], max_new_tokens=30, seed=seed)) == whole


def test_a_stop_string_ends_the_answer_before_itself(assistant: Assistant) -> None:
    plain = assistant.extend("ab", max_new_tokens=60, seed=3, temperature=1.5).answers[0]
    stop = plain.text[9:12]
    stopped = assistant.extend("ab", max_new_tokens=60, seed=3, temperature=1.5, stop=stop).answers[0]
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert stopped.finish == "stop"
    assert len(stopped.ids) < len(plain.ids)


def test_a_session_lets_answers_join_and_leave_without_changing_others(assistant: Assistant) -> None:
    session = assistant.session()
    options = Options(max_new_tokens=12, seed=4, temperature=1.5)
    kept, dropped = (session.begin(assistant.text_prompt(text), **options) for text in ("ab", "cd"))
    pieces = session.step()
    assert {number for number, _ in pieces} == {kept, dropped}
    session.end(dropped)
    late = session.begin(assistant.text_prompt("ef"), **options)
    assert (session.n_running, session.n_waiting) == (1, 1)
    while not session.is_idle:
        pieces += session.step()
    texts = {number: "".join(piece.text for n, piece in pieces if n == number) for number in (kept, late)}
    assert texts == {kept: assistant.complete("ab", **options), late: assistant.complete("ef", **options)}
    session.end(kept)  # nothing is left to end


@pytest.mark.parametrize("joins", [False, True])
def test_a_session_says_the_same_whenever_it_tells_and_stops_where_it_must(assistant: Assistant, joins: bool) -> None:
    dice = random.Random(3)
    options = Options(max_new_tokens=40, seed=3, temperature=1.5, n=2)
    plain = assistant.extend("ab", **options).answers[0].text
    for more in (Options(), Options(stop=plain[9:12]), Options(stop=[plain[5:7], "\ufffd"], include_stop=True)):
        prompt, asked = assistant.text_prompt("ab"), Options(**options, **more)
        expected = assistant.extend("ab", **asked)
        session, told = assistant.session(), list[Piece]()
        number = session.begin(prompt, joins=joins, **asked)
        while not session.is_idle:
            told += [piece for _, piece in session.step(lambda new: [each for each in new if dice.random() < 0.2])]
        for sample, answer in enumerate(expected.answers):
            mine = [piece for piece in told if piece.sample == sample]
            assert "".join(piece.text for piece in mine) == answer.text
            assert [piece.finish for piece in mine if piece.finish] == [answer.finish]
            assert sum(piece.n_tokens for piece in mine) == len(answer.ids)
            assert len(mine) < len(answer.ids) if joins else [piece.token for piece in mine] == [*answer.ids]
        assert session.n_made == expected.usage.completion_tokens
        session.end(number)  # nothing is left to end


def test_a_later_turn_reads_only_what_is_new(assistant: Assistant) -> None:
    first = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What?"}]}]
    one = assistant.respond(first, max_new_tokens=20, seed=1)
    turns = [*first, one.answers[0].message, {"role": "user", "content": "Why?"}]
    warm = assistant.respond(turns, max_new_tokens=20, seed=2)
    assert one.usage.prompt_tokens - 8 <= warm.usage.cached_tokens < warm.usage.prompt_tokens
    assistant.forget()
    cold = assistant.respond(turns, max_new_tokens=20, seed=2)
    assert cold.usage.cached_tokens == 0
    assert cold.answers == warm.answers


def test_a_stream_that_is_dropped_ends_its_work(assistant: Assistant) -> None:
    engine = assistant.session()._engine._shared.engine
    begun, unheard = (assistant.stream_complete("ab", max_new_tokens=400, temperature=0) for _ in range(2))
    next(begun)
    assert engine.n_running == 2
    del begun, unheard
    assistant.complete("cd", max_new_tokens=2)
    assert engine.is_idle
    engine.check_integrity()


def test_sessions_of_one_assistant_get_their_own_answers_from_common_steps(assistant: Assistant) -> None:
    options = Options(max_new_tokens=9, temperature=0)
    sessions = [assistant.session() for _ in range(3)]
    for session, text in zip(sessions, ("ab", "cd", "ef"), strict=True):
        session.begin(assistant.text_prompt(text), **options)
    texts = ["", "", ""]
    while not all(session.is_idle for session in sessions):
        for i, session in enumerate(sessions):
            texts[i] += "".join(piece.text for _, piece in session.step())
    assert texts == [assistant.complete(text, **options) for text in ("ab", "cd", "ef")]


def test_memory_of_keys_and_values_is_bounded_and_may_be_small_numbers(assistant: Assistant) -> None:
    small = Assistant(assistant.model, assistant.tokenizer, kv_bytes=200_000, kv_dtype="int8")
    cache = small.session()._engine._shared.engine.cache
    assert cache.n_bytes <= 200_000
    assert cache.dtype == torch.int8
    assert len(small.complete("ab", max_new_tokens=30)) > 0
    with pytest.raises(ConfigError, match="kv_dtype is 'int5'"):
        Assistant(assistant.model, assistant.tokenizer, kv_dtype="int5")


@pytest.mark.parametrize("place", ["memory", "files"])
def test_what_left_the_cache_comes_back_from_where_it_was_spilled(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "spill" if place == "files" else None
    checkpoint = write_tiny_checkpoint(tmp_path / "model", vision=False)
    forgetful = load(checkpoint, device="cpu", kv_bytes=60_000)
    keeping = load(checkpoint, device="cpu", kv_bytes=60_000, spill_bytes=10**7, spill_dir=folder)
    options = Options(temperature=0, max_new_tokens=3)
    texts = [letter * 40 for letter in "abcdefghijkl"]
    cold, warm = ([[one.extend(text, **options) for text in texts] for _ in range(2)] for one in (forgetful, keeping))
    assert cold[1][0].usage.cached_tokens == 0
    assert warm[1][0].usage.cached_tokens >= 32
    assert [[each.answers for each in round_] for round_ in warm] == [[each.answers for each in cold[0]]] * 2
    assert folder is None or any(file.stat().st_size for file in folder.iterdir())


def test_a_spill_that_could_keep_nothing_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="spill_bytes is not given: say how much"):
        load(tmp_path, device="cpu", spill_dir=tmp_path)
    with pytest.raises(ConfigError, match="spill_bytes is 0: give 1 or more"):
        load(tmp_path, device="cpu", spill_bytes=0)


def test_an_answer_whose_deadline_has_passed_is_aborted_and_leaves_others_alone(assistant: Assistant) -> None:
    session, options = assistant.session(), Options(max_new_tokens=6, temperature=0)
    soon = session.begin(assistant.text_prompt("ab"), **options, deadline_seconds=3600)
    late = session.begin(assistant.text_prompt("cd"), **options, deadline_seconds=0)
    ends = {}
    while not session.is_idle:
        ends |= {number: piece.finish for number, piece in session.step()}
    assert ends == {soon: "length", late: "abort"}
    response = assistant.respond(HELLO, deadline_seconds=0.0)
    assert [(answer.finish, answer.text) for answer in response.answers] == [("abort", "")]
    assert response.timings.tokens_per_second(response.usage) == 0


def test_less_priority_numbers_come_first(assistant: Assistant) -> None:
    session, options = assistant.session(), Options(max_new_tokens=1, temperature=0)
    prompts = [assistant.text_prompt(text) for text in ("ab", "cd", "ef")]
    numbers = [session.begin(each, **options, priority=p) for each, p in zip(prompts, (2, 0, -0.5), strict=True)]
    assert [number for number, _ in assistant.engine.waiting] == numbers[::-1]
    session.close()
    with pytest.raises(PromptError, match=r"priority is 101: give a number within -100\.\.100"):
        assistant.chat(HELLO, priority=101)


def test_prompt_logprobs_belong_to_every_token_but_the_first(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = assistant.text_prompt("abcdef")
    expected = assistant.logits(prompt.ids).log_softmax(dim=-1)
    whole = assistant.prompt_logprobs(prompt, 2)
    assert [given.chosen for given in whole] == [expected[i, id_].item() for i, id_ in enumerate(prompt.ids[1:])]
    assert [given.top[0] for given in whole] == [(row.argmax().item(), row.max().item()) for row in expected[:-1]]
    monkeypatch.setattr("puna.chat._ROWS_AT_ONCE", 2)
    assert assistant.prompt_logprobs(prompt, 2) == whole
    assert assistant.prompt_logprobs(assistant.text_prompt("")) == []


def test_a_stop_string_ends_only_its_own_sample(assistant: Assistant) -> None:
    plain = assistant.extend("ab", max_new_tokens=40, seed=3, n=3, temperature=1.5).answers
    stop = plain[1].text[5:9]
    stopped = assistant.extend("ab", max_new_tokens=40, seed=3, n=3, temperature=1.5, stop=[stop]).answers
    assert [answer.text for answer in stopped] == [answer.text.split(stop)[0] for answer in plain]


def test_logits_are_those_of_a_forward_without_a_cache(assistant: Assistant) -> None:
    prompt = assistant.prompt([{"role": "user", "content": [{"type": "image", "image": picture()}]}])
    assert prompt.tiles is not None
    ids, model = torch.tensor(prompt.ids), assistant.model
    logits = assistant.logits(prompt.ids, prompt.tiles)
    store = Packed.single(model.config.text, len(ids))
    expected = model(ids, torch.arange(len(ids)), store, model.embed_tiles(prompt.tiles))
    # Sums in another order, in float32.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert logits.shape == (len(ids), assistant.config.text.vocab_size)
    assert logits.dtype == torch.float32


def test_padding_rows_of_the_vocabulary_and_patch_tokens_are_never_written(assistant: Assistant) -> None:
    # So hot that all 272 rows are equally probable.
    answers = assistant.extend("ab", n=20, max_new_tokens=200, temperature=1e9, top_p=1.0, seed=1).answers
    written = {id_ for answer in answers for id_ in answer.ids}
    assert len(written) > 200
    assert not written & {271, assistant.config.patch_id}


def test_a_prompt_that_leaves_the_context_is_refused_before_anything_runs(assistant: Assistant) -> None:
    for call in (assistant.stream_chat, assistant.chat, assistant.respond):
        with pytest.raises(PromptError, match="context of 512"):
            call([{"role": "user", "content": "x" * 600}])
    with pytest.raises(PromptError, match="max_new_tokens 600"):
        assistant.stream_complete("x", max_new_tokens=600)


def test_a_text_model_refuses_a_picture(tmp_path: Path) -> None:
    reader = load(write_tiny_checkpoint(tmp_path / "text", vision=False), device="cpu")
    with pytest.raises(PromptError, match="no vision tower"):
        reader.chat([{"role": "user", "content": [{"type": "image", "image": picture()}]}])
    assert isinstance(reader.chat(HELLO, max_new_tokens=2), Message)


def test_wrong_settings_are_named(assistant: Assistant) -> None:
    with pytest.raises(PromptError, match="temperature is -1"):
        assistant.chat(HELLO, temperature=-1)
    with pytest.raises(PromptError, match="n is 2: a stream"):
        assistant.stream_chat(HELLO, n=2)
    with pytest.raises(PromptError, match="n is 0"):
        assistant.chat(HELLO, n=0)
    with pytest.raises(PromptError, match="stop"):
        assistant.chat(HELLO, stop="")
    with pytest.raises(PromptError, match="messages is empty"):
        assistant.chat([])
    with pytest.raises(TypeError, match=r"temprature: is no option of an answer; did you mean temperature\?"):
        assistant.chat(HELLO, temprature=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"verbose: .*known are temperature, top_p"):
        assistant.complete("Hello", verbose=True)  # type: ignore[call-arg]


def test_respond_reports_finish_usage_and_logprobs(assistant: Assistant) -> None:
    response = assistant.respond(HELLO, max_new_tokens=6, seed=1, n=2, logprobs=3)
    assert response.usage == Usage(
        prompt_tokens=len(assistant.prompt(HELLO).ids),
        completion_tokens=sum(len(answer.ids) for answer in response.answers),
        cached_tokens=response.usage.cached_tokens,
    )
    for answer in response.answers:
        assert len(answer.logprobs) == len(answer.ids)
        assert all(isinstance(entry, TokenLogprobs) and len(entry.top) == 3 for entry in answer.logprobs)
        assert answer.finish == ("length" if len(answer.ids) == 6 else "stop")


def test_timings_come_from_the_clock_that_is_given(assistant: Assistant) -> None:
    ticking: Iterator[int] = count()
    timed = Assistant(assistant.model, assistant.tokenizer, clock=lambda: float(next(ticking)))
    response = timed.extend("ab", max_new_tokens=4, seed=1)
    assert response.timings == Timings(first_token_seconds=1.0, total_seconds=2.0)
    assert response.timings.tokens_per_second(response.usage) == response.usage.completion_tokens - 1


def test_tools_are_in_the_prompt_and_their_calls_are_read_back(assistant: Assistant) -> None:
    def told(**options: str) -> str:
        return assistant.tokenizer.decode(assistant.prompt(HELLO, [TOOL.to_dict()], **options).ids)  # type: ignore[arg-type]

    assert "Adds." in told().split("user")[0]
    assert "Adds." in told(tools_in="user").split("user", 1)[1]
    assert told(tool_style="json") != told()
    pieces = [Piece(0, "[add(a=1", 1, None, None), Piece(0, ")]", 2, None, "stop")]
    assert _answer(pieces, [TOOL]).message.tool_calls == (ToolCall("add", {"a": 1}),)
    assert _answer(pieces, []).message == Message("assistant", (TextPart("[add(a=1)]"),))


def test_load_names_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantize is 'int3': expected one of int4, int8, fp8"):
        load(tmp_path, quantize=cast(Any, "int3"))
    with pytest.raises(ConfigError, match="dtype is 'int3'"):
        load(tmp_path, dtype="int3")
    with pytest.raises(DeviceError, match="device is 'abacus'"):
        load(tmp_path, device="abacus")


def test_load_makes_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    model = load(write_tiny_checkpoint(tmp_path / "tiny"), device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
    assert isinstance(model.chat(HELLO, max_new_tokens=3), Message)
    assert model.logits([1, 2]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("quantize", ["int8", "fp8"])
def test_every_small_format_answers_in_every_dtype(quantize: swap.Format, dtype: str | None, tmp_path: Path) -> None:
    small = load(write_tiny_checkpoint(tmp_path / "tiny"), device="cpu", dtype=dtype, quantize=quantize)
    assert isinstance(small.model.head, swap.SmallLinear)
    assert small.logits([1, 2]).isfinite().all()
    assert isinstance(small.chat(HELLO, max_new_tokens=3), Message)


def test_a_format_that_does_not_fit_a_model_is_refused_with_the_parameter(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mlp.down.weight: int4: 48 columns are not a multiple of 32; use int8"):
        load(write_tiny_checkpoint(tmp_path / "tiny"), device="cpu", quantize="int4")


def test_small_numbers_on_disk_stay_small_unless_a_dtype_is_asked_for(tmp_path: Path) -> None:
    wide, policy = write_tiny_checkpoint(tmp_path / "tiny"), swap.Policy(to="fp8")
    compressed.save_compressed(wide, tmp_path / "fp8", Fp8, policy.shrink, policy.covers)
    kept, written_out = load(tmp_path / "fp8", device="cpu"), load(tmp_path / "fp8", device="cpu", dtype="float32")
    assert isinstance(kept.model.head.weight, Fp8)
    assert not isinstance(written_out.model.head.weight, Fp8)
    # the same numbers, multiplied by another kernel where there is one: rounding of float32
    torch.testing.assert_close(kept.logits([1, 2, 3]), written_out.logits([1, 2, 3]), rtol=1e-4, atol=1e-4)
    again = load(tmp_path / "fp8", device="cpu", quantize="int8")
    assert not isinstance(again.model.head.weight, Fp8)


def test_a_foreign_tokenizer_is_refused(assistant: Assistant) -> None:
    with pytest.raises(ConfigError, match="tokenizer has 271 tokens, the model 64"):
        Assistant(random_model(tiny_config()), assistant.tokenizer)
    other = replace(assistant.config, patch_id=1)
    with pytest.raises(ConfigError, match="as 268, the model as 1"):
        Assistant(random_model(other), assistant.tokenizer)


# Grammars and guesses ---------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "sizes": {"type": "array", "items": {"enum": [1, 2]}}},
    "required": ["name", "sizes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def guessing(assistant: Assistant, tmp_path_factory: pytest.TempPathFactory) -> list[Assistant]:
    """The same model, guessing by lookup and by itself."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("guessing"))
    return [load(folder, device="cpu", speculate=by) for by in ("lookup", folder)]


def test_guessed_tokens_change_no_answer(assistant: Assistant, guessing: list[Assistant]) -> None:
    kinds = [
        Options(seed=3, temperature=1.5, n=2),
        Options(temperature=0),
        Options(seed=1, stop=["e", "th"], logprobs=1),
    ]
    for options in kinds:
        options["max_new_tokens"] = 40
        expected = assistant.extend("abcabcabcab", [picture()], **options)
        for other in guessing:
            got = other.extend("abcabcabcab", [picture()], **options)
            assert [(a.text, a.ids, a.finish) for a in got.answers] == [
                (a.text, a.ids, a.finish) for a in expected.answers
            ]
            assert "".join(other.stream_complete("abcab", **{**options, "n": 1})) == assistant.complete(
                "abcab", **{**options, "n": 1}
            )
    for other in guessing:
        n_drafted, n_accepted = other.drafts
        assert 0 < n_accepted < n_drafted
    assert assistant.drafts == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_keeps_to_its_schema(assistant: Assistant, guessing: list[Assistant], seed: int) -> None:
    pytest.importorskip("llguidance")
    options = Options(json_schema=SCHEMA, seed=seed, temperature=1.0, n=2, max_new_tokens=200)
    response = assistant.extend("ab", **options)
    for answer in response.answers:
        assert answer.finish == "stop"
        document = json.loads(answer.text)
        assert document.keys() == {"name", "sizes"}
        assert len(document["name"]) <= 6
        assert set(document["sizes"]) <= {1, 2}
    for other in guessing:
        assert other.extend("ab", **options).answers == response.answers


def test_an_answer_follows_an_expression_a_list_or_a_grammar(assistant: Assistant) -> None:
    pytest.importorskip("llguidance")
    assert assistant.chat(HELLO, choice=["yes", "no"], seed=1).text in ("yes", "no")  # type: ignore[union-attr]
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", str(assistant.complete("x", regex="[a-c]{3}-[0-9]{2}", seed=2)))
    assert assistant.complete("x", grammar='start: "a" b\nb: "b" | "c"', seed=3) in ("ab", "ac")


def test_a_grammar_that_cannot_be_followed_is_refused_before_anything_runs(assistant: Assistant) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(PromptError, match="regex: cannot be followed"):
        assistant.complete("x", regex="(a")
    with pytest.raises(PromptError, match="regex and choice are given: a text follows one grammar"):
        assistant.complete("x", regex="a", choice=["a"])
    with pytest.raises(PromptError, match="tool_choice is 'sub': the tools given are add"):
        assistant.chat(HELLO, [TOOL], tool_choice="sub")
    with pytest.raises(PromptError, match="tool_choice is 'required': the tools given are none"):
        assistant.chat(HELLO, tool_choice="required")
    with pytest.raises(PromptError, match="tool_choice is 'required' beside a grammar"):
        assistant.chat(HELLO, [TOOL], tool_choice="required", regex="a")


@pytest.fixture(scope="module")
def roomy(assistant: Assistant) -> Assistant:
    """A context that tool definitions fit into."""
    config = replace(assistant.config, text=replace(assistant.config.text, context_len=4096))
    return Assistant(random_model(config), assistant.tokenizer)


@pytest.mark.parametrize("style", ["pythonic", "json"])
def test_a_tool_that_must_be_called_is_called(roomy: Assistant, style: Literal["pythonic", "json"]) -> None:
    pytest.importorskip("llguidance")
    tool = replace(TOOL, parameters={**TOOL.parameters, "additionalProperties": False})
    for choice in ("required", "add"):
        options = ChatOptions(tool_choice=choice, tool_style=style, seed=1, temperature=0.3, max_new_tokens=300)
        message = cast(Message, roomy.chat(HELLO, [tool], **options))
        assert message.tool_calls
        assert all(call.name == "add" and type(call.arguments["a"]) is int for call in message.tool_calls)


def test_beside_tools_a_schema_is_for_answers_that_are_no_calls(roomy: Assistant) -> None:
    pytest.importorskip("llguidance")
    kinds = set()
    for seed in range(8):
        message = roomy.chat(HELLO, [TOOL], json_schema={"enum": [7]}, seed=seed, temperature=1.0, max_new_tokens=200)
        assert isinstance(message, Message)
        kinds.add(bool(message.tool_calls))
        assert message.tool_calls or message.text == "7"
    assert False in kinds


def test_a_model_of_another_vocabulary_cannot_guess(assistant: Assistant, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="its vocabulary is another one"):
        load(folder, device="cpu", speculate="cria")


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_model_that_was_kept_as_it_runs_gives_the_same_logits(
    tmp_path: Path, quantize: Literal["int8"] | None
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "model", vision=False)
    ids = [1, 2, 3, 4, 5]
    plain = load(checkpoint, device="cpu", quantize=quantize).logits(ids)
    for _ in range(2):
        again = load(checkpoint, device="cpu", quantize=quantize, cache_dir=tmp_path / "kept")
        assert torch.equal(again.logits(ids), plain)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    load(checkpoint, device="cpu", dtype="bfloat16", quantize=quantize, cache_dir=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_folder_for_kept_models_is_not_silently_ignored(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "model", vision=False)
    with pytest.raises(ConfigError, match="cache_dir"):
        load(checkpoint, device="cpu", offload="disk", cache_dir=tmp_path / "kept")
    with pytest.raises(ConfigError, match="cache_dir"):
        load(checkpoint, device="cpu", layout=Layout.of(2), cache_dir=tmp_path / "kept")
