"""What a server counts, for Prometheus.

In: calls from `worker` and `app`. Out: the text that /metrics answers. Each server has its own registry, so several can
live in one process. The names after the prefix are vLLM's where vLLM has the thing; prefix "vllm:" makes dashboards for
vLLM work.

Source of names: vllm-project/vllm `docs/design/metrics.md`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX, VLLM_PREFIX = "puna_", "vllm:"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = tuple(4**i for i in range(12))


class Metrics:
    """Counters of one server. All are labelled with the model's name."""

    def __init__(self, model: str, prefix: str = PREFIX) -> None:
        self._registry = CollectorRegistry()
        self.model = model
        self.prefix = prefix
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens read, patch tokens included.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens made.")
        self.image_tiles = self._counter("image_tiles", "Tiles of pictures read.")
        self.disconnects = self._counter("client_disconnects", "Requests whose client left before the end.")
        self.rejected = self._counter("requests_rejected", "Requests refused because the queue was full.")
        self.misread_calls = self._counter("tool_call_parse_failures", "Texts that began like a call and were none.")
        self.failures = self._counter("engine_failures", "Steps of the model that failed.")
        self.first_token = self._histogram("time_to_first_token_seconds", "From request to first token.", _SECONDS)
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between tokens of one choice.", _SECONDS)
        self.whole = self._histogram("e2e_request_latency_seconds", "From request to the end of its answers.", _SECONDS)
        self.queued = self._histogram("request_queue_time_seconds", "From request to its first step.", _SECONDS)
        self.prefill = self._histogram("request_prefill_time_seconds", "From then to the first token.", _SECONDS)
        self.decode = self._histogram("request_decode_time_seconds", "From then to the end of its answers.", _SECONDS)
        self.prompt_lens = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_lens = self._histogram("request_generation_tokens", "Tokens of all answers of a prompt.", _TOKENS)
        finished = "Answers that ended, by why."
        self._finished = Counter(
            f"{prefix}request_success", finished, ("model_name", "finished_reason"), registry=self._registry
        )
        self._finished_by: dict[str, Counter] = {}  # finding one by its labels takes long

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Adds a gauge whose value is read when somebody asks."""
        gauge = Gauge(self.prefix + name, text, ("model_name",), registry=self._registry)
        gauge.labels(self.model).set_function(read)

    def add(self, collector: Collector) -> None:
        """Adds what somebody else counts."""
        self._registry.register(collector)

    def finish(self, reason: str) -> None:
        """Counts an answer that ended."""
        if reason not in self._finished_by:
            self._finished_by[reason] = self._finished.labels(self.model, reason)
        self._finished_by[reason].inc()

    def totals(self) -> dict[str, int]:
        """Returns what was counted in all: tokens read and made, and tiles."""
        names = ("prompt_tokens", "generation_tokens", "image_tiles")
        read = {
            name: self._registry.get_sample_value(f"{self.prefix}{name}_total", {"model_name": self.model})
            for name in names
        }
        return {name: int(value or 0) for name, value in read.items()}

    def text(self) -> bytes:
        """Returns everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(self.prefix + name, text, ("model_name",), registry=self._registry)
        return counter.labels(self.model)

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> "Histogram":
        histogram = Histogram(self.prefix + name, text, self.model, bounds)
        self.add(histogram)
        return histogram


class Histogram(Collector):
    """Counts numbers by size, many equal ones at once: every token is counted. For one thread, unlike Prometheus' own.

    `bounds` are the largest numbers of each bucket, in order; a last one takes all that is larger.
    """

    def __init__(self, name: str, text: str, model: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._model = model
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, number: float, n: int = 1) -> None:
        """Counts a number `n` times."""
        self._counts[bisect_left(self._bounds, number)] += n
        self._sum += number * n

    def collect(self) -> Iterator[Metric]:
        """Yields the counts as they are now."""
        family = HistogramMetricFamily(self._name, self._text, labels=("model_name",))
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        family.add_metric((self._model,), list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)
        yield family
