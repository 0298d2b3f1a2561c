"""Does reinforcement teach cria to count? Three seeds from one supervised start, and the start taught on, side by side.

    python bench/grpo.py LESSONS OUT [--base cria] [--rounds 200] [--seeds 1,2,3] [--plot FILE.svg] [--json FILE]

LESSONS is the folder that `scripts/corpus` makes. Of it are taken the questions whose answer is a number of figures or
of pictures. OUT gets the runs:

    start    a short supervised run, ended long before it stops getting better: 14 steps of 64 lessons
    grpo-S   `rounds` rounds of 16 tasks with 8 replies each, learnt from once, for each seed S
    taught   what as many lessons do that show the right reply, as the rounds have tasks: what could be had

The reward is 1 for the right number and an ended turn, on held-out tasks by their most probable replies every ten
rounds, and by eight random ones before and after. Stopped, it goes on where it was. One thread.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from puna.prompt.render import Renderer
from puna.prompt.tokenizer import Tokenizer
from puna.train import tune_recipe
from puna.train.rollout import Wish, read_tasks, roll
from puna.train.tune import tune
from puna.weights.checkpoint import load, open_config

SOURCES = ("counting", "scene", "several pictures")
LESSONS_A_STEP, TASKS_A_ROUND = 64, 16
SETTLED: dict[str, dict[str, Any]] = {
    "optimizer": {
        "lr": 5e-4, "embedding_lr_scale": 1.0, "head_lr_scale": 1.0, "router_lr_scale": 0.1,
        "weight_decay": 0.0, "momentum": 0.9, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "clip_norm": 1.0,
    },
    "compute": {"dtype": "float32", "compile": False, "threads": 1},
    "drift": {"batches": 0},
}  # fmt: skip


class Line(NamedTuple):
    """A curve: rewards by round, and how it is drawn."""

    name: str
    points: Sequence[tuple[int, float]]
    style: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", default="cria")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(each) for each in chosen.seeds.split(",")]
    files = {name: chosen.lessons / f"{name}.jsonl" for name in ("lessons", "tasks", "lessons_held_out")}
    counted = {name: of_counting(file) for name, file in files.items()}
    out: Path = chosen.out
    start, taught = out / "start", out / "taught"
    supervised(chosen.base, counted["lessons"], start, steps=14, lr=1e-3)
    for seed in seeds:
        reinforced(start / "model", counted, out / f"grpo-{seed}", chosen.rounds, seed)
    supervised(
        start / "model", counted["lessons"], taught, steps=chosen.rounds * TASKS_A_ROUND // LESSONS_A_STEP, lr=5e-4
    )
    runs = {"start": start, **{f"seed {seed}": out / f"grpo-{seed}" for seed in seeds}, "taught": taught}
    found = {name: dict(greedy_and_drawn(run / "model", counted["lessons_held_out"])) for name, run in runs.items()}
    for name, rewards in found.items():
        print(f"{name:10}" + "".join(f"  {key} {value:.3f}" for key, value in rewards.items()))
    curves = {f"seed {seed}": curve(out / f"grpo-{seed}") for seed in seeds}
    if chosen.json:
        chosen.json.write_text(json.dumps({"rewards": found, "curves": curves}, indent=1) + "\n", "utf-8")
    if chosen.plot:
        lines = [Line(name, points, "stroke-width='2'") for name, points in curves.items()]
        level = [(0, found["taught"]["greedy"]), (chosen.rounds, found["taught"]["greedy"])]
        chosen.plot.write_text(
            svg([*lines, Line("taught on", level, "stroke-width='2' stroke-dasharray='6 5'")]), "utf-8"
        )


def of_counting(file: Path) -> Path:
    """Returns a file beside `file`, so that pictures are found, with those of its lines that ask for a count."""
    target = file.with_name(f"counting_{file.name}")
    if not target.is_file():
        lines = [line for line in file.read_text("utf-8").splitlines() if is_counting(json.loads(line))]
        target.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return target


def is_counting(lesson: Mapping[str, Any]) -> bool:
    return lesson["source"] in SOURCES and lesson["answer"]["kind"] == "number"


def supervised(base: str | Path, lessons: Path, run: Path, *, steps: int, lr: float) -> None:
    """Teaches lessons with their replies."""
    tables: dict[str, Any] = {
        **SETTLED,
        "model": {"base": str(base)},
        "data": {"chats": [str(lessons)], "store": str(run.parent / "store")},
        "objective": {"kind": "supervised"},
        "batch": {"rows": 8, "row_len": 512, "tiles": 96, "window": 512},
        "schedule": {
            "steps": steps,
            "warmup_steps": min(3, steps - 1),
            "decay_steps": max(steps // 4, 1),
            "final_fraction": 0.0,
        },
        "loss": {"balance": 0.02, "chunk": 1024},
    }
    tables["optimizer"] = SETTLED["optimizer"] | {"lr": lr}
    carry_out(tables, run)


def reinforced(base: Path, files: Mapping[str, Path], run: Path, rounds: int, seed: int) -> None:
    """Learns from replies of its own."""
    tables: dict[str, Any] = {
        **SETTLED,
        "model": {"base": str(base)},
        "data": {"chats": [str(files["tasks"])], "store": str(run.parent / "store"), "seed": seed},
        "objective": {"kind": "reinforce"},
        "reinforce": {"prompts": TASKS_A_ROUND, "samples": 8, "updates": 1, "max_new_tokens": 4, "look_every": 10},
        "batch": {"rows": 16, "row_len": 128, "tiles": 96, "window": 512},
        "schedule": {"steps": rounds, "warmup_steps": 3, "decay_steps": max(rounds // 4, 1), "final_fraction": 0.1},
        "loss": {"balance": 0.0, "chunk": 1024},
    }
    tables["data"]["held_out"] = str(files["lessons_held_out"])
    carry_out(tables, run)


def carry_out(tables: Mapping[str, Any], run: Path) -> None:
    """Tunes to the end; a run whose model is there has ended. Exits where it was paused."""
    if (run / "model" / "config.json").is_file():
        return
    if not tune(
        tune_recipe.from_dict(tables), run, lambda line: print(f"{run.name}: {line}", file=sys.stderr)
    ).finished:
        sys.exit(f"{run}: paused; the same command goes on")


def greedy_and_drawn(folder: Path, held_out: Path) -> Iterator[tuple[str, float]]:
    """Yields rewards by name: of the most probable replies, whole and by source, and of eight random ones."""
    config, tokenizer = open_config(folder), Tokenizer.load(folder)
    model = load(folder, dtype=torch.float32)
    tasks = dict(enumerate(read_tasks((str(held_out),), Renderer(tokenizer, config.vision), "pythonic")))
    by_source: dict[str, list[float]] = defaultdict(list)
    for sample in roll(model, tasks, tokenizer, Wish(1, 4, 0, temperature=0.0)):
        for name in ("greedy", tasks[sample.task].source):
            by_source[name].append(sample.reward)
    by_source["drawn"] = [sample.reward for sample in roll(model, tasks, tokenizer, Wish(8, 4, 0))]
    yield from ((name, sum(rewards) / len(rewards)) for name, rewards in by_source.items())


def curve(run: Path) -> list[tuple[int, float]]:
    """Returns the held-out reward of a run by round."""
    lines = [json.loads(line) for line in (run / "rewards.jsonl").read_text("utf-8").splitlines()]
    return [(line["step"], line["reward"]) for line in lines]


def svg(lines: Sequence[Line]) -> str:
    """Returns a picture of curves, with axes in rounds and per cent."""
    wide, high, left, top = 560, 250, 50, 20
    last = max(x for line in lines for x, _ in line.points)
    values = [y for line in lines for _, y in line.points]
    low, most = int(min(values) * 20) / 20, int(max(values) * 20 + 1) / 20
    colours = ("#2563eb", "#d97706", "#059669", "#6b7280")

    def place(x: float, y: float) -> str:
        return f"{left + x / last * wide:.1f},{top + (most - y) / (most - low) * high:.1f}"

    frame = f"viewBox='0 0 {left + wide + 110} {top + high + 50}' font-family='sans-serif' font-size='12'"
    parts = [f"<svg xmlns='http://www.w3.org/2000/svg' {frame} fill='#6b7280'>"]
    for i in range(round((most - low) / 0.05) + 1):
        y = low + 0.05 * i
        x, at = place(0, y).split(",")
        parts.append(f"<path d='M{x} {at}h{wide}' stroke='#9ca3af' stroke-opacity='.4'/>")
        parts.append(f"<text x='{left - 8}' y='{float(at) + 4:.1f}' text-anchor='end'>{100 * y:.0f} %</text>")
    for i in range(5):
        x, _ = place(last * i / 4, low).split(",")
        parts.append(f"<text x='{x}' y='{top + high + 18}' text-anchor='middle'>{last * i // 4}</text>")
    parts.append(f"<text x='{left + wide / 2}' y='{top + high + 40}' text-anchor='middle'>rounds</text>")
    for number, (line, colour) in enumerate(zip(lines, colours, strict=False)):
        points = " ".join(place(x, y) for x, y in line.points)
        parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}' {line.style}/>")
        parts.append(f"<text x='{left + wide + 10}' y='{top + 20 + 20 * number}' fill='{colour}'>{line.name}</text>")
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    main()
