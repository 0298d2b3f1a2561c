"""A guard pruned from a mixture is that mixture with silent experts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puna.errors import ConfigError
from puna.guard.prune import prune, without_experts
from puna.weights import checkpoint
from tests.reference.tiny import random_ids, random_model, read_whole, tiny_config


def test_pruned_guard_keeps_the_shared_expert_and_nothing_of_the_others(tmp_path: Path) -> None:
    config = tiny_config()
    config = replace(config, text=replace(config.text, moe_layers=frozenset(range(config.text.n_layers))))
    model = random_model(config)
    checkpoint.save_hf(model, config, tmp_path / "scout")
    (tmp_path / "scout" / "tokenizer.json").write_text("{}")
    pruned_config = prune(tmp_path / "scout", tmp_path / "guard")
    guard = checkpoint.load(tmp_path / "guard")

    assert guard.config == pruned_config
    assert not guard.config.text.moe_layers
    assert (tmp_path / "guard" / "tokenizer.json").is_file()
    x = torch.randn(5, config.text.width, generator=torch.Generator().manual_seed(0))
    for layer, pruned in zip(model.layers, guard.layers, strict=True):
        assert torch.equal(layer.moe.shared(x), pruned.mlp(x))
        layer.moe.experts.down.zero_()
    ids = random_ids(20, 1)
    assert torch.equal(read_whole(model, ids), read_whole(guard, ids))


def test_a_model_with_dense_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer 0 is dense"):
        without_experts(tiny_config())
