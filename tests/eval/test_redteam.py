"""The red team finds what guards let through, and tells what then succeeded."""

from puna.eval.redteam import GOALS, raid
from puna.guard import policy
from puna.guard.disguise import DISGUISES
from puna.guard.guard import hidden_guard
from puna.guard.pipeline import Pipeline
from tests.eval.test_safety import Script

RULES = "[user_input]\nhidden = {}\n[tool_result]\nhidden = { hit = 'rewrite' }\n[assistant_output]\nhidden = {}\n"


def pipeline(text: str = RULES) -> Pipeline:
    return Pipeline(policy.read(text, "test"), [hidden_guard()])


def test_guards_stop_what_they_see_and_the_rest_passes() -> None:
    record = raid(pipeline())
    by_name = record.to_json()["disguises"]
    assert len(by_name) == len(DISGUISES)
    assert by_name["hidden_tags"]["passed"]["hits"] == 0 and by_name["hidden_tags"]["stopped_by"] == ["hidden"]
    assert by_name["base64"]["passed"]["hits"] == len(GOALS)
    assert by_name["plain"]["succeeded"]["n"] == 0, "nobody was asked"
    assert "| hidden_tags | 0 of 3 |" in record.table()


def test_success_is_told_from_the_answer_of_whoever_was_asked() -> None:
    obedient = Script({request: f"{word.upper()}!" for word, request in GOALS.items()})
    record = raid(
        pipeline(), obedient, disguises={name: DISGUISES[name] for name in ("plain", "base64", "hidden_tags")}
    )
    rates = {name: each["succeeded"] for name, each in record.to_json()["disguises"].items()}
    assert (rates["plain"]["rate"], rates["base64"]["rate"], rates["hidden_tags"]["rate"]) == (1.0, 0.0, 0.0)


def test_without_protections_everything_passes() -> None:
    record = raid(Pipeline(policy.load("off")))
    assert all(each.passed and not each.flagged for each in record.raids)
