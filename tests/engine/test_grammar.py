import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine import grammar
from puna.engine.grammar import Grammar, Matcher, Vocabulary
from puna.engine.request import Sampling
from puna.engine.sampler import Sampler, SamplerState
from puna.errors import PromptError

pytest.importorskip("llguidance")

END, OTHER_END, SPECIAL = 300, 301, 302
PAIRS = [b'{"', b'": ', b'", "', b"tr", b"ue", b"null", b"], [", "é".encode(), b"  ", b"00"]
TOKENS = [bytes([i]) for i in range(256)] + PAIRS + [b""] * (300 - 256 - len(PAIRS)) + [b"<|a|>", b"<|b|>", b"<|c|>"]
N_IDS = 310  # logits are wider than the vocabulary
STOPS = frozenset({END, OTHER_END})


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(TOKENS, [END, OTHER_END, SPECIAL], lambda text: list(text.encode()))


def text_of(ids: Sequence[int]) -> str:
    return b"".join(TOKENS[id_] for id_ in ids if id_ < END).decode()


def allowed(vocabulary: Vocabulary, matcher: Matcher, drafts: Sequence[int] = ()) -> list[set[int]]:
    bits = vocabulary.fill([(matcher, drafts)], N_IDS)
    return [{i for i in range(N_IDS) if row[i // 8] >> i % 8 & 1} for row in bits.tolist()]


def write(
    vocabulary: Vocabulary, rule: Grammar, seed: int, *, n_draft: int = 0, sampling: Sampling | None = None
) -> list[int]:
    """Returns what a sampler makes of random logits that like closing marks; random drafts beside it change nothing."""
    sampling = Sampling(seed=seed, temperature=1.0, stop_ids=STOPS) if sampling is None else sampling
    state = SamplerState(sampling, (), 0, vocabulary.compile(rule, sampling.stop_ids))
    sampler, noise, dice = Sampler(range(303, N_IDS)), torch.Generator().manual_seed(seed), random.Random(seed)
    rows = torch.randn(250, N_IDS, generator=noise)
    rows[:, [*b'"]}', END]] += 3
    ids: list[int] = []
    assert state.matcher is not None
    while len(ids) < 200 and not state.matcher.is_complete and not STOPS & set(ids[-1:]):
        guesses = rows[len(ids) : len(ids) + n_draft].argmax(-1).tolist()
        if dice.random() < 0.5:
            guesses = state.matcher.forced()[:n_draft] or guesses
        drafts = guesses[: state.matcher.admitted(guesses)]
        (chosen,) = sampler.verify(rows[len(ids) : len(ids) + 1 + len(drafts)], [state], [drafts])
        ids += [choice.token for choice in chosen]
    return ids if len(ids) < 200 else []


def test_a_mask_allows_what_may_follow_and_ends_where_the_grammar_is_satisfied(vocabulary: Vocabulary) -> None:
    matcher = vocabulary.compile(grammar.regex("ab?"), STOPS)
    assert allowed(vocabulary, matcher) == [{ord("a")}]
    matcher.advance(ord("a"))
    assert allowed(vocabulary, matcher) == [{ord("b"), END, OTHER_END}]
    assert not matcher.is_complete
    matcher.advance(ord("b"))
    assert allowed(vocabulary, matcher) == [STOPS]
    assert matcher.is_complete


def test_ids_that_end_a_request_are_barred_within_its_text_whatever_they_mean(vocabulary: Vocabulary) -> None:
    """A stop id of the request may be an ordinary token, which the grammar would allow."""
    matcher = vocabulary.compile(grammar.regex("(ab)+"), frozenset({ord("a"), END}))
    assert allowed(vocabulary, matcher) == [set()]
    matcher = vocabulary.compile(grammar.regex("b(ab)*"), frozenset({ord("a"), END}))
    matcher.advance(ord("b"))
    assert allowed(vocabulary, matcher) == [{ord("a"), END}]


def test_rows_behind_drafts_are_those_of_a_text_that_holds_them(vocabulary: Vocabulary) -> None:
    rule = grammar.json_schema({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]})
    matcher, stepwise = (vocabulary.compile(rule, STOPS) for _ in range(2))
    drafts = [TOKENS.index(b'{"'), *b'a":2}']
    expected = []
    for draft in [*drafts, 0]:
        expected += allowed(vocabulary, stepwise)
        stepwise.advance(draft)
    assert matcher.admitted(drafts) == len(drafts)
    assert allowed(vocabulary, matcher, drafts) == expected
    assert allowed(vocabulary, matcher) == expected[:1]
    assert matcher.admitted([*drafts[:2], ord("b"), *drafts[2:]]) == 2
    assert matcher.admitted([*drafts, END]) == len(drafts)


def test_matchers_of_one_batch_get_a_row_each(vocabulary: Vocabulary) -> None:
    ab, xy = (vocabulary.compile(grammar.choice(words), STOPS) for words in (["ab"], ["xy", "xz"]))
    bits = vocabulary.fill([(ab, [ord("a")]), (xy, []), (ab.fork(), []), (xy, [ord("x")])], N_IDS)
    rows = [[i for i in range(N_IDS) if row[i // 8] >> i % 8 & 1] for row in bits.tolist()]
    assert rows == [[97], [98], [120], [97], [120], [121, 122]]


def test_a_fork_goes_its_own_way(vocabulary: Vocabulary) -> None:
    matcher = vocabulary.compile(grammar.choice(["ab", "ac"]), STOPS)
    matcher.advance(ord("a"))
    twin = matcher.fork()
    matcher.advance(ord("b"))
    assert matcher.is_complete
    assert allowed(vocabulary, twin) == [{ord("b"), ord("c")}]


def test_what_only_one_text_can_follow_is_forced(vocabulary: Vocabulary) -> None:
    matcher = vocabulary.compile(grammar.choice(["hello", "help"]), STOPS)
    assert bytes(matcher.forced()) == b"hel"
    assert vocabulary.compile(grammar.choice(["a", "b"]), STOPS).forced() == []


def test_special_tokens_can_be_named_in_a_grammar_and_never_written_as_text(vocabulary: Vocabulary) -> None:
    matcher = vocabulary.compile(grammar.lark('start: "x" <|c|> "y"'), STOPS)
    matcher.advance(ord("x"))
    assert allowed(vocabulary, matcher) == [{SPECIAL}]
    text = vocabulary.compile(grammar.regex(r"x[^y]*"), STOPS)
    text.advance(ord("x"))
    assert SPECIAL not in allowed(vocabulary, text)[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grammar.regex("(a"), "regex: cannot be followed: .*unclosed group"),
        (lambda: grammar.regex(""), "regex is ''"),
        (lambda: grammar.lark("start: foo"), 'grammar: cannot be followed: .*unknown name: "foo"'),
        (lambda: grammar.json_schema({"type": "strin"}), "json_schema: cannot be followed: Invalid type: strin"),
        (lambda: grammar.json_schema({"not": {}}), "json_schema: cannot be followed: Unimplemented keys"),
        (lambda: grammar.json_schema("[1"), "json_schema: is not a JSON schema"),
        (lambda: grammar.json_schema([1]), "json_schema is list: give a JSON schema"),  # type: ignore[arg-type]
        (lambda: grammar.json_schema({"a": {1}}), "json_schema: is not JSON"),
        (lambda: grammar.choice([]), "choice is \\[\\]: give a list"),
        (lambda: grammar.choice("abc"), "choice is 'abc': give a list"),
        (lambda: grammar.regex("a" * 500_001), "regex: has 500"),
    ],
)
def test_a_grammar_that_cannot_be_followed_says_which_option_and_why(
    vocabulary: Vocabulary, make: Any, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        vocabulary.compile(make(), STOPS)


def test_choices_are_written_to_the_letter(vocabulary: Vocabulary) -> None:
    choices = ['say "é"\n', "back\\slash", "a/b", "tr", "true"]
    written = {text_of(write(vocabulary, grammar.choice(choices), seed)) for seed in range(40)}
    assert written == set(choices)


SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.sampled_from(
        [
            {"type": "string", "maxLength": 9},
            {"type": "string", "enum": ["x", 'q"', "é"]},
            {"type": "integer", "minimum": -3, "maximum": 120},
            {"type": "number"},
            {"type": ["boolean", "null"]},
            {"const": {"k": [1, None]}},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda i, n: {"type": "array", "items": i, "minItems": n, "maxItems": 3}, inner, st.integers(0, 3)),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(
            lambda p, n: {
                "type": "object",
                "properties": p,
                "required": list(p)[:n],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "b c", "ü", '"']), inner, max_size=3),
            st.integers(0, 3),
        ),
    ),
    max_leaves=6,
)


def conforms(value: object, schema: Mapping[str, Any]) -> bool:
    """Whether a value is one of `schema`, for the keywords that SCHEMAS uses."""
    if "anyOf" in schema:
        return any(conforms(value, each) for each in schema["anyOf"])
    if "const" in schema:
        return value == schema["const"]
    match schema["type"]:
        case "string":
            return isinstance(value, str) and len(value) <= 9 and value in schema.get("enum", [value])
        case "integer":
            return type(value) is int and -3 <= value <= 120
        case "number":
            return type(value) in (int, float)
        case "array":
            fits = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return fits and all(conforms(item, schema["items"]) for item in value)
        case "object":
            known = schema["properties"]
            fits = isinstance(value, dict) and set(schema["required"]) <= value.keys() <= known.keys()
            return fits and all(conforms(item, known[key]) for key, item in value.items())
    return value is None or type(value) is bool


@settings(max_examples=25, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 10**6), n_draft=st.integers(0, 5))
def test_whatever_random_logits_say_the_text_is_json_of_its_schema(
    vocabulary: Vocabulary, schema: dict[str, Any], seed: int, n_draft: int
) -> None:
    rule = grammar.json_schema(schema)
    ids = write(vocabulary, rule, seed)
    if ids:
        assert conforms(json.loads(text_of(ids)), schema)
    assert write(vocabulary, rule, seed, n_draft=n_draft) == ids
    penalised = Sampling(seed=seed, temperature=0, repetition_penalty=1.2, stop_ids=STOPS)
    assert write(vocabulary, rule, seed, n_draft=n_draft, sampling=penalised) == write(
        vocabulary, rule, seed, sampling=penalised
    )


def test_constrained_and_free_rows_share_a_batch(vocabulary: Vocabulary) -> None:
    logits = torch.randn(6, N_IDS, generator=torch.Generator().manual_seed(1))
    kinds = [Sampling(temperature=0), Sampling(seed=1), Sampling(seed=2, top_p=1.0)]

    def states() -> list[SamplerState]:
        rule = vocabulary.compile(grammar.regex("[a-c]+"), STOPS)
        return [SamplerState(kind, (), 0, rule.fork() if i % 2 else None) for i, kind in enumerate([*kinds, *kinds])]

    together = [chosen[0].token for chosen in Sampler().verify(logits, states(), [()] * 6)]
    apart = [Sampler().verify(logits[i : i + 1], [state], [()])[0][0].token for i, state in enumerate(states())]
    assert together == apart
    assert all(token in b"abc" for token in together[1::2])
    assert together[0] == int(logits[0].argmax())


def test_a_text_that_cannot_go_on_gets_no_token(vocabulary: Vocabulary) -> None:
    """Its grammar wants what is forbidden; the rest of the batch goes on."""
    stuck = SamplerState(Sampling(seed=1), (), 0, vocabulary.compile(grammar.choice(["a"]), STOPS))
    free = SamplerState(Sampling(temperature=0), ())
    logits = torch.randn(2, N_IDS, generator=torch.Generator().manual_seed(1))
    chosen = Sampler(forbidden=[ord("a")]).verify(logits, [stuck, free], [(), ()])
    assert chosen[0] == []
    assert len(chosen[1]) == 1
