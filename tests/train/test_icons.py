"""Tests of puna.train.icons: which icon shows which emoji, and in which box."""

import json
from pathlib import Path

import pytest

from puna.errors import ConfigError
from puna.train.icons import icon_name, read_icons
from puna.train.questions import LANGUAGES
from puna.train.sources import Emoji

SET = {
    "width": 32,
    "icons": {"red-apple": {"body": "<path/>"}, "car": {"body": "<g/>", "width": 8, "left": 1}},
    "aliases": {"apple": {"parent": "red-apple"}},
}


def emoji(code: str, name: str) -> Emoji:
    return Emoji(code=code, kind="fruit", names=dict.fromkeys(LANGUAGES, name), files={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "icons.json").write_text(json.dumps(SET))
    return tmp_path


def test_a_set_without_code_points_is_asked_by_name(folder: Path) -> None:
    icons = read_icons(folder)
    assert icons.svg(emoji("1f34e", "red apple")) == (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'viewBox="0 0 32 16"><path/></svg>'
    )
    assert icons.svg(emoji("1f34f", "green apple")) is None


def test_code_points_and_aliases_lead_to_an_icon(folder: Path) -> None:
    (folder / "chars.json").write_text(json.dumps({"2764-FE0F": "apple", "1f697": "car"}))
    icons = read_icons(folder)
    assert "<path/>" in str(icons.svg(emoji("2764", "red heart")))
    assert 'viewBox="1 0 8 16"' in str(icons.svg(emoji("1f697", "automobile")))


def test_names_of_icons_are_plain() -> None:
    assert icon_name("flag: Côte d’Ivoire") == "flag-cote-divoire"


def test_a_folder_without_icons_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="icons"):
        read_icons(tmp_path)
