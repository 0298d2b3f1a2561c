"""Llama Guard 3 in small: a Llama 3 of transformers gives the same logits, and is asked with its own prompt."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from puna import load
from puna.errors import ConfigError, WeightsError
from puna.guard.content import model_guard
from puna.guard.content_prompt import GUARD3_1B, Turn
from puna.guard.guard import Context, judge
from puna.guard.llama3 import convert, main, read_config
from tests.reference.scripted import CRIA

NAMES = {"<|header_start|>": "<|start_header_id|>", "<|header_end|>": "<|end_header_id|>", "<|eot|>": "<|eot_id|>"}


def write_llama3(folder: Path, *, is_tied: bool) -> Any:
    """Writes a random Llama 3 with cria's vocabulary under Llama 3's names. Returns the model of transformers."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (test time only)")
    document = json.loads((CRIA / "tokenizer.json").read_text("utf-8"))
    for token in document["added_tokens"]:
        token["content"] = NAMES.get(token["content"], token["content"])
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    config = transformers.LlamaConfig(
        vocab_size=max(ids.values()) + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters=rope | {"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=[ids["<|eot_id|>"]],
        tie_word_embeddings=is_tied,
    )
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_gain = parameter.dim() == 1 and name.endswith("weight")
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * (0.1 if is_gain else parameter.shape[-1] ** -0.5) + is_gain
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return model


@pytest.mark.parametrize("is_tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_converted_guard_has_the_logits_of_transformers_and_its_own_prompt(tmp_path: Path, is_tied: bool) -> None:
    model = write_llama3(tmp_path / "published", is_tied=is_tied)
    assert main([str(tmp_path / "published"), str(tmp_path / "guard")]) == 0
    assistant = load(tmp_path / "guard", dtype="float32", device="cpu")
    guard = model_guard(assistant)
    assert guard.template is GUARD3_1B
    context = Context.of_text("What is it?")
    prompt = guard.prompt([Turn("User", "What is it?")], guard.asked(0))
    torch.testing.assert_close(
        assistant.logits(prompt.ids), model(input_ids=torch.tensor([prompt.ids])).logits[0], rtol=1e-4, atol=1e-4
    )
    verdict = judge(guard, context)
    assert "S14" in verdict.unknown
    assert verdict.action == "block", "random weights say nothing readable"


def test_other_models_and_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mllama"):
        read_config({"model_type": "mllama"})
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        read_config({"model_type": "llama"})
    write_llama3(tmp_path / "published", is_tied=False)
    document = json.loads((tmp_path / "published" / "config.json").read_text("utf-8"))
    (tmp_path / "published" / "config.json").write_text(json.dumps(document | {"num_hidden_layers": 3}))
    with pytest.raises(WeightsError, match=r"layers\.2.*missing"):
        convert(tmp_path / "published", tmp_path / "guard")
