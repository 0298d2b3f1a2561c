"""A number of accelerators of one kind as a cluster: how fast its ranks tell each other something.

In: a name and a count such as "h100:8". Out: a `Cluster`. "here" is measured, not declared (`puna.bench.here`).
Not here: what one accelerator offers (`puna.hardware`).
"""

from dataclasses import dataclass

from puna.errors import ConfigError
from puna.hardware import KINDS, Hardware

MTBF_HOURS = 50_700.0
"""Mean hours between two failures that stop a run, of one GPU and its share of the machine around it.

Source: Llama 3 (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions in 54 days on 16,384 H100.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`count` accelerators of one kind; machines are filled one after the other."""

    hardware: Hardware
    count: int

    def ring(self, ranks: int, stride: int = 1) -> float:
        """Returns the bytes a second at which `ranks` ranks, every `stride`-th one, gather or sum up.

        What leaves a node goes over the network ports of all its members in the group.
        """
        hardware = self.hardware
        if ranks * stride <= hardware.node:
            return hardware.link_bytes
        members = min(ranks, max(1, hardware.node // stride))
        return min(hardware.link_bytes, members * hardware.net_bytes)

    def exchange(self, ranks: int, stride: int = 1) -> float:
        """Returns the bytes a second at which each of `ranks` ranks sends to all others something of its own."""
        hardware = self.hardware
        near = min(ranks, max(1, hardware.node // stride))
        far = ranks - near
        if not far:
            return hardware.link_bytes
        return min(hardware.net_bytes * (ranks - 1) / far, hardware.link_bytes * (ranks - 1) / max(near - 1, 1))

    def latency(self, ranks: int, stride: int = 1) -> float:
        """Returns the seconds that a message among such ranks takes at least."""
        inside = ranks * stride <= self.hardware.node
        return self.hardware.link_seconds if inside else self.hardware.net_seconds


def parse(text: str, here: Hardware | None = None) -> Cluster:
    """Returns the cluster that "KIND:COUNT" or "KIND" names. `here`: what this machine was measured to be, for "here".

    Raises ConfigError for an unknown kind or a count that is none.
    """
    name, colon, number = text.lower().partition(":")
    kinds = dict(KINDS) | ({} if here is None else {"here": here})
    if name not in kinds:
        raise ConfigError(f"--hardware is {text!r}: no such kind; give one of {', '.join(KINDS)}, here, and :COUNT")
    if colon and not (number.isdigit() and int(number) > 0):
        raise ConfigError(f"--hardware is {text!r}: {number!r} is no count; write for example {name}:8")
    return Cluster(hardware=kinds[name], count=int(number) if colon else 1)
