"""Stand-ins of our own for every set of the card, in its record format: a row runs where its data is not at hand.

They show that everything works from end to end, on any machine, without a network. They say nothing about a model that
could be compared with anything, and every report that shows them says so. Nothing of them comes from the sets
themselves: they are sums about herds, way-bills, and a language of twelve words.
The sets with pictures are in `own_pictures`.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from puna.eval import own_pictures
from puna.eval.extract import MGSM_PREFIXES
from puna.eval.own_pictures import Rows

N = 20  # items of a set
GROUPS = ("herds", "loads", "days", "legs")


class Sum(NamedTuple):
    """A question whose answer is a number, and how it is worked out."""

    text: str
    work: str
    right: int

    def options(self, chance: random.Random, n: int) -> list[str]:
        """Returns `n` different numbers, the right one among them, in any order."""
        others = chance.sample([self.right + d for d in range(-12, 13) if d], n - 1)
        return [str(number) for number in chance.sample([self.right, *others], n)]


def write(folder: Path) -> dict[str, Path]:
    """Writes all sets below `folder`, always the same. Returns, by task name, the folder that has its files."""
    sets: dict[str, tuple[tuple[str, ...], Callable[[Path], Mapping[str, Rows]]]] = {
        "mmlu": (("mmlu", "mmlu_cot"), _mmlu),
        "mmlu_pro": (("mmlu_pro", "mmlu_pro_base"), _mmlu_pro),
        "math": (("math", "math_chat"), _math),
        "mbpp": (("mbpp",), _mbpp),
        "tydiqa": (("tydiqa", "tydiqa_gold"), _tydiqa),
        "mgsm": (("mgsm",), _mgsm),
        "gpqa": (("gpqa_diamond",), _gpqa),
        "livecodebench": (("livecodebench",), _livecodebench),
        "mtob": (("mtob_half_ek", "mtob_half_ke", "mtob_full_ek", "mtob_full_ke"), _mtob),
        "docvqa": (("docvqa", "docvqa_base", "docvqa_test"), own_pictures.docvqa),
        "chartqa": (("chartqa", "chartqa_base"), own_pictures.chartqa),
        "mmmu": (("mmmu",), own_pictures.mmmu),
        "mmmu_pro": (("mmmu_pro", "mmmu_pro_standard", "mmmu_pro_vision"), own_pictures.mmmu_pro),
        "mathvista": (("mathvista",), own_pictures.mathvista),
    }
    tasks: dict[str, Path] = {}
    for name, (names, make) in sets.items():
        (folder / name / "images").mkdir(parents=True, exist_ok=True)
        for file, rows in make(folder / name).items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name / f"{file}.jsonl").write_text(lines, "utf-8")
        tasks |= dict.fromkeys(names, folder)
    return tasks


def sums(name: str, n: int) -> Iterator[Sum]:
    """Yields `n` questions about herds, always the same for a name."""
    chance = random.Random(name)
    for _ in range(n):
        herds, llamas, lost = chance.randrange(3, 12), chance.randrange(4, 12), chance.randrange(1, 4)
        text = f"{herds} herds of {llamas} llamas each lose {lost} llamas in all. How many llamas are left?"
        all_of_them = herds * llamas
        work = f"{herds} times {llamas} is {all_of_them}, and {all_of_them} less {lost} is {all_of_them - lost}."
        yield Sum(text, work, all_of_them - lost)


# Questions with options -------------------------------------------------------------------------------------------


def _mmlu(_: Path) -> dict[str, Rows]:
    def rows(name: str, n: int) -> Iterator[dict[str, Any]]:
        chance = random.Random(name)
        for group in GROUPS:
            for each in sums(f"{name} {group}", n):
                choices = each.options(chance, 4)
                answer = choices.index(str(each.right))
                yield {"question": each.text, "subject": group, "choices": choices, "answer": answer}

    return {"test": rows("mmlu", N // len(GROUPS)), "dev": rows("mmlu dev", 5)}


def _mmlu_pro(_: Path) -> dict[str, Rows]:
    def rows(name: str, n: int) -> Iterator[dict[str, Any]]:
        chance = random.Random(name)
        for place, group in enumerate(GROUPS):
            for number, each in enumerate(sums(f"{name} {group}", n)):
                options = each.options(chance, 10)
                letter = "ABCDEFGHIJ"[options.index(str(each.right))]
                work = f"A: Let's think step by step. {each.work} The answer is ({letter})."
                asked = {"question_id": 100 * place + number, "question": each.text, "category": group}
                yield {**asked, "options": options, "answer": letter, "cot_content": work}

    return {"test": rows("mmlu_pro", N // len(GROUPS)), "validation": rows("mmlu_pro examples", 5)}


def _gpqa(_: Path) -> dict[str, Rows]:
    chance = random.Random("gpqa")

    def row(number: int, each: Sum) -> dict[str, Any]:
        wrong = [option for option in each.options(chance, 4) if option != str(each.right)]
        named = {f"Incorrect Answer {i}": option for i, option in enumerate(wrong, start=1)}
        asked = {"Record ID": f"own{number}", "Question": each.text, "High-level domain": "Own"}
        return {**asked, "Correct Answer": str(each.right), **named}

    return {"gpqa_diamond": [row(number, each) for number, each in enumerate(sums("gpqa", N))]}


# Questions with answers -------------------------------------------------------------------------------------------


def _math(_: Path) -> dict[str, Rows]:
    end = "Final Answer: The final answer is ${}$. I hope it is correct."
    shots = [
        {"problem": each.text, "solution": f"{each.work} So it is $\\boxed{{{each.right}}}$.\n{end.format(each.right)}"}
        for each in sums("math examples", 4)
    ]
    test = [
        {
            "problem": each.text,
            "solution": f"{each.work} So it is $\\boxed{{{each.right}}}$.",
            "unique_id": f"own/{number}",
        }
        for number, each in enumerate(sums("math", N))
    ]
    return {"test": test, "fewshot_minerva": shots}


def _tydiqa(_: Path) -> dict[str, Rows]:
    forms = {
        "english": ("{} keeps {} llamas.", "How many llamas does {} keep?"),
        "indonesian": ("{} memelihara {} llama.", "Berapa llama yang dipelihara {}?"),
        "finnish": ("{} kasvattaa {} laamaa.", "Montako laamaa {} kasvattaa?"),
        "swahili": ("{} anafuga llama {}.", "{} anafuga llama wangapi?"),
    }

    def rows(name: str, n: int) -> Iterator[dict[str, Any]]:
        chance = random.Random(name)
        for language, (fact, question) in forms.items():
            for number in range(n):
                who, count = chance.choice(own_pictures.NAMES), str(chance.randrange(10, 99))
                context = fact.format(who, count)
                yield {
                    "id": f"{language}-{name}{number}",
                    "title": f"{who}, {number}",
                    "context": context,
                    "question": question.format(who),
                    "answers": {"text": [count], "answer_start": [context.index(count)]},
                }

    return {"validation": rows("own", N // len(forms)), "exemplars": rows("example", 1)}


def _mgsm(_: Path) -> dict[str, Rows]:
    def rows() -> Iterator[dict[str, Any]]:
        chance = random.Random("mgsm")
        for index in range(2):
            a, b, c = (chance.randrange(2, 12) for _ in range(3))
            for language in MGSM_PREFIXES:
                question = f"{a} × {b} + {c} = ?"
                yield {"language": language, "index": index, "question": question, "answer_number": a * b + c}

    return {"test": rows()}


# Programs ---------------------------------------------------------------------------------------------------------


def _mbpp(_: Path) -> dict[str, Rows]:
    def row(number: int, text: str, code: str, tests: list[str]) -> dict[str, Any]:
        return {"task_id": number, "text": text, "code": code, "test_list": tests, "test_setup_code": ""}

    def of(number: int) -> dict[str, Any]:
        factor, more = number % 5 + 2, number // 5 + 1
        code = f"def carry(n):\n    return {factor} * n + {more}"
        tests = [f"assert carry({n}) == {factor * n + more}" for n in (0, 3, 10)]
        return row(number, f"Write a function carry(n) that returns {factor} times n plus {more}.", code, tests)

    return {"test": [of(number) for number in range(11, 11 + N // 2)], "prompt": [of(number) for number in (2, 3, 4)]}


def _livecodebench(_: Path) -> dict[str, Rows]:
    return {"test": [_problem(number, *each) for number, each in enumerate(PROBLEMS)]}


def _problem(number: int, text: str, starter: str, tests: list[tuple[str, str]], solution: str) -> dict[str, Any]:
    kind = "functional" if starter else "stdin"
    listed = [{"input": given, "output": wanted, "testtype": kind} for given, wanted in tests]
    name = starter.partition("def ")[2].partition("(")[0]
    return {
        "question_id": f"own{number}",
        "question_content": text,
        "contest_date": f"2024-11-{number + 1:02}T00:00:00",
        "starter_code": starter,
        "difficulty": "easy",
        "public_test_cases": json.dumps(listed[:1]),
        "private_test_cases": json.dumps(listed[1:]),
        "metadata": json.dumps({"func_name": name} if name else {}),
        "solution": solution,
    }


# A language of twelve words ---------------------------------------------------------------------------------------

NOUNS = {"llama": "yamo", "bird": "pisu", "child": "wawe", "river": "mayu", "stone": "rumi", "rope": "waska"}
VERBS = {"sees": "riku", "follows": "kati", "carries": "apa", "finds": "tari", "leaves": "saki", "crosses": "chimpa"}
GRAMMAR = (
    "The verb stands at the end of a sentence and takes the ending -n. Who does it stands first and takes -ka. What it "
    "is done to stands between and takes -ta. There are no articles. "
)


def _mtob(folder: Path) -> dict[str, Rows]:
    words = {
        "ek": {**{e: ["Noun", o] for e, o in NOUNS.items()}, **{e: ["Verb", o] for e, o in VERBS.items()}},
        "ke": {**{o: ["Noun", e] for e, o in NOUNS.items()}, **{o: ["Verb", e] for e, o in VERBS.items()}},
    }
    (folder / "wordlist.json").write_text(json.dumps(words), "utf-8")
    (folder / "grammar_book_half.txt").write_text(GRAMMAR, "utf-8")
    (folder / "grammar_book_full.txt").write_text(2 * GRAMMAR, "utf-8")
    pairs = random.Random("mtob").sample([(a, v, b) for a in NOUNS for v in VERBS for b in NOUNS if a != b], 60)
    train = ({"original": _english(pair), "translation": _own(pair)} for pair in pairs[N:])
    return {
        "train_examples": train,
        "test_examples_ek": _examples(pairs[:N], _english, _own),
        "test_examples_ke": _examples(pairs[:N], _own, _english),
    }


def _english(pair: tuple[str, str, str]) -> str:
    who, does, what = pair
    return f"The {who} {does} the {what}."


def _own(pair: tuple[str, str, str]) -> str:
    who, does, what = pair
    return f"{NOUNS[who].capitalize()}ka {NOUNS[what]}ta {VERBS[does]}n."


def _examples(
    pairs: Iterable[tuple[str, str, str]],
    given: Callable[[tuple[str, str, str]], str],
    wanted: Callable[[tuple[str, str, str]], str],
) -> Iterator[dict[str, Any]]:
    for number, pair in enumerate(pairs):
        yield {"original_id": f"own{number}", "original": given(pair), "ground_truth": wanted(pair)}


# Contest problems -------------------------------------------------------------------------------------------------


def _method(signature: str, body: str = "") -> str:
    return f"class Solution:\n    def {signature}:\n        {body}"


PROBLEMS: tuple[tuple[str, str, list[tuple[str, str]], str], ...] = (
    (
        "Read the number of llamas and print how many legs they have.",
        "",
        [("3\n", "12\n"), ("0\n", "0\n"), ("250\n", "1000\n")],
        "print(4 * int(input()))",
    ),
    (
        "The first line has a number n, the second n weights. Print the heaviest load of two different bags.",
        "",
        [("3\n5 9 2\n", "14\n"), ("2\n1 1\n", "2\n"), ("4\n-3 -1 -2 -9\n", "-3\n")],
        "input()\nprint(sum(sorted(map(int, input().split()))[-2:]))",
    ),
    (
        "Read a line of words and print them in the opposite order.",
        "",
        [("salt for wool\n", "wool for salt\n"), ("puna\n", "puna\n")],
        "print(*reversed(input().split()))",
    ),
    (
        "Read a text of ( and ). Print YES when every bracket has its partner, otherwise NO.",
        "",
        [("(())()\n", "YES\n"), (")(\n", "NO\n"), ("((\n", "NO\n")],
        "depth = 0\nfor c in input():\n    depth += 1 if c == '(' else -1\n    if depth < 0:\n        break\n"
        "print('YES' if depth == 0 else 'NO')",
    ),
    (
        "Return all pairs of equal neighbours, in order.",
        _method("pairs(self, x: List[int]) -> List[List[int]]"),
        [("[1, 1, 2]", "[[1, 1]]"), ("[]", "[]"), ("[3, 3, 3]", "[[3, 3], [3, 3]]")],
        _method("pairs(self, x)", "return [p for p in pairwise(x) if p[0] == p[1]]"),
    ),
    (
        "Return the length of the longest run of days on which the herd grew.",
        _method("growth(self, sizes: List[int]) -> int"),
        [("[1, 2, 3, 1]", "2"), ("[5]", "0"), ("[4, 3, 2]", "0"), ("[1, 3, 2, 4, 8, 9]", "3")],
        _method(
            "growth(self, sizes)",
            "best = run = 0\n        for a, b in pairwise(sizes):\n            run = run + 1 if b > a else 0\n"
            "            best = max(best, run)\n        return best",
        ),
    ),
)
"""Text, starter code (none: standard input), tests, and a solution."""
