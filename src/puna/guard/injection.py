"""Attempts to override a prompt, found by a small classifier that ships with the package.

In: text of any length, in any of the 12 languages of the model card. Out: one `Verdict`, with the place of the attack.
The text is scored in overlapping windows, in the form in which a person would see it, and so is everything that it
hides or encodes (`hidden`). Embedded means: a linear model over hashed n-grams, no substitute for Prompt Guard 2; its
card lies beside its weights. Training is in `fit`.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna.errors import WeightsError
from puna.guard import hidden
from puna.guard.ngrams import N_FEATURES, features
from puna.guard.verdict import Span, Verdict, action_of

GUARD = "injection/1"
CODE = "prompt_attack"
WEIGHTS = "assets/guard/injection.bin"

WINDOW, STRIDE = 1000, 750  # characters, about 256 and 192 tokens of English
FLAG_AT, BLOCK_AT = 0.5, 0.9
MIN_SPAN = 20  # characters; shorter lines are not attacks by themselves
MIN_TEXT = 16  # characters; on shorter texts a score means nothing: "Hello!" has too few n-grams to be told by


class Window(NamedTuple):
    """Characters `start` to `end` of a text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classifier:
    """A linear model: float16 `weights` [N_FEATURES] and `bias`, which makes a score of 0.5 its 1 % FPR."""

    weights: NDArray[np.float16]
    bias: float

    def logit(self, text: str) -> float:
        """Returns how strongly one window looks like an attack: above 0 means an attack."""
        found = features(text)
        return float(self.weights[found.indices].astype(np.float32) @ found.values) + self.bias

    def score(self, text: str) -> float:
        """Returns the greatest probability of all windows of `text`, in 0..1."""
        if len(text.strip()) < MIN_TEXT:
            return 0.0
        return max((sigmoid(self.logit(text[each.start : each.end])) for each in windows(len(text))), default=0.0)

    def to_bytes(self) -> bytes:
        """Returns what `from_bytes` reads: one line of JSON, then the compressed weights."""
        header = {"format": 1, "features": N_FEATURES, "bias": self.bias}
        return json.dumps(header).encode() + b"\n" + zlib.compress(self.weights.tobytes(), 9)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Classifier":
        """Returns the classifier in `content`. Raises WeightsError if it is damaged or of another shape."""
        line, _, packed = content.partition(b"\n")
        try:
            header = json.loads(line)
            weights = np.frombuffer(zlib.decompress(packed), dtype=np.float16)
            bias = float(header["bias"])
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise WeightsError(f"{WEIGHTS}: cannot be read ({error}); make it again with puna.guard.fit") from error
        if header.get("format") != 1 or len(weights) != N_FEATURES:
            remedy = "make it again with puna.guard.fit"
            raise WeightsError(f"{WEIGHTS}: holds {len(weights)} weights, not {N_FEATURES}; {remedy}")
        return cls(weights=weights, bias=bias)


@cache
def embedded() -> Classifier:
    """Returns the classifier that ships with the package, read once. Raises WeightsError if it is missing, damaged."""
    source = files("puna").joinpath(*WEIGHTS.split("/"))
    try:
        return Classifier.from_bytes(source.read_bytes())
    except FileNotFoundError as error:
        raise WeightsError(f"{WEIGHTS}: is missing; install puna again, or make it with puna.guard.fit") from error


def check(text: str, classifier: Classifier | None = None) -> Verdict:
    """Returns a verdict about `text`: "flag" from a score of 0.5, which 1 % of ordinary texts reach, "block" from 0.9.

    `spans` are the windows that reach 0.5, each narrowed to its worst line, and the hidden passages whose payload does.
    """
    classifier = classifier or embedded()
    length = len(text) if len(text.strip()) >= MIN_TEXT else 0
    scored = [(each, sigmoid(classifier.logit(text[each.start : each.end]))) for each in windows(length)]
    spans = [*_windows_found(text, scored, classifier), *_payloads_found(text, classifier)]
    read = hidden.visible_text(text)
    as_read = classifier.score(read) if read != text else 0.0
    score = max([as_read, *(score for _, score in scored), *(span.score for span in spans)])
    return Verdict(
        guard=GUARD,
        action=action_of(score, flag_at=FLAG_AT, block_at=BLOCK_AT),
        score=score,
        codes=(CODE,) if score >= FLAG_AT else (),
        spans=tuple(spans),
        backend="embedded",
        status="ok",
        coverage=(CODE,),
    )


def windows(length: int) -> Iterator[Window]:
    """Yields windows that cover a text of `length` characters, each a quarter over the one before."""
    start = 0
    while start < length:
        yield Window(start, min(start + WINDOW, length))
        if start + WINDOW >= length:
            return
        start += STRIDE


def sigmoid(logit: float) -> float:
    """Returns 1 / (1 + exp(-logit)), without overflow."""
    return float(np.exp(-np.logaddexp(0.0, -logit)))


def _windows_found(text: str, scored: Sequence[tuple[Window, float]], classifier: Classifier) -> Iterator[Span]:
    last = -1
    for window, score in scored:
        if score >= FLAG_AT:
            start, end = _worst_line(text, window, classifier)
            if start >= last:
                reason = "the passage tries to replace the instructions of the prompt"
                yield Span(start=start, end=end, code=CODE, score=score, reason=reason)
                last = end


def _worst_line(text: str, window: Window, classifier: Classifier) -> Window:
    """Returns the line of `window` with the greatest score, or the window if none is an attack by itself."""
    best, best_logit, start = window, 0.0, window.start
    for line in text[window.start : window.end].splitlines(keepends=True):
        end = start + len(line)
        if len(line) >= MIN_SPAN and (logit := classifier.logit(line)) > best_logit:
            best, best_logit = Window(start, start + len(line.rstrip())), logit
        start = end
    return best


def _payloads_found(text: str, classifier: Classifier) -> Iterator[Span]:
    for each in hidden.find(text):
        score = classifier.score(each.payload) if each.payload else 0.0
        if score >= FLAG_AT:
            reason = f"{each.code.replace('_', ' ')} carry an attack on the prompt"
            yield Span(start=each.start, end=each.end, code=CODE, score=score, reason=reason, payload=each.payload)
