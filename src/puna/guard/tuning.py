"""Judged conversations to the documents that a content guard is tuned on: its own prompt, and the verdict to learn.

In: JSON lines with `messages` (the last is judged) or `text`, and `codes`, empty for what is safe. Out: chat documents
for the trainer, whose user turn is the prompt of Llama Guard 4 and whose assistant turn is the verdict. Each row comes
in several copies with other categories left out: some that it does not violate, so that the guard reads the list
instead of knowing it by heart, and at times all that it violates, whereupon it is safe. The trainer writes headers and
newlines just as the prompt has them; pictures are not part of it yet.

Run `python -m puna.guard.tuning ROWS OUT [--copies N] [--seed N]`, then `puna train recipes/guard-tune.toml`.

Source: Inan et al. 2023, "Llama Guard" (arXiv 2312.06674), section 3.4 (categories dropped, labels that follow).
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.errors import PromptError, PunaError
from puna.guard.content_prompt import GUARD4, Turn, categories_of, pieces, turns_of
from puna.guard.hazards import require_codes
from puna.prompt.message import Message, TextPart

KEEP_ALL = 0.25  # of the copies ask about every category
DROP_VIOLATED = 0.15  # of the copies of unsafe rows leave out all that they violate


def documents(lines: Iterable[str], *, copies: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields `copies` documents for each line. Raises PromptError that names line and field."""
    rng = random.Random(seed)
    for number, line in enumerate(lines, 1):
        if line.strip():
            turns, codes = _row(line, f"line {number}")
            for _ in range(copies):
                yield document(turns, codes, dropped(codes, rng))


def dropped(codes: Sequence[str], rng: random.Random) -> frozenset[str]:
    """Returns categories to leave out: none, some that are not violated, or with these all that are."""
    if rng.random() < KEEP_ALL:
        return frozenset()
    others = [code for code in GUARD4.codes if code not in codes]
    some = frozenset(rng.sample(others, rng.randrange(len(others))))
    return some | frozenset(codes) if codes and rng.random() < DROP_VIOLATED else some


def document(turns: Sequence[Turn], codes: Sequence[str], without: frozenset[str]) -> dict[str, Any]:
    """Returns the chat document of one judged conversation; codes that are left out are not violated."""
    asked = {code: name for code, name in categories_of(GUARD4).items() if code not in without}
    texts = [piece for piece in pieces(GUARD4, turns, asked) if isinstance(piece, str)]
    _, *body, _, _ = texts  # "user" before, "assistant" and what follows its header behind
    left = [code for code in codes if code in asked]
    return {
        "source": "guard",
        "messages": [
            {"role": "user", "content": "".join(body).removeprefix("\n\n")},
            {"role": "assistant", "content": f"unsafe\n{','.join(left)}" if left else "safe"},
        ],
    }


def _row(line: str, where: str) -> tuple[list[Turn], tuple[str, ...]]:
    try:
        row = json.loads(line)
        codes = require_codes(row["codes"])
    except (ValueError, KeyError, TypeError, PromptError) as error:
        raise PromptError(f'{where}: needs `codes`, a list such as [] or ["S2"] ({error})') from error
    turns = turns_of(_messages(row, where))
    if any(turn.images for turn in turns):
        raise PromptError(f"{where}: has pictures, which documents of this kind cannot hold yet; leave it out")
    return turns, codes


def _messages(row: Mapping[str, Any], where: str) -> list[Message]:
    if "messages" in row:
        return [Message.from_dict(each, where=f"{where}: messages[{i}]") for i, each in enumerate(row["messages"])]
    if not isinstance(row.get("text"), str):
        raise PromptError(f"{where}: has neither `messages` nor a `text`; give one of them")
    return [Message("user", (TextPart(row["text"]),))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 2 with one line on standard error when a file is wrong."""
    parser = argparse.ArgumentParser(prog="python -m puna.guard.tuning", description="Documents to tune a guard on.")
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        with given.rows.open(encoding="utf-8") as rows, given.out.open("w", encoding="utf-8") as out:
            for each in documents(rows, copies=given.copies, seed=given.seed):
                out.write(json.dumps(each, ensure_ascii=False) + "\n")
    except (PunaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
