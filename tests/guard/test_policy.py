"""Policies: presets that stand, files that are checked to the last key, and what a verdict means under them."""

from dataclasses import replace
from pathlib import Path

import pytest

from puna.errors import ConfigError
from puna.guard import policy
from puna.guard.policy import PRESETS, Rule, Station, decide
from puna.guard.verdict import Span, Verdict

HIT = Verdict(
    guard="content/1",
    action="block",
    score=0.8,
    codes=("S1", "S6"),
    spans=(
        Span(start=0, end=4, code="S1", score=0.8, reason=""),
        Span(start=5, end=9, code="S6", score=0.6, reason=""),
    ),
    backend="rules",
    status="ok",
    coverage=("S1", "S6"),
)


def at(**rule: object) -> Station:
    return Station(guards={"content": Rule(**rule)})  # type: ignore[arg-type]


def test_presets_stand_and_only_off_checks_nothing() -> None:
    digests = {name: policy.load(name).digest for name in PRESETS}
    assert len(set(digests.values())) == len(PRESETS)
    assert [name for name in PRESETS if policy.load(name).is_off] == ["off"]
    for name in PRESETS[:-1]:
        preset = policy.load(name)
        assert preset.mode == "strict"
        assert {preset.at(point).on_error for point in ("assistant_output", "tool_result", "user_input")} == {"block"}
        assert "content" in preset.at("assistant_output").guards


def test_what_a_file_does_not_name_is_not_checked(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[user_input]\nhidden = { hit = "flag" }\n')
    mine = policy.load(file)
    assert (mine.name, mine.guards) == ("mine", ("hidden",))
    assert not mine.at("assistant_output").guards


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mod = 'strict'", "mod.*mode"),
        ("[user_inputs]\n", "user_inputs.*user_input"),
        ("[user_input]\ncontents = {}\n", "contents.*content"),
        ("[user_input]\ncontent = { block = 1 }\n", "block.*block_at"),
        ("[user_input]\ncontent = { block_at = 2 }\n", "block_at.*0 to 1"),
        ("[user_input]\ncontent = { hit = 'stop' }\n", "hit.*one of"),
        ("[user_input.content.codes.S1]\nhits = 'allow'\n", "codes.S1.*hits"),
        ("[user_input]\non_error = 'open'\n", "on_error.*block"),
        ("window_chars = 0", "window_chars.*1 or more"),
        ("window_chars = true", "window_chars"),
        ("timeout_seconds = -1", "timeout_seconds"),
        ("message = ''", "message"),
        ("user_input = 3", "user_input.*table"),
        ("= 3", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_the_remedy(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        policy.read(text, "mine")


def test_a_name_that_is_no_policy_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"chatbott.*chatbot, visual_qa"):
        policy.load("chatbott")


def test_digest_changes_with_every_rule() -> None:
    one = policy.read("[user_input]\ncontent = { block_at = 0.5 }\n", "mine")
    other = policy.read("[user_input]\ncontent = { block_at = 0.6 }\n", "mine")
    assert one.digest != other.digest
    assert one.digest == policy.read("[user_input]\ncontent = { block_at = 0.5 }\n", "mine").digest


@pytest.mark.parametrize(
    ("rule", "action", "codes"),
    [
        ({}, "block", ("S1", "S6")),
        ({"hit": "flag"}, "flag", ("S1", "S6")),
        ({"hit": "rewrite"}, "rewrite", ("S1", "S6")),
        ({"block_at": 0.7, "flag_at": 0.6}, "block", ("S1", "S6")),
        ({"block_at": 0.9}, "allow", ()),
        ({"flag_at": 0.1}, "flag", ("S1", "S6")),
        ({"codes": {"S1": Rule(hit="allow")}}, "block", ("S6",)),
        ({"codes": {"S1": Rule(hit="allow"), "S6": Rule(hit="allow")}}, "allow", ()),
        ({"codes": {"S1": Rule(hit="flag")}}, "block", ("S1", "S6")),
        ({"block_at": 0.7, "codes": {"S1": Rule(block_at=0.85)}}, "allow", ()),
    ],
)
def test_rules_decide_by_score_and_code(rule: dict[str, object], action: str, codes: tuple[str, ...]) -> None:
    decision = decide(at(**rule), "content", HIT)
    assert (decision.action, decision.codes, decision.failed) == (action, codes, False)


def test_spans_are_those_of_what_decided() -> None:
    decision = decide(at(codes={"S1": Rule(hit="flag")}), "content", HIT)
    assert [span.code for span in decision.spans] == ["S6"]


@pytest.mark.parametrize(("on_error", "action"), [("block", "block"), ("pass", "allow")])
def test_a_guard_that_could_not_judge_follows_the_station(on_error: policy.OnError, action: str) -> None:
    broken = replace(HIT, status="error", codes=(), spans=())
    decision = decide(replace(at(), on_error=on_error), "content", broken)
    assert (decision.action, decision.failed) == (action, True)


@pytest.mark.parametrize(("on_skipped", "action"), [("block", "block"), ("pass", "allow")])
def test_what_a_guard_did_not_see_is_counted_and_follows_the_station(on_skipped: policy.OnError, action: str) -> None:
    partly = replace(HIT, status="skipped", action="allow", score=0.0, codes=(), spans=())
    decision = decide(replace(at(), on_skipped=on_skipped), "content", partly)
    assert (decision.action, decision.failed) == (action, True)
    assert decide(replace(at(), on_skipped=on_skipped), "content", replace(HIT, status="skipped")).action == "block"
