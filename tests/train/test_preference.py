"""The better answer becomes more probable than the worse one, by comparison with what the base gives them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.model.transformer import Llama
from puna.prompt.tokenizer import Tokenizer
from puna.train.chat_store import Choices, store_chats
from puna.train.next_token import NextToken
from puna.train.pack import Batch, Packer
from puna.train.preference import REFERENCE, Pairs, begin, measured
from puna.train.recipe import LossRecipe
from puna.train.store import Store
from puna.train.tune_recipe import PreferenceRecipe, from_dict
from puna.train.workbench import open_bench
from puna.weights.checkpoint import load
from tests.train.chat_lines import CHATS, PAIRS, write_lines

ROUTER = LossRecipe(balance=0.0, chunk=16)


@pytest.fixture
def store(tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path) -> Store:
    files = [write_lines(tmp_path / "pairs.jsonl", PAIRS)]
    tokenizer, vision = Tokenizer.load(tiny), tiny_model_config.vision
    choices = Choices(longest=120)
    return store_chats(
        files, tmp_path / "store", tokenizer, tiny / "tokenizer.json", vision, choices, lambda line: None
    )


def packed(store: Store, config: LlamaConfig, rows: int) -> Packer:
    return Packer(store, config, rows=rows, row_len=120, tiles=0, window=8, seed=1, passes={}, together=2)


def trainable(tiny: Path) -> Llama:
    return load(tiny, dtype=torch.float32).requires_grad_(True)


def test_answers_of_a_pair_share_a_row_and_see_nothing_of_each_other(
    store: Store, tiny: Path, tiny_model_config: LlamaConfig
) -> None:
    packer = packed(store, tiny_model_config, rows=4)
    (batch, *_) = packer.once()
    assert [len(row) for row in batch.pieces] == [1, 1, 1, 1] or max(len(row) for row in batch.pieces) > 1
    assert packer.names(batch)[0] == "pair0 chosen"
    known = measured(trainable(tiny), packer, 16, "cpu", lambda line: None)
    model = trainable(tiny)
    alone = Packer(store, tiny_model_config, rows=1, row_len=120, tiles=0, window=1, seed=1, passes={})
    loss = NextToken(model, balance=0.0, z=0.0, chunk=16)
    sums = [-float(loss.token_losses(each).sum()) for each in alone.once()]
    np.testing.assert_allclose(known, sums, rtol=1e-5)


def test_at_the_base_every_pair_costs_log_two(store: Store, tiny: Path, tiny_model_config: LlamaConfig) -> None:
    packer, model = packed(store, tiny_model_config, rows=2), trainable(tiny)
    known = measured(model, packer, 16, "cpu", lambda line: None)
    batch: Batch = next(packer.once())
    loss = Pairs(model, packer, known, PreferenceRecipe(), ROUTER)
    found = loss(batch, loss.total(batch))
    assert found.total.item() == pytest.approx(math.log(2), abs=1e-6)
    assert found.metrics["margin"].item() == pytest.approx(0.0, abs=1e-5)


def test_the_own_loss_of_the_better_answer_is_added_and_batches_add_up(
    store: Store, tiny: Path, tiny_model_config: LlamaConfig
) -> None:
    packer, model = packed(store, tiny_model_config, rows=2), trainable(tiny)
    known = measured(model, packer, 16, "cpu", lambda line: None)
    plain, with_own = (Pairs(model, packer, known, PreferenceRecipe(nll=nll), ROUTER) for nll in (0.0, 0.5))
    batches = list(packer.once())
    total = torch.stack([plain.total(batch) for batch in batches]).sum()
    assert float(total) == len(PAIRS)
    added = sum(with_own(batch, total).total.item() - plain(batch, total).total.item() for batch in batches)
    lengths = np.add.reduceat(np.asarray(store.weights, dtype=np.float64), store.offsets[:-1])
    assert added == pytest.approx(0.5 * float((-known / lengths)[::2].mean()), rel=1e-5)


def test_what_the_base_gives_is_measured_once_and_damage_is_found(tiny: Path, tmp_path: Path) -> None:
    tables = {
        "model": {"base": str(tiny)},
        "data": {"chats": str(write_lines(tmp_path / "pairs.jsonl", PAIRS)), "store": str(tmp_path / "store")},
        "objective": {"kind": "preference"},
        "batch": {"rows": 2, "row_len": 120, "tiles": 0, "window": 8},
        "optimizer": dict.fromkeys(("lr", "weight_decay", "momentum", "beta1", "beta2", "eps", "clip_norm"), 0.1),
        "schedule": {"steps": 4, "warmup_steps": 0, "decay_steps": 0, "final_fraction": 0.0},
        "compute": {"dtype": "float32", "compile": False, "threads": 1},
    }
    said: list[str] = []
    bench = open_bench(from_dict(tables), tmp_path, said.append)
    begin(bench)
    n_said = len(said)
    begin(bench)
    assert len(said) == n_said, "the second time it is read"
    file = tmp_path / REFERENCE
    content = bytearray(file.read_bytes())
    content[content.index(b"known.npy") + 200] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"reference\.npz: is damaged"):
        begin(bench)
    tables["data"] |= {"chats": str(write_lines(tmp_path / "chats.jsonl", CHATS))}  # type: ignore[operator]
    with pytest.raises(ConfigError, match="these are no preferences"):
        begin(open_bench(from_dict(tables), tmp_path, said.append))
