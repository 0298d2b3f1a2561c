"""How far tuning moves the router: whether tokens still go where the base sent them, and how evenly.

In: a model before its first step and later, and a few batches that stay the same. Out: agreement, the share of choices
that are the base's, and the entropy of the loads, 1 where they are even, by layer and for all. Nothing of it trains.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.model.transformer import Llama
from puna.records import write_whole
from puna.train import forward
from puna.train.pack import PADDING, Batch

DRIFT = "drift.jsonl"


class Drift(NamedTuple):
    """agreement and entropy: means over layers; by layer the same, in layer order."""

    step: int
    agreement: float
    entropy: float
    agreements: list[float]
    entropies: list[float]


class Routing:
    """Compares a model's routes with those that it had when this was made."""

    def __init__(self, model: Llama, batches: Sequence[Batch], run: Path, device: torch.device | str) -> None:
        self.model, self.batches, self.run, self.device = model, batches, run, device
        self.before = [self._choices(batch) for batch in batches]

    def note(self, step: int) -> Drift:
        """Returns how it is now, and adds it to the file of the run; what stood there of this step or later goes."""
        now = [self._choices(batch) for batch in self.batches]
        same = torch.cat([(a == b).float() for a, b in zip(now, self.before, strict=True)], dim=1).mean((1, 2))  # L
        load = F.one_hot(torch.cat(now, dim=1), self.model.config.text.n_experts).float().mean((1, 2))  # L E
        entropies = -(load * load.clamp(min=1e-12).log()).sum(-1) / torch.tensor(float(load.shape[-1])).log()  # L
        found = Drift(step, float(same.mean()), float(entropies.mean()), same.tolist(), entropies.tolist())
        file = self.run / DRIFT
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] < step]
        write_whole(file, "".join(f"{line}\n" for line in [*kept, json.dumps(found._asdict())]))
        return found

    @torch.no_grad()
    def _choices(self, batch: Batch) -> Tensor:
        """Returns the experts of all tokens that are not padding, int64 [L T k]."""
        counts = batch.documents.flatten() != PADDING
        routes = forward.hidden(self.model, batch.to(self.device)).routes
        return torch.stack([route.experts.cpu()[counts] for route in routes])
