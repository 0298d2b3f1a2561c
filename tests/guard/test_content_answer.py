"""What a content guard writes: only "safe" is safe, whatever else comes instead."""

import pytest

from puna.guard.content_answer import Answer, read


@pytest.mark.parametrize("text", ["safe", "\n\nsafe", " Safe ", "SAFE<|eot|>", "\n\nsafe<|end_of_text|>\n"])
def test_safe_alone_is_safe(text: str) -> None:
    assert read(text) == Answer(True, (), None)


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("\n\nunsafe\nS9<|eot|>", ("S9",)),
        ("UNSAFE\ns1,s2", ("S1", "S2")),
        ("unsafe\nS1 S10", ("S1", "S10")),
        ("unsafe\nS1\nS2\n", ("S1", "S2")),
        ("unsafe\nS2, S2,S3.", ("S2", "S3")),
        ("unsafe S4", ("S4",)),
        ("unsafe\nS99", ("S99",)),
    ],
)
def test_codes_are_read_however_they_are_set_apart(text: str, codes: tuple[str, ...]) -> None:
    assert read(text) == Answer(False, codes, None)


# The twelve of the specification, and what they must not become.
MALFORMED = {
    "": "unparseable",
    "\n\n<|eot|>": "unparseable",
    "unsafe": "unsafe without a code",
    "unsafe\n\n": "unsafe without a code",
    "unsafe\nviolence": "unparseable",
    "unsafe\nS": "unparseable",
    "safe\nS1": "unparseable",
    "safe unsafe": "unparseable",
    "safely done": "unparseable",
    "I think this is safe.": "unparseable",
    "The message is unsafe because of S1.": "unparseable",
    "not safe": "unparseable",
}


@pytest.mark.parametrize(("text", "problem"), MALFORMED.items())
def test_malformed_verdicts_are_never_safe(text: str, problem: str) -> None:
    assert read(text) == Answer(False, (), problem)
