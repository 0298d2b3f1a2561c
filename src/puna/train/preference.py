"""Direct preference optimisation: the better of two answers becomes more probable than the worse one, by comparison
with the base.

In: a workbench whose conversations are preferences. Out: the exercise. Both answers of a pair lie in one row, as two
documents. What the base gives them is measured once, before the first step, and kept in a file that knows which base
and which conversations it is of.

    loss = -log sigmoid(beta * ((log p(better) - log q(better)) - (log p(worse) - log q(worse)))) + nll * own loss

p is the model, q the base. With `normalise` each log-probability is divided by the number of its tokens. `nll` adds the
better answer's cross entropy, a token, which keeps it from becoming less probable along with the worse one.
Source: DPO, arXiv 2305.18290 eq. 7; division by lengths, Tulu 3 (arXiv 2411.15124
section 5.1); the own loss, with weight 0.2, Llama 3 (arXiv 2407.21783 section 4.1.4).
"""

import hashlib
import json
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from puna.errors import ConfigError, WeightsError
from puna.model.transformer import Llama
from puna.train import forward
from puna.train.next_token import Loss, RouterLosses
from puna.train.objective import Exercise
from puna.train.pack import Batch, PackedFeed, Packer
from puna.train.recipe import LossRecipe
from puna.train.store import Progress
from puna.train.tune_recipe import PreferenceRecipe
from puna.train.workbench import Workbench

REFERENCE = "reference.npz"
TOGETHER = 2


def begin(bench: Workbench) -> Exercise:
    """Returns the loss of pairs over the recipe's preferences. Raises ConfigError where they are none, and WeightsError
    where what was measured of the base is damaged."""
    if not bench.store.facts.get("is_preference"):
        raise ConfigError('data.chats: these are no preferences; give each line "chosen" and "rejected"')
    feed = bench.feed(TOGETHER)
    known = reference(bench, feed)
    recompute = bench.recipe.parallel.recompute
    pairs = Pairs(bench.model, feed.packer, known, bench.recipe.preference, bench.recipe.loss, recompute=recompute)
    return Exercise(pairs, feed)


class Pairs:
    """An `Objective` over rows of pairs. known: what the base gives, float32 [n documents]: sums over their tokens."""

    def __init__(
        self,
        model: Llama,
        packer: Packer,
        known: NDArray[np.float32],
        options: PreferenceRecipe,
        router: LossRecipe,
        *,
        recompute: bool = False,
    ) -> None:
        self.model, self.packer, self.known = model, packer, torch.from_numpy(known)
        self.options, self.router, self.recompute = options, router, recompute

    def total(self, batch: Batch) -> Tensor:
        """Returns the number of pairs."""
        return torch.tensor(float(sum(len(row) for row in batch.pieces)))

    def tensors(self) -> dict[str, Tensor]:
        """Returns nothing: the base is in a file, and does not change."""
        return {}

    def __call__(self, batch: Batch, total_weight: Tensor, share: float = 1.0) -> Loss:
        sums, tokens, router = sums_of(self.model, batch, self.router.chunk, recompute=self.recompute)
        known = self.known[documents(self.packer, batch)].to(sums.device)
        lengths = tokens if self.options.normalise else torch.ones_like(tokens)
        rewards = self.options.beta * ((sums - known) / lengths).view(-1, TOGETHER)  # pairs 2: better, worse
        margins = rewards[:, 0] - rewards[:, 1]  # pairs
        own = -(sums / tokens).view(-1, TOGETHER)[:, 0]  # pairs
        losses = -F.logsigmoid(margins) + self.options.nll * own
        routed = self.router.balance * router.balance + self.router.z * router.z
        n_pairs = self.total(batch).to(sums.device)
        with torch.no_grad():
            metrics = {
                "accuracy": (margins > 0).float().sum(),
                "margin": margins.sum(),
                "better": rewards[:, 0].sum(),
                "worse": rewards[:, 1].sum(),
            }
        return Loss(
            total=losses.sum() / total_weight + routed * share,
            nll=losses.detach().sum() / n_pairs.clamp(min=1.0),
            balance=router.balance.detach(),
            weight=n_pairs,
            load=router.load.detach(),
            metrics={name: value.detach() for name, value in metrics.items()},
        )


def sums_of(model: Llama, batch: Batch, chunk: int, *, recompute: bool = False) -> tuple[Tensor, Tensor, RouterLosses]:
    """Returns of each document of a batch, row after row, the log-probability of its learnt tokens together and their
    number, float32 [n] each, and what the router costs."""
    states, routes = forward.hidden(model, batch, recompute=recompute)
    learnt = batch.weights.flatten().nonzero().squeeze(1)  # R
    known = forward.log_probs(model, states[learnt], batch.targets.flatten()[learnt], chunk)  # R
    firsts = torch.tensor([0, *(TOGETHER * len(row) for row in batch.pieces)]).cumsum(0).to(learnt.device)  # B+1
    owners = firsts[learnt // batch.ids.shape[1]] + batch.documents.flatten()[learnt]  # R
    n = int(firsts[-1])
    sums = known.new_zeros(n).index_add(0, owners, known)
    tokens = known.new_zeros(n).index_add(0, owners, torch.ones_like(known))
    return sums, tokens, forward.router_losses(routes, batch)


def documents(packer: Packer, batch: Batch) -> list[int]:
    """Returns the store's numbers of a batch's documents, row after row."""
    return [packer.document_of(row, d) for row in batch.pieces for d in range(TOGETHER * len(row))]


def reference(bench: Workbench, feed: PackedFeed) -> NDArray[np.float32]:
    """Returns what the model gives each document now, which is what the base does; a run that goes on reads its file.

    Documents that a filter dropped have 0. Raises WeightsError for a damaged file; one of another base is made anew.
    """
    file = bench.run / REFERENCE
    of = {"data": feed.digest, "base": bench.fingerprint, "dtype": bench.recipe.compute.dtype}
    known = _read(file, of)
    if known is None:
        known = measured(bench.model, feed.packer, bench.recipe.loss.chunk, bench.device, bench.say)
        _write(file, known, of)
    return known


@torch.no_grad()
def measured(
    model: Llama, packer: Packer, chunk: int, device: torch.device | str, say: Progress
) -> NDArray[np.float32]:
    """Returns the log-probability of each document's learnt tokens, float32 [n]; 0 of those that are not packed."""
    known = np.zeros(packer.store.n_documents, dtype=np.float32)
    for number, batch in enumerate(packer.once()):
        sums, _, _ = sums_of(model, batch.to(device), chunk)
        known[documents(packer, batch)] = sums.cpu().numpy()
        say(f"reference: batch {number + 1}")
    return known


def _write(file: Path, known: NDArray[np.float32], of: dict[str, str]) -> None:
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as content:
        np.savez(content, known=known, facts=json.dumps(of | {"hash": _hash(known)}))
    partial.replace(file)


def _read(file: Path, of: dict[str, str]) -> NDArray[np.float32] | None:
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as content:
            known: NDArray[np.float32] = content["known"]
            facts = json.loads(str(content["facts"]))
        is_whole = facts.pop("hash") == _hash(known)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise WeightsError(f"{file}: is damaged ({error}); remove it") from error
    if not is_whole:
        raise WeightsError(f"{file}: is damaged (its numbers have another hash); remove it")
    return known if facts == of else None


def _hash(known: NDArray[np.float32]) -> str:
    return hashlib.sha256(known.tobytes()).hexdigest()
