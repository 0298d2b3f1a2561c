"""Models that say what they are told, to drive a runner: a `Model` beside the engine's and a server's."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from puna.eval.ask import Question, Reply


class Parrot:
    """Answers with `say(key)`, in the order of the questions or backwards; stops with an error after `n` of them."""

    name = "parrot"
    identity: Mapping[str, Any] = {"feathers": "green"}
    context_len = None

    def __init__(self, say: Callable[[str], str], *, n: int | None = None, backwards: bool = False) -> None:
        self._say = say
        self._n = n
        self._backwards = backwards
        self.asked: list[Question] = []

    def count(self, text: str) -> int | None:
        return None

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, tuple[Reply, ...]]]:
        listed = list(questions)
        for place, question in enumerate(reversed(listed) if self._backwards else listed):
            if place == self._n:
                raise KeyboardInterrupt
            self.asked.append(question)
            yield question, tuple(Reply(text=self._say(question.key)) for _ in range(question.n))
