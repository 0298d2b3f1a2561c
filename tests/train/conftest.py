"""What several tests of training share: a tiny model, a corpus of a few hundred words and pictures, a recipe."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from puna.config import LlamaConfig
from puna.train.store import Store, tokenise
from puna.weights.checkpoint import open_config
from tests.reference.tiny import write_tiny_checkpoint


@pytest.fixture(autouse=True)
def _deterministic_only_here() -> Iterator[None]:
    """Runs make it a rule of the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny checkpoint: config.json and tokenizer.json."""
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model_config(tiny: Path) -> LlamaConfig:
    return open_config(tiny)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents: plain text, plain with a picture, chat about one or two pictures, and one longer than a row."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "pictures").mkdir()
    draw = random.Random(5)
    for number, (size, colour) in enumerate([((16, 16), "red"), ((40, 32), "green"), ((10, 16), "blue")]):
        Image.new("RGB", size, colour).save(folder / "pictures" / f"{number}.png")
    lines: list[dict[str, Any]] = []
    for number in range(60):
        words = " ".join(draw.choice(("llama", "grass", "sun", "herd")) for _ in range(draw.randint(1, 6)))
        line: dict[str, Any] = {"id": f"d{number}", "source": ("text", "picture", "chat")[number % 3], "language": "en"}
        image = {"type": "image", "path": f"pictures/{number % 3 if number % 2 else 1}.png"}
        text = {"type": "text", "text": words}
        if line["source"] == "text":
            line["content"] = [text]
        elif line["source"] == "picture":
            line["content"] = [image, text]
        else:
            second = {"type": "image", "path": "pictures/2.png"}
            line["messages"] = [
                {"role": "user", "content": [image, second, text]},
                {"role": "assistant", "content": words},
                {"role": "user", "content": "and?"},
                {"role": "assistant", "content": "grass"},
            ]
        lines.append(line)
    lines.append(
        {"id": "long", "source": "text", "language": "en", "content": [image, {"type": "text", "text": "x" * 300}]}
    )
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    held_out = [line | {"set": "seen"} for line in lines[:4]]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held_out), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def store(
    documents: Path, tiny: Path, tiny_model_config: LlamaConfig, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    folder = tmp_path_factory.mktemp("stores")
    return tokenise(documents, tiny / "tokenizer.json", tiny_model_config.vision, folder, progress=lambda line: None)


@pytest.fixture
def tables(documents: Path, tiny: Path, tmp_path: Path) -> dict[str, Any]:
    """The tables of a recipe that trains the tiny model for eight steps."""
    return {
        "model": {"preset": str(tiny / "config.json"), "seed": 1},
        "data": {
            "documents": str(documents),
            "held_out": str(documents.with_name("held_out.jsonl")),
            "tokenizer": str(tiny / "tokenizer.json"),
            "store": str(tmp_path / "store"),
            "seed": 2,
        },
        "batch": {"rows": 2, "row_len": 120, "tiles": 16, "window": 16},
        "optimizer": {
            "lr": 0.01,
            "weight_decay": 0.01,
            "momentum": 0.95,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-8,
            "clip_norm": 1.0,
        },
        "schedule": {"steps": 8, "warmup_steps": 2, "decay_steps": 3, "final_fraction": 0.1},
        "loss": {"balance": 0.01, "chunk": 64},
        "compute": {"dtype": "bfloat16", "compile": False, "threads": 1},
        "checkpoint": {"every_steps": 2, "every_seconds": 0},
    }
