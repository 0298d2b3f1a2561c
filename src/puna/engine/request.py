"""What the engine is asked and what it answers, as values.

In: ids, tiles and sampling settings, checked at birth. Out: one `Event` per new token.
Not here: text, messages, stop strings (`chat` watches for those and aborts), queues.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from puna.config import LlamaConfig
from puna.engine.grammar import Matcher
from puna.engine.routes import Routes
from puna.errors import PromptError

Finish = Literal["stop", "length", "abort"]
"""Why a sample ended: a stop id, its length, or somebody's will; a deadline that has passed also ends by "abort"."""

MAX_PRIORITY = 100

MAX_TEMPERATURE, MAX_FACTOR = 10**9, 10_000
"""Most that logits are divided by, and multiplied by for repeating: beyond some such numbers float32 makes infinities
of them, and those make NaN of ids that are barred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token of a sequence is chosen, and when to stop. `sampler` says in which order these apply.

    temperature          0 takes the most probable token; below 1e-5 counts as 0; at most 1e9
    top_p                keeps the most probable tokens that together reach this mass, in (0, 1]; 1 keeps all
    top_k                keeps this many tokens; 0 keeps all
    min_p                drops tokens less probable than this share of the most probable one, in [0, 1]
    repetition_penalty   divides positive and multiplies negative logits of every token of prompt and output; 1 is none
    presence_penalty     is taken once from the logit of every token of the output, in [-2, 2]
    frequency_penalty    is taken from the logit of a token once for every time it is in the output, in [-2, 2]
    seed                 fixes the random numbers of this request, whatever else runs beside it; None draws fresh ones
    max_new_tokens       None goes on to the end of the context
    stop_ids             end the output; the stopping id itself is the last token reported
    n_logprobs           None reports no log-probabilities, 0 those of the chosen tokens, n also the n most probable
    logit_bias           is added to the logits of these ids
    allowed_ids          None allows all; otherwise no other id is chosen
    min_new_tokens       stop ids are not chosen before so many tokens

    Defaults: temperature 0.6 and top_p 0.9 as Llama 4 was released with.
    Source: the generation config that transformers' `convert_llama4_weights_to_hf.py` writes.
    Raises PromptError when a value is out of its range.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_new_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    n_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_ids: Sequence[int] | None = None
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        is_near = 0 <= self.temperature <= MAX_TEMPERATURE
        _require_number("temperature", self.temperature, is_near, f"of 0 or more, at most {MAX_TEMPERATURE}")
        _require_number("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require_whole("top_k", self.top_k, 0)
        _require_number("min_p", self.min_p, 0 <= self.min_p <= 1, "within 0..1")
        is_near = 1 / MAX_FACTOR <= self.repetition_penalty <= MAX_FACTOR
        within = f"within 1/{MAX_FACTOR}..{MAX_FACTOR}; 1 is none"
        _require_number("repetition_penalty", self.repetition_penalty, is_near, within)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require_number(name, value, -2 <= value <= 2, "within -2..2; 0 is none")
        for name, least in (("seed", 0), ("max_new_tokens", 1), ("n_logprobs", 0)):
            if getattr(self, name) is not None:
                _require_whole(name, getattr(self, name), least)
        _require_whole("min_new_tokens", self.min_new_tokens, 0)
        for value in self.logit_bias.values():
            _require_number("logit_bias", value, True, "for each id")
        if self.allowed_ids is not None and not self.allowed_ids:
            raise PromptError("allowed_ids is empty: give the ids that may be chosen, or none to allow all")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def has_penalty(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def has_bias(self) -> bool:
        return bool(self.logit_bias) or self.allowed_ids is not None or self.min_new_tokens > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt, and what is wanted of it.

    tiles              [I 3 S S], for the patch ids in order, or None
    n                  how many samples
    grammar            what the text must look like, a matcher at its beginning; None leaves it free
    wants_routes       its events say which experts were chosen
    adapter            the name of the adapter that it is answered with, or None
    priority           0 is ordinary, less comes earlier and more later; what waits long enough comes in any case
    deadline_seconds   on the engine's clock: the earlier, the earlier it comes; once passed, it ends; None has none

    Raises PromptError when a value is out of its range.
    """

    ids: Sequence[int]
    tiles: Tensor | None = None
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    grammar: Matcher | None = None
    wants_routes: bool = False
    adapter: str | None = None
    priority: float = 0
    deadline_seconds: float | None = None

    def __post_init__(self) -> None:
        _require_whole("n", self.n, 1)
        is_near = abs(self.priority) <= MAX_PRIORITY
        _require_number("priority", self.priority, is_near, f"within -{MAX_PRIORITY}..{MAX_PRIORITY}; 0 is ordinary")
        if self.deadline_seconds is not None:
            _require_number("deadline_seconds", self.deadline_seconds, True, "of seconds, or none")


class TokenLogprobs(NamedTuple):
    """Natural logarithms of probabilities under the model's own distribution, before penalties and temperature."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # (id, log-probability), most probable first


class Event(NamedTuple):
    """One token of one sample, or its end. `token` is None only when the sample was aborted.

    `n_cached` counts the ids of the prompt that were not read again, since their prefix was remembered. `routes` say
    where the position went that the token was chosen at, for requests that want it.
    """

    request_id: int
    sample: int  # which of the request's n samples, from 0
    token: int | None
    logprobs: TokenLogprobs | None
    finish: Finish | None
    n_cached: int = 0
    routes: Routes | None = None


class Output(NamedTuple):
    """All tokens of one finished sample, the stopping id included, and why it ended."""

    ids: list[int]
    logprobs: list[TokenLogprobs]
    finish: Finish


def check(request: Request, config: LlamaConfig, *, n_new_tokens: int | None = None) -> int:
    """Returns how many new tokens the request may get at most: its own limit, or what is left of the context.

    `n_new_tokens` says how many must fit whatever the request says. Raises PromptError when the prompt is empty, has
    an id outside the vocabulary, leaves too little of the context, or when its tiles do not belong to its patch ids
    or model.
    """
    n_ids, context_len, vocab_size = len(request.ids), config.text.context_len, config.text.vocab_size
    if n_ids == 0:
        raise PromptError("ids is empty: give at least one token, such as the one that begins a text")
    sampling = request.sampling
    steering = (sampling.logit_bias, sampling.allowed_ids, sampling.stop_ids)
    for name, ids in zip(("ids", "logit_bias", "allowed_ids", "stop_ids"), (request.ids, *steering), strict=True):
        strange = next((id_ for id_ in ids or () if not 0 <= id_ < vocab_size), None)
        if strange is not None:
            known = f"ids of this model are 0 to {vocab_size - 1}; use its own tokenizer"
            raise PromptError(f"{name} holds {strange}: {known}")
    _check_tiles(request, config)
    asked = request.sampling.max_new_tokens if n_new_tokens is None else n_new_tokens
    least = 1 if asked is None else asked
    if n_ids + least > context_len:
        raise PromptError(
            f"prompt of {n_ids} tokens and max_new_tokens {least} exceed the context of {context_len}: shorten one"
        )
    return context_len - n_ids if asked is None else asked


def _check_tiles(request: Request, config: LlamaConfig) -> None:
    if request.tiles is not None and config.vision is None:
        raise PromptError("tiles: this model reads text only; remove the images or load a model with a vision tower")
    n_patches = 0 if config.patch_id is None else list(request.ids).count(config.patch_id)
    n_tiles = 0 if request.tiles is None else len(request.tiles)
    if request.tiles is not None and config.vision is not None:
        side = config.vision.tile_size
        if tuple(request.tiles.shape[1:]) != (3, side, side):
            raise PromptError(f"tiles has shape {list(request.tiles.shape)}: this model reads [I, 3, {side}, {side}]")
    expected = 0 if config.vision is None else n_tiles * config.vision.tokens_per_tile
    if n_patches != expected:
        raise PromptError(
            f"ids has {n_patches} patch tokens, {n_tiles} tiles need {expected}: render ids and tiles together"
        )


def _require_number(name: str, value: float, within: bool, remedy: str) -> None:
    if not (within and math.isfinite(value)):
        raise PromptError(f"{name} is {value!r}: give a number {remedy}")


def _require_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PromptError(f"{name} is {value!r}: give a whole number of at least {least}")
