"""Files of requests over the machines of a Ray cluster: one engine an actor, otherwise as in one process (`batch`).

In: a cluster's address, and how a model is loaded, which every machine does for itself. Out: a finished file, as from
one process. With an actor that is lost, nothing is lost but time: its open items are asked again elsewhere, and another
actor is asked for in its place.
Not here: what an item is, the order of answers, resumption (`batch`).
"""

import asyncio
import itertools
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from puna import chat
from puna.errors import ConfigError, DeviceError
from puna.guard import pipeline
from puna.guard.policy import Policy
from puna.serve import batch
from puna.serve.batch import TRIES, Item, Result, Summary
from puna.serve.desk import Desk
from puna.serve.guarding import Protections

MAX_PAUSE_SECONDS = 60.0  # between actors that do not come up


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How each actor loads its engine: what `chat.load` takes, the model's name in requests, and lines at once.

    `policy` is that of the protections around each; None: there are none.
    """

    source: str | Path
    options: Mapping[str, Any]
    model: str
    at_once: int
    policy: Policy | None = None


async def run_on_cluster(
    source: Path, target: Path, plan: Plan, *, address: str, n_workers: int | None, say: Callable[[str], None]
) -> Summary:
    """Does what `batch.run` does, on `n_workers` actors; None takes one for each GPU, or machine where there is none.

    Raises DeviceError when no cluster answers at `address`, and what keeps a model from being loaded on any machine.
    """
    _join(address)
    try:
        n, share = _share(n_workers)
        at_once = n * plan.at_once  # all of it for one actor, should it be the last
        kind = ray.remote(max_restarts=0, max_concurrency=at_once + 1, scheduling_strategy="SPREAD", **share)(_Engine)
        crew = Crew(kind, plan, say)
        crew.hire(n)
        summary = await batch.run(source, target, crew.ask, model=plan.model, at_once=at_once, say=say)
        summary.repeated = crew.n_repeated
        return summary
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Connects to a cluster. Ray itself would wait minutes for one that is not there."""
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:  # a ConnectionError is an OSError
        reason = next(iter(str(error).splitlines()), "")
        message = f"--ray {address}: no cluster answers ({reason}); start one with: ray start --head"
        raise DeviceError(message) from error


class _Engine:
    """What an actor runs: a desk over a model of its own."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._desk: Desk | None = None

    async def start(self) -> None:
        """Loads the model, apart from the constructor so that what fails is told as it is."""
        assistant = chat.load(self._plan.source, **self._plan.options)
        policy = self._plan.policy
        screen = None if policy is None else Protections(pipeline.make(policy, assistant))
        settings = batch.settings(self._plan.model, self._plan.at_once, screen, assistant.adapters)
        self._desk = await Desk(assistant, settings).__aenter__()

    async def answer(self, item: Item) -> Result:
        assert self._desk is not None, "started"
        return await batch.answer(self._desk, item)


@dataclass(slots=True, eq=False)
class _Worker:
    actor: Any
    n_open: int = 0


class Crew:
    """Actors that answer items. `kind` is their class for Ray; call `hire` before `ask`, in the same event loop."""

    def __init__(self, kind: Any, plan: Plan, say: Callable[[str], None]) -> None:
        self._kind = kind
        self._plan = plan
        self._say = say
        self._workers: list[_Worker] = []
        self._hiring: set[asyncio.Task[None]] = set()
        self.n_repeated = 0  # times that an item was asked again

    def hire(self, n: int) -> None:
        """Has `n` more actors come as soon as the cluster has room for them."""
        self._hiring |= {asyncio.ensure_future(self._hire()) for _ in range(n)}

    async def ask(self, item: Item) -> Result:
        """Returns the answer of whoever has least to do. Raises what keeps an actor from starting."""
        for _ in range(TRIES):
            worker = await self._least_busy()
            worker.n_open += 1
            try:
                result: Result = await worker.actor.answer.remote(item)
                return result
            except RayActorError:
                self._replace(worker)
                self.n_repeated += 1
            finally:
                worker.n_open -= 1
        return batch.refuse(item, "worker_lost", f"{TRIES} workers were lost while they answered this")

    async def _least_busy(self) -> _Worker:
        while True:
            for each in [each for each in self._hiring if each.done()]:
                each.result()
                self._hiring.remove(each)
            if self._workers:
                return min(self._workers, key=lambda worker: worker.n_open)
            await asyncio.wait(self._hiring, return_when=asyncio.FIRST_COMPLETED)

    async def _hire(self) -> None:
        """Starts an actor. Where a machine was lost it may take Ray a while to notice, and to give another one."""
        for n_lost in itertools.count(1):
            actor = self._kind.remote(self._plan)
            try:
                await actor.start.remote()
                break
            except RayActorError as error:
                if n_lost >= TRIES and not self._workers:
                    message = f"--ray: {n_lost} workers ended while they loaded the model: see the cluster's logs"
                    raise DeviceError(message) from error
                await asyncio.sleep(min(2.0 * n_lost, MAX_PAUSE_SECONDS))
        self._workers.append(_Worker(actor))

    def _replace(self, worker: _Worker) -> None:
        if worker in self._workers:  # the first of its items to notice
            self._workers.remove(worker)
            self._say(f"a worker was lost with {worker.n_open} lines, which others get; {len(self._workers)} are left")
            self.hire(1)


def _share(n_workers: int | None) -> tuple[int, dict[str, Any]]:
    """Returns how many actors there are and what each takes of a machine. It gets as many threads as processors."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not machines:
        raise ConfigError("--ray: no machine of the cluster has a processor to give; start one with --num-cpus")
    n_gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    n = (n_gpus or len(machines)) if n_workers is None else n_workers
    processors = [machine["CPU"] for machine in machines]
    return n, {"num_cpus": max(1, int(min(*processors, sum(processors) // n))), "num_gpus": min(n_gpus, 1)}
