"""What a runner asks and what a model answers, as values, and what a model must be able to do.

In: prompts of `task`. Out: replies as texts, whatever was asked, so that recorded ones can be judged like fresh ones.
The models are `local` (the engine of this process) and `remote` (a server). Not here: what replies are worth.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from puna.eval.task import Prompt, Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt, how often it is answered, and how. `key` is the asker's own; `seed` fixes random answers."""

    key: str
    prompt: Prompt
    n: int
    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One response. `details` is for a reader: why it ended, log-likelihoods, a limit that cut it.

    `refusal` says why there is none, such as a prompt longer than the context; then `text` is empty and not judged.
    """

    text: str
    details: Mapping[str, Any] = field(default_factory=dict)
    refusal: str = ""


class Model(Reader, Protocol):
    """Whoever answers. `identity` is what makes its answers its own: files, numbers, address."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values; answers of models with equal identities may be mixed in one run."""

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, tuple[Reply, ...]]]:
        """Yields each question with its n replies, in any order. Takes questions as it has room for them."""
