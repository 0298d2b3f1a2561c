"""Verdicts on recorded responses against the graders of the benchmarks' authors, of Meta and of lm-evaluation-harness.

Where we differ on purpose the docstring of our grader names the flaw, and the test here shows it. MMMU-Pro and
MathVista, whose authors published graded responses, are compared with those in `tests/eval/test_extract.py`.
"""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from puna.eval.extract import MGSM_PREFIXES, STATEMENTS, best_answer, mmmu_choice, mmmu_open, stated_letter
from puna.eval.metrics import anls, chrf, squad_f1
from puna.eval.task import Item
from puna.eval.tasks import TASKS
from puna.eval.tasks.mmmu import MMMU
from tests.reference.referees import ask

pytestmark = pytest.mark.slow

SLICES = Path(__file__).parents[2].parent / "shared" / "data" / "eval"


METAS_SPELLING = {"Àmọ̀nà": "A\u0300m\u1ecd\u0300na\u0300", "Ànúgọ": "A\u0300nu\u0301go\u0323"}


def theirs(grader: str, cases: Iterable[tuple[Any, str]]) -> list[Any]:
    answers = ask("graders", grader=grader, cases=list(cases))
    assert isinstance(answers, list)
    return answers


def items(name: str) -> list[Item]:
    if not SLICES.exists():
        pytest.skip("needs ../shared/data/eval")
    return list(TASKS[name].items(SLICES))


def rotated(texts: Sequence[str]) -> list[str]:
    return [*texts[1:], texts[0]]


def ours(name: str, rows: Iterable[tuple[Item, str]]) -> list[float | None]:
    return [TASKS[name].score(item, response).value for item, response in rows]


def test_math_agrees_with_minerva_or_math_verify_on_right_wrong_and_rewritten_answers() -> None:
    rows = items("math")
    gold = [TASKS["math"].gold(item) for item in rows]
    rewritten = [text.replace("\\frac{", "\\dfrac{").replace("$. I hope", " $. I hope") for text in gold]
    cases = [(item, text) for texts in (gold, rotated(gold), rewritten) for item, text in zip(rows, texts, strict=True)]
    found = theirs("minerva", [(item.row["solution"], text) for item, text in cases])
    for (item, text), value, (exact, verified) in zip(cases, ours("math", cases), found, strict=True):
        assert value == (exact or verified), (item.id, item.row["answer"], text[-120:])


def test_boxes_of_chat_models_are_judged_as_by_metas_grader() -> None:
    """Meta's asks a language model about what its texts do not settle; here none is asked."""
    rows = items("math_chat")
    gold = [f"## Step 1: Think\n...\n\n{TASKS['math_chat'].gold(item)}" for item in rows]
    cases = [(item, text) for texts in (gold, rotated(gold)) for item, text in zip(rows, texts, strict=True)]
    found = theirs("math500", [(item.row["answer"], text) for item, text in cases])
    values = [value == 1 for value in ours("math_chat", cases)]
    differing = [item.id for (item, _), a, b in zip(cases, values, found, strict=True) if a is not b]
    assert values[:120] == [True] * 120 and not differing, differing


@pytest.mark.parametrize("form", ["{}", "{}.", " {}\n", "{} because"])
def test_stated_letters_are_those_of_metas_grader_in_its_languages(form: str) -> None:
    wide = ("答复", "答曰")  # which Meta's grader knows with the wide colon only
    words = [word.replace("\\s*[:：]", "：" if word.startswith(wide) else ":") for word in STATEMENTS]
    words += ["the best answer is ", "Final answer: "]
    words = [
        METAS_SPELLING.get(word.rstrip(":"), word.rstrip(":")) + ":" if word[-1] == ":" else word for word in words
    ]
    cases = [(None, f"Hm.\n{word}{form.format(letter)}") for word in words for letter in "ABJ"]
    for (_, text), letter in zip(cases, theirs("meta_letter", cases), strict=True):
        assert stated_letter(text) == letter, text


def test_two_flaws_of_metas_grader_are_not_kept() -> None:
    cases = [(None, text) for text in ("The best answer is (B).", "the best answer is a matter of taste", "Answer: 7")]
    assert theirs("meta_letter", cases) == ["(B)", "a", None]
    assert [stated_letter(text) for _, text in cases] == ["B", None, None]


def test_last_statement_is_that_of_lm_eval() -> None:
    texts = ["The best answer is A. No, the best answer is C.", "the best answer is J", "So B.", "", "best answer is D"]
    assert [best_answer(text) or "[invalid]" for text in texts[:4]] == theirs(
        "last_letter", [(None, t) for t in texts[:4]]
    )
    assert best_answer("The best answer is (B).") == "B"  # which lm-eval does not find
    assert theirs("last_letter", [(None, "The best answer is (B).")]) == ["[invalid]"]


def test_charts_are_judged_as_by_lm_eval() -> None:
    rows = items("chartqa")
    cases = []
    for item in rows:
        label = str(item.row["label"][0])
        texts = [label, f"{label}.", label.upper(), f"**{label}**", "", "no idea"]
        if not any(c.isdigit() for c in label):
            texts.append(f'"{label}"')  # around numbers lm-eval counts quotation marks, we do not
        if label.replace(".", "", 1).isdigit():
            number = float(label)
            texts += [f"{number * f:.6g}" for f in (1.04, 1.06, 0.96, 0.94, -1)] + [
                f"{label}%",
                f"${label}",
                f"{number / 100}",
            ]
            texts += [f"{number / 100}%", f"{number:,}"]
        cases += [(item, f"Step 1. So.\nFINAL ANSWER: {text}") for text in texts]
    found = theirs("chart", [(str(item.row["label"][0]), text) for item, text in cases])
    for (item, text), value, right in zip(cases, ours("chartqa", cases), found, strict=True):
        assert value == right, (item.row["label"], text)


def test_page_answers_have_the_similarity_that_inspect_finds() -> None:
    draw = random.Random(0)
    words = [word for item in items("tydiqa")[::3] for word in item.row["answers"]["text"]]
    cases = []
    for word in words:
        letters = list(word)
        for _ in range(draw.randrange(4)):
            letters[draw.randrange(len(letters))] = draw.choice("aé x")
        cases.append(([word, draw.choice(words)], "".join(letters).strip()))
    for (accepted, text), value in zip(cases, theirs("anls", cases), strict=True):
        assert anls(text, accepted) == pytest.approx(value), (accepted, text)


def test_f1_is_squads_in_every_language_and_lm_evals_in_english() -> None:
    draw = random.Random(0)
    rows = items("tydiqa")
    cases = []
    for item in rows:
        accepted = item.row["answers"]["text"]
        words = item.row["context"].split()[:30]
        for text in (accepted[0], "the " + accepted[0] + "!", " ".join(draw.sample(words, 5)), "", accepted[0].upper()):
            cases.append((accepted, text))
    for (accepted, text), value in zip(cases, theirs("squad", cases), strict=True):
        assert squad_f1(text, accepted) == pytest.approx(value), (accepted, text)
    english = [case for case, item in zip(cases[::5], rows, strict=True) if item.group == "english"]
    for (accepted, text), value in zip(english, theirs("tydiqa_english", english), strict=True):
        assert squad_f1(text, accepted) == pytest.approx(value), (accepted, text)


def test_mmmu_parses_are_those_of_the_authors() -> None:
    path = SLICES / "mmmu" / "scoring_fixtures.jsonl"
    if not path.exists():
        pytest.skip("needs ../shared/data/eval")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    whole = [{**row, "options": str(list((row["index2ans"] or {}).values()))} for row in rows]
    for row, right in zip(rows, theirs("mmmu", [(row, row["response"]) for row in whole]), strict=True):
        if row["question_type"] == "multiple-choice":
            assert (mmmu_choice(row["response"], row["index2ans"]) == row["answer"]) == right, row["id"]
        else:
            item = Item(id=row["id"], row=row)
            meant = MMMU.score(item, "\n".join(str(each) for each in mmmu_open(row["response"])))
            assert (meant.value == 1) == right, row["id"]


def test_mgsm_numbers_and_prompts_are_those_of_simple_evals() -> None:
    rows = items("mgsm")
    cases = []
    for item in rows:
        answer, word = str(item.row["answer_number"]), MGSM_PREFIXES[item.group]
        for text in (answer, f"{answer}.0", f"{int(answer):,}", f"7, {answer}.", "7", "", f"{answer} + 1"):
            cases.append((item, f"1 + 2.\n{word}: 3\n{word}: {text}"))
        cases.append((item, answer))
    found = theirs("mgsm", [([str(item.row["answer_number"]), item.group], text) for item, text in cases])
    for (item, text), value, right in zip(cases, ours("mgsm", cases), found, strict=True):
        assert value == right, (item.id, text)
    texts = theirs("mgsm_prompt", [(item.group, item.row["question"]) for item in rows])
    assert [TASKS["mgsm"].prompt(item).messages[0]["content"][0]["text"] for item in rows] == texts  # type: ignore[union-attr]


def test_chrf_and_prompts_of_mtob_are_metas() -> None:
    for direction in ("ek", "ke"):
        rows = items(f"mtob_half_{direction}")
        wanted = [str(item.row["ground_truth"]) for item in rows]
        given = [f"{b} {a[: len(a) // 2]}" for a, b in zip(wanted, rotated(wanted), strict=True)]
        (value,) = theirs("chrf", [(wanted, json.dumps(given))])
        assert 100 * chrf(given, wanted).value == pytest.approx(value)
        folder = SLICES / "mtob"
        train = [json.loads(line) for line in (folder / "train_examples.jsonl").read_text("utf-8").splitlines()]
        source, target = ("English", "Kalamang") if direction == "ek" else ("Kalamang", "English")
        arguments = {
            "original": rows[3].row["original"],
            "book_content": (folder / "grammar_book_half.txt").read_text("utf-8"),
            "wordlist": json.loads((folder / "wordlist.json").read_text("utf-8")),
            "sentences": [{"english": row["original"], "kalamang": row["translation"]} for row in train],
            "source_language": source,
            "target_language": target,
        }
        (text,) = theirs("mtob_prompt", [(arguments, "")])
        prompt = TASKS[f"mtob_half_{direction}"].prompt(rows[3])
        assert prompt.messages[0]["content"][0]["text"] == text  # type: ignore[union-attr]


LEGS = {"inputs": ["3\n", "0\n"], "outputs": ["12\n", "0"], "fn_name": None}
PAIRS = {"inputs": ["[1, 1, 2]", "[]"], "outputs": ["[[1, 1]]", "[]"], "fn_name": "pairs"}
STDIN = {
    "print(4 * int(input()))": True,
    "n = int(input())\nif __name__ == '__main__':\n    print(n * 4.0)": True,
    "import sys\nprint(int(sys.stdin.readline()) * 4, ' ')": True,
    "print(4 * int(input()) or 1)": False,
    "print(4 * int(input()), 1)": False,
    "def f(:": False,
    "raise SystemExit": False,
}
CALLS = {
    "class Solution:\n    def pairs(self, x):\n        return [list(p) for p in pairwise(x) if p[0] == p[1]]": True,
    "class Solution:\n    def pairs(self, x):\n        return [[1, 1]]": False,
    "class Solution:\n    def other(self, x):\n        return []": False,
}


def test_programs_are_judged_as_by_livecodebench() -> None:
    def row(gold: dict[str, Any]) -> dict[str, Any]:
        tests = [{"input": i, "output": o} for i, o in zip(gold["inputs"], gold["outputs"], strict=True)]
        metadata = {"func_name": gold["fn_name"]} if gold["fn_name"] else {}
        return {
            "public_test_cases": json.dumps(tests),
            "private_test_cases": "[]",
            "metadata": json.dumps(metadata),
        }

    cases = [(LEGS, program) for program in STDIN] + [(PAIRS, program) for program in CALLS]
    items = [(Item(id="x", row=row(gold)), f"```python\n{program}\n```") for gold, program in cases]
    found = theirs("livecodebench", cases)
    assert found == [*STDIN.values(), *CALLS.values()]
    assert [value == 1 for value in ours("livecodebench", items)] == found


def test_programs_of_mbpp_are_judged_as_by_a_plain_interpreter() -> None:
    rows = items("mbpp")[:60]
    programs = [str(item.row["code"]) for item in rows]
    cases = [(item, text) for texts in (programs, rotated(programs)) for item, text in zip(rows, texts, strict=True)]
    found = theirs("mbpp", [([item.row.get("test_setup_code") or "", *item.row["test_list"]], t) for item, t in cases])
    assert [value == 1 for value in ours("mbpp", cases)] == found
    assert found[:60] == [True] * 60
