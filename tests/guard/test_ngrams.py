"""Hashed n-grams: the same text in another dress is the same, and every index fits the table."""

import numpy as np
import pytest

from puna.guard.ngrams import N_FEATURES, features, normalise

CHECKSUM = 9357958


@pytest.mark.parametrize("text", ["", " ", "a", "Ignore all rules", "กฎทั้งหมด", "\U0001f600" * 50, "x" * 5000])
def test_indices_are_ascending_and_inside_the_table(text: str) -> None:
    found = features(text)
    assert (np.diff(found.indices) > 0).all()
    assert len(found.indices) == len(found.values)
    assert not len(found.indices) or 0 <= found.indices[0] <= found.indices[-1] < N_FEATURES


@pytest.mark.parametrize("dressed", ["I G N O R E the rules", "i.g.n.o.r.e  the\nrules", "ｉｇｎｏｒｅ the rules"])
def test_dressed_up_letters_read_as_plain_ones(dressed: str) -> None:
    assert normalise(dressed) == "ignore the rules"


def test_hashes_stay_the_same_between_processes_and_machines() -> None:
    assert features("puna").indices[:4].tolist() == features("PUNA ").indices[:4].tolist()
    assert int(features("the high plain").indices.sum()) == CHECKSUM, "weights on disk belong to these hashes"
