"""Arithmetic in which statements about equality can be proved: every float32 and bfloat16 number a float64 one.

Two orders of the same sum differ by rounding, and twenty steps of training make more of it: the iteration of Muon
rounds to bfloat16, where a last bit of float32 now and then tips one of 8 bits. In here the same code, unchanged,
computes with 53 bits throughout, so that what is left is either 1e-10 or a mistake.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_SMALL = (torch.float32, torch.bfloat16)
_CASTS = (torch.Tensor.float, torch.Tensor.bfloat16)


class Doubled(TorchFunctionMode):
    """Within it, whatever asks torch for float32 or bfloat16 gets float64: in this thread, backward passes included."""

    def __enter__(self) -> "Doubled":
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        torch.set_default_dtype(self._default)

    def __torch_function__(
        self, function: Any, types: Any, arguments: Iterable[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        if function in _CASTS:
            function = torch.Tensor.double
        wide = {name: _wide(value) for name, value in (options or {}).items()}
        if wide.get("grad_scale") is not None:  # torch's fused AdamW wants that number in float32 alone
            wide["grad_scale"] = torch.Tensor.to(wide["grad_scale"], torch.float32)
        return function(*(_wide(value) for value in arguments), **wide)


def _wide(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _SMALL else value
