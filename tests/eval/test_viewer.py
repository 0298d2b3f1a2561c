"""The page of items: complete in itself, honest about what it leaves out, deaf to what models write."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from puna.eval import viewer as page
from puna.eval.run import items_of
from puna.eval.task import Choice, Judged, Score, judge, summarize, user
from puna.eval.tasks import TASKS
from puna.eval.viewer import viewer


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def judged(name: str, stand_ins: dict[str, Path], response: str = "x") -> list[Judged]:
    items = items_of(TASKS[name], stand_ins[name])
    return [judge(TASKS[name], item, [response]) for item in items]


def test_page_has_prompt_picture_response_answer_score_and_reason(stand_ins: dict[str, Path]) -> None:
    task = TASKS["docvqa"]
    found = judged("docvqa", stand_ins)
    text = viewer(task, summarize(task, [judge(task, found[0].item, [task.gold(found[0].item)]), *found[1:]]))
    document = data_of(text)
    first, second = document["items"][:2]
    assert [kind for kind, _ in first["prompt"]] == ["role", "picture", "text"]
    assert first["state"] == "right" and second["state"] == "wrong" and second["reason"].startswith("expected ")
    assert len(document["pictures"]) == 10, "two questions about a page share its picture"
    assert all(url.startswith("data:image/webp;base64,") for url in document["pictures"].values())
    assert not re.search(r"(src|href)=", text.partition("<script")[0]) and "http" not in text


def test_what_a_model_writes_stays_text(stand_ins: dict[str, Path]) -> None:
    task = TASKS["docvqa"]
    text = viewer(task, summarize(task, judged("docvqa", stand_ins, "</script><script>alert(1)</script>")[:1]))
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert data_of(text)["items"][0]["responses"] == ["</script><script>alert(1)</script>"]


def test_private_items_are_not_shown(stand_ins: dict[str, Path]) -> None:
    task = TASKS["gpqa_diamond"]
    text = viewer(task, summarize(task, judged("gpqa_diamond", stand_ins, "The herds say: the best answer is A.")))
    assert "llamas" not in text and "herds" not in text and "ask not to show" in text
    assert data_of(text)["items"][0]["answer"] == "A"


def test_continuations_stand_with_their_log_likelihoods_and_long_texts_lose_their_middle() -> None:
    task = TASKS["mmlu_cot"]
    item = replace(judged_item(), row={"choices": list("abcd"), "answer": 0, "question": "?"})
    choice = replace(task, prompt=lambda _: Choice(text="y" * 20_000, continuations=(" A", " B"), labels=("A", "B")))
    score = Score(value=None, answer=None, reason="")
    one = Judged(item=item, responses=("A",), score=score, details=({"logprobs": [-1.25, -2.5]},))
    (shown,) = data_of(viewer(choice, summarize(choice, [one])))["items"]
    assert "12,000 characters are left out here" in shown["prompt"][0][1] and len(shown["prompt"][0][1]) < 8100
    assert shown["prompt"][1][1] == "continuations:\n' A'  -1.2500\n' B'  -2.5000" and shown["state"] == "unscored"


def judged_item() -> Any:
    from puna.eval.task import Item

    return Item(id="1", row={})


def test_missing_picture_and_too_many_items_are_said(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(page, "MAX_ITEMS", 1)
    task = replace(TASKS["mmlu_cot"], prompt=lambda _: user(tmp_path / "no.png", "x"))
    each = Judged(item=judged_item(), responses=("A",), score=Score(value=1.0, answer="A", reason=""))
    document = data_of(viewer(task, summarize(task, [each, each])))
    assert document["note"] == "1 more items are in the record file alone." and len(document["items"]) == 1
    assert "cannot be shown" in document["items"][0]["prompt"][1][1]
