"""A checkpoint is planned in the numbers that its files hold."""

import json
from pathlib import Path

import pytest

from puna import cli
from puna.card.memory import INT4, INT8, SCHEMES, by_part
from puna.card.params import weights
from puna.plan import stored
from puna.presets import MAVERICK
from puna.weights.source import open_source
from tests.reference.tiny import write_tiny_checkpoint


def test_a_checkpoint_in_eight_bits_is_planned_as_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    full, small = write_tiny_checkpoint(tmp_path / "full"), tmp_path / "small"
    assert cli.main(["quantize", str(full), str(small), "--to", "int8", "--json"]) == 0
    capsys.readouterr()
    documents = {}
    for model, quantize in ((full, "none"), (full, "int8"), (small, "none")):
        arguments = ["plan", str(model), "--hardware", "h100", "--context", "64", "--quantize", quantize, "--json"]
        assert cli.main(arguments) == 0
        documents[model.name, quantize] = json.loads(capsys.readouterr().out)
    assert documents["full", "none"]["asked"]["bits"] == {}
    assert documents["small", "none"]["asked"]["bits"]["attention"] == 8
    taken, made = (documents[key]["weights_bytes"] for key in (("small", "none"), ("full", "int8")))
    assert {part for part in taken if taken[part] != made[part]} == {"head"}  # which files keep in floats
    source = open_source(small)
    kept = by_part(source.config, stored.scheme(source.config, source.formats), source.dtype.itemsize)
    assert taken == kept


def test_matrices_of_a_part_that_stay_floats_are_counted_as_floats() -> None:
    """As Meta's fp8 of Maverick, whose first and last layer stay as they are."""
    ends = (0, MAVERICK.text.n_layers - 1)
    routed = {w.name: "fp8" for w in weights(MAVERICK) if w.part == "routed_experts" and w.layer not in ends}
    assert by_part(MAVERICK, stored.scheme(MAVERICK, routed)) == by_part(MAVERICK, SCHEMES["fp8-experts"])


def test_quantize_changes_the_parts_that_it_makes_small_and_leaves_the_others() -> None:
    eight = {weight.name: "int8" for weight in weights(MAVERICK) if weight.part in ("attention", "vision")}
    is_stored = stored.scheme(MAVERICK, eight)
    changed = stored.changed(is_stored, "int4-experts")
    assert changed.small["attention"] == INT8 and changed.small["routed_experts"].bits == 4
    assert stored.changed(is_stored, "int4").small["attention"] == INT4
    assert stored.changed(is_stored, "none") is is_stored
    assert stored.words(stored.scheme(MAVERICK, {})) == "floats"
