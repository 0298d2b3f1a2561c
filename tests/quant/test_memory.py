"""What loading into small numbers takes at its peak: the small model and one parameter, however long the model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from puna.weights.checkpoint import save_hf
from tests.reference.tiny import random_model, tiny_config

LOAD = """
import json, re, sys
from pathlib import Path
import torch
from puna.kernels.formats import n_bytes
from puna.model.count import part_of
from puna.quant import swap
from puna.weights import checkpoint
torch.set_num_threads(1)
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text()).group(1))
swap.int4.quantize(torch.randn(64, 64)); swap.packed(torch.randn(8, 8))  # what comes once with the first use
before, sizes = peak(), []
place = swap.placer(swap.Policy(to="int4"), report=lambda loss: sizes.append((loss.bytes_before, loss.bytes_after)))
checkpoint.load(Path(sys.argv[1]), place=place)
print(json.dumps({"peak": peak() - before, "sizes": sizes}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the mark is read from Linux's /proc")
def test_loading_holds_the_small_model_and_one_parameter_in_both_forms_at_most(tmp_path: Path) -> None:
    tiny = tiny_config()
    every = frozenset(range(6))
    text = replace(tiny.text, width=512, n_layers=6, n_experts=16, expert_width=1024, moe_layers=every, dense_width=512)
    config = replace(tiny, text=text, vision=None, image_start_id=None, image_end_id=None, patch_id=None)
    save_hf(random_model(config).bfloat16(), config, tmp_path / "wide")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "wide")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    wide, small = (sum(column) for column in zip(*found["sizes"], strict=True))
    largest = max(before + after for before, after in found["sizes"])
    assert wide > 300e6  # or the rest of the process would hide what is measured
    slack = 24 << 20  # norms and embedding, one piece of a file, strips in float32, the allocator's own
    assert small < found["peak"] < small + largest + slack < 0.6 * wide
