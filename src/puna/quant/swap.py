"""A model with smaller numbers in it: which weights change, what stands in their modules' place, and how much was lost.

In: parameters one at a time, as `weights.checkpoint.load` reads them. Out: the model, filled. A parameter becomes small
before the next is read, so memory never holds more than the small model and one parameter, a layer's experts at most.
Where the processor has kernels of ours, matrices are packed in their order on the way, small ones and others.
Not here: files (`weights`), how scales are found (`int4`, `int8`, `fp8`).

The default policy makes every matrix of the decoder small. Meta's int4 recipe takes the experts alone, routed and
shared, because memory is what it must save; llama.cpp's Q4_0 takes everything, because the speed of decoding is bytes
read a token: at Scout's shape attention and head are 5 GB of 11 in bfloat16 with int4 experts. The embedding is read
one row a token, norms and router are too small to matter and decide what is computed, and the vision tower runs once a
picture: these stay as they are. Source: llama-models `quantization/loader.py`; docs/decisions/011.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from puna.errors import ConfigError, DeviceError, WeightsError
from puna.kernels import native
from puna.kernels.formats import Fp8, Int4, Int8, Small, dequantize, n_bytes, shape
from puna.kernels.native import Packed
from puna.kernels.quantized import Weight, linear, routed_experts
from puna.model.count import part_of
from puna.model.moe import Experts
from puna.model.transformer import Llama, set_parameter
from puna.quant import fp8, int4, int8
from puna.quant.strips import device_of, strips

Format = Literal["int4", "int8", "fp8"]
FORMATS: tuple[Format, ...] = get_args(Format)
Place = Callable[[Llama, str, Tensor | Small], None]

EXPERTS = frozenset({"routed_experts", "shared_experts"})
DECODER = EXPERTS | {"attention", "dense", "head"}
MATRICES = DECODER | {"vision", "adapter", "projector"}
"""The parts, as `model.count` names them, whose matrices may become small."""

# Tables of the vision tower, and its first map, whose few columns (588 in Scout) are pixels.
_LEFT_ALONE = frozenset({"vision.class_token", "vision.positions", "vision.patch.weight"})
_QUANTISERS: Mapping[Format, Callable[[Tensor | Small], Small]] = {
    "int4": int4.quantize,
    "int8": int8.quantize,
    "fp8": fp8.quantize,
}
KINDS: Mapping[Format, type[Small]] = {"int4": Int4, "int8": Int8, "fp8": Fp8}
_NAMES: Mapping[type[Small], Format] = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What becomes small, and how small; the head in a format of its own if `head_to` names one, whose codes have
    `head_bits` bits if it is int8. `costs` are mean squares of the activations of each column, by parameter, if they
    were measured: int4 weighs its errors with them."""

    to: Format
    parts: frozenset[str] = DECODER
    head_to: Format | None = None
    head_bits: int = 8
    costs: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise ConfigError(f"quantize is {self.to!r}: expected one of {', '.join(FORMATS)}, or none")
        if unknown := sorted(self.parts - MATRICES):
            raise ConfigError(f"parts: {unknown[0]!r} is not one of {', '.join(sorted(MATRICES))}")

    def covers(self, name: str, of_shape: tuple[int, ...]) -> bool:
        """Returns whether the parameter of this name and shape becomes small."""
        return len(of_shape) > 1 and part_of(name) in self.parts and name not in _LEFT_ALONE

    @classmethod
    def in_memory(cls, to: Format) -> "Policy":
        """Returns what loading does: the whole decoder. With int4 the head keeps 6 bits, as in llama.cpp's files: four
        would make a fifth of cria's drift, eight would save none. Raises as `Policy` does."""
        return cls(to=to, head_to="int8", head_bits=6) if to == "int4" else cls(to=to)

    def format_of(self, name: str) -> Format:
        """Returns what the parameter of this name becomes."""
        return self.head_to if self.head_to is not None and part_of(name) == "head" else self.to

    def shrink(self, name: str, weight: Tensor | Small) -> Small:
        """Returns a weight [.. out in] in the format wanted; one that is in it already is returned as it is.

        Raises ConfigError or WeightsError, naming the parameter.
        """
        to = self.format_of(name)
        if not isinstance(weight, Tensor) and _NAMES[type(weight)] == to:
            return weight
        try:
            if to == "int4" and self.costs is not None and name in self.costs:
                return int4.quantize(weight, self.costs[name])
            if to == self.head_to == "int8" and part_of(name) == "head":
                return int8.quantize(weight, self.head_bits)
            return _QUANTISERS[to](weight)
        except (ConfigError, WeightsError) as error:
            raise type(error)(f"{name}: {error}") from error


class Loss(NamedTuple):
    """What one parameter lost: the root of its mean squared error over that of its numbers, and bytes before, after."""

    name: str
    to: Format
    relative_error: float
    bytes_before: int
    bytes_after: int


class SmallLinear(nn.Module):
    """A linear map whose weight is small or packed. Takes the place of `nn.Linear`; it cannot be trained."""

    bias: Tensor | None

    def __init__(self, weight: Weight | Packed, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.held = Held(weight)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Weight | Packed:
        """The weight [out in]."""
        return self.held.weight

    def forward(self, x: Tensor) -> Tensor:
        out = linear(x, self.held.weight)
        return out if self.bias is None else out + self.bias


class SmallExperts(nn.Module):
    """The routed experts of one layer, small or packed. Takes the place of `model.moe.Experts`."""

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.ModuleDict()

    @property
    def gate_up(self) -> Weight | Packed:
        """The weight [E 2F D], gate rows first."""
        return self._weight("gate_up")

    @property
    def down(self) -> Weight | Packed:
        """The weight [E D F]."""
        return self._weight("down")

    def forward(self, x: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        return routed_experts(x, scores, experts, self.gate_up, self.down)

    def _weight(self, name: str) -> Weight | Packed:
        held = self.held[name]
        assert isinstance(held, Held)
        return held.weight


class Held(nn.Module):
    """One weight of any format, as a module's buffers. It moves between devices and keeps its numbers as they are."""

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Weight | Packed) -> None:
        super().__init__()
        self._format = type(weight)
        self._packed = weight if isinstance(weight, Packed) else None
        if isinstance(weight, Tensor):
            self.register_buffer("codes", weight)
        elif not isinstance(weight, Packed):
            self.register_buffer("codes", weight.codes)
            self.register_buffer("scales", weight.scales)

    @property
    def weight(self) -> Weight | Packed:
        """The weight as it was given."""
        if self._packed is not None:
            return self._packed
        if issubclass(self._format, Tensor):
            return self.codes
        return self._format(self.codes, self.scales)  # type: ignore[call-arg,arg-type]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Held":
        """Follows a module's `to` in its device alone: a dtype would turn codes into numbers without their scales.

        Raises DeviceError for packed weights, whose order only one processor's kernels read.
        """
        here = torch.device("cpu") if self._packed is not None else self.codes.device
        there = fn(torch.empty(0, device=here)).device
        if self._packed is not None and there != here:
            raise DeviceError(f"device: weights packed for this processor cannot move to {there}; load them there")
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.to(there)
        return self


def packed(weight: Tensor | Small) -> Weight | Packed:
    """Returns a matrix in the order of the processor's kernels, if it lies there and they take its format."""
    if device_of(weight).type != "cpu" or len(shape(weight)) < 2 or not native.available():
        return weight
    if isinstance(weight, Fp8) or (isinstance(weight, Tensor) and weight.dtype not in (torch.float32, torch.bfloat16)):
        return weight
    return native.pack(weight)


def placer(
    policy: Policy | None = None,
    dtype: torch.dtype | None = None,
    report: Callable[[Loss], None] | None = None,
    arrange: Callable[[Tensor | Small], Weight | Packed] = packed,
) -> Place:
    """Returns what puts each parameter, as it is read, into the model, in the form that `former` gives it."""
    form = former(policy, dtype, report, arrange)

    def place(model: Llama, name: str, weight: Tensor | Small) -> None:
        put(model, name, form(name, weight))

    return place


def former(
    policy: Policy | None = None,
    dtype: torch.dtype | None = None,
    report: Callable[[Loss], None] | None = None,
    arrange: Callable[[Tensor | Small], Weight | Packed] = packed,
) -> Callable[[str, Tensor | Small], Weight | Packed]:
    """Returns what gives each parameter its form: small where the policy says so, otherwise as it comes, though small
    numbers that the policy does not ask for are written out in `dtype` if there is one. The decoder's matrices then lie
    as `arrange` orders them. `report` is told what each that became small lost."""

    def form(name: str, weight: Tensor | Small) -> Weight | Packed:
        if policy is not None and policy.covers(name, shape(weight)):
            weight = policy.shrink(name, weight) if report is None else shrink_and_tell(policy, report)(name, weight)
        elif dtype is not None and not isinstance(weight, Tensor):
            weight = dequantize(weight, dtype)
        return arrange(weight) if part_of(name) in DECODER else weight

    return form


def quantize(
    model: Llama,
    policy: Policy,
    report: Callable[[Loss], None] | None = None,
    arrange: Callable[[Tensor | Small], Weight | Packed] = packed,
) -> None:
    """Makes a model in memory small, one parameter after the other, each freed when its successor is there."""
    place = placer(policy, report=report, arrange=arrange)
    left = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name in list(left):
        place(model, name, left.pop(name))


def shrink_and_tell(policy: Policy, report: Callable[[Loss], None]) -> Callable[[str, Tensor | Small], Small]:
    """Returns `policy.shrink`, which then tells what was lost."""

    def shrink(name: str, weight: Tensor | Small) -> Small:
        small = policy.shrink(name, weight)
        report(loss(name, weight, small))
        return small

    return shrink


def put(model: Llama, name: str, weight: Weight | Packed) -> None:
    """Puts a parameter of any format where the one of that name was, in a module that can hold it."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(weight, Tensor) and not isinstance(owner, SmallExperts):
        set_parameter(model, name, weight)
        return
    outer, _, own_name = path.rpartition(".")
    if isinstance(owner, nn.Linear | SmallLinear):
        bias = None if owner.bias is None else owner.get_parameter("bias")
        setattr(model.get_submodule(outer), own_name, SmallLinear(weight, bias))
        return
    if isinstance(owner, Experts):
        small = SmallExperts()
        for sibling, parameter in owner.named_parameters():
            if not parameter.is_meta:  # read before, and not small
                small.held[sibling] = Held(parameter.detach())
        setattr(model.get_submodule(outer), own_name, small)
        owner = small
    assert isinstance(owner, SmallExperts), f"{name}: neither a linear map nor experts"
    owner.held[leaf] = Held(weight)


@torch.no_grad()
def loss(name: str, before: Tensor | Small, after: Small) -> Loss:
    """Returns what the numbers of one parameter lost."""
    error, size = 0.0, 0.0
    for (_, old), (_, new) in zip(strips(before), strips(after), strict=True):
        largest = old.abs().max().clamp_min(torch.finfo(torch.float32).tiny)  # squares of small numbers vanish
        error += ((new - old) / largest).square().sum().item() * largest.item() ** 2
        size += (old / largest).square().sum().item() * largest.item() ** 2
    relative = (error / size) ** 0.5 if size > 0 else 0.0
    return Loss(name, _NAMES[type(after)], relative, n_bytes(before), n_bytes(after))
