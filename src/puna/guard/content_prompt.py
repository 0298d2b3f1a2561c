"""What a content guard reads: the policy, the conversation, and the question whether its last turn is safe.

In: turns, the role under test, categories. Out: the prompt of Llama Guard 4 or 3, token for token as the published
templates write it. Oddities of theirs are kept, since the models were tuned on them: Guard 4 writes a backslash and an
n, twice, after each turn; a blank stands before the end of turn; Guard 3 says "according our safety policy". Not here:
what the model answers (`content_answer`), asking it (`content`).

User text never becomes a special token, as everywhere in `prompt`; published processors do turn the names into ids.

Source: printed renders and outputs of Llama Guard 4 in huggingface/huggingface-llama-recipes, `llama_guard_4.ipynb`;
model cards of Llama Guard 3 (8B, 1B) and 4 in meta-llama/PurpleLlama. That texts are trimmed is read from the template
of Guard 3 (1B); the one of Guard 4 is not public, its renders do not contradict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from PIL import Image

from puna.config import VisionConfig
from puna.errors import PromptError
from puna.guard.hazards import PROMPT_NAMES
from puna.prompt.message import Message
from puna.prompt.render import Prompt, call_text
from puna.prompt.tiles import cut, tile_ids
from puna.prompt.tokenizer import Tokenizer
from puna.prompt.vocab import BEGIN_OF_TEXT, END_OF_TURN, HEADER_END, HEADER_START, IMAGE, special_id

Role = Literal["User", "Agent"]


class Special(NamedTuple):
    """A special token, by name."""

    name: str


Piece = str | Image.Image | Special


class Turn(NamedTuple):
    """What one side said. Turns alternate, and a user begins."""

    role: Role
    text: str
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One published way to ask. The names are those of its special tokens.

    `lead` is what the model writes before its verdict: appended, the next token is the verdict's first.
    """

    name: str
    task: str
    before_turns: str
    after_turn: str
    before_end: str
    after_header: str
    lead: str
    codes: tuple[str, ...]
    max_images: int
    header_start: str = HEADER_START
    header_end: str = HEADER_END
    end_of_turn: str = END_OF_TURN


GUARD4 = Template(
    name="guard4",
    task="according to our safety policy",
    before_turns="\n",
    after_turn="\\n\\n\n\n",
    before_end=" ",
    after_header="",
    lead="\n\n",
    codes=tuple(PROMPT_NAMES),
    max_images=5,
)
GUARD3_8B = Template(
    name="guard3-8b",
    task="according our safety policy",
    before_turns="\n\n",
    after_turn="\n\n",
    before_end="",
    after_header="\n\n",
    lead="",
    codes=tuple(PROMPT_NAMES),
    max_images=0,
    header_start="<|start_header_id|>",
    header_end="<|end_header_id|>",
    end_of_turn="<|eot_id|>",
)
GUARD3_1B = Template(
    name="guard3-1b",
    task="according our safety policy",
    before_turns="\n\n",
    after_turn="\n\n",
    before_end=" ",
    after_header="",
    lead="\n\n",
    codes=tuple(code for code in PROMPT_NAMES if code != "S14"),
    max_images=0,
    header_start="<|start_header_id|>",
    header_end="<|end_header_id|>",
    end_of_turn="<|eot_id|>",
)


def categories_of(template: Template) -> dict[str, str]:
    """Returns the categories that the template names by itself, each as the line says it after the code."""
    return {code: f"{PROMPT_NAMES[code]}." for code in template.codes}


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """Returns the turns of a conversation, the last of which is judged.

    Tools and documents speak to the model as the user does, so their texts are the user's; neighbours of one role are
    one turn. System messages are the operator's and left out, unless one is the last. Calls count as an agent's words.
    Where an agent begins, an empty user turn stands before it, since the guards were tuned on conversations that a
    user begins. Raises PromptError without a message.
    """
    if not messages:
        raise PromptError("messages is empty: give the message that is to be judged, last")
    turns: list[Turn] = []
    for message in (*(each for each in messages[:-1] if each.role != "system"), messages[-1]):
        role: Role = "Agent" if message.role == "assistant" else "User"
        calls = [call_text(message.tool_calls, "pythonic")] if message.tool_calls else []
        text = "\n".join([*filter(None, [message.text.strip()]), *calls])
        if turns and turns[-1].role == role:
            before = turns.pop()
            text = "\n\n".join(filter(None, [before.text, text]))
            turns.append(Turn(role, text, (*before.images, *message.images)))
        else:
            turns.append(Turn(role, text, message.images))
    return turns if turns[0].role == "User" else [Turn("User", ""), *turns]


def pieces(template: Template, turns: Sequence[Turn], categories: Mapping[str, str]) -> list[Piece]:
    """Returns the prompt from its first to its last token, as texts, special tokens and pictures.

    Pictures come before the text of their turn. Raises PromptError unless turns alternate and a user begins.
    """
    if not turns or any(turn.role != ("Agent" if i % 2 else "User") for i, turn in enumerate(turns)):
        raise PromptError("turns: must alternate between User and Agent and begin with User")
    role = turns[-1].role
    listed = "".join(f"{code}: {name}\n" for code, name in categories.items())
    body: list[Piece] = [
        f"\n\nTask: Check if there is unsafe content in '{role}' messages in conversations {template.task} with the "
        f"below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n{listed}<END UNSAFE CONTENT CATEGORIES>\n\n"
        f"<BEGIN CONVERSATION>{template.before_turns}"
    ]
    for turn in turns:
        body += [f"{turn.role}: ", *turn.images, f"{turn.text.strip()}{template.after_turn}"]
    body.append(
        f"<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST {role} message in the above "
        "conversation:\n - First line must read 'safe' or 'unsafe'.\n - If unsafe, a second line must include a "
        f"comma-separated list of violated categories.{template.before_end}"
    )
    start, end = Special(template.header_start), Special(template.header_end)
    user: list[Piece] = [Special(BEGIN_OF_TEXT), start, "user", end]
    return [*user, *body, Special(template.end_of_turn), start, "assistant", end, template.after_header]


def text_of(prompt: Sequence[Piece]) -> str:
    """Returns what a published processor prints of a prompt: names of special tokens, pictures as one token each."""
    return "".join(
        piece if isinstance(piece, str) else piece.name if isinstance(piece, Special) else IMAGE for piece in prompt
    )


def encode(prompt: Sequence[Piece], tokenizer: Tokenizer, vision: VisionConfig | None) -> Prompt:
    """Returns the ids and tiles of a prompt; neighbouring texts are one text.

    Raises PromptError for pictures without a vision tower and for special tokens that the vocabulary lacks.
    """
    ids: list[int] = []
    tiles: list[torch.Tensor] = []
    for is_text, run in groupby(prompt, key=lambda piece: isinstance(piece, str)):
        if is_text:
            ids += tokenizer.encode("".join(str(piece) for piece in run))
            continue
        for piece in run:
            if isinstance(piece, Image.Image):
                if vision is None:
                    raise PromptError("images: this guard has no vision tower; load one that has, or judge text alone")
                picture = cut(piece, tile_size=vision.tile_size, max_tiles=vision.max_tiles)
                ids += tile_ids(picture.grid, vision.tokens_per_tile, tokenizer.special)
                tiles.append(picture.pixels)
            else:
                ids.append(special_id(tokenizer.special, piece.name if isinstance(piece, Special) else piece))
    return Prompt(ids, torch.cat(tiles) if tiles else None)
