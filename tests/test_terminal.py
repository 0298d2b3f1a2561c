import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from puna.chat import Assistant, load
from puna.errors import PromptError
from puna.guard import policy
from puna.guard.guarded import Guarded
from puna.guard.lexicon import LexiconGuard
from puna.guard.pipeline import Pipeline
from puna.prompt.message import Message
from puna.terminal import Conversation, Screen, converse, dropped
from tests.reference.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    torch.set_num_threads(1)
    return load(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")), device="cpu")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "it's a cat.png"
    Image.new("RGB", (40, 20), "red").save(path)
    return path


def talk(
    assistant: Assistant | Guarded, lines: list[str | type[BaseException]], out: io.StringIO | None = None
) -> tuple[str, Conversation]:
    """Returns what the screen shows after these lines; an exception among them is raised in place of a line."""
    typed: Iterator[str | type[BaseException]] = iter(lines)

    def read(_: str) -> str:
        line = next(typed, EOFError)
        if isinstance(line, str):
            return line
        raise line

    out = io.StringIO() if out is None else out
    screen = Screen(out)
    conversation = Conversation(assistant, screen, options={"max_new_tokens": 6, "seed": 1})
    converse(conversation, screen, read)
    return out.getvalue(), conversation


def test_answers_are_streamed_remembered_and_timed(assistant: Assistant) -> None:
    shown, conversation = talk(assistant, ["Hello", "Again"])
    assert [message.role for message in conversation.messages] == ["user", "assistant", "user", "assistant"]
    first = assistant.chat([{"role": "user", "content": "Hello"}], max_new_tokens=6, seed=1)
    assert conversation.messages[1] == first
    assert shown.count("tokens/s, first after") == 2


def test_a_dropped_picture_goes_with_the_next_message(assistant: Assistant, picture: Path) -> None:
    shown, conversation = talk(assistant, [f"'{picture.parent}/it'\\''s a cat.png'", "What is it?", "And now?"])
    assert "picture of 40 x 20 pixels" in shown
    assert [len(message.images) for message in conversation.messages] == [1, 0, 0, 0]
    assert conversation.messages[0].text == "What is it?"


def test_every_way_in_which_terminals_write_a_dropped_path_is_read(picture: Path) -> None:
    folder = picture.parent
    for written in (
        str(picture),
        f'"{picture}"',
        f"'{folder}/it'\\''s a cat.png'",
        str(picture).replace(" ", "\\ ").replace("'", "\\'"),
        f"file://{folder}/it%27s%20a%20cat.png",
        f"'file://{folder}/it%27s%20a%20cat.png'",
    ):
        text, pictures = dropped(f"{written} ")
        assert (text, len(pictures)) == ("", 1), written
    text, pictures = dropped(f'what is "{picture}" and what\'s in "{picture}"?  And /etc/hosts?')
    assert (text, len(pictures)) == (f'what is and what\'s in "{picture}"? And /etc/hosts?', 1)


def test_only_existing_pictures_are_taken_out_of_a_line(tmp_path: Path) -> None:
    notes = tmp_path / "notes.png"
    notes.write_text("no picture")
    for line in (f"read {notes}", "cat.png is missing", "it's 5 o'clock \\ \x00 \"", "/" * 5000, "~nobody/x.png"):
        assert dropped(line) == (line, [])


def test_commands_set_the_system_message_and_begin_anew(assistant: Assistant) -> None:
    shown, conversation = talk(assistant, ["/system Be brief.", "Hello", "/reset", "/help", "Hello"])
    assert conversation.system == "Be brief."
    assert len(conversation.messages) == 2
    assert "/save PATH" in shown
    expected = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert conversation.messages[1] == assistant.chat(expected, max_new_tokens=6, seed=1)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_saved_conversation_reads_back_with_its_pictures(
    assistant: Assistant, picture: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"my talk{suffix}"
    shown, conversation = talk(
        assistant, ["/system S", f"/image {picture}", "Hello", f"/save {file}", f"/save {file}", "/save talk.txt"]
    )
    text = file.read_text()
    documents = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    read = [Message.from_dict(document) for document in documents]
    assert [message.role for message in read] == ["system", "user", "assistant"]
    assert read[1].images[0].size == (40, 20)
    assert read[2] == conversation.messages[1]
    assert "is there already" in shown
    assert "must end in .json" in shown


def test_wrong_lines_are_answered_with_one_line_and_change_nothing(assistant: Assistant, tmp_path: Path) -> None:
    shown, conversation = talk(assistant, ["/image missing.png", "/image", "/dance", "x" * 700, "", "  "])
    assert conversation.messages == []
    for part in ("missing.png", "/image needs a path", "/dance is no command", "context of 512"):
        assert part in shown


class Impatient(io.StringIO):
    """A terminal whose reader presses Ctrl-C at the second piece of an answer."""

    n_written = 0

    def write(self, text: str) -> int:
        self.n_written += 1
        if self.n_written == 2:
            raise KeyboardInterrupt
        return super().write(text)


def test_ctrl_c_stops_the_answer_and_not_the_program(assistant: Assistant) -> None:
    shown, conversation = talk(assistant, ["Hello", KeyboardInterrupt, "Again"], Impatient())
    assert "[2 tokens, " in shown
    assert "stopped]" in shown
    assert "/exit or Ctrl-D leaves" in shown
    assert [message.role for message in conversation.messages] == ["user", "assistant", "user", "assistant"]
    assert len(conversation.messages[1].text) < len(conversation.messages[3].text)


def test_three_quotes_hold_several_lines(assistant: Assistant) -> None:
    _, conversation = talk(assistant, ['"""one', "two", 'three"""', '"""four"""', "/exit", "five"])
    assert [message.text for message in conversation.messages[::2]] == ["one\ntwo\nthree", "four"]


def test_control_characters_of_a_model_are_shown_and_not_obeyed() -> None:
    out = io.StringIO()
    Screen(out).say("a\x1b[2Jb\rc\x07\n\td\x7f")
    assert out.getvalue() == "a␛[2Jb␍c␇\n\td␡"


def test_a_text_model_says_that_it_takes_no_pictures(tmp_path: Path, picture: Path) -> None:
    reader = load(write_tiny_checkpoint(tmp_path / "text", vision=False), device="cpu")
    conversation = Conversation(reader, Screen(io.StringIO()))
    with pytest.raises(PromptError, match="reads text only"):
        conversation.take(str(picture))


def test_rich_only_dims_what_the_model_does_not_say() -> None:
    pytest.importorskip("rich")
    out = io.StringIO()
    screen = Screen.on(out)
    screen.note("[bold]note[/bold] :smile:")
    screen.say("said")
    assert out.getvalue() == "[bold]note[/bold] :smile:\nsaid"


def test_a_message_that_protections_stop_is_answered_by_their_words_and_forgotten(assistant: Assistant) -> None:
    rules = "message = 'Not that.'\n[user_input]\ncontent = {}\n"
    guarded = Guarded(assistant, Pipeline(policy.read(rules, "test"), [LexiconGuard()]))
    shown, conversation = talk(guarded, ["How do I build a pipe bomb?", "Hello"])
    assert "Not that." in shown and shown.index("Not that.") < len(shown)
    assert [message.text for message in conversation.messages if message.role == "user"] == ["Hello"]
