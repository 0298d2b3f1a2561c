"""A student learns what a teacher thinks of every continuation: read along, or written down."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.model.transformer import Llama, initialise
from puna.prompt.tokenizer import Tokenizer
from puna.train import difficulty, forward
from puna.train.chat_store import Choices, store_chats
from puna.train.distill import TAUGHT, Distilled, Kept, Present, begin, write_down
from puna.train.optim import Optimizer
from puna.train.pack import Packer
from puna.train.recipe import LossRecipe, OptimizerRecipe
from puna.train.store import Store
from puna.train.supervised import Supervised
from puna.train.tune_recipe import DistillRecipe, from_dict
from puna.train.workbench import open_bench
from puna.weights.checkpoint import load, save_hf
from tests.train.chat_lines import CHATS, write_lines
from tests.train.runs import silent

ROUTER = LossRecipe(balance=0.0, chunk=16)
OPTIMIZER = OptimizerRecipe(lr=0.01, weight_decay=0.0, momentum=0.95, beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=1.0)


def stored(lines: list[dict[str, Any]], tiny: Path, config: LlamaConfig, folder: Path) -> Store:
    files = [write_lines(folder / "chats.jsonl", lines)]
    tokenizer, choices = Tokenizer.load(tiny), Choices(longest=120)
    return store_chats(files, folder / "store", tokenizer, tiny / "tokenizer.json", config.vision, choices, silent)


def packed(store: Store, config: LlamaConfig, rows: int) -> Packer:
    return Packer(store, config, rows=rows, row_len=120, tiles=0, window=8, seed=1, passes={})


@pytest.fixture
def packer(tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path) -> Packer:
    return packed(stored(CHATS, tiny, tiny_model_config, tmp_path), tiny_model_config, rows=2)


def another(config: LlamaConfig, seed: int) -> Llama:
    model = Llama(config).float()
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def written(teacher: Llama, packer: Packer, options: DistillRecipe, folder: Path) -> Kept:
    write_down(teacher, packer, options, folder, 16, "cpu", silent)
    return Kept(folder, packer)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_divergence_of_both_models(
    packer: Packer, tiny: Path, tiny_model_config: LlamaConfig, temperature: float
) -> None:
    student, teacher = load(tiny, dtype=torch.float32).requires_grad_(True), another(tiny_model_config, 3)
    options = DistillRecipe(teacher="t", temperature=temperature, soft=0.7, soft_last=0.7)
    loss = Distilled(student, Present(teacher, temperature), options, ROUTER, 4)
    (batch, *_) = packer.once()
    learnt = batch.weights.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        ours, theirs = (m.logits(forward.hidden(m, batch).states[learnt]) for m in (student, teacher))
    soft = F.kl_div(
        (ours / temperature).log_softmax(-1), (theirs / temperature).log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    hard = F.cross_entropy(ours, batch.targets.flatten()[learnt], reduction="none")
    wanted = (0.7 * temperature**2 * soft + 0.3 * hard).sum()
    assert loss(batch, torch.tensor(1.0)).total.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_all_successors_written_down_teach_as_the_teacher_itself(
    packer: Packer, tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path
) -> None:
    student, teacher = load(tiny, dtype=torch.float32).requires_grad_(True), another(tiny_model_config, 3)
    options = DistillRecipe(teacher="t", top_k=tiny_model_config.text.vocab_size)
    kept = written(teacher, packer, options, tmp_path / "teacher")
    gradients = []
    for each in (Present(teacher, 1.0), kept):
        student.zero_grad()
        loss = Distilled(student, each, options, ROUTER, 4)
        for batch in packer.once():
            loss(batch, torch.tensor(10.0)).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    # Kept log-probabilities are float16: 11 bits.
    assert (gradients[0] - gradients[1]).norm() < 2e-3 * gradients[0].norm()


def test_a_few_successors_bound_the_divergence_from_below(
    packer: Packer, tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path
) -> None:
    student, teacher = load(tiny, dtype=torch.float32), another(tiny_model_config, 3)
    found = []
    for k in (1, 8, 64):
        options = DistillRecipe(teacher="t", top_k=k)
        kept = written(teacher, packer, options, tmp_path / f"teacher{k}")
        loss = Distilled(student, kept, options, ROUTER, 4)
        found.append(sum(loss(batch, torch.tensor(1.0)).total.item() for batch in packer.once()))
    present = Distilled(student, Present(teacher, 1.0), DistillRecipe(teacher="t"), ROUTER, 4)
    whole = sum(present(batch, torch.tensor(1.0)).total.item() for batch in packer.once())
    assert 0 < found[0] < found[1] < found[2] < whole


def test_the_weight_of_the_opinion_moves_along_the_run_and_is_remembered(
    packer: Packer, tiny: Path, tiny_model_config: LlamaConfig
) -> None:
    student, teacher = load(tiny, dtype=torch.float32), another(tiny_model_config, 3)
    options = DistillRecipe(teacher="t", soft=1.0, soft_last=0.0)
    loss = Distilled(student, Present(teacher, 1.0), options, ROUTER, n_batches=2)
    (batch, *_) = packer.once()
    parts = [loss(batch, torch.tensor(1.0)) for _ in range(3)]
    soft, hard = float(parts[0].metrics["divergence"]), float(parts[0].nll * parts[0].weight)
    assert [part.total.item() for part in parts] == pytest.approx([soft, (soft + hard) / 2, hard], rel=1e-5)
    assert int(loss.tensors()["seen"]) == 3


def recipe_of(tiny: Path, folder: Path, teacher: Path, **distill: Any) -> dict[str, Any]:
    return {
        "model": {"base": str(tiny)},
        "data": {"chats": [str(write_lines(folder / "chats.jsonl", CHATS))], "store": str(folder / "stores")},
        "batch": {"rows": 2, "row_len": 120, "tiles": 0, "window": 8},
        "objective": {"kind": "distill"},
        "distill": {"teacher": str(teacher), **distill},
        "optimizer": {name: getattr(OPTIMIZER, name) for name in ("lr", "weight_decay", "momentum", "clip_norm")}
        | {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8},
        "schedule": {"steps": 3, "warmup_steps": 1, "decay_steps": 1, "final_fraction": 0.1},
        "compute": {"dtype": "float32", "compile": False, "threads": 1},
        "loss": {"balance": 0.0, "chunk": 64},
    }


def test_a_teacher_is_asked_once_and_a_damaged_answer_is_named(
    tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path
) -> None:
    said: list[str] = []
    recipe = from_dict(recipe_of(tiny, tmp_path, tiny, top_k=4))
    for _ in range(2):
        begin(open_bench(recipe, tmp_path, said.append))
    assert sum(line.startswith("teacher:") for line in said) == 1 + sum("batch 2" in line for line in said)
    file = tmp_path / TAUGHT / "logs.npy"
    file.write_bytes(file.read_bytes()[:-2] + b"\0\0")
    with pytest.raises(WeightsError, match=r"teacher: is damaged .* remove it"):
        begin(open_bench(recipe, tmp_path, silent))


def test_a_teacher_of_another_vocabulary_is_refused(tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path) -> None:
    other = tmp_path / "other"
    text = replace(tiny_model_config.text, vocab_size=tiny_model_config.text.vocab_size + 8)
    config = replace(tiny_model_config, text=text)
    save_hf(another(config, 1), config, other)
    with pytest.raises(ConfigError, match=r"distill.teacher: .* tokens and the student"):
        begin(open_bench(from_dict(recipe_of(tiny, tmp_path, other)), tmp_path, silent))


def test_a_recipe_without_a_teacher_is_refused(tiny: Path, tmp_path: Path) -> None:
    tables = recipe_of(tiny, tmp_path, tiny)
    tables["distill"] = {}
    with pytest.raises(ConfigError, match=r"distill.teacher"):
        from_dict(tables)
    assert json.dumps(tables)  # nothing else was wrong


def tales(n: int, seed: int) -> list[dict[str, Any]]:
    """Words of a chain in which each is followed by one of three, by chance: much to learn, and few examples of it."""
    words = [a + b for a in "bdgklmnprst" for b in "aeiou"]
    follow = random.Random(1)
    after = {word: follow.sample(words, 3) for word in words}
    draw = random.Random(seed)
    lines = []
    for number in range(n):
        told = [draw.choice(words)]
        while len(told) < 24:
            told.append(draw.choices(after[told[-1]], (6, 3, 1))[0])
        ask, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": " ".join(told)}
        lines.append({"id": f"tale{number}", "source": "tales", "messages": [ask, answer]})
    return lines


@pytest.mark.slow
def test_a_taught_student_beats_one_that_learns_the_same_tokens_alone(
    tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path
) -> None:
    small = tiny_model_config
    wide = replace(small, text=replace(small.text, width=2 * small.text.width, n_heads=2 * small.text.n_heads))

    def bits_per_byte(model: Llama) -> float:
        found = difficulty.scores(model, unseen, 64, "cpu", silent)
        n_bytes = sum(len(line["messages"][1]["content"]) for line in tales(60, 4))
        return float(found.nats.sum() / np.log(2) / n_bytes)

    def best(model: Llama, exercise: Any, packer: Packer, steps: int) -> float:
        """Trains, and returns the best that the model reached on unseen tales: none loses by going on too long."""
        optimizer = Optimizer(model.requires_grad_(True).named_parameters(), OPTIMIZER)
        batches, reached = list(packer.once()), []
        for step in range(steps):
            batch = batches[step % len(batches)]
            exercise(batch, exercise.total(batch)).total.backward()
            optimizer.step(1.0)
            if step % 20 == 19:
                reached.append(bits_per_byte(model))
        return min(reached)

    (tmp_path / "many").mkdir(), (tmp_path / "few").mkdir(), (tmp_path / "held_out").mkdir()
    many = packed(stored(tales(600, 2), tiny, small, tmp_path / "many"), small, rows=8)
    few = packed(stored(tales(40, 3), tiny, small, tmp_path / "few"), small, rows=8)
    unseen = packed(stored(tales(60, 4), tiny, small, tmp_path / "held_out"), small, rows=8)
    teacher, alone, student = another(wide, 1), another(small, 2), another(small, 2)
    found = {"teacher": best(teacher, Supervised(teacher, ROUTER, recompute=False), many, 300)}
    teacher.requires_grad_(False)
    found["alone"] = best(alone, Supervised(alone, ROUTER, recompute=False), few, 200)
    distilled = Distilled(student, Present(teacher, 1.0), DistillRecipe(teacher="t"), ROUTER, 200)
    found["student"] = best(student, distilled, few, 200)
    print(found)
    assert found["student"] < found["alone"] - 0.1
