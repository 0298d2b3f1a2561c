"""The stand-ins with pictures: way-bills for DocVQA, charts of herds for the others.

In: a folder. Out: rows in the sets' record formats, by file; pictures are drawn below the folder's `images`.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Rows = Iterable[dict[str, Any]]

N = 20  # items of a set
NAMES = ("A. Mamani", "R. Quispe", "L. Condori", "S. Huanca", "M. Choque", "T. Apaza", "J. Flores", "E. Vilca")
GOODS = ("wool", "salt", "quinoa", "rope", "maize", "felt", "copper", "coca")
TOWNS = ("Oruro", "Puno", "Uyuni", "Ayacucho", "Huaraz", "Juliaca", "Cusco", "Potosi")
LETTERS = "ABCDEFGHIJ"


def docvqa(folder: Path) -> dict[str, Rows]:
    """Two questions about each of ten way-bills; the answers of the test split are hidden, as they are in the set."""
    rows = list(_way_bills(folder))
    return {"validation": rows, "test": [{**row, "answers": None} for row in rows]}


def _way_bills(folder: Path) -> Iterator[dict[str, Any]]:
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
        image = _save(_page("WAY-BILL", [f"{field}: {text}" for field, text in facts.items()]), folder, str(page))
        for place, field in enumerate(chance.sample(sorted(facts), 2)):
            question = f"What is written behind {field}?"
            asked = {"questionId": 2 * page + place, "docId": page, "question": question, "image": image}
            yield {**asked, "answers": [facts[field]]}


def chartqa(folder: Path) -> dict[str, Rows]:
    """Two questions about each of ten charts, one for each kind of author."""

    def rows() -> Iterator[dict[str, Any]]:
        for number, (herds, image) in enumerate(_charts(folder)):
            town, most = next(iter(herds)), max(herds, key=lambda town: herds[town])
            for machine, (query, label) in enumerate(
                [(f"How many llamas are there in {town}?", str(herds[town])), ("Where are most llamas?", most)]
            ):
                asked = {"image": image, "imgname": f"{number}.png", "query": query}
                yield {**asked, "label": [label], "human_or_machine": machine}

    return {"test": rows()}


def mmmu(folder: Path) -> dict[str, Rows]:
    """A question about each of ten charts, with options, and one without."""

    def rows() -> Iterator[dict[str, Any]]:
        for number, (herds, image) in enumerate(_charts(folder)):
            town, most = next(iter(herds)), max(herds, key=lambda town: herds[town])
            asked = {"image_1": image, "explanation": ""}
            choice = {"options": str(list(herds)), "answer": LETTERS[list(herds).index(most)]}
            question = "Look at <image 1>. Where are most llamas?"
            yield {"id": f"validation_Own_{2 * number}", "question": question, **asked, **choice} | {
                "question_type": "multiple-choice"
            }
            question = f"Look at <image 1>. How many llamas are there in {town}?"
            yield {"id": f"validation_Own_{2 * number + 1}", "question": question, **asked, "options": "[]"} | {
                "question_type": "open",
                "answer": str(herds[town]),
            }

    return {"validation": rows()}


def mmmu_pro(folder: Path) -> dict[str, Rows]:
    """A question about each of ten charts, with ten options; once more as a picture of the question."""
    chance = random.Random("mmmu_pro")
    standard, vision = [], []
    for number, (herds, image) in enumerate(_charts(folder)):
        town = next(iter(herds))
        right = herds[town]
        options = [
            str(each) for each in chance.sample([right, *(right + d for d in (-9, -7, -4, -2, 1, 3, 5, 6, 8))], 10)
        ]
        question = f"How many llamas are there in {town}?"
        row = {"id": f"test_Own_{number}", "options": str(options), "answer": LETTERS[options.index(str(right))]}
        standard.append({**row, "question": f"{question} <image 1>", "image_1": image})
        lines = [question, *(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))]
        lines += [f"{town}: {n}" for town, n in herds.items()]
        vision.append({**row, "image": _save(_page("QUESTION", lines), folder, f"question{number}")})
    return {"standard_10_options": standard, "vision": vision}


def mathvista(folder: Path) -> dict[str, Rows]:
    """A whole number and a choice about each of ten charts."""

    def rows() -> Iterator[dict[str, Any]]:
        for number, (herds, image) in enumerate(_charts(folder)):
            most, least = max(herds.values()), min(herds.values())
            shared = {"image": image, "unit": None, "precision": None, "metadata": {"source": "Own"}}
            question = "How many more llamas has the largest herd than the smallest?"
            hint = "Hint: Please answer the question requiring an integer answer and provide the final value."
            yield {"pid": str(2 * number), "question": question, "query": f"{hint}\nQuestion: {question}", **shared} | {
                "choices": None,
                "answer": str(most - least),
                "question_type": "free_form",
                "answer_type": "integer",
            }
            question, choices = "Where are most llamas?", list(herds)
            listed = "\n".join(f"({letter}) {town}" for letter, town in zip(LETTERS, choices, strict=False))
            hint = "Hint: Please answer the question and provide the correct option letter."
            query = f"{hint}\nQuestion: {question}\n{listed}"
            yield {"pid": str(2 * number + 1), "question": question, "query": query, **shared} | {
                "choices": choices,
                "answer": max(herds, key=lambda town: herds[town]),
                "question_type": "multi_choice",
                "answer_type": "text",
            }

    return {"testmini": rows()}


def _charts(folder: Path) -> Iterator[tuple[dict[str, int], str]]:
    """Draws ten charts. Yields the llamas of four towns, no two alike, and the picture's path in the folder."""
    chance = random.Random("charts")
    for number in range(N // 2):
        herds = dict(zip(chance.sample(TOWNS, 4), chance.sample(range(20, 200), 4), strict=True))
        yield herds, _save(_bars(herds), folder, f"chart{number}")


def _save(picture: Image.Image, folder: Path, name: str) -> str:
    picture.save(folder / "images" / f"{name}.png", compress_level=1)
    return f"images/{name}.png"


@cache
def _font(size: int) -> Any:
    """Pillow's own font, which takes long to unpack."""
    return ImageFont.load_default(size)


def _page(title: str, lines: list[str]) -> Image.Image:
    picture = Image.new("RGB", (560, 140 + 46 * len(lines)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((40, 30), title, fill="black", font=_font(36))
    draw.line((40, 84, 520, 84), fill="black", width=3)
    for place, line in enumerate(lines):
        draw.text((40, 110 + 46 * place), line, fill="black", font=_font(26))
    return picture


def _bars(herds: Mapping[str, int]) -> Image.Image:
    picture = Image.new("RGB", (560, 420), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((40, 16), "Llamas by town", fill="black", font=_font(26))
    for place, (town, n) in enumerate(herds.items()):
        left = 50 + 125 * place
        draw.rectangle((left, 360 - 1.4 * n, left + 70, 360), fill="#8a5a2b")
        draw.text((left + 35, 350 - 1.4 * n), str(n), fill="black", font=_font(20), anchor="ms")
        draw.text((left + 35, 392), town, fill="black", font=_font(20), anchor="ms")
    return picture
