"""A command that runs on several ranks which may be killed, and started again at once.

Every start forks its ranks of one process that has read all modules already, so that a start costs as good as nothing.
What a rank says goes to a file. Ranks find each other through a file too: no port is opened by name.
"""

import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType

PATIENCE = 3000.0
"""Seconds that a test waits for what must happen, on a machine that does other things."""

_MODULES = ["puna.cli", "puna.train.loop", "puna.train.tune", "tests.reference.mortal"]


class Mortals:
    """The ranks of one start of a command, `puna` with `arguments`."""

    def __init__(
        self, world: int, folder: Path, arguments: Sequence[str], largest: Mapping[int, int] = MappingProxyType({})
    ) -> None:
        """`largest`: for ranks whose files cannot grow over so many bytes, as on a disk that is full."""
        folder.mkdir(parents=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_MODULES)
        self.said = [folder / f"rank-{rank}.txt" for rank in range(world)]
        self.processes: list[BaseProcess] = []
        for rank in range(world):
            own = (rank, world, folder, list(arguments), largest.get(rank))
            self.processes.append(context.Process(target=_live, args=own))
        for process in self.processes:
            process.start()

    @property
    def are_alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Returns when it is so, or when a rank has ended."""
        end = time.monotonic() + PATIENCE
        while self.are_alive and not done():
            assert time.monotonic() < end, self.words
            time.sleep(0.001)

    def kill(self, rank: int) -> None:
        """Ends a rank at once, with SIGKILL."""
        self.processes[rank].kill()
        self.processes[rank].join()

    def told_to_end(self) -> None:
        """Asks all that are left to end, with SIGTERM."""
        for process in self.processes:
            process.terminate()

    def join(self) -> list[int | None]:
        """Returns the exit codes of all, when all have ended."""
        for process in self.processes:
            process.join(PATIENCE)
            if process.exitcode is None:
                process.kill()
        return [process.exitcode for process in self.processes]

    @property
    def words(self) -> list[str]:
        """What each rank has said so far."""
        return [file.read_text(encoding="utf-8") if file.exists() else "" for file in self.said]


def _live(rank: int, world: int, folder: Path, arguments: list[str], largest: int | None) -> None:
    with (folder / f"rank-{rank}.txt").open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # nothing leaves this machine
    from torch import distributed

    from puna import cli

    store = distributed.FileStore(str(folder / "meeting"), world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.exit(cli.main(arguments))
