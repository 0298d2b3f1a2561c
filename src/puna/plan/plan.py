"""A plan: what a model takes of a cluster for a task, as a value, as a JSON document and as lines for people.

In: a configuration and what is asked. Out: the best layout with its bytes by part and rank, its floors, and the reasons
against the others. Everything is arithmetic over shapes: a plan for 30,000 GPUs is made on any machine, in seconds.
"""

from dataclasses import asdict, dataclass
from typing import Any

from puna.card import memory, params
from puna.config import LlamaConfig
from puna.plan import search
from puna.plan.hardware import Cluster
from puna.plan.search import Found
from puna.plan.serve import Asked, Served


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
            "asked": asdict(self.asked),
            "parameters": params.count(self.config).to_json(),
            "weights_bytes": memory.by_part(self.config, memory.SCHEMES[self.asked.scheme], self.asked.float_bytes),
            "layout": asdict(best.layout) | {"world": best.layout.world},
            **best.to_json(),
            "refused": self.found.refused_json(),
        }

    def table(self) -> str:
        """Returns lines for people."""
        best, asked, cluster = self.found.best, self.asked, self.cluster
        count, fullest = params.count(self.config), best.fullest
        divided = " x ".join(f"{name} {n}" for name, n in asdict(best.layout).items() if n > 1) or "one rank"
        rows = [
            f"{self.model} on {cluster.count} x {cluster.hardware.name}, weights {asked.scheme}, "
            f"{asked.batch} sequences of {asked.context:,} tokens",
            f"parameters     {count.total / 1e9:,.2f} B, {count.activated / 1e9:,.2f} B a token",
            f"layout         {divided}",
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


def serve(model: str, config: LlamaConfig, cluster: Cluster, asked: Asked) -> ServePlan:
    """Returns the plan of serving a model."""
    found = search.serve(config, cluster, asked)
    return ServePlan(model=model, config=config, cluster=cluster, asked=asked, found=found)


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
