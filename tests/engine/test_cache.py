import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from puna.engine.cache import BatchCache, SequenceCache
from puna.model.transformer import Llama
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids, random_model, read_whole, tiny_config

# Both sides compute in float32 and differ only in the order of sums.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def new_cache(model: Llama) -> SequenceCache:
    return SequenceCache(model.config.text, dtype=torch.float32, device=torch.device("cpu"))


def read(model: Llama, batch: list[tuple[SequenceCache, list[int]]], features: Tensor | None = None) -> list[Tensor]:
    """Returns the logits of each sequence's new ids, from one forward."""
    store = BatchCache([(cache, len(ids)) for cache, ids in batch])
    flat = torch.tensor([id_ for _, ids in batch for id_ in ids])
    logits = model(flat, torch.tensor(store.positions()), store, features)
    store.advance()
    return list(logits.split([len(ids) for _, ids in batch]))


@pytest.mark.parametrize("prompt_len", [1, 7, 8, 9, 16, 29])
def test_prefill_then_decode_equals_one_full_forward_across_chunk_borders(model: Llama, prompt_len: int) -> None:
    ids = random_ids(40, prompt_len)
    cache = new_cache(model)
    pieces = read(model, [(cache, ids[:prompt_len])])
    for id_ in ids[prompt_len:]:
        pieces += read(model, [(cache, [id_])])
    torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids), **TOLERANCE)


def test_pieces_of_any_length_equal_one_full_forward(model: Llama) -> None:
    for seed in range(20):
        ids, cache, start, pieces = random_ids(60, seed), new_cache(model), 0, []
        while start < len(ids):
            n = random.Random(seed + start).choice([1, 2, 5, 8, 11, 24])
            pieces += read(model, [(cache, ids[start : start + n])])
            start += n
        torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids), **TOLERANCE)


def test_a_batch_of_unequal_lengths_equals_each_sequence_alone(model: Llama) -> None:
    texts = [random_ids(n, n) for n in (33, 1, 8, 17, 40)]
    done = [0] * len(texts)
    caches = [new_cache(model) for _ in texts]
    got: list[list[Tensor]] = [[] for _ in texts]
    chooser = random.Random(5)
    while any(done[i] < len(text) for i, text in enumerate(texts)):
        # Some sequences read a long piece while others read one token, in changing order.
        rows = [i for i in chooser.sample(range(len(texts)), chooser.randint(1, len(texts))) if done[i] < len(texts[i])]
        if not rows:
            continue
        news = [texts[i][done[i] : done[i] + chooser.choice([1, 1, 3, 12])] for i in rows]
        for i, new, logits in zip(
            rows, news, read(model, [(caches[i], new) for i, new in zip(rows, news, strict=True)]), strict=True
        ):
            got[i].append(logits)
            done[i] += len(new)
    for text, pieces in zip(texts, got, strict=True):
        torch.testing.assert_close(torch.cat(pieces), read_whole(model, text), **TOLERANCE)


@pytest.mark.parametrize("place", [0, 3, 6, 20])
def test_images_in_any_position_read_the_same_with_and_without_a_cache(model: Llama, place: int) -> None:
    features = model.embed_tiles(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(place)) * 2 - 1)
    ids = (
        random_ids(place, 1) + [PATCH_ID] * TILE_TOKENS + random_ids(5, 2) + [PATCH_ID] * TILE_TOKENS + random_ids(9, 3)
    )
    cache = new_cache(model)
    middle = place + 2  # inside the first image
    pieces = read(model, [(cache, ids[:middle])], features[:2])
    pieces += read(model, [(cache, ids[middle:-3])], features[2:])
    pieces += [read(model, [(cache, [id_])])[0] for id_ in ids[-3:]]
    torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids, features), **TOLERANCE)


def test_a_chunked_layer_never_holds_more_than_one_chunk(model: Llama) -> None:
    cache = new_cache(model)
    for n in (5, 30, 1, 100):
        read(model, [(cache, random_ids(n, n))])
        for layer in range(4):
            held = cache._slots[layer].shape[1]
            assert held <= 8 if layer < 3 else held >= cache.length == cache.length


def test_a_global_layer_grows_by_doubling(model: Llama) -> None:
    cache, sizes = new_cache(model), set()
    for i in range(300):
        read(model, [(cache, [i % 50])])
        sizes.add(cache.n_bytes)
    assert len(sizes) <= 4  # 64, 128, 256, 512 slots: growing costs a copy only that often


def test_a_model_of_chunked_layers_reads_on_at_position_eight_million() -> None:
    config = tiny_config()
    model = random_model(replace(config, text=replace(config.text, rope_layers=frozenset(range(4)))))
    cache = new_cache(model)
    cache.length = first = 8_000_000  # a chunk border: nothing before it is visible
    ids = random_ids(21, 1)
    pieces = read(model, [(cache, ids[:13])]) + [read(model, [(cache, [id_])])[0] for id_ in ids[13:]]
    torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids, first=first), **TOLERANCE)
    assert max(slots.shape[1] for slots in cache._slots) == 8


def test_a_model_without_chunks_reads_the_same_with_a_cache() -> None:
    config = tiny_config()
    model = random_model(replace(config, text=replace(config.text, chunk_len=None)))
    ids, cache = random_ids(30, 1), new_cache(model)
    pieces = read(model, [(cache, ids[:20])]) + [read(model, [(cache, [id_])])[0] for id_ in ids[20:]]
    torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids), **TOLERANCE)


def test_a_fork_goes_its_own_way(model: Llama) -> None:
    ids, one, other = random_ids(12, 1), random_ids(9, 2), random_ids(9, 3)
    first = new_cache(model)
    read(model, [(first, ids)])
    second = first.fork()
    logits = read(model, [(first, one), (second, other)])
    for new, got in zip((one, other), logits, strict=True):
        torch.testing.assert_close(got, read_whole(model, ids + new)[12:], **TOLERANCE)
