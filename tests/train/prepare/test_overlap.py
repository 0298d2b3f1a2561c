import json
from pathlib import Path
from typing import Any

import pytest

from puna.errors import ConfigError
from puna.train.prepare.overlap import Exams, holds, read_exams
from puna.train.prepare.words import plain, words

QUESTION = "Which of these rivers did the traders of the old kingdom cross on their way to the salt lakes?"
THAI = "แม่น้ำสายใดที่พ่อค้าแห่งอาณาจักรเก่าข้ามไปยังทะเลสาบเกลือในฤดูหนาวเมื่อหลายร้อยปีก่อน"
AROUND = "It was late when we came home, and nobody had lit the lamps. {} After that we spoke of other things."


def exams(folder: Path, *records: Any) -> Exams:
    (folder / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), "utf-8")
    return read_exams([folder])


def found(exams: Exams, text: str) -> bool:
    return holds(exams, words(plain(AROUND.format(text))))


def test_question_is_found_however_it_is_set(tmp_path: Path) -> None:
    read = exams(tmp_path, {"question": QUESTION, "choices": ["Niger", "Nile"]})
    assert found(read, QUESTION) and found(read, QUESTION.upper().replace(" ", "\n"))
    assert not found(read, "") and not found(read, "Niger or Nile")


def test_question_with_a_word_changed_is_found_and_a_quotation_of_its_end_is_not(tmp_path: Path) -> None:
    read = exams(tmp_path, {"question": QUESTION})
    assert found(read, QUESTION.replace("salt", "great salt"))
    assert not found(read, "They were on their way to the salt lakes.")


def test_excerpt_of_a_long_text_is_found(tmp_path: Path) -> None:
    sentences = [f"Chapter {n} tells how number {n * n} came to the house of number {n + 7}." for n in range(200)]
    read = exams(tmp_path, " ".join(sentences))
    assert all(found(read, " ".join(sentences[k : k + 8])) for k in range(0, 190, 7))
    assert not found(read, sentences[3])


def test_short_text_is_found_where_it_says_something(tmp_path: Path) -> None:
    read = exams(tmp_path, {"q": "Gani hit his finger hard."}, {"q": "and so it was that he was"})
    assert found(read, "Gani hit his finger hard!")
    assert not found(read, "Gani hit his finger.") and not found(read, "And so it was that he was there.")


def test_phrase_that_several_records_share_is_form(tmp_path: Path) -> None:
    shared = "None of these answers fits here"
    read = exams(tmp_path, {"q": QUESTION, "c": shared}, {"q": f"{QUESTION} And why was that so hard?", "c": shared})
    assert not found(read, shared) and found(read, QUESTION)


def test_record_of_short_texts_is_found_where_all_of_them_stand(tmp_path: Path) -> None:
    read = exams(tmp_path, {"original": "Keitar me kalis ur.", "translation": "Yesterday it rained."})
    assert found(read, "Keitar me kalis ur: yesterday it rained.")
    assert not found(read, "Keitar me kalis ur.") and not found(read, "Yesterday it rained.")


def test_record_that_is_too_short_is_counted(tmp_path: Path) -> None:
    read = exams(tmp_path, {"q": "Why not?"}, {"q": 3}, {"q": QUESTION})
    assert (read.n_records, read.n_too_short) == (3, 2)
    assert not found(read, "Why not?")


def test_text_without_spaces_is_found_and_its_common_words_are_not(tmp_path: Path) -> None:
    read = exams(tmp_path, {"q": THAI, "title": "ทะเลสาบเกลือ"})
    assert found(read, f"{THAI}ครับ") and found(read, THAI[:70])
    assert not found(read, "ทะเลสาบเกลืออยู่ไกล")


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"deep": [{"er": QUESTION}]}))
    (tmp_path / "b.txt").write_text("One hundred boats lay in the harbour on the morning of the feast.")
    (tmp_path / "c.tsv").write_text("7\tHow many boats were still there when the evening bell rang twice?\n")
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    read = read_exams([tmp_path / "a.json", tmp_path])
    assert found(read, QUESTION)
    assert found(read, "One hundred boats lay in the harbour on the morning of the feast.")
    assert found(read, "How many boats were still there when the evening bell rang twice?")


def test_set_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_exams([tmp_path / "none"])
    with pytest.raises(ConfigError, match="no evaluation set"):
        read_exams([tmp_path])
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.jsonl: cannot be read"):
        read_exams([tmp_path])
