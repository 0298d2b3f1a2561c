"""Every Triton kernel against its plain twin at the sizes of Scout, on a GPU: what the everyday tests do small.

An error is |out - twin| / |twin|, both norms over the whole result, with the twin computed in float32 from the very
same stored numbers. Inputs are drawn anew each run and outputs begin as NaN where the caller gives them.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from puna.engine.request import Sampling
from puna.engine.sampler import SamplerState, choose
from puna.kernels import experts as dense
from puna.kernels import quantized, triton_attention, triton_decoder, triton_experts, triton_int4
from puna.kernels.attention import Stored, write_paged
from puna.kernels.formats import Small, dequantize
from puna.kernels.triton_attention import Places
from puna.kernels.triton_sample import Settings, draw
from puna.model.layers import rms_norm
from puna.quant import fp8, int4, int8

QUANTISERS: dict[str, Callable[[Tensor], Small]] = {"int4": int4.quantize, "int8": int8.quantize, "fp8": fp8.quantize}
BFLOAT16 = 1e-2  # a bfloat16 result of bfloat16 factors, against float32
DEVICE = "cuda"


def checks() -> Iterator[dict[str, Any]]:
    """Yields one line for each kernel, format and size: its error, the bound, and whether it holds."""
    for name, error, bound in (*products(), *experts(), *attention(), *decoder(), *sampling()):
        yield {"kernel": name, "error": error, "bound": bound, "ok": bool(error <= bound)}  # NaN is not


def off(out: Tensor, twin: Tensor) -> float:
    """Returns the relative error of a result."""
    return float((out.float() - twin.float()).norm() / twin.float().norm().clamp_min(1e-30))


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def products() -> Iterator[tuple[str, float, float]]:
    for kind, quantize in QUANTISERS.items():
        weight = quantize(normal(7168, 5120) * 5120**-0.5)
        for T in (1, 2, 16, 17, 200, 1500):
            x = normal(T, 5120)
            twin = x.float() @ dequantize(weight, torch.float32).T
            yield f"linear {kind} {T}", off(triton_int4.linear(x, weight), twin), BFLOAT16
        x = normal(3, 5120, dtype=torch.float32)
        yield f"linear {kind} float32", off(triton_int4.linear(x, weight), quantized.linear_plain(x, weight)), 1e-5
    weight = int4.quantize(normal(300, 5120))
    exact = torch.equal(triton_int4.written_out(weight, torch.float32), dequantize(weight, torch.float32))
    yield "int4 written out", 0.0 if exact else 1.0, 0.0


def experts() -> Iterator[tuple[str, float, float]]:
    E, D, F = 16, 1024, 2048
    plain = normal(E, 2 * F, D) * D**-0.5, normal(E, D, F) * F**-0.5
    for kind in ("plain", *QUANTISERS):
        gate_up, down = plain if kind == "plain" else tuple(QUANTISERS[kind](each) for each in plain)
        wide = [dequantize(each, torch.float32) for each in (gate_up, down)]
        for T, k in ((1, 1), (5, 1), (64, 1), (700, 1), (33, 2)):
            x = normal(T, D)
            best, chosen = normal(T, E, dtype=torch.float32).topk(k, dim=-1)
            scores = best.sigmoid().bfloat16()
            twin = dense.routed_experts(x.float(), scores.float(), chosen, *wide)
            out = triton_experts.routed_experts(x, scores, chosen, gate_up, down)
            yield f"experts {kind} {T}x{k}", off(out, twin), BFLOAT16


def attention() -> Iterator[tuple[str, float, float]]:
    N, K, H, block_len = 40, 8, 128, 32
    for dtype in (torch.bfloat16, torch.int8, torch.float8_e4m3fn):
        short = str(dtype).removeprefix("torch.")
        pool = random_pool(4200, K, block_len, H, dtype)
        for lengths in ([1], [129, 8192, 77], [131_072]):
            where = places(lengths, 1, block_len)
            q, out = normal(len(lengths), N, H), torch.full((len(lengths), N, H), torch.nan, device=DEVICE).bfloat16()
            rows = torch.arange(len(lengths), device=DEVICE, dtype=torch.int32)
            triton_attention.attend_decode(q, pool, where, rows, out, longest=max(lengths))
            twin = triton_attention.attend_plain(q.float(), pool, where)
            yield f"decode attention {short} {lengths}", off(out, twin), BFLOAT16
        where = places([700], 600, block_len)
        q, out = normal(600, N, H), torch.full((600, N, H), torch.nan, device=DEVICE).bfloat16()
        step = triton_attention.tile_len(N, K)
        tiles = [(i, min(step, 600 - i)) for i in range(0, 600, step)]
        triton_attention.attend_prefill(q, pool, where, torch.tensor(tiles, device=DEVICE, dtype=torch.int32), out)
        twin = triton_attention.attend_plain(q.float(), pool, where)
        yield f"prefill attention {short}", off(out, twin), BFLOAT16
        yield f"store {short}", stores_differently(pool, K, H, block_len), 0.0


def stores_differently(pool: Stored, K: int, H: int, block_len: int) -> float:
    """Returns which share of stored codes differs from the twin's."""
    k, v = normal(50, K, H), normal(50, K, H)
    own = torch.randperm(1000, device=DEVICE)[:50].to(torch.int32)
    twin = Stored(*(None if each is None else each.clone() for each in pool))  # type: ignore[arg-type]
    triton_attention.store(k, v, pool, own)
    write_paged(twin, own.long() // block_len, own.long() % block_len, k, v)
    pairs = ((pool.keys, twin.keys), (pool.values, twin.values))
    return max(float(a.float().ne(b.float()).float().mean()) for a, b in pairs)


def random_pool(n_blocks: int, K: int, block_len: int, H: int, dtype: torch.dtype) -> Stored:
    keys, values = normal(2, n_blocks, K, block_len, H)
    if dtype == torch.bfloat16:
        return Stored(keys, values, None, None)
    codes = [(each.float() * 30).clamp(-127, 127).to(dtype) for each in (keys, values)]
    scales = torch.rand(2, n_blocks, K, block_len, device=DEVICE) / 30 + 0.01
    return Stored(codes[0], codes[1], scales[0], scales[1])


def places(lengths: list[int], n_new: int, block_len: int) -> Places:
    """Returns where the last `n_new` rows of sequences of these lengths find their keys, in shuffled blocks."""
    table: list[int] = []
    rows = []
    for length in lengths:
        blocks = torch.randperm(4200)[: -(-length // block_len)].tolist()
        for p in range(length - n_new, length):
            rows.append((len(table), 0, p + 1, blocks[p // block_len] * block_len + p % block_len))
        table += blocks
    columns = torch.tensor(rows, dtype=torch.int32, device=DEVICE).t().contiguous().unbind(0)
    return Places(torch.tensor(table, dtype=torch.int32, device=DEVICE), *columns)


def decoder() -> Iterator[tuple[str, float, float]]:
    x, delta, gain = normal(9, 5120), normal(9, 5120), normal(5120)
    total, normed = triton_decoder.add_norm(x, delta, gain, 1e-5)
    yield "add_norm, sum", off(total, x + delta), 0.0
    yield "add_norm, norm", off(normed, rms_norm(x + delta, 1e-5) * gain), BFLOAT16
    logits = normal(33, 128)
    scores, chosen = triton_decoder.route(logits, 2)
    best, _ = logits.topk(2, dim=-1)
    yield "route, experts", off(logits.gather(1, chosen), best), 0.0
    yield "route, scores", off(scores, best.float().sigmoid()), BFLOAT16


def sampling() -> Iterator[tuple[str, float, float]]:
    rows = [Sampling(), Sampling(temperature=0), Sampling(top_k=40, top_p=1), Sampling(min_p=0.05, temperature=1.5)] * 4
    rows = [replace(settings, seed=i) for i, settings in enumerate(rows)]
    logits = normal(len(rows), 202_048, dtype=torch.float32) * 3
    expected = [choice.token for choice in choose(logits, [SamplerState(settings, ()) for settings in rows])]
    uniforms = torch.tensor([random.Random(i).random() for i in range(len(rows))], dtype=torch.float64, device=DEVICE)
    drawn = draw(logits, Settings.of(rows, logits.device), uniforms).tokens.tolist()
    yield "sampled tokens", sum(a != b for a, b in zip(drawn, expected, strict=True)) / len(rows), 0.0
