"""A million tokens through a small model of Scout's kind: bytes, a needle found, and what a token costs where.

    python bench/long_context.py [--tokens 1000000] [--chunk 8192] [--step 2048] [--out FILE]

The model has three chunked layers and a global one, with weights set by hand so that the global layer can answer: each
token's value says what token it is, the key of the needle is like no other, and the query of the last token looks for
it. The needle lies near the beginning, far outside the last token's chunk, so only the global layer over the whole
context can know it. The text is read through the engine in steps, prefixes and all, as any request would be.

Printed as one JSON document: bytes by the formula and bytes that were held at the end; whether the next token is the
needle's; and the microseconds that a token costs by tenth of the context, also where all layers are chunked.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.config import LlamaConfig, QueryTemperature, TextConfig
from puna.engine.batch import Batch, Entry
from puna.engine.blocks import Counts, Layout
from puna.engine.cache import KVCache, pool_bytes, sequence_bytes
from puna.engine.engine import Engine
from puna.engine.request import Request, Sampling
from puna.engine.runner import for_model
from puna.model.transformer import Llama, initialise
from puna.presets import SCOUT
from puna.quant.swap import placer

GLOBAL_LAYER = 3
N_WORDS = 64  # tokens of the text; behind them come the needle's marker, its content, and the question
MARKER, QUESTION = N_WORDS, N_WORDS + 1
VOCAB = 128
WIDTH, HEAD_DIM = 256, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, default=8192)
    parser.add_argument("--step", type=int, default=2048, help="tokens of one forward")
    parser.add_argument("--kv-dtype", default="bfloat16", help="of keys and values; the model computes in bfloat16")
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    chosen = parser.parse_args()
    result = measure(chosen.tokens, chosen.chunk, chosen.step, chosen.kv_dtype)
    text = json.dumps(result, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text + "\n", encoding="utf-8")


def measure(n_tokens: int, chunk_len: int, step_len: int, kv_dtype: str) -> dict[str, Any]:
    config = toy(n_tokens, chunk_len)
    found = read(packed(reader(config)), n_tokens, step_len, kv_dtype)
    only_chunked = replace(config, text=replace(config.text, rope_layers=frozenset(range(4))))
    return found | {"us_a_token_with_chunked_layers_alone": walk(packed(untrained(only_chunked)), n_tokens, step_len)}


def walk(model: Llama, n_tokens: int, step_len: int) -> list[float]:
    """Returns what `by_tenth` does for a model without global layers, whose one chunk of blocks serves again and again.

    Not through an engine: that knows that such a model's tokens depend on nothing before their chunk, and begins there.
    """
    layout, device = Layout.of(model.config.text), torch.device("cpu")
    assert layout.chunk_len is not None and layout.chunk_len % step_len == 0, "steps end where chunks end"
    blocks = list(range(layout.chunk_len // layout.block_len))
    cache = KVCache(model.config.text, Counts(0, len(blocks)), dtype=torch.bfloat16, device=device)
    runner, (ids, _), times = for_model(model, cache), haystack(n_tokens), []
    for start in range(0, n_tokens, step_len):
        new = torch.tensor(ids[start : start + step_len])
        entry = Entry(len(new), start, [], blocks, start // layout.chunk_len * layout.chunk_len)
        now = time.perf_counter()
        runner.run(Batch(new, torch.arange(start, start + len(new)), None, [entry], torch.tensor([len(new) - 1])))
        times.append((start, time.perf_counter() - now))
    return by_tenth(times, n_tokens)


def untrained(config: LlamaConfig) -> Llama:
    model = Llama(config)
    initialise(model, torch.Generator().manual_seed(0))
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def read(model: Llama, n_tokens: int, step_len: int, kv_dtype: str) -> dict[str, Any]:
    config = model.config
    # Room for this text and no more: what the formula says, and the chunks that a step may pass.
    layout = Layout.of(config.text)
    peak = layout.peak(n_tokens)
    counts = peak._replace(n_chunked=peak.n_chunked + step_len // layout.block_len)
    engine = Engine(model, max_step_tokens=step_len, max_sequences=1, n_blocks=counts, kv_dtype=kv_dtype)
    ids, answer = haystack(n_tokens)
    begin = time.perf_counter()
    engine.add(Request(ids=ids, sampling=Sampling(temperature=0, max_new_tokens=1)))
    events, held, times = [], [(0, engine.load.n_held_blocks)], []
    while not events:
        now = time.perf_counter()
        events = engine.step()
        times.append((held[-1][0], time.perf_counter() - now))
        held.append((min(held[-1][0] + step_len, n_tokens), engine.load.n_held_blocks))
        print(f"\r{held[-1][0]:,} of {n_tokens:,} tokens", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    seconds = time.perf_counter() - begin
    text = config.text
    dtype, every_layer = engine.cache.dtype, replace(text, rope_layers=frozenset())
    return {
        "tokens": n_tokens,
        "chunk": config.text.chunk_len,
        "kv_dtype": kv_dtype,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "prefill_tok_s": round(n_tokens / seconds),
        "needle_found": [event.token for event in events] == [answer],
        "needle_position": ids.index(MARKER),
        # Behind the last step the text has ended and holds nothing.
        "kv_blocks_are_those_of_the_formula": all(n_blocks == layout.held(n) for n, n_blocks in held[:-1]),
        "kv_bytes_before_the_last_step": pool_bytes(text, held[-2][1], dtype),
        "kv_bytes_at_the_end": sequence_bytes(text, n_tokens, dtype),
        "kv_bytes_at_most": pool_bytes(text, peak, dtype),
        "kv_bytes_allocated": engine.cache.n_bytes,  # with the chunks that a step may pass
        "kv_bytes_of_a_cache_without_chunks": sequence_bytes(every_layer, n_tokens, dtype),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "us_a_token": by_tenth(times, n_tokens),
    }


def by_tenth(times: list[tuple[int, float]], n_tokens: int) -> list[float]:
    """Returns microseconds a token of steps, (position of the first token, seconds), for each tenth of the context."""
    tenths = [0.0] * 10
    ends = [start for start, _ in times[1:]] + [n_tokens]
    counts = [0] * 10
    for (start, seconds), end in zip(times, ends, strict=True):
        tenths[min(start * 10 // n_tokens, 9)] += seconds
        counts[min(start * 10 // n_tokens, 9)] += end - start
    return [round(1e6 * seconds / n, 2) if n else 0.0 for seconds, n in zip(tenths, counts, strict=True)]


def packed(model: Llama) -> Llama:
    """Returns the model as `puna.load` makes it: in the order of the processor's kernels, if it has them."""
    for name, parameter in list(model.named_parameters()):
        placer()(model, name, parameter.detach())
    return model


def toy(n_tokens: int, chunk_len: int) -> LlamaConfig:
    """Returns Scout's plan in small: layers 0 to 2 chunked, layer 3 global, one head of keys, dense layers."""
    text: TextConfig = replace(
        SCOUT.text,
        width=WIDTH,
        n_layers=4,
        n_heads=1,
        n_kv_heads=1,
        head_dim=HEAD_DIM,
        vocab_size=VOCAB,
        context_len=n_tokens + 1,
        rope_layers=frozenset({0, 1, 2}),
        chunk_len=chunk_len,
        query_temperature=QueryTemperature(floor_len=8192, scale=0.1),
        moe_layers=frozenset(),
        n_experts=0,
        n_active_experts=0,
        dense_width=64,
    )
    return replace(SCOUT, text=text, vision=None, patch_id=None, image_start_id=None, image_end_id=None)


@torch.no_grad()
def reader(config: LlamaConfig) -> Llama:
    """Returns a model that answers QUESTION with the token behind MARKER.

    Every token's embedding is a direction of its own and stays as it is: no layer but the global one writes. There the
    token behind the marker must be known by its content, so the content's id is one that only a needle has
    (`haystack`); the query of QUESTION is the sum of the keys of all such ids.
    """
    model = Llama(config)
    initialise(model, torch.Generator().manual_seed(0))
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)))[0]
    model.embedding.weight.copy_(directions[:VOCAB])
    for layer in model.layers:
        layer.attention.output.weight.zero_()
        layer.mlp.down.weight.zero_()
    attention = model.layers[GLOBAL_LAYER].attention
    question, needle, content = directions[QUESTION], directions[QUESTION + 1 : VOCAB], directions[:VOCAB]
    find = torch.zeros(HEAD_DIM)
    find[0] = 1.0
    gain = WIDTH**-0.5  # a normed embedding is this much longer than 1
    attention.query.weight.copy_(torch.outer(find * 300.0, question) * gain)
    attention.key.weight.copy_(torch.outer(find, needle.sum(0)) * gain)
    attention.value.weight.copy_(_codes() @ content * gain)
    attention.output.weight.copy_(content.T @ _codes().T * 4.0)
    model.head.weight.copy_(content)
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def _codes() -> Tensor:
    """Returns what a value says of each token, [H V]: signs of its number's bits, so that no two are alike."""
    bits = (torch.arange(VOCAB)[None, :] >> (torch.arange(HEAD_DIM) % 7)[:, None]) & 1  # H V
    return (2.0 * bits - 1.0) / HEAD_DIM**0.5


def haystack(n_tokens: int) -> tuple[list[int], int]:
    """Returns random words with a needle at one hundredth of the way, the question last; and the needle's content."""
    answer = QUESTION + 7
    ids = torch.randint(0, N_WORDS, (n_tokens,), generator=torch.Generator().manual_seed(2)).tolist()
    place = n_tokens // 100
    ids[place : place + 2] = [MARKER, answer]
    ids[-1] = QUESTION
    return ids, answer


if __name__ == "__main__":
    main()
