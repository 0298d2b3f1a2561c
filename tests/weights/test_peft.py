import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.adapters.attach import attach
from puna.adapters.spec import Spec
from puna.config import LlamaConfig
from puna.errors import WeightsError
from puna.kernels.low_rank import Factors
from puna.model.mask import Packed
from puna.model.transformer import Llama
from puna.weights import safetensors
from puna.weights.checkpoint import save_hf
from puna.weights.peft import CONFIG, TENSORS, load, save
from puna.weights.safetensors import Entry
from tests.adapters.toys import EVERYTHING, adapter_for
from tests.reference.referees import ask
from tests.reference.tiny import random_ids, random_model, tiny_config

IDS = random_ids(12, seed=3)
FOR_PEFT = EVERYTHING - {"router"}  # whose module in transformers returns a pair, on which PEFT 0.21 fails


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    whole = tiny_config()
    return replace(whole, vision=None, patch_id=None)


@pytest.fixture
def adapter(config: LlamaConfig) -> dict[str, Factors]:
    return adapter_for(config, Spec(rank=3, alpha=5, targets=EVERYTHING))


def same(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> None:
    assert one.keys() == other.keys()
    for name, (a, b, scale, experts) in one.items():
        assert torch.equal(a, other[name].a) and torch.equal(b, other[name].b), name
        assert scale == pytest.approx(other[name].scale) and experts == other[name].experts, name


def logits(model: Llama) -> Tensor:
    out: Tensor = model(torch.tensor(IDS), torch.arange(len(IDS)), Packed.single(model.config.text, len(IDS)))
    return out.detach()


def tensors_of(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(folder / TENSORS)
    return found


def write(folder: Path, tensors: Mapping[str, Tensor], **settings: Any) -> Path:
    """Writes an adapter like the one in `folder`, with other tensors and settings, and returns its folder."""
    known = json.loads((folder / CONFIG).read_text())
    other = folder.parent / "other"
    other.mkdir()
    (other / CONFIG).write_text(json.dumps(known | settings))
    writer = safetensors.Writer(other / TENSORS, [Entry(k, t.dtype, tuple(t.shape)) for k, t in tensors.items()])
    for key, tensor in tensors.items():
        writer.put(Entry(key, tensor.dtype, tuple(tensor.shape)), [memoryview(tensor.contiguous().numpy().tobytes())])
    writer.close()
    return other


def test_what_was_saved_is_loaded(tmp_path: Path, config: LlamaConfig, adapter: dict[str, Factors]) -> None:
    save(adapter, config, tmp_path / "saved", base="toy")
    same(load(tmp_path / "saved", config), adapter)


def test_pictures_have_their_places_too(tmp_path: Path) -> None:
    config = tiny_config()
    adapter = adapter_for(config, Spec(rank=2, targets=frozenset({"vision", "projector", "attention"})))
    save(adapter, config, tmp_path / "saved", base="toy")
    same(load(tmp_path / "saved", config), adapter)
    keys = tensors_of(tmp_path / "saved").keys()
    assert "base_model.model.multi_modal_projector.linear_1.lora_A.weight" in keys
    assert "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_B.weight" in keys


def test_names_and_shapes_are_those_of_peft(tmp_path: Path, config: LlamaConfig, adapter: dict[str, Factors]) -> None:
    save(adapter, config, tmp_path / "saved", base="toy")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors_of(tmp_path / "saved").items()}
    layer = "base_model.model.model.layers.1."
    experts = f"{layer}feed_forward.experts."
    assert {key: shape for key, shape in shapes.items() if key.startswith(experts)} == {
        f"{experts}base_layer.lora_A.weight": (4 * 3, 2 * 24),  # as PEFT 0.21 writes them for this model
        f"{experts}base_layer.lora_B.weight": (32, 3 * 4),
        f"{experts}lora_A.weight": (4 * 3, 32),
        f"{experts}lora_B.weight": (24, 3 * 4),
    }
    assert shapes[f"{layer}feed_forward.shared_expert.down_proj.lora_A.weight"] == (3, 24)
    settings = json.loads((tmp_path / "saved" / CONFIG).read_text())
    maps = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj router lm_head"
    assert sorted(settings["target_modules"]) == sorted(maps.split())
    assert settings["target_parameters"] == ["gate_up_proj", "down_proj"]
    assert (settings["r"], settings["lora_alpha"]) == (3, 5)


def test_ranks_and_scales_may_differ_between_maps(tmp_path: Path, config: LlamaConfig) -> None:
    one = adapter_for(config, Spec(rank=3, targets=frozenset({"attention"})))
    other = adapter_for(config, Spec(rank=2, alpha=1, targets=frozenset({"shared", "experts"})))
    save(one | other, config, tmp_path / "saved", base="toy")
    same(load(tmp_path / "saved", config), one | other)


def test_few_experts_stay_few(tmp_path: Path, config: LlamaConfig) -> None:
    adapter = adapter_for(config, Spec(rank=2, experts={1: (0, 2)}))
    save(adapter, config, tmp_path / "saved", base="toy")
    same(load(tmp_path / "saved", config), adapter)


def test_experts_of_older_versions_are_read_the_other_way_round(
    tmp_path: Path, config: LlamaConfig, adapter: dict[str, Factors]
) -> None:
    save(adapter, config, tmp_path / "saved", base="toy")
    tensors = tensors_of(tmp_path / "saved")
    for key in [key for key in tensors if ".experts." in key and "lora_A" in key]:
        other = key.replace("lora_A", "lora_B")
        a, b = tensors[key], tensors[other]
        tensors[key] = b.unflatten(1, (3, 4)).permute(2, 1, 0).flatten(0, 1)  # the faster index becomes the slower
        tensors[other] = a.unflatten(0, (4, 3)).permute(2, 1, 0).flatten(1)
    same(load(write(tmp_path / "saved", tensors), config), adapter)


def test_adapter_for_one_stack_of_experts_has_no_inner_wrapper(tmp_path: Path, config: LlamaConfig) -> None:
    adapter = adapter_for(config, Spec(rank=2, targets=frozenset({"experts"})))
    down = {name: factors for name, factors in adapter.items() if name.endswith("down")}
    save(down, config, tmp_path / "saved", base="toy")
    assert not any("base_layer" in key for key in tensors_of(tmp_path / "saved"))
    same(load(tmp_path / "saved", config), down)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"r": True}, "r is True"),
        ({"r": 4}, "rank 4"),
        ({"lora_alpha": "5"}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"rank_pattern": {"(a+)+$": 2}}, "rank_pattern"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"target_parameters": "experts"}, "target_parameters"),
        ({"target_parameters": None}, "wrappers"),
    ],
)
def test_settings_that_mean_something_else_are_refused_by_name(
    tmp_path: Path, config: LlamaConfig, adapter: dict[str, Factors], settings: dict[str, Any], message: str
) -> None:
    save(adapter, config, tmp_path / "saved", base="toy")
    other = write(tmp_path / "saved", tensors_of(tmp_path / "saved"), **settings)
    with pytest.raises(WeightsError, match=message):
        load(other, config)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def _renamed(key: str) -> Callable[[dict[str, Tensor]], None]:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors[key] = tensors.pop(KEY)
        del tensors[KEY.replace("lora_A", "lora_B")]

    return rename


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop(KEY), "lora_A of model.layers.0.self_attn.q_proj is missing"),
        (lambda tensors: tensors.__setitem__(KEY, tensors[KEY] * torch.inf), "infinite"),
        (lambda tensors: tensors.__setitem__(KEY, tensors[KEY][:2]), "shapes"),
        (lambda tensors: tensors.__setitem__(KEY, tensors[KEY].int()), "int32"),
        (lambda tensors: tensors.__setitem__(KEY.replace("lora_A", "lora_A.default"), tensors[KEY]), "twice"),
        (lambda tensors: tensors.clear(), "no factors"),
        (_renamed("base_model.model.model.embed_tokens.lora_embedding_A"), "no factor"),
        (_renamed("base_model.model." + ".base_layer" * 9999 + ".lora_A.weight"), "no factor"),
        (_renamed("base_model.model.model.layers.0.self_attn.q_proj.base_layer.lora_A.weight"), "this model has no"),
        (_renamed("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"), "this model has no"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_key(
    tmp_path: Path,
    config: LlamaConfig,
    adapter: dict[str, Factors],
    damage: Callable[[dict[str, Tensor]], object],
    message: str,
) -> None:
    save(adapter, config, tmp_path / "saved", base="toy")
    tensors = tensors_of(tmp_path / "saved")
    damage(tensors)
    other = write(tmp_path / "saved", tensors)
    with pytest.raises(WeightsError, match=message):
        load(other, config)


def test_pickled_adapter_and_huge_settings_are_not_opened(
    tmp_path: Path, config: LlamaConfig, adapter: dict[str, Factors]
) -> None:
    save(adapter, config, tmp_path / "saved", base="toy")
    (tmp_path / "saved" / TENSORS).rename(tmp_path / "saved" / "adapter_model.bin")
    with pytest.raises(WeightsError, match="only safetensors"):
        load(tmp_path / "saved", config)
    (tmp_path / "saved" / CONFIG).write_text(" " * (1 << 21))
    with pytest.raises(WeightsError, match="too many"):
        load(tmp_path / "saved", config)


def test_adapter_of_another_model_is_refused(tmp_path: Path, config: LlamaConfig, adapter: dict[str, Factors]) -> None:
    save(adapter, config, tmp_path / "saved", base="toy")
    with pytest.raises(WeightsError, match="base model"):
        load(tmp_path / "saved", replace(config, text=replace(config.text, n_heads=8)))
    with pytest.raises(WeightsError, match="no place"):
        save({"embedding.weight": adapter["head.weight"]}, config, tmp_path / "new", base="toy")


@pytest.mark.slow  # asks PEFT, which lives in an environment of its own
@pytest.mark.parametrize("experts", [None, {1: (0, 2), 3: (3,)}], ids=["all experts", "few experts"])
@pytest.mark.parametrize("sees", [False, True], ids=["text", "pictures"])
def test_peft_reads_ours_and_gives_our_logits(
    tmp_path: Path, config: LlamaConfig, experts: dict[int, tuple[int, ...]] | None, sees: bool
) -> None:
    config = tiny_config() if sees else config
    model, adapter = random_model(config), adapter_for(config, Spec(rank=3, targets=FOR_PEFT, experts=experts))
    save_hf(model, config, tmp_path / "model")
    save(adapter, config, tmp_path / "adapter", base=str(tmp_path / "model"))
    theirs = ask("peft_adapters", model=str(tmp_path / "model"), adapter=str(tmp_path / "adapter"), ids=IDS)
    plain = logits(model)
    attach(model, adapter)
    ours = logits(model)
    torch.testing.assert_close(torch.tensor(theirs["logits"]), ours, rtol=1e-4, atol=1e-5)
    assert (ours - plain).abs().max() > 0.1
    assert len(theirs["factors"]) == len(tensors_of(tmp_path / "adapter"))  # PEFT made no factors beside ours


@pytest.mark.slow  # asks PEFT
@pytest.mark.parametrize("parameters", [["gate_up_proj", "experts.down_proj"], ["experts.down_proj"], None])
def test_we_read_what_peft_makes_and_give_its_logits(
    tmp_path: Path, config: LlamaConfig, parameters: list[str] | None
) -> None:
    model = random_model(config)
    save_hf(model, config, tmp_path / "model")
    theirs = ask(
        "peft_adapters",
        model=str(tmp_path / "model"),
        adapter=str(tmp_path / "adapter"),
        ids=IDS,
        rank=2,
        targets=["q_proj", "o_proj", "up_proj"],
        parameters=parameters,
    )
    attach(model, load(tmp_path / "adapter", config))
    torch.testing.assert_close(torch.tensor(theirs["logits"]), logits(model), rtol=1e-4, atol=1e-5)
