"""What the weights of a run write on the way: continuations of fixed beginnings, answers about held-out pictures.

In: the model as it trains, a recipe's [samples], and the run's folder. Out: lines of `samples.jsonl` there, which the
run's page shows. Nothing that training depends on is changed: the engine reads the weights and draws from seeds of its
own, so a run with samples ends with the bits of one without.
Not here: how tokens are drawn (`rollout`), the page (`watch`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from puna.errors import PunaError
from puna.model.transformer import Llama
from puna.prompt.render import Prompt
from puna.prompt.tokenizer import Tokenizer
from puna.records import write_whole
from puna.train.recipe import Recipe
from puna.train.rollout import Wish, written
from puna.train.store import Encoder, Progress, lines_of

SAMPLES = "samples.jsonl"
SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A line of the file. picture: its file, relative to the held-out documents, "" for a text that goes on; wanted:
    answers that would be right, as far as they are known."""

    step: int
    asked: str
    written: str
    picture: str = ""
    wanted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked each time; `prompt` is how the model reads it."""

    prompt: Prompt
    asked: str
    picture: str = ""
    wanted: tuple[str, ...] = ()


class Samples:
    """The samples of one run. `note` is called with the number of each step that was made."""

    def __init__(self, recipe: Recipe, model: Llama, run: Path, say: Progress) -> None:
        """Raises ConfigError where there is no tokenizer, PromptError for held-out documents that cannot be read."""
        self._table, self._model, self._file, self._say = recipe.samples, model, run / SAMPLES, say
        self._tokenizer = Tokenizer.load(recipe.data.tokenizer)
        self._questions = [*_beginnings(recipe, self._tokenizer), *_about_pictures(recipe, model, self._tokenizer)]

    def note(self, step: int) -> None:
        """Writes samples if they are due. A refusal of the engine is said, and ends no run."""
        if step % self._table.every_steps:
            return
        wish = Wish(n=1, max_new_tokens=self._table.max_tokens, seed=SEED, temperature=self._table.temperature)
        try:
            texts = written(self._model, [each.prompt for each in self._questions], self._tokenizer, wish)
        except PunaError as error:
            self._say(f"no samples at step {step}: {error}")
            return
        new = [
            Sample(step=step, asked=each.asked, written=text, picture=each.picture, wanted=each.wanted)
            for each, text in zip(self._questions, texts, strict=True)
        ]
        lines = [*_earlier(self._file, step), *(json.dumps(asdict(each), ensure_ascii=False) for each in new)]
        write_whole(self._file, "".join(f"{line}\n" for line in lines))


def _earlier(file: Path, step: int) -> list[str]:
    """Returns the lines of the steps before: a run that goes on from a checkpoint writes the others again."""
    if not file.is_file():
        return []
    return [line for line in file.read_text("utf-8").splitlines() if json.loads(line)["step"] < step]


def _beginnings(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[Question]:
    for text in recipe.samples.prompts:
        yield Question(Prompt([tokenizer.bos_id, *tokenizer.encode(text)], None), text)


def _about_pictures(recipe: Recipe, model: Llama, tokenizer: Tokenizer) -> Iterator[Question]:
    """Yields the first held-out conversations that begin with a picture, up to where the first answer begins."""
    vision, held_out = model.config.vision, Path(recipe.data.held_out)
    if vision is None or not recipe.data.held_out or not recipe.samples.pictures:
        return
    encoder = Encoder(tokenizer, vision, held_out.parent)
    documents = (document for _, _, document in lines_of(held_out))
    for document in islice(filter(_shows_picture, documents), recipe.samples.pictures):
        question = document["messages"][0]
        parts = question["content"]
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        answer = document["messages"][1]["content"] if len(document["messages"]) > 1 else ""
        yield Question(
            encoder.asked(question),
            text,
            next(part["path"] for part in parts if part["type"] == "image"),
            tuple(document.get("answer", ())) or tuple(filter(None, (answer,))),
        )


def _shows_picture(document: Mapping[str, object]) -> bool:
    match document:
        case {"messages": [{"role": "user", "content": [*parts]}, *_]}:
            return any(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)
    return False
