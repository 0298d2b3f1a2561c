"""Published configuration files, in all the variants in which they exist."""

import json
from typing import Any

import pytest

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.presets import CRIA, GUARD4, MAVERICK, PRESETS, SCOUT
from puna.weights.configs import META_EXTENSION, from_hf, from_meta, to_hf, to_meta


@pytest.mark.parametrize("name", PRESETS)
def test_hugging_face_round_trip(name: str) -> None:
    config = PRESETS[name]
    assert config.vision is not None
    written = json.loads(json.dumps(to_hf(config)))
    assert from_hf(written, {"max_patches": config.vision.max_tiles}) == config


@pytest.mark.parametrize("name", PRESETS)
def test_meta_round_trip_keeps_even_what_its_format_cannot_say(name: str) -> None:
    assert from_meta(json.loads(json.dumps(to_meta(PRESETS[name])))) == PRESETS[name]


@pytest.mark.parametrize("config", [SCOUT, MAVERICK, GUARD4], ids=["scout", "maverick", "guard4"])
def test_metas_own_keys_alone_describe_the_released_models(config: LlamaConfig) -> None:
    params = to_meta(config)
    del params[META_EXTENSION]
    read = from_meta(params)
    same = {f: getattr(read.text, f) for f in type(read.text).__slots__ if f != "context_len"}
    assert same == {f: getattr(config.text, f) for f in same}
    assert read.vision == config.vision and read.stop_ids == config.stop_ids


def test_metas_published_width_rule_gives_the_published_widths() -> None:
    """Scout's own params.json: ffn_exp 4, multiplier 1.2, experts scaled down by one plus the capacity factor."""
    params: dict[str, Any] = to_meta(SCOUT) | {"ffn_exp": 4.0, "ffn_dim_multiplier": 1.2, "multiple_of": 2048}
    del params[META_EXTENSION]
    params["moe_args"] = {"num_experts": 16, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1}
    assert (from_meta(params).text.expert_width, from_meta(params).text.dense_width) == (8192, 16384)


def test_scaled_rope_without_numbers_means_16_and_1() -> None:
    params = to_meta(SCOUT)
    for key in (META_EXTENSION, "rope_scaling_factor", "rope_high_freq_factor"):
        del params[key]
    assert from_meta(params).text.rope_scaling == SCOUT.text.rope_scaling


def variant(**changes: Any) -> LlamaConfig:
    """Reads Scout's config.json with keys of its text part changed; None as key value is kept as null."""
    written = to_hf(SCOUT)
    written["text_config"] = {k: v for k, v in (written["text_config"] | changes).items() if v != "absent"}
    return from_hf(written)


@pytest.mark.parametrize(
    "changes",
    [
        {"no_rope_layers": [], "layer_types": "absent"},  # first release: empty list, interval implied
        {"no_rope_layers": None, "layer_types": None, "no_rope_layer_interval": 4},
        {"moe_layers": None},
        {"attn_temperature_tuning": 4},  # first release: an integer for true
        {
            "rope_parameters": "absent",
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 16.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            },
        },
        {"router_jitter_noise": 0.0, "for_llm_compressor": False, "torch_dtype": "bfloat16", "use_cache": True},
    ],
)
def test_published_variants_of_one_model_read_alike(changes: dict[str, Any]) -> None:
    assert variant(**changes) == SCOUT


def test_text_only_files_are_read() -> None:
    config = from_hf(to_hf(SCOUT)["text_config"])
    assert config.text == SCOUT.text and config.vision is None


def test_guard_has_null_chunk_and_empty_expert_layers() -> None:
    text = to_hf(GUARD4)["text_config"]
    assert text["attention_chunk_size"] is None and text["moe_layers"] == [] and text["interleave_moe_layer_step"] == 0


def test_defaults_of_transformers_read_as_it_means_them() -> None:
    transformers = pytest.importorskip("transformers")
    config = from_hf(transformers.Llama4TextConfig(num_hidden_layers=8).to_dict())
    assert config.text.rope_layers == {0, 1, 2, 4, 5, 6} and config.text.qk_norm and config.text.chunk_len == 8192


def test_transformers_reads_what_we_write() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Llama4Config.from_dict(to_hf(CRIA))
    assert theirs.text_config.moe_layers == list(range(8)) and theirs.text_config.no_rope_layers == [1, 1, 1, 0] * 2
    assert from_hf(theirs.to_dict(), {"max_patches": 4}) == CRIA


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": "absent"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers"),
        ({"rope_theta": "high", "rope_parameters": "absent"}, "rope_theta"),
        ({"no_rope_layers": "all"}, "no_rope_layers"),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"layer_types": ["full_attention", "chunked_attention"] * 24}, "layer_types"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
    ],
)
def test_what_would_change_the_mathematics_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        variant(**changes)


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'llama'"):
        from_hf({"model_type": "llama"})


@pytest.mark.parametrize(
    ("key", "value"), [("dim", None), ("moe_args", 3), ("vision_args", {"dim": "wide"}), ("extra", 1)]
)
def test_a_damaged_params_file_is_refused_by_name(key: str, value: object) -> None:
    params = to_meta(SCOUT) | {key: value}
    del params[META_EXTENSION]
    with pytest.raises(ConfigError, match=key if key != "vision_args" else "dim"):
        from_meta(params)
