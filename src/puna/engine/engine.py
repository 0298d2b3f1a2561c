"""Many requests decoded together, one forward a step: ids and tiles in, one event per new token out.

A step schedules, runs, samples and settles. It reads one flat batch: the one id of each decoding sequence, then as
much of the prompts as the step's budget leaves; sequences that have then read all they know get their next token.
Whatever else runs beside it, a request gets the tokens that it gets alone. Keys and values lie in blocks of a fixed
number of bytes; a request that could never fit is refused when it comes, everything else finishes.
Not here: text, stop strings, messages, threads (one thread steps; a server queues in front).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from puna.engine.batch import Batch, assemble
from puna.engine.blocks import KINDS, Blocks, Counts, Layout, Spill, Table
from puna.engine.cache import KVCache, kv_dtype, share_out, spare_bytes
from puna.engine.pictures import Features, Pictures
from puna.engine.ranks import LeadingCache, bytes_together, cache_for
from puna.engine.request import Event, Finish, Output, Request, check
from puna.engine.routes import RouteCounts, Routes, counted
from puna.engine.runner import TorchRunner, for_model, tells_routes
from puna.engine.sampler import Choice, Sampler, SamplerState
from puna.engine.scheduler import Scheduler, Turn
from puna.engine.sequence import Sequence as Text
from puna.engine.sequence import due_seconds
from puna.engine.speculate import Drafting, Proposer, Speculator
from puna.errors import CapacityError, PromptError
from puna.model.deltas import Shelf
from puna.model.transformer import Llama

MAX_STEP_TOKENS = 2048
"""Tokens of one forward: enough to keep a processor busy, few enough that decoding goes on beside a long prompt."""

MAX_SEQUENCES = 64
"""Samples that are read and decoded at the same time; further requests wait."""


class Load(NamedTuple):
    """What an engine holds now, and what it has counted since it was made."""

    n_running: int  # samples
    n_waiting: int
    n_blocks: Counts
    n_held_blocks: Counts  # by sequences that run
    n_prompt_tokens: int  # of everything that has begun
    n_cached_tokens: int  # of those, tokens that need not be read because their prefix was remembered
    n_preempted: int  # times that a sequence had to make room
    n_drafted: int  # guesses of next tokens that were read
    n_accepted: int  # of those, guesses that were right


class Engine:
    """Runs requests on one model: `add` queues, `step` works, `abort` ends early. Not for several threads at once.

    forbidden_ids     are never chosen, such as rows of a padded vocabulary that no text belongs to
    max_step_tokens   of one forward; max_sequences: samples at the same time
    kv_bytes          for keys and values; None takes a share of the memory that is there
    kv_dtype          a name in `cache.KV_DTYPES`; None keeps keys and values as the model makes them
    n_blocks          of each kind, instead of kv_bytes
    spill             keeps what has to leave the cache; None lets it go
    proposer          guesses next tokens, so that a step may give several; None reads one by one
    shelf             has the adapters that requests may ask for; None has none
    clock             for deadlines and ranks, in seconds

    Raises ConfigError or CapacityError when keys and values cannot be kept like that.
    """

    def __init__(
        self,
        model: Llama,
        *,
        forbidden_ids: Sequence[int] = (),
        max_step_tokens: int = MAX_STEP_TOKENS,
        max_sequences: int = MAX_SEQUENCES,
        kv_bytes: int | None = None,
        kv_dtype: str | None = None,
        n_blocks: Counts | None = None,
        spill: Spill | None = None,
        proposer: Proposer | None = None,
        shelf: Shelf | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_step_tokens <= max_sequences:
            raise ValueError(
                f"max_step_tokens {max_step_tokens} must exceed max_sequences {max_sequences}, or prompts starve"
            )
        self.model = model
        self.max_step_tokens = max_step_tokens
        self.max_sequences = max_sequences
        self.cache = _cache(model, kv_bytes, kv_dtype, n_blocks, max_sequences)
        self._blocks = Blocks(self.cache.layout, self.cache.counts, self.cache, spill)
        self._scheduler = Scheduler(self._blocks, max_step_tokens=max_step_tokens, max_sequences=max_sequences)
        self._adapters = adapter_numbers(shelf)
        self._runner = for_model(model, self.cache, shelf)
        self._telling = self._runner if tells_routes(self._runner) else TorchRunner(model, self.cache, shelf)
        text = model.config.text
        self.route_counts = RouteCounts(len(text.moe_layers), text.n_experts if text.moe_layers else 0)
        self.counts_routes = False  # set it to have every step counted, where the runner tells without being slower
        self._features = Features(model)
        self._clock = clock
        self._n_added = 0
        # A patch id stands for a feature, and a token that was chosen has none.
        forbidden = (*forbidden_ids, *(() if model.config.patch_id is None else (model.config.patch_id,)))
        self._sampler = Sampler(forbidden)
        self._speculator = None if proposer is None else Speculator(proposer, forbidden)

    @property
    def waiting(self) -> list[tuple[int, int]]:
        """Samples (request id, number) that have not begun, or had to make room, by rank."""
        return [(each.request_id, sample) for each in self._scheduler.waiting for sample in each.samplers]

    @property
    def running(self) -> list[tuple[int, int]]:
        """Samples (request id, number) that have begun, those whose prompt is still being read included."""
        return [(each.request_id, sample) for each in self._scheduler.running for sample in each.samplers]

    @property
    def n_waiting(self) -> int:
        return self._scheduler.n_waiting

    @property
    def n_running(self) -> int:
        return self._scheduler.n_running

    @property
    def is_idle(self) -> bool:
        return not self._scheduler.waiting and not self._scheduler.running

    @property
    def load(self) -> Load:
        scheduler, n_blocks, available = self._scheduler, self._blocks.counts, self._blocks.available
        return Load(
            n_running=self.n_running,
            n_waiting=self.n_waiting,
            n_blocks=n_blocks,
            n_held_blocks=Counts(*(n_blocks.of(kind) - available.of(kind) for kind in KINDS)),
            n_prompt_tokens=scheduler.n_prompt_tokens,
            n_cached_tokens=scheduler.n_cached_tokens,
            n_preempted=scheduler.n_preempted,
            n_drafted=0 if self._speculator is None else self._speculator.n_drafted,
            n_accepted=0 if self._speculator is None else self._speculator.n_accepted,
        )

    def add(self, request: Request) -> int:
        """Queues a request and returns its id. Raises PromptError or CapacityError when this model cannot run it."""
        max_new_tokens = self._max_new_tokens(request)
        check_adapter(request.adapter, self._adapters)
        if request.wants_routes and isinstance(self.cache, LeadingCache):
            raise PromptError("wants_routes is True: several ranks do not tell each other their routes; leave it out")
        if request.n > self.max_sequences:
            raise CapacityError(
                f"n is {request.n}: this engine decodes {self.max_sequences} samples at once; ask for fewer"
            )
        self._n_added += 1
        self._scheduler.wait(
            Text(
                request_id=self._n_added,
                request=request,
                due_seconds=due_seconds(request, self._clock()),
                samplers={i: _sampler_state(request, i) for i in range(request.n)},
                max_new_tokens=max_new_tokens,
                ids=list(request.ids),
                pictures=_pictures(request, self.model),
            )
        )
        return self._n_added

    def abort(self, request_id: int, sample: int | None = None) -> list[Event]:
        """Ends all samples of a request, or the one numbered `sample`. Returns an event for each that had not ended."""
        events = []
        for sequence in (*self._scheduler.waiting, *self._scheduler.running):
            if sequence.request_id == request_id:
                gone = [i for i in sequence.samplers if sample in (None, i)]
                events += [Event(request_id, i, None, None, "abort") for i in gone]
                if len(gone) == len(sequence.samplers):
                    self._scheduler.remove(sequence)
                for i in gone:
                    del sequence.samplers[i]
        return events

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Reads one batch. Returns an event for each token that a sample got: none while prompts are being read.

        A step that fails ends the sequences that were in it without an event, and the error says why.
        """
        expired = self._expired()
        turns = self._scheduler.plan()
        if not turns:
            return expired
        try:
            turns = self._with_drafts(turns)
            batch = self._batch(turns)
            runner = self._runner if batch.routes is None else self._telling
            choices = self._chosen(turns, runner.run(batch))
        except BaseException:
            self._drop(turns)
            raise
        routes = self._routed(turns, batch.routes)
        return expired + self._settle(turns, choices, routes)

    def run(self, requests: Iterable[Request]) -> list[list[Output]]:
        """Runs requests to their ends, beside whatever else is queued. Returns the n outputs of each request, in order.

        Events of requests that were added before are lost: do not mix `run` with stepping by hand.
        """
        numbers = [(self.add(request), request.n) for request in requests]
        outputs: dict[tuple[int, int], Output] = {}
        collected = {(number, i): Output([], [], "abort") for number, n in numbers for i in range(n)}
        while len(outputs) < len(collected):
            for event in self.step():
                key = (event.request_id, event.sample)
                if key in collected:
                    ids, logprobs, _ = collected[key]
                    ids += [] if event.token is None else [event.token]
                    logprobs += [] if event.logprobs is None else [event.logprobs]
                    if event.finish is not None:
                        outputs[key] = Output(ids, logprobs, event.finish)
        return [[outputs[number, i] for i in range(n)] for number, n in numbers]

    def forget(self) -> None:
        """Forgets all prefixes and image features: call it when the model's weights have changed."""
        self._blocks.forget()
        self._features.forget()

    def check_integrity(self) -> None:
        """Raises AssertionError unless every block is where it should be; call it between steps."""
        self._scheduler.check_integrity()

    def _max_new_tokens(self, request: Request) -> int:
        """Returns how many tokens the request may get; the last one is never read, so it needs no place."""
        max_new_tokens, capacity = check(request, self.model.config), self._blocks.capacity
        if capacity is None:
            return max_new_tokens
        asked = request.sampling.max_new_tokens
        n_ids, least = len(request.ids), 1 if asked is None else asked
        if n_ids + least - 1 > capacity:
            raise CapacityError(
                f"prompt of {n_ids} tokens and max_new_tokens {least} exceed the {capacity} positions that the cache "
                f"of {self.cache.n_bytes} bytes has room for: shorten one, or give the engine more kv_bytes"
            )
        return min(max_new_tokens, capacity - n_ids + 1)

    def _expired(self) -> list[Event]:
        """Ends what should have been finished by now."""
        now = self._clock()
        late = [
            sequence.request_id
            for sequence in (*self._scheduler.waiting, *self._scheduler.running)
            if sequence.request.deadline_seconds is not None and sequence.request.deadline_seconds <= now
        ]
        return [event for request_id in dict.fromkeys(late) for event in self.abort(request_id)]

    def _batch(self, turns: Sequence[Turn]) -> Batch:
        """Returns what the model reads in this step; the features of pictures are worked out on the way."""
        pieces, stretches, end = [], [], 0
        wanted: list[int] = []
        for turn in turns:
            sequence, table = turn.sequence, turn.sequence.table
            known = sequence.ids[table.length : table.length + turn.n_new]
            pieces.append((table, [*known, *turn.drafts]))
            end += len(known) + len(turn.drafts)
            if turn.is_ready:
                wanted += range(end - len(turn.drafts) - 1, end)
            if sequence.pictures is not None:
                stretches.append((sequence.pictures, table.length, table.length + turn.n_new))
        adapters = [self._adapters[turn.sequence.request.adapter] for turn in turns]
        features = self._features.gather(stretches)
        batch = assemble(pieces, features, wanted, self.model.embedding.weight.device, adapters)
        text = self.model.config.text
        counts = self.counts_routes and tells_routes(self._runner)
        if text.moe_layers and (counts or any(turn.sequence.request.wants_routes for turn in turns)):
            room = torch.empty(text.n_layers, end, text.n_active_experts, dtype=torch.int32)
            batch = batch._replace(routes=room)
        return batch

    def _routed(self, turns: Sequence[Turn], routes: Tensor | None) -> list[list[Routes | None]]:
        """Counts where this step's tokens went. Returns that of each row behind a turn, None where nobody asks."""
        nobody: list[list[Routes | None]] = [[None] * (1 + len(turn.drafts)) for turn in turns]
        if routes is None:
            return nobody
        n_experts = self.model.config.text.n_experts
        routes = routes[sorted(self.model.config.text.moe_layers)]  # M T k
        self.route_counts.add(routes)
        if not any(turn.sequence.request.wants_routes for turn in turns):
            return nobody
        lens = [turn.n_new + len(turn.drafts) for turn in turns]
        of_turns: list[list[Routes | None]] = []
        for (sequence, n_new, drafts), own in zip(turns, torch.split(routes, lens, dim=1), strict=True):
            if not sequence.request.wants_routes:
                of_turns.append([None] * (1 + len(drafts)))
                continue
            if sequence.n_new_tokens == 0:
                before = 0 if sequence.read_routes is None else sequence.read_routes
                sequence.read_routes = before + counted(own, n_experts)
            read = sequence.read_routes if sequence.n_new_tokens == 0 else None
            rows: list[list[list[int]]] = own[:, n_new - 1 :].transpose(0, 1).tolist()  # 1+drafts M k
            of_turns.append(
                [Routes(row, read.tolist() if read is not None and i == 0 else None) for i, row in enumerate(rows)]
            )
        return of_turns

    def _with_drafts(self, turns: list[Turn]) -> list[Turn]:
        """Returns the turns with guesses of what follows, for the sequences that are decoding."""
        if self._speculator is None:
            return turns
        decoding = [turn.sequence for turn in turns if turn.sequence.is_decoding]
        drafts = iter(self._speculator.drafts([_drafting(sequence) for sequence in decoding]))
        return self._scheduler.with_drafts(turns, [next(drafts) if turn.sequence.is_decoding else () for turn in turns])

    def _chosen(self, turns: Sequence[Turn], logits: Tensor) -> list[list[list[Choice]]]:
        """Returns the next tokens of each sample of each turn, none for turns that are not ready. logits [R V]."""
        n_samples = [len(turn.sequence.samplers) if turn.is_ready else 0 for turn in turns]
        repeats = [n for turn, n in zip(turns, n_samples, strict=True) if n for _ in range(1 + len(turn.drafts))]
        if not repeats:
            return [[] for _ in turns]
        if len(repeats) < sum(repeats):  # drafts are those of a single sample
            logits = logits.repeat_interleave(torch.tensor(repeats, device=logits.device), dim=0)
        ready = [(sampler, turn) for turn in turns if turn.is_ready for sampler in turn.sequence.samplers.values()]
        drafts = [turn.drafts for _, turn in ready]
        choices = iter(self._sampler.verify(logits, [sampler for sampler, _ in ready], drafts))
        return [[next(choices) for _ in range(n)] for n in n_samples]

    def _settle(
        self,
        turns: Sequence[Turn],
        choices: Sequence[Sequence[Sequence[Choice]]],
        routes: Sequence[Sequence[Routes | None]],
    ) -> list[Event]:
        """Counts what was read, parts samples, appends the chosen tokens and reports them."""
        block_len = self._blocks.layout.block_len
        for (sequence, n_new, drafts), of_turn in zip(turns, choices, strict=True):
            if drafts:
                n_right = max(len(of_turn[0]) - 1, 0)
                sequence.ids += drafts[:n_right]
                n_new += n_right
                self._learn(sequence, len(drafts), n_right)
            keys = sequence.keys(sequence.table.length + n_new, block_len)
            self._blocks.advance(sequence.table, n_new, keys)
        return [
            event
            for turn, of_turn, went in zip(turns, choices, routes, strict=True)
            if of_turn
            for sequence, chosen in zip(self._parted(turn.sequence), of_turn, strict=True)
            for event in self._continue(sequence, chosen, went)
        ]

    def _learn(self, sequence: Text, n_drafted: int, n_accepted: int) -> None:
        assert self._speculator is not None, "drafts come from the speculator"
        self._speculator.learn(_key(sequence), n_drafted, n_accepted)

    def _parted(self, sequence: Text) -> list[Text]:
        """Returns one sequence per sample that goes on from `sequence`; one without room for its own blocks waits."""
        _, *others = sequence.samplers
        twins = []
        for sample in others:
            table = self._blocks.fork(sequence.table)
            twin = sequence.twin(sample, Table() if table is None else table)
            if table is None:
                self._scheduler.wait(twin)
            else:
                self._scheduler.join(twin)
            twins.append(twin)
        return [sequence, *twins]

    def _continue(self, sequence: Text, chosen: Sequence[Choice], routes: Sequence[Routes | None]) -> list[Event]:
        """Appends the last chosen token to its sequence, ends the sequence where that is due, and reports all tokens.

        A sequence whose grammar allows no token at all is aborted.
        """
        ((sample, sampler),) = sequence.samplers.items()
        matcher = sampler.matcher
        sequence.ids += [choice.token for choice in chosen[-1:]]
        finish: Finish | None = None
        if not chosen:
            finish = "abort"
        elif chosen[-1].token in sequence.request.sampling.stop_ids or (matcher is not None and matcher.is_complete):
            finish = "stop"
        elif sequence.n_new_tokens == sequence.max_new_tokens:
            finish = "length"
        if finish is not None:
            self._scheduler.remove(sequence)
        reported: list[Choice | None] = [*chosen] or [None]
        return [
            Event(
                sequence.request_id,
                sample,
                None if choice is None else choice.token,
                None if choice is None else choice.logprobs,
                finish if i == len(reported) - 1 else None,
                sequence.n_cached or 0,
                routes[i],
            )
            for i, choice in enumerate(reported)
        ]

    def _drop(self, turns: Sequence[Turn]) -> None:
        """Ends the sequences of a failed step. What it read of them is not to be trusted."""
        for turn in turns:
            self._blocks.disown(turn.sequence.table)
            self._scheduler.remove(turn.sequence)


@torch.inference_mode()
def score(
    model: Llama,
    ids: Sequence[int],
    tiles: Tensor | None = None,
    shelf: Shelf | None = None,
    adapter: str | None = None,
) -> Tensor:
    """Returns the logits float32 [T V] behind every id, read like a prompt: MAX_STEP_TOKENS at a time through a cache.

    `adapter` names one of `shelf`. Raises PromptError where `check` would. T times V numbers are made: score long texts
    of large vocabularies in parts.
    """
    request, config = Request(ids=ids, tiles=tiles), model.config
    check(request, config, n_new_tokens=0)
    adapters = adapter_numbers(shelf)
    check_adapter(adapter, adapters)
    layout, weight = Layout.of(config.text), model.embedding.weight
    n_global, n_chunked = layout.peak(len(ids))
    n_crossing = 0 if n_chunked == 0 else MAX_STEP_TOKENS // layout.block_len  # so that a step may pass chunks
    cache = cache_for(model, Counts(n_global, n_chunked + n_crossing), weight.dtype)
    blocks, table, runner = Blocks(layout, cache.counts, cache), Table(), for_model(model, cache, shelf)
    pictures, features = _pictures(request, model), Features(model)
    rows = []
    while table.length < len(ids):
        start, n = table.length, blocks.room(table, min(MAX_STEP_TOKENS, len(ids) - table.length))
        blocks.grow(table, n)
        seen = features.gather([] if pictures is None else [(pictures, start, start + n)])
        piece = (table, ids[start : start + n])
        rows.append(runner.run(assemble([piece], seen, range(n), weight.device, [adapters[adapter]])))
        blocks.advance(table, n)
    return torch.cat(rows)  # T V


def adapter_numbers(shelf: Shelf | None) -> dict[str | None, int]:
    """Returns the numbers that batches have for adapters, by name; -1 for none."""
    return {None: -1} | {name: i for i, name in enumerate(() if shelf is None else shelf.names)}


def check_adapter(name: str | None, known: Mapping[str | None, int]) -> None:
    """Raises PromptError for an adapter that is not there."""
    if name not in known:
        there = ", ".join(repr(each) for each in known if each is not None) or "none was loaded"
        raise PromptError(f"adapter is {name!r}: use one of those that were loaded ({there}), or leave it out")


def _sampler_state(request: Request, sample: int) -> SamplerState:
    matcher = None if request.grammar is None else request.grammar.fork()
    return SamplerState(request.sampling, request.ids, sample, matcher)


def _key(sequence: Text) -> tuple[int, int]:
    """Returns what a decoding sequence is known by: its request and its one sample."""
    (sample,) = sequence.samplers
    return sequence.request_id, sample


def _drafting(sequence: Text) -> Drafting:
    (sampler,) = sequence.samplers.values()
    return Drafting(
        key=_key(sequence),
        ids=sequence.ids,
        n_most=sequence.max_new_tokens - sequence.n_new_tokens - 1,  # the token behind the drafts is the last
        stop_ids=sequence.request.sampling.stop_ids,
        matcher=sampler.matcher,
    )


def _pictures(request: Request, model: Llama) -> Pictures | None:
    vision = model.config.vision
    return Pictures.of(request, model.config.patch_id, 0 if vision is None else vision.tokens_per_tile)


def _cache(
    model: Llama, kv_bytes: int | None, name: str | None, n_blocks: Counts | None, max_sequences: int
) -> KVCache:
    config, weight = model.config.text, model.embedding.weight
    dtype = kv_dtype(name, weight.dtype)
    if n_blocks is None:
        n_bytes = spare_bytes(weight.device) if kv_bytes is None else kv_bytes
        n_blocks = share_out(config, dtype, bytes_together(model, n_bytes), max_sequences)
    return cache_for(model, n_blocks, dtype)
