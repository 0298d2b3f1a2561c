"""A text read in pieces through blocks equals the text read whole; bytes equal the formula of the model card."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.engine.batch import assemble
from puna.engine.blocks import KINDS, Blocks, Counts, Layout, Table
from puna.engine.cache import (
    KVCache,
    PagedStore,
    block_bytes,
    kv_dtype,
    pool_bytes,
    sequence_bytes,
    share_out,
)
from puna.errors import CapacityError, ConfigError
from puna.model.transformer import Llama
from puna.presets import GUARD4, SCOUT
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids, random_model, read_whole, tiny_config

# Both sides compute in float32 and differ only in the order of sums.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
CPU = torch.device("cpu")
AMPLE = Counts(99, 99)


class Memory:
    """Blocks of one model and the texts in them."""

    def __init__(self, model: Llama, counts: Counts = AMPLE, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.cache = KVCache(model.config.text, counts, dtype=dtype, device=CPU)
        self.blocks = Blocks(self.cache.layout, counts, self.cache)

    def read(self, batch: Sequence[tuple[Table, list[int]]], features: Tensor | None = None) -> list[Tensor]:
        """Returns the logits of each text's new ids, from one forward."""
        for table, ids in batch:
            self.blocks.grow(table, len(ids))
        step = assemble(batch, features, [], CPU)
        logits = self.model(step.ids, step.positions, PagedStore(self.cache, step.entries), features)
        for table, ids in batch:
            self.blocks.advance(table, len(ids))
        return list(logits.split([len(ids) for _, ids in batch]))


@pytest.mark.parametrize("prompt_len", [1, 7, 8, 9, 16, 29])
def test_prefill_then_decode_equals_one_full_forward_across_chunk_borders(model: Llama, prompt_len: int) -> None:
    ids = random_ids(40, prompt_len)
    memory, table = Memory(model), Table()
    pieces = memory.read([(table, ids[:prompt_len])])
    for id_ in ids[prompt_len:]:
        pieces += memory.read([(table, [id_])])
    torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids), **TOLERANCE)


def test_pieces_of_any_length_equal_one_full_forward(model: Llama) -> None:
    for seed in range(20):
        ids, memory, table, pieces = random_ids(60, seed), Memory(model), Table(), []
        while table.length < len(ids):
            n = random.Random(seed + table.length).choice([1, 2, 5, 8, 11, 24])
            pieces += memory.read([(table, ids[table.length : table.length + n])])
        torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids), **TOLERANCE)


def test_a_batch_of_unequal_lengths_equals_each_sequence_alone(model: Llama) -> None:
    texts = [random_ids(n, n) for n in (33, 1, 8, 17, 40)]
    memory, tables = Memory(model), [Table() for _ in texts]
    got: list[list[Tensor]] = [[] for _ in texts]
    chooser = random.Random(5)
    while any(table.length < len(text) for table, text in zip(tables, texts, strict=True)):
        # Some sequences read a long piece while others read one token, in changing order.
        rows = chooser.sample(range(len(texts)), chooser.randint(1, len(texts)))
        rows = [i for i in rows if tables[i].length < len(texts[i])]
        if not rows:
            continue
        news = [texts[i][tables[i].length : tables[i].length + chooser.choice([1, 1, 3, 12])] for i in rows]
        logits = memory.read([(tables[i], new) for i, new in zip(rows, news, strict=True)])
        for i, part in zip(rows, logits, strict=True):
            got[i].append(part)
    for text, pieces in zip(texts, got, strict=True):
        torch.testing.assert_close(torch.cat(pieces), read_whole(model, text), **TOLERANCE)


@pytest.mark.parametrize("place", [0, 3, 6, 20])
def test_images_in_any_position_read_the_same_with_and_without_a_cache(model: Llama, place: int) -> None:
    features = model.embed_tiles(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(place)) * 2 - 1)
    ids = (
        random_ids(place, 1) + [PATCH_ID] * TILE_TOKENS + random_ids(5, 2) + [PATCH_ID] * TILE_TOKENS + random_ids(9, 3)
    )
    memory, table = Memory(model), Table()
    middle = place + 2  # inside the first image
    pieces = memory.read([(table, ids[:middle])], features[:2])
    pieces += memory.read([(table, ids[middle:-3])], features[2:])
    pieces += [memory.read([(table, [id_])])[0] for id_ in ids[-3:]]
    torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids, features), **TOLERANCE)


def test_a_text_holds_exactly_the_blocks_of_the_formula_and_never_more_than_one_chunk(model: Llama) -> None:
    memory, table = Memory(model, Counts(60, 40)), Table()
    config, layout = model.config.text, memory.cache.layout
    for n in (5, 2, 1, 30, 1, 100, 1, 8):
        memory.read([(table, random_ids(n, n))])
        held = Counts(len(table.global_blocks), len(table.chunk_blocks))
        assert held == layout.held(table.length) == Counts(-(-table.length // 8), -(-(table.length % 8) // 8))
        taken = Counts(*(memory.blocks.pools[kind].n_blocks - memory.blocks.available.of(kind) for kind in KINDS))
        assert pool_bytes(config, taken, torch.float32) == sequence_bytes(config, table.length, torch.float32)


def test_the_bytes_of_a_cache_are_those_of_its_tensors(model: Llama) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn):
        cache = KVCache(model.config.text, Counts(5, 3), dtype=dtype, device=CPU)
        tensors = [part for layer in range(4) for part in cache.stored(layer) if part is not None]
        assert cache.n_bytes == sum(part.numel() * part.element_size() for part in tensors)


def test_bytes_of_scout_are_those_of_the_specification() -> None:
    scout = SCOUT.text
    assert block_bytes(scout, "global", torch.bfloat16) == 49152 * 32
    chunk = 8192 * (196608 - 49152)  # 1.21 GB
    assert sequence_bytes(scout, 8191, torch.bfloat16) == 8192 * 49152 + chunk
    assert sequence_bytes(scout, 8192, torch.bfloat16) == 8192 * 49152  # a passed chunk is gone
    assert sequence_bytes(scout, 10_000_000, torch.bfloat16) == 10_000_000 * 49152 + (10_000_000 % 8192) * 147456
    # 8 bits of 128 channels and a scale of 4 bytes.
    assert block_bytes(scout, "global", torch.int8) == 12 * 2 * 8 * (128 + 4) * 32
    peak = Layout.of(scout).peak(1_000_000)
    assert pool_bytes(scout, peak, torch.bfloat16) / 2**30 == pytest.approx(46.9, abs=0.1)  # 45.8 and a whole chunk


def test_a_model_without_chunks_keeps_everything_in_the_global_pool() -> None:
    guard = GUARD4.text
    assert Layout.of(guard) == Layout(block_len=32, chunk_len=None, has_global=True)
    assert share_out(guard, torch.bfloat16, 2**30, 4).n_chunked == 0
    assert block_bytes(guard, "chunked", torch.bfloat16) == 0


def test_bytes_are_shared_out_so_that_a_chunk_fits_and_none_is_wasted() -> None:
    scout = SCOUT.text
    for n_bytes in (2 * 2**30, 20 * 2**30, 2**40):
        counts = share_out(scout, torch.bfloat16, n_bytes, 64)
        assert counts.n_chunked >= 256
        assert pool_bytes(scout, counts, torch.bfloat16) <= n_bytes
        assert n_bytes - pool_bytes(scout, counts, torch.bfloat16) < 49152 * 32
    tiny = tiny_config().text
    assert share_out(tiny, torch.float32, 2**40, 2) == Counts(2 * 64, 8)
    with pytest.raises(CapacityError, match=r"kv_bytes is 1000000000: .* at least"):
        share_out(scout, torch.bfloat16, 10**9, 64)


def test_number_formats_are_known_by_name() -> None:
    assert kv_dtype(None, torch.bfloat16) == torch.bfloat16
    assert kv_dtype("fp8", torch.bfloat16) == torch.float8_e4m3fn
    with pytest.raises(ConfigError, match="kv_dtype is 'int3'"):
        kv_dtype("int3", torch.float32)


def all_chunked() -> LlamaConfig:
    config = tiny_config()
    return replace(config, text=replace(config.text, rope_layers=frozenset(range(4))))


def test_a_model_of_chunked_layers_reads_on_at_position_eight_million() -> None:
    model = random_model(all_chunked())
    memory = Memory(model, Counts(0, 4))
    first = 8_000_000  # a chunk border: nothing before it is visible
    table, ids = Table(length=first, chunk_base=first), random_ids(21, 1)
    pieces = memory.read([(table, ids[:13])]) + [memory.read([(table, [id_])])[0] for id_ in ids[13:]]
    torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids, first=first), **TOLERANCE)


def test_a_model_without_chunks_reads_the_same_with_a_cache() -> None:
    config = tiny_config()
    model = random_model(replace(config, text=replace(config.text, chunk_len=None)))
    ids, memory, table = random_ids(30, 1), Memory(model, Counts(9, 0)), Table()
    pieces = memory.read([(table, ids[:20])]) + [memory.read([(table, [id_])])[0] for id_ in ids[20:]]
    torch.testing.assert_close(torch.cat(pieces), read_whole(model, ids), **TOLERANCE)


@pytest.mark.parametrize("length", [8, 12, 16])
def test_a_fork_goes_its_own_way(model: Llama, length: int) -> None:
    ids, one, other = random_ids(length, 1), random_ids(9, 2), random_ids(9, 3)
    memory, first = Memory(model), Table()
    memory.read([(first, ids)])
    second = memory.blocks.fork(first)
    assert second is not None
    memory.blocks.check_integrity([first, second])
    logits = memory.read([(first, one), (second, other)])
    for new, got in zip((one, other), logits, strict=True):
        torch.testing.assert_close(got, read_whole(model, ids + new)[length:], **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
def test_a_block_that_was_read_and_written_elsewhere_has_the_same_content(model: Llama, dtype: torch.dtype) -> None:
    memory, table = Memory(model, Counts(4, 4), dtype), Table()
    memory.read([(table, random_ids(6, 1))])
    for kind in KINDS:
        (block,) = table.blocks(kind)
        content = memory.cache.read(kind, block)
        assert len(content) == block_bytes(model.config.text, kind, dtype)
        memory.cache.write(kind, 3, content)
        assert memory.cache.read(kind, 3) == content


# Measured on this model: 0.003, 0.0066 and 0.038 of the spread of its logits. Keys of 3 bits of mantissa cost most.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.005), (torch.int8, 0.01), (torch.float8_e4m3fn, 0.05)])
def test_small_numbers_move_logits_little_and_the_same_in_any_pieces(
    model: Llama, dtype: torch.dtype, bound: float
) -> None:
    ids = random_ids(40, 3)
    expected = read_whole(model, ids)
    read = []
    for pieces in ([40], [13, 1, 26], [1] * 40):
        memory, table, got = Memory(model, dtype=dtype), Table(), []
        for n in pieces:
            got += memory.read([(table, ids[table.length : table.length + n])])
        read.append(torch.cat(got))
    drift = (read[0] - expected).square().mean().sqrt() / expected.std()
    assert drift < bound
    for other in read[1:]:
        torch.testing.assert_close(other, read[0], **TOLERANCE)
