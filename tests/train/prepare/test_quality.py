import pytest

from puna.train.prepare.quality import RULES, fault
from puna.train.prepare.words import plain, words

NOUNS = ["goat", "river", "mother", "village", "market", "basket", "mountain", "teacher", "window", "story"]


def found(text: str, language: str = "en", min_words: int = 50) -> str | None:
    return fault(text, words(plain(text)), language, min_words)


PROSE = (
    "Long before the road was built, people walked from the village to the coast with salt on their backs. My "
    "grandmother was one of them. She told us how the moon rose over the plain, how cold the stones became, and which "
    "songs they sang to stay awake. Nobody knows today where that path went, but every spring a line of small white "
    "flowers shows it to those who look."
)


def test_prose_passes() -> None:
    assert found(PROSE) is None
    assert (
        found("\n".join([PROSE, "And so it was told to me, word for word, by a neighbour who had never met her."]))
        is None
    )


BROKEN = {
    "too_few_words": "Far too short.",
    "too_many_words": "word " * 100_001,
    "word_length": " ".join(f"{chr(97 + k % 26)}{k % 7} b" for k in range(60)),
    "symbols": PROSE.replace(" ", " # ", 30),
    "bullets": "\n".join(f"- {line}" for line in PROSE.split(". ")),
    "ellipses": PROSE.replace(". ", "...\n"),
    "few_letters": PROSE + " 1234" * 60,
    "few_small_words": " ".join(f"{noun}{chr(97 + k)}" for k in range(6) for noun in NOUNS),
    "repeated_lines": (PROSE + "\n") * 2 + PROSE,
    "repeated_paragraphs": "\n\n".join([PROSE.replace(". ", ".\n"), "la la\nlo lo", "la la\nlo lo"]),
    "one_run_of_words": PROSE + " buy now cheap" * 12,
    "repeated_runs_of_words": PROSE + " Then it began again: " + PROSE[:250],
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_what_it_is_for(rule: str) -> None:
    assert found(BROKEN[rule]) == rule


def test_rules_about_words_leave_scripts_without_spaces_alone() -> None:
    thai = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม"
    assert found(thai, "th") is None


def test_shortest_document_is_for_the_caller_to_say() -> None:
    assert found("The goat ate the last of the tin.", min_words=5) is None
