"""Unsafe code: finds it, names the CWE, says what to write instead.

In: code in any of ten languages, a fragment of it, or a text with fenced blocks. Out: one `Verdict`. Rules only,
nothing runs. Python is read by its syntax tree, the others (and Python that no repair can parse)
by patterns that know comments and strings. It sees one text at a time: nothing of the rest of a program.
"""

import re

from puna.guard import code_patterns, code_python
from puna.guard.code_finding import Finding, exposed_secrets
from puna.guard.verdict import Span, Verdict, action_of

GUARD = "code/1"
FLAG_AT, BLOCK_AT = 0.5, 0.8
MAX_CHARACTERS = 200_000

LANGUAGE_NAMES: dict[str, str] = {
    "py": "python",
    "python3": "python",
    "js": "javascript",
    "jsx": "javascript",
    "ts": "javascript",
    "tsx": "javascript",
    "typescript": "javascript",
    "node": "javascript",
    "c++": "cpp",
    "cc": "cpp",
    "cxx": "cpp",
    "h": "c",
    "hpp": "cpp",
    "c#": "csharp",
    "cs": "csharp",
    "rs": "rust",
    "golang": "go",
    "kt": "kotlin",
}
FENCE = re.compile(
    r"^[ \t]*(?:```|~~~)[ \t]*([\w+#-]*)[^\n]*\n(.*?)(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)

# What a language looks like, the more specific first; the first that matches decides.
LOOKS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (language, re.compile(pattern, re.MULTILINE))
    for language, pattern in (
        ("php", r"<\?php|<\?=|\$_(?:GET|POST|REQUEST|SERVER)\b|^\s*\$\w+\s*=[^=]"),
        ("rust", r"\bfn\s+\w+\s*(?:<[^>]*>)?\(|\blet\s+mut\b|\bimpl\b.*\{|^use\s+\w+::|println!"),
        ("go", r"^package\s+\w+\s*$|\bfunc\s+(?:\(\w+\s+\*?\w+\)\s*)?\w+\(|:="),
        (
            "csharp",
            r"^\s*using\s+(?:var\s+\w+|[A-Z][\w.]+)\s*[;=]|\bnamespace\s+[A-Z][\w.]*|\bstring\s+\w+\s*[=,)]|Console\.Write",
        ),
        (
            "java",
            r"^\s*import\s+(?:static\s+)?(?:java|javax|org|com)\.[\w.*]+;|\bpublic\s+(?:static\s+)?(?:class|void|final)\b|\bthrows\s+\w+|System\.out\.",
        ),
        (
            "cpp",
            r"\bstd::|^\s*#include\s*<(?:c?string|iostream|vector|memory|fstream|map|algorithm|cstdlib|cstdio)>|\btemplate\s*<|\bcout\b|\bnamespace\s+\w+",
        ),
        ("c", r"^\s*#include\b|\bint\s+main\s*\(|\b(?:char|void|int|size_t)\s*\*?\s*\w+\s*[\[(;=]|->\w+"),
        (
            "javascript",
            r"\b(?:const|let|var)\s+[\w{[]|\bfunction\b|=>|\brequire\s*\(|\bdocument\.|\bwindow\.|\bconsole\.log",
        ),
        ("python", r"^\s*(?:def|class|import|from)\s+\w+|^\s*(?:if|for|while|with|try)\b.*:\s*$|\bself\.|\bprint\("),
    )
)

# A CWE and the more general ones that other catalogues file the same fault under.
# Source: CWE 4.15, ChildOf and PeerOf relations.
GENERAL: dict[str, tuple[str, ...]] = {
    "CWE-95": ("CWE-94",),
    "CWE-98": ("CWE-22",),
    "CWE-120": ("CWE-119",),
    "CWE-121": ("CWE-120", "CWE-119"),
    "CWE-242": ("CWE-120",),
    "CWE-326": ("CWE-327",),
    "CWE-328": ("CWE-327",),
    "CWE-338": ("CWE-330",),
    "CWE-312": ("CWE-798",),
    "CWE-185": ("CWE-1333",),
    "CWE-680": ("CWE-190",),
    "CWE-119": ("CWE-676",),
}


def check(code: str, language: str | None = None) -> Verdict:
    """Returns a verdict about `code`: "block" for a sure fault, "flag" for one that depends on what surrounds it.

    `language` is a name or an extension; without one, and for text with fences, it is guessed for each block. `codes`
    are the CWEs found, the worst first, then the more general ones that they belong to. Text over MAX_CHARACTERS is
    judged up to there and flagged with status "skipped".
    """
    spans = [
        Span(start=each.start, end=each.end, code=each.cwe, score=each.score, reason=each.reason, fix=each.fix)
        for each in find(code[:MAX_CHARACTERS], language)
    ]
    score = max((each.score for each in spans), default=0.0)
    whole = len(code) <= MAX_CHARACTERS
    ranked = dict.fromkeys(each.code for each in sorted(spans, key=lambda each: (-each.score, each.start)))
    general = dict.fromkeys(wider for each in ranked for wider in GENERAL.get(each, ()))
    return Verdict(
        guard=GUARD,
        action=action_of(score if whole else max(score, FLAG_AT), flag_at=FLAG_AT, block_at=BLOCK_AT),
        score=score if whole else max(score, FLAG_AT),
        codes=tuple(ranked | general),
        spans=tuple(spans),
        backend="rules",
        status="ok" if whole else "skipped",
        coverage=coverage(language),
    )


def coverage(language: str | None = None) -> tuple[str, ...]:
    """Returns the CWEs that the rules of a language can see; of all languages together without one."""
    known = LANGUAGE_NAMES.get((language or "").lower(), (language or "").lower())
    names = [known] if known in code_patterns.RULES else list(code_patterns.RULES)
    cwes = {rule.cwe for name in names for rule in code_patterns.RULES.get(name, ()) if rule.score}
    cwes |= set(code_python.CWES) if "python" in names else set()
    return tuple(sorted(cwes | {"CWE-798", "CWE-312"}, key=lambda cwe: int(cwe[4:])))


def find(code: str, language: str | None = None) -> list[Finding]:
    """Returns the findings in the order of the text, each CWE once a line."""
    found = exposed_secrets(code)
    for start, block, named in blocks(code, language):
        each_found = _scan(block, known(named) or guess_language(block))
        found += [each._replace(start=each.start + start, end=each.end + start) for each in each_found]
    once: dict[tuple[int, str], Finding] = {}
    for each in sorted(found, key=lambda each: (each.start, -each.score)):
        if each.score >= FLAG_AT:
            once.setdefault((code.count("\n", 0, each.start), each.cwe), each)
    return list(once.values())


def guess_language(code: str) -> str:
    """Returns the language that `code` looks like, "python" where it looks like none."""
    return next((language for language, look in LOOKS if look.search(code)), "python")


def known(name: str | None) -> str | None:
    """Returns the language that a name or an extension stands for, None for one without rules."""
    lowered = (name or "").strip().lower()
    lowered = LANGUAGE_NAMES.get(lowered, lowered)
    return lowered if lowered in code_patterns.RULES else None


def blocks(code: str, language: str | None) -> list[tuple[int, str, str | None]]:
    """Returns start, text and named language of each fenced block, or of the whole where nothing is fenced."""
    fences = [(match.start(2), match[2], match[1] or language) for match in FENCE.finditer(code)]
    return fences or [(0, code, language)]


def _scan(code: str, language: str) -> list[Finding]:
    if language != "python":
        return code_patterns.scan(code, language)
    found = code_python.scan(code)
    return code_patterns.scan(code, "python") if found is None else found
