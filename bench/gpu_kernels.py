"""The time of each Triton kernel at the sizes of Scout, and the share of the bandwidth that its bytes make of it.

`triton.testing.do_bench` empties the L2 cache between runs, so that weights come from memory as they do in a model.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from gpu_checks import DEVICE, normal, places, random_pool
from triton.testing import do_bench

from puna.kernels import triton_attention, triton_decoder, triton_experts, triton_int4
from puna.kernels.formats import Int4, n_bytes
from puna.kernels.triton_weights import stored, words

MATRICES = {"query, key, value": (7168, 5120), "output": (5120, 5120), "down": (5120, 8192), "head": (202_048, 5120)}


def kernels(bytes_per_second: float) -> Iterator[dict[str, Any]]:
    """Yields microseconds of each kernel, and what share of `bytes_per_second` it reaches where bytes are its work."""
    for name, seconds, size in measured():
        share = None if size is None else size / seconds / bytes_per_second
        yield {"kernel": name, "microseconds": 1e6 * seconds, "share_of_bandwidth": share}


def timed(work: Any) -> float:
    return float(do_bench(work, return_mode="median")) / 1000


def measured() -> Iterator[tuple[str, float, int | None]]:
    for name, shape in MATRICES.items():
        weight = random_int4(*shape)
        for T in (1, 4, 16, 64, 256, 2048):
            if name != "head" or T <= 256:
                x = normal(T, shape[1])
                yield f"int4 {name}, {T} rows", timed(lambda x=x, w=weight: triton_int4.linear(x, w)), n_bytes(weight)
    gate_up = random_int4(16, 16_384, 5120)
    down = random_int4(16, 5120, 8192)
    one = (n_bytes(gate_up) + n_bytes(down)) // 16
    for T in (1, 4, 64, 256):
        x, scores = normal(T, 5120), torch.rand(T, 1, device=DEVICE).bfloat16()
        chosen = torch.randint(0, 16, (T, 1), device=DEVICE)
        n_read = len(chosen.unique())
        work = timed(lambda x=x, s=scores, c=chosen, g=gate_up, d=down: triton_experts.routed_experts(x, s, c, g, d))
        yield f"int4 experts, {T} rows, {n_read} experts", work, one * n_read
    del gate_up, down
    pool = random_pool(4200, 8, 32, 128, torch.bfloat16)
    for lengths in ([128], [8192], [131_072], [1024] * 64):
        where, longest = places(lengths, 1, 32), max(lengths)
        q = normal(len(lengths), 40, 128)
        out, rows = torch.empty_like(q), torch.arange(len(lengths), device=DEVICE, dtype=torch.int32)
        work = timed(
            lambda q=q, w=where, r=rows, o=out, n=longest: triton_attention.attend_decode(q, pool, w, r, o, longest=n)
        )
        yield f"decode attention, {len(lengths)} x {lengths[0]}", work, sum(lengths) * 2 * 8 * 128 * 2
    x, gain, logits = normal(1, 5120), normal(5120), normal(1, 16)
    yield "add_norm, 1 row", timed(lambda: triton_decoder.add_norm(x, x, gain, 1e-5)), None
    yield "route, 1 row", timed(lambda: triton_decoder.route(logits, 1)), None


def random_int4(*shape: int) -> Int4:
    """Returns random codes and scales: what int4.quantize would find takes longer and reads no faster."""
    codes = torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), dtype=torch.uint8, device=DEVICE)
    return Int4(codes, (torch.randn(*shape[:-1], shape[-1] // 32, device=DEVICE) / 200).bfloat16())


def sweep() -> Iterator[dict[str, Any]]:
    """Yields the time of the one-row product and of the few-row product with other tiles than those chosen."""
    for name, shape in MATRICES.items():
        kind, codes, scales, n_out, n_in = stored(random_int4(*shape))
        x, y = normal(1, n_in), normal(1, n_out)
        for out in (4, 8, 16, 32):
            for columns in (512, 1024, 2048):
                for warps in (1, 2, 4, 8):
                    grid = (triton.cdiv(n_out, out),)
                    arguments = (x, words(codes), scales, y, n_out, n_in, kind, out, columns)
                    work = timed(lambda g=grid, a=arguments, w=warps: triton_int4._one[g](*a, num_warps=w))
                    yield {
                        "kernel": f"int4 {name}, 1 row",
                        "tile": f"{out}x{columns}/{warps}",
                        "microseconds": 1e6 * work,
                    }
        x, y = normal(16, n_in), normal(16, n_out)  # what one row would take through matrix units, too
        for out in (16, 32, 64):
            for columns in (64, 128, 256):
                for warps in (2, 4, 8):
                    grid = (triton.cdiv(n_out, out), 1)
                    arguments = (x, codes, scales, y, 16, n_out, n_in, kind, triton.language.bfloat16, 16, out, columns)
                    work = timed(lambda g=grid, a=arguments, w=warps: triton_int4._many[g](*a, num_warps=w))
                    yield {
                        "kernel": f"int4 {name}, 16 rows",
                        "tile": f"{out}x{columns}/{warps}",
                        "microseconds": 1e6 * work,
                    }
