"""What a server counts, for Prometheus.

In: calls from `worker` and `app`. Out: the text that /metrics answers. Each server has its own registry, so several can
live in one process. The names after the prefix are vLLM's where vLLM has the thing; prefix "vllm:" makes dashboards for
vLLM work.

Source of names: vllm-project/vllm `docs/design/metrics.md`.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
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
        self._finished = Counter(
            f"{prefix}request_success",
            "Answers that ended, by why.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Adds a gauge whose value is read when somebody asks."""
        gauge = Gauge(self.prefix + name, text, ("model_name",), registry=self._registry)
        gauge.labels(self.model).set_function(read)

    def add(self, collector: Collector) -> None:
        """Adds what somebody else counts."""
        self._registry.register(collector)

    def finish(self, reason: str) -> None:
        """Counts an answer that ended."""
        self._finished.labels(self.model, reason).inc()

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

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(self.prefix + name, text, ("model_name",), buckets=buckets, registry=self._registry)
        return histogram.labels(self.model)
