"""Ranks to test with: processes that meet once and then run one function after another, all at the same time.

No port is opened by name: the processes find each other through a file.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others, on a machine that does other things."""


class Outcome(NamedTuple):
    """What one rank returned, or how it failed."""

    result: Any
    failure: str | None


class Ranks:
    """`run` has every rank call a function of a module, and returns what each returned, in their order."""

    def __init__(self, world: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.world = world
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_live, args=(rank, world, str(folder / "meeting"), theirs), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        outcomes = self.outcomes(function, *arguments)
        for rank, outcome in enumerate(outcomes):
            assert outcome.failure is None, f"rank {rank} of {self.world}:\n{outcome.failure}"
        return [outcome.result for outcome in outcomes]

    def outcomes(self, function: Callable[..., Any], *arguments: Any) -> list[Outcome]:
        """As `run`, for functions that may fail."""
        for end in self._ends:
            end.send((function, arguments))
        return [_reply(end) for end in self._ends]

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(20)
            if process.is_alive():
                process.kill()


@contextmanager
def started(world: int, folder: Path) -> Iterator[Ranks]:
    """Yields `world` ranks that live until the block ends."""
    ranks = Ranks(world, folder)
    try:
        yield ranks
    finally:
        ranks.close()


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with started(2, tmp_path_factory.mktemp("two")) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with started(4, tmp_path_factory.mktemp("four")) as ranks:
        yield ranks


def _reply(end: Connection) -> Outcome:
    try:
        return Outcome(*end.recv())
    except EOFError:
        return Outcome(None, "died")


def _live(rank: int, world: int, meeting: str, end: Connection) -> None:
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # nothing leaves this machine
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    store = distributed.FileStore(meeting, world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE)
    while True:
        try:
            function, arguments = end.recv()
        except EOFError:
            break
        try:
            end.send((function(*arguments), None))
        except (Exception, SystemExit):
            end.send((None, traceback.format_exc()))
    distributed.destroy_process_group()
