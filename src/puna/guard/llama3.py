"""Llama Guard 3, 8B or 1B, as a checkpoint that the rest of the house runs: a Llama 3 is a Llama 4 without novelties.

In: a folder with `config.json`, safetensors and `tokenizer.json` as published on Hugging Face. Out: a folder in the
layout of Llama 4: dense, RoPE in every layer, no chunks, no normalised queries. Numbers stay as they are; rows of query
and key are put in another order, because Hugging Face turns the halves of a head against each other and Llama 4
neighbours. Prompts are `content_prompt`'s business; the vision model of 11B is another architecture and refused.

Run `python -m puna.guard.llama3 SRC DST`, then `puna guard content FILE --model DST`.

Source: transformers 5.23, `models/llama/modeling_llama.py` and `configuration_llama.py`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from puna.config import LlamaConfig, RopeScaling, TextConfig
from puna.errors import ConfigError, PunaError, WeightsError
from puna.weights import checkpoint, safetensors
from puna.weights.stored import Stored, read_whole

COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}
_TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def convert(source: Path, destination: Path) -> LlamaConfig:
    """Writes the new directory `destination`, which takes the memory of the model. Returns its configuration.

    Raises ConfigError or WeightsError, naming file and key, for another model, and where something is missing.
    """
    try:
        document = json.loads((source / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{source / 'config.json'}: cannot be read ({error}); give the folder of the model"
        ) from error
    config = read_config(document)
    parameters = Parameters(source, config, is_tied=bool(document.get("tie_word_embeddings", False)))
    companions = [file for name in COMPANIONS if (file := source / name).is_file()]
    checkpoint.save_hf(parameters, config, destination)
    checkpoint.copy_files(companions, destination)
    return config


def read_config(document: Mapping[str, Any]) -> LlamaConfig:
    """Returns what a parsed `config.json` of Llama 3 describes. Raises ConfigError that names the key."""
    for key, allowed in FIXED.items():
        if document.get(key, allowed[-1]) not in allowed:
            raise ConfigError(f"{key}: {document[key]!r} is not supported; Llama Guard 3 (8B, 1B) has {allowed[0]!r}")
    try:
        n_layers, n_heads, width = (
            int(document[key]) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        eos = document["eos_token_id"]
        text = TextConfig(
            width=width,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=int(document.get("num_key_value_heads") or n_heads),
            head_dim=int(document.get("head_dim") or width // n_heads),
            vocab_size=int(document["vocab_size"]),
            context_len=int(document["max_position_embeddings"]),
            norm_eps=float(document["rms_norm_eps"]),
            rope_theta=_theta(document),
            rope_scaling=_scaling(document),
            rope_layers=frozenset(range(n_layers)),
            chunk_len=None,
            query_temperature=None,
            qk_norm=False,
            moe_layers=frozenset(),
            n_experts=0,
            n_active_experts=0,
            expert_width=int(document["intermediate_size"]),
            dense_width=int(document["intermediate_size"]),
        )
        return LlamaConfig(
            text=text,
            vision=None,
            bos_id=int(document["bos_token_id"]),
            stop_ids=tuple(eos) if isinstance(eos, list) else (int(eos),),
            pad_id=document.get("pad_token_id"),
            image_start_id=None,
            image_end_id=None,
            patch_id=None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config.json: {error} is missing or no number; the file is incomplete") from error


def _rope(document: Mapping[str, Any]) -> dict[str, Any]:
    return dict(document.get("rope_scaling") or {}) | dict(document.get("rope_parameters") or {})


def _theta(document: Mapping[str, Any]) -> float:
    return float(_rope(document).get("rope_theta") or document["rope_theta"])


def _scaling(document: Mapping[str, Any]) -> RopeScaling | None:
    rope = _rope(document)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ConfigError(f"rope_type: {kind!r} is not supported; Llama 3 has 'llama3'")
    return RopeScaling(
        factor=float(rope["factor"]),
        low_factor=float(rope["low_freq_factor"]),
        high_factor=float(rope["high_freq_factor"]),
        original_context=int(rope["original_max_position_embeddings"]),
    )


class Parameters(Mapping[str, Tensor]):
    """The parameters under the names that they have here, each read when it is asked for."""

    def __init__(self, folder: Path, config: LlamaConfig, *, is_tied: bool) -> None:
        files = sorted(folder.glob("*.safetensors"))
        self._stored: dict[str, Stored] = {each.key: each for file in files for each in safetensors.index(file)}
        self._head_dim = config.text.head_dim
        self._keys = dict(_TOP)
        if is_tied:
            self._keys["head.weight"] = self._keys["embedding.weight"]
        for n in range(config.text.n_layers):
            self._keys |= {f"layers.{n}.{ours}.weight": f"model.layers.{n}.{hf}.weight" for ours, hf in _LAYER.items()}
        for key in self._keys.values():
            if key not in self._stored:
                raise WeightsError(f"{key!r} in {folder}: missing; the checkpoint is incomplete, fetch it again")

    def __getitem__(self, name: str) -> Tensor:
        weight = read_whole(self._stored[self._keys[name]])
        if name.endswith(("attention.query.weight", "attention.key.weight")):
            halves = weight.view(-1, 2, self._head_dim // 2, weight.shape[-1])  # heads, half, pair, D
            return halves.transpose(1, 2).reshape(weight.shape)
        return weight.clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 2 with one line on standard error when a file is wrong."""
    parser = argparse.ArgumentParser(prog="python -m puna.guard.llama3", description="Make Llama Guard 3 runnable.")
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    given = parser.parse_args(arguments)
    try:
        convert(given.source, given.destination)
    except PunaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
