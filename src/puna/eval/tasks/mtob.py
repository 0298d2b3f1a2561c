"""MTOB: translating Kalamang, a language of about 130 speakers, from a grammar book in the prompt. Chat models, chrF.

Half or full book, into English (ke) or into Kalamang (ek): four tasks. The measure is chrF of the corpus. Locally the
prompt is built from book, word list and sentences; on the hub it is ready made. Everything before the first sentence to
translate is the same for all items, which is all that a prefix cache can share. For a model whose context is too short,
book, word list and sentences are cut, each at its end and in proportion, and the items say so.
Source: Tanzer et al. 2023; prompt of the Gemini 1.5 report as in llama-stack-evals 0.1.0 `mtob/create_dataset.py`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from puna.eval.metrics import Estimate, chrf, sentence_chrf
from puna.eval.task import Chat, Hub, Item, Judged, Reader, Score, Source, Task, read, read_text, user

LANGUAGES = {"ek": ("English", "Kalamang"), "ke": ("Kalamang", "English")}

REQUEST = """
You are tasked with translating the following sentence from {source} to {target}: "{sentence}".
You will be given a field linguistics grammar book, a bilingual word list, and a
collection of parallel {source}/{target} sentences to aid you.
Here is the book, "A grammar of Kalamang": START OF GRAMMAR BOOK

{book}

END OF GRAMMAR BOOK The grammar book is now over. Remember that you are tasked with
translating the following sentence from {source} to {target}: "{sentence}".
Now here is the bilingual word list: START OF WORD LIST

{words}

END OF WORD LIST The bilingual word list is now over. Remember that you are tasked with
translating the following sentence from {source} to {target}: "{sentence}". You will use the same style as the \
parallel sentences immediately below.
Now here is the collection of parallel sentences: START OF PARALLEL SENTENCES

{pairs}

END OF PARALLEL SENTENCES The collection of parallel sentences is now over.
Now translate the following sentence from {source} to {target}, using
the style from the parallel sentences immediately above. Translate: "{sentence}".
I understand that you may not be familiar enough with Kalamang to make a confident
translation, but please give your best guess. Respond with only the translation and no
other text.
"""


def items(data: Path | None, book: str, direction: str, reader: Reader | None = None) -> Iterator[Item]:
    """Yields the sentences; `book` is "half" or "full", `direction` "ek" or "ke". `reader` has to read the prompts."""
    hub = Hub(ids=("llamastack/mtob",), configs=(f"{direction}_{book}_book",), split="test", revision=None)
    rows = read(Source(folder="mtob", file=f"test_examples_{direction}.jsonl", hub=hub), data)
    shared = {} if data is None else _material(data, book, direction)
    note = ""
    if reader is not None and shared:
        shared, note = _cut(shared, max((str(row["original"]) for row in rows), key=len), reader)
    for row in rows:
        yield Item(
            id=str(row.get("original_id") or row["id"]),
            row={"ground_truth": row.get("expected_answer"), **row, **shared},
            note=note,
        )


def prompt(item: Item) -> Chat:
    """Returns the request with book, word list and sentences."""
    row = item.row
    if "messages" in row:
        return Chat(
            messages=tuple(json.loads(row["messages"]) if isinstance(row["messages"], str) else row["messages"])
        )
    return user(_fill({key: row[key] for key in MATERIAL}, row["original"]))


def score(item: Item, response: str) -> Score:
    """Returns chrF of the sentence, for the reader of items; the task's value is that of the corpus."""
    reference = item.row["ground_truth"]
    value = sentence_chrf(response.strip(), reference)
    return Score(value=value, answer=response.strip() or None, reason="" if value == 1 else f"expected {reference}")


def corpus_chrf(judged: Sequence[Judged]) -> Estimate:
    """Returns chrF over all sentences together, the first response of each."""
    return chrf([each.responses[0].strip() for each in judged], [each.item.row["ground_truth"] for each in judged])


MATERIAL = ("source", "target", "book", "words", "pairs")
BULKY = ("book", "words", "pairs")
MARGIN_TOKENS = 512  # of the context, for the turn around the text and the answer


def _material(data: Path, book: str, direction: str) -> dict[str, str]:
    source, target = LANGUAGES[direction]
    text = read_text(Source(folder="mtob", file=f"grammar_book_{book}.txt", hub=None), data)
    words = json.loads(read_text(Source(folder="mtob", file="wordlist.json", hub=None), data))
    pairs = [
        {"English": row["original"], "Kalamang": row["translation"]}
        for row in read(Source(folder="mtob", file="train_examples.jsonl", hub=None), data)
    ]
    lines = "\n".join(f"{source}: {pair[source]}\n{target}: {pair[target]}" for pair in pairs)
    return dict(zip(MATERIAL, (source, target, text, str(words), lines), strict=True))


def _cut(material: dict[str, str], sentence: str, reader: Reader) -> tuple[dict[str, str], str]:
    """Returns the material as far as it fits before an answer as long as the sentence, and what was done to it."""

    def fits(share: float) -> bool:
        return (reader.count(_fill(_shortened(material, share), sentence)) or 0) <= room

    whole = reader.count(_fill(material, sentence))
    if whole is None or reader.context_len is None:
        return material, ""
    room = reader.context_len - MARGIN_TOKENS
    if whole <= room or not fits(0.0):  # all of it fits, or not even the request itself
        return material, ""
    share = room / whole
    while not fits(share):
        share *= 0.9
    return _shortened(material, share), f"book, words and sentences are cut to {share:.2g} of their length to fit"


def _shortened(material: dict[str, str], share: float) -> dict[str, str]:
    return {key: text[: int(share * len(text))] if key in BULKY else text for key, text in material.items()}


def _fill(material: dict[str, str], sentence: str) -> str:
    return REQUEST.format(sentence=sentence, **material)


def _task(book: str, direction: str) -> Task:
    task = Task(
        name=f"mtob_{book}_{direction}",
        items=lambda data: items(data, book, direction),
        prompt=prompt,
        score=score,
        gold=lambda item: str(item.row["ground_truth"]),
        metric="chrF",
        shots=0,
        max_new_tokens=4096,
        chance=0.15,  # what the translation of another sentence reaches, about, in either direction
        id_field="original_id",
        summary=corpus_chrf,
        fit=lambda reader: replace(task, items=lambda data: items(data, book, direction, reader)),
    )
    return task


MTOB = tuple(_task(book, direction) for book in ("half", "full") for direction in ("ek", "ke"))
