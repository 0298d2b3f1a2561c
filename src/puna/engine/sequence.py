"""A sequence: one text being read and continued, from the moment it is asked for to its end.

Not here: who runs when (`scheduler`), which blocks are whose (`blocks`): a sequence only holds its table.
"""

from collections import abc
from dataclasses import dataclass, field

from torch import Tensor

from puna.engine.blocks import Table, chain
from puna.engine.pictures import Pictures
from puna.engine.request import Request
from puna.engine.sampler import SamplerState

PATIENCE_SECONDS = 10.0
"""An ordinary request is expected to have begun so long after it came; each step of priority moves that by as much."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One text being read and continued.

    `ids` are all that is known of it: the prompt, then what was chosen. The first `table.length` of them have been
    read. `samplers` has one entry per sample that goes on from it: several only until the prompt has been read, when
    they part. `due_seconds` is when it is expected by; `n_cached` counts ids of the prompt that need not be read.
    """

    request_id: int
    request: Request
    due_seconds: float
    samplers: dict[int, SamplerState]
    max_new_tokens: int
    ids: list[int]
    pictures: Pictures | None
    table: Table = field(default_factory=Table)
    n_cached: int | None = None  # None until it has begun
    read_routes: Tensor | None = None  # int64 [M E], of the prompt, while its routes are wanted
    _keys: list[bytes] = field(default_factory=list)

    @property
    def rank(self) -> tuple[float, int, int]:
        """Comes first when it is least: what is due earlier, then what came earlier.

        It never changes and newcomers are due ever later, so everybody comes first one day.
        """
        return self.due_seconds, self.request_id, min(self.samplers)

    @property
    def n_unread(self) -> int:
        return len(self.ids) - self.table.length

    @property
    def n_new_tokens(self) -> int:
        """Tokens that were chosen."""
        return len(self.ids) - len(self.request.ids)

    @property
    def is_decoding(self) -> bool:
        """Says whether nothing is unread but the token chosen last."""
        return self.n_unread == 1 and self.n_new_tokens > 0

    def keys(self, n_positions: int, block_len: int) -> abc.Sequence[bytes]:
        """Returns the keys of the full blocks of its first `n_positions` ids, and maybe of more."""
        adapter = self.request.adapter
        salt = b"" if adapter is None else chain(b"", (), [adapter.encode()])  # with another one it is another text
        while len(self._keys) < n_positions // block_len:
            start = len(self._keys) * block_len
            end = start + block_len
            digests = () if self.pictures is None else self.pictures.digests_between(start, end)
            self._keys.append(chain(self._keys[-1] if self._keys else salt, self.ids[start:end], digests))
        return self._keys

    def twin(self, sample: int, table: Table) -> "Sequence":
        """Returns a sequence that goes on alone with one of the samples, which leaves this one."""
        return Sequence(
            request_id=self.request_id,
            request=self.request,
            due_seconds=self.due_seconds,
            samplers={sample: self.samplers.pop(sample)},
            max_new_tokens=self.max_new_tokens,
            ids=list(self.ids),
            pictures=self.pictures,
            table=table,
            n_cached=self.n_cached,
            _keys=list(self._keys),
        )


def due_seconds(request: Request, now_seconds: float) -> float:
    """Returns when a request that comes now is expected by: its deadline, or as its priority has it."""
    patience = PATIENCE_SECONDS * (1 + request.priority)
    due = now_seconds + patience
    return due if request.deadline_seconds is None else min(due, request.deadline_seconds)
