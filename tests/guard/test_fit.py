"""Training: the solver against calculus, groups against leaks, the energy term against its purpose."""

import numpy as np
import pytest

from puna.errors import ConfigError
from puna.guard.fit import Design, Row, area_under_curve, collages, design, generate, read_sets, solve, threshold_at

SETTINGS = {"l2": 1e-3, "energy_weight": 0.0, "energy_margin": 0.25, "steps": 60}
RECIPE = {
    "data": {"seed": 1, "generated_attacks": 6, "generated_benign": 4, "collages": 6},
    "fit": {"language_weight": 1.5},
    "languages": {
        "en": {
            kind: [f"{kind} one", f"{kind} two"]
            for kind in ("override", "reveal", "persona", "authority", "action", "benign")
        }
    },
    "indirect": {
        kind: ["{} one", "{} two"] if kind in {"forms", "document"} else [f"{kind} one", f"{kind} two"]
        for kind in ("claims", "frames", "asks", "forms", "things", "chatter", "document", "claims_in_document")
    },
    "notices": {kind: [f"{kind} {{}}", f"{kind} two"] for kind in ("subjects", "facts", "asks", "closings", "names")},
    "tasks": {
        "frames": ["{0} and {1}", "only {1}"],
        "materials": ["material one", "material two"],
        "results": ["result one", "result two"],
    },
}


def toy() -> Design:
    indices = np.array([0, 1, 0, 2, 1, 2])
    values = np.array([1.0, 0.5, 1.0, 0.5, 1.0, 1.0], dtype=np.float32)
    labels = np.array([1, 1, 0], dtype=np.float32)
    return Design(indices, values, np.array([0, 2, 4]), labels, np.ones(3, dtype=np.float32))


def dense(matrix: Design) -> np.ndarray:
    rows = np.zeros((3, 3))
    rows[[0, 0, 1, 1, 2, 2], matrix.indices] = matrix.values
    return rows


def test_gradient_vanishes_at_the_solution() -> None:
    matrix = toy()
    weights, bias = solve(matrix, SETTINGS)
    x, y = dense(matrix), matrix.labels
    chance = 1 / (1 + np.exp(-(x @ weights[:3] + bias)))
    balance = np.where(y > 0, 0.25, 0.5)
    gradient = x.T @ (balance * (chance - y)) + SETTINGS["l2"] * weights[:3]
    np.testing.assert_allclose(gradient, 0, atol=1e-4)  # weights are kept as float32, the search stops at 1e-7


def test_energy_term_pushes_the_worst_benign_row_down() -> None:
    matrix = toy()
    plain, plain_bias = solve(matrix, SETTINGS)
    pressed, pressed_bias = solve(matrix, SETTINGS | {"energy_weight": 5.0, "energy_margin": 0.0})
    benign = dense(matrix)[2]
    assert benign @ pressed[:3] + pressed_bias < benign @ plain[:3] + plain_bias


def test_window_without_the_attacking_part_is_benign() -> None:
    row = Row("set", "en", "g", "attack now " + "quiet words " * 200, True, "attack now")
    assert design([row], 1.0).labels.tolist() == [1, 0, 0]


def test_clauses_that_are_kept_out_do_not_appear() -> None:
    rows = generate(RECIPE, lambda clause: "two" not in clause)
    assert any(row.attack for row in rows) and any(not row.attack for row in rows)
    assert not any("two" in row.text for row in rows)


def test_same_seed_gives_same_rows() -> None:
    assert generate(RECIPE, lambda clause: True) == generate(RECIPE, lambda clause: True)


def test_every_second_collage_holds_an_attack() -> None:
    generated = generate(RECIPE, lambda clause: True)
    made = collages(RECIPE, [row for row in generated if not row.attack], generated)
    assert [row.attack for row in made] == [False, True] * 3
    assert all(row.part is None or row.part in row.text for row in made)


def test_threshold_is_exceeded_by_the_asked_share() -> None:
    benign = np.arange(1000.0)
    assert (benign > threshold_at(benign, 0.01)).mean() == 0.01


def test_area_counts_ties_half() -> None:
    assert area_under_curve(np.array([2.0, 1.0]), np.array([0.0, 1.0])) == pytest.approx(0.875)


def test_missing_set_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="jailbreak_wrappers"):
        read_sets(tmp_path)
