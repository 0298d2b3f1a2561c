"""The encoder of Prompt Guard 2 against transformers, on random weights in the published shape."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import ConfigError, WeightsError
from puna.guard import deberta
from puna.guard.deberta import DebertaConfig, batched, buckets

SHAPE: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "share_att_key": True,
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder as transformers writes it, and its model."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (test time only)")
    model = transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**SHAPE)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_gain = parameter.dim() == 1 and name.endswith("weight")
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 + is_gain
    folder = tmp_path_factory.mktemp("prompt-guard")
    model.save_pretrained(folder)
    return folder, model


def test_logits_are_those_of_transformers_with_and_without_padding(published: tuple[Path, Any]) -> None:
    folder, model = published
    ours = deberta.load(folder)
    generator = torch.Generator().manual_seed(1)
    windows = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in (60, 1, 17)]
    ids, is_text = batched(windows, pad_id=0)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=is_text.long()).logits
    torch.testing.assert_close(ours(ids, is_text), expected, rtol=1e-5, atol=1e-5)
    for row, window in enumerate(windows):
        alone = ours(*batched([window], pad_id=0))
        torch.testing.assert_close(alone[0], expected[row], rtol=1e-5, atol=1e-5)


def test_near_distances_have_buckets_of_their_own_and_far_ones_share_the_last() -> None:
    config = DebertaConfig.from_hf(SHAPE)
    places = buckets(200, config)
    middle = config.n_buckets // 2
    assert [int(places[i, 0]) - config.n_buckets for i in range(middle + 1)] == list(range(middle + 1))
    assert int(places[199, 0]) == 2 * config.n_buckets - 1
    assert int(places[0, 199]) == 0
    assert bool((places[1:, 0] >= places[:-1, 0]).all())


@pytest.mark.parametrize(("key", "value"), [("share_att_key", False), ("pos_att_type", "c2p"), ("hidden_act", "relu")])
def test_another_deberta_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        DebertaConfig.from_hf(SHAPE | {key: value})


def test_files_that_do_not_fit_are_named(published: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = published
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 27}), encoding="utf-8")
    with pytest.raises(WeightsError, match="no place"):
        deberta.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"layers\.3.* missing"):
        deberta.load(tmp_path)
