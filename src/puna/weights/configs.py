"""Configurations as published: Hugging Face's `config.json` and Meta's `params.json`, read and written.

In: parsed JSON. Out: `LlamaConfig`, and back. Unknown keys are errors: one of them might change the mathematics.
Why this is not in `puna.config`: docs/decisions/004.
Source: transformers `models/llama4/configuration_llama4.py`; llama-models `models/llama4/args.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

from puna.config import (
    MAX_TILES,
    VISION_ROPE_THETA,
    LlamaConfig,
    QueryTemperature,
    RopeScaling,
    TextConfig,
    VisionConfig,
    require,
)
from puna.errors import ConfigError

Json = Mapping[str, Any]


# Keys that published files carry and that change nothing of what the model computes at inference.
_WITHOUT_EFFECT = frozenset(
    "_name_or_path _attn_implementation_autoset add_cross_attention architectures attention_dropout bad_words_ids "
    "begin_suppress_tokens cache_implementation chunk_size_feed_forward cross_attention_hidden_size "
    "decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size "
    "exponential_decay_length_penalty finetuning_task for_llm_compressor forced_bos_token_id forced_eos_token_id "
    "id2label initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length min_length "
    "model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions "
    "output_hidden_states output_router_logits output_scores prefix problem_type projector_dropout pruned_heads "
    "quantization_config remove_invalid_values repetition_penalty return_dict return_dict_in_generate "
    "router_aux_loss_coef router_jitter_noise sep_token_id suppress_tokens task_specific_params temperature "
    "tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version "
    "typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache vision_feature_layer "
    "vision_feature_select_strategy".split()
)
# Keys that must have one value, because the architecture has no other; None: the key may also be absent or null.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "gelu"),
    "attention_bias": (False, None),
    "tie_word_embeddings": (False, None),
    "multi_modal_projector_bias": (False, None),
    "num_channels": (3, None),
}
META_ROPE_SCALING = RopeScaling(factor=16, low_factor=1, high_factor=1, original_context=8192)
META_CONTEXT_LEN = 262_144  # params.json names none; that of the base models
META_EXTENSION = "puna"  # our key in params.json for what Meta's format has no place for; Meta's reader ignores it


def from_hf(config: Json, preprocessor: Json | None = None) -> LlamaConfig:
    """Reads a parsed `config.json`, nested or text-only, of any published variant.

    `preprocessor` is the parsed `preprocessor_config.json`, if there is one: it alone says how many tiles a picture may
    have. Raises ConfigError for a missing, contradictory or unknown key.
    """
    kind = config.get("model_type")
    if kind == "llama4_text":
        return _from_hf_parts(_Fields(config, "config.json"), None, None, None)
    if kind != "llama4":
        raise ConfigError(f"model_type: {kind!r} in config.json is not supported; use 'llama4' or 'llama4_text'")
    top = _Fields(config, "config.json")
    text = _Fields(top.take("text_config"), "config.json text_config")
    vision = top.take("vision_config", None)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):  # some exports repeat these above the text part
        top.take(key, None)
    return _from_hf_parts(
        text, top, None if vision is None else _Fields(vision, "config.json vision_config"), preprocessor
    )


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Returns the `config.json` that transformers reads, nested where the model has a vision tower."""
    text = _text_to_hf(config)
    if config.vision is None:
        return {"architectures": ["Llama4ForCausalLM"]} | text
    vision = config.vision
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "boi_token_index": config.image_start_id,
        "eoi_token_index": config.image_end_id,
        "image_token_index": config.patch_id,
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": {
            "model_type": "llama4_vision_model",
            "image_size": vision.tile_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            "hidden_size": vision.width,
            "num_hidden_layers": vision.n_layers,
            "num_attention_heads": vision.n_heads,
            "intermediate_size": vision.mlp_width,
            "hidden_act": "gelu",
            "norm_eps": vision.norm_eps,
            "pixel_shuffle_ratio": vision.shuffle_ratio,
            "projector_input_dim": vision.adapter_width,
            "projector_output_dim": vision.output_width,
            "vision_output_dim": vision.output_width,
            "multi_modal_projector_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": vision.rope_theta},
        },
    }


def to_hf_companions(config: LlamaConfig) -> dict[str, dict[str, Any]]:
    """Returns the small files that transformers wants beside `config.json`, by name: how to generate and cut pictures.

    Generation defaults are those Llama 4 was released with. Source: transformers `processing_llama4.py` and
    `image_processing_llama4.py`.
    """
    generation = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.stop_ids),
        "pad_token_id": config.pad_id,
    }
    if config.vision is None:
        return {"generation_config.json": generation}
    vision = config.vision
    return {
        "generation_config.json": generation,
        "preprocessor_config.json": {
            "image_processor_type": "Llama4ImageProcessor",
            "processor_class": "Llama4Processor",
            "size": {"height": vision.tile_size, "width": vision.tile_size},
            "max_patches": vision.max_tiles,
            "resize_to_max_canvas": False,
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 2,
        },
        "processor_config.json": {
            "processor_class": "Llama4Processor",
            "patch_size": vision.patch_size,
            "pixel_shuffle_ratio": vision.shuffle_ratio,
        },
    }


def from_meta(params: Json) -> LlamaConfig:
    """Reads a parsed `params.json`.

    Meta's format names neither the context length nor any token id: those are Llama 4's own unless our extension key
    says otherwise. Raises ConfigError for a missing, contradictory or unknown key.
    """
    fields = _Fields(params, "params.json")
    extension = fields.take(META_EXTENSION, None)
    if extension is not None:
        ours = _Fields(extension, f"params.json {META_EXTENSION}")
        return from_hf(ours.take("config"), {"max_patches": ours.whole("max_tiles")})
    width, n_layers, n_heads = fields.whole("dim"), fields.whole("n_layers"), fields.whole("n_heads")
    interval, chunk_len = fields.whole("nope_layer_interval", None), fields.whole("attention_chunk_size", None)
    moe, vision = fields.part("moe_args"), fields.part("vision_args")
    scaled = fields.take("use_scaled_rope", False)
    factor, high = fields.number("rope_scaling_factor", None), fields.number("rope_high_freq_factor", None)
    expert_width, dense_width = _meta_widths(fields, width, moe)
    step = 0 if moe is None else moe.whole("interleave_moe_layer_step", 1)
    text = TextConfig(
        width=width,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=fields.whole("n_kv_heads", None) or n_heads,
        head_dim=fields.whole("head_dim", None) or width // n_heads,
        vocab_size=fields.whole("vocab_size"),
        context_len=META_CONTEXT_LEN,
        norm_eps=fields.number("norm_eps", 1e-5),
        rope_theta=float(fields.number("rope_theta", 500000)),
        rope_scaling=RopeScaling(
            factor=factor or META_ROPE_SCALING.factor,
            low_factor=META_ROPE_SCALING.low_factor,
            high_factor=high or META_ROPE_SCALING.high_factor,
            original_context=META_ROPE_SCALING.original_context,
        )
        if scaled
        else None,
        rope_layers=frozenset(i for i in range(n_layers) if not interval or (i + 1) % interval),
        chunk_len=chunk_len,
        query_temperature=_temperature(fields, tuned=False),
        qk_norm=fields.take("use_qk_norm", False),
        moe_layers=frozenset(i for i in range(n_layers) if step and (i + 1) % step == 0),
        n_experts=0 if moe is None else moe.whole("num_experts"),
        n_active_experts=0 if moe is None else moe.whole("top_k", 1),
        expert_width=expert_width,
        dense_width=dense_width,
    )
    for key in ("max_batch_size", "max_seq_len", "quantization_args", "lora_args"):
        fields.take(key, None)
    fields.finish()
    return LlamaConfig(
        text=text,
        vision=None if vision is None else _vision_from_meta(vision),
        bos_id=200000,
        stop_ids=(200001, 200007, 200008),
        pad_id=200018,
        image_start_id=200080,
        image_end_id=200081,
        patch_id=200092,
    )


def to_meta(config: LlamaConfig) -> dict[str, Any]:
    """Returns the `params.json` of a model: Meta's keys, and under our extension key the whole configuration.

    Meta's keys can say neither an irregular set of layers nor another original context than 8192; where a model has
    such, they come as near as they can and the extension is what `from_meta` follows.
    """
    text, vision = config.text, config.vision
    nope = set(range(text.n_layers)) - text.rope_layers
    params: dict[str, Any] = {
        "dim": text.width,
        "n_layers": text.n_layers,
        "n_heads": text.n_heads,
        "n_kv_heads": text.n_kv_heads,
        "head_dim": text.head_dim,
        "vocab_size": text.vocab_size,
        "norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        "use_scaled_rope": text.rope_scaling is not None,
        "nope_layer_interval": min(nope) + 1 if nope else None,
        "attention_chunk_size": text.chunk_len,
        "use_qk_norm": text.qk_norm,
        "attn_temperature_tuning": text.query_temperature is not None,
        **_meta_width_params(text),
    }
    if text.rope_scaling is not None:
        params["rope_scaling_factor"] = text.rope_scaling.factor
        params["rope_high_freq_factor"] = text.rope_scaling.high_factor
    if text.query_temperature is not None:
        params["floor_scale"] = float(text.query_temperature.floor_len)
        params["attn_scale"] = text.query_temperature.scale
    if text.moe_layers:
        params["moe_args"] = {
            "num_experts": text.n_experts,
            "capacity_factor": 1.0,
            "auto_scale_F": False,
            "top_k": text.n_active_experts,
            "interleave_moe_layer_step": min(text.moe_layers) + 1,
        }
    if vision is not None:
        params["vision_args"] = {
            "image_size": {"height": vision.tile_size, "width": vision.tile_size},
            "patch_size": {"height": vision.patch_size, "width": vision.patch_size},
            "dim": vision.width,
            "n_layers": vision.n_layers,
            "n_heads": vision.n_heads,
            "mlp_ratio": vision.mlp_width / vision.width,
            "output_dim": vision.output_width,
            "pixel_shuffle_ratio": vision.shuffle_ratio,
        }
    max_tiles = MAX_TILES if vision is None else vision.max_tiles
    return params | {META_EXTENSION: {"config": to_hf(config), "max_tiles": max_tiles}}


class _Fields:
    """One mapping of a file, read key by key, so that what nobody read can be reported."""

    def __init__(self, values: Json, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: expected an object, got {type(values).__name__}")
        self.left = dict(values)
        self.where = where

    def take(self, key: str, *default: Any) -> Any:
        if key not in self.left and not default:
            raise ConfigError(f"{key}: missing in {self.where}; the file is incomplete or not of Llama 4")
        return self.left.pop(key, *default)

    def whole(self, key: str, *default: Any) -> Any:
        """Takes a whole number, or whatever the default is; 8192.0 counts as whole."""
        value = self.take(key, *default)
        if value in default or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        raise ConfigError(f"{key}: {value!r} in {self.where} must be a whole number")

    def number(self, key: str, *default: Any) -> Any:
        """Takes a number, or whatever the default is."""
        value = self.take(key, *default)
        if value in default or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise ConfigError(f"{key}: {value!r} in {self.where} must be a number")

    def whole_or_null(self, key: str, *default: Any) -> Any:
        """Takes a whole number, or null where the file says so."""
        if key in self.left and self.left[key] is None:
            return self.take(key)
        return self.whole(key, *default)

    def wholes(self, key: str, *default: Any) -> Any:
        """Takes a tuple of whole numbers, or whatever the default is; a single one counts as a tuple."""
        value = self.take(key, *default)
        if value in default:
            return value
        values = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(v, int) for v in values):
            return tuple(values)
        raise ConfigError(f"{key}: {value!r} in {self.where} must be a list of whole numbers")

    def part(self, key: str) -> "_Fields | None":
        """Takes an object within this one; None where it is null or absent."""
        value = self.take(key, None)
        return None if value is None else _Fields(value, f"{self.where} {key}")

    def finish(self) -> None:
        for key, allowed in _FIXED.items():
            value = self.left.pop(key, allowed[-1])
            if value not in allowed:
                raise ConfigError(f"{key}: {value!r} in {self.where} is not supported; Llama 4 has {allowed[0]!r}")
        unknown = sorted(self.left.keys() - _WITHOUT_EFFECT)
        if unknown:
            raise ConfigError(f"{unknown[0]}: unknown key in {self.where}; remove it if it changes nothing")


def _from_hf_parts(
    text: _Fields, top: _Fields | None, vision: _Fields | None, preprocessor: Json | None
) -> LlamaConfig:
    n_layers, n_heads, width = (text.whole(key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    rope_theta, rope_scaling = _rope_from_hf(text)
    moe_layers = _moe_layers_from_hf(text, n_layers)
    decoder = TextConfig(
        width=width,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=text.whole("num_key_value_heads", None) or n_heads,
        head_dim=text.whole("head_dim", None) or width // n_heads,
        vocab_size=text.whole("vocab_size"),
        context_len=text.whole("max_position_embeddings", 131072),
        norm_eps=text.number("rms_norm_eps", 1e-5),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        rope_layers=_rope_layers_from_hf(text, n_layers),
        chunk_len=text.whole_or_null("attention_chunk_size", 8192),
        query_temperature=_temperature(text, tuned=True),
        qk_norm=text.take("use_qk_norm", True),
        moe_layers=moe_layers,
        n_experts=text.whole("num_local_experts", 16) if moe_layers else (text.whole("num_local_experts", 0), 0)[1],
        n_active_experts=text.whole("num_experts_per_tok", 1)
        if moe_layers
        else (text.whole("num_experts_per_tok", 0), 0)[1],
        expert_width=text.whole("intermediate_size", 8192),
        dense_width=text.whole("intermediate_size_mlp", 16384),
    )
    bos, pad = text.whole("bos_token_id", None), text.whole("pad_token_id", None)
    eos = text.wholes("eos_token_id", None)
    ids = [
        None if top is None else top.whole(key, None)
        for key in ("boi_token_index", "eoi_token_index", "image_token_index")
    ]
    tower = None if vision is None else _vision_from_hf(vision, preprocessor)
    for fields in (text, vision, top):
        if fields is not None:
            fields.finish()
    return LlamaConfig(
        text=decoder,
        vision=tower,
        bos_id=200000 if bos is None else bos,
        stop_ids=(200001, 200007, 200008) if eos is None else eos,
        pad_id=pad,
        image_start_id=ids[0],
        image_end_id=ids[1],
        patch_id=ids[2],
    )


def _rope_from_hf(text: _Fields) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    merged = dict(text.take("rope_scaling", None) or {}) | dict(text.take("rope_parameters", None) or {})
    theta = merged.get("rope_theta", text.number("rope_theta", None)) or 500000.0
    kind = merged.get("rope_type", merged.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise ConfigError(f"rope_type: {kind!r} in {text.where} is not supported; Llama 4 uses 'default' or 'llama3'")
    rope = _Fields(merged, f"{text.where} rope_scaling")
    return float(theta), RopeScaling(
        factor=rope.number("factor"),
        low_factor=rope.number("low_freq_factor"),
        high_factor=rope.number("high_freq_factor"),
        original_context=rope.whole("original_max_position_embeddings"),
    )


def _rope_layers_from_hf(text: _Fields, n_layers: int) -> frozenset[int]:
    """`no_rope_layers` marks with 1 the layers that do have RoPE; empty or null means every interval-th has not."""
    marks = text.wholes("no_rope_layers", None)
    interval = text.whole("no_rope_layer_interval", 4)
    kinds = text.take("layer_types", None)
    if not marks:
        marks = [int((i + 1) % interval != 0) for i in range(n_layers)]
    if len(marks) < n_layers:
        raise ConfigError(
            f"no_rope_layers: {len(marks)} entries in {text.where} for {n_layers} layers; one per layer is needed"
        )
    layers = frozenset(i for i in range(n_layers) if marks[i])
    expected = ["chunked_attention" if i in layers else "full_attention" for i in range(n_layers)]
    if kinds is not None and list(kinds)[:n_layers] not in (expected, ["full_attention"] * n_layers):
        raise ConfigError(
            f"layer_types: contradicts no_rope_layers in {text.where}; chunked layers are those with RoPE"
        )
    return layers


def _moe_layers_from_hf(text: _Fields, n_layers: int) -> frozenset[int]:
    layers, step = text.wholes("moe_layers", None), text.whole("interleave_moe_layer_step", 1)
    if layers is None:
        layers = range(step - 1, n_layers, step) if step else []
    return frozenset(layers)


def _vision_from_hf(vision: _Fields, preprocessor: Json | None) -> VisionConfig:
    rope = vision.take("rope_parameters", None) or {}
    theta = rope.get("rope_theta", vision.number("rope_theta", None)) or VISION_ROPE_THETA
    output_width = vision.whole("vision_output_dim")
    projected = vision.whole("projector_output_dim", output_width)
    if projected != output_width:
        raise ConfigError(
            f"projector_output_dim: {projected} in {vision.where} must equal vision_output_dim {output_width}"
        )
    config = VisionConfig(
        tile_size=_side(vision, "image_size"),
        patch_size=_side(vision, "patch_size"),
        width=vision.whole("hidden_size"),
        n_layers=vision.whole("num_hidden_layers"),
        n_heads=vision.whole("num_attention_heads"),
        mlp_width=vision.whole("intermediate_size"),
        adapter_width=vision.whole("projector_input_dim"),
        output_width=output_width,
        shuffle_ratio=vision.number("pixel_shuffle_ratio", 0.5),
        rope_theta=float(theta),
        norm_eps=vision.number("norm_eps", 1e-5),
        max_tiles=(preprocessor or {}).get("max_patches", MAX_TILES),
    )
    return config


def _side(fields: _Fields, key: str) -> int:
    """A side in pixels, which some files write as [height, width] and Meta's as {"height": .., "width": ..}."""
    value = fields.take(key)
    sides = set(value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value])
    require(len(sides) == 1 and all(isinstance(side, int) for side in sides), key, value, "one side of a square")
    return int(sides.pop())


def _text_to_hf(config: LlamaConfig) -> dict[str, Any]:
    text = config.text
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": text.rope_theta}
    if text.rope_scaling is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": text.rope_theta,
            "factor": text.rope_scaling.factor,
            "low_freq_factor": text.rope_scaling.low_factor,
            "high_freq_factor": text.rope_scaling.high_factor,
            "original_max_position_embeddings": text.rope_scaling.original_context,
        }
    return {
        "model_type": "llama4_text",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "intermediate_size": text.expert_width,
        "intermediate_size_mlp": text.dense_width,
        "num_hidden_layers": text.n_layers,
        "num_attention_heads": text.n_heads,
        "num_key_value_heads": text.n_kv_heads,
        "head_dim": text.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": text.context_len,
        "rms_norm_eps": text.norm_eps,
        "num_local_experts": text.n_experts,
        "num_experts_per_tok": text.n_active_experts,
        "moe_layers": sorted(text.moe_layers),
        "interleave_moe_layer_step": min(text.moe_layers) + 1 if text.moe_layers else 0,
        "use_qk_norm": text.qk_norm,
        "no_rope_layers": [int(i in text.rope_layers) for i in range(text.n_layers)],
        "layer_types": [
            "chunked_attention" if i in text.rope_layers else "full_attention" for i in range(text.n_layers)
        ],
        "attention_chunk_size": text.chunk_len,
        "attn_temperature_tuning": text.query_temperature is not None,
        "floor_scale": text.query_temperature.floor_len if text.query_temperature else 8192,
        "attn_scale": text.query_temperature.scale if text.query_temperature else 0.1,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": rope,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.stop_ids),
        "pad_token_id": config.pad_id,
    }


def _vision_from_meta(vision: _Fields) -> VisionConfig:
    width = vision.whole("dim")
    config = VisionConfig(
        tile_size=_side(vision, "image_size"),
        patch_size=_side(vision, "patch_size"),
        width=width,
        n_layers=vision.whole("n_layers"),
        n_heads=vision.whole("n_heads"),
        mlp_width=int(vision.number("mlp_ratio") * width),
        adapter_width=(output_width := vision.whole("output_dim")),
        output_width=output_width,
        shuffle_ratio=vision.number("pixel_shuffle_ratio"),
        rope_theta=VISION_ROPE_THETA,
        norm_eps=1e-5,
        max_tiles=MAX_TILES,
    )
    vision.finish()
    return config


def _temperature(fields: _Fields, *, tuned: bool) -> QueryTemperature | None:
    """Both formats have the same three keys; `tuned` says what the absence of the first one means."""
    is_on = fields.take("attn_temperature_tuning", tuned)
    floor_len, scale = fields.whole("floor_scale", 8192), fields.number("attn_scale", 0.1)
    return QueryTemperature(floor_len=int(floor_len), scale=scale) if is_on else None


def _meta_widths(fields: _Fields, width: int, moe: _Fields | None) -> tuple[int, int]:
    """Expert and dense hidden widths as Meta derives them. Source: llama-models `moe.py` and `model.py`."""
    exponent, multiplier = fields.number("ffn_exp", None), fields.number("ffn_dim_multiplier", None)
    multiple = fields.whole("multiple_of", 256)

    def scaled(value: int) -> int:
        value = int(2 * value / 3)
        return int(multiplier * value) if multiplier else value

    dense = scaled(int(4 * width))
    dense += -dense % multiple
    if moe is None:
        return dense, dense
    expert = scaled(int((exponent or 4.0) * width))
    capacity = moe.number("capacity_factor", 1.0)
    if moe.take("auto_scale_F", True):
        expert = int(expert / (capacity + 1))
    return expert + -expert % multiple, dense


def _meta_width_params(text: TextConfig) -> dict[str, Any]:
    """Values from which Meta's formula gives back both widths. It rounds up, so they aim half a multiple below."""
    experts = text.expert_width if text.moe_layers else text.dense_width
    multiple = math.gcd(text.dense_width, experts)
    multiplier = (text.dense_width - multiple / 2) / int(2 * (4 * text.width) / 3)
    exponent = 1.5 * (experts - multiple / 2) / multiplier / text.width
    return {"multiple_of": multiple, "ffn_dim_multiplier": multiplier, "ffn_exp": exponent}
