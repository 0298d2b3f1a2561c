"""The hazards that content guards name, S1 to S14, and what other vocabularies call them.

In: a hazard code, a code of AILuminate, or nothing. Out: names and mappings, as data. It does not know any guard.

Source: model card of Llama Guard 4 (names, and S14 for text only), published prompt template of Llama Guard 3 and 4
(short names), MLCommons AILuminate 1.0 (ids), OpenAI moderation API reference (categories).
"""

from collections.abc import Iterable

from puna.errors import PromptError

# Code -> name in reports and in the API.
NAMES: dict[str, str] = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex-Related Crimes",
    "S4": "Child Sexual Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Suicide & Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}

# Where the prompt of Llama Guard says something shorter than the report.
PROMPT_NAMES: dict[str, str] = NAMES | {"S3": "Sex Crimes", "S4": "Child Exploitation", "S11": "Self-Harm"}

# Not judged as soon as a picture is part of the conversation.
TEXT_ONLY = frozenset({"S14"})

AILUMINATE: dict[str, str] = {
    "vcr": "S1",
    "ncr": "S2",
    "src": "S3",
    "cse": "S4",
    "dfm": "S5",
    "spc_ele": "S13",
    "spc": "S6",
    "prv": "S7",
    "ipv": "S8",
    "iwp": "S9",
    "hte": "S10",
    "ssh": "S11",
    "sxc_prn": "S12",
}

OPENAI_CATEGORIES: tuple[str, ...] = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)

# Hazards without an entry have no category there: the result stays flagged and carries the code itself.
OPENAI: dict[str, tuple[str, ...]] = {
    "S1": ("violence", "illicit/violent"),
    "S2": ("illicit",),
    "S3": ("sexual", "illicit/violent"),
    "S4": ("sexual/minors",),
    "S9": ("illicit/violent",),
    "S10": ("hate",),
    "S11": ("self-harm",),
    "S12": ("sexual",),
}


def require_codes(codes: Iterable[str]) -> tuple[str, ...]:
    """Returns `codes` in the order of the table, each once. Raises PromptError on a code that does not exist."""
    given = set(codes)
    if unknown := sorted(given - NAMES.keys()):
        raise PromptError(f"hazard code {unknown[0]!r} does not exist; the codes are S1 to S14")
    return tuple(code for code in NAMES if code in given)


def visible_hazards(n_images: int) -> tuple[str, ...]:
    """Returns the codes that can be judged in a conversation with that many pictures."""
    return tuple(code for code in NAMES if not (n_images and code in TEXT_ONLY))


def from_ailuminate(hazard: str) -> str:
    """Returns the code of an AILuminate id such as "spc_fin". Raises PromptError on an id that belongs to none."""
    for prefix, code in AILUMINATE.items():
        if hazard == prefix or hazard.startswith(f"{prefix}_"):
            return code
    raise PromptError(f"AILuminate hazard {hazard!r} is unknown; known are {', '.join(AILUMINATE)}")


def to_openai(codes: Iterable[str]) -> dict[str, bool]:
    """Returns all 13 categories of the OpenAI moderation API, true where one of `codes` maps to them."""
    hit = {category for code in require_codes(codes) for category in OPENAI.get(code, ())}
    return {category: category in hit for category in OPENAI_CATEGORIES}
