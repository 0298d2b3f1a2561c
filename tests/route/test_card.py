"""`puna card`: cria's card is what it makes, and a model trained just now has one too."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.cli import main
from puna.eval.result import files_hash
from puna.records import RECORDS, RESULTS, read_evaluations
from puna.train.loop import train
from puna.train.recipe import from_dict
from puna.weights import hub
from tests.train.conftest import documents, tables, tiny  # noqa: F401


def test_crias_card_is_the_one_that_this_command_makes(capsys: pytest.CaptureFixture[str]) -> None:
    """After a change of weights or records: puna card cria --out src/puna/assets/cria/README.md"""
    assert main(["card", "cria"]) == 0
    assert capsys.readouterr().out == (hub.resolve("cria") / "README.md").read_text("utf-8")


def test_what_was_measured_was_measured_on_the_weights_that_ship() -> None:
    """After a change of weights: scripts/cria-card DATA RUN"""
    cria = hub.resolve("cria")
    hashes = {each.model_hash for each in read_evaluations(cria / RECORDS / RESULTS)}
    assert hashes == {files_hash(cria)}


def test_crias_card_leaves_little_open(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", "cria", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "cria" and document["front_matter"]["license"] == "apache-2.0"
    titles = [section["title"] for section in document["sections"]]
    assert titles[0] == "Model information" and titles[-1] == "What is not on record" and len(titles) == 9
    assert len(document["missing"]) <= 4, document["missing"]


def test_a_model_trained_just_now_has_a_card(
    tables: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    tables["schedule"] |= {"steps": 2, "warmup_steps": 1, "decay_steps": 0}
    tables["data"]["held_out"] = ""
    tables["energy"] = {"tdp_watts": 100, "pue": 1.2, "location_kg_per_kwh": 0.4, "source": "a guess of this test"}
    run = tmp_path / "llama-in-the-attic"
    assert train(from_dict(tables), run, lambda line: None).finished
    torch.use_deterministic_algorithms(False)
    for suffix in ("md", "html"):
        assert main(["card", str(run), "--out", str(tmp_path / f"card.{suffix}")]) == 0
    text = (tmp_path / "card.md").read_text("utf-8")
    assert "# llama-in-the-attic" in text and "| picture | 20 |" in text and "co2_eq_emissions:" in text
    assert "Factors: a guess of this test." in text and "*Not recorded: the licence.*" in text
    assert (tmp_path / "card.html").read_text("utf-8").startswith("<!doctype html>")
    assert "things are not on record" in capsys.readouterr().out
    (run / "card.toml").write_text('licence = "mine"\n')
    assert main(["card", str(run)]) == 2
    assert "did you mean license?" in capsys.readouterr().err


def test_an_unknown_ending_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", "scout", "--out", str(tmp_path / "card.pdf")]) == 2
    assert "end it in .md or .html" in capsys.readouterr().err
