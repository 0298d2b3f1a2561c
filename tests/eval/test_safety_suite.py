"""The suites about safety end to end, with a scripted model."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna.errors import ConfigError
from puna.eval.safety_suite import SUITES, run, write
from puna.guard import policy
from puna.guard.guard import hidden_guard
from puna.guard.lexicon import LexiconGuard
from puna.guard.pipeline import Pipeline
from tests.eval.test_safety import Script

PIPELINE = Pipeline(policy.read("[user_input]\ncontent = {}\nhidden = {}\n", "test"), [LexiconGuard(), hidden_guard()])


def runs(suite: str, data: list[Path], **options: Any) -> Any:
    given = {"limit": 2, "max_new_tokens": 8, "baseline": None, "operator": None, "progress": print}
    return run(suite, Script({}), PIPELINE, data, **given | options)


def test_every_suite_writes_a_document_and_a_table(tmp_path: Path) -> None:
    for suite in SUITES:
        found = runs(suite, [tmp_path] if suite == "safety" else [])
        write(found, suite, tmp_path / "out")
        assert json.loads((tmp_path / "out" / f"{suite}.json").read_text()) == json.loads(json.dumps(found.document))
        assert (tmp_path / "out" / f"{suite}.md").read_text().strip()


def test_what_is_missing_or_not_allowed_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data"):
        runs("safety", [])
    with pytest.raises(ConfigError, match="--operator"):
        runs("critical", [tmp_path])


def test_a_baseline_is_held_against_it(tmp_path: Path) -> None:
    found = runs("safety", [tmp_path], limit=None)
    (tmp_path / "before.json").write_text(json.dumps(found.document))
    assert runs("safety", [tmp_path], limit=None, baseline=tmp_path / "before.json").worse == ()
