"""When a rank is lost: the others find out which one, end, and say so once.

In: what broke in a collective. Out: one line, from the lowest rank that is left: who is gone, and from where the run
goes on. Ranks meet in the store by which they found each other. A rank that ends for a reason of its own leaves word of
it there. Who notices a broken connection calls the roll, and every living rank answers on a thread of its own, though
its work may still wait for a neighbour. Whoever neither answers nor left word was killed, or went down with its host.
Not here: how a run goes on (`state`).
"""

import threading
import time
from types import TracebackType
from typing import NamedTuple, Self

from torch import distributed
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

ANSWERS = 5.0
"""Seconds in which a rank must answer; torchrun ends all that are left 30 seconds after the first has ended."""

POLL = 0.5

_CALL, _VERDICT = "call", "verdict"


class Roll(NamedTuple):
    """Who is left, in order, and why others ended: "" of those that did not say. `is_known`: False where nobody could
    be asked, because the store is gone too."""

    left: tuple[int, ...]
    gone: dict[int, str]
    is_known: bool = True

    def __str__(self) -> str:
        said = [f"rank {rank} ended ({word})" for rank, word in sorted(self.gone.items()) if word]
        silent = [str(rank) for rank, word in sorted(self.gone.items()) if not word]
        if silent:
            said.append(f"rank {', '.join(silent)} lost, without a word: killed, or its host is down")
        if not self.is_known:
            said.append("rank 0 or torchrun lost, through which ranks find each other")
        return "; ".join(said) or "a rank did not come in time, though all are alive"


class RollCall:
    """Answers for this rank while the block runs. All ranks have one at the same time, with the same `store`."""

    def __init__(self, store: Store, rank: int, world: int, patience: float = ANSWERS) -> None:
        self._store, self.rank, self.world, self.patience = store, rank, world, patience
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="puna roll call", daemon=True)

    @classmethod
    def of(cls, group: ProcessGroup) -> Self:
        """Returns that of a group's ranks, which is all of them."""
        store = PrefixStore(f"puna/{group.group_name}", _get_default_store())
        return cls(store, distributed.get_rank(group), distributed.get_world_size(group))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def leave_word(self, word: str) -> None:
        """Tells the others why this rank ends."""
        try:
            self._store.set(f"word/{self.rank}", word)
        except RuntimeError:  # with the store, nobody is left to be told
            return

    def call(self) -> Roll:
        """Returns who is left. The first to ask waits for answers; later ones get the same verdict."""
        gone: dict[int, str] = {}
        try:
            self._store.set(f"here/{self.rank}", "")
            self._store.set(_CALL, "")
            end = time.monotonic() + self.patience
            while "" in (gone := self._gone()).values() and time.monotonic() < end:
                if self._store.check([_VERDICT]):
                    break
                time.sleep(POLL / 10)
            self._store.set(_VERDICT, "")
        except RuntimeError:
            return Roll((self.rank,), {}, is_known=False)
        return Roll(tuple(rank for rank in range(self.world) if rank not in gone), gone)

    def _gone(self) -> dict[int, str]:
        """Returns whoever left word, and who has not answered."""
        words = {r: self._store.get(f"word/{r}").decode() for r in self._which("word")}
        answered = self._which("here")
        return {rank: words.get(rank, "") for rank in range(self.world) if rank in words or rank not in answered}

    def _which(self, kind: str) -> list[int]:
        return [rank for rank in range(self.world) if self._store.check([f"{kind}/{rank}"])]

    def _answer(self) -> None:
        try:
            while not self._ended.wait(POLL):
                if self._store.check([_CALL]):
                    self._store.set(f"here/{self.rank}", "")
                    return
        except RuntimeError:  # the store is gone: the connections to other ranks will tell
            return
