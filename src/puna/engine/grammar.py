"""Which tokens may come next so that a text follows a grammar: a JSON schema, a regular expression, a list, or Lark.

In: the bytes of every id, and what the text must look like. Out: for each step a mask over the ids, for every row of
the batch that is constrained. A text may end exactly where the grammar is satisfied: there, and only there, the stop
ids are allowed. Where nothing more can follow, it is complete.
Not here: the meaning of ids (they come in as bytes), tool calls (`prompt/tool_grammar` writes a grammar for them), and
the choice among allowed tokens (`sampler`).

The work is done by llguidance (the extra `grammar`), an Earley parser over the bytes of the tokens; it needs no
preparation per grammar and some ten microseconds per mask. Source: https://github.com/guidance-ai/llguidance.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from puna.errors import DeviceError, PromptError

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_CHARS = 500_000
"""Longest grammar that is read, so that compiling one takes bounded time and memory."""

MAX_LEXER_FUEL = 300_000
"""Steps of llguidance's lexer before the first token: some tenths of a second. The default is a million."""

JSON_BLANKS = r"(\r?\n[ \t]{0,40}| )?"
"""Blanks between the parts of JSON: one, or a new line and its indentation. Unbounded, some write them for ever."""


class Grammar(NamedTuple):
    """A grammar in llguidance's notation. `field` is the option that it came with, for errors."""

    field: str
    text: str


def json_schema(schema: Mapping[str, Any] | str, field: str = "json_schema") -> Grammar:
    """Returns the grammar of JSON documents that `schema` describes: a dictionary, or its JSON text."""
    llguidance = _llguidance()
    text = schema if isinstance(schema, str) else _dumped(schema, field)
    try:
        return Grammar(field, llguidance.LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": JSON_BLANKS}))
    except ValueError as error:
        raise PromptError(f"{field}: is not a JSON schema ({error}); give an object") from error


def regex(pattern: str, field: str = "regex") -> Grammar:
    """Returns the grammar of texts that `pattern` matches from beginning to end. Syntax: Rust's regex, no anchors."""
    return Grammar(field, _llguidance().LLMatcher.grammar_from_regex(_required_text(pattern, field)))


def choice(options: Sequence[str], field: str = "choice") -> Grammar:
    """Returns the grammar of exactly these texts."""
    if isinstance(options, str) or not options or not all(isinstance(option, str) and option for option in options):
        raise PromptError(f"{field} is {options!r}: give a list of texts that are not empty")
    return lark("start: " + " | ".join(json.dumps(option, ensure_ascii=False) for option in options), field)


def lark(text: str, field: str = "grammar") -> Grammar:
    """Returns the grammar of a text in Lark notation, which begins with the rule `start`."""
    return Grammar(field, _llguidance().LLMatcher.grammar_from_lark(_required_text(text, field)))


class Vocabulary:
    """The bytes of every id, in the form that masks are computed from. Immutable; shared by all requests of a model.

    `tokens[i]` are the bytes of id i, for special tokens their name; an id without text has none. `encode` turns a
    text into ids as the model is used to read it.
    """

    def __init__(
        self, tokens: Sequence[bytes], special_ids: Sequence[int], encode: Callable[[str], Sequence[int]]
    ) -> None:
        """Takes a second for 200,000 tokens. Raises DeviceError when llguidance is not installed."""
        llguidance = _llguidance()
        self.end_id = len(tokens)  # stands for the end of the text, whichever ids end it in a request
        wrapper = _Wrapper(tokens, special_ids, encode, self.end_id)
        self._table = llguidance.LLTokenizer(wrapper, n_vocab=self.end_id + 1, eos_token=[self.end_id])
        self._executor = llguidance.LLExecutor(max(1, torch.get_num_threads()))

    def compile(self, grammar: Grammar, stop_ids: frozenset[int] = frozenset()) -> "Matcher":
        """Returns a matcher at the beginning of a text. Raises PromptError for a grammar that cannot be followed.

        The first mask, which may be the slowest, is worked out here, and says whether there is a text at all.
        """
        llguidance = _llguidance()
        if len(grammar.text) > MAX_CHARS:
            raise PromptError(f"{grammar.field}: has {len(grammar.text)} characters; at most {MAX_CHARS} are read")
        limits = llguidance.LLParserLimits(verbose_errors=False, initial_lexer_fuel=MAX_LEXER_FUEL)
        matcher = llguidance.LLMatcher(self._table, grammar.text, log_level=0, limits=limits)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            raise PromptError(f"{grammar.field}: cannot be followed: {reason[:300]}; change the grammar")
        begun = Matcher(self, matcher, stop_ids, grammar)
        free = Matcher(self, matcher, frozenset(), grammar)
        if not begun.may_end and not self.fill([(free, ())], self.end_id).any():
            raise PromptError(f"{grammar.field}: allows no text, or takes too much work to follow; change the grammar")
        return begun

    def fill(self, rows: Sequence[tuple["Matcher", Sequence[int]]], n_ids: int) -> Tensor:
        """Returns which ids may come next, as bits: uint8 [R n_ids/8], the lowest bit of a byte for the first id.

        Every matcher gets a row, and one more behind each of its drafts: ids that are assumed to follow, as far as
        `Matcher.admitted` admits them. The matchers stay where they are. A row without a bit is one that cannot go on.
        """
        n_words = max(self.end_id + 1, n_ids) // 32 + 1
        n_rows = sum(1 + len(drafts) for _, drafts in rows)
        words = torch.zeros(n_rows, n_words, dtype=torch.int32)
        firsts = list(accumulate((1 + len(drafts) for _, drafts in rows), initial=0))
        live = [
            (m.state, first, list(drafts))
            for (m, drafts), first in zip(rows, firsts[:-1], strict=True)
            if not m.is_stuck
        ]
        place = words.data_ptr(), n_words * 4, n_rows
        if alone := [(state, first) for state, first, drafts in live if not drafts]:
            self._executor.unsafe_compute_mask_ptr(alone, *place)
        if drafting := [entry for entry in live if entry[2]]:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(drafting, *place)
        bits = words.view(torch.uint8)  # R 4*n_words
        ends = bits[:, self.end_id // 8] >> self.end_id % 8 & 1  # R: the text may end here
        bits[:, self.end_id // 8] &= 0xFF ^ 1 << self.end_id % 8
        for (matcher, _), (first, last) in zip(rows, pairwise(firsts), strict=True):
            for stop_id in matcher.stop_ids:
                byte, shift = divmod(stop_id, 8)
                bits[first:last, byte] &= 0xFF ^ 1 << shift
                bits[first:last, byte] |= ends[first:last] << shift
        return bits[:, : -(-n_ids // 8)]


class Matcher:
    """How far one text has got in its grammar. `stop_ids` may end it where the grammar is satisfied.

    `grammar` is what it was compiled from, and what a pickled one becomes again: there it is compiled anew.
    """

    def __init__(self, vocabulary: Vocabulary, state: "LLMatcher", stop_ids: frozenset[int], grammar: Grammar) -> None:
        self.vocabulary = vocabulary
        self.state = state
        self.stop_ids = stop_ids
        self.grammar = grammar

    def __reduce__(self) -> tuple[type[Grammar], tuple[str, str]]:
        return Grammar, (self.grammar.field, self.grammar.text)

    def fork(self) -> "Matcher":
        """Returns an independent copy, so that several samples can go on from one prompt."""
        return Matcher(self.vocabulary, self.state.deep_copy(), self.stop_ids, self.grammar)

    @property
    def is_complete(self) -> bool:
        """Whether the grammar is satisfied and nothing more can follow."""
        return self.state.is_stopped() and self.state.is_accepting()

    @property
    def may_end(self) -> bool:
        return self.state.is_accepting()

    @property
    def is_stuck(self) -> bool:
        """Whether the grammar grew beyond the limits of the parser: no further token can be allowed."""
        return self.state.is_error()

    def admitted(self, drafts: Sequence[int]) -> int:
        """Returns how many of the first `drafts` the grammar allows, one after the other; none of the stop ids."""
        ids = list(drafts)
        stop = next((i for i, id_ in enumerate(ids) if id_ in self.stop_ids or id_ >= self.vocabulary.end_id), len(ids))
        return self.state.validate_tokens(ids[:stop]) if stop else 0

    def forced(self) -> list[int]:
        """Returns the ids that the model is likely to write where the grammar allows only one text."""
        return [] if self.is_stuck else list(self.state.compute_ff_tokens())

    def advance(self, token: int) -> None:
        """Counts an allowed token as written. A stop id ends the text and is not part of it."""
        if token not in self.stop_ids:
            self.state.consume_token(token)


class _Wrapper:
    """What llguidance asks of a tokenizer. Source: `llguidance/_tokenizer.py`."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self, tokens: Sequence[bytes], special_ids: Sequence[int], encode: Callable[[str], Sequence[int]], end_id: int
    ) -> None:
        self.tokens = [*tokens, b"<|end of the text|>"]
        self.special_token_ids = [*special_ids, end_id]
        self.eos_token_id = end_id
        self._encode = encode

    def __call__(self, text: str | bytes) -> list[int]:
        return list(self._encode(text if isinstance(text, str) else text.decode("utf-8", errors="replace")))


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise DeviceError("grammars need llguidance, which is missing: pip install 'puna[grammar]'") from error
    return llguidance


def _required_text(text: str, field: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"{field} is {text!r}: give a text that is not empty")
    return text


def _dumped(schema: object, field: str) -> str:
    if not isinstance(schema, Mapping | bool):
        raise PromptError(f"{field} is {type(schema).__name__}: give a JSON schema, a dictionary or its text")
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"{field}: is not JSON ({error}); use JSON values only") from error
