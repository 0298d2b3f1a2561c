"""Supervised tuning and DPO give TRL's losses and gradients, to rounding, where both compute the same thing; and where
they do not, the difference is shown.

The comparison runs in an environment of its own (`referees`), in float32, on a model with every kind of layer.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puna.model.transformer import Llama
from puna.prompt.tokenizer import Tokenizer
from puna.train.next_token import NextToken
from puna.train.pack import Batch, Packer
from puna.train.preference import Pairs, measured
from puna.train.recipe import LossRecipe
from puna.train.store import Encoded, Store, Writer, open_store
from puna.train.tune_recipe import PreferenceRecipe
from puna.weights.checkpoint import load, save_hf
from tests.reference.referees import ask
from tests.reference.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.slow

CHUNK = LossRecipe(balance=0.0, chunk=16)
Item = tuple[list[int], list[int]]  # ids, and which of them are learnt


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model whose chunks, 8 tokens, are shorter than the texts."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vision=False)


def item(seed: int, prompt: int, answer: int) -> Item:
    ids = np.random.default_rng(seed).integers(0, 250, prompt + answer).tolist()
    return ids, [0] * prompt + [1] * answer


def stored(items: list[Item], tiny: Path, folder: Path) -> Store:
    folder.mkdir()
    writer = Writer(folder, Tokenizer.load(tiny), None, lambda name: np.zeros(0, dtype=np.uint8))
    for number, (ids, weights) in enumerate(items):
        writer.add(Encoded(ids, weights, []), name=str(number), source="")
    writer.close("digest")
    return open_store(folder)


def packed(store: Store, model: Llama, together: int = 1) -> tuple[Packer, Batch]:
    packer = Packer(store, model.config, rows=2, row_len=64, tiles=0, window=16, seed=0, passes={}, together=together)
    (batch,) = packer.once()
    return packer, batch


def trainable(folder: Path) -> Llama:
    return load(folder, dtype=torch.float32).requires_grad_(True)


def largest_difference(model: Llama, gradients: Path) -> float:
    """Returns the largest difference between a gradient of ours and TRL's, of which the largest exceed 0.01."""
    theirs = dict(load(gradients).named_parameters())
    assert max(float(each.abs().max()) for each in theirs.values()) > 0.01
    owns = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return max(float((own - theirs[name]).abs().max()) for name, own in owns.items())


def test_supervised_loss_and_gradients_are_those_of_trl(tiny: Path, tmp_path: Path) -> None:
    items = [item(1, 9, 12), item(2, 5, 20), item(3, 14, 3)]
    model = trainable(tiny)
    _, batch = packed(stored(items, tiny, tmp_path / "store"), model)
    loss = NextToken(model, balance=0.0, z=0.0, chunk=16)
    own = loss(batch, loss.total(batch))
    own.total.backward()  # type: ignore[no-untyped-call]
    asked = [{"input_ids": ids, "labels": labels(ids, learnt)} for ids, learnt in items]
    theirs = ask(
        "trl_tuning", kind="supervised", model=str(tiny), items=asked, packed=False, out=str(tmp_path / "gradients")
    )
    assert own.total.item() == pytest.approx(theirs["loss"], abs=1e-5)
    assert largest_difference(model, tmp_path / "gradients") < 1e-5


def test_packed_rows_of_trl_count_chunks_from_the_row_and_ours_from_each_document(tiny: Path, tmp_path: Path) -> None:
    items = [item(1, 9, 12), item(2, 5, 20), item(3, 14, 3)]  # 21 tokens: the second begins amid a chunk of the row
    asked = [{"input_ids": ids, "labels": labels(ids, learnt)} for ids, learnt in items]
    alone, together = (
        ask("trl_tuning", kind="supervised", model=str(tiny), items=asked, packed=p, out=str(tmp_path / str(p)))["loss"]
        for p in (False, True)
    )
    model = trainable(tiny)
    _, batch = packed(stored(items, tiny, tmp_path / "store"), model)
    loss = NextToken(model, balance=0.0, z=0.0, chunk=16)
    own = loss(batch, loss.total(batch)).total.item()
    assert own == pytest.approx(alone, abs=1e-5)
    assert abs(together - alone) > 1e-3


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        (PreferenceRecipe(beta=0.3), {"loss_type": ["sigmoid"]}),
        (PreferenceRecipe(beta=0.3, normalise=True), {"loss_type": ["sigmoid_norm"]}),
    ],
    ids=["sums", "means"],
)
def test_dpo_loss_and_gradients_are_those_of_trl(
    tiny: Path, tmp_path: Path, options: PreferenceRecipe, theirs: dict[str, Any]
) -> None:
    prompts = [item(1, 9, 0)[0], item(2, 12, 0)[0]]
    answers = [(item(3, 0, 6)[0], item(4, 0, 11)[0]), (item(5, 0, 9)[0], item(6, 0, 2)[0])]
    base = trainable(tiny)
    model = trainable(tiny)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            parameter += 0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    save_hf(model, model.config, tmp_path / "moved")
    items = [
        ([*prompt, *answer], [0] * len(prompt) + [1] * len(answer))
        for prompt, pair in zip(prompts, answers, strict=True)
        for answer in pair
    ]
    packer, batch = packed(stored(items, tiny, tmp_path / "store"), model, together=2)
    known = measured(base, packer, 16, "cpu", lambda line: None)
    loss = Pairs(model, packer, known, options, CHUNK)
    own = loss(batch, loss.total(batch))
    own.total.backward()  # type: ignore[no-untyped-call]
    asked = [
        {"prompt_ids": prompt, "chosen_ids": better, "rejected_ids": worse}
        for prompt, (better, worse) in zip(prompts, answers, strict=True)
    ]
    answer = ask(
        "trl_tuning",
        kind="preference",
        model=str(tmp_path / "moved"),
        reference=str(tiny),
        items=asked,
        beta=options.beta,
        options=theirs,
        out=str(tmp_path / "gradients"),
    )
    assert own.total.item() == pytest.approx(answer["loss"], abs=1e-5)
    assert largest_difference(model, tmp_path / "gradients") < 1e-5


def labels(ids: list[int], learnt: list[int]) -> list[int]:
    return [each if is_learnt else -100 for each, is_learnt in zip(ids, learnt, strict=True)]
