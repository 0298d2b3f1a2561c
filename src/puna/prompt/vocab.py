"""The special tokens of Llama 4: 2048 names in the order of their ids, and the few that prompts are built from.

A name is the key everywhere; ids belong to a checkpoint's own vocabulary (200000 + index in the released models,
something else in small ones), so they are always looked up by name through `special_id`. Not here: the byte-pair
tokens, which come from the tokenizer's file.

Source: llama_models 0.3.0, `models/llama4/tokenizer.py` (names, order, counts) and `prompt_format.md` (meaning).
"""

from collections.abc import Mapping

from puna.errors import PromptError

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
HEADER_START = "<|header_start|>"
HEADER_END = "<|header_end|>"
END_OF_MESSAGE = "<|eom|>"
END_OF_TURN = "<|eot|>"
PYTHON_START = "<|python_start|>"
PYTHON_END = "<|python_end|>"
PAD = "<|finetune_right_pad|>"
IMAGE_START = "<|image_start|>"
IMAGE_END = "<|image_end|>"
TILE_X_SEPARATOR = "<|tile_x_separator|>"
TILE_Y_SEPARATOR = "<|tile_y_separator|>"
IMAGE = "<|image|>"
PATCH = "<|patch|>"

STOP_NAMES = (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN)
"""The tokens that end a generation. Source: `stop_tokens` in Meta's tokenizer."""

N_SPECIAL = 2048


def special_id(special: Mapping[str, int], name: str) -> int:
    """Returns the id of the special token `name`. Raises PromptError when this vocabulary does not have it."""
    if name not in special:
        raise PromptError(
            f"special token {name} is not in this vocabulary; load the tokenizer that belongs to the model"
        )
    return special[name]


def _reserved(family: str, start: int, stop: int) -> list[str]:
    return [f"<|{family}reserved_special_token_{i}|>" for i in range(start, stop)]


def _special_names() -> tuple[str, ...]:
    names = [BEGIN_OF_TEXT, END_OF_TEXT, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    names += [HEADER_START, HEADER_END, END_OF_MESSAGE, END_OF_TURN, "<|step|>"]
    names += [*_reserved("text_post_train_", 0, 6), PYTHON_START, PYTHON_END, PAD]
    names += _reserved("text_post_train_", 8, 69)
    names += [IMAGE_START, IMAGE_END, *_reserved("vision_", 0, 2)]
    names += [TILE_X_SEPARATOR, TILE_Y_SEPARATOR, *_reserved("vision_", 2, 6)]
    names += [IMAGE, *_reserved("vision_", 6, 7), PATCH, *_reserved("vision_", 7, 1048)]
    names += [*_reserved("reasoning_", 0, 8), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"]
    return (*names, *_reserved("", 0, N_SPECIAL - len(names)))


SPECIAL_NAMES: tuple[str, ...] = _special_names()
"""All names in the order of their ids. Two text names, 6 and 7, do not exist: Meta's table jumps from 5 to 8."""
