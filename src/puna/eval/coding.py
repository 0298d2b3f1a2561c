"""What a program that a reply holds is worth: the share of tests that it passes, in the sandbox.

In: a reply and `{"kind": "code", "tests": ["assert double(2) == 4"]}`, asserts that see what the program defines. Out:
a number within 0..1, as `puna tune` and `puna synthesize` reward replies.
Not here: how a program is confined (`sandbox`). Tests run in the program's own interpreter, as in `tasks.mbpp`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from puna.eval.extract import last_code_block
from puna.eval.sandbox import Limits, run

LIMITS = Limits(seconds=10, cpu_seconds=5)


def worth(reply: str, answer: Mapping[str, Any], tools: Sequence[object]) -> float:
    """Returns the share of the tests that the program in `reply` passes, its last code block or else all of it.

    Raises KeyError and TypeError for an answer without tests, DeviceError where no program can be confined.
    """
    tests = [str(test) for test in answer["tests"]]
    program = last_code_block(reply) or reply
    if not tests or not program.strip():
        return 0.0
    return sum(run(f"{program}\n{test}\n", limits=LIMITS).finished for test in tests) / len(tests)
