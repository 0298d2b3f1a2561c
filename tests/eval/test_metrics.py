"""The measures: by hand, and on the authors' cases."""

import math
import statistics

import pytest

from puna.eval.metrics import (
    Estimate,
    anls,
    average,
    chrf,
    interval,
    levenshtein,
    minerva_form,
    relaxed_match,
    same_formula,
    sentence_chrf,
    squad_f1,
)


def test_average_without_groups_has_the_textbook_error() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.5]
    estimate = average(values)
    assert estimate.value == pytest.approx(0.7) and estimate.n == 5
    assert estimate.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(5))


def test_macro_average_weighs_groups_equally() -> None:
    values, groups = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], ["a", "a", "a", "a", "b", "b"]
    estimate = average(values, groups)
    assert estimate.value == pytest.approx(0.375)
    assert estimate.stderr == pytest.approx(0.5 * math.sqrt(0.25 / 4))  # group b does not vary


def test_clusters_of_equal_items_count_as_one() -> None:
    single = average([1.0, 0.0, 1.0, 1.0])
    doubled = average([1.0, 0.0, 1.0, 1.0] * 2, clusters=[0, 1, 2, 3] * 2)
    assert doubled.stderr == pytest.approx(single.stderr)


def test_clusters_across_groups_raise_the_error() -> None:
    values, groups = [1.0, 0.0, 1.0, 0.0], ["a", "a", "b", "b"]
    apart = average(values, groups).stderr
    together = average(values, groups, clusters=[0, 1, 0, 1]).stderr
    assert apart and together and together == pytest.approx(apart * math.sqrt(2))


def test_error_is_unknown_for_one_item_and_no_items_have_no_average() -> None:
    assert average([1.0]).stderr is None
    assert average([1.0, 0.0], clusters=["a", "a"]).stderr is None
    with pytest.raises(ValueError, match="no values"):
        average([])


def test_groups_of_one_item_vary_around_the_mean_of_all() -> None:
    values = [1.0, 0.0, 1.0, 1.0]
    assert average(values, ["a", "b", "c", "d"]).stderr == pytest.approx(average(values).stderr)
    with_pair = average([1.0, 0.0, 1.0], ["a", "a", "b"])
    assert with_pair.value == 0.75 and with_pair.stderr and with_pair.stderr > average([1.0, 0.0]).stderr / 2  # type: ignore[operator]


def test_interval_of_independent_items_is_wilsons() -> None:
    low, high = interval(average([1.0] * 8 + [0.0] * 2))
    # by hand, with p (1-p) / stderr^2 = n - 1 items, as s / sqrt(n) divides by n - 1
    assert (low, high) == pytest.approx((0.4738, 0.9467), abs=1e-3)
    assert interval(Estimate(value=0.0, stderr=0.0, n=20)) == pytest.approx((0.0, 0.1611), abs=1e-3)
    assert interval(Estimate(value=1.0, stderr=None, n=1)) == pytest.approx((0.2065, 1.0), abs=1e-3)


def test_interval_is_wider_where_items_share_a_source() -> None:
    values = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    apart, together = interval(average(values)), interval(average(values, clusters=[0, 0, 1, 1, 2, 2, 3, 3]))
    assert together[0] < apart[0] < 0.5 < apart[1] < together[1]


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_levenshtein_counts_single_edits(a: str, b: str, distance: int) -> None:
    assert levenshtein(a, b) == levenshtein(b, a) == distance


@pytest.mark.parametrize(
    ("prediction", "accepted", "value"),
    [
        (" Tobacco ", ["tobacco"], 1.0),
        ("tobaco", ["tobacco"], 6 / 7),
        ("abcd", ["abxy"], 0.0),  # half wrong is wrong
        ("abcd", ["abcx", "zzzz"], 0.75),
        ("", ["a"], 0.0),
        ("a", [], 0.0),
    ],
)
def test_anls_is_similarity_to_the_closest_answer(prediction: str, accepted: list[str], value: float) -> None:
    assert anls(prediction, accepted) == pytest.approx(value)


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [
        ("14", "14", True),
        ("104", "100", True),
        ("105.1", "100", False),
        ("-9.6", "-10", True),
        ("1,000", "$1000", True),
        ("45%", "45", True),
        ("0.45", "45%", True),
        ("45%", "0.45", True),
        ("2014", "2011", True),  # a year is a number: so the measure is defined
        ("0.001", "0", False),  # a target of 0 asks for 0
        ("0.0", "0", True),
        ("Yes.", "yes", True),
        ("nan", "5", False),
        ("No", "Yes", False),
        ("", "Yes", False),
        ("[Iran, Iraq]", "[Iran, Iraq]", True),
    ],
)
def test_relaxed_match_takes_numbers_within_five_percent(prediction: str, target: str, right: bool) -> None:
    assert relaxed_match(prediction, target) is right


@pytest.mark.parametrize(
    ("prediction", "accepted", "value"),
    [
        ("The Cat", ["cat"], 1.0),
        ("a cat sat", ["the cat"], 2 / 3),
        ("x", ["y", "x y"], 2 / 3),
        ("270 ق.م", ["270 قم"], 1.0),
        ("", ["cat"], 0.0),
        ("the", ["the"], 0.0),  # nothing is left of it
    ],
)
def test_squad_f1_counts_shared_words(prediction: str, accepted: list[str], value: float) -> None:
    assert squad_f1(prediction, accepted) == pytest.approx(value)


def test_chrf_is_that_of_sacrebleu_with_an_error() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    given, wanted = ["Keitar me kalis ur.", "I am", "yes yes"], ["Keitar me kalis.", "I was", "no"]
    estimate = chrf(given, wanted)
    assert estimate.value == pytest.approx(sacrebleu.corpus_chrf(given, [wanted]).score / 100)
    assert estimate.stderr is not None and 0 < estimate.stderr < 1
    assert chrf(wanted, wanted).value == 1.0 and chrf([""] * 3, wanted).value == 0.0
    assert sentence_chrf("I am", "I am") == 1.0


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("x = \\frac12", "\\frac{1}{2}"),
        ("\\text{ 5 } cm", "5"),
        ("100,000", "100000"),
        ("0,1", "0,1"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("\\sqrt[3]8", "\\sqrt[3]{8}"),
        ("\\left(2,3\\right)", "\\left(2,3\\right)"),
        ("the answer is $\\boxed{7}$.", "7"),
        ("90^\\circ", "90"),
        ("12 square inches", "12"),
    ],
)
def test_minerva_form_removes_what_does_not_count(answer: str, form: str) -> None:
    assert minerva_form(answer) == form


@pytest.mark.parametrize(
    ("prediction", "answer", "same"),
    [
        ("0.5", "\\frac{1}{2}", True),
        ("[2,5)", "[2,5)", True),
        ("2,5", "(2,5)", True),
        ("3", "4", False),
        ("", "", False),
    ],
)
def test_same_formula_compares_texts_then_values(prediction: str, answer: str, same: bool) -> None:
    pytest.importorskip("math_verify")
    assert same_formula(prediction, answer) is same
