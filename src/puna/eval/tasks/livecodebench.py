"""LiveCodeBench: contest problems of a window of dates, solved in Python. Chat models, 0 shots, pass@1.

All public and private tests must pass, each in a process of its own; expected outputs never enter it, so they cannot be
faked. The card's window is 2024-10-01 to 2025-02-01, both included. Two differences from the authors' runner: a
program runs as `__main__` instead of being wrapped into a function, and tuples equal lists also inside other values.
Source: Jain et al. 2024; LiveCodeBench/LiveCodeBench `prompts/code_generation.py`, `evaluation/testing_util.py`.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from puna.eval.extract import last_code_block
from puna.eval.sandbox import Limits, run
from puna.eval.task import Chat, Hub, Item, Row, Score, Source, Task, read

FILES = ("test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7)))  # release_v6
TEST = Source(
    folder="livecodebench",
    file="test*.jsonl",
    hub=Hub(ids=("livecodebench/code_generation_lite",), split="test", revision=None, files=FILES),
)
WINDOW = ("2024-10-01", "2025-02-01")
LIMITS = Limits(seconds=20, cpu_seconds=6, memory_bytes=4 * 2**30, output_bytes=16 * 2**20)
MAX_TESTS_BYTES = 2**30

SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests. You will NOT return anything except "
    "for the program."
)
WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
WITH_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows."
)
# What a program may use without importing it, in the authors' order: a later name covers an earlier one.
STARRED = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json "
    "builtins typing"
).split()
PRELUDE = "\n".join(
    [f"from {name} import *" for name in STARRED]
    + [f"import {name}" for name in STARRED if name not in ("builtins", "typing")]
    + ["sys.setrecursionlimit(50000)\n"]
)


def items(data: Path | None) -> Iterator[Item]:
    """Yields the problems of the window, in groups by difficulty."""
    for row in read(TEST, data):
        if WINDOW[0] <= str(row["contest_date"])[:10] <= WINDOW[1]:
            yield Item(id=str(row["question_id"]), row=row, group=str(row["difficulty"]))


def prompt(item: Item) -> Chat:
    """Returns the problem and the form in which a program is wanted."""
    starter = item.row["starter_code"]
    wanted = (
        f"{WITH_STARTER}\n```python\n{starter}\n```" if starter else f"{WITH_STDIN}\n```python\n# YOUR CODE HERE\n```"
    )
    text = f"### Question:\n{item.row['question_content']}\n\n### Format: {wanted}\n\n"
    text += "### Answer: (use the provided format with backticks)\n\n"
    return Chat(messages=({"role": "system", "content": SYSTEM}, {"role": "user", "content": text}))


def score(item: Item, response: str) -> Score:
    """Runs the last code block on all tests, up to the first that fails, which is named."""
    program = last_code_block(response)
    if program is None or not program.strip():
        return Score(value=0.0, answer=None, reason="no closed code block in the response")
    try:
        tests = [*json.loads(item.row["public_test_cases"]), *private_tests(item.row["private_test_cases"])]
    except ValueError as error:
        return Score(value=None, answer=program, reason=f"the tests cannot be read: {error}")
    function = json.loads(item.row.get("metadata") or "{}").get("func_name")
    for number, test in enumerate(tests, start=1):
        if failure := _call(program, function, test) if function else _feed(program, test):
            return Score(value=0.0, answer=program, reason=f"test {number} of {len(tests)}: {failure}")
    return Score(value=1.0, answer=program, reason="")


def private_tests(text: str) -> list[dict[str, Any]]:
    """Returns the hidden tests: JSON, or JSON as a string, pickled, compressed and in base64.

    Nothing of the pickle can run: only plain values are loaded, no class or function by name. Raises ValueError for
    anything else, and for more than MAX_TESTS_BYTES.
    """
    try:
        tests = json.loads(text)
    except ValueError:
        tests = json.loads(_unpickle_text(_decompress(text)))
    if not isinstance(tests, list):
        raise ValueError("not a list of tests")
    return tests


def same_output(given: str, wanted: str) -> bool:
    """Says whether outputs agree line by line, space at the ends apart: as text, or as exact decimal numbers."""
    ours, theirs = given.strip().split("\n"), wanted.strip().split("\n")
    return len(ours) == len(theirs) and all(_same_line(a.strip(), b.strip()) for a, b in zip(ours, theirs, strict=True))


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise ValueError(f"the tests name {module_name}.{global_name}; only plain text is read")


def _decompress(text: str) -> bytes:
    try:
        stream = zlib.decompressobj()
        plain = stream.decompress(base64.b64decode(text, validate=True), MAX_TESTS_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"neither JSON nor compressed ({error})") from error
    if stream.unconsumed_tail:
        raise ValueError(f"more than {MAX_TESTS_BYTES} bytes of tests")
    return plain


def _unpickle_text(data: bytes) -> str:
    try:
        text = _PlainUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"not a pickled text ({error})") from error
    if not isinstance(text, str):
        raise ValueError(f"a pickled {type(text).__name__}, not a text")
    return text


def _feed(program: str, test: Row) -> str:
    """Runs the program on a test's input; returns what is wrong, or nothing."""
    outcome = run(f"{PRELUDE}\n{program}", stdin=test["input"], limits=LIMITS)
    if outcome.ended not in ("finished", "exited") or outcome.detail not in ("", "exit(None)", "exit(0)"):
        return outcome.describe()
    return "" if same_output(outcome.stdout, test["output"]) else f"wrong output {outcome.stdout[:80]!r}"


def _call(program: str, function: str, test: Row) -> str:
    """Calls the function, or the method of `Solution`, on a test's arguments; returns what is wrong, or nothing."""
    arguments = [json.loads(line) for line in test["input"].split("\n")]
    owner = "Solution()." if "class Solution" in program else ""
    outcome = run(f"{PRELUDE}\n{program}", value=f"{owner}{function}(*{arguments!r})", limits=LIMITS)
    if not outcome.finished:
        return outcome.describe()
    return "" if outcome.value == json.loads(test["output"]) else f"wrong result {str(outcome.value)[:80]}"


def _same_line(given: str, wanted: str) -> bool:
    if given == wanted:
        return True
    try:
        return [Decimal(word) for word in given.split()] == [Decimal(word) for word in wanted.split()]
    except InvalidOperation:
        return False


LIVECODEBENCH = Task(
    name="livecodebench",
    items=items,
    prompt=prompt,
    score=score,
    gold=lambda item: f"```python\n{item.row['solution']}\n```",  # a field of our own test items; the hub has none
    metric="pass@1",
    shots=0,
    max_new_tokens=4096,
    chance=0.0,
    has_programs=True,
    id_field="question_id",
)
