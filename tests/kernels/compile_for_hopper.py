"""Compiles every Triton kernel for compute capability 9.0 at Scout's sizes, on any machine: a process of its own.

A line for each says what a thread takes of the registers; one that takes more keeps numbers in memory and "spills".
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from puna.kernels import triton_attention, triton_decoder, triton_experts, triton_int4, triton_sample
from puna.kernels.triton_weights import row_tile

TARGET = GPUTarget("cuda", 90, 32)
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
FORMATS = (("int4", "*u8", "*bf16"), ("row", "*i8", "*fp32"), ("row", "*fp8e4nv", "*fp32"), ("plain", "*bf16", "*bf16"))
POINTERS = {
    **dict.fromkeys(("x", "y", "q", "delta", "gain", "total", "normed", "factors", "out"), "*bf16"),
    **dict.fromkeys(("x_rows", "y_rows", "experts", "digits", "bound", "tokens"), "*i64"),
    **dict.fromkeys(("ends", "own", "table", "start", "first", "last", "rows", "tiles", "ids"), "*i32"),
    **dict.fromkeys(("before", "top_k", "ties"), "*i32"),
    **dict.fromkeys(("mixed_out", "mass_out", "mixed_in", "mass_in", "cos", "sin", "temperature"), "*fp32"),
    **dict.fromkeys(("peaks", "min_p", "repetition", "presence", "frequency"), "*fp32"),
    **dict.fromkeys(("mass", "masses", "limits", "kept", "uniforms", "top_p"), "*fp64"),
    **dict.fromkeys(("unit", "eps"), "fp32"),
}


def compiled(label: str, kernel: Any, warps: int, types: dict[str, str], **constants: Any) -> None:
    """Compiles one kernel and prints what it takes."""
    names, types = kernel.arg_names, {**POINTERS, **types}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    # What a launch finds out by itself: tensors begin at multiples of 16 bytes, and Scout's widths are multiples of 16.
    even = [name for name in names if signature[name].startswith("*") or name in {"n_in", "n_out", "n_rows"}]
    source = ASTSource(kernel, signature, values, {(names.index(name),): [["tt.divisibility", 16]] for name in even})
    binary = triton.compile(source, target=TARGET, options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    assert found is not None, usage.stdout
    registers, stack = map(int, found.groups())
    print(f"{label}: {registers} registers{', spills' if stack > 64 else ''}", flush=True)


def main() -> int:
    dot = {"DOT": tl.bfloat16}
    for kind, codes, scales in FORMATS:
        types = {"codes": codes, "scales": scales}
        out, columns, warps = row_tile(kind)
        one = types | ({"codes": "*i32"} if kind == "int4" else {})
        compiled(f"one row {codes}", triton_int4._one, warps, one, KIND=kind, OUT=out, IN=columns)
        own = {"GATED": True, "KIND": kind, "OUT": out, "IN": columns}
        compiled(f"own expert {codes}", triton_experts._own_expert, warps, one, **own)
        for rows, tile in ((16, 16), (64, 64)):
            size = {"KIND": kind, **dot, "ROWS": rows, "OUT": tile, "IN": 128}
            compiled(f"{rows} rows {codes}", triton_int4._many, 4, types, **size)
            size = {"GATED": True, "KIND": kind, **dot, "E": 16, "E_PADDED": 16, "ROWS": rows, "OUT": 64, "IN": 64}
            compiled(f"experts {rows} rows {codes}", triton_experts._tile, 4, types, **size)
    compiled("write out", triton_int4._write_out, 4, {"codes": "*u8", "scales": "*bf16"}, GROUPS=64)
    heads = {"N": 40, "K": 8, "H": 128, "BLOCK_LEN": 32}
    for codes, how in (("*bf16", "plain"), ("*i8", "int8"), ("*fp8e4nv", "fp8")):
        scales = "*bf16" if how == "plain" else "*fp32"
        types = {"keys": codes, "values": codes, "key_scales": scales, "value_scales": scales}
        size = {**heads, "SCALED": how != "plain", **dot, "WIDTH": 128, "S": triton_attention.SLOTS}
        compiled(f"part {how}", triton_attention._part, 4, types, **size, HEADS=16)
        compiled(f"tile {how}", triton_attention._rows_of_tile, 8, types, **size, M=triton_attention.TILE)
        writes = {"H": 128, "BLOCK_LEN": 32, "KIND": how, "WIDTH": 128}
        compiled(f"store {how}", triton_attention._store, 1, {"codes": codes, "scales": scales}, **writes)
        for rotates in (True, False):
            does = {"KIND": how, "ROTATES": rotates, "NORMS": rotates, "PAIRS": 64}
            compiled(f"heads {how}", triton_decoder._to_heads, 1, types | {"k": "*bf16", "v": "*bf16"}, **heads, **does)
    compiled("combine", triton_attention._combine, 4, {}, N=40, H=128, PARTS=32, WIDTH=128)
    compiled("add and norm", triton_decoder._add_norm, 8, {}, ADDS=True, D=5120, WIDTH=8192)
    router = {"logits": "*bf16", "scores": "*bf16"}
    compiled("route", triton_decoder._route, 1, router, E=16, k=1, WIDTH=16)
    sizes = {"DIGITS": 8, "PIECES": 64, "SIZE": 4096, "STEP": 512}
    for kernel, warps in (
        (triton_sample._count, 4),
        (triton_sample._bound, 4),
        (triton_sample._weigh, 8),
        (triton_sample._pick, 8),
    ):
        known = {name: size for name, size in sizes.items() if name in kernel.arg_names}
        compiled(kernel.__name__, kernel, warps, {"logits": "*fp32", "counts": "*i32"}, **known)
    penalised = {"logits": "*fp32", "counts": "*fp32"}
    compiled("penalise", triton_sample._penalise, 4, penalised, WIDTH=256)
    return 0


if __name__ == "__main__":
    sys.exit(main())
