"""The C++ runner against the plain one: the same batches, over the same blocks, one after the other."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from puna.adapters.shelf import Shelf
from puna.adapters.spec import Spec
from puna.config import LlamaConfig, RopeScaling
from puna.engine.batch import Batch, Entry
from puna.engine.blocks import Counts, Layout
from puna.engine.cache import KVCache
from puna.engine.native import NativeRunner
from puna.engine.runner import Runner, TorchRunner, for_model
from puna.kernels import native
from puna.model.transformer import Llama
from puna.quant import swap
from tests.adapters.toys import EVERYTHING, adapter_for
from tests.reference.tiny import PATCH_ID, random_ids, random_model, tiny_config

pytestmark = pytest.mark.skipif(not native.available(), reason="the C++ kernels are not built for this processor")

N_BLOCKS = 1200


def wide_config(chunk_len: int | None = 64, **changes: object) -> LlamaConfig:
    """Heads and blocks as large as real models have them, so that keys and values lie in tiles."""
    config = tiny_config()
    text = replace(config.text, width=80, n_heads=6, head_dim=32, chunk_len=chunk_len, n_active_experts=2, **changes)
    return replace(config, text=text)


SHAPES = {
    "tiny": tiny_config(),
    "wide": wide_config(),
    "guard": wide_config(
        chunk_len=None, moe_layers=frozenset(), rope_layers=frozenset(range(4)), query_temperature=None
    ),
    "scaled": wide_config(rope_scaling=RopeScaling(factor=16, low_factor=1, high_factor=1, original_context=64)),
    "no_qk_norm": wide_config(qk_norm=False),
    "odd_chunk": wide_config(chunk_len=7),
}


class Texts:
    """Sequences that grow in both runners at once, each with blocks of its own."""

    def __init__(self, model: Llama, kv_dtype: torch.dtype, shelf: Shelf | None = None) -> None:
        self.layout = Layout.of(model.config.text)
        caches = [
            KVCache(model.config.text, Counts(N_BLOCKS, N_BLOCKS), dtype=dtype, device=torch.device("cpu"))
            for dtype in (torch.float32 if kv_dtype == torch.int8 else kv_dtype, kv_dtype)
        ]
        for cache in caches:  # what was never written must not matter
            for part in (*cache.keys, *cache.values):
                part.fill_(torch.nan if part.is_floating_point() else 77)
        self.runners: tuple[Runner, Runner] = (
            TorchRunner(model, caches[0], shelf),
            NativeRunner(model, caches[1], shelf),
        )
        self.lengths = [0] * 4
        self.per_text = N_BLOCKS // 4

    def batch(
        self, pieces: list[tuple[int, list[int]]], features: Tensor | None = None, adapters: tuple[int, ...] = (-1,) * 4
    ) -> Batch:
        """`adapters` are those of the texts."""
        entries, ids, positions = [], [], []
        for text, new in pieces:
            start = self.lengths[text]
            blocks = [text * self.per_text + (i * 7) % self.per_text for i in range(self.per_text)]  # not in order
            chunk_base = 0 if self.layout.chunk_len is None else start // self.layout.chunk_len * self.layout.chunk_len
            chunk_blocks = blocks[chunk_base // self.layout.block_len :]
            entries.append(Entry(len(new), start, blocks, chunk_blocks, chunk_base, adapters[text]))
            ids += new
            positions += range(start, start + len(new))
            self.lengths[text] += len(new)
        return Batch(torch.tensor(ids), torch.tensor(positions), features, entries, torch.arange(len(ids)))


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_the_plain_runners(name: str) -> None:
    model = random_model(SHAPES[name])
    texts = Texts(model, torch.float32)
    for pieces in ([(0, 9), (1, 70)], [(0, 1), (1, 1), (2, 33)], [(2, 1)], [(3, 3), (2, 31), (0, 1)], [(1, 60)]):
        batch = texts.batch([(text, random_ids(n, seed=text * 100 + n)) for text, n in pieces])
        plain, fast = (runner.run(batch) for runner in texts.runners)
        # Sums in another order: 4 layers of float32.
        assert (fast - plain).abs().max() <= 1e-5 * plain.abs().max()


def shelf_for(model: Llama) -> Shelf:
    """Two adapters, of which one corrects everything and the other some experts."""
    few = Spec(rank=9, targets=frozenset({"experts", "attention"}), experts={1: (0, 3), 3: (2,)})
    broad = Spec(rank=19, targets=EVERYTHING)
    if not model.config.text.moe_layers:
        few = Spec(rank=9, targets=frozenset({"dense"}))
        broad = Spec(rank=19, targets=EVERYTHING - {"shared", "experts", "router"})
    return Shelf(model, {str(i): adapter_for(model.config, spec, i) for i, spec in enumerate((broad, few))})


@pytest.mark.parametrize(("name", "n_threads"), [("tiny", 2), ("wide", 1), ("guard", 1)])
def test_rows_with_adapters_equal_the_plain_runners(name: str, n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_n_threads", lambda: n_threads)
    monkeypatch.setattr(native, "_BYTES_WORTH_A_TEAM", 0)
    model = random_model(SHAPES[name])
    texts, bare = Texts(model, torch.float32, shelf_for(model)), Texts(model, torch.float32)
    adapters = (0, -1, 1, 0)
    for pieces in ([(0, 9), (1, 70), (3, 60)], [(0, 1), (1, 1), (2, 33), (3, 1)], [(2, 1)], [(3, 3), (1, 31), (0, 1)]):
        new = [(text, random_ids(n, seed=text * 100 + n)) for text, n in pieces]
        batch = texts.batch(new, adapters=adapters)
        plain, fast = (runner.run(batch) for runner in texts.runners)
        # Sums in another order: 4 layers of float32, and factors ten times those of a trained adapter.
        assert (fast - plain).abs().max() <= 2e-5 * plain.abs().max()
        without = bare.runners[1].run(bare.batch(new))
        rows = torch.cat([torch.full((n,), text == 1) for text, n in pieces])
        assert torch.equal(fast[rows], without[rows])
        if not rows.all():
            assert (fast - without)[~rows].abs().max() > 0.1 * plain.abs().max()


def test_pictures_take_the_places_of_their_ids() -> None:
    model = random_model(wide_config())
    texts = Texts(model, torch.float32)
    ids = [1, PATCH_ID, PATCH_ID, 2, 3, PATCH_ID, 4]
    features = torch.randn(3, 80, generator=torch.Generator().manual_seed(0))
    batch = texts.batch([(0, ids[:4]), (1, ids[4:])], features)
    plain, fast = (runner.run(batch) for runner in texts.runners)
    assert (fast - plain).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.parametrize(("kv_dtype", "bound"), [(torch.bfloat16, 0.02), (torch.int8, 0.02)])
def test_small_numbers_in_the_cache_change_little(kv_dtype: torch.dtype, bound: float) -> None:
    """Half a step of 8 bits in queries, keys, values and weights, over 4 layers."""
    for name in ("tiny", "wide"):
        model = random_model(SHAPES[name])
        exact, small = Texts(model, torch.float32), Texts(model, kv_dtype)
        for n in (9, 70, 1, 1):
            ids = random_ids(n, seed=n)
            plain = exact.runners[0].run(exact.batch([(0, ids)]))
            got = small.runners[1].run(small.batch([(0, ids)]))
            assert (got - plain).norm() <= bound * plain.norm()


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_text_has_the_same_bits_in_any_company_and_in_any_pieces(kv_dtype: torch.dtype) -> None:
    for name, adapters in (("tiny", (-1, 1, 0)), ("wide", (0, 1, -1))):
        model = random_model(SHAPES[name])
        ids, shelf = random_ids(140, seed=3), shelf_for(model)
        alone, pieces = Texts(model, kv_dtype, shelf), Texts(model, kv_dtype, shelf)
        whole = alone.runners[1].run(alone.batch([(0, ids)], adapters=adapters))
        got = []
        for first, last in ((0, 50), (50, 51), (51, 52), (52, 120), (120, 139), (139, 140)):
            other = random_ids(last - first + 1, seed=first)
            new = [(1, other), (0, ids[first:last]), (2, other[:1])]
            logits = pieces.runners[1].run(pieces.batch(new, adapters=adapters))
            got.append(logits[len(other) : len(other) + last - first])
        assert torch.equal(torch.cat(got), whole)


def test_only_wanted_rows_come_out() -> None:
    model = random_model(wide_config())
    texts, again = Texts(model, torch.float32), Texts(model, torch.float32)
    ids = random_ids(20, seed=1)
    every = texts.runners[1].run(texts.batch([(0, ids)]))
    some = again.runners[1].run(again.batch([(0, ids)])._replace(wanted=torch.tensor([3, 19])))
    assert torch.equal(some, every[[3, 19]])


def test_the_native_runner_is_chosen_where_everything_is_packed() -> None:
    model = random_model(wide_config())
    cache = KVCache(model.config.text, Counts(4, 4), dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(for_model(model, cache), TorchRunner)
    packed = random_model(wide_config())
    for name, parameter in list(packed.named_parameters()):
        swap.placer()(packed, name, parameter.detach())
    assert isinstance(for_model(packed, cache), NativeRunner)
    swap.put(packed, "layers.0.attention.key.weight", native.pack(torch.zeros(64, 80, dtype=torch.bfloat16)))
    assert isinstance(for_model(packed, cache), TorchRunner)
