import random
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import PromptError
from puna.prompt.message import Tool, ToolCall
from puna.prompt.parse import parse
from puna.prompt.render import ToolStyle, call_text
from puna.prompt.tool_grammar import tool_grammar, words_and_calls

llguidance = pytest.importorskip("llguidance")

TEXT = {"type": "string"}

ALPHABET = [bytes([i]) for i in range(256)]


class _Bytes:
    """A vocabulary of single bytes, as llguidance asks for it."""

    is_tokenizer_wrapper = True
    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*ALPHABET, b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TABLE = llguidance.LLTokenizer(_Bytes(), n_vocab=257)


def matcher(tools: list[Tool], style: ToolStyle = "pythonic", name: str | None = None) -> Any:
    found = llguidance.LLMatcher(TABLE, llguidance.LLMatcher.grammar_from_lark(tool_grammar(tools, style, name)))
    assert not found.is_error(), found.get_error()
    return found


def accepts(tools: list[Tool], text: str, **options: Any) -> bool:
    state = matcher(tools, **options)
    return state.try_consume_tokens(list(text.encode())) == len(text.encode()) and state.is_accepting()


def written(tools: list[Tool], style: ToolStyle, seed: int) -> str | None:
    """Returns what somebody writes who picks any byte that is allowed, closing ones rather; None: it has no end."""
    state, dice, text = matcher(tools, style), random.Random(seed), bytearray()
    while len(text) < 500:
        mask = state.compute_bitmask()
        allowed = [i for i in range(257) if mask[i // 8] >> i % 8 & 1]
        closing = [i for i in allowed if i in (*b'"])}', 256)]
        token = dice.choice(closing if closing and dice.random() < 0.5 else allowed)
        if token == 256:
            return text.decode()
        assert state.consume_token(token)
        text.append(token)
    return None


def tool(parameters: Mapping[str, Any], name: str = "f") -> Tool:
    return Tool(name, "", dict(parameters))


WEATHER = tool(
    {
        "type": "object",
        "properties": {"place": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
        "required": ["place"],
    },
    "weather.now",
)


@pytest.mark.parametrize(
    ("text", "is_call"),
    [
        ('[weather.now(place="Lima")]', True),
        ('[weather.now(place="Li\\"ma\\n", days=3, unit="C")]', True),
        ('[weather.now(place="a"), weather.now(place="b", unit="F")]', True),
        ("[weather.now()]", False),
        ("[weather.now(days=3)]", False),
        ('[weather.now(place="a", unit="K")]', False),
        ('[weather.now(place="a", other=1)]', False),
        ('[weather.now(place="a", days=1.5)]', False),
        ("[]", False),
        ('weather.now(place="a")', False),
    ],
)
def test_a_call_has_its_required_arguments_and_only_those_it_knows(text: str, is_call: bool) -> None:
    assert accepts([WEATHER], text) == is_call


def test_json_calls_are_one_object_or_a_list() -> None:
    one = '{"name": "weather.now", "parameters": {"place": "a", "days": 2}}'
    assert accepts([WEATHER], one, style="json")
    assert accepts([WEATHER], f"[{one}, {one}]", style="json")
    assert not accepts([WEATHER], one.replace("2", '"2"'), style="json")


def test_a_named_tool_is_the_only_one_that_can_be_called() -> None:
    tools = [tool({}, "a"), tool({}, "b")]
    assert accepts(tools, "[a(), b()]")
    assert accepts(tools, "[b()]", name="b")
    assert not accepts(tools, "[a()]", name="b")
    with pytest.raises(PromptError, match="tool_choice is 'c': the tools given are a, b"):
        tool_grammar(tools, name="c")


def test_values_are_python_literals_of_their_type() -> None:
    kinds = {
        "b": {"type": "boolean"},
        "n": {"type": ["null", "integer"]},
        "l": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}, "maxItems": 2},
        "o": {"type": "object", "properties": {"k": {"const": None}, "m": {"type": "boolean"}}, "required": ["m"]},
        "d": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 5, "maximum": 7}},
        "s": {"type": "string", "pattern": "^[ab]{2}$"},
        "t": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
        "x": {},
    }
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
    tools = [tool({"type": "object", "properties": kinds, "$defs": {"tree": tree}})]
    for text in (
        "f()",
        "f(b=True, n=None, l=[[1.5, -2], []])",
        'f(o={"m": False, "k": None})',
        'f(d={"q": 6, "r": 7}, s="ab")',
        'f(t={"next": {"next": {}}})',
        'f(n=12, x=[True, {"a": "b"}, None, 1e5])',
    ):
        assert accepts(tools, f"[{text}]"), text
    for text in (
        "f(b=true)",
        "f(l=[[], [], []])",
        'f(o={"k": None})',
        'f(d={"q": 8})',
        'f(s="ac")',
        "f(n=None, b=True)",
    ):
        assert not accepts(tools, f"[{text}]"), text


def test_arguments_that_are_no_python_names_go_in_a_dictionary() -> None:
    tools = [tool({"type": "object", "properties": {"from": TEXT, "n": {}, "a b": {}}, "required": ["from"]})]
    for text in ('[f(n=2, **{"from": "x", "a b": 1})]', '[f(**{"from": "x"})]'):
        assert accepts(tools, text)
    assert not accepts(tools, "[f(n=2)]")


SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "maxLength": 4},
            {"type": "integer"},
            {"type": "integer", "minimum": -3, "maximum": 12},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ['é"\n', 1, None, True, [1, {"a": 2.5}]]},
            {},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda i, n: {"type": "array", "items": i, "minItems": n, "maxItems": 2}, inner, st.integers(0, 2)),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(
            lambda p, n: {"type": "object", "properties": p, "required": list(p)[:n]},
            st.dictionaries(st.sampled_from(["a", "b1", "ü", "from", "c d", '"']), inner, max_size=4),
            st.integers(0, 4),
        ),
    ),
    max_leaves=6,
)


def conforms(value: object, schema: Mapping[str, Any]) -> bool:
    """Whether a value is one of `schema`, for the keywords that SCHEMAS uses."""
    if "anyOf" in schema:
        return any(conforms(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return any(value == each and type(value) is type(each) for each in schema["enum"])
    match schema.get("type"):
        case "string":
            return isinstance(value, str) and len(value) <= schema.get("maxLength", 9999)
        case "integer":
            bounds = schema.get("minimum", -1e99), schema.get("maximum", 1e99)
            return type(value) is int and bounds[0] <= value <= bounds[1]
        case "number":
            return type(value) in (int, float)
        case "boolean":
            return type(value) is bool
        case "null":
            return value is None
        case "array":
            fits = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return fits and all(conforms(item, schema["items"]) for item in value)
        case "object":
            known = schema["properties"]
            fits = isinstance(value, dict) and set(schema["required"]) <= value.keys()
            return fits and all(key not in known or conforms(item, known[key]) for key, item in value.items())
    return True


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "from"]), SCHEMAS, max_size=3), st.integers(0, 3), st.integers())
@pytest.mark.parametrize("style", ["pythonic", "json"])
def test_whatever_the_grammar_lets_be_written_is_read_as_calls_that_fit_their_tools(
    style: ToolStyle, properties: dict[str, Any], n_required: int, seed: int
) -> None:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:n_required]}
    tools = [tool(parameters, "f"), tool({"type": "object", "properties": {"q": {"type": "string"}}}, "g-2")]
    text = written(tools, style, seed)
    if text is None or re.search(r"[eE][+-]?\d{3}|\d{300}", text):  # JSON knows numbers beyond every float
        return
    message = parse(text, tools)
    assert message.tool_calls, text
    assert not message.content, text
    for call in message.tool_calls:
        schema = parameters if call.name == "f" else {"type": "object", "properties": {}, "required": []}
        assert conforms(call.arguments, {**schema, "required": parameters["required"] if call.name == "f" else []})


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "from"]), SCHEMAS, max_size=3), st.integers())
def test_what_we_render_is_what_the_grammar_allows(properties: dict[str, Any], seed: int) -> None:
    tools = [tool({"type": "object", "properties": properties, "required": list(properties)[:1]}, "f")]
    text = written(tools, "pythonic", seed)
    if text is not None and "e" not in text:  # numbers with exponents may be written in other ways
        assert accepts(tools, call_text(parse(text, tools).tool_calls, "pythonic"))


def end_of(grammar: str, text: str) -> str:
    """Returns whether an answer may be `text` ("whole"), only begin so ("open"), or not ("barred")."""
    state = llguidance.LLMatcher(TABLE, llguidance.LLMatcher.grammar_from_lark(grammar))
    assert not state.is_error(), state.get_error()
    if state.try_consume_tokens(list(text.encode())) < len(text.encode()):
        return "barred"
    return "whole" if state.is_accepting() else "open"


@pytest.mark.parametrize(
    ("text", "pythonic", "json"),
    [
        ("Words [1] (x), {a} and a < b\n", "whole", "whole"),
        ("Let me see. [f(place=", "open", "barred"),
        ('Let me see. [f(place="x"), f(place="y", days=2)]', "whole", "barred"),
        ('[f(place="x")] then', "barred", "barred"),
        ("[f(place=1", "barred", "barred"),
        ("[ f (", "barred", "barred"),
        ("[g(x=1)]", "whole", "whole"),
        ('So: {"name": "f", "parameters": {"place": "x"}}', "barred", "whole"),
        (
            '[{"name": "f", "parameters": {"place": "x"}}, {"name": "f", "parameters": {"place": "y"}}]',
            "barred",
            "whole",
        ),
        ('{"name": "f", "parameters": {"days": "x', "barred", "barred"),
        ('{"type": "function"', "barred", "barred"),
        ("<function=f>", "barred", "barred"),
    ],
)
def test_words_are_free_and_calls_within_them_are_not(text: str, pythonic: str, json: str) -> None:
    strict = [
        tool({"type": "object", "properties": {"place": TEXT, "days": {"type": "integer"}}, "required": ["place"]})
    ]
    assert end_of(words_and_calls(strict, "pythonic"), text) == pythonic
    assert end_of(words_and_calls(strict, "json"), text) == json


@pytest.mark.parametrize("make", [tool_grammar, words_and_calls])
@pytest.mark.parametrize("style", ["pythonic", "json"])
def test_the_number_of_calls_can_be_bounded(make: Any, style: ToolStyle) -> None:
    free = [tool({})]
    calls = [parse(call_text([ToolCall("f", {})] * n, style)).tool_calls for n in (1, 2, 3)]
    texts = [call_text(each, style) for each in calls]
    for most, expected in ((1, "whole barred barred"), (2, "whole whole barred"), (None, "whole whole whole")):
        assert " ".join(end_of(make(free, style, most=most), text) for text in texts) == expected
