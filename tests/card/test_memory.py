"""Bytes by arithmetic, held against bytes that were really taken."""

from dataclasses import replace

import pytest
import torch

from puna.bench.work import weight_bytes
from puna.card import memory
from puna.card.params import count
from puna.chat import load
from puna.config import TextConfig
from puna.engine.blocks import Layout
from puna.engine.cache import pool_bytes
from puna.presets import CRIA, GUARD4, MAVERICK, SCOUT

SLOW = [pytest.param(each, marks=pytest.mark.slow) for each in ("none", "int8", "fp8")]


@pytest.mark.parametrize("scheme", ["int4", *SLOW])
def test_weights_take_what_a_loaded_model_takes(scheme: str) -> None:
    assistant = load("cria", quantize=None if scheme == "none" else scheme)  # type: ignore[arg-type]
    taken = sum(weight_bytes(assistant.model).values())
    assert memory.model_bytes(CRIA, memory.SCHEMES[scheme]) == pytest.approx(taken, rel=0.05)  # a head of six bits


def test_metas_recipes_take_what_meta_publishes() -> None:
    """Maverick's FP8 files are 8 x 54.12 GB. Source: llama-models `sku_list.py`."""
    assert memory.model_bytes(MAVERICK, memory.SCHEMES["fp8-experts"]) == pytest.approx(8 * 54.12e9, rel=1e-3)


@pytest.mark.parametrize("text", [SCOUT.text, GUARD4.text, CRIA.text], ids=["scout", "guard4", "cria"])
@pytest.mark.parametrize(("dtype", "element_bytes"), [(torch.bfloat16, 2), (torch.int8, 1)])
@pytest.mark.parametrize("length", [1, 127, 128, 3000, 8191, 8192, 100_000])
def test_keys_and_values_take_what_blocks_take(
    text: TextConfig, dtype: torch.dtype, element_bytes: int, length: int
) -> None:
    held = pool_bytes(text, Layout.of(text).peak(length), dtype)
    assert memory.sequence_bytes(text, length, element_bytes) == held


def test_scouts_cache_grows_by_49152_bytes_a_token_and_121_gb_once() -> None:
    short, long = (memory.kv_bytes(SCOUT.text, length) for length in (2**17, 2**18))
    assert long["global"] - short["global"] == 2**17 * 49_152
    assert short["chunked"] == long["chunked"] == 8192 * 36 * 4096


@pytest.mark.parametrize("n_bytes", [0, 10**8, 10**10, 10**11, 10**13])
def test_longest_sequence_fits_and_one_more_block_does_not(n_bytes: int) -> None:
    text = SCOUT.text
    length = memory.longest(text, n_bytes)
    assert memory.sequence_bytes(text, length) <= n_bytes
    if length < text.context_len:
        assert memory.sequence_bytes(text, length + memory.block_len(text)) > n_bytes


def test_numbers_without_scales_take_their_bits() -> None:
    text_only = replace(CRIA, vision=None)
    assert memory.model_bytes(text_only, memory.SCHEMES["none"], float_bytes=4) == 4 * count(text_only).total
