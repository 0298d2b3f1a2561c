"""What a request asks of single ids: logits that are added, the only ones that are allowed, no end before its time.

In: logits of the rows of one sequence. Out: the same, changed in place. Few requests ask for it, so each is served by
itself. Not here: everything else that makes a choice (`sampler`).

Source: `logit_bias` of the OpenAI API reference; `allowed_token_ids` and `min_tokens` of vLLM's sampling parameters.
"""

import torch
from torch import Tensor

from puna.engine.request import Sampling


class Bias:
    """The account of one sequence, which counts the tokens that were written."""

    def __init__(self, sampling: Sampling) -> None:
        self.n_written = 0
        self._min_new_tokens = sampling.min_new_tokens
        self._ids = torch.tensor([*sampling.logit_bias], dtype=torch.long)
        self._values = torch.tensor([*sampling.logit_bias.values()], dtype=torch.float32)
        self._stop_ids = torch.tensor(sorted(sampling.stop_ids), dtype=torch.long)
        allowed = sampling.allowed_ids
        self._allowed = None if allowed is None else torch.tensor(sorted(set(allowed)), dtype=torch.long)

    def apply(self, rows: Tensor) -> None:
        """Changes `rows` [G V] in place: the one behind what the sequence holds, and one behind each draft."""
        device = rows.device
        if len(self._ids):
            rows.index_add_(1, self._ids.to(device), self._values.to(device).expand(len(rows), -1))
        if self._allowed is not None:
            bar = torch.full_like(rows[0], -torch.inf).index_fill_(0, self._allowed.to(device), 0.0)
            rows += bar
        n_endless = min(self._min_new_tokens - self.n_written, len(rows))
        if n_endless > 0:
            rows[:n_endless].index_fill_(1, self._stop_ids.to(device), -torch.inf)
