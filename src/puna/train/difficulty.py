"""How hard documents are for a model, and which are too easy to be worth a step.

In: a model, and a packer's documents. Out: for each document what its learnt tokens cost and how many of them are
guessed: `scores`. From these, or from what somebody judged, which documents are kept. The same scores tell what a model
reaches on conversations that it did not see.
Source: light supervised tuning on what is left when easy examples are gone, as the card's models had it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from puna.errors import ConfigError
from puna.model.transformer import Llama
from puna.train import chats, forward
from puna.train.pack import Packer
from puna.train.store import Progress, Store
from puna.train.tune_recipe import FilterRecipe


class Scores(NamedTuple):
    """Of each document: nats of its learnt tokens together, how many of them are the most probable ones, and how many
    there are; float64 [n]."""

    nats: NDArray[np.float64]
    right: NDArray[np.float64]
    tokens: NDArray[np.float64]


@torch.no_grad()
def scores(model: Llama, packer: Packer, chunk: int, device: torch.device | str, say: Progress) -> Scores:
    """Returns how a model reads all documents of a packer."""
    n = packer.store.n_documents
    sums = np.zeros((3, n))
    for number, whole in enumerate(packer.once()):
        batch = whole.to(device)
        learnt = batch.weights.flatten().nonzero().squeeze(1)  # R
        states, targets = forward.hidden(model, batch).states[learnt], batch.targets.flatten()[learnt]
        for first in range(0, len(learnt), chunk):
            rows = slice(first, first + chunk)
            logits = model.logits(states[rows])  # C V
            nats = logits.logsumexp(-1) - logits.gather(1, targets[rows, None]).squeeze(1)  # C
            right = logits.argmax(-1) == targets[rows]  # C
            owners = _owners(packer, whole.pieces, whole.documents.flatten()[learnt[rows].cpu()], learnt[rows].cpu())
            for row, values in enumerate((nats, right.float(), torch.ones_like(nats))):
                np.add.at(sums[row], owners, values.double().cpu().numpy())
        say(f"read with the base: batch {number + 1}")
    return Scores(*sums)


def by_source(found: Scores, store: Store) -> dict[str, dict[str, float]]:
    """Returns nats and guesses per learnt token, and counts, by source and for all."""
    parts = {name: np.asarray(store.sources) == i for i, name in enumerate(store.source_names)}
    parts["all"] = np.ones(store.n_documents, dtype=bool)
    return {
        name: {
            "nats_per_token": float(found.nats[own].sum() / max(found.tokens[own].sum(), 1)),
            "accuracy": float(found.right[own].sum() / max(found.tokens[own].sum(), 1)),
            "tokens": float(found.tokens[own].sum()),
            "documents": float(own.sum()),
        }
        for name, own in parts.items()
    }


def hard(found: Scores, recipe: FilterRecipe) -> NDArray[np.bool_]:
    """Returns which documents the base does not know yet, bool [n]."""
    tokens = np.maximum(found.tokens, 1)
    kept = np.ones(len(tokens), dtype=bool)
    if recipe.easy_accuracy:
        kept &= found.right / tokens < recipe.easy_accuracy
    if recipe.easy_nats:
        kept &= found.nats / tokens > recipe.easy_nats
    return kept


def judged(files: Sequence[str], field: str, least: float) -> frozenset[str]:
    """Returns the ids of the conversations whose `field` is at least `least`.

    Raises ConfigError, naming file and line, where it is no number.
    """
    kept = set()
    for file in files:
        for chat in chats.read(file, texts=True):
            value = chat.facts.get(field)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{chat.where}: {field} is {value!r}; filter.score names a field that holds a number")
            if value >= least:
                kept.add(chat.id)
    return frozenset(kept)


def report(kept: NDArray[np.bool_], store: Store) -> Mapping[str, Any]:
    """Returns what a filter left, by source."""
    sources = np.asarray(store.sources)
    return {
        "documents": len(kept),
        "kept": int(kept.sum()),
        "by_source": {
            name: {"documents": int((sources == i).sum()), "kept": int(kept[sources == i].sum())}
            for i, name in enumerate(store.source_names)
        },
    }


def _owners(
    packer: Packer, pieces: Sequence[Sequence[int]], documents: torch.Tensor, places: torch.Tensor
) -> NDArray[np.int64]:
    """Returns the store's number of the document that each learnt place belongs to, int64 [R]."""
    rows = (places // packer.row_len).tolist()
    return np.asarray([packer.document_of(pieces[b], d) for b, d in zip(rows, documents.tolist(), strict=True)])
