"""Tests of puna.train.sources: each reader on a few lines in the layout of its publisher."""

import json
from pathlib import Path

from puna.train import sources
from puna.train.sources import Story, StoryPage


def page(story: str, language: str, text: str, **changes: str) -> dict[str, object]:
    return {
        "story": story,
        "lang": language,
        "title": f"Title {story}",
        "page": 1,
        "text": text,
        "image": "images/none.jpg",
        "text_by": "Ana",
        "illustration_by": "Ben",
        "translation_by": "",
        "license": "CC-BY-4.0",
    } | changes


def test_story_pages_are_grouped_by_work_and_language_and_only_free_ones_are_kept(tmp_path: Path) -> None:
    pages = [
        page("0001", "en", "One.\u2028Two."),
        page("0001", "fr", "Un."),
        page("0002", "en", "No.", license="CC-BY-NC-4.0"),
    ]
    text = "\n".join(json.dumps(one, ensure_ascii=False) for one in pages)
    (tmp_path / "pages.jsonl").write_text(text, "utf-8")
    stories = sources.read_story_pages(tmp_path)
    assert [(story.work, story.language) for story in stories] == [("0001", "en"), ("0001", "fr")]
    assert stories[0].pages == (StoryPage(text="One. Two.", picture=None),)


def test_pratham_stories_without_text_are_left_out(tmp_path: Path) -> None:
    told = {"id": "0001_a", "lang": "en", "title": "A", "license": "[CC-BY]", "text": "Ana", "illustration": "Ben"}
    lines = [told | {"pages": ["Once.", " "]}, told | {"id": "0002_b", "pages": []}]
    (tmp_path / "stories.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    stories = sources.read_pratham_stories(tmp_path)
    assert [story.work for story in stories] == ["0001"]
    assert len(stories[0].pages) == 1


def test_glosses_put_words_with_tagged_uses_first_and_drop_proper_names(tmp_path: Path) -> None:
    records = [
        '00000000 20 n 01 apple 0 000 | fruit with red skin; "she ate an apple"  \n',
        "00000000 20 n 01 Paris 0 000 | the capital of France  \n",
        "00000000 20 n 01 zebra 0 000 | a striped animal  \n",
    ]
    offsets = [0, len(records[0]), len(records[0] + records[1])]
    index = [
        f"aardwolf n 1 0 1 0 {offsets[2]:08d}  \n",
        f"apple n 1 0 1 1 {offsets[0]:08d}  \n",
        f"paris n 1 0 1 1 {offsets[1]:08d}  \n",
    ]
    (tmp_path / "data.noun").write_text("".join(records), "utf-8")
    (tmp_path / "index.noun").write_text("  1 licence\n" + "".join(index), "utf-8")
    for part in ("verb", "adj"):
        (tmp_path / f"data.{part}").touch()
        (tmp_path / f"index.{part}").touch()
    glosses = sources.read_glosses(tmp_path)
    assert [gloss.lemma for gloss in glosses] == ["apple", "aardwolf"]
    assert glosses[0].senses == ("fruit with red skin",)
    assert glosses[0].examples == ("she ate an apple",)


def test_sentence_pairs_keep_quotation_marks(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text('"Run", he said.\tTakbo.\tCC-BY 2.0 (France) tatoeba.org #1 (CK) & #2 (nonong)\n', "utf-8")
    assert sources.read_sentence_pairs(file) == [('"Run", he said.', "Takbo.")]
    assert sources.sentence_credits(file) == ["CK", "nonong"]


def test_credits_name_all_who_wrote_drew_and_translated() -> None:
    def story(language: str, translator: str) -> Story:
        return Story(
            source="asp",
            work="0001",
            language=language,
            title=f"Title {language}",
            pages=(),
            text_by="Ana",
            drawn_by="Ben",
            translated_by=translator,
        )

    credits = sources.story_credits([story("fr", "Cléo"), story("en", "")])
    assert credits == ["“Title en”: text Ana; illustrations Ben; translations Cléo (fr)"]
