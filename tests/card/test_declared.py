"""What people declare is read as it is written, or refused."""

import pytest

from puna.card.declared import read
from puna.errors import ConfigError


def test_texts_lists_and_tables_are_read() -> None:
    said = read('summary = "x"\nlanguages = ["en"]\n[held_out]\na = "b"\n', "card.toml")
    assert (said.summary, said.languages, said.held_out) == ("x", ("en",), {"a": "b"}) and not said.limits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('sumary = "x"', "'sumary' is unknown; did you mean summary"),
        ('zzz = "x"', "known are name, summary"),
        ("summary = 3", "summary: is 3; give a text"),
        ('limits = "x"', "give a list of texts"),
        ("limits = [1]", "give a list of texts"),
        ('held_out = ["x"]', "give a table of texts"),
        ("summary = ", "is not TOML"),
    ],
)
def test_mistakes_name_the_key_and_the_remedy(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"card\.toml.*" + said):
        read(text, "card.toml")
