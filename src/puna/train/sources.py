"""Readers of cria's sources: from unpacked packages and storybooks to facts.

In: folders, each in the layout its publisher gave it. Out: stories, emoji with their names, glosses, terms, sentences,
and the credits of those who made them. It downloads nothing (scripts/corpus does) and writes nothing. Every text comes
out on one line, NFC and in logical order; an emoji is known by its code points without U+FE0F.

Source: the versions and licences in recipes/cria-sources.toml.
"""

import csv
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.train.questions import LANGUAGES

CLDR_LOCALES = {**{language: language for language in LANGUAGES}, "tl": "fil"}
DECLARATION_FILES = {
    "en": "eng",
    "ar": "arb",
    "de": "deu",
    "es": "spa",
    "fr": "fra",
    "hi": "hin",
    "id": "ind",
    "it": "ita",
    "pt": "por_BR",
    "th": "tha",
    "tl": "tgl",
    "vi": "vie",
}
# The kind (a key of questions.KINDS) of each subcategory of Unicode's emoji list; a prefix stands for all that follow.
KIND_OF_SUBCATEGORY = {
    "face": "face", "cat-face": "face", "monkey-face": "face", "heart": "heart", "hand": "hand", "body-parts": "body",
    "person": "person", "family": "person", "animal-bird": "bird", "animal": "animal", "plant": "plant",
    "food-fruit": "fruit", "food-vegetable": "vegetable", "food": "food", "drink": "drink", "dishware": "object",
    "place-building": "building", "place-religious": "building", "place": "place", "hotel": "place",
    "transport-sign": "sign", "transport": "transport", "time": "time", "sky": "sky", "event": "game", "game": "game",
    "award-medal": "sport", "sport": "sport", "arts": "object", "clothing": "clothes", "music": "music",
    "tool": "tool", "science": "tool", "medical": "tool", "country-flag": "flag", "subdivision-flag": "flag",
    "flag": "flag", "emotion": "sign", "keycap": "sign", "alphanum": "sign", "geometric": "sign", "av-symbol": "sign",
    "other-symbol": "sign", "arrow": "sign", "warning": "sign", "religion": "sign", "zodiac": "sign", "math": "sign",
    "punctuation": "sign", "gender": "sign", "currency": "sign",
}  # fmt: skip
# CLDR codes of the languages whose names are drilled: cria's own and some of the most spoken ones.
DRILLED_LANGUAGES = (
    "ar", "bn", "de", "el", "en", "es", "fa", "fil", "fr", "hi", "id", "it",
    "ja", "ko", "nl", "pl", "pt", "ru", "sv", "sw", "th", "tr", "vi", "zh",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryPage:
    """The text of one page and the file name of its picture, if it has one."""

    text: str
    picture: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A story in one language; the same `work` in another language is another Story."""

    source: str
    work: str
    language: str
    title: str
    pages: tuple[StoryPage, ...]
    text_by: str
    drawn_by: str
    translated_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Emoji:
    """One emoji: `code` is its code points in hexadecimal without U+FE0F, `names` its CLDR short name by language."""

    code: str
    kind: str
    names: Mapping[str, str]
    files: Mapping[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gloss:
    """The senses of an English word, the commonest first, and sentences that use it; `n_uses` counts tagged uses."""

    lemma: str
    part: str
    senses: tuple[str, ...]
    examples: tuple[str, ...]
    n_uses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Folders of the unpacked sources; `icons` are those of icon sets, by style."""

    storybooks: Path
    noto: Path
    twemoji: Path
    openmoji: Path
    annotations: Path
    annotations_derived: Path
    dates: Path
    local_names: Path
    wordnet: Path
    fonts: Path
    icons: Mapping[str, Path]


def read_story_pages(folder: Path) -> list[Story]:
    """The African Storybook stories of `folder`/pages.jsonl, in the order of the file; only CC BY 4.0 ones."""
    told: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for page in read_records(folder / "pages.jsonl"):
        if page["license"] == "CC-BY-4.0":
            told[page["story"], page["lang"]].append(page)
    return [_story(work, language, pages, folder) for (work, language), pages in told.items()]


def read_pratham_stories(folder: Path) -> list[Story]:
    """The Pratham Books stories of `folder`/stories.jsonl: text only, CC BY 4.0 or public domain.

    A story without text is left out.
    """
    stories = []
    for told in read_records(folder / "stories.jsonl"):
        pages = tuple(StoryPage(text=_line(page), picture=None) for page in told["pages"] if page.strip())
        if not pages:
            continue
        stories.append(
            Story(
                source="pb",
                work=told["id"].split("_")[0],
                language=told["lang"],
                title=_line(told["title"]),
                pages=pages,
                text_by=_line(told["text"]),
                drawn_by=_line(told["illustration"]),
                translated_by=_line(told.get("translation", "")),
            )
        )
    return stories


def read_emoji(sources: Sources) -> list[Emoji]:
    """Every emoji that is drawn as Noto and as Twemoji and has a CLDR short name in all twelve languages.

    Variants of skin and of gender are left out, since their names exist only as derived ones; flags, whose names are
    derived too, are kept. `files` has the styles "noto", "twemoji" and, where it exists, "openmoji".
    """
    names = {language: _short_names(sources.annotations, "annotations", language) for language in LANGUAGES}
    derived = {
        language: _short_names(sources.annotations_derived, "annotationsDerived", language) for language in LANGUAGES
    }
    found = []
    for entry in json.loads((sources.noto / "emoji.json").read_text("utf-8")):
        if not (entry["has_img_google"] and entry["has_img_twitter"]):
            continue
        kind = _kind(entry["subcategory"])
        text = "".join(chr(int(code, 16)) for code in entry["unified"].split("-") if code != "FE0F")
        table = derived if kind == "flag" and text not in names["en"] else names
        if all(text in table[language] for language in LANGUAGES):
            found.append(
                Emoji(
                    code="-".join(f"{ord(letter):x}" for letter in text),
                    kind=kind,
                    names={language: table[language][text] for language in LANGUAGES},
                    files=_emoji_files(sources, entry["image"], entry["unified"]),
                )
            )
    return found


def read_glosses(folder: Path) -> list[Gloss]:
    """The nouns, verbs and adjectives of WordNet 3.0, words with tagged uses first, then by name; no proper names.

    Of a word with tagged uses the tagged senses are kept, at most three; of another word the first sense.
    """
    glosses = []
    for part in ("noun", "verb", "adj"):
        data = (folder / f"data.{part}").read_bytes()
        for line in (folder / f"index.{part}").read_text("utf-8").splitlines():
            if line.startswith("  "):
                continue
            fields = line.split()
            n_senses, n_tagged = int(fields[2]), int(fields[-_tagged_field(fields)])
            offsets = fields[-n_senses:][: min(3, max(1, n_tagged))]
            records = [data[int(offset) : data.index(b"\n", int(offset))].decode("utf-8") for offset in offsets]
            lemma = fields[0].replace("_", " ")
            if _is_proper_name(fields[0], records[0]) or not lemma[0].isalpha():
                continue
            senses, examples = zip(*(_gloss_and_examples(record) for record in records), strict=True)
            glosses.append(
                Gloss(
                    lemma=lemma,
                    part=part,
                    senses=senses,
                    examples=tuple(example for several in examples for example in several),
                    n_uses=n_tagged,
                )
            )
    return sorted(glosses, key=lambda gloss: (gloss.n_uses == 0, " " in gloss.lemma, gloss.lemma, gloss.part))


def read_declaration(folder: Path, language: str) -> str:
    """The Universal Declaration of Human Rights in one language, one paragraph a line."""
    text = (folder / f"{DECLARATION_FILES[language]}.txt").read_text("utf-8")
    return "\n".join(_line(line) for line in text.splitlines() if line.strip())


def read_sentence_pairs(file: Path) -> list[tuple[str, str]]:
    """English sentences and their Tagalog translations; the third column, the credit, is for the attributions."""
    with file.open(encoding="utf-8", newline="") as lines:
        return [(_line(row[0]), _line(row[1])) for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]


def read_terms(sources: Sources) -> list[dict[str, str]]:
    """Names of months, days, languages and countries of CLDR, by language; only terms known in all twelve."""
    by_language = {language: _terms(sources, language) for language in LANGUAGES}
    known = set.intersection(*(set(terms) for terms in by_language.values()))
    return [{language: by_language[language][key] for language in LANGUAGES} for key in sorted(known)]


def story_credits(stories: Iterable[Story]) -> list[str]:
    """One line for each work: its title, who wrote and who drew it, who translated it into which languages."""
    works: dict[tuple[str, str], list[Story]] = defaultdict(list)
    for story in stories:
        works[story.source, story.work].append(story)
    return [_credit(works[work]) for work in sorted(works)]


def sentence_credits(file: Path) -> list[str]:
    """The distinct names of those who wrote the sentence pairs, in alphabetical order."""
    names = re.findall(r"#\d+ \(([^)]*)\)", file.read_text("utf-8"))
    return sorted(set(names), key=str.lower)


def read_records(file: Path) -> Iterator[Any]:
    """The records of a JSON lines file; a text may hold other line separators than the line feed."""
    return (json.loads(line) for line in file.read_text("utf-8").split("\n") if line)


def _line(text: str) -> str:
    """The text on one line, NFC, without soft hyphens, zero-width spaces and repeated spaces."""
    visible = text.translate({0xAD: None, 0x200B: None, 0xFEFF: None})
    return unicodedata.normalize("NFC", re.sub(r"\s+", " ", visible)).strip()


def _credit(told: Sequence[Story]) -> str:
    first = next((story for story in told if story.language == "en"), told[0])
    translated = ", ".join(
        f"{story.translated_by} ({story.language})" for story in told if story.translated_by not in ("", "-")
    )
    line = f"“{first.title}”: text {first.text_by or 'unknown'}; illustrations {first.drawn_by or 'unknown'}"
    return line + (f"; translations {translated}" if translated else "")


def _story(work: str, language: str, pages: Sequence[Mapping[str, str]], folder: Path) -> Story:
    first = pages[0]
    return Story(
        source="asp",
        work=work,
        language=language,
        title=_line(first["title"]),
        pages=tuple(
            StoryPage(text=_line(page["text"]), picture=_existing(page.get("image"), folder)) for page in pages
        ),
        text_by=_line(first["text_by"]),
        drawn_by=_line(first["illustration_by"]),
        translated_by=_line(first.get("translation_by", "")),
    )


def _existing(image: str | None, folder: Path) -> str | None:
    return Path(image).name if image and (folder / image).is_file() else None


def _short_names(folder: Path, key: str, language: str) -> dict[str, str]:
    """CLDR short names by character, without U+FE0F."""
    file = folder / key / CLDR_LOCALES[language] / "annotations.json"
    table = json.loads(file.read_text("utf-8"))[key]["annotations"]
    return {text.replace("\ufe0f", ""): _line(entry["tts"][0]) for text, entry in table.items() if "tts" in entry}


def _kind(subcategory: str) -> str:
    """The kind of the longest known prefix of an emoji subcategory, "object" where none is known."""
    known = [prefix for prefix in KIND_OF_SUBCATEGORY if subcategory.startswith(prefix)]
    return KIND_OF_SUBCATEGORY[max(known, key=len)] if known else "object"


def _emoji_files(sources: Sources, image: str, unified: str) -> dict[str, Path]:
    files = {
        "noto": sources.noto / "img" / "google" / "64" / image,
        "twemoji": sources.twemoji / "img" / "twitter" / "64" / image,
    }
    for name in (unified, unified.replace("-FE0F", "")):
        if (file := sources.openmoji / "color" / "svg" / f"{name}.svg").is_file():
            files["openmoji"] = file
    return files


def _tagged_field(fields: Sequence[str]) -> int:
    """How far from its end a line of a WordNet index has the number of tagged senses.

    Source: wndb(5WN): lemma pos synset_cnt p_cnt [symbol...] sense_cnt tagsense_cnt synset_offset [synset_offset...].
    """
    return int(fields[2]) + 1


def _is_proper_name(lemma: str, record: str) -> bool:
    """True where the first sense writes the word with a capital letter."""
    words = record.split()[4 : 4 + 2 * int(record.split()[3], 16) : 2]
    spelling = next((word for word in words if word.split("(")[0].lower() == lemma), lemma)
    return spelling != spelling.lower()


def _gloss_and_examples(record: str) -> tuple[str, tuple[str, ...]]:
    """The definition and the quoted examples of one line of a WordNet data file."""
    gloss = record.split(" | ", 1)[1].strip()
    examples = tuple(re.findall(r'"([^"]{8,120})"', gloss))
    definition = re.sub(r'[;:]?\s*"[^"]*"?.*$', "", gloss).strip().rstrip(";")
    return definition or gloss, examples


def _terms(sources: Sources, language: str) -> dict[str, str]:
    locale = CLDR_LOCALES[language]

    def table(folder: Path, name: str) -> Any:
        return json.loads((folder / "main" / locale / name).read_text("utf-8"))["main"][locale]

    territories = table(sources.local_names, "territories.json")["localeDisplayNames"]["territories"]
    languages = table(sources.local_names, "languages.json")["localeDisplayNames"]["languages"]
    gregorian = table(sources.dates, "ca-gregorian.json")["dates"]["calendars"]["gregorian"]
    months, days = (gregorian[key]["stand-alone"]["wide"] for key in ("months", "days"))
    terms = {f"territory {key}": name for key, name in territories.items() if re.fullmatch("[A-Z]{2}", key)}
    terms |= {f"language {key}": languages[key] for key in DRILLED_LANGUAGES}
    terms |= {f"month {key}": name for key, name in months.items()} | {f"day {key}": days[key] for key in days}
    return {key: _line(name) for key, name in terms.items()}
