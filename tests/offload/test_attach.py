"""A checkpoint of any layout runs with its experts off the device, in the same numbers, and says how fast that is."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import puna
from puna.errors import CapacityError, ConfigError, WeightsError
from puna.model.mask import Packed
from puna.model.transformer import Llama
from puna.offload.attach import Offload, check, identify, outlook
from puna.offload.cache import ExpertCache
from puna.offload.experts import OffloadedExperts
from puna.offload.store import HostStore, Layers
from puna.presets import GUARD4, SCOUT
from puna.weights.checkpoint import convert
from tests.offload.conftest import numbered
from tests.reference.tiny import random_ids, write_tiny_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "hf")


def plain_logits(model: Llama, ids: list[int]) -> torch.Tensor:
    """Without the engine, whose fastest way is not open to experts off the device."""
    with torch.inference_mode():
        logits: torch.Tensor = model(
            torch.tensor(ids), torch.arange(len(ids)), Packed.single(model.config.text, len(ids))
        )
    return logits


def caches(model: Llama) -> set[ExpertCache]:
    return {module.cache for module in model.modules() if isinstance(module, OffloadedExperts)}


@pytest.mark.parametrize("quantize", [None, "int8", "fp8"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_loaded_model_has_the_bits_of_one_that_is_all_in_memory(
    quantize: str | None, dtype: str | None, checkpoint: Path, tmp_path: Path
) -> None:
    resident = puna.load(checkpoint, dtype=dtype, quantize=quantize, device="cpu")
    ours = puna.load(
        checkpoint,
        dtype=dtype,
        quantize=quantize,
        device="cpu",
        offload="disk",
        offload_dir=tmp_path,
        expert_cache_bytes=100_000,
    )
    ids = random_ids(60, 1)
    assert torch.equal(plain_logits(ours.model, ids), plain_logits(resident.model, ids))
    (cache,) = caches(ours.model)
    assert 0 < cache.n_bytes <= 100_000
    assert ours.complete("abc", temperature=0, max_new_tokens=8)


def test_cria_in_int4_gives_the_bits_that_it_gives_all_in_memory(tmp_path: Path) -> None:
    resident, ids = puna.load("cria", quantize="int4", device="cpu"), random_ids(80, 2)
    options = {"offload": "disk", "offload_dir": tmp_path, "expert_cache_bytes": 1_000_000}
    ours = puna.load("cria", quantize="int4", device="cpu", **options)
    assert torch.equal(plain_logits(ours.model, ids), plain_logits(resident.model, ids))


def test_layouts_give_the_same_bits(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "meta", "meta", shards=2)
    models = [
        puna.load(path, device="cpu", offload="disk", offload_dir=tmp_path / "experts").model
        for path in (checkpoint, tmp_path / "meta")
    ]
    assert len(list((tmp_path / "experts").iterdir())) == 2  # two sources, two stores
    ids = random_ids(30, 3)
    assert torch.equal(plain_logits(models[0], ids), plain_logits(models[1], ids))


def test_a_second_start_reads_no_expert_of_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    first = puna.load(checkpoint, device="cpu", offload="disk", offload_dir=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.experts")}
    told: list[tuple[int, int]] = []
    again = puna.load(
        checkpoint,
        device="cpu",
        offload="disk",
        offload_dir=tmp_path,
        progress=lambda done, n: told.append((done, n)),
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.experts")} == files
    assert told == sorted(told) and told[-1][0] == told[-1][1]
    ids = random_ids(9, 4)
    assert torch.equal(plain_logits(again.model, ids), plain_logits(first.model, ids))


def test_progress_goes_once_from_nothing_to_all(checkpoint: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    puna.load(
        checkpoint,
        device="cpu",
        offload="disk",
        offload_dir=tmp_path,
        progress=lambda done, n: told.append((done, n)),
    )
    assert told == sorted(told) and told[-1][0] == told[-1][1] and len({n for _, n in told}) == 1


def test_one_line_says_how_fast_it_will_be(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    puna.load(checkpoint, device="cpu", offload="disk", offload_dir=tmp_path, expert_cache_bytes=50_000)
    (record,) = [record for record in caplog.records if record.name.startswith("puna.offload")]
    assert record.levelno == logging.WARNING and "\n" not in record.getMessage()
    assert (
        record.getMessage().startswith("experts on disk: a token uses 2 of 8 (") and "tokens/s" in record.getMessage()
    )


def test_the_outlook_counts_with_what_a_token_reads() -> None:
    store = HostStore(Layers((0, 1), 4), numbered, locked=False)
    size = store.record.n_bytes
    half = outlook(ExpertCache(store, 4 * size), 10.0 * size, n_active=1)
    assert half.startswith("experts in host memory: a token uses 2 of 8 (") and "the cache holds 4 (" in half
    assert half.endswith("expect 5 tokens/s if nothing is cached and 10 if all experts are used alike")
    assert outlook(ExpertCache(store, 8 * size), 10.0 * size, 1).endswith(
        "all, so that only the first use of each is slow"
    )


def test_identities_follow_files_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    first = identify([file], "int4")
    assert identify([file, file], "int4") == first != identify([file], "int8")
    os.utime(file, ns=(1, 1))
    assert identify([file], "int4") != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": "tape"}, "offload is 'tape': expected one of disk, host, or none"),
        ({"offload": "host"}, "the model runs in the memory of the host already; use 'disk'"),
        ({"offload": "host", "offload_dir": "x"}, "experts in host memory need no folder"),
        ({"offload_dir": "x"}, "offload_dir is 'x' and offload is not given"),
        ({"expert_cache_bytes": 5}, "expert_cache_bytes is '5' and offload is not given"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, str], message: str, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        puna.load(checkpoint, device="cpu", **options)


def test_a_cache_too_small_for_one_expert_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="expert_cache_bytes is 5: one expert takes"):
        puna.load(checkpoint, device="cpu", offload="disk", offload_dir=tmp_path, expert_cache_bytes=5)


def test_models_without_experts_have_none_to_put_away() -> None:
    with pytest.raises(ConfigError, match="this model has no routed experts"):
        check(Offload(where="disk"), GUARD4, torch.device("cpu"))
    check(Offload(where="host"), SCOUT, torch.device("cuda"))


def test_a_damaged_store_is_named_at_the_next_start(checkpoint: Path, tmp_path: Path) -> None:
    puna.load(checkpoint, device="cpu", offload="disk", offload_dir=tmp_path)
    path = next(tmp_path.rglob("layer-003.experts"))
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(WeightsError, match=r"layer-003\.experts: has .* cuts off expert 3; remove it"):
        puna.load(checkpoint, device="cpu", offload="disk", offload_dir=tmp_path)


def test_the_command_line_says_one_line_on_standard_error(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "puna", "complete", "abc", "--model", str(checkpoint), "--device", "cpu", "--json"]
    command += [
        "--max-new-tokens",
        "3",
        "--offload",
        "disk",
        "--offload-dir",
        str(tmp_path),
        "--expert-cache-gb",
        "1e-4",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("experts on disk: a token uses 2 of 8 (") and done.stderr.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["disk", "host"])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_model_on_a_gpu_answers_with_its_experts_elsewhere(
    offload: str, quantize: str | None, checkpoint: Path, tmp_path: Path
) -> None:
    resident = puna.load(checkpoint, dtype="bfloat16", quantize=quantize, device="cuda")
    folder = {"offload_dir": tmp_path} if offload == "disk" else {}
    ours = puna.load(
        checkpoint,
        dtype="bfloat16",
        quantize=quantize,
        device="cuda",
        offload=offload,
        expert_cache_bytes=60_000,
        **folder,
    )
    ids = random_ids(60, 1)
    logits, expected = (llama.logits(ids) for llama in (ours, resident))
    # Products of other shapes add up in another order: a rounding step of bfloat16 on logits of about 1.
    torch.testing.assert_close(logits, expected, atol=2**-5, rtol=2**-6)


@pytest.mark.slow
def test_a_model_larger_than_what_it_may_take_runs(tmp_path: Path) -> None:
    """Experts of 0.8 GB in a process of its own, with a cache of 20 MB: the kernel's own high-water mark of its memory
    rises by less than an eighth of them while the store is made, and when it is used."""
    command = [sys.executable, "-m", "tests.offload.large_model", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    n_bytes, cache_bytes, made, used = map(int, done.stdout.split())
    assert n_bytes > 8e8 and cache_bytes <= 2e7
    assert made < n_bytes / 8 and used < n_bytes / 8
