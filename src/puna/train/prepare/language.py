"""Which of the twelve languages of Llama 4 a text is in, by its script and its most common small words.

Meant for counting and for rules that differ by language, not as a judgement of a single text. What it cannot do: a text
of fewer than about ten words is often "other"; Marathi and Nepali count as Hindi (one script), Malay as Indonesian,
Cebuano may count as Tagalog; Persian and Urdu are told from Arabic by their own letters only; a mixed text has the
language of most of its words. The small words are common knowledge, no published list.
"""

from functools import cache

import numpy as np

from puna.train.prepare.words import Hashes, phrase

LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "id", "it", "pt", "th", "tl", "vi", "other")
_SCRIPTS = {"ar": (0x0600, 0x06FF), "hi": (0x0900, 0x097F), "th": (0x0E00, 0x0E7F)}
_NOT_ARABIC = frozenset("پچژگکیےہٹڈڑں")  # letters of Persian and Urdu
_SMALL = {
    "de": "der die das und ist nicht ein eine zu den mit von auf für im dem sich auch es er sie wir ich aber war wie",
    "en": "the of and to in is was that it for he she on are with as his her they at be this have not had from you",
    "es": "el los las y del que en un una es por con para su se lo como más pero al fue muy yo él está sus había",
    "fr": "le les et des est en un une du que dans il elle pour qui ne pas au sur se ce avec sont je nous vous était",
    "id": "yang dan di itu dengan untuk dari dalam tidak ini akan pada juga saya kami mereka adalah ke ada telah bisa",
    "it": "il gli e di che è un una per non con sono del della nel si al più ma lo anche i le era mi suo alla",
    "pt": "o os as e do da que em um uma não é com para por se no na mais dos das ao foi ele ela mas seu sua eu",
    "tl": "ang ng mga sa na at ay si ni kay hindi ito siya ako ko mo niya kanyang nang may isang ka para sila",
    "vi": "và của là có không được một trong cho người các với này đã những để tôi khi ông bà cô anh từ ra đến",
}
_ENOUGH = 0.08  # share of the words that must be small words; running text has 0.2 to 0.5


def language(text: str, hashes: Hashes) -> str:
    """Returns one of LANGUAGES for `text`, plain, with the hashes of its words."""
    codes = np.frombuffer(text[:20_000].encode("utf-32-le", "replace"), np.uint32)
    letters = codes[codes >= 0x41]
    for tag, (first, last) in _SCRIPTS.items():
        if 2 * np.count_nonzero((letters >= first) & (letters <= last)) > len(letters):
            foreign = tag == "ar" and sum(text.count(letter) for letter in _NOT_ARABIC) * 100 > len(letters)
            return "other" if foreign else tag
    known, owners = _small_words()
    found = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    counts = owners[found[known[found] == hashes]].sum(0, dtype=np.int64)
    best = int(counts.argmax())
    return tuple(_SMALL)[best] if counts[best] > max(_ENOUGH * len(hashes), 1) else "other"


@cache
def small_words(tag: str) -> Hashes:
    """Returns the sorted hashes of a language's small words; none where they are not known."""
    return np.sort(phrase(_SMALL.get(tag, "")))


@cache
def all_small_words() -> Hashes:
    """Returns the sorted hashes of the small words of all languages."""
    return _small_words()[0]


@cache
def _small_words() -> tuple[Hashes, np.ndarray]:
    """Returns the sorted hashes of all small words, uint64 [n], and whose each is, bool [n, languages]."""
    known = np.unique(np.concatenate([phrase(text) for text in _SMALL.values()]))
    return known, np.stack([np.isin(known, phrase(text)) for text in _SMALL.values()], axis=1)
