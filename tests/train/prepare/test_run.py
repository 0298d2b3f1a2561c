import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from puna.errors import ConfigError
from puna.train.prepare import run
from puna.train.prepare.run import Settings, prepare

DRAW = Random(6)
VOCABULARY = ["".join(DRAW.choices("abcdefghijklm", k=DRAW.randint(3, 9))) for _ in range(3000)] + ["the", "of"] * 300
QUESTION = "Which of these rivers did the traders of the old kingdom cross on their way to the salt lakes?"


def text(n: int = 80) -> str:
    return " ".join(DRAW.choices(VOCABULARY, k=n))


GOOD = [text() for _ in range(40)]
LINES: dict[str, list[dict[str, Any]]] = {
    "web": [
        *({"text": each, "id": k} for k, each in enumerate(GOOD[:30])),
        {"text": GOOD[3].upper()},
        {"text": GOOD[4].replace(" ", "\n", 3) + " and more"},
        {"text": "too short"},
        {"text": f"{text()} {QUESTION} {text()}"},
        {"text": f"{text()} purple elephant {text()}"},
        {"title": "no text"},
    ],
    "books": [{"content": each} for each in (*GOOD[30:], GOOD[0])],
}
EXPECTED = {"kept": 40, "broken": 1, "safety": 1, "too_few_words": 1, "overlap": 1, "exact": 2, "near": 1}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name, lines in LINES.items():
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "phrases.txt").write_text("purple elephant\n")
    return Settings(
        inputs=(tmp_path / "raw" / "web", tmp_path / "raw" / "books"),
        out=tmp_path / "out",
        against=(tmp_path / "exam.jsonl",),
        lists=tmp_path / "lists",
    )


def silent(line: str) -> None:
    pass


def changed(settings: Settings, **values: Any) -> Settings:
    return Settings(**{name: getattr(settings, name) for name in Settings.__slots__} | values)  # type: ignore[attr-defined]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != run.REPORT}


def test_what_is_worth_learning_stays_and_the_rest_is_counted(settings: Settings) -> None:
    report = prepare(settings, silent)
    assert {reason: each["documents"] for reason, each in report["all"].items()} == EXPECTED
    written = [json.loads(line) for n in range(2) for line in (settings.out / f"0000{n}.jsonl").open()]
    assert [each["text"] for each in written] == GOOD
    assert written[7]["id"] == 7 and written[7]["source"] == "a" and written[7]["language"] in run.LANGUAGES
    assert report["all"]["kept"]["bytes"] == sum(map(len, GOOD))
    assert report["against"] == {"records": 1, "too_short_to_find": 0}
    assert sum(n["documents"] for each in report["languages"].values() for n in each.values()) == sum(EXPECTED.values())


def test_report_counts_by_source(settings: Settings) -> None:
    report = prepare(changed(settings, inputs=(settings.inputs[0].parent,)), silent)
    counts = {
        source: {reason: n["documents"] for reason, n in each.items()} for source, each in report["sources"].items()
    }
    assert counts["books"] == {"kept": 11}  # read first, as names go, so the copy is the other one
    assert counts["web"] == EXPECTED | {"kept": 29}


def test_finding_of_the_safety_filter_is_told_by_place_only(settings: Settings) -> None:
    prepare(settings, silent)
    (line,) = (settings.out / run.QUARANTINE).read_text().splitlines()
    assert json.loads(line) == {"file": str(settings.inputs[0] / "a.jsonl"), "line": 35, "list": "phrases"}
    assert not any(b"purple" in content for content in files(settings.out).values())


def test_without_lists_the_report_says_so(settings: Settings) -> None:
    report = prepare(changed(settings, lists=None), silent)
    assert report["child_safety"].startswith("not applied")
    assert "safety" not in report["all"] and report["all"]["kept"]["documents"] == 41


def test_languages_that_are_not_asked_for_go(settings: Settings) -> None:
    report = prepare(changed(settings, languages=("th",)), silent)
    assert "kept" not in report["all"] and report["all"]["language"]["documents"] > 40


@pytest.mark.parametrize("stage", ["find_copies", "find_repeats", "_write", "_counts", "_write_quarantine"])
def test_run_that_was_stopped_goes_on_to_the_same_bytes(
    settings: Settings, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = changed(settings, out=settings.out.with_name("whole"))
    prepare(whole, silent)

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, stage, stop)
        prepare(settings, silent)
    said: list[str] = []
    prepare(settings, said.append)
    assert files(settings.out) == files(whole.out)
    assert not any(line.startswith("scan") for line in said)


def test_scan_that_was_stopped_begins_again_at_its_file(settings: Settings) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(settings, stop)
    said: list[str] = []
    prepare(settings, said.append)
    assert [line.split()[0] for line in said] == ["scan", "exact:", "near:", "write", "write"]


def test_finished_run_is_not_done_again(settings: Settings) -> None:
    first = prepare(settings, silent)
    said: list[str] = []
    assert prepare(settings, said.append) == first and not said


def test_folder_with_something_else_is_refused(settings: Settings) -> None:
    prepare(settings, silent)
    with pytest.raises(ConfigError, match=r"another preparation \(min_words differ\)"):
        prepare(changed(settings, min_words=3), silent)
    (settings.inputs[0] / "a.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(ConfigError, match="files differ"):
        prepare(settings, silent)
    with pytest.raises(ConfigError, match="not empty"):
        prepare(changed(settings, out=settings.inputs[0].parent), silent)


def test_impossible_settings_are_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="languages: xx is unknown"):
        prepare(changed(settings, languages=("xx",)), silent)
    with pytest.raises(ConfigError, match="memory_mb: 0"):
        prepare(changed(settings, memory_mb=0), silent)


@pytest.mark.slow
def test_workers_write_the_same_bytes(settings: Settings) -> None:
    alone, together = settings, changed(settings, out=settings.out.with_name("together"), n_workers=2)
    prepare(alone, silent)
    prepare(together, silent)
    assert files(alone.out) == files(together.out)
