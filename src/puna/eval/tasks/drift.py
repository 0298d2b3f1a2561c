"""How far a model has drifted from another of the same vocabulary, such as a quantised one from the unquantised.

    puna eval MODEL --quantize int4 --reference MODEL --task drift,drift_agreement,drift_perplexity --data FOLDER

Both read the texts of `perplexity`. `drift` is the mean divergence of the reference's next-token distribution from the
model's, in nats: it can only grow with an error. `drift_agreement` is the share of places where both hold the same
token for the most probable. `drift_perplexity` is the text's perplexity under the model over that under the reference:
1 for no drift, and it may be less, since an error can be lucky. `quant.drift` computes the same, for makers of formats.
Source: llama.cpp `tools/perplexity` (the three measures); Kullback and Leibler 1951.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from puna.eval.metrics import Estimate, ratio
from puna.eval.task import Compare, Divergence, Item, Judged, Score, Task
from puna.eval.tasks.perplexity import items

WINDOW = 512  # tokens that are read together, as in the published figures of others


def texts(item: Item) -> Compare:
    """Returns the text, for both models to read."""
    return Compare(text=item.row["text"], window=WINDOW)


def divergence(item: Item, response: str) -> Score:
    """Returns the mean divergence over the text's tokens, in nats."""
    found = Divergence.read(response)
    return _unread() if found is None else Score(value=found.divergence, answer=f"{found.divergence:.6f}", reason="")


def agreement(item: Item, response: str) -> Score:
    """Returns the share of the text's tokens where both models hold the same one for the most probable."""
    found = Divergence.read(response)
    return _unread() if found is None else Score(value=found.agreement, answer=f"{found.agreement:.4f}", reason="")


def perplexity(item: Item, response: str) -> Score:
    """Returns the text's perplexity under the model over that under the reference."""
    found = Divergence.read(response)
    if found is None:
        return _unread()
    value = math.exp(found.excess)
    return Score(value=value, answer=f"{value:.5f}", reason="")


def _mean(judged: Sequence[Judged], field: str) -> Estimate:
    """Returns the mean over all tokens of all texts together."""
    read = (Divergence.read(each.responses[0]) for each in judged)
    found = [each for each in read if each is not None]
    return ratio([getattr(each, field) * each.n_tokens for each in found], [each.n_tokens for each in found])


def _ratio_of_perplexities(judged: Sequence[Judged]) -> Estimate:
    mean = _mean(judged, "excess")
    value = math.exp(mean.value)
    return Estimate(value=value, stderr=None if mean.stderr is None else value * mean.stderr, n=mean.n)


def _unread() -> Score:
    return Score(value=None, answer=None, reason="the response holds no divergence")


def _task(
    name: str,
    metric: str,
    score: Callable[[Item, str], Score],
    summary: Callable[[Sequence[Judged]], Estimate],
    unit: str,
    best: Literal["high", "low"],
) -> Task:
    return Task(
        name=name,
        items=items,
        prompt=texts,
        score=score,
        gold=lambda item: Divergence(0.0, 1.0, 0.0, 1).write(),  # of the reference itself
        metric=metric,
        shots=0,
        max_new_tokens=1,
        chance=0.0,  # nobody guesses
        summary=summary,
        unit=unit,
        best=best,
    )


DRIFT = (
    _task("drift", "mean divergence", divergence, lambda judged: _mean(judged, "divergence"), "nats", "low"),
    _task(
        "drift_agreement", "same first choice", agreement, lambda judged: _mean(judged, "agreement"), "share", "high"
    ),
    _task("drift_perplexity", "perplexity over the reference's", perplexity, _ratio_of_perplexities, "ratio", "low"),
)
