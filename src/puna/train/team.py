"""The processes of a run: who is first, what they agree on, and how they end when one of them is lost.

In: a recipe and the processes that torchrun started. Out: a `Team`, by which the loop asks and tells the others what is
no number of training.
Not here: which rank computes what (`mesh`), how those that are left learn who is gone (`lost`).
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from puna.config import LlamaConfig
from puna.errors import ConfigError, DeviceError
from puna.meter import Used
from puna.model.transformer import Llama
from puna.train.lost import RollCall
from puna.train.mesh import Mesh, is_loss
from puna.train.next_token import NextToken
from puna.train.recipe import Recipe, RunRecipe
from puna.train.state import TrainingState, begin, checkpoints, first_state, start_on_ranks
from puna.train.update import PATIENCE, ManyRanks, OneProcess, Update, join


class Team(NamedTuple):
    """The processes of a run. mesh: None for one alone. group: for words beside the numbers of training. saving: for
    checkpoints, which are written beside the steps: in one group words of both would wait for each other."""

    mesh: Mesh | None
    group: ProcessGroup | None
    is_first: bool
    saving: ProcessGroup | None = None

    @classmethod
    def of(cls, recipe: RunRecipe, config: LlamaConfig) -> "Team":
        """Joins the others, if the recipe wants any. Raises as `join` does, and DeviceError where one is lost."""
        if recipe.parallel.world == 1:
            return cls(None, None, is_first=True)
        try:
            mesh = join(recipe, config, recipe.compute.device)
            words, saving = (distributed.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
        except RuntimeError as error:
            if not is_loss(error):
                raise
            reason = next(iter(str(error).splitlines()), "")
            raise DeviceError(f"ranks: one was lost before all had met; start all as before ({reason})") from error
        return cls(mesh, words, distributed.get_rank() == 0, saving)

    def begin(self, recipe: Recipe, config: LlamaConfig) -> tuple[TrainingState, Update]:
        """Returns the state before the first step, and what changes it."""
        if self.mesh is None:
            state = begin(recipe, config)
            assert isinstance(state.model, Llama)
            options = recipe.loss
            loss = NextToken(
                state.model, balance=options.balance, z=options.z, chunk=options.chunk, compiled=recipe.compute.compile
            )
            return state, OneProcess(loss, state.optimizer, recipe.compute.device)
        device = torch.device(recipe.compute.device)
        stage, optimizer = start_on_ranks(recipe, config, self.mesh)
        return first_state(recipe, stage, optimizer), ManyRanks(stage, optimizer, recipe, device)

    @property
    def is_first_of_host(self) -> bool:
        return self.mesh is None or distributed.get_node_local_rank(fallback_rank=distributed.get_rank()) == 0

    def together(self, own: Used) -> Used:
        """Returns what all have used, of which each host's first has read the meters."""
        if self.group is None:
            return own
        found: list[Used | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, own, group=self.group)
        joules: dict[str, float] = {}
        for used in found:
            for method, amount in ((used and used.joules) or {}).items():
                joules[method] = joules.get(method, 0.0) + amount
        return Used(joules or None, own.seconds)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Lets the first process through, and when it is done the others."""
        if not self.is_first:
            distributed.barrier(self.group)
        yield
        if self.is_first and self.group is not None:
            distributed.barrier(self.group)

    def agree(self, *wishes: bool) -> list[bool]:
        """Returns what anybody wishes."""
        if self.group is None:
            return list(wishes)
        votes = torch.tensor(wishes, dtype=torch.uint8)
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, self.group)
        return [bool(vote) for vote in votes]

    @contextmanager
    def alone_in(self, run: Path) -> Iterator[None]:
        """Keeps other starts out of a folder, which it makes. Raises ConfigError while one is at work there."""
        with ExitStack() as until_the_end:
            with self.ends_together(run), self.first_alone():
                if self.is_first:
                    until_the_end.enter_context(_alone(run))
            yield

    @contextmanager
    def ends_together(self, run: Path, doing: Callable[[], str] = lambda: "before the first step") -> Iterator[None]:
        """Has all ranks of `run` end when one does, which until then were `doing` something.

        Of those that lost others the lowest rank raises DeviceError, which says whom and what to do; the rest leave
        with SystemExit: once is enough. A rank that ends for a reason of its own raises what it is.
        """
        if self.group is None:
            yield
            return
        with RollCall.of(self.group) as others:
            try:
                yield
            except BaseException as error:
                if not is_loss(error):
                    others.leave_word(next(iter(str(error).splitlines()), type(error).__name__))
                    raise
                roll = others.call()
                if others.rank != roll.left[0]:
                    raise SystemExit(2) from None
                found = checkpoints(run)
                place = f"from step {found[-1][0]}, its last checkpoint" if found else "from its beginning"
                raise DeviceError(f"{doing()}: {roll}; start all ranks as before: the run goes on {place}") from error


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Holds the lock of a folder, which the system takes back from a process that ends in whatever way."""
    run.mkdir(parents=True, exist_ok=True)
    lock = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--run {run}: is being trained already; wait, or give another folder") from error
        yield
    finally:
        os.close(lock)
