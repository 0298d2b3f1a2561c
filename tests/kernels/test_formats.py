"""Formats of small numbers: what was packed comes back, and a value is a code times a scale."""

import pytest
import torch

from puna.kernels.formats import Fp8, Int4, Int8, dequantize, expert_of, n_bytes, pack, shape, stack_of_one, values


def test_packed_values_come_back() -> None:
    numbers = torch.randint(-8, 8, (3, 5, 64))
    assert torch.equal(values(pack(numbers)), numbers.to(torch.int8))


def test_even_columns_lie_in_low_nibbles_with_offset_eight() -> None:
    numbers = torch.tensor([[-8, 7, 0, -1]])
    assert pack(numbers).tolist() == [[0xF0, 0x78]]


def test_codes_viewed_as_words_hold_eight_columns_from_the_lowest_bits_up() -> None:
    """compressed-tensors' pack-quantized: column 8w + i in bits 4i to 4i+3 of word w, offset 8."""
    numbers = torch.randint(-8, 8, (4, 64))
    words = pack(numbers).view(torch.int32).to(torch.int64)
    for i in range(8):
        assert torch.equal(((words >> (4 * i)) & 15) - 8, numbers[:, i::8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_is_its_code_times_its_scale_rounded_once(dtype: torch.dtype) -> None:
    numbers, scales = torch.randint(-8, 8, (2, 3, 64)), torch.randn(2, 3, 2).bfloat16()
    expected = (numbers * scales.double().repeat_interleave(32, dim=-1)).to(dtype)
    assert torch.equal(dequantize(Int4(pack(numbers), scales), dtype), expected)


def test_rows_of_eight_bits_have_one_scale_each() -> None:
    codes, scales = torch.randint(-127, 128, (3, 8), dtype=torch.int8), torch.rand(3, 1)
    assert torch.equal(dequantize(Int8(codes, scales), torch.float32), codes * scales)
    eighths = torch.randn(3, 8).to(torch.float8_e4m3fn)
    assert torch.equal(dequantize(Fp8(eighths, scales), torch.float32), eighths.float() * scales)


def test_shape_bytes_and_single_experts_are_those_of_the_numbers_meant() -> None:
    stack = Int4(torch.zeros(4, 6, 32, dtype=torch.uint8), torch.ones(4, 6, 2, dtype=torch.bfloat16))
    assert shape(stack) == (4, 6, 64)
    assert shape(expert_of(stack, 2)) == (6, 64)
    assert shape(stack_of_one(expert_of(stack, 2))) == (1, 6, 64)
    assert n_bytes(stack) * 8 == 4 * 6 * 64 * 4.5
