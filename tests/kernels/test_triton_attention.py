"""Paged attention in Triton equals its plain twin: split contexts, tiles, chunk borders, small keys and values."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'puna[gpu]'")

from puna.kernels import triton_attention as fast
from puna.kernels.attention import Stored, write_paged
from puna.kernels.triton_attention import Places

SMALL = [torch.int8, torch.float8_e4m3fn]


def pool(n_blocks: int, K: int, block_len: int, H: int, dtype: torch.dtype, device: torch.device) -> Stored:
    keys, values = torch.randn(2, n_blocks, K, block_len, H, device=device)
    if dtype not in SMALL:
        return Stored(keys.to(dtype), values.to(dtype), None, None)
    codes = [(x * 40).clamp(-127, 127).to(dtype) for x in (keys, values)]
    scales = torch.rand(2, n_blocks, K, block_len, device=device) / 20 + 0.01
    return Stored(codes[0], codes[1], scales[0], scales[1])


def places(
    sequences: list[tuple[int, int]], block_len: int, chunk_len: int | None, n_blocks: int, device: torch.device
) -> tuple[Places, list[tuple[int, int]]]:
    """Each sequence is (start, n_new); blocks are shuffled. Also returns first row and number of rows of each."""
    free = torch.randperm(n_blocks).tolist()
    table: list[int] = []
    rows: list[tuple[int, int, int, int]] = []
    pieces = []
    for begin, n_new in sequences:
        base = 0 if chunk_len is None else begin // chunk_len * chunk_len
        mine = [free.pop() for _ in range(-(-(begin + n_new - base) // block_len))]
        pieces.append((len(rows), n_new))
        for p in range(begin, begin + n_new):
            first = 0 if chunk_len is None else p // chunk_len * chunk_len - base
            own = mine[(p - base) // block_len] * block_len + (p - base) % block_len
            rows.append((len(table), first, p - base + 1, own))
        table += mine
    columns = torch.tensor(rows, dtype=torch.int32, device=device).unbind(1)
    return Places(torch.tensor(table, dtype=torch.int32, device=device), *(c.contiguous() for c in columns)), pieces


def decode(q: torch.Tensor, store: Stored, where: Places, longest: int) -> torch.Tensor:
    out = torch.full_like(q, torch.nan)
    rows = torch.arange(len(q), dtype=torch.int32, device=q.device)
    fast.attend_decode(q, store, where, rows, out, longest=longest)
    return out


def prefill(q: torch.Tensor, store: Stored, where: Places, pieces: list[tuple[int, int]]) -> torch.Tensor:
    out = torch.full_like(q, torch.nan)
    step = fast.tile_len(q.shape[1], store.keys.shape[1])
    tiles = [(at, min(step, row + n - at)) for row, n in pieces for at in range(row, row + n, step)]
    fast.attend_prefill(q, store, where, torch.tensor(tiles, dtype=torch.int32, device=q.device), out)
    return out


def near(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_len", [None, 16])
@pytest.mark.parametrize(("N", "K", "H"), [(6, 2, 8), (5, 1, 20)])
def test_decode_equals_the_plain_twin_around_chunk_borders(
    N: int, K: int, H: int, chunk_len: int | None, device: torch.device
) -> None:
    torch.manual_seed(N)
    store = pool(60, K, 4, H, torch.float32, device)
    where, _ = places([(0, 1), (14, 1), (15, 1), (16, 1), (17, 1), (90, 1)], 4, chunk_len, 60, device)
    q = torch.randn(6, N, H, device=device)
    near(decode(q, store, where, 91), fast.attend_plain(q, store, where))


def test_a_long_context_split_into_parts_equals_the_whole(device: torch.device) -> None:
    torch.manual_seed(0)
    store, q = pool(40, 1, 32, 16, torch.float32, device), torch.randn(2, 2, 16, device=device)
    where, _ = places([(700, 1), (3, 1)], 32, None, 40, device)  # of the short one most parts are empty
    assert fast.parts_for(2, 701) == 3
    near(decode(q, store, where, 701), fast.attend_plain(q, store, where))


def test_rows_that_see_nothing_get_zeros_and_others_are_left_alone(device: torch.device) -> None:
    store, q = pool(4, 1, 4, 16, torch.float32, device), torch.randn(3, 1, 16, device=device)
    where, _ = places([(2, 1), (3, 1), (1, 1)], 4, None, 4, device)
    where.last[1] = 0
    out = torch.full_like(q, 7.0)
    fast.attend_decode(q, store, where, torch.tensor([0, 1], dtype=torch.int32, device=device), out, longest=4)
    assert out[1].eq(0).all() and out[2].eq(7).all()
    near(out[0], fast.attend_plain(q, store, where)[0])


@pytest.mark.parametrize("chunk_len", [None, 16])
def test_prefill_equals_the_plain_twin_also_across_chunk_borders(chunk_len: int | None, device: torch.device) -> None:
    torch.manual_seed(3)
    store = pool(80, 2, 4, 8, torch.float32, device)
    where, pieces = places([(0, 5), (10, 50), (31, 1), (90, 3)], 4, chunk_len, 80, device)
    q = torch.randn(59, 6, 8, device=device)
    near(prefill(q, store, where, pieces), fast.attend_plain(q, store, where))


@pytest.mark.parametrize("dtype", SMALL)
def test_small_keys_and_values_are_read_with_their_scales(dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(4)
    store = pool(30, 2, 8, 16, dtype, device)
    where, pieces = places([(20, 4), (5, 1)], 8, None, 30, device)
    q = torch.randn(5, 4, 16, device=device)
    expected = fast.attend_plain(q, store, where)
    near(decode(q, store, where, 24), expected)
    near(prefill(q, store, where, pieces), expected)


def test_bfloat16_is_as_near_as_its_rounding(device: torch.device) -> None:
    torch.manual_seed(5)
    store, q = pool(20, 1, 8, 16, torch.bfloat16, device), torch.randn(6, 2, 16, device=device).bfloat16()
    where, pieces = places([(30, 6)], 8, 32, 20, device)
    exact = fast.attend_plain(q.float(), store, where)
    for result in (decode(q, store, where, 36), prefill(q, store, where, pieces)):
        # Probabilities and the result are rounded to bfloat16, each up to 2**-7 where the interpreter truncates.
        torch.testing.assert_close(result.float(), exact, atol=2 * 2**-7 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *SMALL])
def test_new_keys_and_values_are_stored_as_the_plain_twin_does_bit_for_bit(
    dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(6)
    given = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    k, v = (torch.randn(2, 5, 3, 12, device=device) * 10 ** torch.randn(2, 5, 3, 1, device=device)).to(given)
    k[0, 0] = 0  # a key of zeros has no scale
    mine = pool(4, 3, 4, 12, dtype, device)
    before = Stored(*(None if x is None else x.clone() for x in mine))  # type: ignore[arg-type]
    twin = Stored(*(None if x is None else x.clone() for x in mine))  # type: ignore[arg-type]
    own = torch.tensor([13, -1, 0, 3, 7], dtype=torch.int32, device=device)
    fast.store(k, v, mine, own)
    kept = own >= 0
    write_paged(twin, own[kept].long() // 4, own[kept].long() % 4, k[kept], v[kept])
    for a, b in zip(mine, twin, strict=True):
        assert a is None or torch.equal(a.float(), b.float())
    assert not torch.equal(mine.keys.float(), before.keys.float())


def test_blocks_that_are_a_view_are_refused(device: torch.device) -> None:
    store = pool(4, 2, 4, 16, torch.float32, device)
    where, _ = places([(2, 1)], 4, None, 4, device)
    with pytest.raises(ValueError, match="contiguous"):
        decode(
            torch.randn(1, 2, 16, device=device), Stored(store.keys[:, :1], store.values[:, :1], None, None), where, 3
        )
