"""How right an answer is, and how sure an average: pure functions from texts and numbers to numbers.

In: extracted answers and what is accepted. Out: values from 0 to 1, and `Estimate`s, a mean with its standard error.
Not here: finding the answer in a response (`extract`), what a task asks and accepts (`tasks`).

chrF comes from sacrebleu and the equality of formulas from math-verify, both in the extra `eval`, imported when used.
"""

import importlib
import math
import re
import string
import threading
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from puna.errors import DeviceError

ANLS_THRESHOLD = 0.5
"""Distances from here on count as a wrong answer. Source: Biten et al. 2019, "Scene Text Visual Question Answering"."""

RELAXED_TOLERANCE = 0.05
"""Relative error of a number that counts as right. Source: Masry et al. 2022 (ChartQA), section 5.1."""

Z_95 = 1.959964
"""How many standard errors to either side 95 % of a normal distribution lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean of `n` values. `stderr` is None where the data cannot tell, such as for one item."""

    value: float
    stderr: float | None
    n: int


def average(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """Returns the mean of the groups' means ("macro average"); without `groups` there is one, so the plain mean.

    `clusters` names items that share a source, such as a passage or a picture, and so are not independent. A group of
    a single cluster says nothing of how its items vary: its distance is taken from the mean of all, which makes the
    error larger rather than smaller. Where there is a single cluster in all, it is unknown. Raises ValueError when
    there are no values. Source: Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640), section 2.2, with
    the correction for few clusters, so that without clusters it is the textbook s / sqrt(n).
    """
    if not values:
        raise ValueError("no values to average")
    keys: Sequence[Hashable] = groups if groups is not None else [""] * len(values)
    owners: Sequence[Hashable] = clusters if clusters is not None else range(len(values))
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        members[key].append(i)
    means = {key: sum(values[i] for i in rows) / len(rows) for key, rows in members.items()}
    value = sum(means.values()) / len(means)
    n_clusters = len(set(owners))
    if n_clusters < 2:
        return Estimate(value=value, stderr=None, n=len(values))
    sums: dict[Hashable, float] = defaultdict(float)
    for key, rows in members.items():
        n_own = len({owners[i] for i in rows})
        center, n = (means[key], n_own) if n_own > 1 else (value, n_clusters)
        weight = math.sqrt(n / (n - 1)) / (len(means) * len(rows))
        for i in rows:
            sums[owners[i]] += weight * (values[i] - center)
    return Estimate(value=value, stderr=math.sqrt(sum(each**2 for each in sums.values())), n=len(values))


def interval(estimate: Estimate) -> tuple[float, float]:
    """Returns the 95 % interval of a share: Wilson's, with as many items as the standard error says there are.

    So it stays within 0 and 1, and no answer right of a few is no certainty. Where nothing varies, or the error is
    unknown, the items count as independent. Source: Wilson 1927; the effective number as in Korn and Graubard 1998.
    """
    p, z = estimate.value, Z_95
    spread = p * (1 - p)
    n = spread / estimate.stderr**2 if estimate.stderr and spread > 0 else float(estimate.n)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(spread / n + z * z / (4 * n * n))
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def ratio(parts: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """Returns the sum of the parts over the sum of their sizes, such as bits over bytes, with its error.

    The parts are independent, their sizes as they happen to be. Raises ValueError when the sizes add up to nothing.
    Source: Cochran 1977, "Sampling Techniques", section 6.4 (the variance of a ratio).
    """
    total, n = sum(sizes), len(parts)
    if not total:
        raise ValueError("nothing to divide by")
    value = sum(parts) / total
    if n < 2:
        return Estimate(value=value, stderr=None, n=n)
    squares = sum((part - value * size) ** 2 for part, size in zip(parts, sizes, strict=True))
    return Estimate(value=value, stderr=math.sqrt(n / (n - 1) * squares) / total, n=n)


def levenshtein(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Returns the least number of insertions, deletions and replacements that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above_left, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above_left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above_left + (x != y))
    return row[-1]


def anls(prediction: str, accepted: Sequence[str]) -> float:
    """Returns the normalised Levenshtein similarity to the closest accepted answer; 0 below one half.

    Case and space around do not count, space within does. An empty prediction is 0, also for an empty answer.
    Averaged over items it is ANLS. Source: Biten et al. 2019; Mathew et al. 2021 (DocVQA), section 5.
    """

    def similarity(answer: str) -> float:
        p, a = prediction.strip().lower(), answer.strip().lower()
        if not p or not a:
            return 0.0
        distance = levenshtein(p, a) / max(len(p), len(a))
        return 1 - distance if distance < ANLS_THRESHOLD else 0.0

    return max((similarity(answer) for answer in accepted), default=0.0)


def relaxed_match(prediction: str, target: str) -> bool:
    """Says whether a chart's answer is right: a number within 5 % of the target, any other text equal but for case.

    Commas, dollar signs, and a final period do not count; a percentage is tried as written and divided by 100, on
    either side. Flaws of the measure that are kept, since it is defined so: a year is a number, so 2014 is right for
    2011; a target of 0 asks for exactly 0. Flaw not kept: "nan" and "inf" are texts, not numbers.
    Source: Masry et al. 2022, section 5.1; the percent sign as in google-research/pix2struct `metrics.py`.
    """
    p, t = _chart_text(prediction), _chart_text(target)
    wanted, given = _chart_numbers(t), _chart_numbers(p)
    if not wanted or not given:
        return bool(p) and p.lower() == t.lower()
    return any(
        abs(g - w) <= RELAXED_TOLERANCE * abs(w)
        for i, g in enumerate(given)
        for j, w in enumerate(wanted)
        if i == 0 or j == 0
    )


def _chart_text(text: str) -> str:
    text = text.strip().strip("\"'").strip()
    if any(c.isdigit() for c in text):
        text = text.replace(",", "").replace("$", "")
    return text.rstrip(" .;:!") or text


def _chart_numbers(text: str) -> list[float]:
    """Returns the number that a text is, and for a percentage also its hundredth; nothing for other texts."""
    if not re.fullmatch(r"[-+−]?\s*(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*%?", text):
        return []
    number = float(text.replace("−", "-").replace(" ", "").rstrip("%"))
    return [number, number / 100] if text.endswith("%") else [number]


def squad_f1(prediction: str, accepted: Sequence[str]) -> float:
    """Returns the best F1 of shared words over the accepted answers, after SQuAD 1.1's normalisation.

    Normalisation is English: lower case, ASCII punctuation and the articles a, an, the are dropped, words are what
    space separates, in every language. TyDi QA's gold passage task uses it as it is; so a text in a script without
    spaces is one word, and "the" is dropped from an Indonesian answer too. Where nothing is left of a text, F1 is 0.
    Source: Rajpurkar et al. 2016, `evaluate-v1.1.py`; Clark et al. 2020 (TyDi QA), section 6.
    """
    return max((_word_f1(_squad_words(prediction), _squad_words(answer)) for answer in accepted), default=0.0)


def _squad_words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _word_f1(prediction: list[str], answer: list[str]) -> float:
    shared = sum((Counter(prediction) & Counter(answer)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(answer)
    return 2 * precision * recall / (precision + recall)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> Estimate:
    """Returns corpus chrF (character 6-grams, beta 2, sacrebleu's defaults), from 0 to 1; the error by jackknife.

    It is the measure of the whole corpus, not the mean of sentences. Raises DeviceError without sacrebleu, ValueError
    when there are no texts. Source: Popović 2015; Post 2018, package sacrebleu.
    """
    if not predictions:
        raise ValueError("no texts to compare")
    metric = _extra(*EXTRAS["mtob"]).CHRF()
    rows = metric._extract_corpus_statistics(list(predictions), [list(references)])
    total = [sum(column) for column in zip(*rows, strict=True)]

    def score(statistics: list[int]) -> float:
        return float(metric._compute_f_score(statistics)) / 100

    n = len(rows)
    value = score(total)
    if n < 2:
        return Estimate(value=value, stderr=None, n=n)
    without = [score([t - x for t, x in zip(total, row, strict=True)]) for row in rows]
    middle = sum(without) / n
    return Estimate(value=value, stderr=math.sqrt((n - 1) / n * sum((w - middle) ** 2 for w in without)), n=n)


def sentence_chrf(prediction: str, reference: str) -> float:
    """Returns chrF of one sentence, from 0 to 1, for a reader of items. Raises DeviceError without sacrebleu."""
    return float(_extra(*EXTRAS["mtob"]).CHRF().sentence_score(prediction, [reference]).score) / 100


_UNIT_WORDS = (
    "square ways integers dollars mph inches ft hours km units sue points feet minutes digits cents degrees cm gm "
    "pounds meters meals edges students childrentickets multiples"
).split()
_MARKS = (
    r"\ldots",
    r"\text{s}",
    r"\text{.}",
    "\\text{\ns}",
    r"\text{}^2",
    r"\text{}^3",
    "\\text{\n}",
    r"\text{}",
    r"\mathrm{th}",
    r"^\circ",
    r"^{\circ}",
    r"\;",
    r",\!",
    "{,}",
    '"',
    r"\dots",
)
_SUBSTITUTIONS = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)


def minerva_form(answer: str) -> str:
    """Returns an answer of MATH in the form in which Minerva compares strings.

    Three flaws of the published code are not kept: a unit is removed as a word and never out of a command (the "ft" of
    `\\left`); an index of a root stays (`\\sqrt[3]8`); commas are removed from 100,000 only, not out of a pair "0,1".
    Source: Lewkowycz et al. 2022 (Minerva), appendix D.1; the repairs as in lm-evaluation-harness 0.4.13.
    """
    text = answer.split("=")[-1]
    text = re.sub(rf"(?<!\\)\b({'|'.join(_UNIT_WORDS)})\b", "", text)
    for old, new in _SUBSTITUTIONS:
        text = text.replace(old, new)
    pieces = re.split(r"(\\[a-zA-Z]+)", text)  # commands stand at the odd places
    for word in _UNIT_WORDS:
        pieces[::2] = [piece.replace(word, "") for piece in pieces[::2]]
    text = "".join(pieces)
    for mark in _MARKS:
        text = text.replace(mark, "")
    text = re.sub(r".*?(\$.*?\$).*", r"\1", text)
    text = re.sub(r"\\(?:text|textbf|overline)\{(.*?)\}", r"\1", text)
    text = re.sub(r"\\boxed\{(.*)\}", r"\1", text)
    text = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", text)
    text = re.sub(r"sqrt(\[[^\]]*\])(\w)", r"sqrt\1{\2}", text)
    text = re.sub(r"sqrt(?!\[)([^{])", r"sqrt{\1}", text).replace("$", "")
    return text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+", text) else text


def same_formula(prediction: str, answer: str) -> bool:
    """Says whether two answers of MATH are one: equal in Minerva's form, or equal as formulas.

    Minerva's equality goes through sympy's parser, which refuses tuples, intervals and matrices; math-verify reads
    them. Raises DeviceError when the strings differ and math-verify is not installed: a guess would be silent.
    """
    p, a = minerva_form(prediction), minerva_form(answer)
    if not p or p == a:
        return bool(p)
    library = _extra(*EXTRAS["math"])
    in_main = threading.current_thread() is threading.main_thread()  # its time limits are signals: main thread only
    limit = 5 if in_main else None
    wanted = library.parse(f"${a}$", parsing_timeout=limit)
    given = library.parse(f"${p}$", parsing_timeout=limit)
    return bool(wanted and given and library.verify(wanted, given, timeout_seconds=limit))


EXTRAS = {"mtob": ("sacrebleu.metrics", "sacrebleu"), "math": ("math_verify", "math-verify")}
"""First word of a task's name -> the module that judges it, and its package, where it is one of the extra `eval`."""


def check_extras(tasks: Iterable[str]) -> None:
    """Raises DeviceError where a task's judge is not installed: after hours of answers it would be too late."""
    for name in tasks:
        if found := EXTRAS.get(name.partition("_")[0]):
            _extra(*found)


def _extra(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DeviceError(
            f"the package {package} is missing ({error}); install it with: pip install 'puna[eval]'"
        ) from error
