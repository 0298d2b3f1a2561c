"""The folder of a run: torn lines, mixed-up runs, and what tells questions apart."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from puna.errors import ConfigError
from puna.eval.ask import Question, Reply
from puna.eval.record import Folder, Line, Lines, fingerprint, read_records
from puna.eval.task import Choice, Completion, Item, Judged, Score, user

ITEM = Item(id="7", row={}, group="g", cluster="c")
JUDGED = Judged(item=ITEM, responses=("é\n",), score=Score(value=0.5, answer="é", reason="half"))
LINE = Line.of(JUDGED, "asked", (Reply(text="é\n", details={"finish": "stop"}),))
QUESTION = Question(key="7", prompt=Completion(text="x", stops=("\n",)), n=1, max_new_tokens=8, temperature=0.0, seed=0)


def test_line_says_what_its_item_was_worth(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "t.jsonl")
    lines.add(LINE)
    lines.close()
    found = Lines(tmp_path / "t.jsonl").find(ITEM, "asked")
    assert found == LINE
    assert found.judged(ITEM) == replace(JUDGED, details=({"finish": "stop"},))


@pytest.mark.parametrize("n_kept", [1, 20, -1])
def test_torn_last_line_is_cut_off_and_the_others_stay(tmp_path: Path, n_kept: int) -> None:
    path = tmp_path / "t.jsonl"
    lines = Lines(path)
    for i in range(3):
        lines.add(replace(LINE, id=str(i)))
    lines.close()
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:n_kept])
    again = Lines(path)
    assert again.repaired == len(last[:n_kept]) and set(again.known) == {"0", "1"}
    again.add(replace(LINE, id="2"))
    again.close()
    assert list(read_records(path)) == ["0", "1", "2"]


def test_item_that_was_asked_otherwise_is_refused(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "t.jsonl")
    lines.add(LINE)
    with pytest.raises(ConfigError, match=r"item '7' was asked otherwise there.*another --out"):
        lines.find(ITEM, "otherwise")
    assert lines.find(Item(id="8", row={}), "otherwise") is None


def test_run_of_another_model_is_refused_and_named(tmp_path: Path) -> None:
    Folder(tmp_path, {"name": "cria", "files": "abc"}).close()
    Folder(tmp_path, {"name": "cria", "files": "abc"}).close()
    with pytest.raises(ConfigError, match="is a run with files 'abc', and this one has 'def'; give another folder"):
        Folder(tmp_path, {"name": "cria", "files": "def"})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json: is not JSON"):
        Folder(tmp_path / "", {"name": "cria"})


def test_folder_is_one_runs_alone(tmp_path: Path) -> None:
    first = Folder(tmp_path, {"name": "cria"})
    with pytest.raises(ConfigError, match="another run writes there"):
        Folder(tmp_path, {"name": "cria"})
    first.close()
    Folder(tmp_path, {"name": "cria"}).close()


def test_broken_records_are_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": "1"}\n')
    with pytest.raises(ConfigError, match="line 1: is no record of an item"):
        Lines(path)
    path.write_text(
        2 * (json.dumps({"id": "1", "asked": "", "response": [], "value": 1, "answer": "", "reason": ""}) + "\n")
    )
    with pytest.raises(ConfigError, match="line 2: item '1' is there twice"):
        Lines(path)


def test_questions_with_different_texts_pictures_or_settings_have_different_names(tmp_path: Path) -> None:
    for name, color in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{name}.png")
    different = [
        QUESTION,
        replace(QUESTION, n=2),
        replace(QUESTION, max_new_tokens=9),
        replace(QUESTION, temperature=0.5),
        replace(QUESTION, seed=1),
        replace(QUESTION, prompt=Completion(text="x", stops=())),
        replace(QUESTION, prompt=Completion(text="x\n", stops=())),
        replace(QUESTION, prompt=Choice(text="x", continuations=("a", "b"), labels=("A", "B"))),
        replace(QUESTION, prompt=Choice(text="x", continuations=("ab",), labels=("A",))),
        replace(QUESTION, prompt=user("x")),
        replace(QUESTION, prompt=user("x", tmp_path / "a.png")),
        replace(QUESTION, prompt=user(tmp_path / "a.png", "x")),
        replace(QUESTION, prompt=user("x", tmp_path / "c.png")),
        replace(QUESTION, prompt=user("x", Image.new("RGB", (4, 4), "red"))),
        replace(QUESTION, prompt=user("x", Image.new("RGB", (4, 4), "blue"))),
    ]
    names = [fingerprint(each) for each in different]
    assert len(set(names)) == len(names)
    same = replace(QUESTION, key="another", prompt=user("x", tmp_path / "b.png"))
    assert fingerprint(same) == names[10], "a picture is its content, wherever it lies"
