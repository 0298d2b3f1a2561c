"""A Llama Guard 4 in shape whose answers are chosen: what follows a token depends on that token alone.

Layers add nothing; embedding and head hold the script. So whatever it is asked, its answer is known, log-probabilities
included, while everything else (prompt, engine, caches) runs as with any model.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from puna.chat import Assistant
from puna.config import LlamaConfig
from puna.model.transformer import Llama, initialise
from puna.prompt.tokenizer import Tokenizer
from puna.weights.checkpoint import open_config
from tests.reference.tiny import tiny_config

CRIA = Path(__file__).parents[2] / "src" / "puna" / "assets" / "cria"
END = "<|eot|>"

Script = Mapping[str, Mapping[str, float]]


def guard_config(context_len: int = 2048) -> LlamaConfig:
    """Dense, no chunks, RoPE in every layer, cria's vocabulary: how Llama Guard 4 differs from its parents."""
    cria, tiny = open_config(CRIA), tiny_config()
    text = replace(
        tiny.text,
        vocab_size=cria.text.vocab_size,
        context_len=context_len,
        rope_layers=frozenset(range(tiny.text.n_layers)),
        chunk_len=None,
        moe_layers=frozenset(),
        n_experts=0,
        n_active_experts=0,
    )
    return replace(cria, text=text, vision=tiny.vision)


def random_guard(config: LlamaConfig) -> Llama:
    model = Llama(config)
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False)


def scripted(script: Script, context_len: int = 2048) -> Assistant:
    """Returns an assistant that goes on after each token of `script` as it says: next token to its logit.

    All other logits are 0, after all other tokens too. A token is written as its text, which must be one token.
    """
    config, tokenizer = guard_config(context_len), _tokenizer()
    model = random_guard(config)
    for layer in model.layers:
        layer.attention.output.weight.zero_()
        layer.mlp.down.weight.zero_()
    model.embedding.weight.zero_()
    model.head.weight.zero_()
    model.norm.weight.fill_(1.0)
    scale = (1 / config.text.width + config.text.norm_eps) ** -0.5  # what the norm makes of a unit vector
    for axis, (token, following) in enumerate(script.items()):
        model.embedding.weight[_id(tokenizer, token), axis] = 1.0
        for after, logit in following.items():
            model.head.weight[_id(tokenizer, after), axis] = logit / scale
    return Assistant(model, tokenizer)


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.load(CRIA)


def _id(tokenizer: Tokenizer, token: str) -> int:
    if token in tokenizer.special:
        return tokenizer.special[token]
    (only,) = tokenizer.encode(token)
    return only
