"""The hazards and their names elsewhere."""

import pytest

from puna.errors import PromptError
from puna.guard import hazards


def test_pictures_take_code_interpreter_abuse_away() -> None:
    assert len(hazards.visible_hazards(0)) == 14
    assert hazards.visible_hazards(2) == tuple(f"S{number}" for number in range(1, 14))


def test_elections_are_told_from_other_advice() -> None:
    assert hazards.from_ailuminate("spc_ele") == "S13"
    assert hazards.from_ailuminate("spc_fin") == "S6"
    with pytest.raises(PromptError, match="zzz"):
        hazards.from_ailuminate("zzz")


def test_every_category_of_openai_is_answered() -> None:
    categories = hazards.to_openai(["S1", "S5"])
    assert len(categories) == 13
    assert [name for name, hit in categories.items() if hit] == ["illicit/violent", "violence"]
    assert not any(hazards.to_openai(["S5"]).values())


def test_unknown_code_is_an_error_not_safe() -> None:
    with pytest.raises(PromptError, match="S99"):
        hazards.to_openai(["S99"])


def test_mappings_name_existing_codes_only() -> None:
    assert set(hazards.AILUMINATE.values()) <= hazards.NAMES.keys()
    assert {each for entry in hazards.OPENAI.values() for each in entry} <= set(hazards.OPENAI_CATEGORIES)
    assert hazards.PROMPT_NAMES.keys() == hazards.NAMES.keys()
