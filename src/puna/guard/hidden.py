"""Text that a reader does not see but a model reads: finds it, decodes it.

In: any text. Out: `Find`s with their place and payload, or one `Verdict`. Rules only, each with the uses that are
legitimate: flags and families of emoji, joiners of Persian and Indic scripts, a byte-order mark, ideographic variants,
right-to-left scripts. Text that is unusual but visible (base64, HTML comments) is decoded for the prompt-attack guard
and not flagged here. It does not judge what a payload says.

Source: Unicode 15.1, chapters 23.2 to 23.9 (layout controls, tag characters, variation selectors); UTS 51 (emoji tag
sequences); UTS 39 (confusable letters, from which only those of Cyrillic and Greek that look like Latin are listed).
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

from puna.guard.verdict import Span, Verdict, codes_of

GUARD = "hidden/1"

TAG_OFFSET = 0xE0000
FLAG_SEQUENCE = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,6}\U000e007f")
TAGS = re.compile("[\U000e0000-\U000e007f]+")

SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]+")
SUPPLEMENTARY_SELECTOR = re.compile("[\U000e0100-\U000e01ef]")

OVERRIDES = "\u202d\u202e"
EMBEDDINGS = "\u202a\u202b\u2066\u2067\u2068"
BIDI_RUN = re.compile(f"[{OVERRIDES}{EMBEDDINGS}]([^\u202c\u2069\n]*)[\u202c\u2069]?")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")

INVISIBLE = "\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff\u180e\u3164\u115f\u1160\uffa0"
INVISIBLE_RUN = re.compile(f"[{INVISIBLE}]+")
SPLIT_TEXT = re.compile(f"[^\\s{INVISIBLE}\u00ad](?:[{INVISIBLE}\u00ad]+[^{INVISIBLE}\u00ad\n]){{3,}}")
# Scripts that write joiners or zero-width spaces in ordinary words: Arabic, Syriac, Indic and South-East Asian blocks.
JOINING = re.compile("[\u0600-\u08ff\u0900-\u0dff\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1800-\u18af\ua840-\ua87f]")
MIN_INVISIBLE = 3  # fewer are left behind by copying from web pages
MIN_JOINERS_IN_A_ROW = 4  # no script writes as many, whatever stands around them
MIN_BITS = 8

# Cyrillic and Greek letters that look like the Latin letters below them.
CONFUSABLE_PAIRS = (
    "аaеeоoрpсcуyхxіiјjѕsһhԁdԛqԝwѵvӏlАAВBЕEКKМMНHОOРPСCТTУYХXІIЈJЅSԌGԚQԜWӀI"
    "οoνvιiρpυuκkαaϲcϳjΑAΒBΕEΖZΗHΙIΚKΜMΝNΟOΡPΤTΥYΧX"
)
CONFUSABLE = {ord(other): latin for other, latin in zip(CONFUSABLE_PAIRS[::2], CONFUSABLE_PAIRS[1::2], strict=True)}
WORD = re.compile(r"[^\W\d_]+")
LATIN, LOOKALIKE = re.compile("[A-Za-z\u00c0-\u024f]"), re.compile("[\u0370-\u03ff\u0400-\u052f]")

HIDING_STYLE = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?!\.?[1-9\d])|opacity\s*:\s*0(?!\.[1-9])(?!\d)"
    r"|(?:left|top|text-indent)\s*:\s*-\d{3,}|(?<![-\w])color\s*:\s*(?:transparent|#fff(?:fff)?\b|white\b)",
    re.IGNORECASE,
)
STYLED_ELEMENT = re.compile(
    r"<(?P<tag>[a-z][\w-]*)\b(?P<attributes>[^<>]{0,2000})>(?P<inner>.*?)</(?P=tag)\s*>", re.IGNORECASE | re.DOTALL
)
STYLE_VALUE = re.compile(r"""style\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>]+))""", re.IGNORECASE)
HIDDEN_ATTRIBUTE = re.compile(r"(?<![-\w=\"'])hidden(?=\s|$|=)", re.IGNORECASE)
MARKUP = re.compile(r"<[^<>]*>")
COMMENT = re.compile(r"<!--(.*?)-->|^\[//\]:\s*#\s*[(\"'](.*?)[)\"']\s*$", re.DOTALL | re.MULTILINE)
MIN_HIDDEN_WORDS = 4  # shorter ones are labels and buttons

BASE64 = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{20,}={0,2}(?![\w+/=-])")
HEXADECIMAL = re.compile(r"(?<![\w])(?:(?:\\x|0x|%)?[0-9A-Fa-f]{2}[ ,:]?){12,}(?![\w])")
BINARY = re.compile(r"(?<!\d)(?:[01]{8}[ ,]?){4,}(?!\d)")


class Find(NamedTuple):
    """A place where text is hidden or encoded. `certain` is false where a reader can see that something is there."""

    start: int
    end: int
    code: str
    payload: str
    certain: bool


def find(text: str) -> list[Find]:
    """Returns every hidden or encoded passage of `text` with its decoded payload, in the order of the text."""
    return sorted(each for rule in RULES for each in rule(text))


def check(text: str) -> Verdict:
    """Returns "block" with the decoded payloads if text is hidden, otherwise "allow"."""
    spans = tuple(
        Span(start=each.start, end=each.end, code=each.code, score=1.0, reason=REASONS[each.code], payload=each.payload)
        for each in find(text)
        if each.certain
    )
    return Verdict(
        guard=GUARD,
        action="block" if spans else "allow",
        score=1.0 if spans else 0.0,
        codes=codes_of(spans),
        spans=spans,
        backend="rules",
        status="ok",
        coverage=tuple(REASONS),
    )


def payloads(text: str) -> list[str]:
    """Returns what the hidden and encoded passages say, for a guard that judges content."""
    return [each.payload for each in find(text) if each.payload]


def visible_text(text: str) -> str:
    """Returns `text` as a person would read it: without invisible characters, look-alike letters replaced."""
    bare = TAGS.sub("", SELECTORS.sub("", INVISIBLE_RUN.sub("", text)))
    bare = bare.translate(dict.fromkeys(map(ord, OVERRIDES + EMBEDDINGS + "\u202c\u2069\u00ad")))
    return WORD.sub(lambda word: word[0].translate(CONFUSABLE) if _is_disguised(word[0]) else word[0], bare)


def _tags(text: str) -> Iterator[Find]:
    flags = [match.span() for match in FLAG_SEQUENCE.finditer(text)]
    for run in TAGS.finditer(text):
        if not any(start < run.start() and run.end() <= end for start, end in flags):
            payload = "".join(chr(ord(char) - TAG_OFFSET) for char in run[0])
            yield Find(run.start(), run.end(), "tag_characters", _printable(payload), True)


def _variation_selectors(text: str) -> Iterator[Find]:
    for run in SELECTORS.finditer(text):
        if len(run[0]) >= 4 or (len(run[0]) >= 2 and SUPPLEMENTARY_SELECTOR.search(run[0])):
            yield Find(run.start(), run.end(), "variation_selectors", _bytes_as_text(_selector_bytes(run[0])), True)
    single = [run for run in SELECTORS.finditer(text) if len(run[0]) == 1 and _carries_no_variant(text, run)]
    if len(single) >= MIN_INVISIBLE:
        payload = _bytes_as_text(b"".join(_selector_bytes(run[0]) for run in single))
        yield Find(single[0].start(), single[-1].end(), "variation_selectors", payload, True)


def _carries_no_variant(text: str, run: re.Match[str]) -> bool:
    before = text[run.start() - 1 : run.start()]
    return before.isascii() and before.isalpha()


def _selector_bytes(run: str) -> bytes:
    return bytes(ord(char) - 0xFE00 if char < "\U000e0100" else ord(char) - 0xE0100 + 16 for char in run)


def _bidi(text: str) -> Iterator[Find]:
    mixes_directions = RIGHT_TO_LEFT.search(text) is not None
    for run in BIDI_RUN.finditer(text):
        overrides = run[0][0] in OVERRIDES
        closed = run[0][-1] in "\u202c\u2069"
        if overrides or not (mixes_directions and closed):
            payload = run[1][::-1] if run[0][0] == "\u202e" else run[1]
            yield Find(run.start(), run.end(), "bidi_controls", payload, True)


def _invisible(text: str) -> Iterator[Find]:
    odd = [run for run in INVISIBLE_RUN.finditer(text) if not _is_ordinary(text, run)]
    n_odd = sum(len(run[0]) for run in odd)
    splits = list(SPLIT_TEXT.finditer(text)) if n_odd >= MIN_INVISIBLE or text.count("\u00ad") > MIN_INVISIBLE else []
    splits = [each for each in splits if not JOINING.search(each[0])]
    covered = [each.span() for each in splits]
    for start, end in covered:
        payload = re.sub(f"[{INVISIBLE}\u00ad]", "", text[start:end])
        yield Find(start, end, "invisible_characters", payload.strip(), True)
    for run in odd:
        if n_odd >= MIN_INVISIBLE and not any(start <= run.start() < end for start, end in covered):
            yield Find(run.start(), run.end(), "invisible_characters", _decode_bits(run[0]), True)


def _is_ordinary(text: str, run: re.Match[str]) -> bool:
    """Tells whether a run of invisible characters is where writing needs it: in emoji, joining scripts, at a start."""
    before, after = text[max(0, run.start() - 2) : run.start()], text[run.end() : run.end() + 1]
    if len(run[0]) >= MIN_JOINERS_IN_A_ROW:
        return False
    if run[0] == "\ufeff" and not run.start():
        return True
    if run[0] == "\u200d" and before and after and (_is_pictorial(before[-1]) or before[-1] in "\ufe0f\u20e3"):
        return _is_pictorial(after)
    return bool(before and JOINING.match(before[-1])) or bool(after and JOINING.match(after))


def _is_pictorial(char: str) -> bool:
    return unicodedata.category(char) in {"So", "Sk"} or "\U0001f000" <= char <= "\U0001faff"


def _decode_bits(run: str) -> str:
    """Returns what a run of two kinds of invisible characters spells as bits, or nothing if it spells no text."""
    kinds = sorted(set(run))
    if len(kinds) != 2 or len(run) < MIN_BITS:
        return ""
    readings = []
    for zero, one in (kinds, kinds[::-1]):
        bits = run.replace(zero, "0").replace(one, "1")
        whole = len(bits) // 8 * 8
        readings.append(_bytes_as_text(int(bits[:whole], 2).to_bytes(whole // 8, "big")))
    return max(
        readings, key=lambda reading: sum(char.isascii() and (char.isalnum() or char == " ") for char in reading)
    )


def _homoglyphs(text: str) -> Iterator[Find]:
    words = list(WORD.finditer(text))
    disguised = [word for word in words if _is_disguised(word[0])]
    if disguised:
        start, end = disguised[0].start(), disguised[-1].end()
        yield Find(start, end, "homoglyphs", text[start:end].translate(CONFUSABLE), True)


def _is_disguised(word: str) -> bool:
    """Tells whether Latin letters are mixed with letters of another script that all look Latin.

    "kΩ", "μm" and "ΔT" are not: their letters look like themselves.
    """
    foreign = LOOKALIKE.findall(word)
    return (
        len(word) >= 3
        and bool(foreign)
        and bool(LATIN.search(word))
        and all(ord(each) in CONFUSABLE for each in foreign)
    )


def _unseen_markup(text: str) -> Iterator[Find]:
    if "<" not in text:
        return
    for element in STYLED_ELEMENT.finditer(text):
        style = STYLE_VALUE.search(element["attributes"])
        hides = style and HIDING_STYLE.search(next(filter(None, style.groups()), ""))
        inner = " ".join(MARKUP.sub(" ", element["inner"]).split())
        if (hides or HIDDEN_ATTRIBUTE.search(element["attributes"])) and len(inner.split()) >= MIN_HIDDEN_WORDS:
            yield Find(element.start("inner"), element.end("inner"), "unseen_markup", inner, True)


def _comments(text: str) -> Iterator[Find]:
    for comment in COMMENT.finditer(text):
        words = " ".join((comment[1] or comment[2] or "").split())
        if len(words.split()) >= MIN_HIDDEN_WORDS:
            yield Find(comment.start(), comment.end(), "comment", words, False)


def _encodings(text: str) -> Iterator[Find]:
    for pattern, decode in ((BASE64, _from_base64), (HEXADECIMAL, _from_hexadecimal), (BINARY, _from_binary)):
        for run in pattern.finditer(text):
            if payload := _as_sentence(decode(run[0])):
                yield Find(run.start(), run.end(), "encoded_text", payload, False)


def _from_base64(run: str) -> bytes:
    plain = run.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        return b""


def _from_hexadecimal(run: str) -> bytes:
    digits = re.sub(r"\\x|0x|[%\s,:]", "", run)
    return bytes.fromhex(digits[: len(digits) // 2 * 2])


def _from_binary(run: str) -> bytes:
    return bytes(int(byte, 2) for byte in re.findall("[01]{8}", run))


def _as_sentence(content: bytes) -> str:
    """Returns `content` as text if it reads like words, otherwise nothing: random bytes are keys, pictures, hashes."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    letters = sum(char.isalpha() or char in " .,;:!?'\n" for char in text)
    return text if len(text) >= 8 and " " in text.strip() and letters >= 0.85 * len(text) else ""


def _bytes_as_text(content: bytes) -> str:
    return _printable(content.decode("utf-8", "replace"))


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


REASONS: dict[str, str] = {
    "tag_characters": "tag characters outside the flag of a region spell text that is not shown",
    "variation_selectors": "a run of variation selectors carries bytes",
    "bidi_controls": "directional controls show the text in another order than it is read",
    "invisible_characters": "invisible characters split or encode text",
    "homoglyphs": "letters of another script stand for Latin ones",
    "unseen_markup": "the style of the element hides its text from a reader",
}

RULES: tuple[Callable[[str], Iterator[Find]], ...] = (
    _tags,
    _variation_selectors,
    _bidi,
    _invisible,
    _homoglyphs,
    _unseen_markup,
    _comments,
    _encodings,
)
