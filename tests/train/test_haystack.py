"""Long documents are as long as wanted, the same each time, and hold what they ask for; learnt is what should be."""

import json
from pathlib import Path

import pytest

from puna import cli
from puna.errors import ConfigError
from puna.prompt.tokenizer import Tokenizer
from puna.train.haystack import ENDS, KINDS, Pieces, Wish, made
from puna.train.store import Encoder

TEXT = "A llama walks over the pass, and the herd follows. " * 8 + "\n\nThe sun is high.\nNobody speaks here.\n"


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(tiny)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text(TEXT, "utf-8")
    (folder / "b.jsonl").write_text(json.dumps({"text": "Grass grows slowly up there."}) + "\n", "utf-8")
    return folder


def test_what_is_asked_was_told_and_documents_are_as_long_as_wanted(tokenizer: Tokenizer, texts: Path) -> None:
    wish = Wish(lengths=(300, 600), n=6, told=3, asked=2, seed=4)
    found = list(made(iter(Pieces([texts])), tokenizer, wish))
    assert [kind for kind, _ in found] == [*KINDS] * 6
    for number, (kind, parts) in enumerate(found):
        length = wish.lengths[number // len(KINDS) % 2]
        n_tokens = sum(len(tokenizer.encode(part.text)) for part in parts) + ENDS
        assert length - 210 < n_tokens <= length  # the next piece of text would not fit
        answers = [i for i, part in enumerate(parts) if part.is_asked]
        assert len(answers) == (0 if kind == "text" else 2)
        for i in answers:
            told = parts[i - 1].text.strip() + parts[i].text
            assert parts[0].text.count(told) == 1 and told.endswith(".")
    assert found == list(made(iter(Pieces([texts])), tokenizer, wish))
    other = list(made(iter(Pieces([texts])), tokenizer, Wish(lengths=(300, 600), n=6, told=3, asked=2, seed=5)))
    assert all(a != b for (kind, a), (_, b) in zip(found, other, strict=True) if kind != "text")


def test_the_command_writes_documents_of_which_only_answers_may_be_learnt(
    tokenizer: Tokenizer, tiny: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "long" / "train.jsonl"
    argv = ["haystack", str(texts), "--out", str(out), "--tokenizer", str(tiny), "--length", "400"]
    assert cli.main([*argv, "--documents", "2", "--only-asked", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: each["documents"] for name, each in told["sources"].items()} == dict.fromkeys(KINDS, 2)
    assert told["times_read"] > 1  # 500 characters do not fill six documents
    encode = Encoder(tokenizer, None, tmp_path)
    for line in out.read_text("utf-8").splitlines():
        document = json.loads(line)
        encoded = encode(document)
        learnt = tokenizer.decode([i for i, weight in zip(encoded.ids, encoded.weights, strict=True) if weight])
        parts = document["content"]
        if document["source"] == "text":
            assert parts[0]["text"] in learnt
        else:
            assert learnt.removesuffix("<|end_of_text|>") == parts[2]["text"] + parts[4]["text"]


def test_what_cannot_be_made_is_refused(tokenizer: Tokenizer, texts: Path, tmp_path: Path) -> None:
    pieces = iter(Pieces([texts]))
    with pytest.raises(ConfigError, match=r"length: 60 tokens cannot hold what is told and asked, \d+ are missing"):
        list(made(pieces, tokenizer, Wish(lengths=(60,), n=1)))
    with pytest.raises(ConfigError, match=r"asked: 5 .*within 1\.\.4"):
        Wish(lengths=(60,), n=1, asked=5)
    (tmp_path / "empty.txt").write_text(" \n", "utf-8")
    with pytest.raises(ConfigError, match="no text in it"):
        next(iter(Pieces([tmp_path / "empty.txt"])))
