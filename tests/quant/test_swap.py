"""Small models: what changes, what stays, that they compute what their numbers say, and how much memory that takes."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.errors import ConfigError, DeviceError, WeightsError
from puna.kernels import native
from puna.kernels.formats import Fp8, Int4, Int8, Small, dequantize, shape
from puna.kernels.native import Packed
from puna.model.count import part_of
from puna.model.transformer import Block, Llama, set_parameter
from puna.quant import swap
from puna.quant.swap import DECODER, EXPERTS, FORMATS, MATRICES, Format, Loss, Policy, SmallExperts, SmallLinear
from puna.weights.checkpoint import save_hf
from tests.reference.tiny import random_ids, random_model, read_whole, tiny_config

KINDS: dict[Format, type[Small]] = {"int4": Int4, "int8": Int8, "fp8": Fp8}


def config() -> LlamaConfig:
    """Widths that int4 can group: multiples of 32 everywhere."""
    tiny = tiny_config()
    assert tiny.vision is not None
    text = replace(tiny.text, expert_width=64, dense_width=96)
    vision = replace(tiny.vision, width=32, n_heads=2, mlp_width=128, adapter_width=32, output_width=32)
    return replace(tiny, text=text, vision=vision)


def as_it_is(weight: Tensor | Small) -> Tensor | Small:
    """Weights stay in their formats, as where no kernels are built."""
    return weight


def layer_of(model: Llama, layer: int) -> Block:
    block = model.layers[layer]
    assert isinstance(block, Block)
    return block


def written_out(policy: Policy) -> Llama:
    """The twin: a plain model whose parameters are the numbers that the small one's stand for."""
    model = random_model(config())
    for name, parameter in model.named_parameters():
        if policy.covers(name, tuple(parameter.shape)):
            parameter.copy_(dequantize(policy.shrink(name, parameter.detach()), torch.float32))
    return model


def tiles() -> Tensor:
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("parts", [EXPERTS, DECODER, MATRICES], ids=["experts", "decoder", "all"])
def test_a_small_model_computes_what_its_numbers_say(to: Format, parts: frozenset[str]) -> None:
    policy = Policy(to=to, parts=parts)
    small, plain = random_model(config()), written_out(policy)
    swap.quantize(small, policy, arrange=as_it_is)
    ids = random_ids(20, seed=1)
    torch.testing.assert_close(read_whole(small, ids), read_whole(plain, ids))  # the same products in another order
    torch.testing.assert_close(small.embed_tiles(tiles()), plain.embed_tiles(tiles()))


@pytest.mark.parametrize("to", FORMATS)
def test_only_matrices_of_the_chosen_parts_become_small(to: Format) -> None:
    model = random_model(config())
    before = {name: tuple(p.shape) for name, p in model.named_parameters()}
    swap.quantize(model, Policy(to=to), arrange=as_it_is)
    left = {name for name, _ in model.named_parameters()}
    assert {part_of(name) for name in before.keys() - left} == DECODER
    assert {part_of(name) for name in left} == {"embedding", "norms", "router", "vision", "adapter", "projector"}
    small = {name: m for name, m in model.named_modules() if isinstance(m, SmallLinear | SmallExperts)}
    for name in before.keys() - left:
        owner = model.get_submodule(name.rpartition(".")[0])
        held = getattr(owner, name.rpartition(".")[2])
        assert isinstance(held, KINDS[to]) and shape(held) == before[name]
    assert len(small) == len(before.keys() - left) - 2  # gate_up and down of two layers share a module each


@pytest.mark.skipif(not native.available(), reason="no kernels of ours for this processor")
@pytest.mark.parametrize("to", ["int4", "int8", None])
def test_weights_are_packed_where_the_processor_has_kernels(to: Format | None) -> None:
    packed, policy = random_model(config()), None if to is None else Policy.in_memory(to)
    place = swap.placer(policy)
    for name, parameter in list(packed.named_parameters()):
        place(packed, name, parameter.detach())
    head: object = packed.head
    assert isinstance(head, SmallLinear) and isinstance(head.weight, Packed)
    assert head.weight.kind == {"int4": "int6", "int8": "int8", None: "fp32"}[to]
    moe = layer_of(packed, 1).moe
    assert moe is not None and isinstance(moe.router, nn.Linear)
    plain = random_model(config()) if policy is None else written_out(policy)
    ids = random_ids(20, seed=1)
    expected = read_whole(plain, ids)
    off = (read_whole(packed, ids) - expected).norm() / expected.norm()
    # the kernels round activations to 8 bits too, which costs a fraction of what rounding weights does
    assert off < (1e-5 if to is None else 0.03)


def test_any_format_becomes_any_other() -> None:
    weight = torch.randn(8, 64)
    for first in FORMATS:
        for second in FORMATS:
            once = Policy(to=first).shrink("w", weight)
            twice = Policy(to=second).shrink("w", once)
            assert isinstance(twice, KINDS[second])
            if first == second:
                assert twice is once
                continue
            direct = Policy(to=second).shrink("w", dequantize(once, torch.float32))
            assert all(torch.equal(a.float(), b.float()) for a, b in zip(twice, direct, strict=True))


def test_losses_are_told_for_every_small_parameter_and_grow_as_bits_shrink() -> None:
    lost: dict[Format, list[Loss]] = {}
    for to in FORMATS:
        swap.quantize(random_model(config()), Policy(to=to), lost.setdefault(to, []).append)
    names = [loss.name for loss in lost["int4"]]
    assert names == [
        name for name, p in random_model(config()).named_parameters() if Policy(to="int4").covers(name, tuple(p.shape))
    ]
    for int4, int8, fp8 in zip(*(lost[to] for to in FORMATS), strict=True):
        assert int8.relative_error < fp8.relative_error < int4.relative_error < 0.1
        assert int4.bytes_after * 64 == int4.bytes_before * 9  # 4.5 of 32 bits


def test_losses_of_tiny_numbers_do_not_vanish() -> None:
    weight = torch.randn(4, 64)
    for size in (1e-30, 1e30):
        small = Policy(to="int4").shrink("head.weight", weight * size)
        assert swap.loss("head.weight", weight * size, small).relative_error == pytest.approx(
            swap.loss("head.weight", weight, Policy(to="int4").shrink("head.weight", weight)).relative_error, rel=0.05
        )


def test_placing_holds_one_parameter_in_both_forms_at_most() -> None:
    """Bytes of all tensors that the model holds, whenever a parameter was placed: never a wide one that was covered."""
    source, policy = random_model(config()), Policy(to="int4")
    with torch.device("meta"):
        model = Llama(config())
    place = swap.placer(policy, arrange=as_it_is)
    for name, parameter in source.named_parameters():
        place(model, name, parameter.detach().clone())
        for held, tensor in model.named_parameters():
            assert tensor.is_meta or not policy.covers(held, tuple(tensor.shape))


def test_costs_of_columns_reach_the_search() -> None:
    weight, cost = torch.randn(16, 64), torch.rand(64) ** 4
    with_costs = Policy(to="int4", costs={"head.weight": cost}).shrink("head.weight", weight)
    without = Policy(to="int4").shrink("head.weight", weight)
    lost = [((dequantize(w, torch.float32) - weight).square() * cost).sum() for w in (with_costs, without)]
    assert lost[0] < lost[1]


def test_a_module_follows_a_device_and_not_a_dtype() -> None:
    layer = SmallLinear(Policy(to="fp8").shrink("w", torch.randn(4, 32)))
    layer.to(torch.bfloat16)
    assert isinstance(layer.weight, Fp8)
    assert (layer.weight.codes.dtype, layer.weight.scales.dtype) == (torch.float8_e4m3fn, torch.float32)
    layer.to("meta")
    assert layer.weight.codes.is_meta


@pytest.mark.skipif(not native.available(), reason="no kernels of ours for this processor")
def test_packed_weights_refuse_to_leave_their_processor() -> None:
    layer = SmallLinear(native.pack(torch.randn(4, 32)))
    with pytest.raises(DeviceError, match="cannot move to meta"):
        layer.to("meta")


def test_experts_may_be_half_small() -> None:
    """A checkpoint may hold one of the two in small numbers, such as Meta's fp8 cut along the columns."""
    plain, model = random_model(config()), random_model(config())
    name = "layers.1.moe.experts.down"
    down = Policy(to="int8").shrink(name, plain.get_parameter(name))
    set_parameter(plain, name, dequantize(down, torch.float32))
    swap.put(model, name, down)
    ids = random_ids(12, seed=2)
    torch.testing.assert_close(read_whole(model, ids), read_whole(plain, ids))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Policy(to=cast(Format, "int3")), ConfigError, "quantize is 'int3': expected one of int4, int8, fp8"),
        (lambda: Policy(to="int4", parts=frozenset({"router"})), ConfigError, "'router' is not one of"),
        (
            lambda: Policy(to="int4").shrink("layers.0.mlp.down.weight", torch.ones(4, 48)),
            ConfigError,
            "layers.0.mlp.down.weight: int4: 48 columns",
        ),
        (
            lambda: Policy(to="fp8").shrink("head.weight", torch.full((4, 32), torch.nan)),
            WeightsError,
            "head.weight: row 0",
        ),
    ],
)
def test_what_cannot_become_small_is_named(make: Callable[[], object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


LOAD = """
import json, re, sys
from pathlib import Path
import torch
from puna.kernels.formats import n_bytes
from puna.model.count import part_of
from puna.quant import swap
from puna.weights import checkpoint
torch.set_num_threads(1)
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text()).group(1))
swap.int4.quantize(torch.randn(64, 64)); swap.packed(torch.randn(8, 8))  # what comes once with the first use
before, sizes = peak(), []
place = swap.placer(swap.Policy(to="int4"), report=lambda loss: sizes.append((loss.bytes_before, loss.bytes_after)))
checkpoint.load(Path(sys.argv[1]), place=place)
print(json.dumps({"peak": peak() - before, "sizes": sizes}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the mark is read from Linux's /proc")
def test_loading_holds_the_small_model_and_one_parameter_in_both_forms_at_most(tmp_path: Path) -> None:
    tiny = tiny_config()
    every = frozenset(range(6))
    text = replace(tiny.text, width=512, n_layers=6, n_experts=16, expert_width=1024, moe_layers=every, dense_width=512)
    config = replace(tiny, text=text, vision=None, image_start_id=None, image_end_id=None, patch_id=None)
    save_hf(random_model(config).bfloat16(), config, tmp_path / "wide")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "wide")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    wide, small = (sum(column) for column in zip(*found["sizes"], strict=True))
    largest = max(before + after for before, after in found["sizes"])
    assert wide > 300e6  # or the rest of the process would hide what is measured
    slack = 24 << 20  # norms and embedding, one piece of a file, strips in float32, the allocator's own
    assert small < found["peak"] < small + largest + slack < 0.6 * wide
