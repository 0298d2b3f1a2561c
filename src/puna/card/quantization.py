"""How small a model gets, what that costs, and where it then fits.

In: records. Out: the section "Quantization". Bytes are computed from the configuration (`memory`), what a model loses
is what `puna quantize --report` measured, where somebody ran it.
"""

from collections.abc import Mapping
from typing import Any

from puna.card import memory
from puna.card.document import Block, Missing, Section, Table
from puna.card.records import Records
from puna.card.words import UNKNOWN, percent, size, whole
from puna.hardware import KINDS, USABLE, usable

NAMES = {
    "none": "as stored",
    "int4": "int4, whole decoder (`--quantize int4`)",
    "int8": "int8, whole decoder (`--quantize int8`)",
    "fp8": "fp8, whole decoder (`--quantize fp8`)",
    "int4-experts": "int4 experts in groups of 128 (Meta's recipe)",
    "fp8-experts": "fp8 routed experts (Meta's recipe)",
}
LARGE = 4_000_000_000
"""Bytes from which on it is a question whether a model fits an accelerator."""

REMEDY = "run puna quantize MODEL DIR --to int4 --report TEXT --json and keep it as quantization-int4.json"


def quantization(records: Records) -> Section:
    """Returns the section about small numbers."""
    blocks: list[Block] = [_sizes(records)]
    if memory.model_bytes(records.config, memory.SCHEMES["none"], records.float_bytes) >= LARGE:
        blocks.append(_fits(records))
    blocks.append(_drifts(records))
    return Section(title="Quantization", blocks=tuple(blocks))


def _sizes(records: Records) -> Table:
    config, text = records.config, records.config.text
    rows = []
    for name, scheme in memory.SCHEMES.items():
        if name.endswith("-experts") and not text.moe_layers:
            continue
        n_bytes = memory.model_bytes(config, scheme, records.float_bytes)
        full = [memory.sequence_bytes(text, text.context_len, each) for each in (2, 1)]
        rows.append((NAMES[name], size(n_bytes), *(size(n_bytes + each) for each in full)))
    token = [memory.layers_of(text, "global") * memory.position_bytes(text, each) for each in (2, 1)]
    chunk = [memory.kv_bytes(text, text.context_len, each)["chunked"] for each in (2, 1)]
    notes = [
        f"Keys and values: {whole(token[0])} bytes a token in 16 bits, {whole(token[1])} in 8"
        + (f", and at most {size(chunk[0])} or {size(chunk[1])} for layers that see one chunk." if chunk[0] else ".")
    ]
    head = ("Numbers", "Weights", f"and {whole(text.context_len)} tokens in 16 bits", "and in 8 bits")
    return Table(head, tuple(rows), 1, "Memory, computed from the configuration", tuple(notes))


def _fits(records: Records) -> Table:
    config = records.config
    rows = []
    for device in KINDS.values():
        for name in ("none", "fp8", "int4"):
            weights = memory.model_bytes(config, memory.SCHEMES[name], records.float_bytes)
            n = 1 if name == "int4" else 8
            left = n * usable(device.memory_bytes) - weights
            longest = [memory.longest(config.text, max(0, left), each) for each in (2, 1)]
            room = [whole(each) if left > 0 and each else UNKNOWN for each in longest]
            label = f"{n} x {device.name}" if n > 1 else device.name
            rows.append((label, NAMES[name], size(left) if left > 0 else "does not fit", *room))
    head = ("Accelerators", "Numbers", "Left beside weights", "Tokens in 16 bits", "Tokens in 8 bits")
    note = f"{USABLE:.0%} of each memory is taken as usable. Tokens: of one sequence, at most the model's context."
    return Table(head, tuple(rows), 2, "Where it fits, and how long one sequence can get there", (note,))


def _drifts(records: Records) -> Block:
    found = [each for each in records.quantizations if each.get("drift")]
    if not found:
        return Missing("what small numbers cost in quality", REMEDY)
    rows = [_drift(each, each["drift"]) for each in found]
    head = (
        "Numbers", "Parts", "On disk", "Tokens", "Divergence (nats)", "± error", "Same first choice (%)",
        "Perplexity before", "after",
    )  # fmt: skip
    return Table(head, tuple(rows), 2, "How far the model drifts, measured on a text")


def _drift(record: Mapping[str, Any], drift: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(record["to"]),
        ", ".join(part.replace("_", " ") for part in record["parts"]),
        size(record["bytes"]),
        whole(drift["n_tokens"]),
        f"{drift['divergence']:.5f}",
        f"{drift['divergence_error']:.5f}",
        percent(drift["agreement"]),
        f"{drift['perplexity_full']:.3f}",
        f"{drift['perplexity_small']:.3f}",
    )
