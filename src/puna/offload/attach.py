"""A model and its experts off the device joined: the store found or made, the cache sized, and what speed to expect.

In: a model whose other weights are there, and what reads one expert of its checkpoint in the form wanted. Out: the
model with `OffloadedExperts` in it, and one line of what that means for speed.
Not here: checkpoints (`weights`), how numbers are made small (`quant`); both come in as functions.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.kernels import build, native
from puna.model.transformer import Llama
from puna.offload import store as stores
from puna.offload.cache import ExpertCache
from puna.offload.experts import put_off
from puna.offload.store import DiskStore, HostStore, Layers, Progress, ReadExpert, Store, write_missing

Where = Literal["disk", "host"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """Where experts go. `folder` is where stores on disk are made, None for the user's cache folder; `cache_bytes` is
    what the experts on the device may take there, None for half of the memory that is free."""

    where: Where
    folder: Path | None = None
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.where not in get_args(Where):
            raise ConfigError(f"offload is {self.where!r}: expected one of {', '.join(get_args(Where))}, or none")
        if self.where == "host" and self.folder is not None:
            raise ConfigError(
                f"offload_dir is {str(self.folder)!r}: experts in host memory need no folder; leave it out"
            )


def check(offload: Offload, config: LlamaConfig, device: torch.device) -> None:
    """Raises ConfigError for a model without routed experts, and for "host" where the device is the host."""
    if not config.text.moe_layers:
        raise ConfigError(f"offload is {offload.where!r}: this model has no routed experts; leave it out")
    if offload.where == "host" and device.type == "cpu":
        raise ConfigError("offload is 'host': the model runs in the memory of the host already; use 'disk'")


def attach(
    model: Llama, offload: Offload, read: ReadExpert, identity: str, progress: Progress | None = None
) -> ExpertCache:
    """Puts the experts of `model` where `offload` says, and says how fast that is, once, as a warning of the log.

    read: what one expert of the checkpoint is, for a store that has to be made. identity: a name for the checkpoint's
    files and the numbers wanted, see `identify`. progress is told of experts stored. Raises as `check` and the stores.
    """
    text, device = model.config.text, model.embedding.weight.device
    check(offload, model.config, device)
    store = _store(offload, Layers(tuple(sorted(text.moe_layers)), text.n_experts), read, identity, progress)
    cache = ExpertCache(store, offload.cache_bytes or _half_of_free_bytes(device), device)
    put_off(model, cache)
    _log.warning("%s", outlook(cache, cache.read_rate(), text.n_active_experts))
    return cache


def identify(files: Iterable[Path], numbers: str) -> str:
    """Returns a name for experts that come from these files (by path, size and time) in these numbers.

    Where the processor has kernels of ours it covers them too, since they decide the order of packed weights.
    """
    kernels = build.library().name if native.available() else "none"
    digest = hashlib.sha256(f"{stores.VERSION}\n{numbers}\n{kernels}\n".encode())
    for path in sorted(file.resolve() for file in set(files)):
        known = path.stat()
        digest.update(f"{path}\n{known.st_size}\n{known.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def outlook(cache: ExpertCache, read_rate: float, n_active: int) -> str:
    """Returns one line: what a token reads, what of it is cached, and tokens a second at `read_rate` bytes a second."""
    experts, size = cache.store.experts, cache.store.record.n_bytes
    n_all, n_used = len(experts.all_keys()), len(experts.layers) * n_active
    share = cache.n_places / n_all
    worst = read_rate / (n_used * size)
    facts = (
        f"experts {cache.store.where}: a token uses {n_used} of {n_all} ({_gigabytes(n_used * size)}), the cache holds "
        f"{cache.n_places} ({_gigabytes(cache.n_bytes)})"
    )
    if share == 1:
        return f"{facts}: all, so that only the first use of each is slow"
    return (
        f"{facts}; at {_gigabytes(read_rate)}/s, as measured now, expect {worst:.2g} tokens/s if nothing is cached and "
        f"{worst / (1 - share):.2g} if all experts are used alike"
    )


def _store(offload: Offload, experts: Layers, read: ReadExpert, identity: str, progress: Progress | None) -> Store:
    if offload.where == "host":
        return HostStore(experts, read, locked=True, progress=progress)
    folder = (offload.folder or Path.home() / ".cache" / "puna" / "experts") / identity
    write_missing(folder, identity, experts, read, progress)
    return DiskStore(folder, identity, experts)


def _half_of_free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # where the system does not say what is free
    described = Path("/proc/meminfo")
    if described.exists():
        line = next(line for line in described.read_text().splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    return free // 2


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.2g} MB"
