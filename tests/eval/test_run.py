"""The runner: what is asked, in which order, once; and every task of the card driven from end to end."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from puna.chat import Assistant
from puna.eval import own, run
from puna.eval.ask import Reply
from puna.eval.local import LocalModel
from puna.eval.record import Lines, read_records
from puna.eval.run import Settings, items_of, run_items, run_task, shuffled, spread
from puna.eval.suite import SUITES
from puna.eval.task import Choice, Completion, Item, NoDataError, Score, Task, matched, user
from puna.eval.tasks import READING, TASKS
from tests.eval.parrot import Parrot

SLICES = Path(__file__).parents[2].parent / "shared" / "data" / "eval"
ITEMS = [Item(id=str(i), row={"n": i}, group="abc"[i % 3], cluster=str(i // 2)) for i in range(9)]
EVEN = Task(
    name="even",
    items=lambda data: ITEMS,
    prompt=lambda item: Completion(text=f"Is {item.row['n']} even? ", stops=("\n",)),
    score=lambda item, response: matched(response or None, ("yes", "no")[item.row["n"] % 2]),
    gold=lambda item: ("yes", "no")[item.row["n"] % 2],
    metric="accuracy",
    shots=0,
    max_new_tokens=4,
    chance=0.5,
)


def test_limit_takes_turns_among_groups_and_keeps_the_order_of_the_data() -> None:
    items = [Item(id=str(i), row={}, group=group) for i, group in enumerate("aaaabbc")]
    assert [item.id for item in spread(items, 4)] == ["0", "1", "4", "6"]
    assert [item.id for item in spread(items, 3)] == ["0", "4", "6"]
    assert spread(items, None) == spread(items, 99) == items
    assert [item.id for item in spread([replace(item, group="") for item in items], 3)] == ["0", "1", "2"]


def test_report_follows_the_data_whatever_the_order_of_answers(tmp_path: Path) -> None:
    forth, back = (run_task(EVEN, Parrot(lambda key: "yes", backwards=b), None) for b in (False, True))
    assert forth == back and forth.score == pytest.approx(5 / 9)
    assert [each.item.id for each in forth.judged] == [item.id for item in ITEMS]


def test_run_that_ended_early_goes_on_without_asking_twice(tmp_path: Path) -> None:
    path = tmp_path / "even.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_task(EVEN, Parrot(EVEN_GOLD, n=4), None, lines=Lines(path))
    assert len(read_records(path)) == 4
    path.write_bytes(path.read_bytes()[:-5])  # torn
    rest = Parrot(EVEN_GOLD)
    report = run_task(EVEN, rest, None, lines=Lines(path))
    assert len(rest.asked) == 6 and len(read_records(path)) == 9
    assert report == run_task(EVEN, Parrot(EVEN_GOLD), None)
    nobody = Parrot(EVEN_GOLD)
    assert run_task(EVEN, nobody, None, lines=Lines(path)) == report and not nobody.asked


def test_longer_limit_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "even.jsonl"
    run_task(EVEN, Parrot(EVEN_GOLD), None, Settings(limit=3), lines=Lines(path))
    rest = Parrot(EVEN_GOLD)
    assert run_task(EVEN, rest, None, Settings(limit=5), lines=Lines(path)).n == 5 and len(rest.asked) == 2


def test_prompts_that_begin_alike_are_asked_one_after_the_other() -> None:
    parrot = Parrot(EVEN_GOLD)
    task = replace(
        EVEN, prompt=lambda item: Choice(text=f"{item.group} {item.id}", continuations=("x",), labels=("x",))
    )
    run_task(task, parrot, None)
    assert [str(q.prompt.text)[0] for q in parrot.asked] == list("aaabbbccc")  # type: ignore[union-attr]


def test_what_could_not_be_asked_is_unscored_and_says_why() -> None:
    class Mute(Parrot):
        def answers(self, questions):  # type: ignore[no-untyped-def]
            return ((question, (Reply(text="", refusal="too long"),)) for question in questions)

    report = run_task(EVEN, Mute(str), None)
    assert (report.score, report.n, report.unscored) == (None, 0, 9)
    assert report.judged[0].score.reason == "not asked: too long"


def test_random_answers_have_seeds_of_their_own_and_others_none() -> None:
    seeds = [
        run.ask(replace(EVEN, temperature=t), item, Settings(seed=s)).seed
        for t, s, item in (
            (0.0, 1, ITEMS[0]),
            (0.6, 1, ITEMS[0]),
            (0.6, 1, ITEMS[1]),
            (0.6, 2, ITEMS[0]),
            (0.6, 1, ITEMS[0]),
        )
    ]
    assert seeds[0] == 0 and seeds[1] == seeds[4] and len(set(seeds)) == 4


def test_programs_are_judged_beside_the_model_with_the_same_result(tmp_path: Path) -> None:
    beside = run_task(replace(EVEN, has_programs=True), Parrot(EVEN_GOLD), None, lines=Lines(tmp_path / "even.jsonl"))
    assert beside == run_task(EVEN, Parrot(EVEN_GOLD), None) and len(read_records(tmp_path / "even.jsonl")) == 9

    def fails(item: Item, response: str) -> Score:
        raise OSError("no sandbox here")

    with pytest.raises(OSError, match="no sandbox"):
        run_task(replace(EVEN, has_programs=True, score=fails), Parrot(EVEN_GOLD), None)


def test_progress_tells_a_running_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PROGRESS_SECONDS", 0.0)
    told: list[str] = []
    run_task(EVEN, Parrot(lambda key: "yes"), None, progress=told.append)
    assert told[0] == "even: 1 of 9, 100.0 %" and told[-1].startswith("even: 9 of 9, 55.6 ± ")


def test_task_is_fitted_to_the_model_before_its_items_are_made() -> None:
    fit = replace(EVEN, fit=lambda reader: replace(EVEN, items=lambda data: ITEMS[: reader.context_len or 2]))
    assert run_task(fit, Parrot(EVEN_GOLD), None).n == 2


def test_first_folder_that_has_the_files_is_taken(stand_ins: dict[str, Path], tmp_path: Path) -> None:
    task, folder = TASKS["docvqa"], stand_ins["docvqa"]
    assert len(items_of(task, [tmp_path, folder])) == own.N
    with pytest.raises(NoDataError, match="has no docvqa"):
        items_of(task, [tmp_path])


def test_two_runs_and_two_batches_give_the_same_report(assistant: Assistant, tmp_path: Path) -> None:
    def ask(item: Item) -> object:
        kinds = (user(f"{item.id}?"), Choice(text=f"{item.id} is", continuations=("yes", "no"), labels=("yes", "no")))
        return kinds[item.row["n"] % 2]

    task = replace(EVEN, prompt=ask, temperature=1.0, samples=2)
    reports = [run_task(task, LocalModel(assistant, batch=batch), None, Settings(seed=3)) for batch in (4, 4, 1, 64)]
    assert all(report == reports[0] for report in reports)
    other = run_task(task, LocalModel(assistant), None, Settings(seed=4))
    assert [each.responses for each in other.judged] != [each.responses for each in reports[0].judged]


def EVEN_GOLD(key: str) -> str:  # noqa: N802  a constant that happens to be a function
    return EVEN.gold(ITEMS[int(key)])


# Every task -------------------------------------------------------------------------------------------------------

CHANCE = {"chartqa": 0.7, "chartqa_base": 0.7, "mmmu": 1.0, "mmmu_pro": 0.6, "mathvista": 0.4, "gpqa_diamond": 0.55}
CHANCE |= {"mmmu_pro_standard": 0.8, "mmmu_pro_vision": 0.8} | {name: 0.3 for name in TASKS if "mtob" in name}
EXTRAS = {"math": "math_verify", "math_chat": "math_verify"} | {name: "sacrebleu" for name in TASKS if "mtob" in name}
HIDDEN = "docvqa_test"  # its answers are: nothing of it can be scored


def drive(name: str, data: list[Path], folder: Path, limit: int | None) -> None:
    """Gold answers are right, empty ones wrong, those of others chance: through runner, records and judge."""
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    task = TASKS[name]
    items = spread(items_of(task, data), limit)
    gold = {item.id: task.gold(item) for item in items}
    moved = shuffled(task, items)

    def value(kind: str, texts: dict[str, str]) -> float | None:
        parrot = Parrot(texts.__getitem__)
        report = run_items(task, items, parrot, Settings(), lines=Lines(folder / f"{kind}.jsonl"))
        assert report.n + report.unscored == len(items)
        return report.score

    if name == HIDDEN:
        assert value("gold", gold) is None
        return
    assert value("gold", gold) == 1.0
    assert value("empty", dict.fromkeys(gold, "")) == 0.0
    by_luck = value("shuffled", moved)
    assert by_luck is not None and (limit or by_luck <= CHANCE.get(name, task.chance + 0.12))


@pytest.mark.parametrize("name", SUITES["card"])
def test_gold_is_right_and_empty_is_wrong_through_the_runner(
    name: str, stand_ins: dict[str, Path], tmp_path: Path
) -> None:
    drive(name, [stand_ins[name]], tmp_path, limit=4)


JUDGED_HERE = sorted(task.name for task in {*TASKS.values()} - {*READING} if not task.name.endswith("_long"))
"""Tasks that are answered, but for those whose texts have millions of words."""


@pytest.mark.slow
@pytest.mark.parametrize("name", JUDGED_HERE)
def test_gold_empty_and_shuffled_answers_of_every_task(name: str, stand_ins: dict[str, Path], tmp_path: Path) -> None:
    if not SLICES.exists():
        pytest.skip("needs ../shared/data/eval")
    drive(name, [SLICES, next(iter(stand_ins.values()))], tmp_path, limit=None)


# Killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_command_goes_on_and_ends_as_if_nobody_had_killed_it(tmp_path: Path) -> None:
    if not SLICES.exists():
        pytest.skip("needs ../shared/data/eval")
    moments = random.Random(0)

    def command(folder: Path) -> list[str]:
        names = ["eval", "cria", "--task", "mmlu,tydiqa", "--limit", "60", "--json", "--batch", "4"]
        return [sys.executable, "-m", "puna", *names, "--data", str(SLICES), "--out", str(folder)]

    def n_lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in (tmp_path / "a").glob("*.jsonl"))

    n_killed = 0
    for _ in range(3):
        wanted = n_lines() + moments.randrange(5, 25)
        with subprocess.Popen(command(tmp_path / "a"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and n_lines() < wanted:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        n_killed += process.returncode == -signal.SIGKILL
    assert n_killed and 0 < n_lines() < 120, "killed half-way"
    text = subprocess.run(command(tmp_path / "a"), capture_output=True, check=True).stdout
    whole = subprocess.run(command(tmp_path / "b"), capture_output=True, check=True).stdout
    pieces, at_once = json.loads(text), json.loads(whole)
    for name in ("mmlu", "tydiqa"):
        assert pieces[name].pop("date") and at_once[name].pop("date")
        ids = [json.loads(line)["id"] for line in (tmp_path / "a" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        assert len(ids) == len(set(ids)) == 60
    assert pieces == at_once


@pytest.mark.slow
def test_task_in_the_documentation_is_complete() -> None:
    import puna

    text = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {"puna": puna}
    exec(code, names)
    assert names["report"].n == 100  # type: ignore[attr-defined]
