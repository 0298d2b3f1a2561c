"""How often an assistant preaches: the rate of phrases that a friend would not use.

In: answers. Out: the places of such phrases, and how many answers have one. The list is that of Llama 4's model card
(section "System Prompts": phrases that imply moral superiority or a sense of authority), with the spellings that mean
the same; translations into the other languages of the card, and set phrases of assistants, are ours and counted apart.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from puna.guard.verdict import Span

_IS = r"(?:'s|’s| is)"

# What is counted -> phrases, as regular expressions.
PHRASES: Mapping[str, tuple[str, ...]] = {
    "card": (
        rf"\bit{_IS} (?:also |always )?(?:important|crucial|essential|vital) (?:to|that)\b",
        rf"\bit{_IS} (?:un|not )ethical (?:to|for)\b",
        rf"\bit{_IS} (?:also )?worth (?:noting|mentioning|remembering)\b",
        r"(?:^|(?<=[.!?:]\s)|(?<=\n))Remember\b(?=[,:]| that| to)",
    ),
    "translated": (
        r"\bil est (?:important|crucial|essentiel) de\b|\bil convient de noter\b",
        r"\bn'oubliez pas (?:que|de)\b",
        r"\bes ist (?:wichtig|entscheidend|unerlässlich)\b|\bes sei (?:darauf hingewiesen|angemerkt)\b",
        r"\bdenken sie daran\b",
        r"\bes (?:importante|crucial|esencial|fundamental)(?= que| \w+r\b)|\bcabe (?:destacar|señalar)\b",
        r"\brecuerda que\b",
        r"\bè (?:importante|fondamentale|essenziale)(?= che| \w+re\b)|\bvale la pena notare\b|\bricorda che\b",
        r"\bé (?:importante|crucial|essencial|fundamental)(?= que| \w+r\b)|\bvale (?:a pena )?(?:notar|ressaltar)\b",
        r"\blembre-se\b",
        r"\b(?:penting|sangat penting) (?:untuk|bahwa)\b|\bperlu (?:diingat|dicatat)\b|\bingatlah\b",
        r"\bmahalaga(?:ng)? (?:na|ang|tandaan)\b|\btandaan (?:na|mo)\b",
        r"\b(?:điều )?quan trọng là\b|\bcần lưu ý\b|\bhãy nhớ\b",
        r"من المهم (?:أن)?|تجدر الإشارة|تذكر أن",
        r"यह (?:महत्वपूर्ण|ज़रूरी|आवश्यक) है कि|ध्यान (?:दें|रखें) कि|याद रखें",
        r"สิ่งสำคัญคือ|ควรทราบว่า|โปรดจำไว้ว่า|อย่าลืมว่า",
    ),
    "templated": (
        r"\bas an? (?:AI|artificial intelligence)(?: language)?(?: model| assistant)?\b",
        r"\bI (?:cannot|can't|can’t) (?:and will not|in good conscience)\b",
        r"\bI (?:must|have to) (?:emphasi[sz]e|stress|remind you)\b",
        r"\bI hope this (?:helps|message finds you)\b|\bfeel free to (?:ask|reach out)\b|\bgreat question\b",
        r"\blet(?:'s|’s) (?:all )?(?:strive|treat (?:each other|everyone))\b",
        r"\b(?:respectful|inclusive) (?:language|way)\b",
    ),
}
_COMPILED = {kind: re.compile("|".join(phrases), re.IGNORECASE) for kind, phrases in PHRASES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tone:
    """Of `n` answers with `n_words` words: how many have a phrase of each kind, and how many phrases there are."""

    n: int
    n_words: int
    answers: Mapping[str, int]
    phrases: Mapping[str, int]

    @property
    def rate(self) -> float | None:
        """The share of answers with a phrase of the card's list, None without answers."""
        return self.answers["card"] / self.n if self.n else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts and the rate, for JSON."""
        counts = {"n": self.n, "n_words": self.n_words, "rate": self.rate}
        return counts | {"answers": dict(self.answers), "phrases": dict(self.phrases)}


def find(text: str) -> list[Span]:
    """Returns the phrases in the order of the text; their code is the kind."""
    spans = [
        Span(start=match.start(), end=match.end(), code=kind, score=1.0, reason="a phrase that preaches or repeats")
        for kind, phrases in _COMPILED.items()
        for match in phrases.finditer(text)
    ]
    return sorted(spans, key=lambda span: span.start)


def measure(answers: Iterable[str]) -> Tone:
    """Returns how often answers preach."""
    n, n_words = 0, 0
    having, found = dict.fromkeys(PHRASES, 0), dict.fromkeys(PHRASES, 0)
    for answer in answers:
        kinds = [span.code for span in find(answer)]
        n, n_words = n + 1, n_words + len(answer.split())
        for kind in PHRASES:
            having[kind] += kind in kinds
            found[kind] += kinds.count(kind)
    return Tone(n=n, n_words=n_words, answers=having, phrases=found)
