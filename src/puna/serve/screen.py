"""What stands between the model and a client: the seam where protections come in.

In: the conversations of one request, then the pieces of their answers as they are made. Out: the pieces that a client
may see. A screen may hold pieces back, change them, and end a sample with finish "content_filter"; the model then stops
working on that sample.
Not here: any protection (`guard`).
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from prometheus_client.registry import Collector

from puna.chat import Piece
from puna.prompt.message import Message

Pieces = list[tuple[int, Piece]]
"""What came at once: pieces, each with the index of its prompt."""

Conversations = Sequence[Sequence[Message]]
"""What each prompt of a request says, the last message being the one that is answered. Chat has one prompt."""


class Screen(Protocol):
    """Watches the answers of one request. Made in the event loop before the model begins; used once."""

    def watch(self, pieces: AsyncIterator[Pieces]) -> AsyncIterator[Pieces]:
        """Returns what may be shown. A Refusal that it raises is the answer, as an event once a stream has begun.

        The model begins with the first piece that is asked for here, so a verdict on the input may be had meanwhile.
        """
        ...

    def results(self, index: int, sample: int) -> dict[str, Any] | None:
        """Returns what was found in a sample that has ended, for the field `content_filter_results` of its choice."""
        ...


class Open:
    """The screen of a server without protections: everything is shown at once."""

    def watch(self, pieces: AsyncIterator[Pieces]) -> AsyncIterator[Pieces]:
        """Returns `pieces`."""
        return pieces

    def results(self, index: int, sample: int) -> None:
        """Returns that nothing was looked for."""


class MakeScreen(Protocol):
    """The protections of a server: makes the screen of each request, and what comes before and beside that."""

    def __call__(self, conversations: Conversations) -> Screen:
        """Returns the screen of one request."""
        ...

    def prepare(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Returns a conversation as the model is to read it. May take time: called in a thread."""
        ...

    @property
    def is_ready(self) -> bool:
        """Says whether requests can pass at all."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Returns which protections stand, for /ready."""
        ...

    def counts(self, prefix: str) -> Collector:
        """Returns what protections count, for /metrics."""
        ...
