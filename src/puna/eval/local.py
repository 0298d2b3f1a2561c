"""A model of this process that answers questions: many at once in one engine, which reads shared beginnings once.

In: questions. Out: replies. Answers at temperature 0 do not depend on what runs beside them, random ones on their seed
only. The log-likelihood of a continuation comes from the engine too: where continuations are single tokens they are
looked up among the most probable ones of one step, otherwise the engine is held to their ids and reports what it
expected of each. Passages are read window by window, by the model alone.
Not here: items, scores, files, and where the model comes from.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from puna.chat import Assistant, Options
from puna.engine.request import TokenLogprobs
from puna.errors import CapacityError, ConfigError, PromptError
from puna.eval.ask import Question, Reply
from puna.eval.task import Chat, Choice, Compare, Completion, Divergence, Likelihood, Passage
from puna.prompt.message import open_image
from puna.prompt.render import Prompt

LOOKED_AT = 4096  # of the most probable tokens, among which single-token continuations are looked up
SAMPLES_AT_ONCE = 32  # of one question
LOGITS_BYTES = 2**31  # of one window of a passage, float32
ROWS_AT_ONCE = 256  # of logits, when two models are compared


class LocalModel:
    """An assistant that answers up to `batch` questions at once. `reference` is what `Compare` compares it with.

    `identity` is what makes its answers its own, as JSON values. Nobody else may use the assistant meanwhile.
    """

    def __init__(
        self,
        assistant: Assistant,
        *,
        name: str = "",
        identity: Mapping[str, Any] | None = None,
        batch: int = 64,
        reference: Assistant | None = None,
    ) -> None:
        self.name = name
        self.identity: Mapping[str, Any] = dict(identity or {})
        self._assistant = assistant
        self._batch = batch
        self._reference = reference

    @property
    def context_len(self) -> int | None:
        return self._assistant.config.text.context_len

    def count(self, text: str) -> int | None:
        return len(self._assistant.tokenizer.encode(text))

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, tuple[Reply, ...]]]:
        """Yields each question with its replies as they are ready."""
        engine = _Desk(self._assistant)
        rest = iter(questions)
        try:
            while True:
                while engine.n_open < self._batch and (question := next(rest, None)) is not None:
                    if (replies := engine.begin(question, self._work(question))) is not None:
                        yield question, replies
                if not engine.n_open:
                    return
                yield from engine.step()
        finally:
            engine.close()

    # How each kind of question is worked on ---------------------------------------------------------------------------

    def _work(self, question: Question) -> "Work":
        match question.prompt:
            case Completion(text=text, stops=stops, images=images):
                prompt = self._assistant.text_prompt(text, [open_image(image) for image in images])
                return (yield from self._generate(question, prompt, stops))
            case Chat(messages=messages, tools=tools):
                return (yield from self._generate(question, self._assistant.prompt(messages, tools), ()))
            case Choice() as choice:
                return (yield from self._choose(choice))
            case Passage() as passage:
                return (self._read(passage),)
            case Compare() as texts:
                return (self._compare(texts),)

    def _generate(self, question: Question, prompt: Prompt, stops: Sequence[str]) -> "Work":
        """Answers of at most the wanted length, or of what the context leaves for them."""
        room = self._assistant.config.text.context_len - len(prompt.ids)
        limit = max(1, min(question.max_new_tokens, room))
        replies: list[Reply] = []
        while len(replies) < question.n:  # as many at once as the engine takes; sample i has the seed seed + i
            options = Options(
                temperature=question.temperature,
                top_p=1.0,
                seed=question.seed + len(replies),
                n=min(question.n - len(replies), SAMPLES_AT_ONCE),
                max_new_tokens=limit,
                stop=stops,
            )
            (samples,) = yield [Asked(prompt, options)]
            for sample in samples:
                details = {"finish": sample.finish, "n_tokens": sample.n_tokens}
                if sample.finish == "length" and limit < question.max_new_tokens:
                    details["cut_at"] = limit
                replies.append(Reply(text="".join(sample.texts), details=details))
        return tuple(replies)

    def _choose(self, choice: Choice) -> "Work":
        """The label of the most probable continuation; of equally probable ones the first."""
        pairs = self._continuations(choice)
        found: dict[int, float] = {}
        (before, _), *others = pairs
        if all(own == before for own, _ in others) and all(len(ids) == 1 for _, ids in pairs):
            n = min(LOOKED_AT, self._assistant.tokenizer.vocab_size)
            options = Options(temperature=0.0, max_new_tokens=1, logprobs=n)
            ((sample,),) = yield [Asked(Prompt(before, None), options)]
            likely = dict(sample.logprobs[0].top)
            found = {i: likely[ids[0]] for i, (_, ids) in enumerate(pairs) if ids[0] in likely}
        missing = [i for i in range(len(pairs)) if i not in found]
        samples = yield [_held_to(*pairs[i]) for i in missing]
        for i, (sample,) in zip(missing, samples, strict=True):
            assert sample.n_tokens == len(pairs[i][1]), "held to the continuation's ids"
            found[i] = sum(each.chosen for each in sample.logprobs)
        logprobs = [found[i] for i in range(len(pairs))]
        best = logprobs.index(max(logprobs))
        return (Reply(text=choice.labels[best], details={"logprobs": logprobs}),)

    def _continuations(self, choice: Choice) -> list[tuple[list[int], list[int]]]:
        """Returns the ids of the text and of each continuation, parted where the text's own ids end to be theirs.

        So a token across the border belongs to the continuation, as space at the end of the text does. Source:
        lm-evaluation-harness 0.4.13, `_encode_pair`, which takes the length of the text's ids instead; the same where
        no token crosses.
        """
        bos, encode = self._assistant.tokenizer.bos_id, self._assistant.tokenizer.encode
        ids = encode(choice.text.rstrip())
        pairs = []
        for continuation in choice.continuations:
            whole, n = encode(choice.text + continuation), len(ids)
            if whole[:n] != ids:
                n = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), min(n, len(whole)))
            pairs.append(([bos, *whole[:n]], whole[n:]))
        return pairs

    def _read(self, passage: Passage) -> Reply:
        """The likelihood of a passage. Behind pictures there is one window, since a second would not see them."""
        pictures = [open_image(image) for image in passage.images]
        bos, ids = self._assistant.tokenizer.bos_id, self._assistant.tokenizer.encode(passage.text)
        window = min(passage.window or self._window(), self._window())
        if pictures:
            prompt = self._assistant.text_prompt(passage.text, pictures)
            logprob = self._logprob(prompt, len(ids))
        else:
            pieces = rolling_windows(ids, bos, window)
            logprob = sum(self._logprob(Prompt(piece, None), n) for piece, n in pieces)
        return Reply(text=Likelihood(logprob, len(ids)).write(), details={"window": window})

    def _logprob(self, prompt: Prompt, n: int) -> float:
        """Returns what the last `n` ids of a prompt cost, in nats; the very last one is predicted and not read."""
        if n == 0:
            return 0.0
        logits = self._assistant.logits(prompt.ids[:-1], prompt.tiles)[-n:]  # n V
        following = torch.tensor(prompt.ids[-n:], device=logits.device)[:, None]
        rows = zip(torch.split(logits, ROWS_AT_ONCE), torch.split(following, ROWS_AT_ONCE), strict=True)
        return sum(float(own.log_softmax(-1).gather(1, ids).double().sum()) for own, ids in rows)

    def _window(self) -> int:
        """Returns how many tokens one window may predict: what the context holds, and memory for its logits."""
        text = self._assistant.config.text
        return min(text.context_len, max(512, LOGITS_BYTES // (4 * text.vocab_size)))

    def _compare(self, texts: Compare) -> Reply:
        """How far this model is from the reference, mean over all predicted tokens."""
        if self._reference is None:
            raise ConfigError("reference: this task compares with another model; name it with --reference MODEL")
        bos, ids = self._assistant.tokenizer.bos_id, self._assistant.tokenizer.encode(texts.text)
        if self._reference.tokenizer.encode(texts.text) != ids:
            raise ConfigError("reference: it has another vocabulary; take a model of the same")
        window = min(texts.window, self._window())
        sums = torch.zeros(3, dtype=torch.float64)
        for piece, n in rolling_windows(ids, bos, window):
            ours, theirs = (each.logits(piece[:-1])[-n:].cpu() for each in (self._assistant, self._reference))
            sums += _divergence(theirs, ours, torch.tensor(piece[-n:]))
        divergence, agreement, excess = (sums / max(len(ids), 1)).tolist()
        return Reply(text=Divergence(divergence, agreement, excess, len(ids)).write(), details={"window": window})


def rolling_windows(ids: Sequence[int], first: int, window: int) -> Iterator[tuple[list[int], int]]:
    """Yields what is read, and how many of its last ids are predicted by it: each of `ids` once.

    A window holds `window` ids and the one before them, `first` before the text; the last reaches back.
    """
    known = [first, *ids]
    for start in range(0, len(ids), window):
        end = min(start + window, len(ids))
        yield known[max(0, end - window) : end + 1], end - start


def _divergence(reference: Tensor, model: Tensor, following: Tensor) -> Tensor:
    """reference and model [T V], following int64 [T]: the ids that come. Returns the sums over T, float64 [3]:
    the divergence in nats, equal first choices, and the nats that `following` costs the model more.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for theirs, ours, ids in zip(*(torch.split(x, ROWS_AT_ONCE) for x in (reference, model, following)), strict=True):
        p, q = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)  # r V
        sums[0] += (p.exp() * (p - q)).sum()
        sums[1] += (p.argmax(-1) == q.argmax(-1)).sum()
        sums[2] += (p - q).gather(1, ids[:, None]).sum()
    return sums


# Requests that belong to questions --------------------------------------------------------------------------------


class Asked(NamedTuple):
    """One request to the engine."""

    prompt: Prompt
    options: Options


@dataclass(slots=True)
class Sample:
    """What came back of one sample of a request."""

    texts: list[str] = field(default_factory=list)
    n_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: str | None = None


Samples = list[Sample]
Work = Generator[list[Asked], list[Samples], tuple[Reply, ...]]
"""Work on one question: yields requests, is sent the samples of each, returns the replies."""


def _held_to(before: list[int], ids: list[int]) -> Asked:
    """Returns a request for exactly `ids`; its log-probabilities are the model's own, as if nothing held it."""
    grammar = "start: " + " ".join(f"<[{id_}]>" for id_ in ids)
    options = Options(temperature=0.0, max_new_tokens=len(ids), logprobs=0, grammar=grammar)
    return Asked(Prompt(before, None), options)


@dataclass(slots=True, eq=False)
class _Open:
    """A question being worked on: the numbers of its present requests, and how many of their samples still run."""

    question: Question
    work: Work
    numbers: list[int] = field(default_factory=list)
    n_running: int = 0


class _Desk:
    """Questions in progress on one session."""

    def __init__(self, assistant: Assistant) -> None:
        self._session = assistant.session()
        self._open: set[_Open] = set()
        self._owners: dict[int, _Open] = {}  # by request
        self._samples: dict[int, Samples] = {}

    @property
    def n_open(self) -> int:
        return len(self._open)

    def begin(self, question: Question, work: Work) -> tuple[Reply, ...] | None:
        """Starts work. Returns the replies if that already ends it."""
        each = _Open(question, work)
        self._open.add(each)
        return self._go_on(each, None)

    def step(self) -> list[tuple[Question, tuple[Reply, ...]]]:
        """Runs the model once. Returns the questions that this finished."""
        finished = []
        for number, piece in self._session.step():
            sample, owner = self._samples[number][piece.sample], self._owners[number]
            sample.texts.append(piece.text)
            sample.n_tokens += piece.token is not None
            sample.logprobs += [piece.logprobs] if piece.logprobs is not None else []
            if piece.finish is not None:
                sample.finish = piece.finish
                owner.n_running -= 1
                if owner.n_running == 0 and (replies := self._go_on(owner, self._collect(owner))) is not None:
                    finished.append((owner.question, replies))
        return finished

    def close(self) -> None:
        self._session.close()

    def _collect(self, owner: _Open) -> list[Samples]:
        for number in owner.numbers:
            del self._owners[number]
        return [self._samples.pop(number) for number in owner.numbers]

    def _go_on(self, owner: _Open, samples: list[Samples] | None) -> tuple[Reply, ...] | None:
        """Lets work go on until it waits for the engine, or ends. What the model cannot read is a refusal."""
        try:
            while True:
                asked = next(owner.work) if samples is None else owner.work.send(samples)
                if asked:
                    self._ask(owner, asked)
                    return None
                samples = []
        except StopIteration as end:
            replies: tuple[Reply, ...] = end.value
        except (PromptError, CapacityError) as error:
            replies = (Reply(text="", refusal=str(error)),)
        self._open.discard(owner)
        return replies

    def _ask(self, owner: _Open, asked: Sequence[Asked]) -> None:
        owner.numbers = []
        try:
            for prompt, options in asked:
                number = self._session.begin(prompt, **options)
                owner.numbers.append(number)
                self._owners[number] = owner
                self._samples[number] = [Sample() for _ in range(options.get("n", 1))]
        except (PromptError, CapacityError):
            for number in owner.numbers:
                self._session.end(number)
                del self._owners[number], self._samples[number]
            raise
        owner.n_running = sum(len(self._samples[number]) for number in owner.numbers)
