"""What the base knows already is found and dropped, and so is what somebody judged too easy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.errors import ConfigError
from puna.train.difficulty import Scores, hard, judged
from puna.train.next_token import NextToken
from puna.train.tune_recipe import FilterRecipe, from_dict
from puna.train.workbench import DATA, Workbench, open_bench
from tests.train.chat_lines import CHATS, write_lines


def bench_of(tiny: Path, folder: Path, **wish: Any) -> Workbench:
    tables = {
        "model": {"base": str(tiny)},
        "data": {"chats": str(write_lines(folder / "chats.jsonl", CHATS)), "store": str(folder / "store")},
        "filter": wish,
        "objective": {"kind": "supervised"},
        "batch": {"rows": 2, "row_len": 120, "tiles": 0, "window": 8},
        "optimizer": dict.fromkeys(("lr", "weight_decay", "momentum", "beta1", "beta2", "eps", "clip_norm"), 0.1),
        "schedule": {"steps": 4, "warmup_steps": 0, "decay_steps": 0, "final_fraction": 0.0},
        "compute": {"dtype": "float32", "compile": False, "threads": 1},
    }
    return open_bench(from_dict(tables), folder, lambda line: None)


def test_scores_of_documents_are_those_of_their_tokens(tiny: Path, tmp_path: Path) -> None:
    bench = bench_of(tiny, tmp_path)
    found = bench.scores(bench.store)
    loss = NextToken(bench.model, balance=0.0, z=0.0, chunk=16)
    whole = sum(float(loss.token_losses(batch).sum()) for batch in bench.packer(bench.store).once())
    assert found.nats.sum() == pytest.approx(whole, rel=1e-5)
    assert found.tokens.sum() == bench.store.facts["counts"]["learnt"] and (found.right <= found.tokens).all()
    lengths = np.add.reduceat(np.asarray(bench.store.weights, dtype=np.float64), bench.store.offsets[:-1])
    assert found.tokens.tolist() == lengths.tolist()


def test_what_the_base_guesses_or_finds_cheap_is_dropped() -> None:
    found = Scores(np.array([1.0, 8.0, 8.0]), np.array([4.0, 4.0, 1.0]), np.array([4.0, 4.0, 4.0]))
    assert hard(found, FilterRecipe(easy_accuracy=1.0)).tolist() == [False, False, True]
    assert hard(found, FilterRecipe(easy_nats=0.5)).tolist() == [False, True, True]


def test_the_feed_shows_what_is_left_and_the_run_says_so(tiny: Path, tmp_path: Path) -> None:
    bench = bench_of(tiny, tmp_path, score="score", least_score=0.45)
    feed = bench.feed()
    seen = {name for batch in feed.packer.once() for name in feed.names(batch)}
    assert seen == {f"chat{i}" for i in range(5, 10)}
    facts = json.loads((tmp_path / DATA).read_text("utf-8"))["filter"]
    assert (facts["documents"], facts["kept"]) == (10, 5) and facts["by_source"]["herds"] == {"documents": 5, "kept": 3}
    with pytest.raises(ConfigError, match="no conversation is left"):
        bench_of(tiny, tmp_path, easy_nats=1e6).feed()


def test_a_judgement_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "chats.jsonl", [CHATS[0], CHATS[1] | {"score": "high"}])
    with pytest.raises(ConfigError, match=r"line 2: score is 'high'; filter\.score names a field that holds a number"):
        judged([str(path)], "score", 0.5)
