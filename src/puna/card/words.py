"""Numbers and names as people read them on a card.

In: numbers with their unit. Out: short texts; what is not known is a dash.
"""

UNKNOWN = "–"

LANGUAGES = {
    "ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi",
    "id": "Indonesian", "it": "Italian", "pt": "Portuguese", "th": "Thai", "tl": "Tagalog", "vi": "Vietnamese",
}  # fmt: skip
"""The twelve languages of Llama 4, by ISO 639-1 code. Others appear by their codes."""


def short(n: float | None) -> str:
    """Returns a number in three digits and a letter, such as 17.2 B; whole below ten thousand."""
    if n is None:
        return UNKNOWN
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if n >= size:
            return f"{n / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{n:,.0f}"


def whole(n: float | None) -> str:
    """Returns a whole number with commas."""
    return UNKNOWN if n is None else f"{n:,.0f}"


def plain(x: float | None, digits: int = 3) -> str:
    """Returns a number with so many significant digits, without an exponent where it is not tiny."""
    if x is None:
        return UNKNOWN
    if x != 0 and abs(x) < 1e-4:
        return f"{x:.1e}"
    text = f"{x:,.{digits}g}"
    return f"{x:,.0f}" if "e" in text else text


def size(n_bytes: float | None) -> str:
    """Returns bytes in the largest decimal unit of which there is one."""
    if n_bytes is None:
        return UNKNOWN
    for unit, letters in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.3g} {letters}" if n_bytes < 1000 * unit else f"{n_bytes / unit:,.0f} {letters}"
    return f"{n_bytes:.0f} B"


def percent(share: float | None) -> str:
    """Returns a share in per cent with one decimal."""
    return UNKNOWN if share is None else f"{100 * share:.1f}"


def language(code: str) -> str:
    """Returns the English name of a language, the code where none is known here."""
    return LANGUAGES.get(code, code)


def listed(words: list[str]) -> str:
    """Returns words as a list in a sentence."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
