"""Strips: every number once, in order, whatever the format and the size of a strip."""

import pytest
import torch

from puna.kernels.formats import Small, dequantize
from puna.quant import fp8, int4, int8, strips


@pytest.mark.parametrize("step", [32, 100, 1 << 20])
@pytest.mark.parametrize("kind", ["plain", "int4", "int8", "fp8"])
def test_strips_together_are_the_whole(kind: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(3, 5, 32)
    weight: torch.Tensor | Small = {"int4": int4, "int8": int8, "fp8": fp8}[kind].quantize(w) if kind != "plain" else w
    monkeypatch.setitem(strips.STRIP, "cpu", step)
    found = [(rows, numbers.clone()) for rows, numbers in strips.strips(weight)]
    assert torch.equal(torch.cat([numbers for _, numbers in found]), dequantize(weight, torch.float32).flatten(0, 1))
    assert [i for rows, _ in found for i in range(rows.start, rows.stop)] == list(range(15))
