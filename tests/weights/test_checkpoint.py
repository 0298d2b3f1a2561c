"""Checkpoints in and out: what goes around through both layouts, and any number of shards, comes back bit for bit."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.errors import ConfigError, WeightsError
from puna.kernels.formats import Small
from puna.model.transformer import Llama, set_parameter
from puna.weights import safetensors
from puna.weights.checkpoint import convert, load, open_config, save_hf, save_meta
from puna.weights.source import open_source
from puna.weights.stored import read_whole
from tests.reference.checkpoints import KINDS, Reference, make_checkpoint
from tests.reference.meta import reference_module, reference_transformer
from tests.reference.tiny import random_model, tiny_config

SHARDS = (1, 2, 4, 8)


@pytest.fixture(scope="module", params=[(kind, vision) for kind in KINDS for vision in (False, True)], ids=str)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Every kind of model, text-only and with vision, as transformers writes it in several files."""
    kind, vision = request.param
    return make_checkpoint(kind, tmp_path_factory.mktemp(kind) / "hf", vision=vision, max_shard_size="150KB")


@pytest.fixture
def model() -> Llama:
    return random_model(tiny_config()).to(torch.bfloat16)


def hf_bytes(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """The tensors of a Hugging Face directory, down to their bytes."""
    return {
        s.key: (s.dtype, s.shape, bytes(s.path.read_bytes()[s.offset : s.offset + s.n_bytes]))
        for file in path.glob("*.safetensors")
        for s in safetensors.index(file)
    }


def meta_states(path: Path) -> list[dict[str, Tensor]]:
    return [torch.load(file, weights_only=True) for file in sorted(path.glob("consolidated.*.pth"))]


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


# Round trips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", SHARDS)
def test_hugging_face_to_meta_and_back_keeps_every_byte(reference: Reference, shards: int, tmp_path: Path) -> None:
    """HF -> ours -> Meta -> ours -> HF, for every kind of model and any number of shards."""
    model = load(reference.path)
    save_meta(model, model.config, tmp_path / "meta", shards)
    again = load(tmp_path / "meta")
    assert_same(parameters(again), parameters(model))
    save_hf(again, again.config, tmp_path / "hf")
    assert hf_bytes(tmp_path / "hf") == hf_bytes(reference.path)
    assert open_config(tmp_path / "hf") == open_config(tmp_path / "meta") == open_config(reference.path) == model.config
    assert len(list((tmp_path / "meta").glob("*.pth"))) == shards


def test_converting_keeps_every_byte(reference: Reference, tmp_path: Path) -> None:
    convert(reference.path, tmp_path / "meta", "meta", shards=2)
    convert(tmp_path / "meta", tmp_path / "again", "meta", shards=4)
    convert(tmp_path / "again", tmp_path / "hf", "hf")
    assert hf_bytes(tmp_path / "hf") == hf_bytes(reference.path)


def test_parameters_hold_what_transformers_holds(reference: Reference) -> None:
    """Ours are [out, in] throughout; theirs too, experts excepted."""
    ours, theirs = parameters(load(reference.path)), reference.model.state_dict()
    prefix = "language_model.model." if open_config(reference.path).vision else "model."
    for layer in range(4):
        at, their = f"layers.{layer}.", f"{prefix}layers.{layer}."
        assert torch.equal(ours[f"{at}attention.key.weight"], theirs[f"{their}self_attn.k_proj.weight"])
        if f"{at}moe.router.weight" in ours:
            gate_up, down = (theirs[f"{their}feed_forward.experts.{name}_proj"] for name in ("gate_up", "down"))
            assert torch.equal(ours[f"{at}moe.experts.gate_up"], gate_up.transpose(1, 2))
            assert torch.equal(ours[f"{at}moe.experts.down"], down.transpose(1, 2))
        else:
            assert torch.equal(ours[f"{at}mlp.up.weight"], theirs[f"{their}feed_forward.up_proj.weight"])


def test_transformers_loads_what_we_save_unchanged(reference: Reference, tmp_path: Path) -> None:
    model = load(reference.path)
    save_hf(model, model.config, tmp_path / "hf", max_file_bytes=150_000)
    theirs, report = type(reference.model).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_same(parameters(theirs), parameters(reference.model))


# Meta's own code ----------------------------------------------------------------------------------------------------


def test_metas_modules_take_what_we_save(reference: Reference, tmp_path: Path) -> None:
    """Through their own load hooks, strictly: no key is missing, unexpected or misshaped."""
    model = load(reference.path)
    save_meta(model, model.config, tmp_path)
    theirs = reference_transformer(tmp_path, max_seq_len=16)
    router = theirs.layers[3].feed_forward.router_DE if model.config.text.moe_layers else None
    if router is not None:
        assert torch.equal(router.T, parameters(model)["layers.3.moe.router.weight"].float())


@pytest.mark.parametrize("shards", SHARDS[1:])
def test_shards_are_those_that_metas_resharding_makes(reference: Reference, shards: int, tmp_path: Path) -> None:
    reference_module("model")  # puts stand-ins where Meta's package looks for fairscale
    meta = importlib.import_module("llama_models.checkpoint")
    model = load(reference.path)
    save_meta(model, model.config, tmp_path / "one")
    save_meta(model, model.config, tmp_path / "many", shards)
    (whole,), n_experts = meta_states(tmp_path / "one"), model.config.text.n_experts
    for rank, ours in enumerate(meta_states(tmp_path / "many")):
        unmerged = meta.convert_moe_weights(dict(whole), n_experts) if n_experts else whole
        theirs = meta.reshard_mp([unmerged], size=shards, rank=rank)
        theirs = {key: value.flatten(0, 1) if value.dim() == 3 else value for key, value in theirs.items()}
        assert_same(ours, theirs)


# Loading ------------------------------------------------------------------------------------------------------------


def test_one_file_or_many_load_alike(reference: Reference, tmp_path: Path) -> None:
    model = load(reference.path)
    for max_file_bytes in (10**9, 40_000, 1):
        folder = tmp_path / str(max_file_bytes)
        save_hf(model, model.config, folder, max_file_bytes=max_file_bytes)
        assert_same(parameters(load(folder)), parameters(model))
    assert len(list((tmp_path / "1").glob("*.safetensors"))) == len(hf_bytes(reference.path))
    assert not (tmp_path / "1000000000" / "model.safetensors.index.json").exists()


def test_no_file_is_larger_than_asked_for(model: Llama, tmp_path: Path) -> None:
    save_hf(model, model.config, tmp_path / "x", max_file_bytes=30_000)
    files = list((tmp_path / "x").glob("*.safetensors"))
    assert len(files) > 2 and all(sum(s.n_bytes for s in safetensors.index(file)) <= 30_000 for file in files)
    index = json.loads((tmp_path / "x" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 2 for tensor in parameters(model).values())


def test_nothing_stays_on_the_meta_device(reference: Reference) -> None:
    model = load(reference.path)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtype_asked_for_is_the_dtype_of_all_parameters(dtype: torch.dtype, model: Llama, tmp_path: Path) -> None:
    save_hf(model, model.config, tmp_path / "x")
    expected = {name: tensor.to(dtype) for name, tensor in parameters(model).items()}
    assert_same(parameters(load(tmp_path / "x", dtype=dtype)), expected)


def test_placing_sees_every_finished_parameter_once_before_the_next_is_read(model: Llama, tmp_path: Path) -> None:
    save_meta(model, model.config, tmp_path / "x", shards=2)
    seen: dict[str, Tensor] = {}

    def place(into: Llama, name: str, tensor: Tensor | Small) -> None:
        assert isinstance(tensor, Tensor) and name not in seen
        assert all(into.get_parameter(other).is_meta != (other in seen) for other in expected)
        seen[name] = tensor.clone()
        set_parameter(into, name, tensor)

    expected = parameters(model)
    assert_same(parameters(load(tmp_path / "x", place=place)), expected)
    assert_same(seen, expected)


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_progress_ends_at_all_bytes(layout: str, model: Llama, tmp_path: Path) -> None:
    save_hf(model, model.config, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "meta", "meta", shards=2)
    calls: list[tuple[int, int]] = []
    load(tmp_path / layout, progress=lambda done, total: calls.append((done, total)))
    sizes = sum(tensor.numel() * 2 for tensor in parameters(model).values())
    assert calls == sorted(calls) and calls[-1] == (sizes, sizes) and len(calls) == len(parameters(model))


def test_converting_reads_every_number_once(model: Llama, tmp_path: Path) -> None:
    save_hf(model, model.config, tmp_path / "hf")
    calls: list[tuple[int, int]] = []
    convert(tmp_path / "hf", tmp_path / "meta", "meta", 2, lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]


@pytest.mark.slow
def test_loading_adds_less_than_1_3_times_the_weights(tmp_path: Path) -> None:
    """Measured by the kernel in a process of its own; at this size the interpreter itself is not negligible."""
    script = Path(__file__).parents[2] / "bench" / "load_memory.py"
    command = [sys.executable, str(script), "--gigabytes", "0.6", "--folder", str(tmp_path / "x")]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert all(report[layout]["added_rss_over_weights"] < 1.3 for layout in ("hf", "meta"))


# Saving -------------------------------------------------------------------------------------------------------------


def test_state_and_model_are_saved_alike(model: Llama, tmp_path: Path) -> None:
    save_hf(model, model.config, tmp_path / "model")
    save_hf(parameters(model), model.config, tmp_path / "state")
    assert hf_bytes(tmp_path / "model") == hf_bytes(tmp_path / "state")


def test_most_tiles_of_a_picture_survive_in_the_preprocessor_configuration(model: Llama, tmp_path: Path) -> None:
    assert model.config.vision is not None and model.config.vision.max_tiles == 4
    save_hf(model, model.config, tmp_path / "x")
    assert open_config(tmp_path / "x") == model.config
    processor = pytest.importorskip("transformers").Llama4ImageProcessor.from_pretrained(tmp_path / "x")
    assert processor.max_patches == 4 and processor.size["height"] == 16


def test_converting_takes_the_tokenizer_along_and_nothing_else(model: Llama, tmp_path: Path) -> None:
    save_hf(model, model.config, tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer.model", "generation_config.json", "modeling.py", "README.md"):
        (tmp_path / "hf" / name).write_text(name)
    convert(tmp_path / "hf", tmp_path / "meta", "meta")
    assert {file.name for file in (tmp_path / "meta").iterdir()} == {
        "consolidated.00.pth",
        "params.json",
        "tokenizer.json",
        "tokenizer.model",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
    }


def test_directory_that_is_not_empty_is_left_alone(model: Llama, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    for save in (save_hf, save_meta):
        with pytest.raises(WeightsError, match="exists already"):
            save(model, model.config, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_saving_that_fails_leaves_nothing_behind(model: Llama, tmp_path: Path) -> None:
    save_hf(model, model.config, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"

    def fail_halfway(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    for to in ("hf", "meta"):
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "hf", tmp_path / "copy", to, 1, fail_halfway)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"] and file.exists()


def test_parameters_that_are_left_out_are_not_read(model: Llama, tmp_path: Path) -> None:
    save_hf(model, model.config, tmp_path / "hf")
    told: list[int] = []
    loaded = load(
        tmp_path / "hf", leave_out=lambda name: ".experts." in name, progress=lambda done, _: told.append(done)
    )
    source = open_source(tmp_path / "hf")
    for name, parameter in loaded.named_parameters():
        assert parameter.is_meta == (".experts." in name)
    assert told[-1] == sum(source.n_bytes_of(name) for name in source.pieces if ".experts." not in name)
    assert source.files(source.pieces) == {tmp_path / "hf" / "model.safetensors"}


def test_place_that_cannot_be_written_is_named(model: Llama, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=f"{tmp_path}/file/x: cannot be written"):
        save_hf(model, model.config, tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda s: s.pop("norm.weight"), "norm.weight: missing"),
        (lambda s: s.update(extra=torch.ones(1)), "extra: not a parameter"),
        (lambda s: s.update({"norm.weight": torch.ones(3).bfloat16()}), r"norm.weight: shape \[3\]"),
        (lambda s: s.update({"norm.weight": s["norm.weight"].float()}), "norm.weight: torch.float32"),
    ],
)
def test_what_is_not_the_model_of_its_configuration_is_not_saved(
    edit: Callable[[dict[str, Any]], None], named: str, model: Llama, tmp_path: Path
) -> None:
    state = parameters(model)
    edit(state)
    for save in (save_hf, save_meta):
        with pytest.raises(WeightsError, match=named):
            save(state, model.config, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("shards", [0, 3, 4, 8, 1000])
def test_shards_that_heads_cannot_be_cut_into_are_refused(shards: int, model: Llama, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"shards: {shards} "):
        save_meta(model, model.config, tmp_path / "x", shards)


@pytest.mark.parametrize(("to", "shards", "named"), [("gguf", 1, "to: 'gguf'"), ("hf", 2, "shards: 2")])
def test_impossible_conversion_is_refused(to: str, shards: int, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        convert(tmp_path, tmp_path / "x", to, shards)


def test_numbers_are_written_as_they_are_even_nan(model: Llama, tmp_path: Path) -> None:
    config: LlamaConfig = model.config
    state = parameters(model)
    state["norm.weight"] = (
        torch.tensor([0x7FC1, 0xFF80, 0x8000, 0x0001] * 8, dtype=torch.int32).short().view(torch.bfloat16)
    )
    save_meta(state, config, tmp_path / "meta")
    loaded = parameters(load(tmp_path / "meta"))["norm.weight"]
    assert torch.equal(loaded.view(torch.int16), state["norm.weight"].view(torch.int16))
    save_hf(load(tmp_path / "meta"), config, tmp_path / "hf")
    stored = next(
        s for s in safetensors.index(tmp_path / "hf" / "model.safetensors") if s.key.endswith("model.norm.weight")
    )
    assert torch.equal(read_whole(stored).view(torch.int16), state["norm.weight"].view(torch.int16))


@pytest.mark.gpu
def test_an_accelerator_receives_and_gives_back_the_same_numbers(reference: Reference, tmp_path: Path) -> None:
    model = load(reference.path, device="cuda")
    assert all(parameter.is_cuda for parameter in model.parameters())
    assert_same({name: tensor.cpu() for name, tensor in parameters(model).items()}, parameters(load(reference.path)))
    save_hf(model, model.config, tmp_path / "hf")
    assert hf_bytes(tmp_path / "hf") == hf_bytes(reference.path)
