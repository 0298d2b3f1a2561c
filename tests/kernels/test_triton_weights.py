"""Int4's numbers come out of their bits; and every kernel compiles for a Hopper GPU, which needs none to be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'puna[gpu]'")

import triton
import triton.language as tl

from puna.kernels.formats import values
from puna.kernels.triton_weights import nibbles, raised, stored
from tests.kernels.small_numbers import Int4, small


@triton.jit
def _both(codes, words, plain, lifted):  # type: ignore[no-untyped-def]
    i = tl.arange(0, 16)
    w = tl.arange(0, 4)
    tl.store(plain + tl.arange(0, 32), tl.reshape(nibbles(tl.load(codes + i)), [32]))
    low = tl.load(words + w)
    tl.store(lifted + 8 * w, raised(low, 0))
    tl.store(lifted + 8 * w + 3, raised(low, 3))
    tl.store(lifted + 8 * w + 4, raised(low >> 16, 0))
    tl.store(lifted + 8 * w + 7, raised(low >> 16, 3))


def test_numbers_come_out_of_bytes_and_words_also_where_a_word_is_negative(device: torch.device) -> None:
    codes = torch.randint(0, 256, (16,), dtype=torch.uint8)
    codes[3] = 0xFF
    expected = values(codes).float()
    plain, lifted = torch.empty(32, device=device), torch.empty(32, device=device)
    moved = codes.to(device)
    _both[(1,)](moved, moved.view(torch.int32), plain, lifted)
    assert torch.equal(plain.cpu(), expected)
    for nibble in (0, 3, 4, 7):
        assert torch.equal(lifted.cpu()[nibble::8], expected[nibble::8] * 16 ** (nibble % 4))


def test_weights_that_are_not_contiguous_are_refused() -> None:
    weight = small(Int4, 8, 64)
    with pytest.raises(ValueError, match="contiguous"):
        stored(Int4(weight.codes[:, :16], weight.scales[:, :1]))


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_without_spilling(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("compile_for_hopper.py")
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert "spills" not in run.stdout, run.stdout
