"""What a rank keeps of a parameter, and the whole of it: plain tensors are whole, DTensors are kept in parts.

In and out: parameters, and tensors that are spread as they are. Elementwise work is done on own parts; what needs whole
matrices asks for them here. All ranks call `whole` alike.
"""

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from puna.kernels import training

PIECE = 1 << 19
"""Numbers of which two megabytes are float32."""


def local(x: Tensor) -> Tensor:
    """Returns this rank's part of a tensor, in its memory; not differentiable."""
    own: Tensor = x.to_local() if isinstance(x, DTensor) else x
    return own.detach()


def spread_like(part: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor whose part on this rank is `part`, in its memory, spread as `like` is."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(part: Tensor, like: Tensor) -> Tensor:
    """Returns the whole tensor of which all ranks give their `part`, spread as `like` is."""
    full = spread_like(part, like)
    return full.full_tensor() if isinstance(full, DTensor) else full


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Returns this rank's part, a view, of a whole tensor that is to be spread as `like` is."""
    if not isinstance(like, DTensor):
        return full
    lengths, starts = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return full[tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))]


def has_whole_matrices(x: Tensor) -> bool:
    """Says whether no matrix of x [.. out in] is divided: ranks may have different matrices."""
    return local(x).shape[-2:] == x.shape[-2:]


def n_copies(x: Tensor, n_ranks: int) -> int:
    """Returns how many of `n_ranks` ranks keep the same part of x."""
    if not isinstance(x, DTensor):
        return n_ranks
    n_parts = 1
    for length, placement in zip(x.device_mesh.shape, x.placements, strict=True):
        n_parts *= 1 if placement.is_replicate() else length
    return int(n_ranks // n_parts)


def norm(tensors: dict[str, Tensor], stages: int = 1) -> Tensor:
    """Returns the norm of all tensors together, float32 scalar: on every rank that of all ranks' in all stages."""
    if not any(isinstance(x, DTensor) for x in tensors.values()):
        return torch.stack([_square(x) for x in tensors.values()]).sum().sqrt()
    n_ranks = distributed.get_world_size() // stages
    squares = [_square(local(x)) / n_copies(x, n_ranks) for x in tensors.values()]
    total = torch.stack(squares).sum()
    distributed.all_reduce(total)
    return total.sqrt()


def _square(x: Tensor) -> Tensor:
    """Returns the sum of squares, float32 scalar, in pieces that stay in the cache as float32: the library's norm of
    bfloat16 numbers takes eight times as long."""
    if training.can_update(x):
        return training.sum_of_squares(x.contiguous())
    pieces = [torch.linalg.vector_norm(piece.float()) for piece in torch.split(x.reshape(-1), PIECE)]
    total: Tensor = torch.stack(pieces).square().sum() if pieces else x.new_zeros((), dtype=torch.float32)
    return total
