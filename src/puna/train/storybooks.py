"""Turns the storybook repositories into the folders that `corpus` reads.

In: checked out clones of global-asp/asp-source, global-asp/global-asp, global-asp/asp-imagebank, global-asp/pb-source,
nltk/nltk_data and kenandutan/MachineTranslation. Out: a folder with asp/pages.jsonl and asp/images, pb/stories.jsonl,
udhr/*.txt and tatoeba/eng-tgl.tsv. It keeps only what may be shipped in weights: stories marked CC BY or public domain.

A story is a Markdown file `LANGUAGE/NUMBER_title.md`: a title after "# ", then pages, each after a line "##", the last
of which lists licence, authors and language. Picture 01 of a story is its cover, so page k has picture k + 1.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import copyfile
from typing import NamedTuple

from PIL import Image

from puna.train.questions import LANGUAGES

PICTURE_SIZE = 224  # pixels on the long side
FREE_LICENCES = ("[CC-BY]", "[Public Domain]")
PRATHAM_LANGUAGES = ("en", "hi")  # the others have too few stories, or are not spoken by cria


class Book(NamedTuple):
    """One story file: its name without folder and suffix, its title, pages, and the list of its last page."""

    name: str
    title: str
    pages: tuple[str, ...]
    facts: Mapping[str, str]


def prepare(clones: Mapping[str, Path], folder: Path) -> None:
    """Writes the four folders below `folder`; `clones` has each repository by the last part of its address."""
    prepare_african(clones, folder / "asp")
    prepare_pratham(clones["pb-source"], folder / "pb")
    (folder / "udhr").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(clones["nltk_data"] / "packages" / "corpora" / "udhr2.zip") as archive:
        for name in archive.namelist():
            if name.endswith(".txt"):
                (folder / "udhr" / Path(name).name).write_bytes(archive.read(name))
    (folder / "tatoeba").mkdir(parents=True, exist_ok=True)
    copyfile(clones["MachineTranslation"] / "tgl.txt", folder / "tatoeba" / "eng-tgl.tsv")


def prepare_african(clones: Mapping[str, Path], folder: Path) -> None:
    """pages.jsonl and images of the African Storybook; a translation of asp-source comes before one of global-asp."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "pages.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for language in LANGUAGES:
            told: set[str] = set()
            for clone in (clones["asp-source"], clones["global-asp"]):
                for book in read_books(clone / language):
                    work = book.name[:4]
                    if work not in told:
                        told.add(work)
                        lines.writelines(_page_lines(book, language, clones["asp-imagebank"], folder))


def prepare_pratham(clone: Path, folder: Path) -> None:
    """stories.jsonl of Pratham Books."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stories.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for language in PRATHAM_LANGUAGES:
            for book in read_books(clone / language):
                record = {
                    "id": book.name,
                    "lang": language,
                    "title": book.title,
                    "pages": book.pages,
                    "license": book.facts["License"],
                    "text": book.facts.get("Text", ""),
                    "illustration": book.facts.get("Illustration", ""),
                }
                if "Translation" in book.facts:
                    record["translation"] = book.facts["Translation"]
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_books(folder: Path) -> Iterator[Book]:
    """The freely licensed stories of a folder, by name; none where the folder does not exist."""
    for file in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.md")):
        book = parse_book(file.stem, file.read_text("utf-8"))
        if book.facts.get("License") in FREE_LICENCES:
            yield book


def parse_book(name: str, text: str) -> Book:
    """The story written in `text`; a page's paragraphs are joined by one space."""
    title, *pages = re.split(r"^##[ \t]*$", text, flags=re.MULTILINE)
    facts = dict(re.findall(r"^\* ([^:\n]+): (.*?)[ \t]*$", pages[-1] if pages else "", flags=re.MULTILINE))
    return Book(name, title.strip().removeprefix("# "), tuple(" ".join(page.split()) for page in pages[:-1]), facts)


def _page_lines(book: Book, language: str, bank: Path, folder: Path) -> Iterator[str]:
    for number, text in enumerate(book.pages, start=1):
        if text:
            record = {
                "story": book.name[:4],
                "lang": language,
                "title": book.title,
                "page": number,
                "text": text,
                "image": _reduced_picture(book.name[:4], number + 1, bank, folder),
                "text_by": book.facts.get("Text", ""),
                "illustration_by": book.facts.get("Illustration", ""),
                "translation_by": book.facts.get("Translation", ""),
                "license": "CC-BY-4.0",
            }
            yield json.dumps(record, ensure_ascii=False) + "\n"


def _reduced_picture(work: str, number: int, bank: Path, folder: Path) -> str | None:
    """The path below `folder` of a picture, reduced to PICTURE_SIZE, or None where the image bank has none."""
    found = bank / work / f"{number:02d}.jpg"
    if not found.is_file():
        return None
    path = f"images/{work}_{number:02d}.jpg"
    if not (folder / path).is_file():
        with Image.open(found) as opened:
            image = opened.convert("RGB")
        image.thumbnail((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
        image.save(folder / path, quality=85)
    return path
