import gzip
import json
from pathlib import Path

import pytest

from puna.errors import ConfigError
from puna.train.prepare import documents
from puna.train.prepare.documents import find, read


def test_lines_become_documents_with_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "id": 7}\n\n{"content": "two"}\n')
    assert [(each.line, each.text, each.record) for each in read(path)] == [(1, "one", {"id": 7}), (3, "two", {})]


def test_what_is_no_document_is_named_and_the_next_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text"\n[1]\n{"text": 3}\n\xff\xfe\n{"title": "x"}\n{"text": "good"}\n')
    assert [each.fault for each in read(path)] == ["broken"] * 5 + [""]


def test_compressed_files_read_like_plain_ones(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "packed"}) + "\n")
    assert [each.text for each in read(tmp_path / "a.jsonl.gz")] == ["packed"]


def test_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 1000}) + '\n{"text": "short"}\n')
    assert [(each.line, each.text, each.fault) for each in read(path)] == [(1, None, "too_long"), (2, "short", "")]


def test_long_plain_text_is_cut_at_line_ends_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "LONGEST_BYTES", 200)
    text = "".join(f"line {n} é\n" for n in range(40))
    (tmp_path / "a.txt").write_text(text, "utf-8")
    pieces = list(read(tmp_path / "a.txt"))
    assert len(pieces) > 3 and "".join(each.text or "" for each in pieces) == text
    assert all((each.text or "").startswith(f"line {each.line - 1} ") for each in pieces)


def test_half_of_a_surrogate_pair_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b"}\n')
    assert [each.text for each in read(tmp_path / "a.jsonl")] == ["a? b"]


def test_files_are_found_in_order_and_counted_under_what_was_named(tmp_path: Path) -> None:
    for name in ("web/b.jsonl", "web/a.txt", "books.jsonl.gz", "web/picture.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find((tmp_path, tmp_path / "web" / "b.jsonl"))
    assert [(each.path.name, each.name) for each in found] == [
        ("books.jsonl.gz", "books"),
        ("a.txt", "web"),
        ("b.jsonl", "web"),
        ("b.jsonl", "b"),
    ]


def test_name_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        find((tmp_path / "none",))
    with pytest.raises(ConfigError, match=r"nothing to read.*\.jsonl"):
        find((tmp_path,))
