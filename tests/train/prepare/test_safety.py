"""All entries are harmless stand-ins: what real lists hold is not for a repository."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from puna.errors import ConfigError
from puna.train.prepare.safety import finding, read_lists
from puna.train.prepare.words import phrase

PICTURE = "a5" * 32


def found(folder: Path, text: str, **record: Any) -> str | None:
    return finding(read_lists(folder), text, record, phrase(text))


def test_domain_and_all_below_it_are_found(tmp_path: Path) -> None:
    (tmp_path / "domains.txt").write_text("bad.example  # since May\n")
    assert found(tmp_path, "x", url="https://bad.example/page") == "domains"
    assert found(tmp_path, "x", url="http://A.B.BAD.example:80/") == "domains"
    assert found(tmp_path, "x", url="bad.example/page") == "domains"
    assert found(tmp_path, "x", url="https://notbad.example/bad.example") is None
    assert found(tmp_path, "x") is None
    assert found(tmp_path, "x", url="http://[broken") == "domains"


def test_digests_of_text_and_of_pictures_are_found(tmp_path: Path) -> None:
    digests = [sha256(b"blue umbrella").hexdigest(), sha256(b"picture").hexdigest().upper()]
    (tmp_path / "sha256.txt").write_text("\n".join(digests))
    assert found(tmp_path, "blue umbrella") == "sha256"
    assert found(tmp_path, "x", image_sha256=[digests[1]]) == "sha256"
    assert found(tmp_path, "blue umbrellas", image_sha256="00") is None


def test_pictures_within_31_bits_are_found(tmp_path: Path) -> None:
    (tmp_path / "pdq.txt").write_text(PICTURE)

    def turned(n: int) -> str:
        return f"{int(PICTURE, 16) ^ ((1 << n) - 1):064x}"

    assert found(tmp_path, "x", image_pdq=["0" * 64, turned(31)]) == "pdq"
    assert found(tmp_path, "x", image_pdq=turned(32)) is None
    assert found(tmp_path, "x", image_pdq="no hash") == "pdq"


def test_phrases_are_found_as_words(tmp_path: Path) -> None:
    (tmp_path / "phrases.txt").write_text("purple elephant\nบอลลูน\n")
    assert found(tmp_path, "A PURPLE, elephant!") == "phrases"
    assert found(tmp_path, "เขาเห็นบอลลูนสีแดง") == "phrases"
    assert found(tmp_path, "purple elephants") is None


def test_subject_and_context_are_found_only_close_together(tmp_path: Path) -> None:
    (tmp_path / "subjects.txt").write_text("teapot")
    (tmp_path / "contexts.txt").write_text("flying saucer")
    assert found(tmp_path, "a flying saucer and " + "word " * 40 + "a teapot") == "subjects and contexts"
    assert found(tmp_path, "teapot " + "word " * 60 + "flying saucer") is None
    assert found(tmp_path, "teapot " * 9) is None


def test_lists_that_could_never_match_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds none of"):
        read_lists(tmp_path)
    (tmp_path / "subjects.txt").write_text("teapot")
    with pytest.raises(ConfigError, match="together only"):
        read_lists(tmp_path)
    (tmp_path / "contexts.txt").write_text("saucer")
    (tmp_path / "pdq.txt").write_text("12")
    with pytest.raises(ConfigError, match="entry 1 is no hash"):
        read_lists(tmp_path)
    (tmp_path / "pdq.txt").unlink()
    (tmp_path / "domain.txt").write_text("bad.example")
    with pytest.raises(ConfigError, match=r"domain\.txt would never be read"):
        read_lists(tmp_path)
