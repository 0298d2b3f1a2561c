"""Many requests decoded together, one forward a step: ids and tiles in, one event per new token out.

A sequence is a cache plus the ids that the cache has not read yet: the prompt at first, afterwards the token chosen
last. A step reads one flat batch: the one id of each decoding sequence, then as much of the prompts as the step's
budget leaves. Sequences that have read everything get their next token. So prompts of any length join and samples
leave at every step, and nobody who is decoding waits for a long prompt.
Not here: text, stop strings, messages, threads (one thread steps; a server queues in front), and a bound on memory:
caches grow as their sequences do.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from puna.engine.cache import BatchCache, SequenceCache
from puna.engine.request import Event, Finish, Output, Request, check
from puna.engine.sampler import Choice, SamplerState, choose
from puna.errors import CapacityError
from puna.model.transformer import Llama

MAX_STEP_TOKENS = 2048
"""Tokens of one forward: enough to keep a processor busy, few enough that decoding goes on beside a long prompt."""

MAX_SEQUENCES = 64
"""Samples that are read and decoded at the same time; further requests wait."""

TILES_AT_ONCE = 17
"""Tiles that the vision tower reads in one go: one picture of the largest kind, so that its memory is bounded."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """One text being read and continued.

    `samplers` has one entry per sample that goes on from it: several only until the prompt has been read, when they
    part. `features` belong to the patch ids that are still unread.
    """

    request_id: int
    request: Request
    cache: SequenceCache
    samplers: dict[int, SamplerState]
    max_new_tokens: int
    unread: list[int]
    tiles: Tensor | None = None
    features: Tensor | None = None
    n_new_tokens: int = 0


class Engine:
    """Runs requests on one model: `add` queues, `step` works, `abort` ends early. Not for several threads at once.

    `forbidden_ids` are never chosen, such as rows of a padded vocabulary that no text belongs to.
    """

    def __init__(
        self,
        model: Llama,
        *,
        forbidden_ids: Sequence[int] = (),
        max_step_tokens: int = MAX_STEP_TOKENS,
        max_sequences: int = MAX_SEQUENCES,
    ) -> None:
        if max_step_tokens <= max_sequences:
            raise ValueError(
                f"max_step_tokens {max_step_tokens} must exceed max_sequences {max_sequences}, or prompts starve"
            )
        self.model = model
        self.max_step_tokens = max_step_tokens
        self.max_sequences = max_sequences
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._n_added = 0
        # A patch id stands for a feature, and a token that was chosen has none.
        self._forbidden = (*forbidden_ids, *(() if model.config.patch_id is None else (model.config.patch_id,)))

    @property
    def n_waiting(self) -> int:
        """Samples that have not begun."""
        return sum(len(sequence.samplers) for sequence in self._waiting)

    @property
    def n_running(self) -> int:
        """Samples that have begun, those whose prompt is still being read included."""
        return sum(len(sequence.samplers) for sequence in self._running)

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def add(self, request: Request) -> int:
        """Queues a request and returns its id. Raises PromptError or CapacityError when this model cannot run it."""
        max_new_tokens = check(request, self.model.config)
        if request.n > self.max_sequences:
            raise CapacityError(
                f"n is {request.n}: this engine decodes {self.max_sequences} samples at once; ask for fewer"
            )
        self._n_added += 1
        self._waiting.append(
            _Sequence(
                request_id=self._n_added,
                request=request,
                cache=_empty_cache(self.model),
                samplers={i: SamplerState(request.sampling, request.ids, i) for i in range(request.n)},
                max_new_tokens=max_new_tokens,
                unread=list(request.ids),
                tiles=request.tiles,
            )
        )
        return self._n_added

    def abort(self, request_id: int, sample: int | None = None) -> list[Event]:
        """Ends all samples of a request, or the one numbered `sample`. Returns an event for each that had not ended."""
        events = []
        for sequence in (*self._waiting, *self._running):
            if sequence.request_id == request_id:
                for gone in [i for i in sequence.samplers if sample in (None, i)]:
                    del sequence.samplers[gone]
                    events.append(Event(request_id, gone, None, None, "abort"))
        self._waiting = deque(sequence for sequence in self._waiting if sequence.samplers)
        self._running = [sequence for sequence in self._running if sequence.samplers]
        return events

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Reads one batch. Returns an event for each sample that got a token: none while prompts are being read."""
        self._admit()
        batch = self._plan()
        if not batch:
            return []
        states = self._read(batch)
        ready = [row for row, (sequence, _) in enumerate(batch) if not sequence.unread]
        if not ready:
            return []
        parted = [self._part(batch[row][0]) for row in ready]
        logits = self.model.logits(states[ready])  # one row per sequence that is ready, V
        repeats = torch.tensor([len(sequences) for sequences in parted], device=logits.device)
        sequences = list(chain.from_iterable(parted))
        samplers = [sampler for sequence in sequences for sampler in sequence.samplers.values()]
        choices = choose(logits.repeat_interleave(repeats, dim=0), samplers, self._forbidden)
        return [self._continue(sequence, choice) for sequence, choice in zip(sequences, choices, strict=True)]

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

    def _admit(self) -> None:
        """Begins waiting requests, first come first served, as long as all their samples find room."""
        while self._waiting and self.n_running + len(self._waiting[0].samplers) <= self.max_sequences:
            self._running.append(self._waiting.popleft())

    def _plan(self) -> list[tuple[_Sequence, int]]:
        """Returns who reads how many ids in this step: decoding sequences first, then prompts within the budget."""
        decoding = [(sequence, 1) for sequence in self._running if sequence.n_new_tokens > 0]
        budget = self.max_step_tokens - len(decoding)
        reading = []
        for sequence in self._running:
            if sequence.n_new_tokens == 0 and budget > 0:
                n = min(len(sequence.unread), budget)
                reading.append((sequence, n))
                budget -= n
        return decoding + reading

    def _read(self, batch: Sequence[tuple[_Sequence, int]]) -> Tensor:
        """Reads the first ids of each sequence. Returns the state [D] behind the last one of each, in order."""
        ids = [id_ for sequence, n in batch for id_ in sequence.unread[:n]]
        features = [part for sequence, n in batch if (part := self._take_features(sequence, n)) is not None]
        store = BatchCache([(sequence.cache, n) for sequence, n in batch])
        device = self.model.embedding.weight.device
        hidden = self.model.hidden(
            torch.tensor(ids, device=device),
            torch.tensor(store.positions(), device=device),
            store,
            torch.cat(features) if features else None,
        )
        store.advance()
        for sequence, n in batch:
            del sequence.unread[:n]
        lasts = [end - 1 for end in accumulate(n for _, n in batch)]
        return hidden.states[lasts]

    def _take_features(self, sequence: _Sequence, n: int) -> Tensor | None:
        """Returns the features of the patch ids among the next `n` ids; tiles are embedded once, at first need."""
        patch_id = self.model.config.patch_id
        n_patches = 0 if patch_id is None else sequence.unread[:n].count(patch_id)
        if n_patches == 0:
            return None
        if sequence.tiles is not None:
            sequence.features, sequence.tiles = embed_tiles(self.model, sequence.tiles), None
        assert sequence.features is not None, "a prompt's patch ids and tiles were checked to agree"
        taken, sequence.features = sequence.features[:n_patches], sequence.features[n_patches:]
        return taken

    def _part(self, sequence: _Sequence) -> list[_Sequence]:
        """Returns one sequence per sample that goes on from `sequence`, each but the first with a copy of its cache."""
        _, *others = sequence.samplers
        twins = [
            replace(sequence, cache=sequence.cache.fork(), samplers={i: sequence.samplers.pop(i)}, unread=[])
            for i in others
        ]
        self._running += twins
        return [sequence, *twins]

    def _continue(self, sequence: _Sequence, choice: Choice) -> Event:
        """Appends the chosen token to its sequence, ends the sequence where that is due, and reports both."""
        sequence.n_new_tokens += 1
        sequence.unread.append(choice.token)
        finish: Finish | None = None
        if choice.token in sequence.request.sampling.stop_ids:
            finish = "stop"
        elif sequence.n_new_tokens == sequence.max_new_tokens:
            finish = "length"
        if finish is not None:
            self._running.remove(sequence)
        (sample,) = sequence.samplers
        return Event(sequence.request_id, sample, choice.token, choice.logprobs, finish)


@torch.inference_mode()
def score(model: Llama, ids: Sequence[int], tiles: Tensor | None = None) -> Tensor:
    """Returns the logits float32 [T V] behind every id, read like a prompt: MAX_STEP_TOKENS at a time through a cache.

    Raises PromptError where `check` would. T times V numbers are made: score long texts of large vocabularies in parts.
    """
    check(Request(ids=ids, tiles=tiles), model.config, n_new_tokens=0)
    features = None if tiles is None else embed_tiles(model, tiles)
    cache, device = _empty_cache(model), model.embedding.weight.device
    rows = []
    for start in range(0, len(ids), MAX_STEP_TOKENS):
        piece = ids[start : start + MAX_STEP_TOKENS]
        store = BatchCache([(cache, len(piece))])
        flat, positions = (torch.tensor(x, device=device) for x in (list(piece), store.positions()))  # T, T
        rows.append(model(flat, positions, store, features))
        store.advance()
        if features is not None:
            features = features[sum(id_ == model.config.patch_id for id_ in piece) :]
    return torch.cat(rows)  # T V


def embed_tiles(model: Llama, tiles: Tensor) -> Tensor:
    """Returns one feature per patch id, [I 3 S S] -> [M D], on the model's device, TILES_AT_ONCE tiles at a time."""
    device = model.embedding.weight.device
    return torch.cat([model.embed_tiles(part.to(device)) for part in torch.split(tiles, TILES_AT_ONCE)])


def _empty_cache(model: Llama) -> SequenceCache:
    weight = model.embedding.weight
    return SequenceCache(model.config.text, dtype=weight.dtype, device=weight.device)
