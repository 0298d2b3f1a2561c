"""Runs a model through its engine as users do and times it: cases in, one record out.

A case is named as in the record: `prefill_512` reads a prompt of 512 ids to its first token; `decode_b16_ctx128`
continues 16 prompts of 128 ids together. Ids are random and nothing ends early, so that every run does the same work;
the sampler is part of it. Each case is run once without counting, then `runs` times; the median counts. Loading is
timed once, from the call to the first token, as a second time would find everything in memory.
Not here: what a machine can reach (`machine`), what a token must cost (`work`), other systems (bench/peers.py).
"""

import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from puna.bench import machine, work
from puna.bench.record import Figure, Record
from puna.chat import Assistant
from puna.config import LlamaConfig
from puna.engine.engine import Engine
from puna.engine.request import Request, Sampling
from puna.errors import ConfigError
from puna.plan.floor import weights_read

DECODE_STEPS = 32
"""Tokens that each sequence gets in one timed run of decoding, on average."""

DEFAULT_CASES = (
    "prefill_512",
    "prefill_2048",
    "decode_b1_ctx128",
    "decode_b1_ctx2048",
    "decode_b8_ctx128",
    "decode_b16_ctx128",
    "decode_b1_ctx16384",
)
Progress = Callable[[str], None]


class Case(NamedTuple):
    """What is timed: reading a prompt of `context` ids (`batch` None), or continuing `batch` prompts of that length."""

    name: str
    batch: int | None
    context: int

    @property
    def n_ids(self) -> int:
        """Ids that one sequence has at most."""
        return self.context + (1 if self.batch is None else _most_new_tokens(self.batch))


def case(name: str) -> Case:
    """Returns the case of that name, with or without its unit. Raises ConfigError when there is none."""
    if found := re.fullmatch(r"prefill_([1-9]\d*)(?:_tok_s)?", name):
        return Case(f"prefill_{found[1]}", None, int(found[1]))
    if found := re.fullmatch(r"decode_b([1-9]\d*)_ctx([1-9]\d*)(?:_tok_s)?", name):
        return Case(f"decode_b{found[1]}_ctx{found[2]}", int(found[1]), int(found[2]))
    raise ConfigError(f"case {name!r}: name one as prefill_512 or decode_b16_ctx128, or the beginning of one")


def choose_cases(only: Sequence[str] | None, room: int) -> tuple[Case, ...]:
    """Returns the cases to time. `only` has names, or beginnings up to an underscore of the usual names.

    None takes all usual ones for which a context of `room` ids is enough; an empty sequence takes none, so that loading
    is left. Raises ConfigError for a name that is no case, or one that there is no room for.
    """
    usual = [case(name) for name in DEFAULT_CASES]
    if only is None:
        return tuple(each for each in usual if each.n_ids <= room)
    chosen: list[Case] = []
    for name in only:
        begun = [each for each in usual if each.name.startswith(f"{name}_") and each.n_ids <= room]
        chosen += begun or [case(name)]
    large = next((each for each in chosen if each.n_ids > room), None)
    if large is not None:
        raise ConfigError(f"case {large.name!r}: needs {large.n_ids} ids, the context has {room}; take a shorter one")
    return tuple(dict.fromkeys(chosen))


def measure(
    model: str,
    load: Callable[[], Assistant],
    *,
    quantize: str | None,
    only: Sequence[str] | None,
    runs: int,
    temperature: float,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
    read_size: int = machine.READ_BYTES,
    product_size: int = machine.GEMM_SIZE,
) -> Record:
    """Times loading, the chosen cases and then the machine itself. Raises ConfigError when a case cannot be run.

    `model` and `quantize` say what `load` returns, for the record. `progress` is told what is being timed. The machine
    comes last, as its memory would count as the model's; `read_size` bytes are read and matrices of `product_size` rows
    multiplied, less of which is quicker and less true.
    """
    choose_cases(only, room=sys.maxsize)  # what is misspelt is refused before a long load
    before = machine.ticks()
    progress("loading")
    begin = clock()
    assistant = load()
    engine = assistant.engine
    _prefill(engine, [[assistant.config.bos_id]], temperature)
    load_seconds = clock() - begin
    assistant.wait()
    llama, config = assistant.model, assistant.config
    place = llama.embedding.weight.device

    samples: dict[Case, tuple[float, ...]] = {}
    for each in choose_cases(only, config.text.context_len):
        progress(each.name)
        samples[each] = _rates(engine, each, runs, temperature, clock)
    peak, resident = machine.peak_bytes(place), machine.peak_resident_bytes()

    progress("memory and matrix products")
    weights = work.weight_bytes(llama)
    whole = place.type == "cpu" and quantize != "fp8" and _is_small(config, weights)
    limits = work.Limits(
        read_bytes=machine.read_bytes_per_second(place, machine.READS, read_size),
        flops=machine.flops(place, torch.int8 if whole else llama.embedding.weight.dtype, runs, product_size),
    )
    figures = {
        f"{each.name}_tok_s": Figure(samples=rates, floor=_floor(engine, weights, limits, each))
        for each, rates in samples.items()
    }
    figures["load_s"] = Figure(samples=(load_seconds,), more_is_better=False)
    held = sum(weights.values()) / 2**30
    if place.type == "cuda":
        figures["peak_device_gib"] = Figure(samples=(peak / 2**30,), floor=held, more_is_better=False)
    figures["peak_rss_gib"] = Figure(
        samples=(resident / 2**30,), floor=held if place.type == "cpu" else None, more_is_better=False
    )
    return Record(
        model=model,
        quantize=quantize,
        dtype=str(llama.embedding.weight.dtype).removeprefix("torch."),
        runs=runs,
        temperature=temperature,
        machine=machine.describe(place),
        disturbance=machine.disturbance(before, machine.ticks()),
        limits=limits,
        figures=figures,
    )


def _rates(engine: Engine, each: Case, runs: int, temperature: float, clock: Callable[[], float]) -> tuple[float, ...]:
    """Returns tokens a second in each of `runs` runs of a case, after one that does not count.

    Every prefill reads a new prompt, so that nothing of it is known. Decoding continues the same prompts each time: how
    they were read does not count, and an engine that remembers them saves the reader time.
    """
    numbers = random.Random(each.name)
    n_words = engine.model.config.bos_id or engine.model.config.text.vocab_size  # special tokens come behind the words
    rates = []

    def prompts(n: int) -> list[list[int]]:
        return [[numbers.randrange(n_words) for _ in range(each.context)] for _ in range(n)]

    same = prompts(each.batch or 0)
    for _ in range(runs + 1):
        if each.batch is None:
            new = prompts(1)
            begin = clock()
            _prefill(engine, new, temperature)
            rates.append(each.context / (clock() - begin))
        else:
            rates.append(_decode(engine, same, temperature, clock))
    return tuple(rates[1:])


def _prefill(engine: Engine, prompts: Iterable[Sequence[int]], temperature: float) -> None:
    """Reads prompts to their first tokens."""
    for ids in prompts:
        engine.add(Request(ids=ids, sampling=Sampling(temperature=temperature, max_new_tokens=1)))
    while not engine.is_idle:
        engine.step()


def _decode(engine: Engine, prompts: Sequence[Sequence[int]], temperature: float, clock: Callable[[], float]) -> float:
    """Returns the tokens a second that all prompts together get once every one has been read."""
    sampling = Sampling(temperature=temperature, max_new_tokens=_most_new_tokens(len(prompts)))
    unread = {engine.add(Request(ids=ids, sampling=sampling)) for ids in prompts}
    requests = tuple(unread)
    while unread:
        unread -= {event.request_id for event in engine.step()}
    begin, n_tokens = clock(), 0
    while n_tokens < DECODE_STEPS * len(prompts):  # a step gives more where the engine guesses tokens right
        n_tokens += len(engine.step())
    seconds = clock() - begin
    for request in requests:
        engine.abort(request)
    return n_tokens / seconds


def _most_new_tokens(batch: int) -> int:
    """Returns enough for all to go on to the end of a run: those read first go on while the others are read."""
    return DECODE_STEPS + batch + 1


def _is_small(config: LlamaConfig, weights: Mapping[str, int]) -> bool:
    """Says whether weights take about a byte or less: products with them are made of whole numbers on a processor."""
    return weights_read(config.text, weights, 1) < 1.5 * work.read_parameters(config)


def _floor(engine: Engine, weights: dict[str, int], limits: work.Limits, each: Case) -> float:
    config = engine.model.config
    if each.batch is None:
        return work.prefill_floor(config, weights, limits, each.context)
    return work.decode_floor(config, weights, limits, each.batch, each.context, engine.cache.dtype.itemsize)
