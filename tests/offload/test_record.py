"""An expert goes into bytes and comes back the same, whatever its numbers are stored in."""

import json

import pytest
import torch

from puna.errors import WeightsError
from puna.kernels import native
from puna.kernels.formats import Fp8, Int4, Int8
from puna.offload.record import PAGE_BYTES, Pair, from_json, open_pair, record_of, store, to_json


def pair(form: str) -> Pair:
    torch.manual_seed(0)
    shapes = ((20, 32), (32, 64))
    match form:
        case "int4":
            return Pair(
                *(Int4(torch.randint(256, (o, i // 2)).byte(), torch.rand(o, i // 32).bfloat16()) for o, i in shapes)
            )
        case "int8":
            return Pair(*(Int8(torch.randint(-9, 9, (o, i)).char(), torch.rand(o, 1)) for o, i in shapes))
        case "fp8":
            return Pair(*(Fp8(torch.randn(o, i).to(torch.float8_e4m3fn), torch.rand(o, 1)) for o, i in shapes))
        case "packed":
            if not native.available():
                pytest.skip("no kernels of ours on this processor")
            return Pair(*(native.pack(torch.randn(1, *shape)) for shape in shapes))
    return Pair(*(torch.randn(shape).to(getattr(torch, form)) for shape in shapes))


def tensors(weight: object) -> tuple[torch.Tensor, ...]:
    return (weight,) if isinstance(weight, torch.Tensor) else tuple(weight)  # type: ignore[arg-type]


HUGE = {"kind": "int4", "sizes": [1, 1], "parts": [[0, "uint8", [1 << 40]]]}
FORMS = ("float32", "bfloat16", "float16", "int4", "int8", "fp8", "packed")


@pytest.mark.parametrize("form", FORMS)
def test_matrices_come_back_as_stacks_of_one_with_the_same_bits(form: str) -> None:
    before = pair(form)
    record = record_of(before)
    room = torch.empty(record.n_bytes, dtype=torch.uint8)
    store(record, before, room)
    for ours, theirs in zip(open_pair(record, room), before, strict=True):
        assert type(ours) is type(theirs)
        for a, b in zip(tensors(ours), tensors(theirs), strict=True):
            if isinstance(b, torch.Tensor):
                assert a.dtype == b.dtype and torch.equal(a.squeeze(0).float(), b.float())
                assert a.shape == (b.shape if form == "packed" else (1, *b.shape))
            else:
                assert a == b


@pytest.mark.parametrize("form", FORMS)
def test_records_are_whole_pages_and_their_tensors_begin_on_cache_lines(form: str) -> None:
    record = record_of(pair(form))
    assert record.n_bytes % PAGE_BYTES == 0
    assert all(part.offset % 64 == 0 for form in (record.gate_up, record.down) for part in form.parts)


@pytest.mark.parametrize("form", FORMS)
def test_descriptions_come_back(form: str) -> None:
    record = record_of(pair(form))
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("key", ["bytes", "gate_up", "down"])
def test_damaged_descriptions_are_refused(key: str) -> None:
    described = to_json(record_of(pair("int4")))
    for value in (None, 5, {"kind": "int5", "sizes": [1, 1], "parts": []}, HUGE):
        with pytest.raises(WeightsError, match="makes no sense"):
            from_json({**described, key: value})


def test_an_expert_of_another_form_is_a_fault_of_ours() -> None:
    record = record_of(pair("int4"))
    with pytest.raises(AssertionError, match="one form"):
        store(record, pair("int8"), torch.empty(record.n_bytes, dtype=torch.uint8))
