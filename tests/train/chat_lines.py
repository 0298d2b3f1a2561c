"""Lines of tuning data that several tests share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHATS: list[dict[str, Any]] = [
    {
        "id": f"chat{i}",
        "source": ("colours", "herds")[i % 2],
        "score": i / 10,
        "messages": [
            {"role": "user", "content": f"sun {i}?"},
            {"role": "assistant", "content": "grass " * (1 + i % 3)},
        ],
    }
    for i in range(10)
]
PAIRS: list[dict[str, Any]] = [
    {"id": f"pair{i}", "prompt": f"sun {i}?", "chosen": "grass " * (1 + i % 3), "rejected": "herd"} for i in range(8)
]

TASKS: list[dict[str, Any]] = [
    {
        "id": f"task{i}",
        "source": ("odd", "even")[i % 2],
        "messages": [{"role": "user", "content": f"sun {i}?"}],
        "answer": {"kind": "format", "pattern": ".*"},
    }
    for i in range(6)
]
"""Whoever ends a reply is right."""


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """Writes one object a line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
