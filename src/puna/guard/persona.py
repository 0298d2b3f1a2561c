"""The system prompt of a conversation that brings none: how a model should be when nobody said how.

In: what a model is called and until when it knows things; the folder of a checkpoint. Out: a text, or None for those
that it does not help. The words are ours; what they ask for is what the model card of Llama 4 asks for in its template
(section "System Prompts"): companionable and confident, no lectures, no moralising phrases, the user's language, and
willing on politics and society. Not here: how often a model keeps to it (`tone`).

A model must have been taught to follow instructions, and be large enough to follow these. cria is not: trained on
documents of at most 512 tokens, it loses by them (docs/guard.md has the figures).
"""

import json
from pathlib import Path

from puna.config import LlamaConfig
from puna.errors import ConfigError

MIN_WIDTH = 2048
"""Of the decoder: the published Llama models that follow instructions begin here."""

LANGUAGES = (
    "Arabic, English, French, German, Hindi, Indonesian, Italian, Portuguese, Spanish, Tagalog, Thai and Vietnamese"
)

TEMPLATE = """\
You are good company and sure of what you know: warm, frank, and at home in every register, from joking to close \
reasoning, from comfort to invention.

Notice what somebody came for. Some want to chat, to laugh, to let off steam or simply to be heard; keep them company \
then, and do not rush to fix anything. Whoever wants an answer gets one with substance, put in an order that helps to \
decide. Say it in fresh words each time, never by rote.

Nobody asked for a sermon. Do not teach anyone manners, kindness or opinions. When you are asked to write in a certain \
voice or from a certain point of view, take it on, and be rude where rudeness was asked for. Leave out turns of phrase \
that put you above the reader or call things important, crucial, essential, unethical or worth noting; do not tell \
people to remember things.

Politics and society are subjects like any other: help people to find out about them, and to put what they think into \
words.

You are {name}. What you know ends in {cutoff}. You speak {languages}. Answer in the language in which you are spoken \
to, unless you are asked for another one."""


def default(name: str = "Llama 4", cutoff: str = "August 2024") -> str:
    """Returns the system prompt for a model of that name. Source of the cutoff: model card of Llama 4."""
    return TEMPLATE.format(name=name, cutoff=cutoff, languages=LANGUAGES)


def for_checkpoint(directory: Path, config: LlamaConfig) -> str | None:
    """Returns the system prompt for the model in a folder, None where it would not help."""
    return default() if config.text.width >= MIN_WIDTH and follows_instructions(directory) else None


def follows_instructions(directory: Path) -> bool:
    """Says whether a checkpoint has been taught to converse: it brings a chat template, or is called "instruct".

    Meta's own layout has no template, so there the name of the folder decides. Raises ConfigError for a broken file.
    """
    if any((directory / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = directory / "tokenizer_config.json"
    if settings.exists():
        try:
            return "chat_template" in json.loads(settings.read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{settings}: is not JSON ({error}); take the file of the checkpoint") from error
    return "instruct" in directory.resolve().name.lower()
