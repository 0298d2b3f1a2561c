"""The corpus that cria is trained on: many pictures, about each of which little is asked, and all texts.

In: what `corpus` has written, and the sources. Out: `looks.jsonl` and more pictures; and `replay.jsonl`, chats of it
that are read once more when cria learns to converse. Emoji come in six drawing styles, each picture another size,
angle, paper and tint, so that a name is tied to what is drawn and not to one picture. A question stands alone, so that
a batch holds many different pairs (docs/decisions/021). Scenes, charts and pages are new ones, with one or two
questions each. Nothing here is held out, and no emoji that `corpus` held out is drawn.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from puna.train import questions as ask
from puna.train.corpus import (
    EMOJI_SIZE,
    KINDS_NEVER_HELD_OUT,
    NATIVE_NAMES,
    STYLES,
    Document,
    Draw,
    Picture,
    drawn_chart,
    drawn_page,
    drawn_receipt,
    drawn_scene,
    open_drawing,
    save_picture,
    short_words,
    write_records,
)
from puna.train.drawings import Fonts, draw_page, restyle_picture, vary_picture
from puna.train.icons import IconSet, read_icons
from puna.train.questions import LANGUAGES, Turn
from puna.train.sources import Emoji, Sources, read_emoji, read_records

LOOKED_AT = ("emoji", "scene", "chart", "page")  # sources of train.jsonl that are shown anew here
SHARE_OF_KINDS = 0.1  # of the questions about an emoji: what kind of thing it is
NAMES_IN_A_LIST = 3
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """How many pictures of each kind to draw.

    `variants` is for the styles that emoji packages publish as pictures, `icon_variants` for the icon sets; `questions`
    is how many are asked about each picture of an emoji. `large_pages` is the share kept of story pages beside a large
    picture, which is five tiles. `replay` says how many chats or texts of a source are to be read once
    more while the model learns to converse.
    """

    seed: int
    variants: int
    icon_variants: int
    sign_variants: int
    questions: int
    large_pages: float
    scenes: int
    charts: int
    printed_pages: int
    printed_words: int
    receipts: int
    replay: Mapping[str, int]


def write_looks(sources: Sources, looks: Looks, held_out: Iterable[str], folder: Path) -> dict[str, int]:
    """Writes looks.jsonl and its pictures beside train.jsonl in `folder`, and returns the documents by source.

    `held_out` are the codes of the emoji that are not shown. Documents are in random order. Some chats are written into
    replay.jsonl besides.
    """
    rng = Random(looks.seed)
    emoji = read_emoji(sources)
    shown = [one for one in emoji if one.code not in set(held_out)]
    records = [
        *(document.record() for document in emoji_looks(rng, looks, shown, icon_sets(sources), folder)),
        *(document.record() for document in drawn_looks(rng, looks, Fonts(folder=sources.fonts), emoji, folder)),
        *kept_texts(rng, looks, read_records(folder / "train.jsonl")),
    ]
    rng.shuffle(records)
    write_records(folder / "looks.jsonl", records)
    write_records(folder / "replay.jsonl", replayed(records, looks.replay))
    return dict(Counter(record["source"] for record in records))


def replayed(records: Iterable[dict[str, Any]], wanted: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """The first chats and plain texts of each source, as many as are wanted of it or there are."""
    left = dict(wanted)
    for record in records:
        parts = record.get("content", ())
        if left.get(record["source"], 0) > 0 and all(part["type"] == "text" for part in parts):
            left[record["source"]] -= 1
            plain = {key: record[key] for key in ("id", "source")} | {"text": "".join(part["text"] for part in parts)}
            yield record if "messages" in record else plain


def icon_sets(sources: Sources) -> dict[str, IconSet]:
    """The icon sets by style."""
    return {style: read_icons(folder) for style, folder in sources.icons.items()}


def emoji_looks(
    rng: Random, looks: Looks, emoji: Sequence[Emoji], sets: Mapping[str, IconSet], folder: Path
) -> Iterator[Document]:
    """Each picture of each emoji: `looks.questions` chats of one question in different languages, one in English
    besides, and a list of names.

    The languages run on from picture to picture, so that an emoji is asked about in all of them equally often.
    """
    in_english = Random(f"{looks.seed} named")
    for one in emoji:
        order = rng.sample(LANGUAGES, len(LANGUAGES))
        at = 0
        for picture in emoji_pictures(rng, looks, one, sets, folder):
            name = f"{Path(picture.path).parent.name}-{Path(picture.path).stem}"
            for _ in range(looks.questions):
                language, at = order[at % len(order)], at + 1
                turn = look_turn(rng, one, language)
                yield Document(
                    id=f"look-{name}-{language}", source="look", language=language, turns=(turn,), pictures=(picture,)
                )
            named = ask.name_turns(in_english, one.names, ("en",))
            yield Document(id=f"named-{name}", source="named", language="en", turns=named, pictures=(picture,))
            listed = rng.sample(LANGUAGES, NAMES_IN_A_LIST)
            lines = "\n".join(f"{NATIVE_NAMES[language]}: {one.names[language]}" for language in listed)
            yield Document(id=f"look-{name}-names", source="names", language="mul", content=(picture, lines))


def look_turn(rng: Random, one: Emoji, language: str) -> Turn:
    """The name of an emoji, or now and then what kind of thing it is."""
    if rng.random() < SHARE_OF_KINDS:
        return ask.kind_turn(one.kind, language)
    return ask.name_turns(rng, one.names, (language,))[0]


def emoji_pictures(
    rng: Random, looks: Looks, one: Emoji, sets: Mapping[str, IconSet], folder: Path
) -> Iterator[Picture]:
    """New pictures of one emoji in all styles that have it: as published in train.jsonl, here varied and tinted."""
    simple = one.kind in KINDS_NEVER_HELD_OUT
    for style in STYLES:
        drawing = open_drawing(one.files[style])
        yield Picture(f"pictures/{style}/{one.code}-0.png")  # as published, written with train.jsonl
        for number in range((looks.sign_variants if simple else looks.variants) - 1):
            yield _varied(rng, drawing, f"pictures/looks/{style}/{one.code}-{number}.png", folder)
    for style, icons in sets.items():
        svg = icons.svg(one)
        if svg is not None:
            drawing = draw_svg(svg)
            for number in range(1 if simple else looks.icon_variants):
                yield _varied(rng, drawing, f"pictures/looks/{style}/{one.code}-{number}.png", folder)


def draw_svg(svg: str) -> Image.Image:
    """An SVG document as a square picture with transparency (needs the package cairosvg), twice EMOJI_SIZE wide."""
    import cairosvg  # here, because training needs no SVG

    drawn = cairosvg.svg2png(bytestring=svg.encode(), output_width=2 * EMOJI_SIZE, output_height=2 * EMOJI_SIZE)
    return Image.open(BytesIO(drawn)).convert("RGBA")


def drawn_looks(rng: Random, looks: Looks, fonts: Fonts, emoji: Sequence[Emoji], folder: Path) -> Iterator[Document]:
    """New scenes, charts, pages, single words and receipts, with at most two questions each."""
    words = short_words(emoji)
    makers: tuple[tuple[str, str, int, Draw], ...] = (
        ("scene", "scene", looks.scenes, drawn_scene),
        ("chart", "chart", looks.charts, partial(drawn_chart, fonts=fonts)),
        ("page", "page", looks.printed_pages, partial(drawn_page, fonts=fonts, words=words)),
        ("page", "word", looks.printed_words, partial(drawn_word, fonts=fonts, words=words)),
        ("page", "receipt", looks.receipts, partial(drawn_receipt, fonts=fonts)),
    )
    for source, kind, n_drawings, draw in makers:
        for number in range(n_drawings):
            image, turns = draw(rng)
            picture = save_picture(image, folder, f"pictures/looks/{kind}/{number}.png")
            asked = tuple(rng.sample(turns, min(2, len(turns))))
            yield Document(
                id=f"look-{kind}-{number}", source=source, language=asked[0].language, turns=asked, pictures=(picture,)
            )


def drawn_word(rng: Random, fonts: Fonts, words: Mapping[str, Sequence[str]]) -> tuple[Image.Image, tuple[Turn, ...]]:
    """A page with one line: a number, some letters, or a short word, from which reading is learnt first."""
    language = ask.drawn_language(rng)
    chosen = rng.random()
    if chosen < 0.35:
        line = str(rng.randint(0, 10 ** rng.randint(1, 4) - 1))
    elif chosen < 0.55:
        line = "".join(rng.choices(LETTERS, k=rng.randint(1, 4)))
    else:
        line = rng.choice(words[language])
    page = draw_page(rng, fonts, lines=(line,), language=language)
    return page.image, (ask.page_turn(page, language),)


def kept_texts(rng: Random, looks: Looks, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The documents of train.jsonl that are not shown anew: stories, words, glosses, talk, and pairs of emoji."""
    for record in records:
        if record["source"] in LOOKED_AT and not record["id"].startswith("emoji-pair-"):
            continue
        if "-pages1-" in record["id"] and rng.random() >= looks.large_pages:
            continue
        yield record


def _varied(rng: Random, drawing: Image.Image, path: str, folder: Path) -> Picture:
    return save_picture(vary_picture(rng, restyle_picture(rng, drawing), size=EMOJI_SIZE), folder, path)
