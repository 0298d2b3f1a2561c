from pathlib import Path
from random import Random

import numpy as np
import pytest

from puna.train.prepare.near import SIGNATURE, alike, repeats, signature
from puna.train.prepare.words import plain, runs, words

DRAW = Random(8)
VOCABULARY = ["".join(DRAW.choices("abcdefghijklm", k=DRAW.randint(2, 8))) for _ in range(5000)]


def sentences(n: int) -> list[list[str]]:
    return [DRAW.choices(VOCABULARY, k=DRAW.randint(6, 12)) for _ in range(n)]


def varied(text: list[list[str]]) -> list[list[str]]:
    """Returns a text with three words changed, three put in, or its sentences in another order."""
    kind, text = DRAW.randrange(3), [list(sentence) for sentence in text]
    if kind == 0:
        DRAW.shuffle(text)
    for _ in range(3 if kind else 0):
        sentence = DRAW.choice(text)
        place = DRAW.randrange(len(sentence))
        sentence[place : place + kind - 1] = [DRAW.choice(VOCABULARY)]
    return text


def joined(text: list[list[str]]) -> str:
    return ". ".join(" ".join(sentence) for sentence in text)


def written(texts: list[str], path: Path) -> Path:
    rows = [(n, found) for n, text in enumerate(texts) if (found := signature(words(plain(text)))) is not None]
    np.array(rows, SIGNATURE).tofile(path)
    return path


def found(texts: list[str], folder: Path, memory: int = 2**28) -> set[int]:
    some = repeats(written(texts, folder / "signatures"), folder / "parts", memory)
    return {number for numbers in some for number in numbers.tolist()}


def planted(n: int, folder: Path) -> tuple[float, float]:
    """Plants n / 10 near copies after n texts; returns the share of them found, and of the others lost."""
    texts = [sentences(6) for _ in range(n)]
    copies = [varied(text) for text in DRAW.sample(texts, n // 10)]
    gone = found([joined(text) for text in texts + copies], folder)
    return len([n_ for n_ in gone if n_ >= n]) / (n // 10), len([n_ for n_ in gone if n_ < n]) / n


def test_planted_copies_are_found_and_nothing_else_is(tmp_path: Path) -> None:
    share, lost = planted(1000, tmp_path)
    assert share >= 0.99 and lost < 0.001


@pytest.mark.slow
def test_thousand_planted_copies_in_ten_thousand_texts_are_found(tmp_path: Path) -> None:
    share, lost = planted(10_000, tmp_path)
    assert share >= 0.99 and lost < 0.001


def test_estimate_is_the_share_of_common_runs() -> None:
    errors = []
    for kept in range(0, 101, 5):
        text = DRAW.choices(VOCABULARY, k=300)
        other = text[: 3 * kept] + DRAW.choices(VOCABULARY, k=300 - 3 * kept)
        one, two = (words(" ".join(each)) for each in (text, other))
        a, b = (set(runs(each.hashes, 2).tolist()) for each in (one, two))
        first, second = signature(one), signature(two)
        assert first is not None and second is not None
        errors.append(alike(first, second) - len(a & b) / len(a | b))
    assert np.abs(errors).max() < 4 * 0.044  # four standard deviations
    assert abs(np.mean(errors)) < 0.03


def test_first_of_a_cluster_stays_and_a_chain_is_one(tmp_path: Path) -> None:
    text = DRAW.choices(VOCABULARY, k=200)
    chain = [" ".join(text[n * 10 : n * 10 + 100]) for n in range(6)]  # each shares four fifths with the next
    assert found([*chain, joined(sentences(6))], tmp_path) == {1, 2, 3, 4, 5}


def test_memory_makes_no_difference(tmp_path: Path) -> None:
    texts = [sentences(4) for _ in range(150)]
    lines = [joined(text) for text in [*texts, *map(varied, texts)]]
    assert found(lines, tmp_path) == found(lines, tmp_path, 2**20)


def test_texts_without_spaces_are_compared_by_characters(tmp_path: Path) -> None:
    texts = ["".join(chr(DRAW.randint(0x4E00, 0x5E00)) for _ in range(200)) for _ in range(20)]
    changed = [text[:50] + "変" + text[51:] for text in texts]
    shuffled = ["".join(DRAW.sample(text, 200)) for text in texts]
    assert found([*texts, *shuffled, *changed], tmp_path) == set(range(40, 60))


def test_text_of_a_word_has_no_signature() -> None:
    assert signature(words("one")) is None and signature(words("")) is None
    assert signature(words("one two")) is not None
