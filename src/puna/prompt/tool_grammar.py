"""A grammar of tool calls: what a model may write when it has to call, in Lark notation.

In: tools and the style that they are written in. Out: a grammar whose texts `parse` reads as calls of these tools, with
arguments as their schemas describe: `[f(a="x", n=[1, None]), g()]`, or JSON. Required arguments come first, then
optional ones, each in the order of the schema. What of a schema has no place in the Python grammar (`not`, `allOf` of
several, `patternProperties`) leaves that value free: it is always a literal, and its check is the caller's. JSON allows
numbers beyond every float, and `parse` leaves a call with such a number as text.
Not here: following the grammar (`engine/grammar`).

Source of the notation: llguidance, `docs/syntax.md` (`%json` embeds the grammar of a JSON schema).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from puna.errors import PromptError
from puna.prompt.message import Tool
from puna.prompt.render import ToolStyle, is_argument_name, literal

_ANY = r"""
any: TEXT | NUMBER | "True" | "False" | "None" | any_list | any_dict
any_list: "[" [any (", " any)*] "]"
any_dict: "{" [TEXT ": " any (", " TEXT ": " any)*] "}"
TEXT: /"([^"\\\x00-\x1f\x7f]|\\["\\nt])*"/
NUMBER: /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?(e[+-]?[0-9]{1,2})?/
INTEGER: /-?(0|[1-9][0-9]{0,17})/
"""

_TEXT_LIMITS = ("minLength", "maxLength", "pattern", "format")
_NUMBER_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def tool_grammar(
    tools: Sequence[Tool], style: ToolStyle = "pythonic", name: str | None = None, *, most: int | None = None
) -> str:
    """Returns the grammar of one or more calls of `tools`, of the one called `name` if that is given.

    `most` bounds the calls. Raises PromptError when there is no such tool.
    """
    chosen = [tool for tool in tools if name in (None, tool.name)]
    if not chosen:
        known = ", ".join(tool.name for tool in tools) or "none"
        raise PromptError(f"tool_choice is {name or 'required'!r}: the tools given are {known}; name one of them")
    calls, rules = _calls(chosen, style)
    call = " | ".join(f"{_quoted(call.head)} {call.rest}" for call in calls)
    if style == "json":
        several = "" if most == 1 else f' | "[" call{_more(1, most)} "]"'
        return f"start: call{several}\ncall: {call}\n{rules}"
    return f'start: "[" call{_more(0, most)} "]"\ncall: {call}\n{rules}'


def words_and_calls(tools: Sequence[Tool], style: ToolStyle = "pythonic", *, most: int | None = None) -> str:
    """Returns the grammar of an answer in words, in calls of `tools`, or in words that end with calls.

    Whatever `parse` would read as a call of one of the tools is a call as `tool_grammar` describes it.
    """
    calls, rules = _calls(tools, style)
    opening = "[" if style == "pythonic" else ""
    begun = [f"{_words_until(i, opening + call.head)}\n" for i, call in enumerate(calls)]
    first = " | ".join(f"words_until_{i} {call.rest}" for i, call in enumerate(calls))
    others = " | ".join(f"{_quoted(call.head)} {call.rest}" for call in calls)
    called = f'first{_more(0, most)} "]"' if style == "pythonic" else "first"
    if style == "json" and most != 1:
        listed = len(calls)
        begun += [f"{_words_until(listed + i, '[' + call.head)}\n" for i, call in enumerate(calls)]
        heads = " | ".join(f"words_until_{listed + i} {call.rest}" for i, call in enumerate(calls))
        called += f' | ({heads}){_more(1, most)} "]"'
    return f"start: WORDS | {called}\n{_only_words(tools)}\nfirst: {first}\ncall: {others}\n{''.join(begun)}{rules}"


def _words_until(number: int, head: str) -> str:
    """Returns the rule of words that end with the first `head`."""
    return f"words_until_{number}[lazy]: WORDS? {_quoted(head)}"


def _only_words(tools: Sequence[Tool]) -> str:
    """Returns the rule of words without anything with which a call could begin, as `parse` looks for it."""
    names = "|".join(re.escape(tool.name) for tool in tools)
    keys = r"""\{\s*["'](name|type|function|parameters|arguments|id)["']"""
    call = rf"\[\s*({names})\s*\(|{keys}|<function=".replace("/", r"\/")
    return f"WORDS: /(?s:.+)/ & ~/(?s:.*)({call})(?s:.*)/"


def _more(least: int, most: int | None) -> str:
    """Returns the calls behind the first one, at least `least` and in all at most `most`."""
    return "" if most == 1 else f' (", " call){{{least},{"" if most is None else most - 1}}}'


class _Call(NamedTuple):
    """A call in two parts: the text that it begins with, and the grammar of the rest."""

    head: str
    rest: str


def _calls(tools: Sequence[Tool], style: ToolStyle) -> tuple[list[_Call], str]:
    """Returns what calls of `tools` look like, and the rules that this refers to."""
    if style == "json":
        return [_json_call(tool) for tool in tools], ""
    rules = _Rules()
    calls = [rules.call(tool) for tool in tools]
    return calls, rules.text + _ANY


def _json_call(tool: Tool) -> _Call:
    schema = {"type": "object"} | tool.parameters | {"type": "object"}
    options = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
    before = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "parameters": '
    return _Call(before, f'%json {json.dumps(schema | options)} "}}"')


class _Rules:
    """The rules made so far, one for each schema that is more than a word; they may refer to each other."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._n_rules = 0

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def call(self, tool: Tool) -> _Call:
        """Returns what a call of `tool` looks like."""
        return _Schemas(self, tool.parameters).call(tool.name)

    def name(self) -> str:
        """Returns the name of a new rule."""
        self._n_rules += 1
        return f"value_{self._n_rules}"

    def add(self, name: str, body: str) -> str:
        """Adds a rule and returns its name."""
        self._lines.append(f"{name}: {body}")
        return name


class _Schemas:
    """The schemas of one tool, whose `root` its references begin at."""

    def __init__(self, rules: _Rules, root: Mapping[str, Any]) -> None:
        self._rules = rules
        self._root = root
        self._referred: dict[str, str] = {}  # the rule of each reference, known before it is made: it may be recursive

    def call(self, name: str) -> _Call:
        """As `render` writes it: arguments that are no Python names travel in a dictionary at the end."""
        named = self._members(self._root, "{}=".format, is_argument_name)
        others = self._members(self._root, _key, lambda key: not is_argument_name(key))
        last = f'"**{{" {_joined(others)} "}}"'
        if any(member.is_required for member in others):
            before = [f'{text} ", "' if is_required else f'[{text} ", "]' for text, is_required in _sorted(named)]
            arguments = " ".join([*before, last])
        else:
            arguments = _joined([*named, _Member(last, False)] if others else named)
        return _Call(name + "(", f'{arguments} ")"')

    def value(self, schema: object) -> str:
        """Returns what a value of `schema` looks like: a word of the grammar, or the name of a rule."""
        if not isinstance(schema, Mapping):
            return "any"
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]))
        if "enum" in schema or "const" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            return self._one_of([_quoted(literal(value)) for value in values])
        for key in ("anyOf", "oneOf"):
            if schema.get(key):
                return self._one_of([self.value({**_without(schema, key), **_mapping(each)}) for each in schema[key]])
        if len(schema.get("allOf", ())) == 1:
            return self.value({**_without(schema, "allOf"), **_mapping(schema["allOf"][0])})
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._one_of([self.value({**schema, "type": each}) for each in kind])
        return "any" if schema.get("allOf") else self._of_type(kind, schema)

    def _of_type(self, kind: object, schema: Mapping[str, Any]) -> str:
        match kind:
            case "string":
                return self._limited("TEXT", schema, _TEXT_LIMITS)
            case "integer" | "int":
                return self._limited("INTEGER", schema, _NUMBER_LIMITS)
            case "number" | "float":
                return self._limited("NUMBER", schema, _NUMBER_LIMITS)
            case "boolean" | "bool":
                return self._one_of(['"True"', '"False"'])
            case "null":
                return '"None"'
            case "array":
                return self._rules.add(self._rules.name(), self._list(schema))
            case "object" | "dict":
                return self._rules.add(self._rules.name(), self._dict(schema))
        return "any"

    def _limited(self, free: str, schema: Mapping[str, Any], limits: Sequence[str]) -> str:
        """A text or number with limits is written as in JSON, which Python reads as the same value."""
        given = {key: schema[key] for key in limits if key in schema}
        kind = {"TEXT": "string", "INTEGER": "integer", "NUMBER": "number"}[free]
        if not given:
            return free
        return self._rules.add(self._rules.name(), f"%json {json.dumps({'type': kind} | given)}")

    def _list(self, schema: Mapping[str, Any]) -> str:
        item = "any" if "prefixItems" in schema else self.value(schema.get("items", True))
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most is not None and int(most) < 1:
            return '"[]"'
        more = f'(", " {item}){{{max(least - 1, 0)},{"" if most is None else int(most) - 1}}}'
        items = f"{item} {more}"
        return f'"[" {items} "]"' if least > 0 else f'"[" [{items}] "]"'

    def _dict(self, schema: Mapping[str, Any]) -> str:
        if members := self._members(schema, _key, lambda key: True):
            return f'"{{" {_joined(members)} "}}"'
        value = self.value(schema.get("additionalProperties", True))
        return f'"{{" [TEXT ": " {value} (", " TEXT ": " {value})*] "}}"'

    def _members(
        self, schema: Mapping[str, Any], head: Callable[[str], str], is_wanted: Callable[[str], bool]
    ) -> list["_Member"]:
        required = schema.get("required") or ()
        return [
            _Member(f"{_quoted(head(key))} {self.value(each)}", key in required)
            for key, each in _mapping(schema.get("properties")).items()
            if is_wanted(key)
        ]

    def _one_of(self, choices: Sequence[str]) -> str:
        return self._rules.add(self._rules.name(), " | ".join(dict.fromkeys(choices))) if choices else "any"

    def _reference(self, reference: str) -> str:
        """Returns the rule of what a reference within the tool's own schema points to."""
        if reference not in self._referred:
            target: object = self._root
            for step in reference.removeprefix("#").split("/")[1:]:
                step = step.replace("~1", "/").replace("~0", "~")
                if not isinstance(target, Mapping) or step not in target:
                    raise PromptError(f"tool parameters: $ref {reference!r} points nowhere; give it a target")
                target = target[step]
            self._referred[reference] = self._rules.name()
            self._rules.add(self._referred[reference], self.value(target))
        return self._referred[reference]


class _Member(NamedTuple):
    """An argument of a call or an entry of a dictionary, with its name."""

    text: str
    is_required: bool


def _sorted(members: Sequence[_Member]) -> list[_Member]:
    """Returns the required members in order, then the optional ones."""
    return sorted(members, key=lambda member: not member.is_required)


def _joined(members: Sequence[_Member]) -> str:
    """Returns the required members in order, then any of the optional ones, with commas between."""
    texts = [member.text for member in _sorted(members)]
    n_required = sum(member.is_required for member in members)
    if n_required:
        return ' ", " '.join(texts[:n_required]) + _afterwards(texts[n_required:])
    # Whichever optional one comes first has no comma before it.
    beginnings = [text + _afterwards(texts[i + 1 :]) for i, text in enumerate(texts)]
    return f"[{' | '.join(beginnings)}]" if beginnings else '""'


def _afterwards(optional: Sequence[str]) -> str:
    return "".join(f' [", " {text}]' for text in optional)


def _key(key: str) -> str:
    return f"{literal(key)}: "


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _without(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}
