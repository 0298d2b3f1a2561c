"""What a training run takes: bytes of each rank, seconds of a step, and of the whole run hours, energy and emissions.

In: a job, a cluster, what is assumed and declared. Out: a `Trained`. The *floor* of a step is its useful operations at
the hardware's full speed, the *estimate* is simulated (`pipeline`), and the run goes through failures (`failures`).
Not here: which layout is best (`search`).

Source: energy and emissions, Patterson et al., arXiv 2204.05149, as in `puna.meter`: processors x hours x watts x PUE,
and that times the grid's intensity; of the card's table, 0.387 kg a kWh (1,999 t over 5,166 MWh).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from puna import meter
from puna.meter import Site
from puna.plan import failures, pipeline, training
from puna.plan.cluster import MTBF_HOURS, Cluster
from puna.plan.failures import Habits, Run
from puna.plan.pipeline import Simulated
from puna.plan.shares import layers_of
from puna.plan.step import Assumed, Step, Ways
from puna.plan.training import Held, Job

CARD_KG_PER_KWH = 0.387

RESTART_SECONDS = 900.0
"""From a failure to the next step: noticing, replacing, starting, reading the checkpoint.
Source: Llama 3 (arXiv 2407.21783, section 3.3.4): over 90 % of its time was useful through 419 interruptions."""

DISK_BYTES = 0.5e9
"""Bytes of a checkpoint that a rank writes in a second, while the next steps go on. A declared guess, on the low side:
the next checkpoint cannot begin before, which matters for short intervals alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long is trained, and where: tokens of the run, and the site with watts, PUE and the grid's factors."""

    tokens: float
    site: Site
    seed: int = 0


class Trained:
    """One layout of a training in numbers. What takes long to find is found when it is asked for."""

    def __init__(self, job: Job, cluster: Cluster, assumed: Assumed, length: Length) -> None:
        self.job, self.cluster, self.assumed, self.length = job, cluster, assumed, length
        self.layout = job.layout
        self.step = Step(job, cluster, assumed)
        self.memory_bytes = cluster.hardware.memory_bytes

    @cached_property
    def ranks(self) -> tuple[Held, ...]:
        """Of each stage the first rank, which holds the most, and the last."""
        members = sorted({0, self.layout.team - 1})
        stages = range(self.layout.pipeline)
        return tuple(training.rank(self.job, self.step.kept, stage, member) for stage in stages for member in members)

    @cached_property
    def fullest(self) -> Held:
        """The rank that holds most: of the first stage, which has most batches under way and the embedding, of the
        second, which may have a layer more, or of the last, which has the head."""
        stages = sorted({0, min(1, self.layout.pipeline - 1), self.layout.pipeline - 1})
        return max((training.rank(self.job, self.step.kept, stage, 0) for stage in stages), key=lambda h: h.peak)

    @property
    def needed(self) -> int:
        """Bytes of the fullest rank, with what the driver takes."""
        return self.fullest.peak + self.cluster.hardware.reserve_bytes

    @property
    def fits(self) -> bool:
        return self.needed <= self.memory_bytes

    @cached_property
    def simulated(self) -> Simulated:
        return pipeline.simulated(self.step)

    @property
    def tokens_per_step(self) -> int:
        shape = self.job.shape
        return shape.rows * shape.row_len * self.step.batches * self.layout.readers

    @property
    def tokens_per_second(self) -> float:
        """Of the whole cluster, while nothing fails."""
        return self.tokens_per_step / self.simulated.seconds

    @cached_property
    def flops_per_token(self) -> float:
        """Useful operations of a token, there and back."""
        stages = range(self.layout.pipeline)
        each = sum(self.step.stage_flops(stage) for stage in stages) * self.layout.context * self.layout.tensor
        return each / (self.job.shape.rows * self.job.shape.row_len)

    @property
    def floor_tokens_per_second(self) -> float:
        """What arithmetic allows at most: useful operations at the full speed of their numbers."""
        hardware = self.cluster.hardware
        return self.cluster.count * hardware.rate(self.assumed.numbers) / self.flops_per_token

    @property
    def utilisation(self) -> float:
        """Useful operations over the peak in bfloat16 (MFU), which is what papers give."""
        done = self.tokens_per_second * self.flops_per_token
        return done / (self.cluster.count * self.cluster.hardware.rate("bfloat16"))

    @cached_property
    def run(self) -> Run:
        """The whole run, with checkpoints and failures."""
        mtbf = MTBF_HOURS * 3600 / self.cluster.count
        saves = self.fullest.saving / (self.cluster.hardware.read_bytes / 3)  # a copy in memory
        work = self.length.tokens / self.tokens_per_second
        interval = min(failures.best_interval(mtbf, saves), work)
        writing = self.fullest.saving / DISK_BYTES
        habits = Habits(
            mtbf_seconds=mtbf,
            save_seconds=saves,
            restart_seconds=RESTART_SECONDS,
            interval_seconds=max(interval, writing),  # the next one begins when the last one is on disk
        )
        return failures.simulate(work, habits, self.length.seed)

    @property
    def hours(self) -> float:
        return self.run.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.cluster.count

    @property
    def emitted(self) -> meter.Emitted:
        """Kilowatt hours and kilograms of the run."""
        watts = self.length.site.tdp_watts or self.cluster.hardware.watts
        found = meter.emitted(meter.declared(self.gpu_hours, watts * self.length.site.utilisation), self.length.site)
        assert found is not None, "watts are declared"
        return found

    @property
    def communication(self) -> dict[str, float]:
        """Bytes that the first rank sends in a step, by what for."""
        step, batches = self.step, self.step.batches
        layers = [step.layer(i) for i in layers_of(self.job.config.text.n_layers, self.layout.pipeline, 0)]

        def sent(*names: str) -> float:
            ways: list[Ways] = [getattr(each, name) for each in layers for name in names]
            return batches * sum(w.there.n_bytes + w.back_again(self.layout.recompute).n_bytes for w in ways)

        twice = 1 if self.layout.pipeline > 1 else 2
        reduces = 1 if self.layout.pipeline > 1 else batches
        return {
            "sums of matrices": sent("attention_sums", "experts_sums"),
            "keys of rows": sent("keys"),
            "rows to experts": sent("dispatch", "dispatch"),
            "weights gathered": batches * twice * sum(each.gather.n_bytes for each in layers),
            "gradients reduced": reduces * sum(each.reduce.n_bytes for each in layers),
            "gradients of replicas": step.replicas(0).n_bytes,
            "states of stages": batches * step.hand_over().n_bytes,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        run, emitted = self.run, self.emitted
        return {
            "ranks": [
                {"rank": h.rank, **h.parts(), "stays": h.stays, "total": h.peak + self.cluster.hardware.reserve_bytes}
                for h in self.ranks
            ],
            "step": self.simulated.to_json() | {"tokens": self.tokens_per_step, "batches": self.step.batches},
            "communication": self.communication,
            "floor_tokens_per_second": self.floor_tokens_per_second,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_per_gpu": self.tokens_per_second / self.cluster.count,
            "flops_per_token": self.flops_per_token,
            "utilisation": self.utilisation,
            "run": {
                "tokens": self.length.tokens,
                "hours": self.hours,
                "gpu_hours": self.gpu_hours,
                "useful_share": run.share,
                "failures": run.failures,
                "saving_hours": run.saving / 3600,
                "lost_hours": run.lost / 3600,
                "restarting_hours": run.restarting / 3600,
                "kwh": emitted.kwh,
                "location_kg": emitted.location_kg,
                "market_kg": emitted.market_kg,
            },
        }
