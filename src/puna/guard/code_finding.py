"""A finding about code, and the words by which every language names credentials and security.

In: names and literals. Out: `Finding`s and patterns for the scanners. It does not know any language.
"""

import re
from typing import NamedTuple

# A name that holds a credential. Names that end in what a credential is stored under (key names, paths) do not count.
CREDENTIAL_NAME = re.compile(
    r"(?:^|_|\b|(?<=[a-z]))(?:pass(?:word|wd|phrase)?|pwd|secret(?:[_-]?key)?|api[_-]?key|access[_-]?key|private[_-]?key|"
    r"auth[_-]?token|access[_-]?token|bearer|signing[_-]?key|encryption[_-]?key|secret[_-]?token|jwt[_-]?secret|"
    r"client[_-]?secret|db[_-]?pass\w*|credentials?)\d*$",
    re.IGNORECASE,
)
SECURITY_WORD = re.compile(
    r"token|passw|passphrase|secret|\bkeys?\b|_key|key_|[a-z]Key|session|\botp|otp\b|_otp|nonce|salt|\bpin\b|_pin|csrf|crypt|auth"
    r"|coupon|invite|reset|captcha|verif|credential|licen|\biv\b|uuid|code\b|_code|cookie|challenge",
    re.IGNORECASE,
)
SQL_TEXT = re.compile(
    r"\b(?:select\b.+?\bfrom|insert\s+into|update\b.+?\bset|delete\s+from|drop\s+(?:table|database)|alter\s+table|create\s+table"
    r"|replace\s+into|select\s+\*|where\b)",
    re.IGNORECASE | re.DOTALL,
)
# Keys whose form alone gives them away.
SECRET_FORMS = re.compile(
    r"\bsk_(?:live|test)_[0-9A-Za-z]{16,}|\bAKIA[0-9A-Z]{16}\b|\bASIA[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{35}\b|\bgh[pousr]_[0-9A-Za-z]{30,}"
    r"|\bxox[abprs]-[0-9A-Za-z-]{10,}|\bglpat-[0-9A-Za-z_-]{20}|\bya29\.[0-9A-Za-z_-]{20,}|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bsk-[A-Za-z0-9_-]{32,}"
    r"|\brk_live_[0-9A-Za-z]{16,}|\bsq0(?:atp|csp)-[\w-]{20,}|\bnpm_[0-9A-Za-z]{30,}|\bhf_[A-Za-z]{30,}"
    r"|\b[0-9]{6,}-[0-9a-z]{32}\.apps\.googleusercontent\.com|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    r"|[a-z][a-z0-9+]*://[^\s:/@'\"]+:[^\s:/@'\"${}<>%]{3,}@[\w.-]+"
)
PRIVATE_KEY = re.compile(r"-----BEGIN (?:RSA |EC |DSA |OPENSSH |PGP |ENCRYPTED )?PRIVATE KEY(?: BLOCK)?-----")
PLACEHOLDER = re.compile(
    r"^(?:|.{1,2}|x+|\*+|\.+|none|null|true|false|undefined|string|text|password|passwd|secret|token|your[\W_].*|my[\W_]?key|<.*>|\$\{.*\}"
    r"|\{.*\}|%\(?\w*\)?s?|env:.*|.*\benv(?:iron)?\b.*|change[\W_]?me|todo|example|enter .*|.* .* .*|https?://[^@]*|/.*|[A-Z_]+_?(?:KEY|TOKEN|PASSWORD|SECRET)"
    r"|[a-z_-]+[_-](?:key|token|password|secret|passwd)|api[_-]?key|\w+\.\w+\.\w+\.\w+\.\w+)$",
    re.IGNORECASE,
)


class Finding(NamedTuple):
    """Characters `start` to `end` of the code, why they are unsafe, and what to write instead. Higher score: worse."""

    start: int
    end: int
    cwe: str
    score: float
    reason: str
    fix: str


def is_placeholder(value: str) -> bool:
    """Tells whether a literal stands for a credential rather than being one: empty, a name, a template."""
    return PLACEHOLDER.match(value.strip()) is not None


def exposed_secrets(code: str) -> list[Finding]:
    """Returns keys that their form gives away, and private keys, in text of any language."""
    fix = "read it from the environment or a secret store, and withdraw this one"
    found = [
        Finding(m.start(), m.end(), "CWE-798", 0.95, "a key is written into the code", fix)
        for m in SECRET_FORMS.finditer(code)
    ]
    found += [
        Finding(m.start(), m.end(), "CWE-312", 0.95, "a private key is written into the code", fix)
        for m in PRIVATE_KEY.finditer(code)
    ]
    return found
