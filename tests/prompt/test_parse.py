"""Finished replies to messages: every notation, what stays text, and that parsing undoes rendering."""

import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.prompt.message import Message, TextPart, Tool, ToolCall
from puna.prompt.parse import Reply, parse
from puna.prompt.render import Renderer, ToolStyle, call_text
from puna.prompt.tokenizer import Tokenizer

TOOLS = (Tool("f", "", {}), Tool("weather.get", "", {}), Tool("get-user", "", {}))

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
KEYS = st.text() | st.sampled_from(("from", "class", "city", "größe", "ﬁ", "None", "a b", ""))
CALLS = st.builds(
    ToolCall,
    name=st.from_regex(r"[\w.:/-]+", fullmatch=True),
    arguments=st.dictionaries(KEYS, JSON_VALUES, max_size=4),
)
WORDS = st.text(st.characters(exclude_characters="[{<", exclude_categories=["Cs"]), max_size=30)


def _message(words: str, calls: list[ToolCall]) -> Message:
    return Message("assistant", (TextPart(words),) if words else (), tuple(calls))


@given(words=WORDS, calls=st.lists(CALLS, max_size=3), style=st.sampled_from(("pythonic", "json")))
@settings(max_examples=200, deadline=None)
def test_parsing_a_rendered_message_gives_the_message(words: str, calls: list[ToolCall], style: ToolStyle) -> None:
    text = words + (call_text(calls, style) if calls else "")
    assert parse(text) == _message(words, calls)
    assert parse(text, [Tool(call.name, "", {}) for call in calls]) == _message(words, calls)


@given(words=WORDS, calls=st.lists(CALLS, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_the_way_through_ids_gives_the_message(words: str, calls: list[ToolCall], tokenizer: Tokenizer) -> None:
    message = _message(words, calls)
    renderer = Renderer(tokenizer, None)
    ids = renderer.turn(message).ids[len(renderer.header("assistant")) : -1]
    assert parse(tokenizer.decode(ids)) == message


@given(text=st.text(st.sampled_from("[{(<function=>f:\"'\\,}])name parmetrs1-*|/\n"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    message = parse(text)
    assert message.tool_calls or message.text == text


NOTATIONS = [
    ('[f(a="x")]', {"a": "x"}),
    ("[f(a='x', b=1, c=-2.5, d=True, e=None)]", {"a": "x", "b": 1, "c": -2.5, "d": True, "e": None}),
    ("[f(a=true, b=false, c=null)]", {"a": True, "b": False, "c": None}),
    ("[f(a=[1, [2, {'k': (3, 4)}]], b={})]", {"a": [1, [2, {"k": [3, 4]}]], "b": {}}),
    ("[ f ( a = 1 , ) , ]", {"a": 1}),
    ("[f()]", {}),
    ("[\n  f(\n    a=1,\n  ),\n]", {"a": 1}),
    ("[f(from='Bonn', **{'x y': 1})]", {"from": "Bonn", "x y": 1}),
    (
        "[f(a='it\\'s', b=\"a\\\\b\\n\", c=r'\\d', d='''x'y''', e=\"\"\"\nq\"\"\")]",
        {"a": "it's", "b": "a\\b\n", "c": "\\d", "d": "x'y", "e": "\nq"},
    ),
    ("[f(a='\\x41\\u00e9\\U0001F600\\N{BULLET}\\101\\ud83d\\ude00')]", {"a": "Aé😀•A😀"}),
    ("[f(a='one' \"two\")]", {"a": "onetwo"}),
    ("[f(a='])', b='}')]", {"a": "])", "b": "}"}),
    ("[f(größe='größer', 名='日本')]", {"größe": "größer", "名": "日本"}),
    ("[f(a=1e3, b=.5, c=+7)]", {"a": 1000.0, "b": 0.5, "c": 7}),
    ('{"name": "f", "parameters": {"a": [1, null]}}', {"a": [1, None]}),
    ('{"parameters": {"a": 1}, "name": "f"}', {"a": 1}),
    ('{"type": "function", "name": "f", "parameters": {"a": 1}}', {"a": 1}),
    ('{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}', {"a": 1}),
    ('{"name": "f", "arguments": {"a": "\\u00e9\\/"}}', {"a": "é/"}),
    ('{"name": "f", "parameters": null}', {}),
    ('{\n  "name": "f",\n  "parameters": {"a": 1}\n}', {"a": 1}),
    ("{'name': 'f', 'parameters': {'a': True}}", {"a": True}),
    ('{"name": "f", "parameters": {"a": "two\nlines"}}', {"a": "two\nlines"}),
    ('[{"name": "f", "parameters": {"a": 1}}]', {"a": 1}),
    ('<function=f>{"a": 1}</function>', {"a": 1}),
    ("<function=f>{'a': 1}", {"a": 1}),
    ('<|python_start|>{"name": "f", "parameters": {"a": 1}}<|python_end|>', {"a": 1}),
    ("<|python_start|>[f(a=1)]<|python_end|>\n", {"a": 1}),
    ("<|python_start|>[f(a=1)]", {"a": 1}),
]


@pytest.mark.parametrize(("text", "arguments"), NOTATIONS)
@pytest.mark.parametrize("tools", [(), TOOLS])
def test_every_notation_is_read(text: str, arguments: dict[str, object], tools: tuple[Tool, ...]) -> None:
    assert parse(text, tools) == _message("", [ToolCall("f", arguments)])


@pytest.mark.parametrize(
    "text",
    [
        "[f(a=1), weather.get(b=2)]",
        "[f(a=1)][weather.get(b=2)]",
        "[f(a=1)]; [weather.get(b=2)]",
        '{"name": "f", "parameters": {"a": 1}}; {"name": "weather.get", "parameters": {"b": 2}}',
        '{"name": "f", "parameters": {"a": 1}}\n{"name": "weather.get", "parameters": {"b": 2}}\n',
        '[{"name": "f", "parameters": {"a": 1}}, {"name": "weather.get", "parameters": {"b": 2}}]',
        '<|python_start|>{"name": "f", "parameters": {"a": 1}}<|python_end|>[weather.get(b=2)]',
        '<function=f>{"a": 1}</function><function=weather.get>{"b": 2}</function>',
    ],
)
def test_several_calls_are_read_in_order(text: str) -> None:
    assert parse(text, TOOLS) == _message("", [ToolCall("f", {"a": 1}), ToolCall("weather.get", {"b": 2})])


def test_ids_and_names_with_dashes_are_kept() -> None:
    assert parse("[get-user(id=7)]", TOOLS).tool_calls == (ToolCall("get-user", {"id": 7}),)
    text = '{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}'
    assert parse(text).tool_calls == (ToolCall("f", {}, "c1"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Let me look.\n\n[f(a=1)]", "Let me look.\n\n"),
        ("I [think] so: [f(a=1)]", "I [think] so: "),
        ('Sure {really}: {"name": "f", "parameters": {"a": 1}}', "Sure {really}: "),
        ("Both. [f(a=1)]\nDone.", "Both. \nDone."),
        ("<|python_start|>Words<|python_end|>[f(a=1)]", "Words"),
        ("[[f(a=1)]", "["),
    ],
)
def test_words_around_a_call_stay_as_content(text: str, words: str) -> None:
    assert parse(text, TOOLS) == _message(words, [ToolCall("f", {"a": 1})])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello.",
        "[unknown(a=1)]",
        "[f(a=1), unknown(a=1)]",
        '{"name": "unknown", "parameters": {}}',
        '[{"name": "f", "parameters": {}}, {"name": "unknown", "parameters": {}}]',
        '{"name": "unknown", "parameters": {"a": {"name": "f", "parameters": {}}}}',
        '[unknown(a=[{"name": "f", "parameters": {}}])]',
        '[{"result": {"name": "f", "parameters": {}}}]',
        "<function=unknown>{}</function>",
    ],
)
def test_names_that_are_no_tools_stay_text(text: str) -> None:
    assert parse(text, TOOLS) == _message(text, [])


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]",
        "[]",
        "[f]",
        "f(a=1)",
        "[f(1)]",
        "[f(a=1, a=2)]",
        "[f(a=1, **{'a': 2})]",
        "[f(a=g(b=1))]",
        "[f(a=x)]",
        "[f(a=1+1)]",
        "[f(a={1, 2})]",
        "[f(a={1: 2})]",
        "[f(a=b'x')]",
        "[f(a=f'{x}')]",
        "[f(a=1",
        "[f(a='x]",
        "[f(a=1) for x in y]",
        "[f(a='\\N{NO SUCH NAME}')]",
        "[f(a='\\U00110000')]",
        "[f(a=1e999)]",
        "[f(a=" + "9" * 500 + ")]",
        "[f(a=" + "[" * 100 + "]" * 100 + ")]",
        '{"name": "f"}',
        '{"name": "f", "parameters": [1]}',
        '{"name": "f", "parameters": "x"}',
        '{"name": "f", "parameters": "{} x"}',
        '{"name": "f", "parameters": {}, "arguments": {}}',
        '{"name": "f", "parameters": {}, "more": 1}',
        '{"name": "f", "parameters": {"a": NaN}}',
        '{"name": "f", "parameters": {"a": 1e999}}',
        '{"name": "f", "parameters": ' + '{"a": ' * 100 + "1" + "}" * 101,
        '{"name": 5, "parameters": {}}',
        '{"name": "a b", "parameters": {}}',
        '{"type": "text", "name": "f", "parameters": {}}',
        '{"id": 5, "name": "f", "parameters": {}}',
        '[{"name": "f", "parameters": {}}, 5]',
        "<function=f>x</function>",
        "<function=f>[1]</function>",
        "<function=>{}",
        "<|python_start|>print(1)<|python_end|>",
    ],
)
def test_what_is_not_wholly_a_call_stays_text(text: str) -> None:
    assert parse(text, (Tool("f", "", {}),)) == _message(text, [])


@pytest.mark.parametrize(
    "unit",
    [
        "[f(a=",
        "[f(",
        "[",
        "{",
        '{"name":',
        '[{"name":',
        '[{"name":[',
        "<function=f>{",
        "[f(a='",
        '[f(a="""',
        "[f(**{'a':",
        "[f(a=[1,",
    ],
)
def test_hostile_text_stays_text_whatever_the_recursion_limit(unit: str) -> None:
    """Some libraries raise the limit for the whole process; reading must neither crash then nor take minutes."""
    text = unit * (100_000 // len(unit))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        assert parse(text) == _message(text, [])
    finally:
        sys.setrecursionlimit(limit)


def grown(texts: list[str], tools: tuple[Tool, ...] = ()) -> Message:
    reply = Reply(tools)
    parts = [*(reply.push(text) for text in texts), reply.finish()]
    return _message("".join(part.words for part in parts), [call for part in parts for call in part.calls])


PIECES = st.sampled_from(
    [
        *"[](){}<>=,:;\"'*\\ \n1a.-e_rfg",
        "[f(",
        'a="x"',
        "f(a=[1, {'b': None}])",
        "[f(a=1), weather.get()]",
        '{"name": "f", "parameters": {"a": tru',
        "e}}",
        '{"name": "f", "arguments": {}}',
        '"type"',
        '{"',
        "**{",
        "<function=f>",
        '{"a": 1}',
        "</function>",
        "<|python_start|>",
        "<|python_end|>",
        '"""',
        "True",
        "words ",
    ]
)


@given(
    text=st.lists(PIECES, max_size=14).map("".join),
    cuts=st.lists(st.integers(0, 120), max_size=12),
    tools=st.sampled_from([(), TOOLS]),
)
@settings(max_examples=300, deadline=None)
def test_a_reply_is_the_same_however_it_comes(text: str, cuts: list[int], tools: tuple[Tool, ...]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    expected = parse(text, tools)
    assert grown([text[begin:end] for begin, end in pairwise(places)], tools) == expected
    assert grown(list(text), tools) == expected


@pytest.mark.slow
@given(text=st.lists(PIECES, max_size=30).map("".join), tools=st.sampled_from([(), TOOLS]))
@settings(max_examples=20_000, deadline=None)
def test_many_replies_are_the_same_character_by_character(text: str, tools: tuple[Tool, ...]) -> None:
    assert grown(list(text), tools) == parse(text, tools)


def test_words_and_calls_come_as_soon_as_they_are_certain() -> None:
    reply = Reply(TOOLS)
    texts = ["See [1] and ", "[f(", "a=1", "), f()", "]", " , then", " more ", "[g()]", "{"]
    came = [reply.push(text) for text in texts]
    assert [part.words for part in came] == ["See [1] and ", "", "", "", "", " , then", " more ", "[g()]", ""]
    assert [len(part.calls) for part in came] == [0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert reply.finish() == ("{", ())


def test_a_call_that_was_cut_off_stays_words() -> None:
    for text in ('[f(a="x', '{"name": "f", "parameters": {"a', "<function=f>{", "[f(a=1)"):
        assert grown([*text], TOOLS) == _message(text, [])


def test_a_long_call_is_read_in_time_that_grows_with_its_length() -> None:
    """A reader that began anew with every piece would look at 10^9 characters here."""
    arguments = {f"a{i}": [i, {"b": "]"}] for i in range(3_000)}
    text = call_text([ToolCall("f", arguments)], "pythonic")
    (call,) = grown([text[i : i + 3] for i in range(0, len(text), 3)], TOOLS).tool_calls
    assert call.arguments == arguments
