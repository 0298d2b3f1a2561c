"""What tuning begins with: the base as it trains, its tokenizer, and the recipe's conversations as numbers.

In: a recipe and the folder of a run. Out: a `Workbench`, which each kind of exercise gets before the run's checkpoint
is read: the model has its start weights then, so that what belongs to the base (reference log-probabilities, routes,
what it already knows) is measured on it, and afterwards whatever the run has reached.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.adapters.attach import attach
from puna.adapters.spec import Spec, begin, busiest
from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.model.count import part_of
from puna.model.transformer import Llama
from puna.prompt.render import Renderer
from puna.prompt.tokenizer import Tokenizer
from puna.quant import swap
from puna.records import write_whole
from puna.train import difficulty, forward
from puna.train.chat_store import Choices, store_chats
from puna.train.pack import PADDING, PackedFeed, Packer
from puna.train.rewards import Judge
from puna.train.store import Progress, Store
from puna.train.tune_recipe import TuneRecipe
from puna.weights.checkpoint import load, open_config
from puna.weights.hub import resolve

FILTERED = "filter.json"
DATA = "data.json"
WHOLE_BYTES = 1 << 33
"""Of files up to this size a fingerprint reads all; of larger ones the two ends."""

_END_BYTES = 1 << 24


@dataclass(kw_only=True)
class Workbench:
    """A base that is about to be tuned.

    base         its folder; fingerprint: 64 hexadecimal digits of its files
    model        with factors attached if there are any, in the dtype it trains in, on the recipe's device
    judges       of kinds of answers that `rewards` does not know
    """

    recipe: TuneRecipe
    run: Path
    base: Path
    fingerprint: str
    config: LlamaConfig
    tokenizer: Tokenizer
    model: Llama
    say: Progress
    judges: Mapping[str, Judge] = field(default_factory=dict)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.tokenizer, self.config.vision)

    @property
    def device(self) -> str:
        return self.recipe.compute.device

    @cached_property
    def store(self) -> Store:
        """The recipe's conversations. Raises as `chat_store.store_chats`."""
        return self.stored(self.recipe.data.chats)

    def stored(self, files: tuple[str, ...]) -> Store:
        """Returns other conversations as numbers, as the recipe wants them."""
        data = self.recipe.data
        choices = Choices(
            longest=self.recipe.batch.row_len,
            too_long=data.too_long,
            learn=data.learn,
            learn_header=data.learn_header,
            tool_style="json" if data.tool_style == "json" else "pythonic",
        )
        vocabulary = tokenizer_file(self.base)
        return store_chats(files, data.store, self.tokenizer, vocabulary, self.config.vision, choices, self.say)

    def packer(self, store: Store, *, together: int = 1, kept: NDArray[np.bool_] | None = None) -> Packer:
        """Returns the packer that the recipe's [batch] and [data] describe, of any store."""
        batch, data = self.recipe.batch, self.recipe.data
        return Packer(
            store,
            self.config,
            rows=batch.rows,
            row_len=batch.row_len,
            tiles=batch.tiles,
            window=batch.window,
            seed=data.seed,
            passes=data.passes if store is self.store else {},
            together=together,
            kept=kept,
        )

    def feed(self, together: int = 1) -> PackedFeed:
        """Returns the batches of the recipe's conversations, without those that its filter drops.

        Raises ConfigError where none is left.
        """
        kept = self._kept(together)
        facts = {"counts": self.store.facts.get("counts", {}), "documents": self.store.n_documents}
        digest = hashlib.sha256(f"{self.store.digest} {self.fingerprint}".encode())
        if kept is not None:
            facts |= {"filter": dict(difficulty.report(kept, self.store))}
            digest.update(np.packbits(kept).tobytes())
            if not kept.any():
                raise ConfigError("filter: no conversation is left; ask for less")
        (self.run / DATA).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        return PackedFeed(self.packer(self.store, together=together, kept=kept), digest.hexdigest())

    def scores(self, store: Store) -> difficulty.Scores:
        """Returns how the model reads a store's documents."""
        return difficulty.scores(self.model, self.packer(store), self.recipe.loss.chunk, self.device, self.say)

    def _kept(self, together: int) -> NDArray[np.bool_] | None:
        """Returns which documents the filter leaves, None where there is no filter. Answers of a preference share their
        fate: what the base reads is the better one."""
        wish = self.recipe.filter
        if not wish.asks_base and not wish.score:
            return None
        kept = np.ones(self.store.n_documents, dtype=bool)
        if wish.score:
            ids = difficulty.judged(self.recipe.data.chats, wish.score, wish.least_score)
            kept &= [name.removesuffix(" chosen").removesuffix(" rejected") in ids for name in self.store.names]
        if wish.asks_base:
            kept &= difficulty.hard(self._remembered_scores(), wish)
        for first in range(0, len(kept), together):
            kept[first : first + together] = kept[first]
        return kept

    def _remembered_scores(self) -> difficulty.Scores:
        """The base's scores; a run that goes on finds them in its folder."""
        file, key = self.run / FILTERED, f"{self.store.digest} {self.fingerprint} {self.recipe.compute.dtype}"
        if file.is_file():
            document = json.loads(file.read_text("utf-8"))
            if document["of"] == key:
                return difficulty.Scores(*(np.asarray(document[name]) for name in difficulty.Scores._fields))
        found = self.scores(self.store)
        document = {"of": key} | {name: values.tolist() for name, values in found._asdict().items()}
        write_whole(file, json.dumps(document))
        return found


def open_bench(recipe: TuneRecipe, run: Path, say: Progress) -> Workbench:
    """Returns the workbench of one process: the base read, small where that is wished, without factors yet.

    Weights that will train are float32 (`made_ready` changes that). Raises ConfigError and WeightsError as `load` does.
    """
    base = resolve(recipe.model.base)
    config = open_config(base)
    dtype = torch.float32 if recipe.lora is None else getattr(torch, recipe.compute.dtype)
    place = None
    if recipe.model.quantize:
        place = swap.placer(swap.Policy(to=recipe.model.quantize), dtype, arrange=_unpacked)  # type: ignore[arg-type]
    say(f"reads {base}")
    is_blind = bool(recipe.model.quantize) and not recipe.batch.tiles
    model = load(
        base, dtype=dtype, device=recipe.compute.device, place=place, leave_out=_is_of_tower if is_blind else None
    )
    if recipe.lora is not None and recipe.compute.device != "cpu":
        model.embedding = RowsOnHost(model.embedding.weight.detach())  # type: ignore[assignment]
    return Workbench(
        recipe=recipe,
        run=run,
        base=base,
        fingerprint=fingerprint(base),
        config=config,
        tokenizer=Tokenizer.load(base),
        model=model,
        say=say,
    )


def add_factors(bench: Workbench) -> None:
    """Attaches the recipe's [lora] to the model, as float32 factors that change nothing yet.

    Raises ConfigError as `Spec` does.
    """
    wish = bench.recipe.lora
    assert wish is not None, "asked for factors"
    experts = None
    targets: frozenset[Any] = frozenset(wish.targets or _maps_of(bench.config))  # which `Spec` checks
    if wish.experts_share < 1 and "experts" in targets:
        experts = busiest(bench.config, _loads(bench), wish.experts_share)
    spec = Spec(rank=wish.rank, alpha=wish.alpha, targets=targets, experts=experts)
    generator = torch.Generator().manual_seed(bench.recipe.model.seed)
    attach(bench.model, begin(bench.config, spec, generator, device=bench.device))


def freeze(bench: Workbench) -> None:
    """Has the recipe's frozen parts not train. Raises ConfigError for a part that the model does not have."""
    parts = {part_of(name) for name, _ in bench.model.named_parameters()}
    for part in bench.recipe.model.frozen:
        if part not in parts:
            raise ConfigError(f"model.frozen: {part!r} is no part of this model; its parts: {', '.join(sorted(parts))}")
    for name, parameter in bench.model.named_parameters():
        parameter.requires_grad_(part_of(name) not in bench.recipe.model.frozen)


class RowsOnHost(nn.Module):
    """An embedding that stays in the host's memory, where a step reads a few rows of it. It does not train."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.cpu()

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids.cpu()].to(ids.device)


def tokenizer_file(base: Path) -> Path:
    """Returns the file of a folder that holds its vocabulary."""
    return next((file for name in ("tokenizer.json", "tokenizer.model") if (file := base / name).is_file()), base)


def fingerprint(base: Path) -> str:
    """Returns 64 hexadecimal digits by which a base is known again, of its configuration and weights."""
    digest = hashlib.sha256()
    for file in sorted(path for path in base.iterdir() if path.suffix in (".json", ".safetensors", ".pth")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            if size <= WHOLE_BYTES:
                digest.update(hashlib.file_digest(content, "sha256").digest())
            else:
                digest.update(content.read(_END_BYTES))
                content.seek(-_END_BYTES, 2)
                digest.update(content.read(_END_BYTES))
    return digest.hexdigest()


def _maps_of(config: LlamaConfig) -> list[str]:
    """Returns the kinds of linear maps that a decoder has."""
    text = config.text
    has_dense, has_experts = len(text.moe_layers) < text.n_layers, bool(text.moe_layers)
    return ["attention", *["dense"] * has_dense, *["shared", "experts"] * has_experts]


@torch.no_grad()
def _loads(bench: Workbench) -> Tensor:
    """Returns how often each expert is chosen in the first batches of the data, int64 [M E]."""
    counts = torch.zeros(len(bench.config.text.moe_layers), bench.config.text.n_experts, dtype=torch.int64)
    for number, batch in enumerate(bench.packer(bench.store).once()):
        if number == max(bench.recipe.drift.batches, 1):
            break
        learnt = batch.documents.flatten() != PADDING
        for row, route in enumerate(forward.hidden(bench.model, batch.to(bench.device)).routes):
            counts[row] += torch.bincount(route.experts.cpu()[learnt].flatten(), minlength=counts.shape[1])
    return counts


def _is_of_tower(name: str) -> bool:
    """What no batch without tiles reads; nothing of it is written at the end, where only an adapter is."""
    return part_of(name) in ("vision", "adapter", "projector")


def _unpacked(weight: object) -> object:
    """Weights that pass gradients are not in the order of a processor's kernels."""
    return weight
