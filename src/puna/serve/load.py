"""How much a server has to do, for Prometheus: what the engine holds, what its experts take, what power it draws.

In: functions that read the engine. Out: metrics that are read when somebody asks.
Not here: what requests count (`metrics`), the meters (`energy`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from puna.meter import Meter


class Held(NamedTuple):
    """What an engine holds now and has counted: a view of its load that needs no import of the engine."""

    n_running: int
    n_waiting: int
    kv_use: float  # of the fuller pool, 0..1
    n_prompt_tokens: int
    n_cached_tokens: int
    n_preempted: int
    n_drafted: int
    n_accepted: int

    @classmethod
    def nothing(cls) -> "Held":
        """Returns what an engine holds before its first step."""
        return cls(0, 0, 0.0, 0, 0, 0, 0, 0)


class Load(Collector):
    """Collects from `held` and `expert_counts`, by layer and expert; `layers` are the numbers of those with experts."""

    def __init__(
        self,
        model: str,
        prefix: str,
        held: Callable[[], Held],
        expert_counts: Callable[[], list[list[int]]],
        layers: Sequence[int],
        meters: Sequence[Meter],
    ) -> None:
        self._model = model
        self._prefix = prefix
        self._held = held
        self._expert_counts = expert_counts
        self._layers = layers
        self._meters = meters

    def describe(self) -> Iterable[Metric]:
        """Returns nothing: what there is shows when it is collected."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yields everything as it is now."""
        held = self._held()
        gauges = {
            "num_requests_running": ("Answers that the model works on.", held.n_running),
            "num_requests_waiting": ("Answers that wait for room.", held.n_waiting),
            "kv_cache_usage_perc": ("Share of the blocks for keys and values in use, of the fuller pool.", held.kv_use),
        }
        counters = {
            "prefix_cache_queries": ("Tokens of prompts that were looked for.", held.n_prompt_tokens),
            "prefix_cache_hits": ("Tokens of prompts that were remembered.", held.n_cached_tokens),
            "num_preemptions": ("Times that a sequence had to make room.", held.n_preempted),
            "spec_decode_num_draft_tokens": ("Next tokens that were guessed.", held.n_drafted),
            "spec_decode_num_accepted_tokens": ("Guesses that were right.", held.n_accepted),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(self._prefix + name, text, labels=("model_name",))
            gauge.add_metric((self._model,), value)
            yield gauge
        for name, (text, count) in counters.items():
            counter = CounterMetricFamily(self._prefix + name, text, labels=("model_name",))
            counter.add_metric((self._model,), count)
            yield counter
        yield from self._experts()
        energy = CounterMetricFamily(
            self._prefix + "energy_joules", "Energy used since the start, by meter.", labels=("model_name", "device")
        )
        for meter in self._meters:
            energy.add_metric((self._model, meter.name), meter.joules())
        yield energy

    def _experts(self) -> Iterable[Metric]:
        tokens = CounterMetricFamily(
            self._prefix + "expert_tokens", "Tokens that an expert took.", labels=("model_name", "layer", "expert")
        )
        imbalance = GaugeMetricFamily(
            self._prefix + "expert_load_imbalance",
            "Tokens of the busiest expert of a layer, as a multiple of the mean.",
            labels=("model_name", "layer"),
        )
        for layer, counts in zip(self._layers, self._expert_counts(), strict=True):
            for expert, count in enumerate(counts):
                tokens.add_metric((self._model, str(layer), str(expert)), count)
            if sum(counts):
                imbalance.add_metric((self._model, str(layer)), max(counts) * len(counts) / sum(counts))
        yield tokens
        yield imbalance
