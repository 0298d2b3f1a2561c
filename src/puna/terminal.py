"""A conversation in a terminal: lines typed or files dropped in, answers streamed out, a few commands between.

In: an assistant, a function that reads a line, a screen that shows text. Out: text on that screen, a transcript on
request.
Not here: arguments and exit codes (`cli`). Works with plain text; `rich`, where it is installed, only dims what is
not said by the model. Control characters in answers are shown, not obeyed: a model's text cannot steer the terminal.
"""

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote, urlparse

from PIL import Image

from puna.chat import Assistant, Options, Piece
from puna.errors import PromptError, PunaError
from puna.guard.guarded import Guarded
from puna.prompt.message import ImagePart, Message, Part, TextPart, open_image

HELP = '''\
/help           shows this list
/system TEXT    sets the system message; without a text, removes it
/image PATH     adds a picture to your next message; so does dropping a file into the window
/reset          forgets the conversation, but not the system message
/save PATH      writes the conversation: .jsonl with one message a line, or .json
/exit           leaves; so does Ctrl-D
Ctrl-C stops an answer. A message of several lines begins and ends with """.'''

QUOTES = '"""'

_CONTROL = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_SHELL_WORD = re.compile(r"""(?<!\S)(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+(?!\S)""")
_WORD = re.compile(r"\S+")
_COMMAND = re.compile(r"/\w+")


class Screen:
    """Where a conversation is shown. `console` is rich's, or None for plain text."""

    def __init__(self, out: TextIO, console: Any = None) -> None:
        self._out = out
        self._console = console

    @classmethod
    def on(cls, out: TextIO) -> "Screen":
        """Returns a screen that dims notes if rich is installed and `out` can show it."""
        try:
            from rich.console import Console
        except ImportError:
            return cls(out)
        return cls(out, Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True))

    def say(self, text: str) -> None:
        """Shows a piece of an answer at once."""
        self._out.write(text.translate(_CONTROL))
        self._out.flush()

    def note(self, text: str, style: str = "dim") -> None:
        """Shows a line that is not part of an answer."""
        if self._console is None:
            print(text.translate(_CONTROL), file=self._out, flush=True)
        else:
            self._console.print(text.translate(_CONTROL), style=style)


class Conversation:
    """What was said so far, and the pictures that wait for the next message."""

    def __init__(
        self,
        assistant: Assistant | Guarded,
        screen: Screen,
        *,
        system: str | None = None,
        images: Sequence[Image.Image] = (),
        options: Options | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.messages: list[Message] = []
        self.system = system
        self.images = list(images)
        self._assistant = assistant
        self._screen = screen
        self._options: Options = {} if options is None else options
        self._clock = clock
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: screen.note(HELP),
            "/system": self._set_system,
            "/image": self._add_image,
            "/reset": self._reset,
            "/save": self._save,
        }

    def take(self, line: str) -> None:
        """Obeys a command or answers a message. Raises PunaError for what cannot be done; nothing has changed then."""
        name, _, argument = line.strip().partition(" ")
        if name in self._commands:
            self._commands[name](argument.strip())
            return
        text, pictures = dropped(line)
        if not pictures and _COMMAND.fullmatch(name):
            raise PromptError(f"{name} is no command: /help lists them")
        for picture in pictures:
            self._attach(picture)
        if text:
            self._answer(text)

    def _answer(self, text: str) -> None:
        """Streams the answer to a message, and remembers both, also where Ctrl-C cut the answer short.

        A message without an answer is forgotten: a silent turn would teach the model to be silent. So is one that
        protections stopped: it would be stopped again with every message that follows.
        """
        content: list[Part] = [ImagePart(image) for image in self.images]
        question = Message("user", (*content, TextPart(text)))
        begin = self._clock()
        pieces = self._pieces([*self._system_message(), *self.messages, question])
        self.images = []
        said, times, finish = self._show(pieces)
        self._screen.say("\n")
        if finish == "content_filter" and isinstance(self._assistant, Guarded):
            self._screen.note(self._assistant.message, style="red")
        self._screen.note(_summary(begin, times, finish))
        if said and finish != "content_filter":
            self.messages += [question, Message("assistant", (TextPart(said),))]

    def _pieces(self, messages: Sequence[Message]) -> Iterator[Piece]:
        if isinstance(self._assistant, Guarded):
            return self._assistant.stream(messages, **self._options)
        return self._assistant.stream(self._assistant.prompt(messages), **self._options)

    def _show(self, pieces: Iterator[Piece]) -> tuple[str, list[float], str]:
        """Returns the text shown, when each token came, and why it ended."""
        said, times, finish = "", [], "stopped"
        try:
            for piece in pieces:
                times.append(self._clock())
                said += piece.text
                self._screen.say(piece.text)
                finish = piece.finish or finish
        except KeyboardInterrupt:
            pass  # the answer ends here; the program goes on
        return said, times, finish

    def _system_message(self) -> list[Message]:
        return [] if self.system is None else [Message("system", (TextPart(self.system),))]

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self._screen.note("system message set" if text else "system message removed")

    def _add_image(self, path: str) -> None:
        if not path:
            raise PromptError("/image needs a path, such as /image cat.png")
        self._attach(open_image(os.path.expanduser(_unquoted(path)), where="/image"))

    def _attach(self, image: Image.Image) -> None:
        if self._assistant.config.vision is None:
            raise PromptError("this model reads text only: leave pictures out, or load a model with a vision tower")
        self.images.append(image)
        self._screen.note(f"picture of {image.width} x {image.height} pixels goes with your next message")

    def _reset(self, _: str) -> None:
        self.messages, self.images = [], []
        self._screen.note("the conversation begins anew")

    def _save(self, path: str) -> None:
        documents = [message.to_dict() for message in (*self._system_message(), *self.messages)]
        save(documents, Path(os.path.expanduser(_unquoted(path))))
        self._screen.note(f"{len(documents)} messages written to {path}")


def converse(conversation: Conversation, screen: Screen, read: Callable[[str], str] = input) -> None:
    """Runs a conversation until /exit or the end of input. `read` returns the next line, given what to ask with."""
    while True:
        try:
            line = _read_message(read)
        except EOFError:
            return
        except KeyboardInterrupt:
            screen.note("\n/exit or Ctrl-D leaves")
            continue
        if line.strip() in ("/exit", "/quit"):
            return
        try:
            conversation.take(line)
        except PunaError as error:
            screen.note(str(error), style="red")
        except KeyboardInterrupt:
            screen.note("\nstopped before the answer began")


def dropped(line: str) -> tuple[str, list[Image.Image]]:
    """Returns a line without the pictures whose paths are in it, and these pictures.

    Terminals write a dropped file as its path: bare, quoted, with backslashes before blanks, or as a file:// address.
    Only the path of a file that exists and is a picture counts; anything else stays text.
    """
    whole = _picture(line.strip())
    if whole is not None:
        return "", [whole]
    kept, pictures, start = [], [], 0
    while (word := _WORD.search(line, start)) is not None:
        quoted = _SHELL_WORD.match(line, word.start())
        picture = None if quoted is None else _picture(_unquoted(quoted[0]))
        end = word.end() if picture is None or quoted is None else quoted.end()
        if picture is None:
            kept.append(line[start:end])
        else:
            kept.append(line[start : word.start()])
            pictures.append(picture)
        start = end
    if not pictures:
        return line.strip(), []
    return re.sub(" {2,}", " ", "".join([*kept, line[start:]])).strip(), pictures


def save(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes messages as .jsonl, one a line, or .json, one list. Raises PromptError rather than overwrite a file."""
    if path.suffix not in (".json", ".jsonl"):
        raise PromptError(f"/save: {str(path)!r} must end in .json or .jsonl")
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    else:
        text = json.dumps(list(documents), ensure_ascii=False, indent=2) + "\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise PromptError(f"/save: {path} is there already; choose another name") from error
    except (OSError, ValueError) as error:
        raise PromptError(f"/save: cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _picture(path: str) -> Image.Image | None:
    """Returns the picture at `path`, or None where there is none."""
    try:
        file = Path(os.path.expanduser(path))
        return open_image(file) if file.is_file() else None
    except (OSError, ValueError, PromptError):
        return None


def _unquoted(word: str) -> str:
    """Returns the path that a terminal wrote as `word`."""
    try:
        word = " ".join(shlex.split(word)) if any(mark in word for mark in "'\"\\") else word
    except ValueError:
        return word  # an apostrophe, not a quotation
    return unquote(urlparse(word).path) if word.startswith("file://") else word


def _read_message(read: Callable[[str], str]) -> str:
    """Returns one line, or all lines between one that begins and one that ends with three quotes."""
    line = read("\n> ")
    if not line.startswith(QUOTES):
        return line
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].endswith(QUOTES):
        lines.append(read("  "))
    return "\n".join(lines).removesuffix(QUOTES)


def _summary(begin: float, times: Sequence[float], finish: str) -> str:
    """Returns how many tokens came, how fast after the first, and why they ended if the model did not end them."""
    parts = [f"{len(times)} token{'' if len(times) == 1 else 's'}"]
    if len(times) > 1 and times[-1] > times[0]:
        parts.append(f"{(len(times) - 1) / (times[-1] - times[0]):.1f} tokens/s")
    if times:
        parts.append(f"first after {times[0] - begin:.2f} s")
    ends = {"length": "cut at the length limit", "stopped": "stopped"}
    return "[" + ", ".join(parts + ([ends[finish]] if finish in ends else [])) + "]"
