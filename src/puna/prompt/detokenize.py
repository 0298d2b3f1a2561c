"""Ids to text as they are generated, never half a character and never a piece of a stop string.

In: ids as they come. Out: the text that is safe to show now; what was shown, joined, is the text of all ids up to the
first stop string. Not here: stop ids, which end a request in the engine, and tool calls (`parse`).
"""

import codecs
from collections.abc import Sequence

from puna.errors import PromptError
from puna.prompt.tokenizer import Tokenizer


class Detokenizer:
    """The text of one growing reply. `stopped` is the stop string that ended it, or None.

    The stop string that is complete first wins, the longest among those that end at the same character; it is part of
    the text only with `include_stop`. Special tokens show as their names, as in `Tokenizer.decode`, except those that
    end a turn: they are silent. With `show_special` True these show too, with False none does. Bytes that can no longer
    become a character show as U+FFFD.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        show_special: bool | None = None,
    ) -> None:
        """Raises PromptError for an empty stop string, which would end every reply before its first character."""
        if isinstance(stop, str) or "" in stop:
            raise PromptError(f"stop: is {stop!r}; give a list of strings that are not empty")
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._show_special = show_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    @property
    def has_stop(self) -> bool:
        """Whether a stop string may end the reply, so that each id should be pushed as soon as it is there."""
        return bool(self._stop)

    def push(self, *token_ids: int) -> str:
        """Returns the text that became certain with the next ids, "" once stopped. Raises as `Tokenizer.decode`."""
        return "" if self.stopped is not None else self._advance(self._decoded(token_ids))

    def finish(self) -> str:
        """Returns what was held back: the beginning of a stop string that never came, and an unfinished character."""
        if self.stopped is not None:
            return ""
        shown = self._advance(self._decoder.decode(b"", final=True))
        if self.stopped is None:
            shown, self._held = shown + self._held, ""
        return shown

    def _decoded(self, token_ids: Sequence[int]) -> str:
        """Returns the characters that are complete with these ids, whatever stop strings say."""
        tokenizer, shown, data = self._tokenizer, "", b""
        for token_id in token_ids:
            if not tokenizer.is_special(token_id):
                data += tokenizer.bytes_of(token_id)
            elif self._shows(token_id):
                shown, data = shown + self._decoder.decode(data, final=True) + tokenizer.decode([token_id]), b""
        return shown + self._decoder.decode(data)

    def _advance(self, new: str) -> str:
        """Returns the part of the held and new text that is certain; keeps the rest, or marks the stop."""
        if not self._stop:
            return new
        text = self._held + new
        ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if ends:
            end, _, self.stopped = min(ends)
            self._held = ""
            return text[: end if self._include_stop else end - len(self.stopped)]
        n_held = self._n_uncertain(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def _shows(self, special_id: int) -> bool:
        return special_id not in self._tokenizer.stop_ids if self._show_special is None else self._show_special

    def _n_uncertain(self, text: str) -> int:
        """Returns the length of the longest end of `text` with which some stop string begins."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
