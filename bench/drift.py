"""How far int4, int8 and fp8 drift from the full model, beside the rules that others quantise by, on real text.

    python bench/drift.py TEXT [TEXT ...] [--model cria] [--tokens 8192] [--out bench/results/drift.json]

TEXT: files of plain text, or JSON lines with a key `text`. Each rule replaces the numbers of the same matrices (all of
the decoder, head included) and the model then runs in float32, so that nothing but the rule differs:

ours int4        groups of 32, searched scales (`quant.int4`)                               4.5 bits a weight
Q4_0             llama.cpp: groups of 32, float16 scale of the signed extreme over -8       4.5
absmax/8, 32     the reference's rule in groups of 32, with a bfloat16 scale                4.5
absmax/8, 128    the reference as it is: groups of 128, float32 scales                      4.25
ours int8, fp8   a scale a row                                                              8 and a little
Source: ggml `quantize_row_q4_0_ref`; llama-models `quantize_impls.py` (int4).
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.chat import load
from puna.kernels.formats import dequantize
from puna.model.mask import Packed
from puna.model.transformer import Llama
from puna.quant import fp8, int4, int8
from puna.quant.drift import Logits, drift, windows
from puna.quant.swap import Policy

Rule = Callable[[Tensor], Tensor]  # the numbers that are left of [.. out in], both float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--model", default="cria", help="name, directory or hub id")
    parser.add_argument("--tokens", type=int, default=8192, help="of each text")
    parser.add_argument("--window", type=int, default=512, help="tokens that are read together")
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    chosen = parser.parse_args()
    llama = load(chosen.model, dtype="float32", device="cpu")
    full = unpacked(chosen.model)
    texts = {
        path.name: windows(llama.tokenizer.encode(read(path))[: chosen.tokens], chosen.window, full.config.bos_id)
        for path in chosen.texts
    }
    known = {name: [logits(full)(ids) for ids in pieces] for name, pieces in texts.items()}
    results: dict[str, Any] = {"model": chosen.model, "window": chosen.window, "texts": {}, "relative_error": {}}
    for rule_name, rule in rules().items():
        small, results["relative_error"][rule_name] = ruled(full, rule)
        for name, pieces in texts.items():
            remembered = iter(known[name])
            found = drift(lambda _, rest=remembered: next(rest), logits(small), pieces)  # type: ignore[misc]
            results["texts"].setdefault(name, {})[rule_name] = found._asdict()
            print(
                f"{name:14} {rule_name:14} {found.divergence:9.6f} +- {found.divergence_error:.6f} nats "
                f"{found.agreement:8.3%} same choice, perplexity {found.perplexity_full:.4f} -> "
                f"{found.perplexity_small:.4f}",
                flush=True,
            )
    text = json.dumps(results, indent=2)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n", encoding="utf-8")


def unpacked(name: str) -> Llama:
    """Returns the model with plain parameters in float32."""
    from puna.weights import checkpoint, hub

    return checkpoint.load(hub.resolve(name), dtype=torch.float32).eval().requires_grad_(False)


def rules() -> Mapping[str, Rule]:
    return {
        "ours int4": lambda w: dequantize(int4.quantize(w), torch.float32),
        "Q4_0": q4_0,
        "absmax/8, 32": lambda w: absmax_over_8(w, 32, torch.bfloat16),
        "absmax/8, 128": lambda w: absmax_over_8(w, 128, torch.float32),
        "ours fp8": lambda w: dequantize(fp8.quantize(w), torch.float32),
        "ours int8": lambda w: dequantize(int8.quantize(w), torch.float32),
    }


def q4_0(weight: Tensor) -> Tensor:
    """llama.cpp's: codes come from the scale before it is rounded to float16, as there."""
    groups = weight.view(-1, 32)
    scale = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    per_scale = torch.where(scale == 0, 0.0, 1 / scale)
    codes = (groups * per_scale + 8.5).floor().clamp(0, 15) - 8
    return (codes * scale.half().float()).view_as(weight)


def absmax_over_8(weight: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """The reference's; where columns are no multiple of the group, the last group is shorter."""
    left = []
    for part in torch.split(weight, group, dim=-1):
        scale = (part.abs().amax(-1, keepdim=True) / 8).to(dtype).float()
        left.append((part / scale.clamp_min(1e-30)).round().clamp(-8, 7) * scale)
    return torch.cat(left, dim=-1)


def ruled(full: Llama, rule: Rule) -> tuple[Llama, float]:
    """Returns a copy of the model after a rule, and the root mean square error of its matrices, relative to theirs."""
    small, policy = copy.deepcopy(full), Policy(to="int4")
    error = size = 0.0
    for name, parameter in small.named_parameters():
        if policy.covers(name, tuple(parameter.shape)):
            before = parameter.clone()
            parameter.copy_(rule(parameter))
            error += (parameter - before).square().sum().item()
            size += before.square().sum().item()
    return small, (error / size) ** 0.5


def logits(model: Llama) -> Logits:
    def read_text(ids: Sequence[int]) -> Tensor:
        store = Packed.single(model.config.text, len(ids))
        found: Tensor = model(torch.tensor(ids), torch.arange(len(ids)), store)
        return found

    return read_text


def read(path: Path) -> str:
    if path.suffix != ".jsonl":
        return path.read_text("utf-8")
    return "\n\n".join(texts_of(path))


def texts_of(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


if __name__ == "__main__":
    main()
