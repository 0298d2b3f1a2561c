"""A toy that learns to find and to copy in short texts, and what a stage of long texts then adds, beside as many steps
without it.

    python -m tests.reference.long_toy FOLDER

Three runs of `puna.train` on documents of `puna.train.haystack`, whose ordinary text is made up: `short` from random
weights in rows of 64 tokens; from its model `long`, a stage with [lengthen] in rows of 512, and `control`, as many
steps of as many tokens in rows of 64. Printed for each length: of 200 things that are asked for, the share that the
model says token for token. Nothing that is asked for is asked for in training: names, numbers and words are drawn from
other seeds.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from puna.config import LlamaConfig
from puna.eval.tasks.haystack import sentences
from puna.model.mask import Packed
from puna.model.transformer import Llama
from puna.presets import CRIA
from puna.prompt.tokenizer import Tokenizer
from puna.train import haystack
from puna.train.loop import train
from puna.train.recipe import Recipe, from_dict
from puna.train.vocab import learn_ranks, write_tokenizer
from puna.weights.checkpoint import load
from puna.weights.configs import to_hf

SHORT, LONG = 64, 512
ROWS = 24  # of short documents; long rows are fewer, so that a step has as many tokens
TOLD = 2
Found = Mapping[int, Mapping[str, float]]
"""The share that was found, by length and kind."""


@dataclass(frozen=True, slots=True)
class Size:
    """Steps of the short run, of the stage and its control; documents that are measured of each kind and length."""

    short: int
    long: int
    measured: int


WHOLE = Size(3000, 900, 100)


class Toy:
    """The toy in a folder: its vocabulary, texts and shape; `say` is told how runs go on."""

    def __init__(self, folder: Path, size: Size, say: Callable[[str], None]) -> None:
        self.folder, self.size, self.say = folder, size, say
        folder.mkdir(parents=True, exist_ok=True)
        self.texts = folder / "texts.txt"
        self.texts.write_text("\n".join(islice(sentences(random.Random(7)), 400)) + "\n", "utf-8")
        draw = random.Random(3)
        spelt = [*islice(sentences(draw), 2000), *(f"The number of {haystack.name(draw)} is:" for _ in range(3000))]
        write_tokenizer(learn_ranks(spelt, 256 + 320), folder / "tokenizer")
        self.tokenizer = Tokenizer.load(folder / "tokenizer")

    def config(self) -> LlamaConfig:
        """Three chunked layers and a global one, ordered as Scout's, without experts; a chunk is all that the short run
        reads."""
        text = replace(
            CRIA.text,
            width=64,
            n_layers=4,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            vocab_size=self.tokenizer.vocab_size,
            context_len=SHORT,
            rope_theta=10_000.0,
            rope_scaling=None,
            rope_layers=frozenset({0, 1, 2}),
            chunk_len=SHORT,
            query_temperature=None,
            qk_norm=False,
            moe_layers=frozenset(),
            dense_width=128,
        )
        tokens = self.tokenizer
        return replace(
            CRIA,
            text=text,
            vision=None,
            bos_id=tokens.bos_id,
            stop_ids=tuple(sorted(tokens.stop_ids)),
            pad_id=tokens.special["<|finetune_right_pad|>"],
            image_start_id=None,
            image_end_id=None,
            patch_id=None,
        )

    def recipe(self, name: str, steps: int, lengths: tuple[int, ...], row_len: int, **tables: Any) -> Recipe:
        """The recipe of a run on documents of its own."""
        config = self.folder / "config.json"
        config.write_text(json.dumps(to_hf(self.config())), "utf-8")
        documents = self.folder / f"{name}.jsonl"
        n = steps * ROWS * SHORT * len(lengths) // sum(lengths) // 3 + 1
        wish = haystack.Wish(lengths=lengths, n=n, told=TOLD, asked=TOLD, seed=1, only_asked=True)
        haystack.write([self.texts], self.tokenizer, wish, documents)
        rows = ROWS * SHORT // row_len
        return from_dict(
            {
                "model": {"preset": str(config), "seed": 1} | tables.pop("model", {}),
                "data": {
                    "documents": str(documents),
                    "held_out": "",
                    "tokenizer": str(self.folder / "tokenizer" / "tokenizer.json"),
                    "store": str(self.folder / "store"),
                    "seed": 1,
                    "passes": {"text": 0.0},
                },
                "batch": {"rows": rows, "row_len": row_len, "tiles": 0, "window": 4 * rows},
                "optimizer": {
                    "lr": 0.008,
                    "head_lr_scale": 0.5,
                    "weight_decay": 0.0,
                    "momentum": 0.95,
                    "beta1": 0.9,
                    "beta2": 0.98,
                    "eps": 1e-8,
                    "clip_norm": 1.0,
                },
                "schedule": {"steps": steps, "warmup_steps": 20, "decay_steps": steps // 3, "final_fraction": 0.05},
                "loss": {"balance": 0.01, "chunk": 1024},
                "compute": {"dtype": "float32", "compile": False, "threads": 1},
                "checkpoint": {"every_steps": 0, "every_seconds": 60},
            }
            | tables
        )

    def run(self, name: str, recipe: Recipe) -> Path:
        """Trains, and returns the folder of the model."""
        assert train(recipe, self.folder / name, lambda line: self.say(f"{name}: {line}")).finished
        return self.folder / name / "model"

    def short(self) -> Path:
        return self.run("short", self.recipe("short", self.size.short, (SHORT,), SHORT))

    def control(self) -> Path:
        """Goes on as before, from the model of the short run."""
        start = {"start": str(self.folder / "short" / "model")}
        return self.run("control", self.recipe("control", self.size.long, (SHORT,), SHORT, model=start))

    def long(self) -> Path:
        """The stage: chunks four times as long, wavelengths eight times, documents up to eight times."""
        start = {"start": str(self.folder / "short" / "model")}
        table = {"context_len": LONG, "chunk_len": LONG // 2, "factor": LONG / SHORT, "original_context": SHORT}
        lengths = (SHORT, 2 * SHORT, 4 * SHORT, LONG)
        recipe = self.recipe("long", self.size.long, lengths, LONG, model=start, lengthen=table)
        return self.run("long", recipe)

    def found(self, folder: Path, lengths: Sequence[int]) -> Found:
        """Returns what the model in a folder finds, on documents that no run has seen."""
        model = load(folder, dtype=torch.float32)
        return {length: self._found(model, length) for length in lengths}

    def _found(self, model: Llama, length: int) -> Mapping[str, float]:
        right: dict[str, list[bool]] = {"needle": [], "copy": []}
        wish = haystack.Wish(lengths=(length,), n=self.size.measured, told=TOLD, asked=TOLD, seed=1000 + length)
        for kind, parts in haystack.made(iter(haystack.Pieces([self.texts])), self.tokenizer, wish):
            if kind in right:
                right[kind] += self._said(model, parts)
        return {kind: sum(each) / len(each) for kind, each in right.items()}

    @torch.no_grad()
    def _said(self, model: Llama, parts: Sequence[haystack.Part]) -> Iterator[bool]:
        """Yields for each thing that is asked whether the most probable tokens are the right ones, all of them."""
        ids, spans = [self.tokenizer.bos_id], []
        for part in parts:
            new = self.tokenizer.encode(part.text)
            if part.is_asked:
                spans.append((len(ids), len(ids) + len(new)))
            ids += new
        positions = torch.arange(len(ids))
        store = Packed(model.config.text, positions[None], torch.zeros(1, len(ids), dtype=torch.int64))
        states, _ = model.hidden(torch.tensor(ids), positions, store, None)
        for first, end in spans:
            said = model.logits(states[first - 1 : end - 1]).argmax(-1)
            yield said.tolist() == ids[first:end]


def main() -> None:
    folder = Path(sys.argv[1])

    def say(line: str) -> None:
        if not line.split(" ", 1)[1].startswith("step") or "0/" in line.split("  ")[0].split(" ")[-1]:
            print(line, file=sys.stderr, flush=True)

    toy = Toy(folder, WHOLE, say)
    lengths = (SHORT, 2 * SHORT, 4 * SHORT, LONG, 2 * LONG)
    for name in ("short", "control", "long"):
        found = toy.found(getattr(toy, name)(), lengths)
        print(json.dumps({"model": name, "found": found}), flush=True)


if __name__ == "__main__":
    main()
