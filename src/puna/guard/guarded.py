"""An assistant behind its protections: the same calls, and what the policy stops is not said.

In: messages or a text, options as for `Assistant`. Out: messages, text, pieces. What people wrote is judged while the
model reads it; results of tools are cleaned before it does; each answer goes through a gate. An answer that is stopped
ends with finish "content_filter", its work with it, and the policy's message says so in words. For one thread at a
time, as a `Session`; a server has its own way (`serve/guarding`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Unpack

from PIL import Image

from puna.chat import Answer, Assistant, ChatOptions, Options, Piece, Response, gather
from puna.config import LlamaConfig
from puna.errors import PromptError
from puna.guard import policy as policies
from puna.guard.gate import Gate
from puna.guard.pipeline import Pipeline, make
from puna.guard.ruling import Ruling
from puna.prompt.message import ImagePart, Message, TextPart, Tool
from puna.prompt.render import Prompt

STOPPED: Final = "content_filter"


class Guarded:
    """An assistant and a pipeline. `system` begins every conversation that has no system message of its own."""

    def __init__(self, assistant: Assistant, pipeline: Pipeline, *, system: str | None = None) -> None:
        self.assistant = assistant
        self.pipeline = pipeline
        self.last: Ruling | None = None
        self._system = system

    @property
    def config(self) -> LlamaConfig:
        return self.assistant.config

    @property
    def drafts(self) -> tuple[int, int]:
        """As of the assistant."""
        return self.assistant.drafts

    @property
    def message(self) -> str:
        """What stands in for what was stopped."""
        return self.pipeline.policy.message

    def told(self, answer: Answer) -> dict[str, Any]:
        """Returns what to tell about an answer that was stopped, for JSON; nothing about others."""
        if answer.finish != STOPPED or self.last is None:
            return {}
        return {"stopped": self.last.to_dict() | {"message": self.message}}

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> Message | list[Message]:
        """Does what `Assistant.chat` does. An answer that was stopped ends with the policy's message."""
        answers = self.respond(messages, tools, **options).answers
        replies = [
            Message("assistant", (TextPart(self._ended(answer.text)),)) if answer.finish == STOPPED else answer.message
            for answer in answers
        ]
        return replies if options.get("n", 1) > 1 else replies[0]

    def stream_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> Iterator[str]:
        """Does what `Assistant.stream_chat` does. An answer that was stopped ends with the policy's message."""
        return self._texts(self.stream(messages, tools, **options), options)

    def complete(self, text: str, images: Sequence[Image.Image] = (), **options: Unpack[Options]) -> str | list[str]:
        """Does what `Assistant.complete` does. A text that was stopped ends with the policy's message."""
        answers = self.extend(text, images, **options).answers
        texts = [self._ended(answer.text) if answer.finish == STOPPED else answer.text for answer in answers]
        return texts if options.get("n", 1) > 1 else texts[0]

    def stream_complete(
        self, text: str, images: Sequence[Image.Image] = (), **options: Unpack[Options]
    ) -> Iterator[str]:
        """Does what `Assistant.stream_complete` does. A text that was stopped ends with the policy's message."""
        prompt = self.assistant.text_prompt(text, images)
        return self._texts(self._pieces(prompt, options, _asked(text, images)), options)

    def respond(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> Response:
        """Does what `Assistant.respond` does; what was stopped is in no text."""
        known = [tool if isinstance(tool, Tool) else Tool.from_dict(tool) for tool in tools]
        read = self.prepare(messages)
        prompt, others = self.assistant.prepare(read, known, **options)
        return gather(self._pieces(prompt, others, read), len(prompt.ids), options.get("n", 1), known)

    def extend(self, text: str, images: Sequence[Image.Image] = (), **options: Unpack[Options]) -> Response:
        """Does what `Assistant.extend` does; what was stopped is in no text."""
        prompt = self.assistant.text_prompt(text, images)
        pieces = self._pieces(prompt, options, _asked(text, images))
        return gather(pieces, len(prompt.ids), options.get("n", 1))

    def stream(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        **options: Unpack[ChatOptions],
    ) -> Iterator[Piece]:
        """Returns the pieces of all n answers as they may be shown. Raises PromptError or CapacityError at once."""
        read = self.prepare(messages)
        prompt, others = self.assistant.prepare(read, tools, **options)
        return self._pieces(prompt, others, read)

    def prepare(self, messages: Sequence[Message | Mapping[str, Any]]) -> list[Message]:
        """Returns what the model is given: with a system message, and with the results of tools cleaned and marked."""
        read = [
            each if isinstance(each, Message) else Message.from_dict(each, where=f"messages[{i}]")
            for i, each in enumerate(messages)
        ]
        return list(self.pipeline.clean(with_system(read, self._system)).messages)

    def _pieces(self, prompt: Prompt, options: Options, messages: Sequence[Message]) -> Iterator[Piece]:
        session = self.assistant.session()
        number = session.begin(prompt, **options)
        verdict = self.pipeline.begin(messages)

        def pieces() -> Iterator[Piece]:
            gates = {sample: Gate(self.pipeline, messages) for sample in range(options.get("n", 1))}
            with closing(session):
                while not session.is_idle:
                    made = session.step()
                    self.last = verdict.result()
                    if self.last.stops:
                        yield from (Piece(sample, "", None, None, STOPPED) for sample in gates)
                        return
                    for _, piece in made:
                        gate = gates[piece.sample]
                        yield from gate.push(piece)
                        if gate.stop is not None:
                            self.last = gate.stop
                            session.end(number, piece.sample)

        return pieces()

    def _texts(self, pieces: Iterator[Piece], options: Options) -> Iterator[str]:
        if options.get("n", 1) != 1:
            raise PromptError(f"n is {options['n']}: a stream of text shows one answer; use `stream` for several")

        def texts() -> Iterator[str]:
            said = ""
            for piece in pieces:
                said += piece.text
                if piece.text:
                    yield piece.text
                if piece.finish == STOPPED:
                    yield self._ended(said).removeprefix(said)

        return texts()

    def _ended(self, text: str) -> str:
        return f"{text}\n\n{self.message}" if text.strip() else self.message


def protect(assistant: Assistant, policy: str | Path = "chatbot", *, system: str | None = None) -> Guarded:
    """Returns an assistant behind the protections of a policy, a preset or a file. Raises ConfigError, WeightsError."""
    return Guarded(assistant, make(policies.load(policy), assistant), system=system)


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Returns the messages behind a system message, unless they begin with one or there is none to begin with."""
    if system is None or (messages and messages[0].role == "system"):
        return list(messages)
    return [Message("system", (TextPart(system),)), *messages]


def _asked(text: str, images: Sequence[Image.Image]) -> list[Message]:
    return [Message("user", (*map(ImagePart, images), TextPart(text)))]
