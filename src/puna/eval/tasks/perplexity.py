"""How probable real texts are: bits per byte, which any two models can be compared by, and perplexity per token.

Each text is read from its beginning; one longer than the model's context window by window, of which only the last
reaches back, as in lm-evaluation-harness. Values are of all texts together, not means over texts. Texts come from the
folder `texts`, plain files or JSON lines with a field "text", or else from WikiText-2, by article.

Perplexity depends on the vocabulary: compare models of one tokenizer only. lm-eval's `wikitext` mends the spaces that
WikiText has around signs before it reads; here a text is read as it is, and the bytes are those of what was read.
Source: Merity et al. 2016; Gao et al. 2020 (The Pile), section 3.1 (bits per byte); lm-evaluation-harness `wikitext`.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.eval.metrics import Estimate, ratio
from puna.eval.task import Hub, Item, Judged, Likelihood, NoDataError, Passage, Score, Source, Task, read

FOLDER = "texts"
WIKITEXT = Source(
    folder=FOLDER,
    file="*.jsonl",
    hub=Hub(ids=("EleutherAI/wikitext_document_level",), configs=("wikitext-2-raw-v1",), split="test", revision=None),
)


def items(data: Path | None) -> Iterator[Item]:
    """Yields the texts that are not empty; the id is the file's name, or the place among all lines."""
    plain = [] if data is None else [*(data / FOLDER).glob("*.txt"), *data.glob("*.txt")]
    for path in sorted(plain):
        yield Item(id=path.name, row={"text": path.read_text("utf-8")})
    try:
        rows = read(WIKITEXT, data)
    except NoDataError:
        if plain:
            return
        raise
    for number, row in enumerate(rows):
        text = str(row.get("text") or row.get("page") or "")
        if text.strip():
            yield Item(id=str(number), row={"text": text})


def passage(item: Item) -> Passage:
    """Returns the text, to be read in windows as long as the model's context."""
    return Passage(text=item.row["text"])


def bits(item: Item, response: str) -> Score:
    """Returns the bits that a byte of the text costs."""
    likelihood = Likelihood.read(response)
    if likelihood is None:
        return _unread()
    value = -likelihood.logprob / math.log(2) / n_bytes(item)
    return Score(value=value, answer=f"{value:.4f}", reason="")


def per_token(item: Item, response: str) -> Score:
    """Returns the perplexity of the text's tokens."""
    likelihood = Likelihood.read(response)
    if likelihood is None or not likelihood.n_tokens:
        return _unread()
    value = math.exp(-likelihood.logprob / likelihood.n_tokens)
    return Score(value=value, answer=f"{value:.4f}", reason="")


def n_bytes(item: Item) -> int:
    """Returns the length of an item's text in UTF-8."""
    return len(item.row["text"].encode())


def all_bits(judged: Sequence[Judged]) -> Estimate:
    """Returns bits per byte of all texts together."""
    return ratio(
        [-likelihood.logprob / math.log(2) for likelihood in _likelihoods(judged)],
        [n_bytes(each.item) for each in judged],
    )


def all_tokens(judged: Sequence[Judged]) -> Estimate:
    """Returns the perplexity of all tokens together; its error is that of the mean surprise, times the perplexity."""
    found = _likelihoods(judged)
    mean = ratio([-each.logprob for each in found], [each.n_tokens for each in found])
    value = math.exp(mean.value)
    return Estimate(value=value, stderr=None if mean.stderr is None else value * mean.stderr, n=mean.n)


def _likelihoods(judged: Sequence[Judged]) -> list[Likelihood]:
    found = [Likelihood.read(each.responses[0]) for each in judged]
    return [each for each in found if each is not None]


def _unread() -> Score:
    return Score(value=None, answer=None, reason="the response holds no log-likelihood")


BITS_PER_BYTE = Task(
    name="bits_per_byte",
    items=items,
    prompt=passage,
    score=bits,
    gold=lambda item: Likelihood(0.0, 1).write(),  # of a model that is certain of it
    metric="bits per byte",
    shots=0,
    max_new_tokens=1,
    chance=8.0,  # all bytes equally probable
    summary=all_bits,
    unit="bits per byte",
    best="low",
)
PERPLEXITY = Task(
    name="perplexity",
    items=items,
    prompt=passage,
    score=per_token,
    gold=lambda item: Likelihood(0.0, 1).write(),
    metric="perplexity per token",
    shots=0,
    max_new_tokens=1,
    chance=0.0,  # nobody guesses
    summary=all_tokens,
    unit="perplexity",
    best="low",
)
