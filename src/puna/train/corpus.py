"""The corpus of cria: what is held out, and composers that turn the facts of the sources into documents.

In: the folders of the sources and a mixture. Out: `train.jsonl`, `held_out.jsonl`, the pictures they name, and counts.
It downloads nothing (scripts/corpus does), knows no formats of the sources (`sources` does), no token ids, no model.

A document is one line of JSON. A plain document has `content`, a list of picture and text parts, all of whose text is
learnt; a chat document has `messages`, of which the assistant's are learnt. Held-out documents also have `set`, and
questions `answer`, the list of answers to accept. All text is NFC and in logical order.
"""

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random

from PIL import Image

from puna.errors import ConfigError
from puna.train import questions as ask
from puna.train.drawings import (
    Arrangement,
    ChartKind,
    Fonts,
    draw_chart,
    draw_page,
    draw_receipt,
    draw_scene,
    flatten_picture,
    vary_picture,
)
from puna.train.questions import LANGUAGES, Turn
from puna.train.sources import (
    Emoji,
    Gloss,
    Sources,
    Story,
    StoryPage,
    read_declaration,
    read_emoji,
    read_glosses,
    read_pratham_stories,
    read_records,
    read_sentence_pairs,
    read_story_pages,
    read_terms,
)

EMOJI_SIZE = 64  # pixels; the size in which the two emoji packages are published
PICTURE_SIZES = (96, 192)  # pixels on the long side of a story picture: one tile, or four tiles and the global one
STYLES = ("noto", "twemoji")  # the drawing styles that are trained on; OpenMoji is held out
STORY_TOKENS = 700  # about as many tokens as one text-only document of a story has
PAGES_TOKENS = 300  # about as many text tokens as one document of pictures and pages has
# Characters that one token of cria's vocabulary stands for, about; only used to decide where to cut a story.
CHARACTERS_PER_TOKEN = {"en": 3.9, "ar": 2.8, "hi": 2.8, "th": 2.2, "vi": 2.8}
CHARACTERS_PER_TOKEN_ELSEWHERE = 3.2
NATIVE_NAMES = {
    "en": "English",
    "ar": "العربية",
    "de": "Deutsch",
    "es": "Español",
    "fr": "Français",
    "hi": "हिन्दी",
    "id": "Indonesia",
    "it": "Italiano",
    "pt": "Português",
    "th": "ไทย",
    "tl": "Tagalog",
    "vi": "Tiếng Việt",
}
KINDS_NEVER_HELD_OUT = ("sign", "time", "flag")  # signs and dials differ too little from each other to be held out
CHART_WORDS = ("cats", "dogs", "cows", "hens", "eggs", "tea", "milk", "rice", "figs", "nuts", "boys", "girls", "cars")
SHOP_WORDS = ("tea", "milk", "bread", "egg", "rice", "apple", "fish", "salt", "soap", "pen", "cake", "juice", "ball")

Draw = Callable[[Random], tuple[Image.Image, tuple[Turn, ...]]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture part of a document; `path` is relative to the folder of the corpus."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One line of the corpus: either `content` or `turns` (with the `pictures` that the first question is about)."""

    id: str
    source: str
    language: str
    content: tuple[Picture | str, ...] = ()
    turns: tuple[Turn, ...] = ()
    pictures: tuple[Picture, ...] = ()
    held_out: str | None = None
    answers: tuple[str, ...] = ()

    def record(self) -> dict[str, object]:
        """The document as it is written: see the docstring of this module."""
        record: dict[str, object] = {"id": self.id, "source": self.source, "language": self.language}
        if self.turns:
            record["messages"] = [message for turn in enumerate(self.turns) for message in self._messages(*turn)]
        else:
            record["content"] = [_part(part) for part in self.content]
        if self.held_out is not None:
            record["set"] = self.held_out
        if self.answers:
            record["answer"] = list(self.answers)
        return record

    @property
    def has_picture(self) -> bool:
        return bool(self.pictures) or any(isinstance(part, Picture) for part in self.content)

    def texts(self) -> Iterator[str]:
        """All text of the document, for a vocabulary to learn from."""
        yield from (part for part in self.content if isinstance(part, str))
        for turn in self.turns:
            yield turn.question
            yield turn.answer

    def _messages(self, number: int, turn: Turn) -> tuple[dict[str, object], dict[str, object]]:
        pictures = self.pictures if number == 0 else ()
        asked = [*map(_part, pictures), _part(turn.question)]
        return {"role": "user", "content": asked}, {"role": "assistant", "content": _normal(turn.answer)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How many documents of each kind to make, and how often each source is told again in another form."""

    seed: int
    held_out_stories: int
    held_out_emoji: int
    held_out_questions: int
    story_text_passes: int
    pratham_text_passes: int
    page_passes: int
    declaration_passes: int
    emoji_variants: int
    flag_variants: int
    emoji_passes: int
    emoji_pairs: int
    word_lists: int
    word_drills: int
    glosses: int
    gloss_questions: int
    scenes: int
    charts: int
    printed_pages: int
    receipts: int
    talks: int
    sums: int


# ── what is held out ───────────────────────────────────────────────────────────────────────────────────────────────


def hold_out_works(
    rng: Random, stories: Sequence[Story], entangled: frozenset[tuple[str, str]], n_works: int
) -> frozenset[tuple[str, str]]:
    """`n_works` pairs of source and work that are not `entangled`; a work is held out in all its languages.

    Three out of four are African Storybook works, of which half exist in more than two languages.
    """
    languages: dict[tuple[str, str], set[str]] = defaultdict(set)
    for story in stories:
        if (story.source, story.work) not in entangled:
            languages[story.source, story.work].add(story.language)
    translated = sorted(work for work in languages if work[0] == "asp" and len(languages[work]) > 2)
    single = sorted(work for work in languages if work[0] == "asp" and len(languages[work]) <= 2)
    pratham = sorted(work for work in languages if work[0] == "pb")
    quarter = n_works // 4
    n_translated = (n_works - quarter + 1) // 2
    chosen = rng.sample(translated, n_translated) + rng.sample(single, n_works - quarter - n_translated)
    return frozenset(chosen + rng.sample(pratham, quarter))


def entangled_works(stories: Iterable[Story], images: Path) -> frozenset[tuple[str, str]]:
    """Works that share a picture, a title or the beginning of a page with another work.

    Some stories exist at several reading levels under several numbers; holding out one of them would hold out nothing.
    """
    users: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for story in stories:
        work = (story.source, story.work)
        users[story.language, story.title.lower()].add(work)
        for page in story.pages:
            users[story.language, page.text[:40].lower()].add(work)
            if page.picture is not None:
                users["picture", sha256((images / page.picture).read_bytes()).hexdigest()].add(work)
    return frozenset(work for works in users.values() if len(works) > 1 for work in works)


def hold_out_emoji(rng: Random, emoji: Sequence[Emoji], n_emoji: int) -> frozenset[str]:
    """Codes of `n_emoji` emoji that no other emoji is composed of and that have an OpenMoji drawing as well."""
    parts = Counter(part for one in emoji for part in set(one.code.split("-")))
    names = Counter(one.names["en"] for one in emoji)
    able = [
        one.code
        for one in emoji
        if one.kind not in KINDS_NEVER_HELD_OUT
        and "-" not in one.code
        and parts[one.code] == 1
        and names[one.names["en"]] == 1
        and "openmoji" in one.files
    ]
    return frozenset(rng.sample(sorted(able), n_emoji))


# ── composers: facts -> documents ──────────────────────────────────────────────────────────────────────────────────


def story_texts(story: Story, number: int) -> Iterator[Document]:
    """The title and the pages of a story as text, cut between pages at about STORY_TOKENS.

    An odd `number` joins the pages by spaces instead of line breaks and leaves the title away, so that a story told
    twice is not the same document twice.
    """
    lines = [page.text for page in story.pages] if number % 2 else [story.title, ""] + [p.text for p in story.pages]
    joint = " " if number % 2 else "\n"
    for piece, text in enumerate(_pieces(lines, joint, STORY_TOKENS, story.language)):
        yield Document(
            id=f"{story.source}-{story.work}-{story.language}-text{number}-{piece}",
            source=story.source,
            language=story.language,
            content=(text,),
        )


def story_chats(rng: Random, story: Story) -> Iterator[Document]:
    """A chat that asks for the story by its title, and one that asks page after page what happens next."""
    name = f"{story.source}-{story.work}-{story.language}"
    make = partial(Document, source=story.source, language=story.language)
    opening = next(_pieces([page.text for page in story.pages], " ", PAGES_TOKENS, story.language))
    question = ask.TELL_A_STORY_CALLED[story.language].format(title=story.title)
    yield make(id=f"{name}-told", turns=(Turn(story.language, question, opening),))
    wording = ask.WHAT_HAPPENS_NEXT[story.language]
    for at in range(rng.randrange(2), len(story.pages) - 1, 4):
        here, after = story.pages[at].text, story.pages[at + 1].text
        yield make(id=f"{name}-next{at}", turns=(Turn(story.language, wording.format(text=here), after),))


def page_documents(story: Story, number: int) -> Iterator[Document]:
    """Each page as picture and text; `number` chooses the form.

    0: small picture, text. 1: large picture, text. 2: consecutive pages, small pictures, up to about PAGES_TOKENS.
    3: a chat that asks for a story about the small picture. A story without pictures gives no documents.
    """
    if all(page.picture is None for page in story.pages):
        return
    name = f"{story.source}-{story.work}-{story.language}-pages{number}"
    make = partial(Document, source=story.source, language=story.language)
    if number == 2:
        for piece, pages in enumerate(_page_groups(story)):
            content: list[Picture | str] = []
            for page in pages:
                content += [*_pictures(page, 96), page.text + "\n"]
            yield make(id=f"{name}-{piece}", content=tuple(content))
        return
    for at, page in enumerate(story.pages):
        pictures = _pictures(page, PICTURE_SIZES[number == 1])
        if not pictures:
            continue
        if number == 3:
            turn = Turn(story.language, ask.TELL_A_STORY[story.language], page.text)
            yield make(id=f"{name}-{at}", turns=(turn,), pictures=pictures)
        else:
            yield make(id=f"{name}-{at}", content=(*pictures, page.text))


def parallel_pages(rng: Random, stories: Sequence[Story]) -> Iterator[Document]:
    """Pages of a work that exists in several languages, to be translated from one language into another.

    Each page of each translation is asked for once, from English where English has it, else from another language.
    """
    works: dict[str, list[Story]] = defaultdict(list)
    for story in stories:
        works[story.work].append(story)
    for work, told in sorted(works.items()):
        for story in told:
            others = [other for other in told if other is not story and len(other.pages) == len(story.pages)]
            if not others:
                continue
            other = next((one for one in others if one.language == "en"), rng.choice(others))
            for at in range(0, len(story.pages), 3):
                turns = [
                    ask.sentence_turn(here.text, there.text, other.language, story.language)
                    for here, there in zip(other.pages[at : at + 3], story.pages[at : at + 3], strict=True)
                    if len(here.text) < 250
                ]
                if turns:
                    name = f"asp-{work}-{other.language}-{story.language}-{at}"
                    yield Document(id=name, source="asp", language=story.language, turns=tuple(turns))


def emoji_documents(rng: Random, one: Emoji, picture: Picture, name: str) -> Document:
    """One picture of an emoji: its name asked in four languages, and often its kind; or its name in all, as a list."""
    if rng.random() < 0.25:
        languages = rng.sample(LANGUAGES, len(LANGUAGES))
        lines = "\n".join(f"{NATIVE_NAMES[language]}: {one.names[language]}" for language in languages)
        return Document(id=name, source="emoji", language="mul", content=(picture, lines))
    others = rng.sample(LANGUAGES[1:], 3)
    languages = ["en", *others] if rng.random() < 0.5 else rng.sample(["en", *others], 4)
    turns = ask.name_turns(rng, one.names, languages)
    if rng.random() < 0.6:
        turns = (*turns, ask.kind_turn(one.kind, languages[-1]))
    return Document(id=name, source="emoji", language=languages[0], turns=turns, pictures=(picture,))


def word_lists(rng: Random, words: Sequence[Mapping[str, str]], n_lists: int) -> Iterator[Document]:
    """Plain documents: one word, all its names in a random order of the languages, five words a document."""
    for number in range(n_lists):
        blocks = []
        for names in rng.sample(words, 5):
            order = rng.sample(LANGUAGES, len(LANGUAGES))
            blocks.append("\n".join(f"{NATIVE_NAMES[language]}: {names[language]}" for language in order))
        yield Document(id=f"cldr-list-{number}", source="cldr", language="mul", content=("\n\n".join(blocks),))


def word_drills(rng: Random, words: Sequence[Mapping[str, str]], n_drills: int) -> Iterator[Document]:
    """Chats of five questions how to say a word in another language, from or into English, or between two others."""
    for number in range(n_drills):
        source, target = ask.drawn_language(rng), ask.drawn_language(rng)
        if source == target:
            target = rng.choice([language for language in LANGUAGES if language != source])
        turns = tuple(ask.word_turn(names, source, target) for names in rng.sample(words, 5))
        yield Document(id=f"cldr-drill-{number}", source="cldr", language=source, turns=turns)


def gloss_documents(rng: Random, glosses: Sequence[Gloss], n_glosses: int, n_questions: int) -> Iterator[Document]:
    """A dictionary, eight words a document, and `n_questions` chats about common words.

    The dictionary has all words with tagged uses, and others that are one word, drawn at random, up to `n_glosses`.
    """
    common = [gloss for gloss in glosses if gloss.n_uses > 0]
    rare = [gloss for gloss in glosses if gloss.n_uses == 0 and " " not in gloss.lemma]
    chosen = common[:n_glosses] + rng.sample(rare, min(len(rare), max(0, n_glosses - len(common))))
    rng.shuffle(chosen)
    for start in range(0, len(chosen), 8):
        lines = [_dictionary_entry(gloss) for gloss in chosen[start : start + 8]]
        yield Document(id=f"wordnet-{start}", source="wordnet", language="en", content=("\n".join(lines),))
    for number in range(n_questions):
        turns = tuple(ask.gloss_turn(rng, gloss.lemma, gloss.part, gloss.senses[0]) for gloss in rng.sample(common, 3))
        yield Document(id=f"wordnet-chat-{number}", source="wordnet", language="en", turns=turns)


def declaration_documents(folder: Path, n_passes: int) -> Iterator[Document]:
    """The Declaration in each language, `n_passes` times, each time cut into longer pieces than the time before."""
    for language in LANGUAGES:
        lines = read_declaration(folder, language).split("\n")
        for number in range(n_passes):
            for piece, text in enumerate(_pieces(lines, "\n", STORY_TOKENS // n_passes * (number + 1), language)):
                name = f"udhr-{language}-{number}-{piece}"
                yield Document(id=name, source="udhr", language=language, content=(text,))


def sentence_documents(rng: Random, pairs: Sequence[tuple[str, str]]) -> Iterator[Document]:
    """Chats of four sentences to translate, each pair once in each direction."""
    for source, target in (("en", "tl"), ("tl", "en")):
        order = rng.sample(pairs, len(pairs))
        for start in range(0, len(order), 4):
            turns = tuple(
                ask.sentence_turn(*(pair if source == "en" else pair[::-1]), source, target)
                for pair in order[start : start + 4]
            )
            yield Document(id=f"tatoeba-{source}-{start}", source="tatoeba", language=source, turns=turns)


def talk_documents(rng: Random, n_talks: int) -> Iterator[Document]:
    """Small talk in all languages; a third of it in English."""
    for number in range(n_talks):
        language = "en" if number % 3 == 0 else LANGUAGES[1 + number % 11]
        turns = ask.talk_turns(rng, language, rng.randint(1, 4))
        yield Document(id=f"talk-{number}", source="chat", language=language, turns=turns)


def sum_documents(rng: Random, n_documents: int) -> Iterator[Document]:
    """Chats of five sums in one language."""
    for number in range(n_documents):
        language = ask.drawn_language(rng)
        turns = tuple(ask.sum_turn(rng, language) for _ in range(5))
        yield Document(id=f"sum-{number}", source="chat", language=language, turns=turns)


def drawn_scene(rng: Random) -> tuple[Image.Image, tuple[Turn, ...]]:
    """A scene and questions about it."""
    arrangement: Arrangement = rng.choice(("row", "row", "column", "scattered"))
    n_figures = rng.randint(1, 6 if arrangement == "scattered" else 4)
    scene = draw_scene(rng, n_figures=n_figures, arrangement=arrangement)
    return scene.image, ask.scene_turns(rng, scene)


def drawn_chart(rng: Random, fonts: Fonts) -> tuple[Image.Image, tuple[Turn, ...]]:
    """A chart and questions about it; one bar chart in five is large and labelled with words."""
    kind: ChartKind = rng.choice(("bar", "bar", "line", "pie"))
    n_labels = rng.randint(2, 5)
    if kind == "bar" and rng.random() < 0.2:
        chart = draw_chart(rng, fonts, kind=kind, labels=rng.sample(CHART_WORDS, min(4, n_labels)), size=192)
    else:
        chart = draw_chart(rng, fonts, kind=kind, labels="ABCDE"[:n_labels])
    return chart.image, ask.chart_turns(rng, chart)


def drawn_page(rng: Random, fonts: Fonts, words: Mapping[str, Sequence[str]]) -> tuple[Image.Image, tuple[Turn, ...]]:
    """A page of one to three short words, or of one number, and what is written on it."""
    language = ask.drawn_language(rng)
    lines = [str(rng.randint(0, 10 ** rng.randint(1, 4) - 1))]
    if rng.random() < 0.75:
        lines = rng.sample(words[language], rng.choice((1, 1, 2, 2, 3)))
    page = draw_page(rng, fonts, lines=lines, language=language)
    return page.image, (ask.page_turn(page, language),)


def drawn_receipt(rng: Random, fonts: Fonts) -> tuple[Image.Image, tuple[Turn, ...]]:
    """A receipt of one to three items and questions about it; one in five is large."""
    items = [(name, rng.randint(1, 9)) for name in rng.sample(SHOP_WORDS, rng.randint(1, 3))]
    receipt = draw_receipt(rng, fonts, items=items, size=192 if rng.random() < 0.2 else 96)
    return receipt.image, ask.receipt_turns(rng, receipt)


# ── the whole corpus ───────────────────────────────────────────────────────────────────────────────────────────────


def write_corpus(sources: Sources, mixture: Mixture, folder: Path) -> dict[str, object]:
    """Writes train.jsonl, held_out.jsonl and pictures/ into `folder` and returns the counts, by source and language.

    The same sources, mixture and library versions give the same files. Training documents are in random order.
    """
    rng = Random(mixture.seed)
    stories = read_story_pages(sources.storybooks / "asp") + read_pratham_stories(sources.storybooks / "pb")
    emoji = read_emoji(sources)
    images = sources.storybooks / "asp" / "images"
    works = hold_out_works(rng, stories, entangled_works(stories, images), mixture.held_out_stories)
    codes = hold_out_emoji(rng, emoji, mixture.held_out_emoji)
    seen = [story for story in stories if (story.source, story.work) not in works]
    unseen = [story for story in stories if (story.source, story.work) in works]
    _write_story_pictures(stories, images, folder)
    documents = [
        *_story_corpus(rng, mixture, seen),
        *_emoji_corpus(rng, mixture, [one for one in emoji if one.code not in codes], folder),
        *_text_corpus(rng, mixture, sources, emoji),
        *_drawn_corpus(rng, mixture, sources, emoji, folder),
    ]
    rng.shuffle(documents)
    held_out = [
        *_held_out_stories(unseen),
        *_held_out_emoji(rng, emoji, codes, folder),
        *_held_out_drawings(Random(f"{mixture.seed} held out"), mixture, sources, emoji, folder),
    ]
    write_records(folder / "train.jsonl", (document.record() for document in documents))
    write_records(folder / "held_out.jsonl", (document.record() for document in held_out))
    return {
        "documents": dict(Counter(document.source for document in documents)),
        "documents_by_language": dict(Counter(document.language for document in documents)),
        "text_characters": dict(_characters(documents)),
        "held_out": dict(Counter(document.held_out for document in held_out)),
        "held_out_works": sorted("-".join(work) for work in works),
        "held_out_emoji": sorted(codes),
        "emoji": len(emoji),
    }


def read_texts(file: Path) -> Iterator[tuple[str, str]]:
    """The language and the whole text of each document of a file that write_corpus wrote."""
    for record in read_records(file):
        parts = list(record.get("content", ()))
        for message in record.get("messages", ()):
            content = message["content"]
            parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
        yield record["language"], "\n".join(part["text"] for part in parts if part["type"] == "text")


def _story_corpus(rng: Random, mixture: Mixture, stories: Sequence[Story]) -> Iterator[Document]:
    for story in stories:
        passes = mixture.story_text_passes if story.source == "asp" else mixture.pratham_text_passes
        for number in range(passes):
            yield from story_texts(story, number)
        yield from story_chats(rng, story)
        for number in range(mixture.page_passes):
            yield from page_documents(story, number)
    yield from parallel_pages(rng, [story for story in stories if story.source == "asp"])


def _emoji_corpus(rng: Random, mixture: Mixture, emoji: Sequence[Emoji], folder: Path) -> Iterator[Document]:
    drawn: list[tuple[Emoji, Picture]] = []
    for one in emoji:
        n_variants = mixture.flag_variants if one.kind == "flag" else mixture.emoji_variants
        for style in STYLES:
            pictures = _write_emoji(rng, one, style, n_variants, folder)
            drawn += [(one, picture) for picture in pictures]
    for number in range(mixture.emoji_passes):
        for one, picture in drawn:
            yield emoji_documents(rng, one, picture, f"emoji-{Path(picture.path).stem}-{one.code}-{number}")
    for number in range(mixture.emoji_pairs):
        (first, left), (second, right) = rng.sample(drawn, 2)
        language = ask.drawn_language(rng)
        yield Document(
            id=f"emoji-pair-{number}",
            source="emoji",
            language=language,
            turns=ask.pair_turns(first.names, second.names, language),
            pictures=(left, right),
        )


def _text_corpus(rng: Random, mixture: Mixture, sources: Sources, emoji: Sequence[Emoji]) -> Iterator[Document]:
    words = [one.names for one in emoji if one.kind not in ("flag", "time")] + read_terms(sources)
    yield from word_lists(rng, words, mixture.word_lists)
    yield from word_drills(rng, words, mixture.word_drills)
    yield from gloss_documents(rng, read_glosses(sources.wordnet), mixture.glosses, mixture.gloss_questions)
    yield from declaration_documents(sources.storybooks / "udhr", mixture.declaration_passes)
    yield from sentence_documents(rng, read_sentence_pairs(sources.storybooks / "tatoeba" / "eng-tgl.tsv"))
    yield from talk_documents(rng, mixture.talks)
    yield from sum_documents(rng, mixture.sums)


def _drawn_corpus(
    rng: Random, mixture: Mixture, sources: Sources, emoji: Sequence[Emoji], folder: Path
) -> Iterator[Document]:
    fonts, words = Fonts(folder=sources.fonts), short_words(emoji)
    makers: tuple[tuple[str, int, Draw], ...] = (
        ("scene", mixture.scenes, drawn_scene),
        ("chart", mixture.charts, partial(drawn_chart, fonts=fonts)),
        ("page", mixture.printed_pages, partial(drawn_page, fonts=fonts, words=words)),
        ("page", mixture.receipts, partial(drawn_receipt, fonts=fonts)),
    )
    for kind, (source, n_drawings, draw) in enumerate(makers):
        for number in range(n_drawings):
            image, turns = draw(rng)
            picture = save_picture(image, folder, f"pictures/{source}/{kind}-{number}.png")
            name = f"{source}-{kind}-{number}"
            yield Document(id=name, source=source, language=turns[0].language, turns=turns, pictures=(picture,))


def _held_out_stories(stories: Sequence[Story]) -> Iterator[Document]:
    for story in stories:
        for document in page_documents(story, 0) if story.source == "asp" else story_texts(story, 0):
            yield Document(
                id=document.id,
                source=document.source,
                language=document.language,
                content=document.content,
                held_out="stories",
            )


def _held_out_emoji(rng: Random, emoji: Sequence[Emoji], codes: frozenset[str], folder: Path) -> Iterator[Document]:
    """Each set asks for the name in all languages: unseen objects, seen ones in an unseen style, seen ones as seen."""
    unseen = [one for one in emoji if one.code in codes]
    able = [
        one
        for one in emoji
        if one.code not in codes and one.kind not in KINDS_NEVER_HELD_OUT and "openmoji" in one.files
    ]
    seen = rng.sample(able, min(len(able), len(unseen)))
    for held_out, style, chosen in (
        ("emoji_object", "noto", unseen),
        ("emoji_style", "openmoji", seen),
        ("emoji_seen", "noto", seen),
    ):
        for one in chosen:
            picture = _write_emoji(rng, one, style, 1, folder)[0]
            for language in LANGUAGES:
                turn = Turn(language, ask.WHAT_IS_THIS[0][language], one.names[language])
                yield _question(f"{held_out}-{one.code}-{language}", "emoji", held_out, turn, picture)


def _held_out_drawings(
    rng: Random, mixture: Mixture, sources: Sources, emoji: Sequence[Emoji], folder: Path
) -> Iterator[Document]:
    fonts, words = Fonts(folder=sources.fonts), short_words(emoji)
    makers: dict[str, tuple[Draw, ...]] = {
        "scene": (drawn_scene,),
        "chart": (partial(drawn_chart, fonts=fonts),),
        "page": (partial(drawn_page, fonts=fonts, words=words), partial(drawn_receipt, fonts=fonts)),
    }
    for held_out, draws in makers.items():
        for number in range(mixture.held_out_questions):
            image, turns = draws[number % len(draws)](rng)
            picture = save_picture(image, folder, f"pictures/held_out/{held_out}-{number}.png")
            yield _question(f"{held_out}-{number}", held_out, held_out, rng.choice(turns), picture)


def _question(name: str, source: str, held_out: str, turn: Turn, picture: Picture) -> Document:
    return Document(
        id=name,
        source=source,
        language=turn.language,
        turns=(turn,),
        pictures=(picture,),
        held_out=held_out,
        answers=(_normal(turn.answer),),
    )


def _write_story_pictures(stories: Sequence[Story], images: Path, folder: Path) -> None:
    names = sorted({page.picture for story in stories for page in story.pages if page.picture is not None})
    for name in names:
        with Image.open(images / name) as opened:
            image = opened.convert("RGB")
        for size in sorted(PICTURE_SIZES, reverse=True):
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
            target = folder / _story_picture(name, size)
            target.parent.mkdir(parents=True, exist_ok=True)
            image.save(target, quality=88)


def _write_emoji(rng: Random, one: Emoji, style: str, n_variants: int, folder: Path) -> list[Picture]:
    """The emoji as published on white paper, and `n_variants` - 1 more with another paper, angle and size."""
    picture = open_drawing(one.files[style])
    written = []
    for number in range(n_variants):
        image = vary_picture(rng, picture, size=EMOJI_SIZE) if number else flatten_picture(picture, size=EMOJI_SIZE)
        written.append(save_picture(image, folder, f"pictures/{style}/{one.code}-{number}.png"))
    return written


def open_drawing(file: Path) -> Image.Image:
    """A PNG file, or an SVG file drawn at four times EMOJI_SIZE (which needs the package cairosvg)."""
    if file.suffix != ".svg":
        with Image.open(file) as opened:
            return opened.convert("RGBA")
    import cairosvg  # here, because only the held-out style needs it

    drawn = cairosvg.svg2png(url=str(file), output_width=4 * EMOJI_SIZE, output_height=4 * EMOJI_SIZE)
    return Image.open(BytesIO(drawn)).convert("RGBA")


def save_picture(image: Image.Image, folder: Path, path: str) -> Picture:
    """Writes a picture to `path` within the folder of the corpus."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / path)
    return Picture(path)


def write_records(file: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Writes one record a line."""
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def _characters(documents: Iterable[Document]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for document in documents:
        counts[document.source] += sum(map(len, document.texts()))
    return counts


def _part(part: Picture | str) -> dict[str, str]:
    if isinstance(part, Picture):
        return {"type": "image", "path": part.path}
    return {"type": "text", "text": _normal(part)}


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _dictionary_entry(gloss: Gloss) -> str:
    entry = f"{gloss.lemma}: " + "; ".join(gloss.senses)
    return entry + "".join(f" “{example}”" for example in gloss.examples[:2])


def short_words(emoji: Sequence[Emoji]) -> dict[str, list[str]]:
    """Words of at most eight characters to print, by language: the single-word emoji names."""
    return {
        language: sorted({one.names[language] for one in emoji if _is_short_word(one.names[language])})
        for language in LANGUAGES
    }


def _is_short_word(name: str) -> bool:
    return 2 <= len(name) <= 8 and all(unicodedata.category(letter)[0] in "LM" for letter in name)


def _pictures(page: StoryPage, size: int) -> tuple[Picture, ...]:
    return () if page.picture is None else (Picture(_story_picture(page.picture, size)),)


def _story_picture(name: str, size: int) -> str:
    return f"pictures/stories/{size}/{Path(name).stem}.jpg"


def _page_groups(story: Story) -> Iterator[list[StoryPage]]:
    group: list[StoryPage] = []
    for page in story.pages:
        if group and _tokens(" ".join(one.text for one in (*group, page)), story.language) > PAGES_TOKENS:
            yield group
            group = []
        group.append(page)
    yield group


def _pieces(lines: Sequence[str], joint: str, n_tokens: int, language: str) -> Iterator[str]:
    """The lines, joined, cut between lines into pieces of about `n_tokens`; one longer line is one piece."""
    piece: list[str] = []
    for line in lines:
        if piece and _tokens(joint.join([*piece, line]), language) > n_tokens:
            yield joint.join(piece)
            piece = []
        piece.append(line)
    if not piece:
        raise ConfigError("lines: a story without text cannot be a document; leave it out")
    yield joint.join(piece)


def _tokens(text: str, language: str) -> float:
    return len(text) / CHARACTERS_PER_TOKEN.get(language, CHARACTERS_PER_TOKEN_ELSEWHERE)
