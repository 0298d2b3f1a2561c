"""Trains the embedded prompt-attack classifier and measures it by cross-validation.

In: a recipe (`recipes/guard-injection.toml`) with clauses in 12 languages, and a folder of published sets. Out: the
weights that `injection` reads, and a report. Logistic regression with an energy term: a benign row is a two-class row
with logits (0, z) and energy -log(1 + exp(z)); energies below a margin are punished by their square, which presses on
just those benign rows that look most like attacks. Rows of one origin (document, system prompt, translation) never
stand on both sides of a fold, and no clause of the grammar does.

Run `python -m puna.guard.fit recipes/guard-injection.toml SETS [--folds 5] [--write FILE] [--report FILE]`.

Source: Liu et al. 2020 (energy-based out-of-distribution detection, arXiv 2010.03759), equations 3 and 8.
"""

import argparse
import json
import random
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from puna.errors import ConfigError, PunaError
from puna.guard.injection import Classifier, windows
from puna.guard.ngrams import N_FEATURES, features

N_GROUP_FOLDS_DEFAULT = 5
FALSE_POSITIVE_RATE = 0.01
POOLED = ("jailbreak_wrappers", "cyberseceval_prompt_injection", "multilingual_injection")  # attacks given directly


ASKING = ("claims", "asks", "forms", "things")  # clauses that ask for what a prompt protects


class Row(NamedTuple):
    """One text. `part` is the characters that attack, where only a part does; `group` never spans two folds."""

    source: str
    language: str
    group: str
    text: str
    attack: bool
    part: str | None = None
    weight: float = 1.0
    hard: bool = False  # benign, but looks like an attack


class Design(NamedTuple):
    """Rows as a sparse matrix: `indices` and `values` [n], row r from `starts[r]` on; labels 0 or 1 and weights [R]."""

    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]


def read_sets(folder: Path) -> list[Row]:
    """Returns the rows of all sets in `folder`. Raises ConfigError if one is missing."""
    readers: dict[str, Callable[[Mapping[str, Any]], Row]] = {
        "jailbreak_wrappers/dev": lambda r: Row("jailbreak_wrappers", "en", r["text"][:60], r["text"], True),
        "cyberseceval_prompt_injection/dev": lambda r: Row(
            "cyberseceval_prompt_injection", r["lang"], r["system"], r["user"], True
        ),
        "multilingual_injection/dev": lambda r: Row(
            "multilingual_injection",
            r["lang"],
            r["id"].split("-", 2)[2],
            r["text"],
            r["label"] == "injection",
            weight=2.0,
        ),
        "notinject/dev": lambda r: Row("notinject", "en", r["text"][:60], r["text"], False, hard=True),
        "xstest/dev": lambda r: Row("xstest", "en", r["focus"], r["text"], False),
        "self_instruct_benign/dev": lambda r: Row("self_instruct_benign", "en", r["id"], r["text"], False),
        "cyberseceval_frr/dev": lambda r: Row(
            "cyberseceval_frr", r["lang"], r.get("english") or r["text"], r["text"], False
        ),
        "cyberseceval_instruct/dev": lambda r: Row("cyberseceval_instruct", "en", r["prompt"][:80], r["prompt"], False),
        "agentdojo/dev": lambda r: Row("agentdojo", "en", r["id"], r["text"], False),
    }
    rows = []
    for name, read in readers.items():
        found = _lines(folder / f"{name}.jsonl")
        rows += [read(each) for each in found if each.get("label") not in {"goal_only", "unsafe"}]
    return rows + _documents(folder / "bipia_email")


def _documents(folder: Path) -> list[Row]:
    asked = {_attack_id(each["id"]): each["instruction"] for each in _lines(folder / "dev_attacks.jsonl")}
    rows = []
    for each in _lines(folder / "dev_pairs.jsonl"):
        part = asked.get(_attack_id(each["attack"])) if each.get("attack") else None
        group = each["id"].rsplit("-", 1)[0]
        rows.append(Row("bipia_email", "en", group, each["text"], each["label"] != "benign", part))
    return rows


def _attack_id(name: str) -> str:
    return name.strip()


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"sets: {path.name} of {path.parent.name} is missing; give the folder that holds all sets")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def generate(recipe: Mapping[str, Any], chosen: Callable[[str], bool], scale: float = 1.0) -> list[Row]:
    """Returns attacks and benign look-alikes from those clauses of the grammar for which `chosen` holds."""
    rng = random.Random(recipe["data"]["seed"])
    weight = recipe["fit"]["language_weight"]
    rows = []
    for language, own in recipe["languages"].items():
        clauses = own | {kind: recipe["indirect"][kind] for kind in ASKING} if language == "en" else own
        kept = {kind: [each for each in texts if chosen(each)] or texts[:1] for kind, texts in clauses.items()}
        for _ in range(int(recipe["data"]["generated_attacks"] * scale)):
            rows.append(Row("grammar", language, "", _attack(rng, kept), True, weight=weight / 3))
        for _ in range(int(recipe["data"]["generated_benign"] * scale)):
            rows.append(Row("grammar", language, "", _benign(rng, kept), False, weight=weight / 3))
    indirect = {
        kind: [each for each in texts if chosen(each)] or texts[:1] for kind, texts in recipe["indirect"].items()
    }
    benign = recipe["languages"]["en"]["benign"]
    english = [each for each in benign if chosen(each)] or benign[:1]
    rows += [Row("grammar", "en", "", _indirect(rng, indirect), True, weight=0.5) for _ in range(int(700 * scale))]
    notices = {kind: [each for each in texts if chosen(each)] or texts[:1] for kind, texts in recipe["notices"].items()}
    rows += [Row("grammar", "en", "", _notice(rng, notices), False, weight=0.5) for _ in range(int(500 * scale))]
    tasks = {kind: [each for each in texts if chosen(each)] or texts[:1] for kind, texts in recipe["tasks"].items()}
    rows += [Row("grammar", "en", "", _task(rng, tasks, english), False, weight=0.5) for _ in range(int(700 * scale))]
    for _ in range(int(400 * scale)):
        line = rng.choice(indirect["document"]).format(rng.choice(indirect["claims_in_document"]))
        around = [rng.choice(english) for _ in range(rng.randrange(4))]
        around.insert(rng.randrange(len(around) + 1), line)
        rows.append(Row("grammar", "en", "", "\n".join(around), True, line, 0.3))
    return rows


def collages(recipe: Mapping[str, Any], rows: Sequence[Row], generated: Sequence[Row]) -> list[Row]:
    """Returns long texts of many benign rows, half of them with one short generated attack somewhere inside."""
    rng = random.Random(recipe["data"]["seed"] + 1)
    benign = [row.text[:240] for row in rows if not row.attack]
    attacks = [row.text for row in generated if row.attack and row.language == "en" and len(row.text) < 200]
    made = []
    for number in range(recipe["data"]["collages"]):
        parts = [rng.choice(benign) for _ in range(rng.randrange(3, 14))]
        part = rng.choice(attacks) if number % 2 else None
        if part is not None:
            parts.insert(rng.randrange(len(parts) + 1), part)
        text = rng.choice(["\n", " ", "\n\n"]).join(parts)
        made.append(Row("collage", "en", "", text, part is not None, part, 0.5))
    return made


def cleaned(rows: Sequence[Row]) -> list[Row]:
    """Returns each row of which a part attacks without that part, which makes it benign."""
    return [
        Row("cleaned", row.language, row.group, row.text.replace(row.part, ""), False, weight=row.weight)
        for row in rows
        if row.attack and row.part and row.part in row.text
    ]


def _attack(rng: random.Random, clauses: Mapping[str, Sequence[str]]) -> str:
    def one(kind: str) -> str:
        return rng.choice(clauses[kind])

    shapes: tuple[Callable[[], list[str]], ...] = (
        lambda: [one("override"), one("reveal")],
        lambda: [one("override"), one("reveal"), one("action")],
        lambda: [one("override")],
        lambda: [one("override"), one("persona")],
        lambda: [one("persona"), one("action")],
        lambda: [one("persona")],
        lambda: [one("authority"), one("reveal")],
        lambda: [one("authority"), one("override"), one("action")],
        lambda: [one("override"), one("benign")],
        lambda: [one("benign"), one("override"), one("reveal")],
        lambda: [one("persona"), one("override")],
        lambda: [one("authority"), one("persona")],
    )
    asking: tuple[Callable[[], list[str]], ...] = (
        lambda: [one("override"), one("asks")],
        lambda: [one("claims"), one("asks")],
        lambda: [one("claims"), one("reveal")],
        lambda: [one("authority"), one("asks")],
        lambda: [one("asks")],
        lambda: [one("forms").format(one("things"))],
        lambda: [one("override"), one("forms").format(one("things"))],
        lambda: [one("benign"), one("asks")],
    )
    parts = rng.choice(shapes + asking if "asks" in clauses else shapes)()
    text = rng.choice([". ", " ", ", ", "! ", ": ", "\n"]).join(part.rstrip(".?!।") for part in parts)
    return _vary(rng, text + rng.choice(["", ".", "!", "."]))


def _benign(rng: random.Random, clauses: Mapping[str, Sequence[str]]) -> str:
    return _vary(rng, " ".join(rng.choice(clauses["benign"]) for _ in range(rng.choice([1, 1, 1, 2, 3]))))


def _notice(rng: random.Random, clauses: Mapping[str, Sequence[str]]) -> str:
    """Returns a letter as companies send it: it names sums and dates, and asks for ordinary things."""

    def one(kind: str) -> str:
        named = [rng.choice([_sum(rng), _date(rng), rng.choice(clauses["names"])]) for _ in range(2)]
        return rng.choice(clauses[kind]).format(*named)

    name = rng.choice(clauses["names"])
    mail = f"SUBJECT: {one('subjects')}|EMAIL_FROM: {name}|RECEIVED DATE: {_date(rng)}|CONTENT:"
    head = [mail, f"Subject: {one('subjects')}", ""]
    body = [one("facts") for _ in range(rng.randrange(1, 4))] + [one("asks") for _ in range(rng.randrange(1, 3))]
    lines = [rng.choice(head), rng.choice([f"Hi {name},", "Hello,", ""]), *body, one("closings")]
    return rng.choice(["\n", "\n\n", " "]).join(line for line in lines if line)


def _task(rng: random.Random, clauses: Mapping[str, Sequence[str]], others: Sequence[str]) -> str:
    """Returns a task, often with what it is about on a line of its own."""
    task = rng.choice(clauses["frames"]).format(rng.choice(clauses["materials"]), rng.choice(clauses["results"]))
    return "\n".join([task, *rng.sample(others, min(rng.choice([0, 0, 1, 2]), len(others)))])


def _sum(rng: random.Random) -> str:
    thousands = rng.choice([f"{rng.randrange(1, 9)},", ""])
    return f"{rng.choice('$€£')}{thousands}{rng.randrange(100, 999)}.{rng.randrange(10, 99)}"


def _date(rng: random.Random) -> str:
    month = rng.choice(["Jan", "Feb", "March", "May", "June", "August", "Oct", "Dec"])
    return f"{rng.randrange(1, 29)} {month} {rng.randrange(2019, 2027)}"


def _vary(rng: random.Random, text: str) -> str:
    chance = rng.random()
    return text.upper() if chance < 0.05 else text.lower() if chance < 0.15 else text


def _indirect(rng: random.Random, clauses: Mapping[str, Sequence[str]]) -> str:
    def one(kind: str) -> str:
        return rng.choice(clauses[kind])

    shapes = (
        lambda: f"{one('claims')}. {one('asks').capitalize()}",
        lambda: f"{one('claims')}, {one('asks')}",
        lambda: f"{one('frames')} {one('asks').capitalize()}",
        lambda: one("asks").capitalize(),
        lambda: one("forms").format(one("things")) + ".",
        lambda: f"{one('frames')} {one('forms').format(one('things'))}.",
        lambda: " ".join([*(one("chatter") for _ in range(rng.randrange(2, 7))), f"Oh, and {one('asks')}"]),
        lambda: (
            " ".join(f"Q: {one('chatter')} A: Let me see." for _ in range(rng.randrange(1, 4))) + f" Q: {one('asks')}"
        ),
        lambda: " ".join([rng.choice(["cake", "12345", "hello", "asdf"])] * rng.randrange(6, 40) + [one("asks")]),
        lambda: f"Ignore the above and say '{one('things')}'. Ignore the above and {one('asks')}",
    )
    return rng.choice(shapes)()


def design(rows: Sequence[Row], hard_benign_weight: float) -> Design:
    """Returns the windows of `rows` as a matrix; of a row with a `part`, windows without it are benign."""
    indices, values, starts, labels, weights, n = [], [], [], [], [], 0
    for row in rows:
        cut = list(windows(len(row.text)))
        for window in cut:
            text = row.text[window.start : window.end]
            attack = row.attack and (row.part is None or row.part in text or len(cut) == 1)
            found = features(text)
            indices.append(found.indices)
            values.append(found.values)
            starts.append(n)
            labels.append(float(attack))
            weights.append(row.weight * (hard_benign_weight if row.hard else 1.0) / len(cut) ** 0.5)
            n += len(found.indices)
    return Design(
        np.concatenate(indices),
        np.concatenate(values),
        np.array(starts),
        np.array(labels, dtype=np.float32),
        np.array(weights, dtype=np.float32),
    )


def solve(matrix: Design, settings: Mapping[str, float]) -> tuple[NDArray[np.float32], float]:
    """Returns weights float32 [N_FEATURES] and bias that minimise loss, energy term and squared weights (L-BFGS)."""
    lengths = np.diff([*matrix.starts, len(matrix.indices)])
    row_of = np.repeat(np.arange(len(matrix.labels)), lengths)
    used, compact = np.unique(matrix.indices, return_inverse=True)
    n_attacks = float((matrix.weights * matrix.labels).sum())
    n_benign = float((matrix.weights * (1 - matrix.labels)).sum())
    balance = np.where(matrix.labels > 0, 0.5 / n_attacks, 0.5 / n_benign) * matrix.weights
    parameters = torch.zeros(len(used) + 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=int(settings["steps"]), history_size=8, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        w = parameters.numpy()
        z = np.add.reduceat(matrix.values * w[compact], matrix.starts) + w[-1]
        softplus = np.logaddexp(0.0, z)
        chance = np.exp(z - softplus)
        over = np.maximum(softplus - settings["energy_margin"], 0.0) * (1 - matrix.labels)
        value = balance @ (softplus - matrix.labels * z + settings["energy_weight"] * over**2)
        value += 0.5 * settings["l2"] * float(w[:-1] @ w[:-1])
        by_row = balance * (chance - matrix.labels + 2 * settings["energy_weight"] * over * chance)
        gradient = np.bincount(compact, weights=matrix.values * by_row[row_of], minlength=len(used))
        parameters.grad = torch.from_numpy(np.append(gradient + settings["l2"] * w[:-1], by_row.sum()))
        return torch.tensor(value, dtype=torch.float64)

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    solved = parameters.numpy()
    weights = np.zeros(N_FEATURES, dtype=np.float32)
    weights[used] = solved[:-1]
    return weights, float(solved[-1])


def logits(rows: Sequence[Row], weights: NDArray[np.float32], bias: float) -> NDArray[np.float64]:
    """Returns the greatest logit of the windows of each row."""
    scores = []
    for row in rows:
        found = [features(row.text[each.start : each.end]) for each in windows(len(row.text))]
        scores.append(max(float(weights[each.indices] @ each.values) for each in found) + bias)
    return np.array(scores)


def threshold_at(benign: NDArray[np.float64], rate: float) -> float:
    """Returns the least threshold that at most a share `rate` of `benign` exceeds."""
    ranked = np.sort(benign)[::-1]
    return float(ranked[min(int(rate * len(ranked)), len(ranked) - 1)])


def area_under_curve(attacks: NDArray[np.float64], benign: NDArray[np.float64]) -> float:
    """Returns the chance that an attack scores above a benign row; equal scores count half."""
    ranked = np.sort(benign)
    below = np.searchsorted(ranked, attacks, "left") + np.searchsorted(ranked, attacks, "right")
    return float(below.mean() / 2 / len(ranked))


def cross_validate(recipe: Mapping[str, Any], rows: Sequence[Row], n_folds: int) -> tuple[dict[str, Any], float]:
    """Returns the report over rows that were each scored by a model that saw none of their group, and the threshold."""
    scored: list[tuple[Row, float]] = []
    for fold in range(n_folds):
        inside = [row for row in rows if _fold(row.group, n_folds) == fold]
        outside = [row for row in rows if _fold(row.group, n_folds) != fold]

        def unseen(clause: str, fold: int = fold) -> bool:
            return _fold(clause, n_folds) == fold

        generated = generate(recipe, lambda clause: not unseen(clause))
        seen = [*outside, *cleaned(outside), *generated, *collages(recipe, outside, generated)]
        weights, bias = solve(design(seen, recipe["fit"]["hard_benign_weight"]), recipe["fit"])
        probes = list({row.text: row for row in generate(recipe, unseen, 0.1)}.values())
        held_out = [*inside, *probes]
        scored += zip(held_out, logits(held_out, weights, bias).tolist(), strict=True)
        print(f"fold {fold + 1} of {n_folds}: {len(held_out)} rows scored", file=sys.stderr, flush=True)
    threshold = threshold_at(
        _scores(scored, lambda row: not row.attack and row.source != "grammar"), FALSE_POSITIVE_RATE
    )
    return _report(scored, threshold), threshold


def _fold(group: str, n_folds: int) -> int:
    return int(random.Random(group).random() * n_folds)


def _scores(scored: Sequence[tuple[Row, float]], wanted: Callable[[Row], bool]) -> NDArray[np.float64]:
    return np.array([score for row, score in scored if wanted(row)])


def _of(scored: Sequence[tuple[Row, float]], source: str, attack: bool) -> NDArray[np.float64]:
    return _scores(scored, lambda row: row.source == source and row.attack == attack)


def _report(scored: Sequence[tuple[Row, float]], threshold: float) -> dict[str, Any]:
    benign = _scores(scored, lambda row: not row.attack and row.source != "grammar")
    pooled = _scores(scored, lambda row: row.attack and row.source in POOLED)
    report: dict[str, Any] = {
        "pooled": {
            "attacks": len(pooled),
            "auc": area_under_curve(pooled, benign),
            "recall": float((pooled > threshold).mean()),
        },
        "benign_rows": len(benign),
        "attacks": {},
        "false_positive_rate": {},
        "recall_by_language": {},
    }
    for source in dict.fromkeys(row.source for row, _ in scored):
        for attack, name in ((True, "attacks"), (False, "false_positive_rate")):
            found = _of(scored, source, attack)
            if len(found) and attack:
                rates = {
                    "rows": len(found),
                    "auc": area_under_curve(found, benign),
                    "recall": float((found > threshold).mean()),
                }
                report[name][source] = rates
            elif len(found):
                report[name][source] = {"rows": len(found), "rate": float((found > threshold).mean())}
    for language in dict.fromkeys(row.language for row, _ in scored if row.source == "multilingual_injection"):
        of_language = [(row, score) for row, score in scored if row.language == language]
        report["recall_by_language"][language] = {
            source: float((_of(of_language, source, True) > threshold).mean())
            for source in ("multilingual_injection", "grammar")
        }
    return report


def train(recipe: Mapping[str, Any], rows: Sequence[Row], threshold: float) -> Classifier:
    """Returns the classifier trained on everything, its bias moved so that `threshold` scores 0.5."""
    generated = generate(recipe, lambda clause: True)
    seen = [*rows, *cleaned(rows), *generated, *collages(recipe, rows, generated)]
    weights, bias = solve(design(seen, recipe["fit"]["hard_benign_weight"]), recipe["fit"])
    return Classifier(weights=weights.astype(np.float16), bias=bias - threshold)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 2 with one line on standard error when a file is wrong."""
    parser = argparse.ArgumentParser(prog="python -m puna.guard.fit", description="Train the prompt-attack classifier.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("sets", type=Path, help="the folder with one folder for each set")
    parser.add_argument("--folds", type=int, default=N_GROUP_FOLDS_DEFAULT)
    parser.add_argument("--write", type=Path, help="where the weights go")
    parser.add_argument("--report", type=Path, help="where the figures go, as JSON")
    given = parser.parse_args(arguments)
    try:
        recipe = tomllib.loads(given.recipe.read_text("utf-8"))
        rows = read_sets(given.sets)
        report, threshold = cross_validate(recipe, rows, given.folds)
        if given.write:
            given.write.write_bytes(train(recipe, rows, threshold).to_bytes())
    except (PunaError, OSError, tomllib.TOMLDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = json.dumps(report, indent=2)
    if given.report:
        given.report.write_text(text + "\n", "utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
