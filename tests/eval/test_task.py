"""Tasks as a whole: gold answers are right, empty ones wrong, shuffled ones chance; and the scoring of files."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from puna.errors import ConfigError, DeviceError
from puna.eval import own
from puna.eval.task import Hub, Item, Score, Source, Task, judge, matched, read, read_responses, score_responses, user
from puna.eval.tasks import BASE, CHAT, LONG_CONTEXT, OTHERS, READING, TASKS

SLICES = Path(__file__).parents[2].parent / "shared" / "data" / "eval"
NOT_IN_SLICES = ("docvqa_base", "docvqa", "docvqa_test", "gpqa_diamond", "livecodebench")  # tested in tasks/
NOT_IN_SLICES += ("needle_long", "copy_long", "lessons", *(task.name for task in READING))
EXTRAS = {"math": "math_verify", "math_chat": "math_verify"} | {name: "sacrebleu" for name in TASKS if "mtob" in name}

# By luck: the share of shuffled answers that may be right, generously: several standard errors above chance.
CHANCE = {"chartqa": 0.7, "chartqa_base": 0.7, "mathvista": 0.4, "mmmu": 1.0, "mmmu_pro": 0.6}
CHANCE |= {"mmmu_pro_standard": 0.8, "mmmu_pro_vision": 0.8, "mtob_half_ek": 0.3, "mtob_half_ke": 0.3}
CHANCE |= {"mtob_full_ek": 0.3, "mtob_full_ke": 0.3}


def slices(name: str) -> Path:
    if not SLICES.exists():
        pytest.skip("needs ../shared/data/eval")
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    return SLICES


def limit(name: str) -> int | None:
    return {"math": 30, "math_chat": 30, "mbpp": 12}.get(name)  # what takes longer runs whole in tasks/


@pytest.mark.parametrize("name", [name for name in TASKS if name not in NOT_IN_SLICES])
def test_gold_is_right_empty_is_wrong_and_shuffled_is_chance(name: str) -> None:
    data, task = slices(name), TASKS[name]
    items = list(task.items(data))[: limit(name)]
    gold = {item.id: [task.gold(item)] for item in items}
    assert len(gold) == len(items), "ids are unique"

    right = score_responses(task, gold, data, limit=limit(name))
    assert (right.score, right.n, right.unscored, right.missing) == (1.0, len(items), 0, 0)
    assert all(item["correct"] for item in right.to_json()["items"])

    empty = score_responses(task, {id: [""] for id in gold}, data, limit=limit(name))
    assert (empty.score, empty.n) == (0.0, len(items))

    texts = [responses[0] for responses in gold.values()]
    random.Random(0).shuffle(texts)
    moved = {id: [text] for id, text in zip(gold, texts, strict=True)}
    shuffled = score_responses(task, moved, data, limit=limit(name))
    assert shuffled.score is not None and shuffled.score <= CHANCE.get(name, task.chance + 0.12)


@pytest.mark.parametrize(
    "name", ["docvqa", "docvqa_base", "gpqa_diamond", pytest.param("livecodebench", marks=pytest.mark.slow)]
)
def test_stand_ins_gold_is_right_empty_is_wrong_and_shuffled_is_chance(name: str, tmp_path: Path) -> None:
    data, task = own.write(tmp_path)[name], TASKS[name]
    gold = {item.id: [task.gold(item)] for item in task.items(data)}
    assert score_responses(task, gold, data).score == 1.0
    assert score_responses(task, {id: [""] for id in gold}, data).score == 0.0
    moved = dict(zip(gold, [*list(gold.values())[3:], *list(gold.values())[:3]], strict=True))
    shuffled = score_responses(task, moved, data)
    assert shuffled.score is not None and shuffled.score <= task.chance + 0.3  # of few items


@pytest.mark.parametrize("name", [name for name in TASKS if name not in NOT_IN_SLICES])
def test_prompt_shows_the_question_and_hides_the_answer(name: str) -> None:
    data, task = slices(name), TASKS[name]
    for item in list(task.items(data))[:3]:
        prompt = str(task.prompt(item))
        question = item.row.get("question") or item.row.get("query") or item.row.get("problem") or item.row.get("text")
        if question and "<image" not in question:
            assert repr(question.strip()[-30:])[1:-1] in prompt
        assert len(item.shots) == task.shots
        given = name == "tydiqa_gold" or task in LONG_CONTEXT  # where the answer is to be found in the prompt
        assert given or task.gold(item) not in prompt or len(task.gold(item)) < 40


def test_card_rows_are_tasks_once() -> None:
    assert len(TASKS) == sum(map(len, (BASE, CHAT, OTHERS, LONG_CONTEXT, READING)))
    assert {task.name for task in BASE} == {
        *("mmlu", "mmlu_pro_base", "math", "mbpp", "tydiqa", "chartqa_base", "docvqa_base")
    }


def echo(items: list[Item]) -> Task:
    """A task whose right response is "yes"; items with an empty row cannot be scored."""
    return Task(
        name="echo",
        items=lambda data: items,
        prompt=lambda item: user("yes?"),
        score=lambda item, response: (
            matched(response or None, "yes") if item.row else Score(value=None, answer=None, reason="no gold")
        ),
        gold=lambda item: "yes",
        metric="accuracy",
        shots=0,
        max_new_tokens=1,
        chance=0.0,
        id_field="pid",
    )


ECHO = echo([Item(id=str(i), row={"x": 1} if i < 3 else {}, group="ab"[i % 2]) for i in range(4)])


def test_what_cannot_be_scored_is_counted_and_not_wrong() -> None:
    report = score_responses(ECHO, {"0": ["yes"], "1": ["no"], "3": ["yes"]}, None)
    assert (report.score, report.n, report.unscored, report.missing) == (0.5, 2, 1, 1)
    document = report.to_json()
    assert [item["correct"] for item in document["items"]] == [True, False, None]
    assert document["items"][1]["reason"] == "expected yes" and document["items"][2]["reason"] == "no gold"
    assert document["groups"]["a"]["value"] == 1.0
    json.dumps(document)


def test_nothing_scored_has_no_score() -> None:
    report = score_responses(ECHO, {"3": ["yes"]}, None)
    assert report.score is None and report.stderr is None and report.unscored == 1


def test_several_samples_are_averaged() -> None:
    assert judge(ECHO, ECHO.items(None)[0], ["yes", "no", "yes", "no"]).score.value == 0.5  # type: ignore[index]


def test_response_to_an_unknown_item_is_refused() -> None:
    with pytest.raises(ConfigError, match="'9' is no item of echo"):
        score_responses(ECHO, {"9": ["yes"]}, None)


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_responses_are_read_by_id_by_published_id_or_in_order(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    by_id = write(path, {"id": 1, "response": "a"}, {"id": "1", "response": ["b", "c"]}, {"task": "x", "id": "2"})
    assert read_responses(ECHO, by_id, None) == {"1": ["a", "b", "c"]}
    assert read_responses(ECHO, write(path, {"pid": "2", "response": "a"}), None) == {"2": ["a"]}
    assert read_responses(ECHO, write(path, {"response": "a"}, {"response": "b"}), None) == {"0": ["a"], "1": ["b"]}


@pytest.mark.parametrize("line", [{"id": "1"}, {"id": "1", "response": 3}, {"id": "1", "response": [3]}, [1]])
def test_broken_lines_of_responses_are_refused(tmp_path: Path, line: object) -> None:
    with pytest.raises(ConfigError, match=r"responses\.jsonl, line 1"):
        read_responses(ECHO, write(tmp_path / "responses.jsonl", line), None)


def test_more_nameless_responses_than_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 lines without one"):
        read_responses(ECHO, write(tmp_path / "r.jsonl", *[{"response": "a"}] * 5), None)


def test_local_rows_are_read_from_folder_or_its_parent(tmp_path: Path) -> None:
    source = Source(folder="x", file="test*.jsonl", hub=None, images=("image",))
    (tmp_path / "x").mkdir()
    write(tmp_path / "x" / "test2.jsonl", {"n": 2, "image": None})
    write(tmp_path / "x" / "test.jsonl", {"n": 1, "image": "images/a.png"})
    rows = read(source, tmp_path)
    assert [row["n"] for row in rows] == [1, 2] and read(source, tmp_path / "x") == rows
    assert rows[0]["image"] == tmp_path / "x" / "images/a.png" and rows[1]["image"] is None
    with pytest.raises(ConfigError, match="has no y/test"):
        read(Source(folder="y", file="test.jsonl", hub=None), tmp_path)
    (tmp_path / "x" / "test.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="line 1 is not JSON"):
        read(source, tmp_path)


def test_hub_without_its_package_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    hub = Hub(ids=("a/b",), split="test", revision="0" * 40)
    with pytest.raises(DeviceError, match=r"a/b from the hub needs a package .*pip install 'puna\[eval\]'"):
        read(Source(folder="x", file="y", hub=hub), None)


def test_hub_ids_are_tried_in_order_with_the_pinned_revision_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    class Datasets:  # the package, as far as it is asked: a stand-in for what others wrote
        @staticmethod
        def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, int]]:
            asked.append((name, config, revision))
            if name == "old/name":
                raise FileNotFoundError("moved")
            return [{"n": 1}]

    monkeypatch.setitem(__import__("sys").modules, "datasets", Datasets)
    hub = Hub(ids=("old/name", "new/name"), split="test", revision="abc", configs=("x", "y"))
    rows = read(Source(folder="f", file="g", hub=hub), None)
    assert rows == [{"n": 1, "config": "x"}, {"n": 1, "config": "y"}]
    assert asked == [("old/name", "x", "abc"), ("new/name", "x", None), ("new/name", "y", None)]
    with pytest.raises(ConfigError, match="old/name: FileNotFoundError: moved"):
        read(Source(folder="f", file="g", hub=Hub(ids=("old/name",), split="test", revision=None)), None)


def test_pictures_of_the_hub_stay_the_files_they_are(tmp_path: Path) -> None:
    """With the real package, on a folder that it reads as it would read a set of the hub."""
    pytest.importorskip("datasets")
    folder = tmp_path / "set" / "test"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(folder / "red.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "red.png", "n": 1}\n')
    hub = Hub(ids=(str(tmp_path / "missing"), str(tmp_path / "set")), split="test", revision=None)
    (row,) = read(Source(folder="x", file="y", hub=hub, images=("image",)), None)
    assert row == {"n": 1, "image": (folder / "red.png").read_bytes()}
