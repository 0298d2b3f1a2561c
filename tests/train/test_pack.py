"""The packer loses nothing, splits no picture, and makes the same batches in every process."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.train.pack import PADDING, Batch, DataState, Order, Packer, Prefetch, cut_documents
from puna.train.store import Store, open_store, tokenise


def make(store: Store, config: LlamaConfig, **changes: object) -> Packer:
    options = {"rows": 3, "row_len": 120, "tiles": 20, "window": 16, "seed": 3, "passes": {}} | changes
    return Packer(store, config, **options)  # type: ignore[arg-type]


def random_store(lengths: list[int], tiles: list[int], config: LlamaConfig) -> Store:
    """Documents of the given lengths, each with pictures of one tile at its front where they fit."""
    assert config.vision is not None
    slot = [config.image_start_id, *[config.patch_id] * config.vision.tokens_per_tile, config.image_end_id]
    documents, n_tiles = [], []
    for number, (length, wanted) in enumerate(zip(lengths, tiles, strict=True)):
        count = min(wanted, length // len(slot))
        documents.append((slot * count + [number % 200] * length)[: max(length, 2)])
        n_tiles.append(count)
    total = sum(n_tiles)
    size = config.vision.tile_size
    ids = np.concatenate([np.asarray(d, dtype=np.uint16) for d in documents])
    marks = np.arange(total, dtype=np.uint8)[:, None, None, None]
    return Store(
        ids=ids,
        weights=(ids < 256).astype(np.uint8),
        tiles=np.broadcast_to(marks, (total, 3, size, size)),
        offsets=np.cumsum([0] + [len(d) for d in documents]),
        tile_offsets=np.cumsum([0, *n_tiles]),
        tile_refs=np.arange(total),
        sources=np.arange(len(documents)) % 2,
        source_names=("even", "odd"),
        names=tuple(str(i) for i in range(len(documents))),
        sets=("",) * len(documents),
        digest="none",
    )


def check(batch: Batch, packer: Packer) -> None:
    """Every row is its pieces one after another: tokens, positions, targets within a document, tiles in order."""
    tile = 0
    for b, row in enumerate(batch.pieces):
        at = 0
        for d, piece in enumerate(row):
            start, n = int(packer.pieces.start[piece]), int(packer.pieces.length[piece])
            here = slice(at, at + n)
            ids = torch.from_numpy(packer.store.ids[start : start + n].astype(np.int64))
            assert batch.ids[b, here].equal(ids)
            assert batch.positions[b, here].equal(torch.arange(n)) and bool((batch.documents[b, here] == d).all())
            assert batch.targets[b, at : at + n - 1].equal(ids[1:])
            assert batch.weights[b, at + n - 1] == 0.0
            expected = torch.from_numpy(packer.store.weights[start + 1 : start + n].astype(np.float32))
            assert batch.weights[b, at : at + n - 1].equal(expected)
            first = int(packer.pieces.first_tile[piece])
            for ref in packer.store.tile_refs[first : first + int(packer.pieces.n_tiles[piece])]:
                assert batch.tiles[tile].equal(torch.from_numpy(np.array(packer.store.tiles[ref])))
                tile += 1
            at += n
        assert bool((batch.documents[b, at:] == PADDING).all()) and not batch.weights[b, at:].any()
    assert batch.n_tiles == tile and not batch.tiles[tile:].any()


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(2, 90), st.integers(0, 3)), min_size=3, max_size=40),
    row_len=st.integers(12, 60),
    window=st.integers(2, 20),
)
def test_packing_once_holds_every_token_once_and_splits_no_picture(
    tiny_model_config: LlamaConfig, shapes: list[tuple[int, int]], row_len: int, window: int
) -> None:
    config = tiny_model_config
    store = random_store([s[0] for s in shapes], [s[1] for s in shapes], config)
    packer = make(store, config, row_len=row_len, window=window, tiles=12)
    pieces: list[int] = []
    for batch in packer.once():
        check(batch, packer)
        slots = int((batch.ids == config.patch_id).sum())
        assert config.vision is not None and slots == batch.n_tiles * config.vision.tokens_per_tile
        pieces += [piece for row in batch.pieces for piece in row]
    assert sorted(pieces) == list(range(len(packer.pieces.length)))
    assert packer.pieces.length.sum() == len(store.ids)
    starts = np.sort(packer.pieces.start)
    assert starts[0] == 0 and len(set(starts.tolist())) == len(starts)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 50), seed=st.integers(0, 9), passes=st.sampled_from([0.5, 1.0, 1.7, 3.0]))
def test_each_piece_is_seen_equally_often_over_the_epochs(n: int, seed: int, passes: float) -> None:
    order = Order(np.zeros(2 * n, dtype=np.int64), [passes], seed)
    seen = np.bincount(np.concatenate([order.epoch(e) for e in range(10)]), minlength=2 * n)
    assert seen.sum() == int(10 * passes * 2 * n) and seen.max() - seen.min() <= 1


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_number_only() -> None:
    sources = np.arange(40, dtype=np.int64) % 3
    order = Order(sources, [1.0, 1.0, 1.0], seed=1)
    first = order.epoch(0).tolist()
    assert sorted(first) == list(range(40)) and first != order.epoch(1).tolist()
    assert Order(sources, [1.0, 1.0, 1.0], seed=1).epoch(0).tolist() == first
    assert Order(sources, [1.0, 1.0, 1.0], seed=2).epoch(0).tolist() != first


def test_batches_follow_from_the_state_alone(store: Store, tiny_model_config: LlamaConfig) -> None:
    packer = make(store, tiny_model_config)
    states, batches = [DataState()], []
    for _ in range(12):
        batch, state = packer.next(states[-1])
        check(batch, packer)
        batches.append(batch)
        states.append(state)
    assert states[-1].epoch == 1
    fresh = make(store, tiny_model_config)
    for n in (11, 3, 7):
        again, state = fresh.next(states[n])
        assert state == states[n + 1] and again.pieces == batches[n].pieces and again.ids.equal(batches[n].ids)
    with Prefetch(make(store, tiny_model_config), states[3]) as prefetch:
        assert [prefetch.next()[1] for _ in range(4)] == states[4:8]


def test_another_process_draws_the_same_order() -> None:
    code = "import numpy as np; from puna.train.pack import Order; "
    code += "print(Order(np.arange(30, dtype=np.int64) % 2, [1.0, 1.5], 9).epoch(2).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(Order(np.arange(30, dtype=np.int64) % 2, [1.0, 1.5], 9).epoch(2).tolist())


def test_rows_are_nearly_full_and_nothing_waits_for_long(tiny_model_config: LlamaConfig) -> None:
    draw = np.random.default_rng(0)
    store = random_store(draw.integers(5, 60, 400).tolist(), [0] * 400, tiny_model_config)
    packer = make(store, tiny_model_config, row_len=128, window=40)
    state, filled, waits = DataState(), 0, 0
    for _ in range(30):
        before = state
        batch, state = packer.next(state)
        filled += batch.n_tokens
        waits = max(waits, len(set(before.waiting[:1]) & set(state.waiting)))
    assert filled / (30 * 3 * 128) > 0.97  # first-fit over 40 short documents
    assert waits == 0  # the oldest one always finds a place


def test_a_document_longer_than_a_row_is_cut_and_named_when_its_picture_is(
    store: Store, tiny_model_config: LlamaConfig
) -> None:
    pieces = cut_documents(store, 120, tiny_model_config)
    long = store.names.index("long")
    assert (pieces.document == long).sum() > 1 and pieces.length.max() <= 120
    with pytest.raises(ConfigError, match="row_len: 4 is shorter than a picture"):
        cut_documents(store, 4, tiny_model_config)


def test_impossible_options_are_refused(store: Store, tiny_model_config: LlamaConfig) -> None:
    with pytest.raises(ConfigError, match=r"batch.tiles: 1 is too few"):
        make(store, tiny_model_config, tiles=1)
    with pytest.raises(ConfigError, match=r"data.passes.nothing: no document"):
        make(store, tiny_model_config, passes={"nothing": 1.0})
    with pytest.raises(ConfigError, match=r"data.passes"):
        make(store, tiny_model_config, passes=dict.fromkeys(store.source_names, 0.0))


def test_what_fails_on_the_thread_is_raised_where_batches_are_asked_for(
    store: Store, tiny_model_config: LlamaConfig
) -> None:
    packer = make(store, tiny_model_config)
    packer.pieces = dataclasses.replace(packer.pieces, start=packer.pieces.start[:1])
    with Prefetch(packer, DataState()) as prefetch, pytest.raises(IndexError):
        prefetch.next()


def test_a_document_that_is_damaged_on_disk_is_named_when_it_is_read(
    documents: Path, tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path
) -> None:
    """A flipped bit of an id, of a weight and of a tile; and a file that is too short is found at once."""
    made = tokenise(documents, tiny / "tokenizer.json", tiny_model_config.vision, tmp_path, lambda line: None)
    assert made.checks is not None and made.tile_checks is not None
    for name, place in (("ids.bin", 2 * int(made.offsets[5])), ("weights.bin", int(made.offsets[5])), ("tiles.bin", 0)):
        content = bytearray((made.home / name).read_bytes())
        content[place] ^= 1
        (made.home / name).write_bytes(content)
        packer = make(open_store(made.home), tiny_model_config)
        with pytest.raises(WeightsError, match=r"store .*: document \S+ is damaged; remove that folder"):
            list(packer.once())
        content[place] ^= 1
        (made.home / name).write_bytes(content)
    assert list(make(open_store(made.home), tiny_model_config).once())
    (made.home / "ids.bin").write_bytes((made.home / "ids.bin").read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"ids\.bin is damaged"):
        open_store(made.home)
