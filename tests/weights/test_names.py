"""The table of names, held against the model's own parameters and against itself."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from puna.config import LlamaConfig
from puna.model.transformer import Llama
from puna.presets import GUARD4, MAVERICK, PRESETS, SCOUT
from puna.weights import names
from puna.weights.names import Layout
from puna.weights.stored import region, shape_at_rest

PUBLISHED = (names.hf_layouts, names.meta_layouts)


def meta_parameters(config: LlamaConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return dict(Llama(config).named_parameters())


def shapes(config: LlamaConfig, layouts: list[Layout], n_shards: int = 1) -> dict[str, tuple[int, ...]]:
    parameters = meta_parameters(config)
    return {x.key: shape_at_rest([region(parameters[p.name], p, 0, n_shards) for p in x.parts], x) for x in layouts}


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("layouts", PUBLISHED)
def test_every_number_of_the_model_is_in_each_format_exactly_once(
    config: LlamaConfig, layouts: Callable[[LlamaConfig], list[Layout]]
) -> None:
    parameters = meta_parameters(config)
    counts: Counter[str] = Counter()
    for layout in layouts(config):
        for part in layout.parts:
            counts[part.name] += region(parameters[part.name], part, 0, 1).numel()
    assert counts == {name: parameter.numel() for name, parameter in parameters.items()}


@pytest.mark.parametrize("config", [SCOUT, MAVERICK, GUARD4], ids=["scout", "maverick", "guard4"])
def test_no_key_stands_for_two_tensors(config: LlamaConfig) -> None:
    for one, other, canonical in (
        (names.hf_layouts(config), names.hf_unfused_layouts(config), names.canonical_hf),
        (names.meta_layouts(config), names.meta_module_layouts(config), names.canonical_meta),
    ):
        keys = [canonical(layout.key) for layout in one + other]
        assert None not in keys and len(set(keys)) == len(keys)


def test_released_scout_has_the_published_shapes() -> None:
    """Figures as in the published files: 8 of Meta's shards, experts merged into two axes."""
    hf, meta = shapes(SCOUT, names.hf_layouts(SCOUT)), shapes(SCOUT, names.meta_layouts(SCOUT), n_shards=8)
    assert hf["language_model.model.layers.0.feed_forward.experts.gate_up_proj"] == (16, 5120, 16384)
    assert hf["language_model.model.layers.0.feed_forward.experts.down_proj"] == (16, 8192, 5120)
    assert hf["language_model.model.layers.0.feed_forward.router.weight"] == (16, 5120)
    assert hf["vision_model.positional_embedding_vlm"] == (577, 1408)
    assert meta["layers.0.attention.wqkv.weight"] == ((5 + 1 + 1) * 128, 5120)
    assert meta["layers.0.attention.wo.weight"] == (5120, 5120 // 8)
    assert meta["layers.0.feed_forward.experts.moe_w_in_eD_F"] == (16 * 5120, 1024)
    assert meta["layers.0.feed_forward.experts.moe_w_out_eF_D"] == (16 * 1024, 5120)
    assert meta["layers.0.feed_forward.router_DE"] == (5120, 16)
    assert meta["tok_embeddings.weight"] == (202048 // 8, 5120)
    assert meta["vision_embeddings.vision_encoder.conv1._linear.weight"] == (1408 // 8, 588)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "language_model.model.layers.3.self_attn.q_proj.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("model.vision_model.class_embedding", "vision_model.class_embedding"),
        ("model.multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.weight"),
        ("vision_model.class_embedding", "vision_model.class_embedding"),
        ("language_model.model.layers.1.self_attn.k_proj.k_scale", None),
        ("language_model.model.layers.1.feed_forward.experts.3.up_proj.input_scale", None),
        ("model.layers.1.feed_forward.experts.gate_up_proj_input_scale", None),
    ],
)
def test_all_nestings_of_hugging_face_keys_read_alike(written: str, canonical: str | None) -> None:
    assert names.canonical_hf(written) == canonical


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("layers.0.attention.wqkv.layer_norm_weight", "layers.0.attention_norm.weight"),
        ("layers.0.feed_forward.mlp.layer_norm_weight", "layers.0.ffn_norm.weight"),
        ("layers.0.feed_forward.mlp.layer_norm.weight", "layers.0.ffn_norm.weight"),
        ("layers.0.feed_forward.norm.weight", "layers.0.ffn_norm.weight"),
        ("norm.weight", "norm.weight"),
        ("rope.freqs", None),
        ("freqs_cis", None),
        ("layers.0.attention.wqkv._extra_state", None),
        ("layers.0.feed_forward.global_gate_stats_3E", None),
        ("layers.0.feed_forward.running_gate_stats_3E", None),
        ("layers.0.feed_forward.expert_activation_DE", None),
    ],
)
def test_metas_spellings_of_norms_read_alike_and_what_its_hooks_drop_is_dropped(
    written: str, canonical: str | None
) -> None:
    assert names.canonical_meta(written) == canonical
