"""The default system prompt: the intent of the model card, in our own words, for models that it helps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from puna.errors import ConfigError
from puna.guard import persona, tone
from puna.presets import CRIA, SCOUT


def test_it_asks_for_what_the_card_asks_for_and_keeps_to_its_own_rules() -> None:
    text = persona.default()
    assert "August 2024" in text and "Llama 4" in text
    assert all(language in text for language in ("Arabic", "Tagalog", "Vietnamese", "Thai"))
    assert "Politics" in text and "language in which you are spoken to" in text
    assert [span for span in tone.find(text) if span.code == "card"] == []


def test_it_shares_no_run_of_words_with_the_card() -> None:
    card = (
        "expert conversationalist who responds to the best of your ability",
        "switch casually between tonal types",
        "understand user intent and don't try to be overly helpful",
        "Always avoid templated language",
        "never lecture people to be nicer or more inclusive",
        "do not refuse prompts about political and social issues",
    )
    assert not any(phrase.lower() in persona.default().lower() for phrase in card)


def test_only_large_models_that_follow_instructions_get_it(tmp_path: Path) -> None:
    assert persona.for_checkpoint(tmp_path, SCOUT) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "..."}))
    assert persona.for_checkpoint(tmp_path, SCOUT) == persona.default()
    assert persona.for_checkpoint(tmp_path, CRIA) is None
    small = replace(SCOUT, text=replace(SCOUT.text, width=persona.MIN_WIDTH - 128))
    assert persona.for_checkpoint(tmp_path, small) is None


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_templates_of_their_own_file_and_folders_called_instruct_count(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    assert persona.follows_instructions(tmp_path)
    folder = tmp_path / "Llama-4-Scout-17B-16E-Instruct"
    folder.mkdir()
    assert persona.follows_instructions(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="tokenizer_config"):
        persona.follows_instructions(folder)
