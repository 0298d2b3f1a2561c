"""The whole model against both public references, across chunk borders and temperature steps.

Tolerances: in float32 both sides sum in other orders, and the logits of these small models have a standard deviation
near 1, so 1e-4 of it is far above rounding (1e-5 is seen) and far below any mistake in a formula (1e-2 and more).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.model.mask import Packed
from puna.model.transformer import Llama, initialise
from puna.presets import CRIA, PRESETS
from puna.weights.checkpoint import load, save_meta
from tests.reference.checkpoints import KINDS, PATCH_ID, TILE_SIZE, TOKENS_PER_TILE, make_checkpoint
from tests.reference.meta import reference_logits, reference_transformer

BORDERS = (1, 7, 8, 9, 15, 16, 17, 40)  # lengths around multiples of the chunk of 8 and of the temperature step of 4
ODD_SIZES = {
    "hidden_size": 72,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "intermediate_size": 56,
}
SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def whole(model: Llama, ids: Tensor, tiles: Tensor | None = None) -> Tensor:
    """Our logits [T V] of one document, without a cache."""
    features = None if tiles is None else model.embed_tiles(tiles)
    return model(ids, torch.arange(len(ids)), Packed.single(model.config.text, len(ids)), features)


def text(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 100, (length,), generator=torch.Generator().manual_seed(seed * 1000 + length))


def with_pictures(tiles_per_picture: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Ids with pictures of several sizes between words, one at the very start, and the tiles."""
    parts = []
    for i, n in enumerate(tiles_per_picture):
        parts += [torch.full((n * TOKENS_PER_TILE,), PATCH_ID), text(3 + i, seed=i)]
    n_tiles = sum(tiles_per_picture)
    return torch.cat(parts), torch.randn(n_tiles, 3, TILE_SIZE, TILE_SIZE, generator=torch.Generator().manual_seed(1))


def assert_same_logits(ours: Tensor, theirs: Tensor) -> None:
    assert ((ours - theirs).abs().max() / theirs.std()).item() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as-released"),
        pytest.param(ODD_SIZES, id="odd-sizes"),
        pytest.param({"rope_parameters": SCALED_ROPE}, id="blended-rope"),
        pytest.param({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, id="plain-rope"),
    ],
)
@torch.inference_mode()
def test_logits_equal_those_of_transformers(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    reference = make_checkpoint(kind, tmp_path, vision=True, dtype=torch.float32, text_changes=changes)
    model = load(tmp_path)
    for length in BORDERS:
        ids = text(length)
        assert_same_logits(whole(model, ids), reference.model(input_ids=ids[None], use_cache=False).logits[0])
    for pictures in ((1,), (1, 5, 3, 17, 7)):
        ids, tiles = with_pictures(pictures)
        theirs = reference.model(input_ids=ids[None], pixel_values=tiles, use_cache=False).logits[0]
        assert_same_logits(whole(model, ids, tiles), theirs)


@torch.inference_mode()
def test_two_active_experts_equal_those_of_transformers(tmp_path: Path) -> None:
    reference = make_checkpoint("scout", tmp_path, dtype=torch.float32, text_changes={"num_experts_per_tok": 2})
    ids = text(20)
    assert_same_logits(whole(load(tmp_path), ids), reference.model(input_ids=ids[None], use_cache=False).logits[0])


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_logits_equal_those_of_metas_reference(kind: str, tmp_path: Path) -> None:
    make_checkpoint(kind, tmp_path / "hf", vision=True, dtype=torch.float32, text_changes=metas_limits(kind))
    model = load(tmp_path / "hf")
    save_meta(model, model.config, tmp_path / "meta")
    theirs = reference_transformer(tmp_path / "meta", max_seq_len=512)
    for length in BORDERS[1:]:  # of a single token Meta's code makes no mask, which is its decode path
        assert_same_logits(whole(model, text(length)), reference_logits(theirs, text(length)))
    ids, tiles = with_pictures((1, 5, 3))
    assert_same_logits(whole(model, ids, tiles), reference_logits(theirs, ids, tiles, PATCH_ID))


def metas_limits(kind: str) -> dict[str, Any]:
    """What Meta's code can express: scaling by the "llama3" rule only from 8192 on, as its source fixes."""
    if kind != "scout":
        return {}
    return {
        "rope_parameters": SCALED_ROPE | {"factor": 16.0, "original_max_position_embeddings": 8192, "rope_theta": 5e5}
    }


@torch.inference_mode()
def test_bfloat16_picks_the_same_tokens_in_nine_of_ten_prompts(tmp_path: Path) -> None:
    """Where it does not, the two best logits are closer than the rounding of bfloat16 lets either side tell."""
    reference = make_checkpoint("scout", tmp_path, vision=True, dtype=torch.bfloat16)
    model = load(tmp_path)
    same = 0
    for seed in range(20):
        ids = text(24, seed)
        ours = whole(model, ids)[-1]
        theirs = reference.model(input_ids=ids[None], use_cache=False).logits[0, -1].float()
        if ours.argmax() == theirs.argmax():
            same += 1
        else:
            best = theirs.topk(2).values
            assert best[0] - best[1] < 2**-5 * theirs.abs().max()
    assert same >= 18


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_every_preset_can_be_built_without_memory(config: LlamaConfig) -> None:
    with torch.device("meta"):
        model = Llama(config)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_initialise_depends_on_the_generator_alone_and_keeps_logits_in_scale() -> None:
    models = [Llama(CRIA), Llama(CRIA)]
    for model in models:
        initialise(model, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
    with torch.no_grad():
        assert 0.3 < whole(models[0], torch.arange(50)).std() < 3
        assert 0.98 < models[0].embedding.weight.std() < 1.02  # looked up, not multiplied: the stream's own scale
