"""A Llama 4 small enough to run in milliseconds, with every kind of layer: chunked and global, dense and routed."""

import json
import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from puna.config import LlamaConfig, QueryTemperature
from puna.model.mask import Packed
from puna.model.transformer import Llama, initialise
from puna.presets import CRIA
from puna.prompt.tokenizer import SPLIT_PATTERN
from puna.prompt.vocab import (
    BEGIN_OF_TEXT,
    END_OF_MESSAGE,
    END_OF_TEXT,
    END_OF_TURN,
    HEADER_END,
    HEADER_START,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    PAD,
    PATCH,
    PYTHON_END,
    PYTHON_START,
    TILE_X_SEPARATOR,
    TILE_Y_SEPARATOR,
)

PATCH_ID = 60
TILE_TOKENS = 4


def tiny_config() -> LlamaConfig:
    """Chunks of 8 tokens, layer 3 global, layers 1 and 3 routed, tiles of 16 pixels that make 4 tokens."""
    assert CRIA.vision is not None
    text = replace(
        CRIA.text,
        width=32,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        vocab_size=64,
        context_len=512,
        rope_layers=frozenset({0, 1, 2}),
        chunk_len=8,
        query_temperature=QueryTemperature(floor_len=4, scale=0.1),
        moe_layers=frozenset({1, 3}),
        n_experts=4,
        expert_width=24,
        dense_width=48,
    )
    vision = replace(
        CRIA.vision,
        tile_size=16,
        patch_size=4,
        width=16,
        n_layers=1,
        n_heads=2,
        mlp_width=64,  # transformers takes the adapter's input width from it
        adapter_width=16,
        output_width=16,
    )
    return replace(CRIA, text=text, vision=vision, bos_id=50, stop_ids=(51,), pad_id=52, patch_id=PATCH_ID)


def random_model(config: LlamaConfig) -> Llama:
    """Returns a model of random weights. Its embeddings are smaller than a training begins with, so that what the
    layers write weighs as much as what they read, as in a trained model."""
    model = Llama(config)
    initialise(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embedding.weight.mul_(config.text.width**-0.5)
    return model.eval().requires_grad_(False)


def random_ids(n: int, seed: int) -> list[int]:
    """Returns `n` ids that are no special tokens."""
    return [random.Random(seed * 1000 + i).randrange(50) for i in range(n)]


def read_whole(model: Llama, ids: list[int], features: Tensor | None = None, first: int = 0) -> Tensor:
    """Returns the logits of one forward without a cache, whose mask is the definition; the text begins at `first`."""
    positions = torch.arange(first, first + len(ids))
    store = Packed(model.config.text, positions[None], torch.zeros(1, len(ids), dtype=torch.int64))
    return model(torch.tensor(ids), positions, store, features)


SPECIALS = (BEGIN_OF_TEXT, END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN, HEADER_START, HEADER_END, PAD, PYTHON_START)
SPECIALS += (PYTHON_END, IMAGE_START, IMAGE_END, IMAGE, PATCH, TILE_X_SEPARATOR, TILE_Y_SEPARATOR)


def write_tiny_checkpoint(folder: Path, *, vision: bool = True) -> Path:
    """Writes a random model with a tokenizer of single bytes, in the Hugging Face layout. Returns its folder."""
    from tokenizers.pre_tokenizers import ByteLevel

    from puna.weights.checkpoint import save_hf

    special = {name: 256 + i for i, name in enumerate(SPECIALS)}
    config = tiny_config()
    config = replace(
        config,
        text=replace(config.text, vocab_size=257 + len(special)),  # one row is padding, so that shards can be cut
        vision=config.vision if vision else None,
        bos_id=special[BEGIN_OF_TEXT],
        stop_ids=tuple(special[name] for name in (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN)),
        pad_id=special[PAD],
        image_start_id=special[IMAGE_START] if vision else None,
        image_end_id=special[IMAGE_END] if vision else None,
        patch_id=special[PATCH] if vision else None,
    )
    save_hf(random_model(config), config, folder)
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document = {
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, "merges": []},
        "added_tokens": [{"id": id_, "content": name, "special": True} for name, id_ in special.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return folder
