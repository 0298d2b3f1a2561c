"""A plan: what a model takes of a cluster for a task, as a value, as a JSON document and as lines for people.

In: a configuration and what is asked. Out: the best layout with its bytes by part and rank, its floors, and the reasons
against the others. Everything is arithmetic over shapes: a plan for 30,000 GPUs is made on any machine, in seconds.
"""

from dataclasses import asdict, dataclass
from typing import Any

from puna.card import memory, params
from puna.config import LlamaConfig
from puna.plan import search, stored, tuning
from puna.plan.activations import Shape
from puna.plan.cluster import Cluster
from puna.plan.search import Found
from puna.plan.serve import Asked, Served
from puna.plan.shares import Serving, Training
from puna.plan.step import Assumed
from puna.plan.train import Length, Trained
from puna.plan.training import Matrices
from puna.plan.tuning import Footprint


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """What serving takes."""

    model: str
    config: LlamaConfig
    cluster: Cluster
    asked: Asked
    found: Found[Served]

    def to_json(self) -> dict[str, Any]:
        """Returns the document of `puna plan --task serve --json`."""
        best = self.found.best
        return {
            "task": "serve",
            "model": self.model,
            "fits": self.found.fits,
            "hardware": hardware_json(self.cluster),
            "asked": asked_json(self.asked),
            "parameters": params.count(self.config).to_json(),
            "weights_bytes": memory.by_part(self.config, self.asked.numbers, self.asked.float_bytes),
            "layout": asdict(best.layout) | {"world": best.layout.world},
            **best.to_json(),
            "refused": self.found.refused_json(),
        }

    def table(self) -> str:
        """Returns lines for people."""
        best, asked, cluster = self.found.best, self.asked, self.cluster
        count, fullest = params.count(self.config), best.fullest
        rows = [
            f"{self.model} on {cluster.count} x {cluster.hardware.name}, {asked.batch} sequences of "
            f"{asked.context:,} tokens",
            f"reading        {cluster.hardware.read_bytes / 1e9:,.1f} GB a second, {cluster.hardware.source}",
            f"weights        {stored.words(asked.numbers)}",
            f"parameters     {count.total / 1e9:,.2f} B, {count.activated / 1e9:,.2f} B a token",
            f"layout         {divided(best.layout)}",
            f"fits           {'yes' if self.found.fits else 'no'}: rank {fullest.rank} is the fullest, "
            f"{fullest.total / 1e9:.1f} of {best.memory_bytes / 1e9:.1f} GB",
            f"longest        {best.longest_context:,} tokens in each of {asked.batch} sequences",
            f"sequences      {best.most_sequences:,} of {asked.context:,} tokens at once",
            "",
            f"{'':15}{'floor':>14}{'estimate':>14}   bound by",
        ]
        for name, phase in (("prefill", best.prefill), ("decode", best.decode)):
            rows.append(f"{name + ' tok/s':15}{phase.floor_tokens:14,.0f}{phase.tokens:14,.0f}   {phase.bound}")
        rows += ["", f"GB of rank {fullest.rank}"]
        rows += [f"  {name:18}{n / 1e9:9.3f}" for name, n in fullest.parts().items()]
        rows += ["", *refusals(self.found)]
        return "\n".join(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """What a training of all weights takes, from the start or from a model that is there (`task`)."""

    task: str
    model: str
    config: LlamaConfig
    cluster: Cluster
    found: Found[Trained]

    def to_json(self) -> dict[str, Any]:
        """Returns the document of `puna plan --task train --json`."""
        best = self.found.best
        return {
            "task": self.task,
            "model": self.model,
            "fits": self.found.fits,
            "hardware": hardware_json(self.cluster),
            "asked": {"shape": asdict(best.job.shape), "batch": best.job.accumulate, "matrices": best.job.matrices},
            "assumed": asdict(best.assumed),
            "parameters": params.count(self.config).to_json(),
            "layout": asdict(best.layout) | {"world": best.layout.world},
            **best.to_json(),
            "refused": self.found.refused_json(),
        }

    def table(self) -> str:
        """Returns lines for people."""
        best, cluster = self.found.best, self.cluster
        shape, run, emitted, simulated = best.job.shape, best.run, best.emitted, best.simulated
        per_gpu = best.tokens_per_second / cluster.count
        kilograms = "" if emitted.location_kg is None else f", {emitted.location_kg / 1e3:,.1f} t CO2e"
        rows = [
            f"{self.model} on {cluster.count:,} x {cluster.hardware.name}, {best.assumed.numbers}, "
            f"{best.job.accumulate:,} batches of {shape.rows} x {shape.row_len:,} tokens a step",
            f"layout         {divided(best.layout)}",
            f"fits           {'yes' if self.found.fits else 'no'}: rank {best.fullest.rank} is the fullest, "
            f"{best.needed / 1e9:.1f} of {best.memory_bytes / 1e9:.1f} GB",
            f"floor          {best.floor_tokens_per_second / cluster.count:,.0f} tokens a second and GPU",
            f"estimate       {per_gpu:,.0f}, {best.utilisation:.1%} of the peak in bfloat16; a step of "
            f"{best.tokens_per_step:,} tokens in {simulated.seconds:.2f} s",
            f"of a step      {simulated.computing:.0%} computing, {simulated.exchanging:.0%} waiting for links, "
            f"{simulated.idle:.0%} for others",
            f"run            {best.length.tokens / 1e12:,.2f} T tokens in {best.hours:,.0f} hours, "
            f"{best.gpu_hours:,.0f} GPU hours; {run.failures} failures, {run.share:.1%} of the time is of use",
            f"energy         {emitted.kwh / 1e3:,.1f} MWh{kilograms}",
            "",
            "GB a rank sends in a step",
        ]
        rows += [f"  {name:22}{n / 1e9:9.3f}" for name, n in best.communication.items() if n]
        rows += ["", f"GB of rank {best.fullest.rank}"]
        rows += [f"  {name:22}{n / 1e9:9.3f}" for name, n in best.fullest.parts().items()]
        return "\n".join([*rows, "", *refusals(self.found)])


@dataclass(frozen=True, slots=True, kw_only=True)
class TunePlan:
    """What tuning by factors takes of each GPU; every one has the whole base."""

    model: str
    config: LlamaConfig
    cluster: Cluster
    method: str
    rank: int
    tokens: int
    footprint: Footprint

    @property
    def fits(self) -> bool:
        return self.needed <= self.cluster.hardware.memory_bytes

    @property
    def needed(self) -> int:
        """Bytes of a device, with what its driver takes."""
        return self.footprint.device + self.cluster.hardware.reserve_bytes

    def to_json(self) -> dict[str, Any]:
        """Returns the document of `puna plan --task tune --json`."""
        return {
            "task": "tune",
            "model": self.model,
            "fits": self.fits,
            "hardware": hardware_json(self.cluster),
            "asked": {"method": self.method, "rank": self.rank, "tokens": self.tokens},
            "parameters": params.count(self.config).to_json(),
            "layout": {"replicate": self.cluster.count, "world": self.cluster.count},
            "bytes": self.footprint.to_json() | {"needed": self.needed},
        }

    def table(self) -> str:
        """Returns lines for people."""
        held = self.footprint
        rows = [
            f"{self.model} by {self.method} of rank {self.rank}, {self.tokens:,} tokens a batch, "
            f"on {self.cluster.count} x {self.cluster.hardware.name}",
            f"fits           {'yes' if self.fits else 'no'}: each device needs {self.needed / 1e9:.1f} of "
            f"{self.cluster.hardware.memory_bytes / 1e9:.1f} GB, without the driver {held.device / 1e9:.1f}",
            f"host           {held.host / 1e9:.1f} GB",
            "",
            "GB of a device",
        ]
        rows += [f"  {name:22}{n / 1e9:9.3f}" for name, n in held.parts().items()]
        return "\n".join(rows)


def serve(model: str, config: LlamaConfig, cluster: Cluster, asked: Asked) -> ServePlan:
    """Returns the plan of serving a model."""
    found = search.serve(config, cluster, asked)
    return ServePlan(model=model, config=config, cluster=cluster, asked=asked, found=found)


def train(
    task: str,
    model: str,
    config: LlamaConfig,
    cluster: Cluster,
    shape: Shape,
    batch: int,
    assumed: Assumed,
    length: Length,
    matrices: Matrices,
) -> TrainPlan:
    """Returns the plan of training all weights of a model; `task` is "train" or "tune"."""
    found = search.train(config, cluster, shape, batch, assumed, length, matrices)
    return TrainPlan(task=task, model=model, config=config, cluster=cluster, found=found)


def tune(model: str, config: LlamaConfig, cluster: Cluster, method: str, rank: int, tokens: int) -> TunePlan:
    """Returns the plan of tuning a model by "lora" or "qlora"."""
    held = tuning.footprint(config, base=tuning.BASES[method], rank=rank, tokens=tokens)
    return TunePlan(
        model=model, config=config, cluster=cluster, method=method, rank=rank, tokens=tokens, footprint=held
    )


def divided(layout: Serving | Training) -> str:
    """Returns a layout in words."""
    rows = [name if n is True else f"{name} {n}" for name, n in asdict(layout).items() if n > 1 or n is True]
    return " x ".join(rows) or "one rank"


def asked_json(asked: Asked) -> dict[str, Any]:
    """Returns what is to be served, with the bits of each part that is small."""
    told = {name: getattr(asked, name) for name in ("context", "batch", "scheme", "float_bytes", "kv_dtype")}
    return told | {"bits": {part: numbers.bits for part, numbers in asked.numbers.small.items()}}


def hardware_json(cluster: Cluster) -> dict[str, Any]:
    """Returns what a plan counted with."""
    described = asdict(cluster.hardware)
    return described | {"flops": dict(cluster.hardware.flops), "count": cluster.count}


def refusals(found: Found[Any], most: int = 6) -> list[str]:
    """Returns lines that say which layouts were refused, and why."""
    rows = ["refused" if found.refused else "no layout was refused"]
    for each in found.refused[:most]:
        rows.append(f"  {' x '.join(f'{name} {n}' for name, n in each.layout.items())}: {each.reason}")
    if len(found.refused) > most:
        rows.append(f"  and {len(found.refused) - most} more (--json tells twelve)")
    return rows
