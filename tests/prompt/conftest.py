"""What several tests of prompts share: a small tokenizer of our own, and Meta's code where it is installed."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from puna.prompt import vocab
from puna.prompt.tokenizer import SPLIT_PATTERN, Tokenizer
from tests.reference.meta import reference_module

SPECIAL = (
    vocab.BEGIN_OF_TEXT,
    vocab.END_OF_TEXT,
    vocab.HEADER_START,
    vocab.HEADER_END,
    vocab.END_OF_MESSAGE,
    vocab.END_OF_TURN,
    vocab.PYTHON_START,
    vocab.PYTHON_END,
    vocab.PAD,
    vocab.IMAGE_START,
    vocab.IMAGE_END,
    vocab.IMAGE,
    vocab.PATCH,
    vocab.TILE_X_SEPARATOR,
    vocab.TILE_Y_SEPARATOR,
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors are faster on one thread, most of all where the cores are busy with something else."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """All bytes, a few merges (also within and across characters of several bytes), and the special tokens in use."""
    merges = [
        b"th",
        b"the",
        b" t",
        b" the",
        b"er",
        b"\n\n",
        b"us",
        b"user",
        b"\xc3\xa9",
        b"\xf0\x9f",
        b"\xf0\x9f\x98",
        b"s<",
    ]
    ranks = {token: rank for rank, token in enumerate([bytes([byte]) for byte in range(256)] + merges)}
    special = {name: len(ranks) + index for index, name in enumerate(SPECIAL)}
    return Tokenizer(ranks=ranks, special=special, pattern=SPLIT_PATTERN, name="small")


@pytest.fixture(scope="session")
def meta() -> SimpleNamespace:
    """Meta's chat format, preprocessing, tokenizer and vision arguments, and the data types that they share."""
    modules = {name: reference_module(name) for name in ("chat_format", "preprocess", "tokenizer", "args")}
    return SimpleNamespace(**modules, datatypes=importlib.import_module("llama_models.datatypes"))


@pytest.fixture(scope="session")
def meta_tokenizer(meta: SimpleNamespace) -> Any:
    """Meta's tokenizer on the released `tokenizer.model`, which ships with the reference package."""
    return meta.tokenizer.Tokenizer(Path(meta.tokenizer.__file__).with_name("tokenizer.model"))


@pytest.fixture(scope="session")
def released(meta: SimpleNamespace) -> Tokenizer:
    """Our tokenizer on the same file."""
    return Tokenizer.load(Path(meta.tokenizer.__file__).with_name("tokenizer.model"))
