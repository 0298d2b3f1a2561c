"""Tests of puna.train.storybooks: a story file becomes pages, pictures and credits."""

import json
from pathlib import Path

from PIL import Image

from puna.train import storybooks
from puna.train.sources import read_pratham_stories, read_story_pages

STORY = """# A short hoe

##
His hoe was too short.

##
His door

was too low.

##
* License: [CC-BY]
* Text: Ana
* Illustration: Ben
* Translation: Cléo
* Language: en
"""


def test_a_story_is_parsed_into_title_pages_and_facts() -> None:
    book = storybooks.parse_book("0001_hoe", STORY)
    assert book.title == "A short hoe"
    assert book.pages == ("His hoe was too short.", "His door was too low.")
    assert book.facts == {
        "License": "[CC-BY]",
        "Text": "Ana",
        "Illustration": "Ben",
        "Translation": "Cléo",
        "Language": "en",
    }


def test_only_freely_licensed_stories_are_read(tmp_path: Path) -> None:
    (tmp_path / "0001_free.md").write_text(STORY, "utf-8")
    (tmp_path / "0002_not.md").write_text(STORY.replace("[CC-BY]", "[CC-BY-NC]"), "utf-8")
    (tmp_path / "README.md").write_text("# Index", "utf-8")
    assert [book.name for book in storybooks.read_books(tmp_path)] == ["0001_free"]


def test_prepared_folders_are_what_the_readers_read(tmp_path: Path) -> None:
    clones = {name: tmp_path / name for name in ("asp-source", "global-asp", "asp-imagebank", "pb-source")}
    for name, language in (("asp-source", "en"), ("global-asp", "en"), ("global-asp", "fr"), ("pb-source", "en")):
        (clones[name] / language).mkdir(parents=True)
        (clones[name] / language / "0001_hoe.md").write_text(STORY.replace("hoe", name), "utf-8")
    (clones["asp-imagebank"] / "0001").mkdir(parents=True)
    Image.new("RGB", (448, 224)).save(clones["asp-imagebank"] / "0001" / "02.jpg")
    storybooks.prepare_african(clones, tmp_path / "asp")
    storybooks.prepare_pratham(clones["pb-source"], tmp_path / "pb")

    stories = read_story_pages(tmp_path / "asp")
    assert [(story.language, story.title) for story in stories] == [
        ("en", "A short asp-source"),
        ("fr", "A short global-asp"),
    ]
    assert [page.picture for page in stories[0].pages] == ["0001_02.jpg", None]
    with Image.open(tmp_path / "asp" / "images" / "0001_02.jpg") as picture:
        assert picture.size == (224, 112)
    assert read_pratham_stories(tmp_path / "pb")[0].translated_by == "Cléo"


def test_records_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "0001_hoe.md").write_text(STORY, "utf-8")
    storybooks.prepare_pratham(tmp_path, tmp_path / "pb")
    lines = (tmp_path / "pb" / "stories.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0001_hoe"]
