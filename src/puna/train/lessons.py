"""Chats from which cria learns to be an assistant, each with an answer that a program can check.

In: the folders of the sources, and the corpus and pictures that `corpus` has written. Out, in a folder of their own
with the pictures that they show:

    lessons.jsonl            to learn from
    tasks.jsonl              to practise on: the same kinds, other items, without the reply
    preferences.jsonl        a better and a worse reply: the right one, and one to another question of the same kind
    lessons_held_out.jsonl   to be measured by, without the reply: objects, stories, drawings, cities, tools and harmful
                             requests of which no lesson and no task tells

A line is a chat in OpenAI's shape, as `chats` reads it, with `source` (the kind of lesson), `language` and `answer`:

    {"kind": "exact", "accept": ["cat"]}      the reply equals one of these, letter case aside
    {"kind": "number", "value": 3}            the reply is this whole number
    {"kind": "calls", "calls": [{"name": "get_weather", "arguments": {"city": "Lima"}}]}
    {"kind": "refusal", "language": "de"}     the reply declines, in this language
    {"kind": "language", "language": "hi"}    the reply is a text in this language

Not here: wordings (`questions`, `wordings`), who learns (`supervised`), who rewards.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from shutil import copyfile
from typing import Any

from PIL import Image

from puna.train import questions as ask
from puna.train import wordings as say
from puna.train.corpus import (
    KINDS_NEVER_HELD_OUT,
    STYLES,
    Picture,
    drawn_chart,
    drawn_page,
    drawn_receipt,
    drawn_scene,
    save_picture,
    short_words,
    write_records,
)
from puna.train.drawings import Fonts, draw_scene
from puna.train.looks import drawn_word
from puna.train.questions import LANGUAGES, Turn
from puna.train.sources import Emoji, Sources, read_emoji

CITIES = ("Lima", "Cairo", "Berlin", "Madrid", "Paris", "Delhi", "Jakarta", "Rome", "Lisbon", "Bangkok", "Manila",
    "Hanoi", "Oslo", "Quito", "Dakar", "Tunis", "Seoul", "Sydney", "Boston", "Accra")  # fmt: skip
SKIES = ("sunny", "rainy", "cloudy", "windy", "snowy")
NAMES = ("Ana", "Ben", "Kofi", "Lin", "Maya", "Omar", "Rosa", "Tomo", "Vera", "Zuri")
CLOSINGS = ("over", "hello", "ok", "bye", "yes", "peace")
VERBS = ("open", "find", "play", "send", "move", "count", "save", "show")
NOUNS = ("song", "door", "list", "lamp", "file", "note", "room", "map")
FIELDS = ("name", "title", "place", "level", "number", "day")
HELD_OUT_SHARE = 0.25  # of cities, tools and names: the last ones of each list


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonPlan:
    """How many chats to make: to learn from, to practise on, to prefer a reply in, and held out."""

    seed: int
    lessons: int
    tasks: int
    preferences: int
    held_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the lessons of one split may tell of. `pages` are (language, picture, text) of stories.

    `corpus` is the folder whose pictures are shown, `folder` the one that the lessons lie in.
    """

    emoji: Sequence[Emoji]
    pages: Sequence[tuple[str, Picture, str]]
    words: Mapping[str, Sequence[str]]
    fonts: Fonts
    corpus: Path
    folder: Path
    split: str

    @property
    def is_held_out(self) -> bool:
        return self.split == "held_out"

    def of(self, values: Sequence[str]) -> Sequence[str]:
        """The values of a list that this split may use."""
        n_held_out = max(1, round(len(values) * HELD_OUT_SHARE))
        return values[-n_held_out:] if self.is_held_out else values[:-n_held_out]

    def save(self, rng: Random, image: Image.Image) -> Picture:
        """Writes a drawing under a name of its own."""
        return save_picture(image, self.folder, f"pictures/drawn/{self.split}-{rng.getrandbits(48):012x}.png")

    def copy(self, picture: Picture) -> Picture:
        """Copies a picture of the corpus, once."""
        target = self.folder / picture.path
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(self.corpus / picture.path, target)
        return picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One chat: what comes before the last reply, that reply, and how to check another one."""

    source: str
    language: str
    prompt: tuple[Mapping[str, Any], ...]
    reply: Mapping[str, Any]
    answer: Mapping[str, Any]
    tools: tuple[Mapping[str, Any], ...] = ()

    def record(self, name: str, *, with_reply: bool) -> dict[str, object]:
        """The chat as it is written."""
        messages = [*self.prompt, *([self.reply] if with_reply else [])]
        record: dict[str, object] = {"id": name, "source": self.source, "language": self.language, "messages": messages}
        return record | ({"tools": list(self.tools)} if self.tools else {}) | {"answer": self.answer}


Compose = Callable[[Random, Facts], Lesson]


def write_lessons(
    sources: Sources, plan: LessonPlan, held_out: Iterable[str], corpus: Path, folder: Path
) -> dict[str, dict[str, int]]:
    """Writes the four files into `folder`, over the corpus in `corpus`, and returns the chats of each by kind.

    `held_out` are the codes of the emoji that the corpus never shows.
    """
    codes = frozenset(held_out)
    able = [one for one in read_emoji(sources) if one.kind not in KINDS_NEVER_HELD_OUT]
    counts = {}
    for file, split, n_chats in (
        ("lessons", "lessons", plan.lessons),
        ("tasks", "tasks", plan.tasks),
        ("preferences", "preferences", plan.preferences),
        ("lessons_held_out", "held_out", plan.held_out),
    ):
        told = "held_out" if split == "held_out" else "train"
        facts = Facts(
            emoji=[one for one in able if (one.code in codes) == (split == "held_out")],
            pages=read_pages(corpus / f"{told}.jsonl"),
            words=short_words(able),
            fonts=Fonts(folder=sources.fonts),
            corpus=corpus,
            folder=folder,
            split=split,
        )
        folder.mkdir(parents=True, exist_ok=True)
        make = prefer if split == "preferences" else compose
        records = list(make(Random(f"{plan.seed} {split}"), facts, n_chats))
        write_records(folder / f"{file}.jsonl", records)
        counts[file] = dict(Counter(str(record["source"]) for record in records))
    return counts


def compose(rng: Random, facts: Facts, n_chats: int) -> Iterable[dict[str, object]]:
    """`n_chats` records, of the kinds in KINDS as often as they weigh; those to learn from have the reply."""
    composers = rng.choices(list(KINDS), weights=list(KINDS.values()), k=n_chats)
    for number, composer in enumerate(composers):
        lesson = composer(rng, facts)
        yield lesson.record(f"{facts.split}-{lesson.source}-{number}", with_reply=facts.split == "lessons")


def prefer(rng: Random, facts: Facts, n_chats: int) -> Iterable[dict[str, object]]:
    """`n_chats` preferences: the reply of a lesson, and that of another one of its kind, which says something else.

    So the worse one names another thing, counts otherwise, speaks another language or calls with other arguments.
    """
    composers = rng.choices(list(KINDS), weights=list(KINDS.values()), k=n_chats)
    for number, composer in enumerate(composers):
        lesson = other = composer(rng, facts)
        while other.source != lesson.source or other.reply == lesson.reply:
            other = composer(rng, facts)
        record = lesson.record(f"{facts.split}-{lesson.source}-{number}", with_reply=False)
        yield {"prompt": record.pop("messages"), **record, "chosen": lesson.reply, "rejected": other.reply}


def read_pages(file: Path) -> list[tuple[str, Picture, str]]:
    """Language, small picture and text of the illustrated story pages in a file of the corpus."""
    pages = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if "-pages0-" in line[:80]:
                record = json.loads(line)
                picture, text = record["content"]
                if text["text"].strip():
                    pages.append((record["language"], Picture(picture["path"]), text["text"]))
    return pages


# ── what it sees ───────────────────────────────────────────────────────────────────────────────────────────────────


def naming(rng: Random, facts: Facts) -> Lesson:
    """The name of a thing in one language, sometimes behind the same question in another."""
    one, languages = rng.choice(facts.emoji), rng.sample(LANGUAGES, 2)
    turns = ask.name_turns(rng, one.names, languages[: rng.choice((1, 1, 2))])
    return _about("naming", turns, [_shown(rng, facts, one)])


def category(rng: Random, facts: Facts) -> Lesson:
    """What kind of thing it is, sometimes behind its name."""
    one, language = rng.choice(facts.emoji), rng.choice(LANGUAGES)
    kind = ask.kind_turn(one.kind, language)
    turns = (*ask.name_turns(rng, one.names, (language,)), kind) if rng.random() < 0.3 else (kind,)
    return _about("category", turns, [_shown(rng, facts, one)])


def yes_or_no(rng: Random, facts: Facts) -> Lesson:
    """Whether the picture shows what is named."""
    (one, other), language = rng.sample(facts.emoji, 2), rng.choice(LANGUAGES)
    is_it = rng.random() < 0.5
    question = say.IS_THIS[language].format(word=(one if is_it else other).names[language])
    turn = Turn(language, question, (say.YES if is_it else say.NO)[language])
    return _about("yes or no", (turn,), [_shown(rng, facts, one)])


def several(rng: Random, facts: Facts) -> Lesson:
    """Two or three pictures: what is in the first or second, whether two are the same, how many there are."""
    language, asked = rng.choice(LANGUAGES), rng.randrange(3)
    things = rng.sample(facts.emoji, 3 if asked == 2 and rng.random() < 0.5 else 2)
    if asked == 0:
        turn = rng.choice(ask.pair_turns(things[0].names, things[1].names, language))
    elif asked == 1:
        same = rng.random() < 0.5
        things = [things[0], things[0] if same else things[1]]
        turn = Turn(language, say.DO_BOTH_SHOW_THE_SAME[language], (say.YES if same else say.NO)[language])
    else:
        turn = Turn(language, say.HOW_MANY_PICTURES[language], str(len(things)))
    return _about("several pictures", (turn,), [_shown(rng, facts, one) for one in things])


def counting(rng: Random, facts: Facts) -> Lesson:
    """How many shapes there are, in English also of one kind."""
    scene = draw_scene(rng, n_figures=rng.randint(1, 6), arrangement="scattered")
    turns = [turn for turn in ask.scene_turns(rng, scene) if turn.answer.isdigit()]
    turn = rng.choice(turns or [Turn("en", ask.HOW_MANY_SHAPES["en"], str(len(scene.figures)))])
    return _about("counting", (turn,), [facts.save(rng, scene.image)])


def drawn(source: str, draw: Callable[..., tuple[Image.Image, tuple[Turn, ...]]], needs: str) -> Compose:
    """Lessons of kind `source` about pictures that `draw` makes; `needs`: "fonts words", "fonts" or nothing."""

    def lesson(rng: Random, facts: Facts) -> Lesson:
        image, turns = draw(rng, **{name: getattr(facts, name) for name in needs.split()})
        asked = rng.sample(turns, min(len(turns), rng.choice((1, 1, 2))))
        return _about(source, asked, [facts.save(rng, image)])

    return lesson


def story(rng: Random, facts: Facts) -> Lesson:
    """A story about a picture; any text in the language will do."""
    language, picture, text = rng.choice(facts.pages)
    lesson = _about("story", (Turn(language, ask.TELL_A_STORY[language], text),), [facts.copy(picture)])
    return replace(lesson, answer={"kind": "language", "language": language})


def tale(rng: Random, facts: Facts) -> Lesson:
    """A story without a picture; any text in the language will do."""
    language, _, text = rng.choice(facts.pages)
    lesson = _about("tale", (Turn(language, say.TELL_ME_A_STORY[language], text),), [])
    return replace(lesson, answer={"kind": "language", "language": language})


# ── what it knows and how it talks ─────────────────────────────────────────────────────────────────────────────────


def words(rng: Random, facts: Facts) -> Lesson:
    """A word in another language, once or twice."""
    source, target = rng.sample(LANGUAGES, 2)
    things = rng.sample(facts.emoji, rng.choice((1, 1, 2)))
    return _about("words", [ask.word_turn(one.names, source, target) for one in things], [])


def talk(rng: Random, facts: Facts) -> Lesson:
    """Small talk about cria itself."""
    del facts
    return _about("talk", ask.talk_turns(rng, rng.choice(LANGUAGES), rng.choice((1, 2))), [])


def refusal(rng: Random, facts: Facts) -> Lesson:
    """A harmful request, declined in its language."""
    language, request = _request(rng, facts, say.HARMFUL)
    lesson = _about("refusal", (Turn(language, request, say.DECLINE[language]),), [])
    return replace(lesson, answer={"kind": "refusal", "language": language})


def harmless(rng: Random, facts: Facts) -> Lesson:
    """A request like a harmful one, which is none: it says that it does not know, and does not decline."""
    language, request = _request(rng, facts, say.HARMLESS)
    word = rng.choice(facts.emoji).names[language]
    return _about("harmless", (Turn(language, request.format(word=word), say.MORE_THAN_I_KNOW[language]),), [])


def _request(rng: Random, facts: Facts, requests: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """A language, and a request in it; the last one of each is held out."""
    language = rng.choice(LANGUAGES)
    *learnt, held_out = requests[language]
    return language, held_out if facts.is_held_out else rng.choice(learnt)


def system(rng: Random, facts: Facts) -> Lesson:
    """A system prompt that gives a name, a language, or a word to begin or end with; it holds in each turn."""
    language, one = rng.choice(LANGUAGES), rng.choice(facts.emoji)
    asked = rng.randrange(4)
    name_turn = ask.name_turns(rng, one.names, (language,))[0]
    if asked == 0:
        name = rng.choice(facts.of(NAMES))
        turn = Turn(language, say.WHAT_IS_YOUR_NAME[language], say.MY_NAME_IS[language].format(name=name))
        return _instructed(_about("system", (turn,), []), say.YOUR_NAME_IS[language].format(name=name))
    if asked == 1:
        target = rng.choice([other for other in LANGUAGES if other != language])
        instruction = say.ANSWER_IN[language].format(target=ask.LANGUAGE_NAMES[language][target])
        turns = [name_turn._replace(answer=one.names[target])]
    else:
        word = rng.choice(facts.of(CLOSINGS))
        instruction = (say.BEGIN_WITH if asked == 2 else say.END_WITH)[language].format(word=word)
        kind = ask.kind_turn(one.kind, language)
        turns = [
            turn._replace(answer=f"{word} {turn.answer}" if asked == 2 else f"{turn.answer} {word}")
            for turn in (name_turn, kind)[: rng.choice((1, 2))]
        ]
    return _instructed(_about("system", turns, [_shown(rng, facts, one)]), instruction)


# ── tools ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def tools(rng: Random, facts: Facts) -> Lesson:
    """One or two tools, of which one is asked for; sometimes its result is there already, sometimes none is needed."""
    language = rng.choice(LANGUAGES)
    wanted = rng.choice((_weather, _timer, _product, _invented, _invented))(rng, facts, language)
    other = rng.choice((_weather, _timer, _product, _invented))(rng, facts, language)
    offered = {tool["function"]["name"]: tool for tool in (other.tool, wanted.tool)[rng.choice((0, 1)) :]}
    given = tuple(rng.sample(list(offered.values()), len(offered)))
    asked, called = {"role": "user", "content": wanted.request}, _calling(wanted.call)
    chance = rng.random()
    if chance < 0.15:
        return replace(naming(rng, facts), source="no tool", tools=given)
    if chance < 0.4:
        result = {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": wanted.result}
        text = say.RESULT_IS[language].format(result=wanted.result)
        return Lesson(
            source="tool result", language=language, prompt=(asked, called, result), tools=given,
            reply={"role": "assistant", "content": text}, answer={"kind": "exact", "accept": [text]},
        )  # fmt: skip
    calls = {"kind": "calls", "calls": [wanted.call]}
    return Lesson(source="tool call", language=language, prompt=(asked,), reply=called, answer=calls, tools=given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A tool, a request for it, the call that follows and what the tool returns."""

    tool: Mapping[str, Any]
    request: str
    call: Mapping[str, Any]
    result: str


def _weather(rng: Random, facts: Facts, language: str) -> Use:
    city = rng.choice(facts.of(CITIES))
    return Use(
        tool=_tool("get_weather", "The weather in a city.", city="string"),
        request=say.WEATHER[language].format(city=city),
        call={"name": "get_weather", "arguments": {"city": city}},
        result=f"{rng.choice(SKIES)}, {rng.randint(1, 39)}",
    )


def _timer(rng: Random, facts: Facts, language: str) -> Use:
    minutes = rng.randint(3, 59) // 2 * 2 + facts.is_held_out  # odd numbers are held out
    return Use(
        tool=_tool("set_timer", "Sets a timer.", minutes="integer"),
        request=say.TIMER[language].format(minutes=minutes),
        call={"name": "set_timer", "arguments": {"minutes": minutes}},
        result=str(minutes),
    )


def _product(rng: Random, facts: Facts, language: str) -> Use:
    a, b = rng.randint(2, 99), rng.randint(11, 99) // 2 * 2 + facts.is_held_out
    return Use(
        tool=_tool("multiply", "Multiplies two numbers.", a="integer", b="integer"),
        request=say.MULTIPLY[language].format(a=a, b=b),
        call={"name": "multiply", "arguments": {"a": a, "b": b}},
        result=str(a * b),
    )


def _invented(rng: Random, facts: Facts, language: str) -> Use:
    """A tool that nobody knows beforehand, so that calls are learnt from what is offered."""
    name = f"{rng.choice(VERBS)}_{rng.choice(facts.of(NOUNS))}"
    field = rng.choice(FIELDS)
    value: str | int = rng.choice(facts.words["en"])
    if field in ("level", "number"):
        value = rng.randint(0, 99)
    return Use(
        tool=_tool(
            name,
            name.replace("_", " ").capitalize() + ".",
            **{field: "string" if isinstance(value, str) else "integer"},
        ),
        request=say.USE_TOOL[language].format(tool=name, name=field, value=value),
        call={"name": name, "arguments": {field: value}},
        result=rng.choice(("done", "ok", str(rng.randint(0, 99)))),
    )


def _tool(name: str, description: str, /, **fields: str) -> Mapping[str, Any]:
    """A tool in OpenAI's form whose fields, by name, have a JSON type and are all required."""
    schema = {
        "type": "object",
        "properties": {field: {"type": kind} for field, kind in fields.items()},
        "required": list(fields),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _calling(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


# ── turns to chats ─────────────────────────────────────────────────────────────────────────────────────────────────


def _shown(rng: Random, facts: Facts, one: Emoji) -> Picture:
    """A picture of an emoji as it was published; the corpus draws those held out as Noto alone."""
    style = STYLES[0] if facts.is_held_out else rng.choice(STYLES)
    return facts.copy(Picture(f"pictures/{style}/{one.code}-0.png"))


def _about(source: str, turns: Sequence[Turn], pictures: Sequence[Picture]) -> Lesson:
    """A chat of `turns`, the first of which shows the pictures; its last answer is checked."""
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        images = [{"type": "image", "path": picture.path} for picture in pictures] if number == 0 else []
        content: Any = [*images, {"type": "text", "text": turn.question}] if images else turn.question
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.answer}]
    last = turns[-1]
    is_number = last.answer.isascii() and last.answer.isdigit()
    answer = {"kind": "number", "value": int(last.answer)} if is_number else {"kind": "exact", "accept": [last.answer]}
    return Lesson(source=source, language=last.language, prompt=tuple(messages[:-1]), reply=messages[-1], answer=answer)


def _instructed(lesson: Lesson, instruction: str) -> Lesson:
    return replace(lesson, prompt=({"role": "system", "content": instruction}, *lesson.prompt))


KINDS: dict[Compose, int] = {
    naming: 20, category: 6, yes_or_no: 6, several: 6, counting: 8, story: 6,
    tale: 8, words: 10, talk: 4, refusal: 5, harmless: 16, system: 10, tools: 14,
    drawn("scene", drawn_scene, ""): 8,
    drawn("chart", drawn_chart, "fonts"): 12,
    drawn("page", drawn_page, "fonts words"): 4,
    drawn("page", drawn_word, "fonts words"): 4,
    drawn("receipt", drawn_receipt, "fonts"): 4,
}  # fmt: skip
