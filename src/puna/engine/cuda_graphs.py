"""The runner on a GPU: decoding steps are CUDA graphs, replayed with one launch; everything else runs as it is written.

In: a `Batch`. Out: logits; keys and values are stored on the way. A graph holds the step for a fixed number of rows
(`BUCKETS`); a batch takes the smallest that holds it, and rows beyond it see and store nothing. Graphs are captured
when they are first needed, or all at once by `prepare`. Steps with prompts or pictures, and those too large for any
graph, run without: `steps` counts both, and a decoding step that no graph takes warns once.
Not here: what a step does (`cuda_step`) and reads (`cuda_inputs`).
Why Triton, what was chosen and what is unmeasured: docs/decisions/014.

Untested on a GPU so far: the tests run everything but `capture_on_gpu` on the CPU, in Triton's interpreter.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from puna.engine.batch import Batch
from puna.engine.cache import KVCache
from puna.engine.cuda_inputs import StaticInputs, of_batch, only_decodes
from puna.engine.cuda_step import DecoderStep
from puna.model.transformer import Block, Llama

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
"""Rows of graphs. A step costs the same at 1 row as at a few, so that small ones need not be many."""


class Captured(NamedTuple):
    """A computation that `replay` does again, with what its inputs hold then, into `result`."""

    replay: Callable[[], None]
    result: Tensor


Capture = Callable[[Callable[[], Tensor]], Captured]


class GraphRunner:
    """Runs the decoder of one model over one cache. `capture` makes a graph of a computation without arguments."""

    def __init__(
        self,
        model: Llama,
        cache: KVCache,
        *,
        buckets: Sequence[int] = BUCKETS,
        capture: Capture | None = None,
    ) -> None:
        self.steps: Counter[Literal["replayed", "written out"]] = Counter()
        self._step = DecoderStep(model, cache)
        self._text, self._cache = model.config.text, cache
        self._buckets = tuple(sorted(buckets))
        self._capture = capture_on_gpu if capture is None else capture
        self._graphs: dict[int, tuple[StaticInputs, Captured]] = {}
        self._has_warned = False

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Returns float32 logits [R V] of `batch.wanted`, and stores the keys and values of all its tokens."""
        if only_decodes(batch):
            n_rows = bucket_for(len(batch.ids), self._buckets)
            if n_rows is not None:
                inputs, graph = self._graph(n_rows)
                if inputs.fill(batch):
                    graph.replay()
                    self.steps["replayed"] += 1
                    return graph.result[batch.wanted]  # R V, a copy: the next replay overwrites the result
            self._warn(len(batch.ids))
        self.steps["written out"] += 1
        inputs_once = of_batch(batch, self._text, self._cache.layout, self._step.device)
        return self._step.logits(inputs_once, batch.features, batch.wanted)

    def captured(self, n_rows: int) -> Captured:
        """Returns the graph that decoding steps of so many rows take, which a bucket must hold."""
        bucket = bucket_for(n_rows, self._buckets)
        assert bucket is not None, f"{n_rows} rows are more than the largest bucket"
        return self._graph(bucket)[1]

    def prepare(self) -> None:
        """Captures all graphs now, the largest first, so that the smaller ones find its memory."""
        for n_rows in reversed(self._buckets):
            self._graph(n_rows)

    @torch.inference_mode()
    def _graph(self, n_rows: int) -> tuple[StaticInputs, Captured]:
        if n_rows not in self._graphs:
            inputs = StaticInputs(n_rows, self._text, self._cache.layout, self._cache.counts, self._step.device)
            self._graphs[n_rows] = inputs, self._capture(lambda: self._step.logits(inputs.inputs))
        return self._graphs[n_rows]

    def _warn(self, n_rows: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"a decoding step of {n_rows} rows fits no CUDA graph (at most {self._buckets[-1]} rows, and tables as "
                "long as their buffers): such steps run without, more slowly",
                RuntimeWarning,
                stacklevel=3,
            )


def fits(model: Llama, cache: KVCache) -> bool:
    """Returns whether this runner knows the cache's numbers and finds all weights in the device's memory."""
    experts = [layer.moe.experts for layer in model.layers if isinstance(layer, Block) and layer.moe is not None]
    return cache.dtype != torch.float16 and all(part.gate_up is not None for part in experts)


def bucket_for(n_rows: int, buckets: Sequence[int]) -> int | None:
    """Returns the smallest of ascending `buckets` that holds so many rows, or None."""
    return next((bucket for bucket in buckets if n_rows <= bucket), None)


def capture_on_gpu(compute: Callable[[], Tensor]) -> Captured:
    """Returns a CUDA graph of a computation. It runs once before, so that kernels are compiled and libraries ready."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()
    return Captured(graph.replay, result)
