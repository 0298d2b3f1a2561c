from pathlib import Path

import numpy as np

from puna.train.prepare.exact import DIGEST, copies, digest
from puna.train.prepare.words import phrase


def test_first_of_all_that_are_equal_stays(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    texts = draw.integers(0, 700, 1000)
    digests = np.array([(n, *digest(phrase(f"text number {text}"))) for n, text in enumerate(texts)], DIGEST)
    _, first = np.unique(texts, return_index=True)
    expected = sorted(set(range(1000)) - set(first.tolist()))
    for memory in (2**30, 2**13):
        found = np.concatenate(list(copies(iter([digests[:400], digests[400:]]), 1000, tmp_path / "parts", memory)))
        assert sorted(found.tolist()) == expected


def test_spaces_and_case_make_no_difference_but_order_does() -> None:
    assert digest(phrase("One  two.")) == digest(phrase("one two"))
    assert digest(phrase("one two")) != digest(phrase("two one"))
