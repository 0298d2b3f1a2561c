"""The fused step equals the plain runner: prompts in pieces and decoding, over chunk borders, with pictures."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'puna[gpu]'")

from puna.config import LlamaConfig
from puna.engine.cuda_inputs import of_batch
from puna.engine.cuda_step import DecoderStep, joined
from puna.model.transformer import Llama
from tests.engine.twins import Twins, two_layers
from tests.reference.tiny import PATCH_ID, random_ids, random_model

# Sums in another order, in float32.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def guard() -> LlamaConfig:
    config = two_layers()
    text = replace(
        config.text, chunk_len=None, moe_layers=frozenset(), rope_layers=frozenset({0, 1}), query_temperature=None
    )
    return replace(config, text=text)


@pytest.mark.parametrize("config", [two_layers(), guard()], ids=["scout", "guard"])
def test_logits_equal_the_plain_runners_over_chunk_borders(config: LlamaConfig, device: torch.device) -> None:
    twins = Twins(random_model(config), device)
    step = DecoderStep(twins.model, twins.caches[1])
    for pieces in ([(0, 17), (1, 6)], [(1, 2)], [(1, 1)]):  # positions 7, 8 and 16 are in here
        batch = twins.batch([(text, random_ids(n, text * 100 + n)) for text, n in pieces])
        expected = twins.plain.run(batch)
        inputs = of_batch(batch, config.text, twins.caches[1].layout, device)
        torch.testing.assert_close(step.logits(inputs), expected, **TOLERANCE)


def test_features_take_the_places_of_patch_tokens(device: torch.device) -> None:
    twins = Twins(random_model(two_layers()), device)
    step = DecoderStep(twins.model, twins.caches[1])
    batch = twins.batch([(0, [1, PATCH_ID, PATCH_ID, 2])], torch.randn(2, 32, device=device))
    inputs = of_batch(batch, twins.model.config.text, twins.caches[1].layout, device)
    wanted = torch.tensor([3], device=device)
    result = step.logits(inputs, batch.features, wanted)
    torch.testing.assert_close(result, twins.plain.run(batch)[3:], **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_small_keys_and_values_equal_the_plain_runners(dtype: torch.dtype, device: torch.device) -> None:
    twins = Twins(random_model(two_layers()), device, dtype)
    step = DecoderStep(twins.model, twins.caches[1])
    batch = twins.batch([(0, random_ids(5, 3))])
    inputs = of_batch(batch, twins.model.config.text, twins.caches[1].layout, device)
    # A key on the border of two codes may fall to either side: an eighth of its size in e4m3, of one key of many.
    torch.testing.assert_close(step.logits(inputs), twins.plain.run(batch), rtol=0.05, atol=0.05)


def test_joined_maps_share_memory_and_keep_their_numbers() -> None:
    model: Llama = random_model(two_layers())
    attention = model.layers[0].attention
    before = [each.weight.clone() for each in (attention.query, attention.key)]
    whole = joined([attention.query, attention.key])
    assert torch.equal(whole, torch.cat(before))
    whole[0, 0] = 7
    assert attention.query.weight[0, 0] == 7 and torch.equal(attention.key.weight, before[1])


def test_maps_of_different_formats_are_not_joined() -> None:
    a, b = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=True)
    with pytest.raises(ValueError, match="differ, or have biases"):
        joined([a, b])
