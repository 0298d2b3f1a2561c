"""Drafts: guesses of the next tokens of a text, which the model then reads in one step instead of one by one.

In: the ids of texts that are being continued. Out: for each some ids that may follow, or none; and an account of how
many were right. Whatever is drafted, the text stays the same: `sampler.Sampler.verify` accepts a draft only where it
equals what is chosen anyway. So a proposer may be wrong, but must be cheap.
`Lookup` finds the end of a text earlier in the same text. `DraftModel` lets a smaller model of the same vocabulary
write on. How many drafts a text gets follows from how many were right before (`Speculator`).
Not here: blocks and budget of the step that reads the drafts (`scheduler`), and the check.

Why drafts change nothing: docs/decisions/012. Source: Leviathan et al. 2022 (arXiv 2211.17192), here with drafts and
target bound to the same random numbers; lookup as in https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from puna.engine.batch import Batch, Entry
from puna.engine.blocks import Blocks, Counts, Layout, Table
from puna.engine.cache import KVCache, share_out, spare_bytes
from puna.engine.grammar import Matcher
from puna.engine.runner import for_model
from puna.errors import ConfigError
from puna.model.transformer import Llama

MAX_DRAFTS = 8
"""Most drafts of a text in one step. Beyond it the reading costs more than the odds are worth."""

NGRAM_LENS = (4, 2)
"""How many last ids must occur earlier for `Lookup` to propose what followed there; longer matches go first."""

WINDOW = 1 << 16
"""Ids of a new text that `Lookup` looks back over, so that a context of millions costs neither time nor memory."""

MAX_REST = 16
"""Most tokens that a text goes without drafts after it refused all of several in a row."""

MAX_READ = 2048  # tokens that a draft model reads in one forward

Key = tuple[int, int]  # a request's id and the number of its sample


class Wanted(NamedTuple):
    """A text that drafts are wanted for: everything known of it, and the most drafts it may get, at least one."""

    key: Key
    ids: Sequence[int]
    n_drafts: int


class Proposer(Protocol):
    """Guesses how texts go on. It may remember texts by their keys; a text only ever grows."""

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """Returns at most `n_drafts` ids for each text."""
        ...

    def keep(self, keys: Collection[Key]) -> None:
        """Forgets all texts but these."""
        ...


class Drafting(NamedTuple):
    """A text that could be given drafts. `stop_ids` end it; None or a matcher says what its grammar allows."""

    key: Key
    ids: Sequence[int]
    n_most: int  # more would go beyond its end
    stop_ids: frozenset[int]
    matcher: Matcher | None


@dataclass(slots=True)
class _Pace:
    """How many drafts a text gets next, and for how many tokens it rests before."""

    n_drafts: int = 2
    n_refused: int = 0  # times in a row that not one was right
    rest: int = 0

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """All right: twice as many. Some: one more than were right. None: one, after an ever longer rest."""
        if n_accepted == n_drafted:
            self.n_drafts = min(2 * n_drafted, MAX_DRAFTS)
        else:
            self.n_drafts = min(n_accepted + 1, MAX_DRAFTS)
        self.n_refused = 0 if n_accepted else self.n_refused + 1
        self.rest = 0 if self.n_refused < 2 else min(2 ** (self.n_refused - 1), MAX_REST)


class Speculator:
    """Asks a proposer for as many drafts as are likely to be right, and counts. `forbidden` ids are never drafted.

    Where a text's grammar allows only one way to go on, that is its draft.
    """

    def __init__(self, proposer: Proposer, forbidden: Collection[int] = ()) -> None:
        self._proposer = proposer
        self._forbidden = frozenset(forbidden)
        self._paces: dict[Key, _Pace] = {}
        self.n_drafted = 0
        self.n_accepted = 0

    def drafts(self, texts: Sequence[Drafting]) -> list[tuple[int, ...]]:
        """Returns drafts for each text, maybe none."""
        self._keep([text.key for text in texts])
        wanted: list[Wanted] = []
        found: dict[Key, list[int]] = {}
        for text in texts:
            pace = self._paces.setdefault(text.key, _Pace())
            n_drafts = min(pace.n_drafts, text.n_most)
            forced = [] if text.matcher is None else text.matcher.forced()
            if forced:
                found[text.key] = forced[: text.n_most]
            elif pace.rest > 0:
                pace.rest -= 1
            elif n_drafts > 0:
                wanted.append(Wanted(text.key, text.ids, n_drafts))
        if wanted:
            found |= {w.key: ids for w, ids in zip(wanted, self._proposer.propose(wanted), strict=True)}
        return [tuple(self._allowed(text, found.get(text.key, ()))) for text in texts]

    def learn(self, key: Key, n_drafted: int, n_accepted: int) -> None:
        """Counts what became of a text's drafts."""
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted
        if key in self._paces:
            self._paces[key].learn(n_drafted, n_accepted)

    def _allowed(self, text: Drafting, ids: Sequence[int]) -> Sequence[int]:
        """Returns the first drafts that can all be chosen without ending the text."""
        barred = self._forbidden | text.stop_ids
        end = next((i for i, id_ in enumerate(ids) if id_ in barred), len(ids))
        return ids[: end if text.matcher is None else text.matcher.admitted(ids[:end])]

    def _keep(self, keys: Collection[Key]) -> None:
        """Forgets texts that are gone, now and then."""
        if len(self._paces) > 2 * len(keys) + 16:
            self._paces = {key: self._paces[key] for key in keys if key in self._paces}
            self._proposer.keep(keys)


# Lookup -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Index:
    """Where each run of ids in a text was last followed by another id: per length, the place of that id."""

    n_known: int = 0  # ids that were entered
    places: dict[tuple[int, ...], int] = field(default_factory=dict)

    def follow(self, ids: Sequence[int]) -> None:
        """Enters the ids that came since the last call; each is looked at once."""
        for place in range(max(self.n_known, len(ids) - WINDOW, 1), len(ids)):
            for n in NGRAM_LENS:
                if place >= n:
                    self.places[tuple(ids[place - n : place])] = place
        self.n_known = len(ids)


class Lookup:
    """Proposes what followed when the last few ids of a text occurred before: good where a text repeats its prompt."""

    def __init__(self) -> None:
        self._indices: dict[Key, _Index] = {}

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        return [self._propose(*each) for each in wanted]

    def keep(self, keys: Collection[Key]) -> None:
        self._indices = {key: self._indices[key] for key in keys if key in self._indices}

    def _propose(self, key: Key, ids: Sequence[int], n_drafts: int) -> list[int]:
        index = self._indices.setdefault(key, _Index())
        index.follow(ids)
        for n in NGRAM_LENS:
            place = index.places.get(tuple(ids[-n:])) if len(ids) >= n else None
            if place is not None:
                # Where the earlier place runs into the end, the text repeats itself, and so do its drafts.
                period = len(ids) - place
                return [ids[place + i % period] for i in range(n_drafts)]
        return []


# A draft model ----------------------------------------------------------------------------------------------------


class DraftModel:
    """Proposes the most probable tokens of another model with the same vocabulary, which has a cache of its own.

    It reads ids alone: patch ids of pictures are tokens like others to it. Texts that its cache has no room for get no
    drafts. Raises ConfigError when `model` has fewer ids than `vocab_size`.
    """

    def __init__(self, model: Llama, vocab_size: int, *, max_sequences: int, kv_bytes: int | None = None) -> None:
        config, weight = model.config.text, model.embedding.weight
        if config.vocab_size < vocab_size:
            raise ConfigError(
                f"speculate: the draft model has {config.vocab_size} ids, the model {vocab_size}: take one of the same "
                "vocabulary"
            )
        n_bytes = spare_bytes(weight.device) // 4 if kv_bytes is None else kv_bytes
        counts = share_out(config, weight.dtype, n_bytes, max_sequences)
        cache = KVCache(config, counts, dtype=weight.dtype, device=weight.device)
        self._layout = Layout.of(config)
        self._blocks = Blocks(self._layout, Counts(*counts), cache)
        self._runner = for_model(model, cache)
        self._tables: dict[Key, Table] = {}
        self._crowded_out: set[Key] = set()  # texts that found no room since others left
        self._context_len = config.context_len
        self._vocab_size = vocab_size
        self._device = weight.device

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        ready = [each for each in wanted if self._read(each)]
        if not ready:
            return [[] for _ in wanted]
        drafts: dict[Key, list[int]] = {each.key: [] for each in ready}
        pieces = [_Piece(self._tables[each.key], self._tables[each.key].length, each) for each in ready]
        unread = [piece.wanted.ids[piece.start :] for piece in pieces]
        while pieces:
            best = self._run(pieces, unread)[:, : self._vocab_size].argmax(dim=-1).tolist()
            for piece, id_ in zip(pieces, best, strict=True):
                drafts[piece.wanted.key].append(id_)
            # The last draft is read by nobody; the others one by one.
            nexts = [_Piece(table, len(w.ids) + len(drafts[w.key]) - 1, w) for table, _, w in pieces]
            pieces = [
                piece
                for piece in nexts
                if len(drafts[piece.wanted.key]) < piece.wanted.n_drafts and self._reach(piece.table, piece.start + 1)
            ]
            unread = [drafts[piece.wanted.key][-1:] for piece in pieces]
        for each in ready:  # drafts are forgotten: those that turn out right are read again, as one piece
            table = self._tables[each.key]
            self._blocks.advance(table, len(each.ids) - table.length)
        return [drafts.get(each.key, []) for each in wanted]

    def keep(self, keys: Collection[Key]) -> None:
        for key in self._tables.keys() - set(keys):
            self._blocks.close(self._tables.pop(key))
        self._crowded_out.clear()

    def _read(self, wanted: Wanted) -> bool:
        """Reads the ids of a text up to the last few. Returns whether there is room for that and for those."""
        table, n_known = self._tables.setdefault(wanted.key, Table()), len(wanted.ids)
        while wanted.key not in self._crowded_out:
            n_unread, start = n_known - table.length, table.length
            n = self._blocks.room(table, min(n_unread, MAX_READ))
            if n < 1 or n_known > self._context_len:
                self._crowded_out.add(wanted.key)  # once is enough: it would read its prompt again and again
                self._blocks.close(table)
                break
            self._blocks.grow(table, n)
            if n == n_unread:
                return True
            self._run([_Piece(table, start, wanted)], [wanted.ids[start : start + n]])
            self._blocks.advance(table, n)
        return False

    def _reach(self, table: Table, length: int) -> bool:
        """Gives a table blocks for `length` positions, if there is room. Positions within `table.length` stay."""
        n = length - table.length
        if length > self._context_len or self._blocks.room(table, n) < n:
            return False
        self._blocks.grow(table, n)
        return True

    def _run(self, pieces: Sequence["_Piece"], unread: Sequence[Sequence[int]]) -> Tensor:
        """Returns the logits [R V] behind the last of the ids that are read of each piece."""
        entries, ids, positions, wanted = [], list[int](), list[int](), list[int]()
        for (table, start, _), new in zip(pieces, unread, strict=True):
            base = self._layout.chunk_base(start)
            passed = (base - table.chunk_base) // self._layout.block_len
            entries.append(Entry(len(new), start, table.global_blocks, table.chunk_blocks[passed:], base))
            ids += new
            positions += range(start, start + len(new))
            wanted.append(len(ids) - 1)
        flat, places, rows = (torch.tensor(x, device=self._device) for x in (ids, positions, wanted))
        return self._runner.run(Batch(flat, places, None, entries, rows))


class _Piece(NamedTuple):
    """Where a draft model goes on with a text: from position `start`, for which the table has blocks."""

    table: Table
    start: int
    wanted: Wanted
