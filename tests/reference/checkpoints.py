"""Small random checkpoints, written by transformers itself, in the shapes of the released models.

All have 8 query and 8 key/value heads, so that they can be cut into 1, 2, 4 or 8 of Meta's shards; every parameter is
random, norms included, so that no two can be exchanged unnoticed. A few hundred kilobytes each.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

PATCH_ID, IMAGE_START_ID, IMAGE_END_ID = 120, 121, 122
TILE_SIZE, TOKENS_PER_TILE = 24, 9
_TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 32,
    "intermediate_size_mlp": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "num_local_experts": 4,
    "attention_chunk_size": 8,
    "floor_scale": 4,
    "bos_token_id": 100,
    "eos_token_id": [101, 102],
    "pad_token_id": 103,
}
# transformers takes the adapter's input width from intermediate_size: it must be hidden_size / pixel_shuffle_ratio^2.
_VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 256,
    "image_size": TILE_SIZE,
    "patch_size": 4,
    "projector_input_dim": 40,
    "projector_output_dim": 40,
    "vision_output_dim": 40,
}
_KINDS: dict[str, dict[str, Any]] = {
    "scout": {
        "interleave_moe_layer_step": 1,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "maverick": {"interleave_moe_layer_step": 2, "use_qk_norm": False, "num_local_experts": 8},
    "guard": {"interleave_moe_layer_step": 0, "moe_layers": [], "num_local_experts": 0, "no_rope_layers": [1] * 4},
}
KINDS = tuple(_KINDS)


class Reference(NamedTuple):
    """A directory as `save_pretrained` leaves it, and the model of transformers that it was written from."""

    path: Path
    model: Any


def make_checkpoint(
    kind: str,
    path: Path,
    *,
    vision: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "5GB",
    text_changes: Mapping[str, Any] | None = None,
) -> Reference:
    """Writes a random model of a kind ("scout", "maverick", "guard") to `path`; `text_changes` go into its text config.

    Guard's config.json says null for the chunk, as the published one does; the model that is returned has one longer
    than any text here, because transformers cannot run without. Skips the test where transformers is absent.
    """
    transformers = pytest.importorskip("transformers", reason="needs transformers (test time only)")
    text = _TEXT | _KINDS[kind] | dict(text_changes or {})
    if vision:
        config = transformers.Llama4Config(
            text_config=text,
            vision_config=_VISION,
            image_token_index=PATCH_ID,
            boi_token_index=IMAGE_START_ID,
            eoi_token_index=IMAGE_END_ID,
        )
        model = transformers.Llama4ForConditionalGeneration(config)
    else:
        model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**text))
    _randomise(model.eval().requires_grad_(False), torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # not model.to(dtype): that would make complex rotation tables real
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    if kind == "guard":
        edit_json(path / "config.json", lambda config: _without_chunk(config.get("text_config", config)))
        text_config = model.config.text_config if vision else model.config
        text_config.attention_chunk_size = 4096
    return Reference(path, model)


def edit_json(path: Path, edit: Any) -> None:
    """Applies `edit` to the object in a JSON file, in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def _randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Matrices of a size at which the model is neither linear nor saturated; gains near 1, biases near 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.dim() == 1 and name.endswith("weight")  # only norms have vectors of that name
            scale = 0.1 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(noise * scale + is_gain)


def _without_chunk(text: dict[str, Any]) -> None:
    text["attention_chunk_size"] = None
