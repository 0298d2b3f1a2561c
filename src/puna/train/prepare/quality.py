"""Rules that tell running text from debris, after Gopher's (Rae et al. 2021, arXiv 2112.11446, appendix A.1).

Each rule has a name, under which the report counts what it removed; the first that speaks decides. Bounds are the
paper's except `too_few_words`, which the caller sets, for 50 words are more than a page of a children's book. Where
words are not set apart by spaces, the rules about words (length, letters, small words) do not apply. Small words are
asked for in languages that `language` knows, not in English only.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from puna.train.prepare.language import small_words
from puna.train.prepare.words import Words, runs

RULES = (
    "too_few_words",
    "too_many_words",
    "word_length",
    "symbols",
    "bullets",
    "ellipses",
    "few_letters",
    "few_small_words",
    "repeated_lines",
    "repeated_paragraphs",
    "one_run_of_words",
    "repeated_runs_of_words",
)
MIN_WORDS, MAX_WORDS = 50, 100_000
_ONE_RUN = {2: 0.20, 3: 0.18, 4: 0.16}  # words in the run -> share of the characters in its copies
_REPEATED_RUNS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # same, of all runs that came before
_BULLETS = ("•", "-", "*", "–", "·", "‣", "▪", "●")


def fault(text: str, words: Words, language: str, min_words: int = MIN_WORDS) -> str | None:
    """Returns the name of the first rule that `text` (as written) breaks, or None."""
    n = len(words.hashes)
    if n < min_words or n == 0:
        return "too_few_words"
    if n > MAX_WORDS:
        return "too_many_words"
    if 2 * np.count_nonzero(words.alone) < n and (name := _fault_of_words(text, words, language)):
        return name
    return _fault_of_lines(text) or _fault_of_runs(words)


def _fault_of_words(text: str, words: Words, language: str) -> str | None:
    n = len(words.hashes)
    if not 3 <= words.lengths.sum() / n <= 10:
        return "word_length"
    if (text.count("#") + text.count("...") + text.count("…")) / n > 0.1:
        return "symbols"
    pieces = text.split()
    if sum(any(map(str.isalpha, piece)) for piece in pieces) < 0.8 * len(pieces):
        return "few_letters"
    if (small := small_words(language)).size and np.count_nonzero(np.isin(words.hashes, small)) < 2:
        return "few_small_words"
    return None


def _fault_of_lines(text: str) -> str | None:
    lines = [line for each in text.splitlines() if (line := each.strip())]
    if sum(line.startswith(_BULLETS) for line in lines) > 0.9 * len(lines):
        return "bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return "ellipses"
    if _repeats(lines, 0.30, 0.20):
        return "repeated_lines"
    paragraphs = [paragraph for each in text.split("\n\n") if (paragraph := each.strip())]
    return "repeated_paragraphs" if _repeats(paragraphs, 0.30, 0.20) else None


def _repeats(pieces: list[str], of_pieces: float, of_characters: float) -> bool:
    """Whether pieces that came before are more than a share of all pieces, or of their characters."""
    if len(pieces) < 2:
        return False
    again = [(count - 1, len(piece)) for piece, count in Counter(pieces).items() if count > 1]
    n_again, length = sum(count for count, _ in again), sum(count * size for count, size in again)
    return n_again > of_pieces * len(pieces) or length > of_characters * sum(map(len, pieces))


def _fault_of_runs(words: Words) -> str | None:
    """Runs of words are only worth a look where some stretch of text occurs twice."""
    total = words.lengths.sum()
    sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(words.lengths)))
    for n, share in _ONE_RUN.items():
        hashes = runs(words.hashes, n)
        values, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        if len(values) == len(hashes):
            return None  # no run occurs twice, so no longer one does
        best = int(counts.argmax())
        if counts[best] * (sums[first[best] + n] - sums[first[best]]) > share * total:
            return "one_run_of_words"
    for n, share in _REPEATED_RUNS.items():
        hashes = runs(words.hashes, n)
        _, first = np.unique(hashes, return_index=True)
        if len(first) == len(hashes):
            return None
        if words.lengths[_covered(first, len(hashes), n)].sum() > share * total:
            return "repeated_runs_of_words"
    return None


def _covered(first: NDArray[np.int64], n_runs: int, n: int) -> NDArray[np.bool_]:
    """Returns which words lie in a run that came before: bool [words]; `first`: where runs occur first."""
    again = np.ones(n_runs, np.int64)
    again[first] = 0
    edges = np.zeros(n_runs + n, np.int64)
    edges[:n_runs] += again
    edges[n:] -= again
    return np.cumsum(edges)[:-1] > 0
