"""The experts that are on the device: as many as a number of bytes allows, the hot ones kept, others fetched on demand.

In: which experts of a layer are needed now, and which ones may be needed next. Out: their weights, one expert after the
other, those that are there first. One thread fetches: what is needed before what is only expected, and a guess that
turns out wrong is given up in the middle of its reading. An expert that somebody computes with cannot be replaced.
Which one is replaced: the one used least, where a use counts half after 16 steps of the model. On cria reading stories
this beats replacing the one used longest ago at every size (docs/decisions/010).
Any number of threads may ask. Errors of the fetching thread are raised where the expert was asked for.
Not here: where experts come from (`store`), what is computed with them (`experts`).
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from puna.errors import CapacityError
from puna.kernels.arriving_experts import Arrival
from puna.offload.record import open_pair
from puna.offload.store import DiskStore, Key, Store, pages

HALF_LIFE = 16
"""Steps of the model after which a use counts half: the best of 4, 16, 64, 256 and 4096 (docs/decisions/010)."""

_LARGEST_GAIN = 2.0**500  # before the growing weight of a use leaves the range of a float


class Traffic(NamedTuple):
    """What a cache has seen: experts asked for that were there, on their way, and not there; how many of those that
    were asked for had been foreseen, of how many for which somebody tried; bytes fetched for good, and guesses given up
    while they were fetched."""

    n_hits: int = 0
    n_late: int = 0
    n_misses: int = 0
    n_foreseen: int = 0
    n_guessed: int = 0
    read_bytes: int = 0
    n_given_up: int = 0

    @property
    def n_asked(self) -> int:
        return self.n_hits + self.n_late + self.n_misses


class ExpertCache:
    """Weights of experts on a device, in memory of a fixed size that is taken at once."""

    def __init__(self, store: Store, n_bytes: int, device: torch.device | str = "cpu") -> None:
        """n_bytes: the most that the cache may take. Raises CapacityError when that is less than one expert."""
        size, n_experts = store.record.n_bytes, len(store.experts.all_keys())
        if n_bytes < size:
            raise CapacityError(
                f"expert_cache_bytes is {n_bytes}: one expert takes {size}; give at least that, better several times"
            )
        n_places = min(n_bytes // size, n_experts)
        place = torch.device(device)
        rooms = _HostRooms(n_places, size) if place.type == "cpu" else _DeviceRooms(n_places, size, place, store)
        self.store = store
        self.n_places = n_places
        self._shelf = _Shelf(store, rooms, n_places)
        thread = threading.Thread(target=_fetch, args=(self._shelf,), name="puna-experts", daemon=True)
        self._end = weakref.finalize(self, _end, self._shelf, thread)
        thread.start()

    @property
    def n_bytes(self) -> int:
        """Bytes of the device's memory that the cache takes."""
        return self.n_places * self.store.record.n_bytes

    @property
    def traffic(self) -> Traffic:
        """What the cache has seen so far."""
        return self._shelf.traffic

    def visit(self, layer: int, experts: Sequence[int]) -> "Visit":
        """Asks for experts of a layer, each named once, and returns them as they come; see `Visit`."""
        return Visit(self._shelf, [Key(layer, expert) for expert in experts])

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """Says which experts of a layer will probably be needed next, likeliest first: they are fetched as far as there
        is room and nothing else to fetch. Replaces what was expected before."""
        self._shelf.expect([Key(layer, expert) for expert in experts])

    def read_rate(self, seconds: float = 0.3, clock: Callable[[], float] = time.perf_counter) -> float:
        """Returns bytes a second at which experts come now, from fetching some, which stay, for about `seconds`.
        For use before anything else: the traffic is counted anew afterwards."""
        began = clock()
        for key in self.store.experts.all_keys()[: self.n_places]:
            for _ in self.visit(key.layer, [key.expert]):
                pass
            if clock() - began > seconds:
                break
        rate = self.traffic.read_bytes / (clock() - began)
        self._shelf.traffic = Traffic()
        return rate

    def close(self) -> None:
        """Ends the fetching thread and gives the store back. Nothing may be asked for afterwards."""
        self._end()


class Visit:
    """Experts that were asked for, as an iterator: each is kept until the next one is asked for. Whoever stops early
    calls `close`."""

    def __init__(self, shelf: "_Shelf", keys: Sequence[Key]) -> None:
        self._shelf = shelf
        self._open = shelf.ask(keys)
        self._current: _Entry | None = None

    def __iter__(self) -> Iterator[Arrival]:
        return self

    def __next__(self) -> Arrival:
        self._release()
        if not self._open:
            raise StopIteration
        self._current = self._shelf.wait(self._open)
        self._open.remove(self._current)
        pair = open_pair(self._shelf.store.record, self._shelf.rooms.room(self._current.place))
        return Arrival(self._current.key.expert, *pair)

    def close(self) -> None:
        """Gives up what has not been taken yet."""
        self._release()
        for entry in self._open:
            self._shelf.release(entry)
        self._open.clear()

    def _release(self) -> None:
        if self._current is not None:
            self._shelf.rooms.used(self._current.place)
            self._shelf.release(self._current)
            self._current = None


# What is where -----------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Entry:
    """An expert that is on the device or on its way. `n_wanted`: how many visits have asked for it and not finished
    with it; while there are any, its place is its own. `place` is -1 before it has one."""

    key: Key
    state: Literal["queued", "coming", "there", "failed"]
    n_wanted: int = 0
    place: int = -1
    error: Exception | None = None


class _Shelf:
    """Which expert lies in which place, under one lock. It does not know the cache, so that the thread which fetches
    does not keep the cache alive."""

    def __init__(self, store: Store, rooms: "_Rooms", n_places: int) -> None:
        self.store, self.rooms = store, rooms
        self.traffic = Traffic()
        self._changed = threading.Condition()
        self._free = list(range(n_places))
        self._entries: dict[Key, _Entry] = {}
        self._asked: list[_Entry] = []  # to be fetched, in this order
        self._guessed: list[_Entry] = []  # to be fetched when nothing else is
        self._expected: frozenset[Key] = frozenset()
        self._heat: dict[Key, float] = {}
        self._gain = 1.0  # what a use counts now: it grows, which is as good as all others fading
        self._growth = 2.0 ** (1 / (HALF_LIFE * len(store.experts.layers)))
        self._is_closed = False

    def ask(self, keys: Sequence[Key]) -> list[_Entry]:
        """Notes that these experts are needed now. Returns their entries, each to be given to `release` once."""
        if not keys:
            return []
        with self._changed:
            self._count(keys)
            self._warm(keys)
            self._expected = frozenset(key for key in self._expected if key.layer != keys[0].layer or key in keys)
            self._drop_guesses()
            entries = []
            for key in keys:
                entry = self._entries.get(key)
                if entry is None:
                    entry = self._entries[key] = _Entry(key, "queued")
                    self._asked.append(entry)
                elif entry in self._guessed:
                    self._guessed.remove(entry)
                    self._asked.append(entry)
                entry.n_wanted += 1
                entries.append(entry)
            self._changed.notify_all()
        return entries

    def expect(self, keys: Sequence[Key]) -> None:
        """Replaces what is expected, and queues what is not there."""
        with self._changed:
            self._expected = frozenset(keys)
            self._drop_guesses()
            for key in keys:
                if key not in self._entries:
                    entry = self._entries[key] = _Entry(key, "queued")
                    self._guessed.append(entry)
            self._changed.notify_all()

    def wait(self, entries: Sequence[_Entry]) -> _Entry:
        """Returns the first of these that is there, once one is. Raises the error of one that cannot come."""
        with self._changed:
            while True:
                for entry in entries:
                    if entry.state == "failed":
                        assert entry.error is not None
                        raise entry.error
                    if entry.state == "there":
                        return entry
                if self._is_closed:
                    raise CapacityError("the cache of experts is closed; load the model again")
                self._changed.wait()

    def release(self, entry: _Entry) -> None:
        """Ends one asking for this expert."""
        with self._changed:
            entry.n_wanted -= 1
            if not entry.n_wanted and entry.state == "queued":
                self._asked.remove(entry)
                del self._entries[entry.key]
            self._changed.notify_all()

    def next(self) -> _Entry | None:
        """Returns the next expert to fetch, with a place, once there are both; None when the cache is closed."""
        with self._changed:
            while not self._is_closed:
                entry = self._asked[0] if self._asked else self._guessed[0] if self._guessed else None
                place = None if entry is None else self._place(is_guess=not entry.n_wanted)
                if entry is not None and place is not None:
                    (self._asked if self._asked else self._guessed).remove(entry)
                    entry.place, entry.state = place, "coming"
                    return entry
                self._changed.wait()
            return None

    def is_pointless(self, entry: _Entry) -> bool:
        """Whether fetching may stop: nobody wants it, and something else is wanted or it is not expected any more."""
        return self._is_closed or (
            not entry.n_wanted and (bool(self._asked) or entry.key not in self._expected)
        )  # single reads of what others change under the lock: a late answer costs a piece, a wrong one is put right

    def settle(self, entry: _Entry, *, came: bool, error: Exception | None) -> None:
        """Notes how fetching ended."""
        with self._changed:
            if came:
                entry.state = "there"
                self.traffic = self.traffic._replace(read_bytes=self.traffic.read_bytes + self.store.record.n_bytes)
            else:
                self._free.append(entry.place)
                entry.place = -1
                if error is None and entry.n_wanted:  # given up just before somebody asked
                    entry.state = "queued"
                    self._asked.insert(0, entry)
                else:
                    entry.state, entry.error = "failed", error
                    del self._entries[entry.key]
                    if error is None:
                        self.traffic = self.traffic._replace(n_given_up=self.traffic.n_given_up + 1)
            self._changed.notify_all()

    def close(self) -> None:
        """Tells everybody to stop."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _place(self, *, is_guess: bool) -> int | None:
        """Takes a free place, or that of the coldest expert nobody wants; what is expected goes last, for a guess
        never."""
        if self._free:
            return self._free.pop()
        replaceable = [e for e in self._entries.values() if e.state == "there" and not e.n_wanted]
        others = [e for e in replaceable if e.key not in self._expected]
        candidates = others if others or is_guess else replaceable
        if not candidates:
            return None
        coldest = min(candidates, key=lambda entry: self._heat.get(entry.key, 0.0))
        del self._entries[coldest.key]
        return coldest.place

    def _drop_guesses(self) -> None:
        """Forgets guesses that are not expected any more and have not begun to come."""
        for entry in [entry for entry in self._guessed if entry.key not in self._expected]:
            self._guessed.remove(entry)
            del self._entries[entry.key]

    def _warm(self, keys: Sequence[Key]) -> None:
        self._gain *= self._growth
        for key in keys:
            self._heat[key] = self._heat.get(key, 0.0) + self._gain
        if self._gain > _LARGEST_GAIN:
            self._heat = {key: heat / self._gain for key, heat in self._heat.items()}
            self._gain = 1.0

    def _count(self, keys: Sequence[Key]) -> None:
        states = [entry.state for key in keys if (entry := self._entries.get(key)) is not None]
        n_hits = states.count("there")
        is_guessed = any(key.layer == keys[0].layer for key in self._expected)
        t = self.traffic
        self.traffic = t._replace(
            n_hits=t.n_hits + n_hits,
            n_late=t.n_late + len(states) - n_hits,
            n_misses=t.n_misses + len(keys) - len(states),
            n_foreseen=t.n_foreseen + sum(key in self._expected for key in keys),
            n_guessed=t.n_guessed + (len(keys) if is_guessed else 0),
        )


def _fetch(shelf: _Shelf) -> None:
    """The life of the fetching thread. It gives the store back when it ends, since nobody else reads it."""
    while (entry := shelf.next()) is not None:
        came, error = _bring(shelf, entry)
        shelf.settle(entry, came=came, error=error)
    shelf.store.close()


def _bring(shelf: _Shelf, entry: _Entry) -> tuple[bool, Exception | None]:
    try:
        return shelf.rooms.fill(entry.place, entry.key, shelf.store, lambda: shelf.is_pointless(entry)), None
    except Exception as error:  # raised where the expert was asked for
        return False, error


def _end(shelf: _Shelf, thread: threading.Thread) -> None:
    shelf.close()
    if thread is not threading.current_thread():  # which may collect the garbage that the cache was in
        thread.join()


# Memory ------------------------------------------------------------------------------------------------------------


class _Rooms(Protocol):
    """The memory of a cache, cut into places."""

    def room(self, place: int) -> Tensor:
        """Returns the bytes of a place, uint8 [n]."""
        ...

    def fill(self, place: int, key: Key, store: Store, give_up: Callable[[], bool]) -> bool:
        """Brings an expert into a place; returns as `Store.read`."""
        ...

    def used(self, place: int) -> None:
        """Notes that what was begun with the place's content up to now must end before it is filled again."""
        ...


class _HostRooms:
    """Places in memory of the host, where they are read into directly."""

    def __init__(self, n_places: int, n_bytes: int) -> None:
        self._rooms = torch.split(pages(n_places * n_bytes), n_bytes)

    def room(self, place: int) -> Tensor:
        return self._rooms[place]

    def fill(self, place: int, key: Key, store: Store, give_up: Callable[[], bool]) -> bool:
        return store.read(key, self._rooms[place], give_up)

    def used(self, place: int) -> None:
        """Work of a processor is done when it returns."""


class _DeviceRooms:
    """Places in memory of a GPU, filled on a stream of its own; from disk by way of a locked room of the host."""

    def __init__(self, n_places: int, n_bytes: int, device: torch.device, store: Store) -> None:
        memory = torch.empty(n_places * n_bytes, dtype=torch.uint8, device=device)
        self._rooms = torch.split(memory, n_bytes)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._last_use: dict[int, torch.cuda.Event] = {}
        # A page more than needed, so that the room can begin on one, as reading past the page cache wants.
        locked = (
            torch.empty(n_bytes + 4096, dtype=torch.uint8, pin_memory=True) if isinstance(store, DiskStore) else None
        )
        self._between = None if locked is None else locked[-locked.data_ptr() % 4096 :][:n_bytes]

    def room(self, place: int) -> Tensor:
        return self._rooms[place]

    def fill(self, place: int, key: Key, store: Store, give_up: Callable[[], bool]) -> bool:
        if self._between is not None and not store.read(key, self._between, give_up):
            return False
        with torch.cuda.stream(self._stream):
            if place in self._last_use:
                self._stream.wait_event(self._last_use.pop(place))
            if self._between is not None:
                self._rooms[place].copy_(self._between, non_blocking=True)
            elif not store.read(key, self._rooms[place], give_up):
                return False
        self._stream.synchronize()  # this thread may wait: whoever takes the expert then need not
        return True

    def used(self, place: int) -> None:
        self._last_use[place] = torch.cuda.current_stream(self._rooms[place].device).record_event()
