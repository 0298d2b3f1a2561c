"""A model of each shape with its experts off the device, and stores that do what a test needs."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.errors import WeightsError
from puna.model.transformer import Llama
from puna.offload.record import Pair, record_of, store
from puna.offload.store import DiskStore, HostStore, Key, Layers, ReadExpert, Store, write_missing
from tests.reference.tiny import random_model, tiny_config

KINDS = ("scout", "maverick")
SOURCES = ("disk", "host")


def shaped(kind: str) -> LlamaConfig:
    """Scout has experts in every layer, Maverick in every second; both also see pictures."""
    config = tiny_config()
    layers = frozenset(range(4)) if kind == "scout" else frozenset({1, 3})
    return replace(config, text=replace(config.text, moe_layers=layers, n_experts=8, expert_width=32))


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Llama:
    torch.set_num_threads(1)
    return random_model(shaped(request.param))


def layers_of(model: Llama) -> Layers:
    return Layers(tuple(sorted(model.config.text.moe_layers)), model.config.text.n_experts)


def reader(model: Llama) -> ReadExpert:
    """Reads from a model what a checkpoint of it would give."""

    def read(key: Key) -> Pair:
        experts = model.layers[key.layer].moe.experts
        return Pair(experts.gate_up[key.expert], experts.down[key.expert])

    return read


def make_store(source: str, folder: Path, experts: Layers, read: ReadExpert) -> Store:
    if source == "host":
        return HostStore(experts, read, locked=False)
    write_missing(folder, "test", experts, read)
    return DiskStore(folder, "test", experts)


def numbered(key: Key) -> Pair:
    """An expert whose every number says which one it is."""
    number = float(key.layer * 100 + key.expert)
    return Pair(torch.full((8, 4), number), torch.full((4, 4), number))


class HeldStore:
    """Experts that come only when a test lets them: each reading takes one permit, or gives up. Some are damaged."""

    where = "in a test"

    def __init__(self, experts: Layers, damaged: frozenset[Key] = frozenset()) -> None:
        self.experts, self.record = experts, record_of(numbered(Key(0, 0)))
        self.permits = threading.Semaphore(0)
        self.begun: list[Key] = []
        self.has_begun = threading.Semaphore(0)
        self.is_closed = False
        self._damaged = damaged

    def read(self, key: Key, room: Tensor, give_up: Callable[[], bool]) -> bool:
        self.begun.append(key)
        self.has_begun.release()
        while not self.permits.acquire(timeout=0.005):
            if give_up():
                return False
        if key in self._damaged:
            raise WeightsError(f"expert {key.expert} of layer {key.layer}: damaged")
        store(self.record, numbered(key), room)
        return True

    def close(self) -> None:
        self.is_closed = True
