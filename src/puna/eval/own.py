"""Stand-ins of our own for the sets that cannot be shipped: DocVQA, GPQA and LiveCodeBench, in their record formats.

They show that a row runs from end to end where its data is not at hand. They say nothing about a model that could be
compared with anything, and every report that shows them says so.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

N = 20  # items of each generated set
NAMES = ("A. Mamani", "R. Quispe", "L. Condori", "S. Huanca", "M. Choque", "T. Apaza", "J. Flores", "E. Vilca")
GOODS = ("wool", "salt", "quinoa", "rope", "maize", "felt", "copper", "coca")
TOWNS = ("Oruro", "Puno", "Uyuni", "Ayacucho", "Huaraz", "Juliaca", "Cusco", "Potosi")


def write(folder: Path) -> dict[str, Path]:
    """Writes the sets below `folder`, always the same. Returns, by task name, the folder that has its files."""
    makers: dict[str, Callable[[Path], None]] = {"docvqa": _docvqa, "gpqa": _gpqa, "livecodebench": _livecodebench}
    for name, make in makers.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        make(folder / name)
    tasks = ("docvqa", "docvqa_base", "docvqa_test", "gpqa_diamond", "livecodebench")
    return dict.fromkeys(tasks, folder)


def _lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _docvqa(folder: Path) -> None:
    (folder / "images").mkdir(exist_ok=True)
    rows = list(_pages(folder / "images"))
    _lines(folder / "validation.jsonl", iter(rows))
    _lines(folder / "test.jsonl", ({**row, "answers": None} for row in rows))


def _pages(images: Path) -> Iterator[dict[str, Any]]:
    """Draws a way-bill for every two questions about it."""
    chance = random.Random("way-bills")
    for page in range(N // 2):
        sender, receiver = chance.sample(NAMES, 2)
        facts = {
            "Number": str(chance.randrange(1000, 9999)),
            "Sender": sender,
            "Receiver": receiver,
            "Town": chance.choice(TOWNS),
            "Goods": chance.choice(GOODS),
            "Weight": f"{chance.randrange(5, 95)} kg",
        }
        path = images / f"{page}.png"
        _draw(facts).save(path)
        for place, field in enumerate(chance.sample(sorted(facts), 2)):
            yield {
                "questionId": 2 * page + place,
                "docId": page,
                "question": f"What is written behind {field}?",
                "image": f"images/{path.name}",
                "answers": [facts[field]],
            }


def _draw(facts: dict[str, str]) -> Image.Image:
    picture = Image.new("RGB", (560, 420), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((40, 30), "WAY-BILL", fill="black", font=ImageFont.load_default(36))
    draw.line((40, 84, 520, 84), fill="black", width=3)
    for line, (field, text) in enumerate(facts.items()):
        draw.text((40, 110 + 46 * line), f"{field}: {text}", fill="black", font=ImageFont.load_default(26))
    return picture


def _gpqa(folder: Path) -> None:
    chance = random.Random("herds")
    rows = []
    for number in range(N):
        herds, llamas, died = chance.randrange(3, 20), chance.randrange(5, 30), chance.randrange(1, 5)
        right = herds * llamas - died
        wrong = chance.sample([right + d for d in (-herds, -died, died, herds, 1, -1) if d], 3)
        rows.append(
            {
                "Record ID": f"own{number}",
                "Question": f"{herds} herds of {llamas} llamas each lose {died} llamas in all. How many are left?",
                "Correct Answer": str(right),
                **{f"Incorrect Answer {i}": str(each) for i, each in enumerate(wrong, start=1)},
                "High-level domain": "Own",
            }
        )
    _lines(folder / "gpqa_diamond.jsonl", iter(rows))


def _livecodebench(folder: Path) -> None:
    _lines(folder / "test.jsonl", (_problem(number, *each) for number, each in enumerate(PROBLEMS)))


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
