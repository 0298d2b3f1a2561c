"""A model with experts of 0.8 GB and 20 MB for them: prints their bytes, the cache's, and by how much memory rose.

python -m tests.offload.large_model FOLDER
"""

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch

from puna.engine.engine import score
from puna.model.transformer import Llama, set_parameter
from puna.offload.attach import Offload, attach
from puna.offload.record import Pair
from puna.offload.store import Key
from tests.reference.tiny import random_ids, tiny_config

WIDTH, EXPERT_WIDTH, N_EXPERTS = 256, 1024, 64


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(key: Key) -> Pair:
    return Pair(torch.randn(2 * EXPERT_WIDTH, WIDTH) / 16, torch.randn(WIDTH, EXPERT_WIDTH) / 32)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    config = tiny_config()
    text = replace(
        config.text,
        width=WIDTH,
        expert_width=EXPERT_WIDTH,
        n_experts=N_EXPERTS,
        moe_layers=frozenset(range(config.text.n_layers)),
    )
    config = replace(config, text=text)
    with torch.device("meta"):
        model = Llama(config)
    for name, parameter in list(model.named_parameters()):
        if ".experts." not in name:
            set_parameter(model, name, torch.randn(parameter.shape) / 16)
    before = peak_bytes()
    cache = attach(model, Offload(where="disk", folder=folder, cache_bytes=20_000_000), read, "large")
    made = peak_bytes() - before
    score(model, random_ids(40, 0))
    n_bytes = len(cache.store.experts.all_keys()) * cache.store.record.n_bytes
    print(n_bytes, cache.n_bytes, made, peak_bytes() - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
