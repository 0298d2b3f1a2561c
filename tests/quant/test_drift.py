"""Drift: none between equals, and what the definition says elsewhere."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from puna.errors import PromptError
from puna.kernels.formats import dequantize
from puna.model.mask import Packed
from puna.model.transformer import Llama
from puna.prompt.tokenizer import Tokenizer
from puna.quant import fp8, int4
from puna.quant.drift import Drift, drift, windows
from puna.quant.swap import Policy
from puna.weights import checkpoint, hub

FULL = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [5.0, 0.0, 0.0]])
SMALL = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 5.0]])


def full(ids: Sequence[int]) -> Tensor:
    return FULL[: len(ids)]


def small(ids: Sequence[int]) -> Tensor:
    return SMALL[: len(ids)]


def test_a_model_does_not_drift_from_itself() -> None:
    found = drift(full, full, [[0, 1, 2], [1, 1]])
    assert (found.n_tokens, found.divergence, found.divergence_error, found.agreement) == (3, 0.0, 0.0, 1.0)
    assert found.perplexity_full == found.perplexity_small


def test_drift_is_what_the_definition_says_and_the_last_row_counts_for_nothing() -> None:
    found = drift(full, small, [[0, 1, 2]])
    p, q = FULL[:2].double().softmax(-1), SMALL[:2].double().softmax(-1)
    rows = (p * (p / q).log()).sum(-1)
    assert found.n_tokens == 2
    assert found.divergence == pytest.approx(rows.mean().item())
    assert found.divergence_error == pytest.approx(rows.std().item() / math.sqrt(2))
    assert found.agreement == 0.5
    assert found.perplexity_full == pytest.approx(math.exp(-(p[0, 1].log() + p[1, 2].log()).item() / 2))
    assert found.perplexity_small == pytest.approx(math.exp(-(q[0, 1].log() + q[1, 2].log()).item() / 2))


def test_rows_taken_in_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    long = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    near = long + 0.1 * torch.randn(40, 7, generator=torch.Generator().manual_seed(1))
    ids = [i % 7 for i in range(40)]
    whole = drift(lambda _: long, lambda _: near, [ids])
    monkeypatch.setattr("puna.quant.drift._ROWS_AT_ONCE", 7)
    assert drift(lambda _: long, lambda _: near, [ids]) == pytest.approx(whole)


def test_windows_hold_every_id_once_behind_the_first() -> None:
    pieces = windows(list(range(100, 110)), 4, first=1)
    assert pieces == [[1, 100, 101, 102], [1, 103, 104, 105], [1, 106, 107, 108], [1, 109]]


def test_texts_without_a_second_token_are_refused() -> None:
    with pytest.raises(PromptError, match="none has two tokens"):
        drift(full, small, [[1], []])


def _by_rule(weight: Tensor, scale_of: Callable[[Tensor], Tensor]) -> Tensor:
    groups = weight.view(-1, 32)
    scale = scale_of(groups)
    codes = torch.where(scale == 0, 0.0, groups / scale).round().clamp(-8, 7)
    return (codes * scale).view_as(weight)


def _q4_0(groups: Tensor) -> Tensor:
    return (groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8).half().float()


def _reference(groups: Tensor) -> Tensor:
    return groups.abs().amax(-1, keepdim=True) / 8


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "fp8": lambda w: dequantize(fp8.quantize(w), torch.float32),
    "int4": lambda w: dequantize(int4.quantize(w), torch.float32),
    "q4_0": lambda w: _by_rule(w, _q4_0),
    "reference": lambda w: _by_rule(w, _reference),
}


@pytest.mark.slow
def test_cria_drifts_less_in_our_int4_than_under_q4_0_and_the_reference_and_less_again_in_fp8() -> None:
    """At equal bits, 4.5 a weight, on the English of this repository; bench/drift.py measures on stories."""
    folder = hub.resolve("cria")
    plain = checkpoint.load(folder, dtype=torch.float32).requires_grad_(False)
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    texts = windows(Tokenizer.load(folder).encode(text)[:1024], 256, plain.config.bos_id)

    def logits_of(model: Llama) -> Callable[[Sequence[int]], Tensor]:
        def logits(ids: Sequence[int]) -> Tensor:
            found: Tensor = model(torch.tensor(ids), torch.arange(len(ids)), Packed.single(model.config.text, len(ids)))
            return found

        return logits

    found: dict[str, Drift] = {}
    known = {tuple(ids): logits_of(plain)(ids) for ids in texts}
    for name, rule in RULES.items():
        small = copy.deepcopy(plain)
        for key, parameter in small.named_parameters():
            if Policy(to="int4").covers(key, tuple(parameter.shape)):
                parameter.copy_(rule(parameter))
        found[name] = drift(lambda ids: known[tuple(ids)], logits_of(small), texts)
    divergence = {name: each.divergence for name, each in found.items()}
    assert divergence["fp8"] < divergence["int4"] < divergence["q4_0"] < divergence["reference"]
