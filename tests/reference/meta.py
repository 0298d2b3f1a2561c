"""Meta's reference transformer, run on one CPU process, as an oracle for tests.

Its package needs fairscale's model-parallel layers and CUDA caches. With one process the layers are ordinary linear
maps, so stand-ins with the same names are enough, and `.cuda()` is the identity while a model is built.
"""

import contextlib
import importlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


class _Linear(nn.Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool = True, **_: object) -> None:
        super().__init__(in_features, out_features, bias=bias)


class _Embedding(nn.Embedding):
    def __init__(self, n: int, width: int, **_: object) -> None:
        super().__init__(n, width)


def reference_module(name: str) -> Any:
    """Returns `llama_models.llama4.<name>`, or skips the test where the package is absent."""
    pytest.importorskip("llama_models", reason="needs llama-models (test time only)")
    if "fairscale" not in sys.modules:
        parts = {
            "fairscale": {},
            "fairscale.nn": {},
            "fairscale.nn.model_parallel": {},
            "fairscale.nn.model_parallel.initialize": {
                "get_model_parallel_world_size": lambda: 1,
                "get_model_parallel_rank": lambda: 0,
            },
            "fairscale.nn.model_parallel.layers": {
                "ColumnParallelLinear": _Linear,
                "RowParallelLinear": _Linear,
                "VocabParallelEmbedding": _Embedding,
            },
            "fairscale.nn.model_parallel.mappings": {"reduce_from_model_parallel_region": lambda x: x},
        }
        for path, contents in parts.items():
            module = types.ModuleType(path)
            module.__dict__.update(contents)
            sys.modules[path] = module
            parent, _, child = path.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    return importlib.import_module(f"llama_models.llama4.{name}")


@contextlib.contextmanager
def _cuda_is_cpu() -> Iterator[None]:
    cuda = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.cuda = cuda  # type: ignore[method-assign]


def reference_transformer(path: Path, max_seq_len: int) -> nn.Module:
    """Returns Meta's transformer with the weights of a one-shard checkpoint, read through its own load hooks."""
    model_module, args_module = reference_module("model"), reference_module("args")
    params = json.loads((path / "params.json").read_text())
    args = args_module.ModelArgs(**params | {"max_batch_size": 1, "max_seq_len": max_seq_len})
    with _cuda_is_cpu():
        model: nn.Module = model_module.Transformer(args)
    model.float().load_state_dict(torch.load(path / "consolidated.00.pth", weights_only=True), strict=True)
    return model.eval()


def reference_logits(
    model: nn.Module, ids: torch.Tensor, tiles: torch.Tensor | None = None, patch_id: int | None = None
) -> torch.Tensor:
    """Returns Meta's float32 logits [T V] of one prefill; tiles [I 3 S S] go where ids equal patch_id."""
    types_module = reference_module("datatypes")
    image = None
    if tiles is not None:
        mask = (ids == patch_id)[None, :, None]
        blank = torch.zeros(1, len(ids), 1, dtype=next(model.parameters()).dtype)
        embedding = model.vision_embeddings([[tiles]], mask, blank)  # type: ignore[operator]
        image = types_module.MaskedEmbedding(embedding=embedding, mask=mask)
    batch = types_module.TransformerInput(tokens=ids[None], tokens_position=0, image_embedding=image)
    logits: torch.Tensor = model(batch).logits[0]
    return logits
