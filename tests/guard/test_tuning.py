"""Documents to tune a guard on: the trainer reads the very ids that the guard will be asked with."""

import json
import random
from pathlib import Path

import pytest

from puna.errors import PromptError
from puna.guard.content_answer import read
from puna.guard.content_prompt import GUARD4, Turn, categories_of, encode, pieces
from puna.guard.tuning import document, documents, dropped, main
from puna.prompt.message import Message
from puna.prompt.render import Renderer
from puna.prompt.tokenizer import Tokenizer
from puna.train.recipe import read as read_recipe

CRIA = Path(__file__).parents[2] / "src" / "puna" / "assets" / "cria"
RECIPE = Path(__file__).parents[2] / "recipes" / "guard-tune.toml"
TURNS = [Turn("User", "How do I pick a lock?"), Turn("Agent", "With a pick.")]


def test_document_renders_to_the_ids_of_the_prompt_and_the_answer_that_is_parsed_back() -> None:
    tokenizer = Tokenizer.load(CRIA)
    without = frozenset({"S5", "S14"})
    made = document(TURNS, ("S2", "S5"), without)
    ids = Renderer(tokenizer, None).render([Message.from_dict(each) for each in made["messages"]], reply=False).ids
    asked = {code: name for code, name in categories_of(GUARD4).items() if code not in without}
    prompt = encode([*pieces(GUARD4, TURNS, asked), GUARD4.lead], tokenizer, None).ids
    assert ids[: len(prompt)] == prompt
    answer = read(tokenizer.decode(ids[len(prompt) :]))
    assert (answer.is_safe, answer.codes) == (False, ("S2",))


def test_a_row_whose_categories_are_all_left_out_is_safe() -> None:
    assert document(TURNS, ("S2",), frozenset({"S2"}))["messages"][1]["content"] == "safe"


def test_others_are_left_out_often_and_violated_ones_only_all_together() -> None:
    rng = random.Random(0)
    made = [dropped(("S2", "S9"), rng) for _ in range(400)]
    violated = [each & {"S2", "S9"} for each in made]
    assert all(len(each) in (0, 2) for each in violated)
    assert 20 < sum(len(each) == 2 for each in violated) < 100
    assert sum(not each for each in made) > 60
    assert len({each for each in made}) > 200


def test_files_go_in_and_out_and_wrong_lines_are_named(tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(
        '{"text": "Hi", "codes": []}\n\n{"messages": [{"role": "user", "content": "x"}], "codes": ["S1"]}\n'
    )
    assert main([str(rows), str(out), "--copies", "3"]) == 0
    assert len([json.loads(line) for line in out.read_text("utf-8").splitlines()]) == 6
    for line, named in (
        ('{"text": "Hi"}', "codes"),
        ('{"codes": ["S77"], "text": "x"}', "S77"),
        ('{"codes": []}', "text"),
    ):
        with pytest.raises(PromptError, match=f"line 1.*{named}"):
            list(documents([line], copies=1, seed=0))


def test_recipe_is_one_that_the_trainer_reads() -> None:
    recipe = read_recipe(RECIPE)
    assert recipe.model.start == "guard/start"
