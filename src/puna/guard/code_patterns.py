"""Unsafe code in languages other than Python, found by patterns that know comments and strings.

In: source and its language. Out: findings with a CWE, a place and a remedy. A pattern matches text whose comments are
blank and must begin in code, not inside a string; `unless` describes what makes the same text safe. There is no parser
and no flow: values are followed only where a pattern says so.

Source: CWE 4.15; documentation of each library named (which argument makes a call safe).
"""

import re
from typing import NamedTuple

from puna.guard.code_finding import CREDENTIAL_NAME, SQL_TEXT, Finding, is_placeholder

# Language -> family of its comments and strings.
FAMILIES: dict[str, str] = {
    **dict.fromkeys(
        ("c", "cpp", "java", "csharp", "rust", "javascript", "go", "kotlin", "swift", "objective-c", "scala"), "braces"
    ),
    "php": "php",
    **dict.fromkeys(("ruby", "shell", "python", "perl"), "hash"),
}
TOKENS = {
    "braces": r"//[^\n]*|/\*.*?(?:\*/|$)",
    "php": r"//[^\n]*|/\*.*?(?:\*/|$)|\#(?!\[)[^\n]*",
    "hash": r"\#[^\n]*",
}
STRINGS = r"@\"(?:[^\"]|\"\")*\"|\"\"\".*?\"\"\"|(?:\$@?)?\"(?:\\.|[^\"\\\n])*\"|`(?:\\.|[^`\\])*`|'(?:\\.|[^'\\\n])*'"
TOKEN = {
    family: re.compile(f"(?P<comment>{comment})|(?P<string>{STRINGS})", re.DOTALL) for family, comment in TOKENS.items()
}
RUST_TOKEN = re.compile(
    r"(?P<comment>//[^\n]*|/\*.*?(?:\*/|$))|(?P<string>r(\#*)\".*?\"\3|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\\n])')",
    re.DOTALL,
)


class Lexed(NamedTuple):
    """The same text three times, equal in length: as given, without comments, without comments and string contents."""

    code: str
    text: str
    bare: str


class Rule(NamedTuple):
    """A pattern over text without comments. `unless` is searched in the whole text, `needs` likewise."""

    cwe: str
    score: float
    pattern: re.Pattern[str]
    reason: str
    fix: str
    unless: re.Pattern[str] | None = None
    needs: re.Pattern[str] | None = None


def lex(code: str, language: str) -> Lexed:
    """Returns `code` with comments, and with comments and string contents, replaced by blanks."""
    token = RUST_TOKEN if language == "rust" else TOKEN[FAMILIES.get(language, "braces")]
    text, bare, last = [], [], 0
    for match in token.finditer(code):
        between, whole = code[last : match.start()], match[0]
        blank = re.sub(r"[^\n]", " ", whole)
        text += [between, blank if match["comment"] is not None else whole]
        bare += [between, blank if match["comment"] is not None else whole[0] + blank[1:-1] + whole[-1]]
        last = match.end()
    return Lexed(code, "".join([*text, code[last:]]), "".join([*bare, code[last:]]))


def scan(code: str, language: str) -> list[Finding]:
    """Returns what is unsafe in `code`; a language without rules is searched for exposed credentials only."""
    lexed = lex(code, language)
    found: dict[tuple[int, str], Finding] = {}
    for rule in RULES.get(language, ()):
        for each in _apply(rule, lexed):
            found.setdefault((each.start, each.cwe), each)
    for each in _hardcoded(lexed):
        found.setdefault((each.start, each.cwe), each)
    return sorted(found.values(), key=lambda each: each.start)


def _apply(rule: Rule, lexed: Lexed) -> list[Finding]:
    if rule.needs is not None and not rule.needs.search(lexed.text):
        return []
    if rule.unless is not None and rule.unless.search(lexed.text):
        return []
    return [
        Finding(match.start(), match.end(), rule.cwe, rule.score, rule.reason, rule.fix)
        for match in rule.pattern.finditer(lexed.text)
        if lexed.bare[match.start()] == lexed.text[match.start()]
    ]


ASSIGNED_TEXT = re.compile(
    r"""([\w$]+)\]?["']?\s*(?::\s*[\w&'<>\s]+)?(?:=>?|:|:=|\()\s*@?(?:String::from\()?["'`]([^"'`\n]*)["'`]"""
)


def _hardcoded(lexed: Lexed) -> list[Finding]:
    found = []
    for match in ASSIGNED_TEXT.finditer(lexed.text):
        name, value = match[1], match[2]
        before_is_call = lexed.text[match.end(1) :][:1] == "("
        if CREDENTIAL_NAME.search(name) and not before_is_call and not is_placeholder(value):
            fix = "read it from the environment or a secret store"
            found.append(Finding(match.start(), match.end(), "CWE-798", 0.8, f"{name} is written into the code", fix))
    return found


def _rule(
    cwe: int, score: float, pattern: str, reason: str, fix: str, *, unless: str | None = None, needs: str | None = None
) -> Rule:
    flags = re.DOTALL | re.MULTILINE
    optional = [None if each is None else re.compile(each, flags) for each in (unless, needs)]
    return Rule(f"CWE-{cwe}", score, re.compile(pattern, flags), reason, fix, *optional)


_VARIABLE = r"[A-Za-z_$][\w$]*"
# Text that is put together: a literal and something that is not one.
_SQL_WORD = r"(?i:select\s|insert\s+into\s|update\s|delete\s+from\s|drop\s+table\s|where\s)"
_JOINED_SQL = rf"\"[^\"\n]*{_SQL_WORD}[^\"\n]*\"\s*\+\s*(?!\s*\")"
FIX_SQL = "write placeholders in the SQL text and pass the values as parameters"
FIX_SHELL = "start the program with a list of arguments, without a shell"
FIX_RANDOM = "use a cryptographic source of random numbers"
FIX_HASH = "use SHA-256; for passwords Argon2, scrypt or bcrypt"
FIX_CIPHER = "use AES-GCM or ChaCha20-Poly1305"
FIX_TLS = "leave certificate checks on"
FIX_XML = "forbid document types and external entities"
FIX_PATH = "normalise the path and require that it lies in its folder"
FIX_MARKUP = "escape the value, or set it as text"
FIX_COPY = "copy with the size of the destination (snprintf, strlcpy)"
FIX_DATA = "use a format that holds data only, such as JSON"
FIX_REDIRECT = "redirect to paths of your own site only"

C_RULES: tuple[Rule, ...] = (
    _rule(242, 0.95, r"(?<![\w.>])(?:std::)?gets\s*\(", "gets cannot limit what it reads", "use fgets"),
    _rule(
        120,
        0.9,
        r"(?<![\w.>])(?:std::)?(?:strcpy|strcat|stpcpy|wcscpy|wcscat|lstrcpy[AW]?|lstrcat[AW]?|_tcscpy|_mbscpy)\s*\(",
        "the copy knows no size",
        FIX_COPY,
    ),
    _rule(
        120,
        0.9,
        r"(?<![\w.>])(?:std::)?v?sprintf\s*\(",
        "the output knows no size",
        FIX_COPY,
    ),
    _rule(
        120,
        0.85,
        r"(?<![\w.>])(?:std::)?(?:v?f?scanf|v?sscanf)\s*\([^;]*?\"[^\"]*%(?:s|\[)",
        "%s without a width reads any length",
        "write the width, as in %15s, or use fgets",
    ),
    _rule(
        120,
        0.8,
        rf"char\s+({_VARIABLE})\s*\[[^\]]*\]\s*;(?:(?!setw|\.width).)*?(?:std::)?cin\s*>>\s*\1\b",
        "the input may be longer than the array",
        "read into std::string",
    ),
    _rule(
        120,
        0.6,
        r"(?<![\w.>])(?:std::)?str(?:ncpy|ncat)\s*\(\s*[^,;]+,\s*([^,;]+),\s*(?:std::)?strlen\s*\(\s*\1\s*\)",
        "the size is that of the source",
        FIX_COPY,
    ),
    _rule(
        121,
        0.8,
        rf"(?:char|uint8_t|unsigned char|u_char|BYTE|int)\s+({_VARIABLE})\s*\[[^\]]+\][^;]*;(?:(?!sizeof\s*\(?\s*\1|\bif\s*\().)*?(?:std::)?(?:memcpy|memmove|bcopy)\s*\(\s*\1\s*(?:\+[^,]*)?,[^,;]+,\s*(?![^;]*sizeof)(?!\s*\d+\s*\))[^;]*\)",  # noqa: E501
        "the size of the copy is not that of the array",
        "limit the size by sizeof of the array",
    ),
    _rule(
        134,
        0.9,
        rf"(?<![\w.>])(?:std::)?(?:printf|vprintf)\s*\(\s*{_VARIABLE}(?:\[[^\]]*\])?(?:(?:->|\.){_VARIABLE})*\s*\)",
        "data is used as a format",
        'write printf("%s", text)',
    ),
    _rule(
        134,
        0.9,
        rf"(?<![\w.>])(?:fprintf|syslog|dprintf)\s*\(\s*[\w>.-]+\s*,\s*{_VARIABLE}(?:(?:->|\.){_VARIABLE})*\s*\)",
        "data is used as a format",
        'write fprintf(out, "%s", text)',
    ),
    _rule(
        134,
        0.9,
        rf"(?<![\w.>])v?snprintf\s*\([^,;]+,[^,;]+,\s*{_VARIABLE}\s*\)\s*;",
        "data is used as a format",
        'write snprintf(out, size, "%s", text)',
    ),
    _rule(
        78,
        0.85,
        r"(?<![\w.>])(?:std::)?(?:system|popen|_popen|_wsystem)\s*\(\s*(?!\")[^)]",
        "a shell runs text that is not constant",
        FIX_SHELL,
    ),
    _rule(
        78,
        0.8,
        r"(?<![\w.>])exec(?:l|lp|le)\s*\(\s*\"(?:/bin/)?(?:ba)?sh\"\s*,[^;]*\"-c\"\s*,\s*(?!\")",
        "a shell runs text that is not constant",
        FIX_SHELL,
    ),
    _rule(
        338,
        0.7,
        r"(?<![\w.>])(?:std::)?(?:rand|random|drand48|lrand48|mrand48|rand_r)\s*\(\s*[^)]*\)",
        "these random numbers can be predicted",
        FIX_RANDOM,
    ),
    _rule(
        338,
        0.7,
        r"std::(?:mt19937(?:_64)?|minstd_rand0?|default_random_engine)\s+\w+",
        "this generator can be predicted",
        FIX_RANDOM,
        needs=r"(?i)token|key|session|passw|secret|nonce|salt",
    ),
    _rule(
        328,
        0.85,
        r"(?<![\w.>])(?:MD[245]|SHA1?|MD5_Init|SHA1_Init|EVP_md5|EVP_sha1|CC_MD5|CC_SHA1|EVP_md4)\s*\(",
        "the hash is broken",
        FIX_HASH,
    ),
    _rule(
        328,
        0.8,
        r"EVP_get_digestbyname\s*\(\s*\"(?i:md5|sha1)\"|QCryptographicHash::(?:Md5|Sha1)\b|\bCALG_(?:MD5|SHA1?)\b|BCRYPT_(?:MD5|SHA1)_ALGORITHM",
        "the hash is broken",
        FIX_HASH,
    ),
    _rule(
        327,
        0.85,
        r"\bEVP_(?:des|rc4|rc2|bf)_\w+\s*\(|\bEVP_rc4\s*\(|(?<![\w.>])(?:DES_(?:ecb|ncbc|cbc|set_key\w*|ede3?)\w*|RC4(?:_set_key)?|BF_\w+_encrypt)\s*\(|EVP_aes_\d+_ecb\s*\(",
        "the cipher or its mode is broken",
        FIX_CIPHER,
    ),
    _rule(
        347,
        0.6,
        r"\bEVP_aes_\d+_(?:cbc|ctr|cfb\d*|ofb)\s*\(|(?<![\w.>])AES_(?:cbc|cfb128|ofb128|ctr128)_encrypt\s*\(",
        "nothing shows that the text was changed on its way",
        "use AES-GCM, or add an HMAC",
        unless=r"(?i)hmac|gcm|poly1305",
    ),
    _rule(
        377,
        0.9,
        r"(?<![\w.>])(?:std::)?(?:tmpnam|tempnam|mktemp|_mktemp|tmpnam_r)\s*\(",
        "another process can take the name first",
        "use mkstemp or tmpfile",
    ),
    _rule(
        680,
        0.6,
        rf"(?<![\w.>])(?:malloc|alloca|xmalloc|kmalloc|g_malloc|av_malloc)\s*\(\s*(?=[^;]*\*)(?![^;]*(?:\*\s*1|1\s*\*))(?:\(\s*\w+\s*\)\s*)?(?!sizeof\s*\([^)]*\)\s*\*\s*\d+\s*\))(?!\d+\s*\*\s*sizeof)(?=[^;]*{_VARIABLE}\s*(?:->|\.)?[^;]*\*|[^;]*\*\s*(?!sizeof){_VARIABLE})[^;]*\*[^;]*\)",
        "the product may overflow and the buffer be too small",
        "use calloc, or check the product first",
        unless=r"SIZE_MAX|_MAX\s*/|__builtin_mul_overflow|overflow|reallocarray",
    ),
    _rule(
        680,
        0.6,
        rf"(?:int|size_t|unsigned(?:\s+int)?|uint32_t|long|auto)\s+({_VARIABLE})\s*=\s*[^;=]*{_VARIABLE}[^;]*\*[^;]*;(?:(?!\bif\s*\().)*?(?:malloc\s*\(\s*\1\b|new\s+\w+\s*\[\s*\1\b)",
        "the product may overflow and the buffer be too small",
        "check the product first",
        unless=r"SIZE_MAX|_MAX\s*/|__builtin_mul_overflow|overflow",
    ),
    _rule(
        590,
        0.85,
        rf"(?:char|int|uint8_t|double|float|struct\s+\w+)\s+({_VARIABLE})\s*(?:\[[^\]]*\])\s*(?:=[^;]*)?;.*?(?<![\w.>])free\s*\(\s*\1\s*\)",
        "what is freed was never allocated",
        "do not free arrays of the stack",
    ),
    _rule(
        590, 0.85, r"(?<![\w.>])free\s*\(\s*&", "what is freed was never allocated", "free only what malloc returned"
    ),
    _rule(
        415,
        0.8,
        rf"(?<![\w.>])free\s*\(\s*({_VARIABLE})\s*\)\s*;(?:(?!\b\1\s*=(?!=)|return|\bbreak\b|\}}|else|goto).)*?(?<![\w.>])free\s*\(\s*\1\s*\)",
        "the same memory is freed twice",
        "set the pointer to NULL after free",
    ),
    _rule(
        416,
        0.8,
        rf"(?:(?<![\w.>])free\s*\(\s*({_VARIABLE})\s*\)|\bdelete(?:\s*\[\])?\s+({_VARIABLE}))\s*;(?:(?!\b(?:\1|\2)\s*=(?!=)|return\s*;|\bbreak\b|\}}|else|goto).)*?(?:\b(?:\1|\2)\b\s*(?:->|\[|\.)|\*\s*(?:\1|\2)\b|(?<!free)\(\s*(?:\1|\2)\s*[,)]|return\s+(?:\1|\2)\b)",
        "memory is used after it was freed",
        "free it after its last use",
    ),
    _rule(
        416,
        0.8,
        rf"for\s*\([^;]*\b({_VARIABLE})\s*=\s*[\w.>-]+begin\(\)[^)]*\)[^)]*\)\s*\{{(?:(?!\1\s*=).)*?\.erase\s*\(\s*\1\s*\)",
        "the iterator is used after erase ended it",
        "write it = container.erase(it)",
        unless=r"erase\s*\(\s*\w+\+\+",
    ),
    _rule(
        562,
        0.8,
        rf"\bchar\s+({_VARIABLE})\s*\[[^\]]*\][^}}]*?return\s+\1\s*;",
        "the array is gone when the function returns",
        "let the caller pass the buffer",
        unless=r"static\s+char|std::string|new\s",
    ),
    _rule(665, 0.8, r"\b(?:std::)?auto_ptr\s*<", "auto_ptr moves when it is copied", "use std::unique_ptr"),
    _rule(
        367,
        0.6,
        rf"(?<![\w.>])access\s*\(\s*({_VARIABLE}|\"[^\"]*\")\s*,[^)]*\).*?(?:fopen|open)\s*\(\s*\1",
        "the file may change between check and use",
        "open it and check the descriptor",
    ),
    _rule(
        732,
        0.8,
        r"(?<![\w.>])(?:chmod|fchmod|mkdir|open|creat)\s*\([^;]*?,\s*0[0-7]?[0-7][0-7][2367]\s*\)",
        "everybody may write it",
        "grant 0600, or 0700 for a folder",
    ),
    _rule(732, 0.7, r"(?<![\w.>])umask\s*\(\s*0+\s*\)", "everybody may write new files", "use umask(077)"),
    _rule(
        295,
        0.9,
        r"CURLOPT_SSL_VERIFY(?:PEER|HOST)\s*,\s*(?:0L?|false|FALSE)\b|SSL_VERIFY_NONE|set_verify_mode\s*\(\s*[\w:]*verify_none",
        "every certificate is accepted",
        FIX_TLS,
    ),
    _rule(
        22,
        0.7,
        rf"(?:std::)?(?:i|o)?fstream\s+\w+\s*\(\s*\"[^\"]*/\"\s*\+\s*{_VARIABLE}|fopen\s*\(\s*argv\s*\[",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"realpath|canonical|weakly_canonical",
    ),
    _rule(
        89,
        0.85,
        rf"(?:sprintf|snprintf|asprintf)\s*\([^;]*\"[^\"]*{_SQL_WORD}[^\"]*%s|{_JOINED_SQL}|\"[^\"\n]*{_SQL_WORD}[^\"\n]*\"s?\s*\+",
        "the SQL text contains values",
        FIX_SQL,
        needs=r"(?i)sqlite3?_|mysql|PQexec|execute|query|sql",
    ),
    _rule(
        704,
        0.4,
        r"reinterpret_cast\s*<\s*[\w:]+\s*\*\s*>\s*\(\s*(?:buf|data|packet|input)\b",
        "bytes from outside are read as a type",
        "use std::memcpy into the type",
    ),
)

JAVASCRIPT_RULES: tuple[Rule, ...] = (
    _rule(
        1321,
        0.6,
        r"for\s*\(\s*(?:const|let|var)\s+(\w+)\s+(?:in\s+\w+|of\s+Object\.keys\(\w+\))\s*\)[^}]{0,200}?\b\w+\[\1\]\s*=(?!=)",
        "keys of another object are copied, __proto__ among them",
        "skip __proto__, constructor and prototype, or copy with object spread",
        unless=r"__proto__|hasOwn|Object\.create\(\s*null",
        needs=r"(?i)\b(?:deep)?_?(?:merge|extend|assign)\w*\s*[=(]",
    ),
    _rule(
        95,
        0.9,
        r"(?<![\w$.])(?:window\.|global(?:This)?\.|self\.)?eval\s*\(\s*(?![\"'][^\"']*[\"']\s*\)|\))",
        "text runs as code",
        "use JSON.parse, or a table of functions",
    ),
    _rule(
        95,
        0.9,
        r"(?<![\w$.])(?:new\s+)?Function\s*\(\s*(?!\s*\)|(?:[\"'][^\"']*[\"']\s*,\s*)*[\"'][^\"']*[\"']\s*\))",
        "text runs as code",
        "use a table of functions",
    ),
    _rule(
        95,
        0.8,
        r"(?<![\w$.])(?:window\.)?set(?:Timeout|Interval)\s*\(\s*(?:[\"'][^\"']*[\"']\s*\+|`[^`]*\$\{|\w+\s*\+\s*[\"']|req\.)",
        "text runs as code",
        "pass a function",
    ),
    _rule(
        95,
        0.9,
        r"\b(?:vm\.)?(?:runInNewContext|runInThisContext|runInContext)\s*\(|new\s+vm\.Script\s*\(|\bevalScript\s*\(",
        "text runs as code",
        "do not run text; vm is no protection",
    ),
    _rule(
        95,
        0.7,
        rf"(?<![\w$.])require\s*\(\s*(?!__)(?:{_VARIABLE}[^\"'`)]*|`[^`]*\$\{{[^`]*`|[\"'][^\"']*[\"']\s*\+[^)]*)\)",
        "the module that is loaded is not constant",
        "choose from a table of modules",
        unless=r"require\s*\(\s*path\.join\(__dirname",
    ),
    _rule(
        78,
        0.9,
        r"(?<![\w$])(?:(?:child_process|cp|childProcess)\.exec(?:Sync)?|(?<!\.)exec(?:Sync)?)\s*\(\s*(?![\"'][^\"']*[\"']\s*[,)])(?!`[^`$]*`\s*[,)])",
        "a shell runs text that is not constant",
        "use execFile with a list of arguments",
        needs=r"child_process|\bcp\.|execSync|childProcess",
    ),
    _rule(
        78,
        0.9,
        r"require\s*\(\s*[\"'](?:node:)?child_process[\"']\s*\)\s*\.exec(?:Sync)?\s*\(\s*(?![\"'][^\"']*[\"']\s*[,)])(?!`[^`$]*`\s*[,)])",
        "a shell runs text that is not constant",
        "use execFile with a list of arguments",
    ),
    _rule(
        78,
        0.85,
        r"\b(?:spawn|execFile)(?:Sync)?\s*\((?:[^;]*shell\s*:\s*true|\s*[\"'](?:/bin/)?(?:ba)?sh[\"']\s*,\s*\[\s*[\"']-c[\"'])",
        "a shell runs the command",
        "leave shell out",
    ),
    _rule(
        338,
        0.75,
        r"\bMath\.random\s*\(\s*\)|\bcrypto\.pseudoRandomBytes\s*\(|(?<![\w$.])pseudoRandomBytes\s*\(|\bchance\.(?:string|guid)\(",
        "these random numbers can be predicted",
        "use crypto.randomBytes or crypto.getRandomValues",
    ),
    _rule(
        79,
        0.85,
        r"dangerouslySetInnerHTML\s*[=:]\s*\{?\s*\{\s*__html\s*:\s*(?!\s*[\"'`][^\"'`$]*[\"'`]\s*\})(?!\s*(?:DOMPurify|sanitize|purify|xss|sanitizeHtml))",
        "text becomes markup unescaped",
        FIX_MARKUP,
    ),
    _rule(
        79,
        0.85,
        r"\.(?:innerHTML|outerHTML|srcdoc)\s*\+?=(?!=)\s*(?!\s*(?:[\"'][^\"'\n]*[\"']|`[^`$]*`)\s*(?:;|$|\}))(?!\s*(?:DOMPurify|sanitize|purify|xss|escape|encode)\w*)",
        "text becomes markup unescaped",
        "set textContent",
    ),
    _rule(
        79,
        0.85,
        r"document\.write(?:ln)?\s*\(\s*(?![\"'][^\"']*[\"']\s*\))|\.insertAdjacentHTML\s*\(\s*[\"']\w+[\"']\s*,\s*(?![\"'`][^\"'`$]*[\"'`]\s*\))(?!\s*(?:DOMPurify|sanitize|escape))|v-html\s*=|\bbypassSecurityTrustHtml\s*\(",
        "text becomes markup unescaped",
        "set textContent",
    ),
    _rule(
        79,
        0.8,
        r"\$\([^)]*\)\.(?:html|append|prepend|after|before)\s*\(\s*(?:[\"'][^\"']*<[^\"']*[\"']\s*\+|`[^`]*\$\{|location|req|data\b|html\b|input\b|name\b|msg\b|text\b)",
        "text becomes markup unescaped",
        "use .text()",
    ),
    _rule(
        79,
        0.8,
        r"\bres(?:ponse)?\.(?:send|write|end)\s*\(\s*(?:[\"'][^\"']*<[^\"']*[\"']\s*\+\s*(?!escape|encode|sanitize)|`[^`]*<[^`]*\$\{\s*(?!escape|encode|sanitize)[^`]*`|(?:req|request)\.(?:query|params|body)\.\w+\s*\))",
        "a request is part of the page unescaped",
        "escape it, or send JSON",
    ),
    _rule(
        22,
        0.85,
        r"\b(?:fs\.)?(?:promises\.)?(?:readFile|readFileSync|createReadStream|writeFile|writeFileSync|createWriteStream|unlink|unlinkSync|readdir|readdirSync|appendFile|rm|open)\s*\(\s*(?:[^;]*?\breq(?:uest)?\.(?:params|query|body|url|headers)|[\"'`][^\"'`]*/[\"']\s*\+|`[^`]*/\$\{|path\.(?:join|resolve)\s*\([^;)]*,\s*(?:req\.|name|file|filename|user|input|p\b))",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"path\.basename|startsWith\s*\(|path\.relative|normalize\(|indexOf\s*\(",
    ),
    _rule(
        22,
        0.8,
        r"\bres\.(?:sendFile|download)\s*\([^;]*\breq\.(?:params|query|body)",
        "the path may leave its folder",
        "pass the root option",
        unless=r"path\.basename|startsWith\s*\(|\broot\s*:",
    ),
    _rule(
        22,
        0.6,
        r"\bpath\.(?:join|resolve)\s*\([^;)]*\breq\.(?:params|query|body)",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"path\.basename|startsWith\s*\(|path\.relative|\broot\s*:",
    ),
    _rule(
        89,
        0.9,
        rf"(?:query|execute|raw|all|run|get)\s*\(\s*(?:[\"'][^\"'\n]*{_SQL_WORD}.*?[\"']\s*\+|`[^`]*{_SQL_WORD}[^`]*\$\{{)",
        "the SQL text contains values",
        FIX_SQL,
    ),
    _rule(
        89,
        0.85,
        rf"=\s*(?:\"[^\"\n]*{_SQL_WORD}[^\"\n]*\"\s*\+|'[^'\n]*{_SQL_WORD}[^'\n]*'\s*\+|`[^`]*{_SQL_WORD}[^`]*\$\{{)",
        "the SQL text contains values",
        FIX_SQL,
        needs=r"\.(?:query|execute|raw|all|run|get)\s*\(",
    ),
    _rule(
        943,
        0.8,
        r"\.(?:find|findOne|update\w*|delete\w*)\s*\(\s*(?:req\.body|req\.query|\{[^}]*\$where)",
        "a request is used as a query",
        "take single fields as strings",
    ),
    _rule(
        328,
        0.8,
        r"createH(?:ash|mac)\s*\(\s*[\"'](?i:md5|sha1|md4|ripemd160)[\"']|CryptoJS\.(?:MD5|SHA1)\s*\(|(?<![\w$.])md5\s*\(|(?<![\w$.])sha1\s*\(",
        "the hash is broken",
        FIX_HASH,
    ),
    _rule(
        327,
        0.85,
        r"createCipheriv\s*\(\s*[\"'](?i:des|rc4|bf|rc2|[\w-]*-ecb)[^\"']*[\"']|createCipher\s*\(|CryptoJS\.(?:DES|TripleDES|RC4|Rabbit)\b|mode\.ECB",
        "the cipher or its mode is broken",
        FIX_CIPHER,
    ),
    _rule(
        295,
        0.9,
        r"rejectUnauthorized\s*:\s*false|NODE_TLS_REJECT_UNAUTHORIZED[\"']?\]?\s*=\s*[\"']?0|strictSSL\s*:\s*false|checkServerIdentity\s*:\s*\(\s*\)\s*=>",
        "every certificate is accepted",
        FIX_TLS,
    ),
    _rule(
        601,
        0.85,
        r"\.redirect\s*\(\s*(?:\d+\s*,\s*)?[^;)]*\breq(?:uest)?\.(?:query|params|body|headers)|(?:window\.)?location(?:\.href)?\s*=\s*[^;]*(?:URLSearchParams|location\.(?:search|hash)|params\.get|searchParams)",
        "a request chooses where the browser goes",
        FIX_REDIRECT,
        unless=r"startsWith\s*\(|allow|includes\s*\(|whitelist",
    ),
    _rule(
        918,
        0.85,
        r"\b(?:fetch|axios(?:\.\w+)?|got|request(?:\.get)?|https?\.(?:get|request)|needle)\s*\(\s*(?:\{\s*url\s*:\s*)?[^;,)]*\breq(?:uest)?\.(?:query|params|body)",
        "a request chooses the address that the server calls",
        "compare the host with a list of allowed ones",
        unless=r"allow|whitelist|\bhostname\b",
    ),
    _rule(
        345,
        0.7,
        r"\.postMessage\s*\([^;]*,\s*[\"']\*[\"']\s*\)",
        "any site may receive the message",
        "name the origin of the receiver",
    ),
    _rule(
        345,
        0.7,
        r"addEventListener\s*\(\s*[\"']message[\"']",
        "messages of any site are accepted",
        "compare event.origin",
        unless=r"\borigin\b",
    ),
    _rule(
        185,
        0.7,
        rf"new\s+RegExp\s*\(\s*(?![\"'][^\"']*[\"']\s*[,)])(?!/)(?!`[^`$]*`)(?!\s*escape\w*\()\s*[\"'`{_VARIABLE[1:]}",
        "the regular expression is not constant",
        "escape the text first",
        unless=r"(?i)escape(?:d|Reg\w*)|replace\s*\(\s*/\[",
    ),
    _rule(
        208,
        0.7,
        r"\b\w*(?i:password|secret|token|hash|signature|hmac|digest|api_?key)\w*\s*[!=]==?\s*(?!\s*(?:null|undefined|true|false|[\"']{2}|[\"']\w*[\"']|\d|typeof))[\w.\[\]]+|(?<!typeof )\b(?:req\.\w+\.|\w+\.)(?:password|secret|token|hash|signature)\s*[!=]==?\s*(?!\s*(?:null|undefined|true|false|[\"']))\w+",  # noqa: E501
        "the time of the comparison shows how much is equal",
        "use crypto.timingSafeEqual",
        unless=r"timingSafeEqual|confirm|\.length\s*[!=]==?",
    ),
    _rule(
        770,
        0.6,
        rf"new\s+Buffer\s*\(\s*(?![\"']){_VARIABLE}",
        "the size of the buffer comes from outside",
        "use Buffer.from or Buffer.alloc",
    ),
    _rule(908, 0.7, r"Buffer\.allocUnsafe(?:Slow)?\s*\(", "the buffer shows old memory", "use Buffer.alloc"),
    _rule(
        319,
        0.5,
        r"[\"'`]http://(?!localhost|127\.|0\.0\.0\.0|www\.w3\.org|schemas?\.|example|\[::1)[^\"'`\s]+[\"'`]|require\s*\(\s*[\"']http[\"']\s*\)\s*\.createServer|\bhttp\.createServer\s*\(",
        "everything is sent unencrypted",
        "use https",
    ),
    _rule(
        502,
        0.85,
        r"\b(?:serialize|node-serialize)\.unserialize\s*\(|(?<![\w$.])unserialize\s*\(|yaml\.load\s*\([^;]*(?:DEFAULT_FULL_SCHEMA|unsafe)|funcster\.deepDeserialize",
        "data can run code",
        FIX_DATA,
    ),
    _rule(611, 0.85, r"noent\s*:\s*true|explicitEntities\s*:\s*true", "the parser resolves external entities", FIX_XML),
    _rule(
        347,
        0.9,
        r"jwt\.verify\s*\([^;]*algorithms\s*:\s*\[[^\]]*[\"']none|algorithms?\s*:\s*\[?\s*[\"']none[\"']",
        "the signature is not checked",
        "name the algorithm",
    ),
    _rule(
        1321,
        0.75,
        r"\b\w+\s*\[\s*(?:key|k|prop|p)\s*\]\s*\[\s*\w+\s*\]\s*=|_\.(?:merge|defaultsDeep|set)\s*\([^;]*req\.|Object\.assign\s*\([^;]*req\.body|\[\s*[\"']__proto__[\"']\s*\]\s*=",
        "the prototype of all objects may be changed",
        "refuse __proto__ and constructor",
        unless=r"__proto__[\"']\s*\)|hasOwn|Object\.create\(null\)|new\s+Map",
    ),
    _rule(
        614,
        0.6,
        r"(?:httpOnly|secure)\s*:\s*false",
        "the cookie can be read or travels unencrypted",
        "set secure and httpOnly",
    ),
    _rule(
        942,
        0.6,
        r"Access-Control-Allow-Origin[\"']\s*,\s*[\"']\*[\"']|cors\s*\(\s*\{\s*origin\s*:\s*(?:true|[\"']\*[\"'])",
        "any site may read the answers",
        "list the sites",
    ),
)

JAVA_RULES: tuple[Rule, ...] = (
    _rule(
        327,
        0.9,
        r"Cipher\.getInstance\s*\(\s*\"(?i:DES|DESede|TripleDES|RC2|RC4|ARCFOUR|Blowfish|[^\"]*/ECB/|AES\")",
        "the cipher or its mode is broken",
        "use AES/GCM/NoPadding",
    ),
    _rule(
        327,
        0.85,
        r"(?:KeyGenerator|SecretKeyFactory)\.getInstance\s*\(\s*\"(?i:DES|DESede|RC2|RC4|ARCFOUR|Blowfish)|new\s+(?:DES(?:ede)?KeySpec|NullCipher)\s*\(|new\s+SecretKeySpec\s*\([^;]*\"(?i:DES|DESede|RC4|Blowfish)\"",
        "the cipher is broken",
        "use AES/GCM/NoPadding",
    ),
    _rule(
        326,
        0.8,
        r"KeyPairGenerator\.getInstance\s*\(\s*\"RSA\".*?\.initialize\s*\(\s*(?:512|768|1024)\b",
        "the key is shorter than 2048 bits",
        "use 3072 bits or more",
    ),
    _rule(
        328,
        0.85,
        r"MessageDigest\.getInstance\s*\(\s*\"(?i:MD[245]|SHA-?1|SHA)\"|DigestUtils\.(?:md[25]|sha1?)(?:Hex)?\s*\(|Hashing\.(?:md5|sha1)\s*\(|MessageDigestAlgorithms\.(?:MD[25]|SHA_1)|Mac\.getInstance\s*\(\s*\"HmacMD5",
        "the hash is broken",
        FIX_HASH,
    ),
    _rule(
        338,
        0.8,
        r"\bnew\s+(?:java\.util\.)?Random\s*\(|\bMath\.random\s*\(\s*\)|ThreadLocalRandom\.current\s*\(|RandomStringUtils\.random\w*\s*\(|\bnew\s+SplittableRandom\s*\(",
        "these random numbers can be predicted",
        "use java.security.SecureRandom",
        unless=r"new\s+SecureRandom",
    ),
    _rule(
        89,
        0.9,
        r"(?:executeQuery|executeUpdate|execute|prepareStatement|createQuery|createNativeQuery|createSQLQuery|prepareCall|addBatch|queryFor\w+|rawQuery|execSQL|query|update)\s*\(\s*(?:\"[^\"\n]*\"\s*\+|String\.format\s*\(|\w+\s*\+\s*\")",
        "the SQL text contains values",
        "use PreparedStatement with ?",
        needs=SQL_TEXT.pattern.replace("(?:select", "(?i:select", 1),
    ),
    _rule(
        89,
        0.85,
        rf"\b({_VARIABLE})\s*\+?=\s*(?:{_JOINED_SQL}|String\.format\s*\(\s*\"[^\"]*{_SQL_WORD}|new\s+StringBuilder\s*\(\s*\"[^\"]*{_SQL_WORD}).*?(?:executeQuery|executeUpdate|execute|createStatement|createQuery|createNativeQuery|rawQuery|query\w*)\b",
        "the SQL text contains values",
        "use PreparedStatement with ?",
    ),
    _rule(
        78,
        0.9,
        r"(?:Runtime\.getRuntime\s*\(\s*\)|\b(?:runtime|rt|r)\b)\s*\.exec\s*\(\s*(?!\"[^\"]*\"\s*\)|\s*new\s+String\s*\[\s*\]\s*\{(?!\s*\"(?:/bin/)?(?:ba)?sh\"|\s*\"cmd))",
        "the command is put together from text",
        "use ProcessBuilder with a list of arguments",
    ),
    _rule(
        78,
        0.85,
        r"new\s+ProcessBuilder\s*\(\s*(?:Arrays\.asList\s*\(|List\.of\s*\()?\s*(?:\"(?:/bin/)?(?:ba|z)?sh\"\s*,\s*\"-c\"|\"cmd(?:\.exe)?\"\s*,\s*\"/[cC]\")\s*,\s*(?!\s*\"[^\"]*\"\s*\))",
        "a shell runs text that is put together",
        "start the program itself with its arguments",
    ),
    _rule(
        502,
        0.85,
        r"new\s+ObjectInputStream\s*\(|\.readObject\s*\(\s*\)|\.readUnshared\s*\(|new\s+XMLDecoder\s*\(|new\s+XStream\s*\(\s*\)|enableDefaultTyping\s*\(|activateDefaultTyping\s*\(|new\s+Yaml\s*\(\s*\)|SerializationUtils\.deserialize\s*\(|@JsonTypeInfo\s*\(\s*use\s*=\s*(?:JsonTypeInfo\.)?Id\.CLASS|new\s+Kryo\s*\(",
        "data can build arbitrary objects",
        FIX_DATA,
        unless=r"ObjectInputFilter|SafeConstructor|ValidatingObjectInputStream|allowTypes|setObjectInputFilter",
    ),
    _rule(
        611,
        0.85,
        r"(?:DocumentBuilderFactory|SAXParserFactory|XMLInputFactory|TransformerFactory|SchemaFactory)\s*\.\s*new(?:Instance|Factory|DefaultInstance|DefaultFactory)\s*\(|XMLReaderFactory\.createXMLReader\s*\(|new\s+(?:SAXBuilder|SAXReader|XMLReader)\s*\(\s*\)",
        "the parser resolves external entities",
        "forbid document types by setFeature or setProperty",
        unless=r"disallow-doctype-decl|SUPPORT_DTD|ACCESS_EXTERNAL|FEATURE_SECURE_PROCESSING|external-general-entities|IS_SUPPORTING_EXTERNAL_ENTITIES|setExpandEntityReferences\s*\(\s*false",
    ),
    _rule(
        295,
        0.9,
        r"checkServerTrusted\s*\([^)]*\)\s*(?:throws\s+[\w.,\s]+)?\{\s*(?:return\s*;\s*)?\}|\(\s*\w+\s*,\s*\w+\s*\)\s*->\s*true|boolean\s+verify\s*\(\s*(?:final\s+)?String[^)]*\)\s*\{\s*return\s+true|NoopHostnameVerifier|ALLOW_ALL_HOSTNAME_VERIFIER|AllowAllHostnameVerifier|TrustAllStrategy|TrustSelfSignedStrategy|handler\.proceed\s*\(\s*\)",
        "every certificate is accepted",
        FIX_TLS,
    ),
    _rule(
        79,
        0.85,
        r"(?:getWriter\s*\(\s*\)|\bout|\bwriter|\bpw)\s*\.\s*(?:print(?:ln|f)?|write|append)\s*\([^;]*(?:getParameter|getHeader|getQueryString)\s*\(",
        "a request is part of the page unescaped",
        "escape it with Encode.forHtml",
        unless=r"(?i)encode\.for|escapeHtml|htmlEscape",
    ),
    _rule(
        79,
        0.8,
        rf"String\s+({_VARIABLE})\s*=\s*\w+\.(?:getParameter|getHeader)\s*\(.*?(?:getWriter\s*\(\s*\)|\bout|\bwriter|\bpw)\s*\.\s*(?:print(?:ln|f)?|write|append)\s*\([^;]*\b\1\b",
        "a request is part of the page unescaped",
        "escape it with Encode.forHtml",
        unless=r"(?i)encode\.for|escapeHtml|htmlEscape",
    ),
    _rule(
        22,
        0.85,
        r"(?:new\s+(?:File|FileInputStream|FileReader|FileOutputStream|FileWriter|RandomAccessFile)|Paths?\.(?:get|of)|Files\.(?:readAllBytes|newInputStream|readString|lines|delete))\s*\([^;]*(?:getParameter\s*\(|getOriginalFilename\s*\(|\"[^\"]*/\"\s*\+\s*\w|getHeader\s*\(|entry\.getName\s*\()",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"getCanonicalPath|normalize\s*\(\s*\)|toRealPath|startsWith\s*\(|FilenameUtils\.getName|getFileName\s*\(",
    ),
    _rule(
        22,
        0.75,
        r"new\s+File(?:InputStream|Reader|OutputStream|Writer)?\s*\(\s*(?:\w*(?i:dir|root|base|folder)\w*|\"[^\"]*\")\s*[,+]\s*(?!\")\w+|(?:Paths?\.(?:get|of)\s*\(\s*\"[^\"]*\"|\w*(?i:dir|root|base|folder)\w*\.resolve\s*\()\s*,?\s*(?!\")\w+\s*\)",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"getCanonicalPath|normalize\s*\(\s*\)|toRealPath|startsWith\s*\(|FilenameUtils\.getName|getFileName\s*\(",
    ),
    _rule(
        601,
        0.85,
        r"sendRedirect\s*\([^;]*(?:getParameter|getHeader)|sendRedirect\s*\(\s*(?:url|target|next|to|dest\w*|redirect\w*|returnUrl)\s*\)|return\s+\"redirect:\"\s*\+\s*\w",
        "a request chooses where the browser goes",
        FIX_REDIRECT,
        unless=r"startsWith\s*\(|allow|contains\s*\(",
    ),
    _rule(
        918,
        0.75,
        rf"new\s+(?:java\.net\.)?UR[LI]\s*\(\s*(?!\"){_VARIABLE}[^;]*?\)\s*(?:\.open(?:Connection|Stream)|.*?\.open(?:Connection|Stream)\s*\()|URI\.create\s*\(\s*(?!\"){_VARIABLE}[^;]*\).*?HttpClient|(?:getForObject|getForEntity|postForObject)\s*\(\s*(?!\"){_VARIABLE}\s*,",
        "the address that the server calls comes from outside",
        "compare the host with a list of allowed ones",
        unless=r"(?i)allow(?:ed|list)|getHost\s*\(|whitelist",
    ),
    _rule(
        352,
        0.85,
        r"\.csrf\s*\(\s*\)\s*\.\s*disable\s*\(|csrf\s*\(\s*(?:\w+\s*->\s*\w+\s*\.\s*disable\s*\(|\w+::disable)|\.csrf\s*\(\s*AbstractHttpConfigurer::disable",
        "protection against forged requests is off",
        "leave csrf on",
    ),
    _rule(
        94,
        0.85,
        r"getEngineByName\s*\([^;]*\).*?\.eval\s*\(\s*(?!\")|new\s+GroovyShell\s*\(\s*\).*?\.evaluate\s*\(\s*(?!\")|parseExpression\s*\(\s*(?!\")|Ognl\.getValue\s*\(",
        "text runs as code",
        "use a table of functions",
    ),
    _rule(
        200,
        0.7,
        r"setAllow(?:Universal|File)\w*Access\w*\s*\(\s*true|setAllow(?:File|Content)Access\s*\(\s*true",
        "pages may read files",
        "pass false",
    ),
    _rule(
        79,
        0.6,
        r"setJavaScriptEnabled\s*\(\s*true\s*\).*?addJavascriptInterface|addJavascriptInterface\s*\(",
        "pages may call the program",
        "do not add interfaces to foreign pages",
    ),
    _rule(
        589,
        0.5,
        r"\bsetPluginsEnabled|\bAsyncTask\s*<|\.getExternalStorageDirectory\s*\(\s*\)|\bManaged[qQ]uery\s*\(|\bgetRunningTasks\s*\(",
        "the method is deprecated",
        "use its successor",
    ),
    _rule(
        377,
        0.6,
        r"new\s+File\s*\(\s*\"/t" + r"mp/|new\s+File\s*\(\s*System\.getProperty\s*\(\s*\"java\.io\.tmpdir\"",
        "the name of the temporary file can be guessed",
        "use Files.createTempFile",
    ),
    _rule(
        90,
        0.8,
        r"\.search\s*\([^;]*\"\([^\"]*=\"\s*\+",
        "the LDAP filter contains values",
        "use a filter with arguments",
    ),
    _rule(
        643,
        0.8,
        r"(?:xpath|xp|xPath)\w*\s*\.\s*(?:evaluate|compile)\s*\(\s*(?:\"[^\"]*\"\s*\+|\w+\s*\+\s*\")",
        "the XPath text contains values",
        "use XPath variables",
    ),
    _rule(
        319,
        0.5,
        r"new\s+URL\s*\(\s*\"http://(?!localhost|127\.)|new\s+FTPClient\s*\(",
        "everything is sent unencrypted",
        "use https",
    ),
    _rule(
        614,
        0.7,
        r"\.set(?:Secure|HttpOnly)\s*\(\s*false\s*\)",
        "the cookie can be read or travels unencrypted",
        "pass true",
    ),
    _rule(
        117,
        0.5,
        r"(?:log|logger|LOG)\.(?:info|warn|error|debug)\s*\([^;]*\+\s*\w+\.getParameter\s*\(",
        "a request can forge lines of the log",
        "remove line breaks first",
    ),
)

CSHARP_RULES: tuple[Rule, ...] = (
    _rule(
        328,
        0.85,
        r"\bnew\s+(?:MD5|SHA1)(?:CryptoServiceProvider|Cng|Managed)\s*\(|\b(?:MD5|SHA1)\.(?:Create|HashData)\s*\(|\bnew\s+HMAC(?:MD5|SHA1)\s*\(|HashAlgorithm\.Create\s*\(\s*\"(?i:MD5|SHA1?)\"|CryptoConfig\.CreateFromName\s*\(\s*\"(?i:MD5|SHA1?)\"",
        "the hash is broken",
        FIX_HASH,
    ),
    _rule(
        327,
        0.9,
        r"\bnew\s+(?:DES|TripleDES|RC2)(?:CryptoServiceProvider|Cng)\s*\(|\b(?:DES|TripleDES|RC2)\.Create\s*\(|CipherMode\.ECB\b|SymmetricAlgorithm\.Create\s*\(\s*\"(?i:DES|3DES|TripleDES|RC2)",
        "the cipher or its mode is broken",
        "use AesGcm",
    ),
    _rule(
        326,
        0.8,
        r"new\s+RSACryptoServiceProvider\s*\(\s*(?:512|768|1024)\s*\)|RSA\.Create\s*\(\s*(?:512|768|1024)\s*\)",
        "the key is shorter than 2048 bits",
        "use 3072 bits or more",
    ),
    _rule(
        338,
        0.8,
        r"\bnew\s+(?:System\.)?Random\s*\(|\bRandom\.Shared\b|\bRandom\s+\w+\s*=\s*new\s*\(",
        "these random numbers can be predicted",
        "use RandomNumberGenerator",
        unless=r"RandomNumberGenerator|RNGCryptoServiceProvider",
    ),
    _rule(
        89,
        0.9,
        r"(?:new\s+(?:Sql|OleDb|Odbc|MySql|Npgsql|SQLite|Sqlite|Oracle)(?:Command|DataAdapter)\s*\(|CommandText\s*=|(?:FromSqlRaw|ExecuteSqlRaw(?:Async)?|ExecuteSqlCommand|Query(?:Async|First\w*|Single\w*)?(?:<\w+>)?|Execute(?:Async|Scalar)?|SqlQuery(?:Raw)?)\s*\()\s*(?:\$@?\"[^\"]*\{|@\$\"[^\"]*\{|@?\"[^\"]*\"\s*\+|string\.Format\s*\(|\w+\s*\+\s*@?\")",
        "the SQL text contains values",
        "use parameters",
    ),
    _rule(
        89,
        0.85,
        rf"=\s*(?:\$@?\"[^\"]*{_SQL_WORD}[^\"]*\{{|@\$\"[^\"]*{_SQL_WORD}[^\"]*\{{|@?\"[^\"]*{_SQL_WORD}[^\"]*\"\s*\+\s*(?!\")|[sS]tring\.(?:Format|Concat)\s*\(\s*@?\"[^\"]*{_SQL_WORD})",
        "the SQL text contains values",
        "use parameters",
        needs=r"Command|Query|Execute|FromSql|Adapter",
    ),
    _rule(
        78,
        0.85,
        r"Process\.Start\s*\(\s*(?!new\b)(?:[^\")][^;]*|\"[^\"]*\"\s*,\s*(?!\s*\"[^\"]*\"\s*\)|\s*new\b)[^;]*|\"[^\"]*\"\s*\+[^;]*|\$\"[^;]*\{[^;]*)\)",
        "the command is put together from text",
        "use ProcessStartInfo.ArgumentList",
        unless=r"Process\.Start\s*\(\s*(?:psi|startInfo|info|start)\s*\)(?!.*Arguments\s*=)",
    ),
    _rule(
        78,
        0.85,
        r"\bArguments\s*=\s*(?:\$@?\"[^\"]*\{|@?\"[^\"]*\"\s*\+|(?!@?\"[^\"]*\"|ArgumentList)[a-z]\w*|string\.Format)",
        "the command is put together from text",
        "use ProcessStartInfo.ArgumentList",
    ),
    _rule(
        78,
        0.8,
        r"new\s+ProcessStartInfo\s*\(\s*(?:\"(?:cmd|cmd\.exe|/bin/(?:ba)?sh|bash|sh|powershell(?:\.exe)?)\"\s*,\s*(?!\s*\"[^\"]*\"\s*\))|\"[^\"]*\"\s*,\s*(?:\$\"[^\"]*\{|\"[^\"]*\"\s*\+|[a-z]\w*\s*\))|[a-z]\w*\s*[,)])|\bFileName\s*=\s*(?!@?\")[a-z]\w*\s*[,;}]",
        "the command is put together from text",
        "use ProcessStartInfo.ArgumentList",
    ),
    _rule(
        502,
        0.9,
        r"\bnew\s+(?:BinaryFormatter|SoapFormatter|NetDataContractSerializer|LosFormatter|ObjectStateFormatter|JavaScriptSerializer\s*\(\s*new\s+SimpleTypeResolver)\b|TypeNameHandling\s*[=.]\s*(?:TypeNameHandling\.)?(?:All|Auto|Objects|Arrays)\b",
        "data can build arbitrary objects",
        "use System.Text.Json",
    ),
    _rule(
        502,
        0.7,
        r"new\s+XmlSerializer\s*\(\s*Type\.GetType|new\s+DataContractSerializer\s*\(\s*Type\.GetType",
        "data chooses the type that is built",
        "name the type in code",
    ),
    _rule(
        611,
        0.85,
        r"DtdProcessing\s*=\s*DtdProcessing\.Parse|ProhibitDtd\s*=\s*false|XmlResolver\s*=\s*new\s+XmlUrlResolver|new\s+XmlTextReader\s*\(|\bnew\s+XmlDocument\s*\(\s*\)|new\s+XPathDocument\s*\(",
        "the parser resolves external entities",
        "set DtdProcessing.Prohibit and XmlResolver = null",
        unless=r"XmlResolver\s*=\s*null|DtdProcessing\.(?:Prohibit|Ignore)",
    ),
    _rule(
        295,
        0.9,
        r"ServerCertificate(?:Custom)?ValidationCallback\s*\+?=\s*(?:delegate\s*(?:\([^)]*\))?\s*\{\s*return\s+true|\([^)]*\)\s*=>\s*(?:\{\s*return\s+)?true)|DangerousAcceptAnyServerCertificateValidator|new\s+RemoteCertificateValidationCallback\s*\([^;]*true|TrustServerCertificate\s*=\s*[Tt]rue",
        "every certificate is accepted",
        FIX_TLS,
    ),
    _rule(
        643,
        0.85,
        r"\.(?:SelectNodes|SelectSingleNode|Select|Evaluate|Compile|XPathSelectElements?|XPathEvaluate)\s*\(\s*(?:\$@?\"[^\"]*/[^\"]*\{|@?\"[^\"]*(?:/|\[)[^\"]*\"\s*\+|string\.Format\s*\(\s*\"[^\"]*/)",
        "the XPath text contains values",
        "compare values in code, or use XPath variables",
    ),
    _rule(
        643,
        0.8,
        rf"\b({_VARIABLE})\s*=\s*(?:\$@?\"//?[^\"]*\{{|@?\"//?[^\"]*\"\s*\+|string\.Format\s*\(\s*\"//?).*?\.(?:SelectNodes|SelectSingleNode|Select|Evaluate|Compile|XPathSelectElements?|XPathEvaluate)\s*\([^;]*\1",
        "the XPath text contains values",
        "compare values in code, or use XPath variables",
    ),
    _rule(
        643,
        0.7,
        r"\.(?:SelectNodes|SelectSingleNode|XPathSelectElements?|XPathEvaluate)\s*\(\s*(?:xpath|expression|query|path|expr)\s*[,)]",
        "the XPath text comes from outside",
        "compare values in code, or use XPath variables",
        unless=r"(?:xpath|expression|query|path|expr)\s*=\s*\"[^\"]*\"\s*;",
    ),
    _rule(
        90,
        0.8,
        r"\.Filter\s*=\s*(?:\$\"[^\"]*\{|\"[^\"]*\"\s*\+|string\.Format)|new\s+DirectorySearcher\s*\([^;]*(?:\+|\{)",
        "the LDAP filter contains values",
        "escape the values",
    ),
    _rule(
        352,
        0.7,
        r"\[Http(?:Post|Put|Delete|Patch)[^\]]*\](?:\s*\[[^\]]*\])*\s*public\b",
        "forged requests are accepted",
        "add [ValidateAntiForgeryToken]",
        unless=r"ValidateAntiForgeryToken|AutoValidateAntiforgeryToken|\[ApiController\]|IgnoreAntiforgery|ControllerBase\b",
    ),
    _rule(
        554,
        0.9,
        r"\[ValidateInput\s*\(\s*false\s*\)\]|validateRequest\s*=\s*\"false\"|ValidateRequest\s*=\s*false",
        "the check of requests is off",
        "leave it on",
    ),
    _rule(
        601,
        0.85,
        r"(?<![\w.])(?:return\s+)?Redirect(?:Permanent)?\s*\(\s*(?!\")\w+|Response\.Redirect\s*\(\s*(?!\"[^\"]*\"\s*[,)])",
        "a request chooses where the browser goes",
        "use LocalRedirect",
        unless=r"IsLocalUrl|LocalRedirect|StartsWith\s*\(",
    ),
    _rule(
        79,
        0.85,
        r"Html\.Raw\s*\(\s*(?!\")|new\s+HtmlString\s*\(\s*(?!\")|Response\.Write\s*\([^;]*Request|new\s+MarkupString\s*\(\s*(?!\")|\(MarkupString\)\s*\w|Content\s*\(\s*(?:\"<[^\"]*\"\s*\+|\$\"<[^\"]*\{)",
        "text becomes markup unescaped",
        "let the view encode it",
        unless=r"HtmlEncode|HtmlEncoder|Sanitiz",
    ),
    _rule(
        22,
        0.8,
        r"(?:File\.(?:ReadAll\w+|Open\w*|WriteAll\w+|Delete|AppendAll\w+)|new\s+(?:FileStream|StreamReader|StreamWriter)|PhysicalFile)\s*\(\s*(?:@?\"[^\"]*\"\s*\+|\$@?\"[^\"]*\{|Path\.Combine\s*\([^;)]*,\s*(?!\")\w+|\w*(?i:dir|root|base|folder)\w*\s*\+|Request)",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"GetFileName\s*\(|GetFullPath|StartsWith\s*\(",
    ),
    _rule(
        22,
        0.7,
        rf"\b({_VARIABLE})\s*=\s*Path\.Combine\s*\([^;)]*,\s*(?!\")\w+[^;]*;.*?(?:File\.\w+|new\s+(?:FileStream|StreamReader|StreamWriter)|PhysicalFile)\s*\(\s*\1\b",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"GetFileName\s*\(|GetFullPath|StartsWith\s*\(",
    ),
    _rule(
        918,
        0.8,
        r"(?:GetAsync|GetStringAsync|GetStreamAsync|PostAsync|DownloadString(?:Async)?|WebRequest\.Create|OpenRead)\s*\(\s*(?!@?\")(?:Request|url|uri|address|target|link|endpoint)\w*",
        "the address that the server calls comes from outside",
        "compare the host with a list of allowed ones",
        unless=r"(?i)allow|\.Host\b|whitelist",
    ),
    _rule(
        94,
        0.85,
        r"CSharpScript\.(?:EvaluateAsync|RunAsync|Create)\s*(?:<[^>]*>)?\s*\(\s*(?!\")|CompileAssemblyFromSource\s*\(",
        "text runs as code",
        "use a table of functions",
    ),
    _rule(
        521,
        0.7,
        r"RequiredLength\s*=\s*[1-7]\s*[;,}]|Require(?:Digit|Lowercase|Uppercase|NonAlphanumeric|NonLetterOrDigit)\s*=\s*false",
        "short or plain passwords are accepted",
        "require 12 characters or more",
    ),
    _rule(
        614,
        0.7,
        r"\b(?:Secure|HttpOnly)\s*=\s*false",
        "the cookie can be read or travels unencrypted",
        "set both to true",
    ),
    _rule(
        377,
        0.5,
        r"Path\.GetTempFileName\s*\(",
        "the name of the temporary file can be guessed",
        "use Path.GetRandomFileName",
    ),
)

_PHP_INPUT = r"\$_(?:GET|POST|REQUEST|COOKIE|SERVER|FILES)\b"
_PHP_SAFE = r"(?:htmlspecialchars|htmlentities|intval|esc_\w+|strip_tags|filter_\w+|urlencode|json_encode|\(int\)|md5|hash|count|is_\w+|isset|number_format)"  # noqa: E501
PHP_RULES: tuple[Rule, ...] = (
    _rule(
        78,
        0.9,
        r"(?<![\w>:$])(?:shell_exec|exec|system|passthru|popen|proc_open|pcntl_exec)\s*\(\s*(?!\s*(?:'[^']*'|\"[^\"$]*\")\s*[,)])",
        "a shell runs text that is not constant",
        "escape each argument with escapeshellarg",
        unless=r"escapeshellarg|escapeshellcmd",
    ),
    _rule(
        78,
        0.9,
        r"`[^`]*\$[^`]*`",
        "a shell runs text that is not constant",
        "escape each argument with escapeshellarg",
        unless=r"escapeshellarg",
    ),
    _rule(
        95,
        0.9,
        r"(?<![\w>:$])(?:eval|create_function)\s*\(\s*(?!'[^']*'\s*\))|(?<![\w>:$])assert\s*\(\s*(?:\$|[\"'][^\"']*\$)|preg_replace\s*\(\s*[\"'](.)[^\"']*\1\w*e\w*[\"']",
        "text runs as code",
        "use a table of functions",
    ),
    _rule(
        79,
        0.85,
        rf"(?<![\w>:$])(?:echo|print|print_r|printf|die|exit|<\?=)\s*\(?(?:(?!{_PHP_SAFE})[^;])*?{_PHP_INPUT}(?!\s*\[[^\]]*\]\s*\?\s*['\"]\w*['\"]\s*:)",
        "a request is part of the page unescaped",
        "use htmlspecialchars($text, ENT_QUOTES)",
    ),
    _rule(
        79,
        0.85,
        r"<\?=\s*\$_(?:GET|POST|REQUEST|COOKIE)",
        "a request is part of the page unescaped",
        "use htmlspecialchars($text, ENT_QUOTES)",
    ),
    _rule(
        79,
        0.8,
        rf"(\$\w+)\s*=\s*{_PHP_INPUT}\s*\[[^\]]*\](?:\s*\?\?[^;]*)?\s*;(?:(?!\1\s*=(?!=)).)*?(?:echo|print)\s*\(?(?:(?!{_PHP_SAFE})[^;])*?\1\b",
        "a request is part of the page unescaped",
        "use htmlspecialchars($text, ENT_QUOTES)",
    ),
    _rule(
        79,
        0.6,
        r"\becho\s+(?:\"[^\"]*<[^\"]*\{?\$(?!this->esc)\w+[^\"]*\"|['\"][^'\"]*<[^'\"]*['\"]\s*\.\s*\$\w+)",
        "text becomes markup unescaped",
        "use htmlspecialchars($text, ENT_QUOTES)",
        unless=r"htmlspecialchars|htmlentities|esc_html|intval",
    ),
    _rule(
        89,
        0.9,
        rf"(?:mysqli?_query|pg_query|sqlite_query|->\s*(?:query|exec|prepare|multi_query|get_results|get_row|get_var|select|raw))\s*\((?:[^;,]*,)?\s*(?:\"[^\"]*{_SQL_WORD}[^\"]*\$(?!wpdb|this->(?:table|prefix))\w|[\"'][^\"';]*{_SQL_WORD}.*?[\"']\s*\.\s*\$)",
        "the SQL text contains values",
        "use prepared statements with bound values",
    ),
    _rule(
        89,
        0.85,
        rf"(\$\w+)\s*\.?=\s*(?:\"[^\"]*{_SQL_WORD}[^\"]*\$\w|\"[^\"]*{_SQL_WORD}[^\"]*\"\s*\.\s*\$|'[^';]*{_SQL_WORD}[^;]*?'\s*\.\s*\$)",
        "the SQL text contains values",
        "use prepared statements with bound values",
        needs=r"query|exec|mysql|->\s*(?:get_|raw)",
        unless=r"intval|real_escape_string|bind_param|\(int\)",
    ),
    _rule(
        98,
        0.9,
        rf"(?<![\w>:$])(?:include|require)(?:_once)?\b\s*\(?\s*[^;]*(?:{_PHP_INPUT}|['\"]\s*\.\s*\$(?!dir|root|base|this)\w+|^\s*\$\w+)",
        "a request chooses the file that runs",
        "choose from a table of files",
        unless=r"in_array|basename\s*\(|array_key_exists|isset\s*\(\s*\$\w+\s*\[\s*\$",
    ),
    _rule(
        502,
        0.9,
        r"(?<![\w>:$])(?:unserialize|yaml_parse)\s*\(\s*(?!['\"][^'\"]*['\"]\s*\))(?![^;]*allowed_classes[\"']?\s*=>\s*(?:false|\[))",
        "data can build arbitrary objects",
        "use json_decode",
    ),
    _rule(
        22,
        0.85,
        rf"(?<![\w>:$])(?:file_get_contents|fopen|readfile|file|unlink|file_put_contents|fpassthru|copy|rename|show_source|highlight_file|parse_ini_file|scandir|rmdir)\s*\([^;]*(?:{_PHP_INPUT}|['\"][^'\"]*/['\"]\s*\.\s*\$\w+|\"[^\"]*/\{{?\$\w)",
        "the path may leave its folder",
        "use basename, or compare realpath with the folder",
        unless=r"basename\s*\(|realpath\s*\(|in_array\s*\(",
    ),
    _rule(
        601,
        0.85,
        rf"header\s*\(\s*[\"'](?i:location)\s*:\s*(?:[\"']\s*\.[^;]*(?:{_PHP_INPUT}|\$(?:url|redirect|next|target|return\w*|to|dest\w*)\b)|[^\"']*\{{?\$(?!_SERVER\[['\"]?(?:PHP_SELF|HTTP_HOST)))",
        "a request chooses where the browser goes",
        FIX_REDIRECT,
        unless=r"in_array|str_starts_with|strpos\s*\(|parse_url|wp_safe_redirect",
    ),
    _rule(
        601,
        0.8,
        rf"wp_redirect\s*\([^;]*(?:{_PHP_INPUT}|\$)",
        "a request chooses where the browser goes",
        "use wp_safe_redirect",
    ),
    _rule(
        918,
        0.85,
        rf"(?:CURLOPT_URL\s*,|curl_init\s*\(|file_get_contents\s*\(\s*[\"']https?://[\"']\s*\.)\s*[^;]*{_PHP_INPUT}",
        "a request chooses the address that the server calls",
        "compare the host with a list of allowed ones",
        unless=r"in_array|parse_url",
    ),
    _rule(
        328,
        0.8,
        r"(?<![\w>:$])(?:md5|sha1|md5_file|sha1_file)\s*\(|(?<![\w>:$])hash(?:_hmac)?\s*\(\s*['\"](?i:md5|sha1|md4|crc32b?)['\"]",
        "the hash is broken",
        "use password_hash for passwords, hash('sha256', ...) otherwise",
    ),
    _rule(
        759,
        0.6,
        r"(?<![\w>:$])(?:md5|sha1|crypt)\s*\(\s*\$\w*(?i:pass|pwd)\w*\s*\)|hash\s*\(\s*['\"]\w+['\"]\s*,\s*\$\w*(?i:pass|pwd)\w*\s*\)",
        "equal passwords get equal hashes",
        "use password_hash",
    ),
    _rule(
        327,
        0.85,
        r"(?<![\w>:$])mcrypt_\w+\s*\(|openssl_encrypt\s*\([^;]*['\"](?i:des|rc4|rc2|bf|[\w-]*ecb)[^'\"]*['\"]|MCRYPT_(?:DES|3DES|RC4|BLOWFISH|MODE_ECB)",
        "the cipher or its mode is broken",
        "use openssl_encrypt with aes-256-gcm",
    ),
    _rule(
        338,
        0.8,
        r"(?<![\w>:$])(?:rand|mt_rand|lcg_value|uniqid|str_shuffle|array_rand|shuffle|mt_srand)\s*\(",
        "these random numbers can be predicted",
        "use random_int or random_bytes",
    ),
    _rule(
        295,
        0.9,
        r"CURLOPT_SSL_VERIFY(?:PEER|HOST)\s*(?:,|=>)\s*(?:0|false)|['\"]verify_peer(?:_name)?['\"]\s*=>\s*false|['\"]verify['\"]\s*=>\s*false|sslverify['\"]\s*=>\s*false",
        "every certificate is accepted",
        FIX_TLS,
    ),
    _rule(
        611,
        0.85,
        r"LIBXML_NOENT|libxml_disable_entity_loader\s*\(\s*false|LIBXML_DTDLOAD|substituteEntities\s*=\s*true",
        "the parser resolves external entities",
        FIX_XML,
    ),
    _rule(
        200,
        0.6,
        r"(?<![\w>:$])phpinfo\s*\(|ini_set\s*\(\s*['\"]display_errors['\"]\s*,\s*['\"]?(?:1|on|true)|error_reporting\s*\(\s*E_ALL\s*\)|(?:die|exit|echo|print)\s*\(?[^;]*(?:mysqli?_(?:connect_)?error|->getMessage\s*\(|->error\b|getTraceAsString)",
        "visitors see how the program works inside",
        "write it to the log",
    ),
    _rule(
        290,
        0.6,
        r"\$_SERVER\s*\[\s*['\"](?:HTTP_X_FORWARDED_FOR|HTTP_CLIENT_IP|REMOTE_ADDR|HTTP_REFERER|HTTP_X_REAL_IP|SERVER_NAME|HTTP_HOST)['\"]\s*\]",
        "the caller chooses this value",
        "do not decide who somebody is by it",
    ),
    _rule(
        862,
        0.5,
        r"add_action\s*\(\s*['\"](?:wp_ajax_nopriv_|admin_init|admin_post_nopriv_)|(?<![\w>:$])(?:wp_delete_\w+|update_option|delete_option|wp_insert_\w+|update_user_meta)\s*\([^;]*\$_(?:POST|GET|REQUEST)",
        "nobody checks whether the caller may do this",
        "call current_user_can and check_admin_referer",
        unless=r"current_user_can|check_admin_referer|wp_verify_nonce|check_ajax_referer",
    ),
    _rule(
        434,
        0.85,
        r"move_uploaded_file\s*\([^;]*\$_FILES[^;]*\[\s*['\"]name['\"]\s*\]",
        "visitors choose name and kind of the file",
        "choose the name, and check the kind",
        unless=r"pathinfo|in_array|finfo|mime_content_type",
    ),
    _rule(
        98,
        0.8,
        r"extract\s*\(\s*\$_(?:GET|POST|REQUEST)|parse_str\s*\(\s*\$_SERVER\[[^\]]*\]\s*\)|\$\$\w+\s*=\s*\$_(?:GET|POST|REQUEST)",
        "a request sets variables",
        "name each field",
    ),
    _rule(
        697,
        0.6,
        r"(?:\$\w*(?i:pass|token|hash|secret|sig)\w*|\bmd5\([^)]*\)|hash\([^)]*\))\s*==\s*(?!=)\$\w+",
        "== equates texts that look like numbers",
        "use hash_equals",
    ),
    _rule(
        915,
        0.5,
        r"(?:::create|->fill|->update)\s*\(\s*\$request->all\s*\(\s*\)\s*\)",
        "a request sets any field",
        "use validated()",
    ),
)

RUST_RULES: tuple[Rule, ...] = (
    _rule(
        119,
        0.85,
        r"\.get_unchecked(?:_mut)?\s*\(|\bfrom_raw_parts(?:_mut)?\s*\(|\.set_len\s*\(|\bptr::(?:read|write|copy(?:_nonoverlapping)?|offset)\w*\s*(?:::<[^>]*>)?\(|\.(?:offset|add)\s*\([^)]*\)\s*(?:\.read|\.write|=)|\*\s*\w+\.(?:offset|add)\s*\(",
        "nothing checks the bounds",
        "use get, or a slice",
    ),
    _rule(
        843,
        0.8,
        r"\bmem::transmute(?:_copy)?\s*(?:::<|\()|(?<![\w:])transmute\s*(?:::<|\()",
        "memory is read as another type",
        "use from_ne_bytes, or a safe conversion",
    ),
    _rule(
        908,
        0.85,
        r"\bmem::(?:uninitialized|zeroed)\s*(?:::<|\()|MaybeUninit::[^;]*\.assume_init\s*\(",
        "memory is used before it is set",
        "set it first",
    ),
    _rule(
        676,
        0.5,
        r"\bunsafe\s*(?:\{|fn\b|impl\b)",
        "the compiler does not check this part",
        "write it without unsafe, or say why it is sound",
    ),
    _rule(
        328,
        0.85,
        r"\bmd5::(?:compute|Md5|Context)|\bMd5::(?:new|digest)|\bSha1::(?:new|digest)|\bsha1::(?:Sha1|Digest)\b(?!;)|\bMd4::|MessageDigest::(?:md5|sha1)\s*\(|digest::SHA1_FOR_LEGACY_USE_ONLY|Hasher::new\s*\(\s*MessageDigest::(?:md5|sha1)",
        "the hash is broken",
        FIX_HASH,
    ),
    _rule(
        327,
        0.85,
        r"Cipher::(?:des_\w+|rc4|bf_\w+|aes_\d+_ecb)\s*\(|\bRc4::new|\bTdesEde\w*::new|\bDes::new|\becb::(?:Encryptor|Decryptor)",
        "the cipher or its mode is broken",
        FIX_CIPHER,
    ),
    _rule(
        295,
        0.9,
        r"\.danger_accept_invalid_(?:certs|hostnames)\s*\(\s*true|SslVerifyMode::NONE|\.dangerous\s*\(\s*\)\s*\.set_certificate_verifier|\.set_verify\s*\(\s*SslVerifyMode::NONE|\.verify_hostname\s*\(\s*false|use_sni\s*\(\s*false",
        "every certificate is accepted",
        FIX_TLS,
    ),
    _rule(
        78,
        0.9,
        r"Command::new\s*\(\s*\"(?:/bin/)?(?:ba|z)?sh\"\s*\).*?\.arg(?:s)?\s*\(\s*(?:\[\s*\"-c\"\s*,\s*(?!\")|&\[\s*\"-c\"\s*,\s*(?!\")|\"-c\"\s*\)\s*\.arg\s*\(\s*(?!\"))|Command::new\s*\(\s*\"cmd(?:\.exe)?\"\s*\).*?\"/[cC]\".*?\.arg\s*\(\s*(?!\")",
        "a shell runs text that is put together",
        "start the program itself with its arguments",
    ),
    _rule(
        78,
        0.6,
        rf"Command::new\s*\(\s*&?(?!\"|env!|std::env::current_exe|current_exe|OsStr)(?:format!\s*\(|{_VARIABLE})",
        "the program that is started is not constant",
        "choose from a table of programs",
    ),
    _rule(
        89,
        0.9,
        rf"(?:format!\s*\(\s*r?\#?\"[^\"]*{_SQL_WORD}[^\"]*\{{|\"[^\"]*{_SQL_WORD}[^\"]*\"\s*(?:\.to_(?:string|owned)\s*\(\s*\)|\.into\(\))?\s*\+|String::from\s*\(\s*\"[^\"]*{_SQL_WORD}[^\"]*\"\s*\)\s*\+|push_str\s*\(\s*&?format!\([^;]*{_SQL_WORD})",
        "the SQL text contains values",
        "use placeholders and pass the values",
    ),
    _rule(
        338,
        0.75,
        r"\bSmallRng::|\bStdRng::seed_from_u64\s*\(|\bXorShiftRng\b|\bPcg(?:32|64)\w*::|\bfastrand::\w+|\boorandom::|\bnanorand::WyRand|\bWyRand::",
        "these random numbers can be predicted",
        "use OsRng or getrandom",
    ),
    _rule(
        330,
        0.75,
        r"SystemTime::now\s*\(\s*\).*?(?:token|secret|session|nonce|key)",
        "the clock can be guessed",
        "use OsRng or getrandom",
        needs=r"(?i)fn\s+\w*(?:token|secret|session|nonce|key)",
    ),
    _rule(
        807,
        0.6,
        r"\b(?:std::)?env::(?:args|args_os|temp_dir|current_exe|home_dir)\s*\(",
        "the caller chooses this value",
        "do not decide about safety by it",
    ),
    _rule(
        22,
        0.8,
        r"(?:File::(?:open|create)|fs::(?:read\w*|write|remove_\w+|File::\w+|copy|create_dir\w*)|NamedFile::open(?:_async)?)\s*\(\s*&?(?:format!\s*\(\s*\"[^\"]*/\{|(?:Path::new\s*\([^)]*\)|PathBuf::from\s*\([^)]*\)|\w*(?i:base|root|dir)\w*)\.join\s*\(\s*&?(?!\"))",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"canonicalize\s*\(|starts_with\s*\(|file_name\s*\(|Component::",
    ),
    _rule(
        22,
        0.7,
        rf"let\s+(?:mut\s+)?({_VARIABLE})\s*=\s*(?:format!\s*\(\s*\"[^\"]*/\{{|(?:Path::new\s*\([^)]*\)|PathBuf::from\s*\([^)]*\)|\w*(?i:base|root|dir)\w*)\.join\s*\(\s*&?(?!\")).*?(?:File::(?:open|create)|fs::(?:read\w*|write|remove_\w+))\s*\(\s*&?\1\b",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"canonicalize\s*\(|starts_with\s*\(|file_name\s*\(|Component::",
    ),
    _rule(
        502, 0.5, r"\bbincode::deserialize\s*\(|serde_pickle::from_", "data of any size is believed", "limit the size"
    ),
    _rule(
        416,
        0.8,
        r"\bBox::from_raw\s*\(|\bRc::from_raw\s*\(|\bArc::from_raw\s*\(|\bManuallyDrop::drop\s*\(|\bptr::drop_in_place\s*\(",
        "memory may be freed twice",
        "let one owner drop it",
    ),
    _rule(
        732,
        0.8,
        r"(?:from_mode|set_mode|\.mode)\s*\(\s*0o[0-7]?[0-7][0-7][2367]\b",
        "everybody may write it",
        "grant 0o600",
    ),
    _rule(
        377,
        0.6,
        r"(?:File::create|fs::write|OpenOptions[^;]*\.open)\s*\(\s*&?(?:format!\()?\"/t" + r"mp/",
        "the name of the temporary file can be guessed",
        "use the tempfile crate",
    ),
    _rule(
        319,
        0.4,
        r"\"http://(?!localhost|127\.|0\.0\.0\.0|example|www\.w3)[^\"{}]+\"",
        "everything is sent unencrypted",
        "use https",
    ),
)

GO_RULES: tuple[Rule, ...] = (
    _rule(
        78,
        0.9,
        r"exec\.Command(?:Context)?\s*\((?:\s*\w+\s*,)?\s*\"(?:/bin/)?(?:ba)?sh\"\s*,\s*\"-c\"\s*,\s*(?!\")",
        "a shell runs text that is put together",
        "start the program itself with its arguments",
    ),
    _rule(
        89,
        0.9,
        rf"\.(?:Query|QueryRow|Exec)(?:Context)?\s*\((?:\s*\w+\s*,)?\s*(?:fmt\.Sprintf\s*\(\s*[\"`][^\"`]*{_SQL_WORD}|\"[^\"]*{_SQL_WORD}[^\"]*\"\s*\+)",
        "the SQL text contains values",
        FIX_SQL,
    ),
    _rule(328, 0.8, r"\b(?:md5|sha1)\.(?:New|Sum)\s*\(", "the hash is broken", FIX_HASH),
    _rule(327, 0.85, r"\b(?:des|rc4)\.New\w*Cipher\s*\(", "the cipher is broken", FIX_CIPHER),
    _rule(
        338,
        0.7,
        r"\brand\.(?:Int\w*|Read|Float\w*|Perm|New)\s*\(",
        "these random numbers can be predicted",
        "use crypto/rand",
        needs=r"math/rand",
        unless=r"crypto/rand",
    ),
    _rule(295, 0.9, r"InsecureSkipVerify\s*:\s*true", "every certificate is accepted", FIX_TLS),
    _rule(
        79,
        0.8,
        r"template\.HTML\s*\(\s*(?!\")|fmt\.Fprintf\s*\(\s*w\s*,\s*\"[^\"]*<[^\"]*%s",
        "text becomes markup unescaped",
        "use html/template",
    ),
    _rule(
        22,
        0.8,
        r"os\.(?:Open|ReadFile|Create)\s*\([^;\n]*(?:r\.URL|FormValue|\"/\"\s*\+)",
        "the path may leave its folder",
        FIX_PATH,
        unless=r"filepath\.(?:Clean|Base)|HasPrefix",
    ),
)

# For Python that no repair can parse; `code_python` reads the rest.
PYTHON_RULES: tuple[Rule, ...] = (
    _rule(
        94, 0.85, r"(?<![\w.])(?:eval|exec)\s*\(\s*(?![\"'][^\"']*[\"']\s*\)|\))", "text runs as code", "use a table"
    ),
    _rule(
        78,
        0.85,
        r"\bos\.(?:system|popen)\s*\(|\bsubprocess\.\w+\s*\([^\n]*shell\s*=\s*True",
        "a shell runs text",
        FIX_SHELL,
    ),
    _rule(502, 0.85, r"\b(?:c?[pP]ickle|dill|marshal)\.loads?\s*\(", "data can run code", FIX_DATA),
    _rule(502, 0.85, r"\byaml\.(?:unsafe_)?load\s*\((?![^\n]*Safe)", "data can build arbitrary objects", FIX_DATA),
    _rule(
        89,
        0.85,
        rf"\.execute\s*\(\s*(?:f[\"'][^\n]*{_SQL_WORD}|[\"'][^\n]*{_SQL_WORD}[^\n]*[\"']\s*(?:\+|%|\.format))",
        "the SQL text contains values",
        FIX_SQL,
    ),
    _rule(
        328, 0.8, r"\bhashlib\.(?:md5|sha1)\s*\((?![^\n]*usedforsecurity\s*=\s*False)", "the hash is broken", FIX_HASH
    ),
    _rule(
        295, 0.9, r"\bverify\s*=\s*False|_create_unverified_context|CERT_NONE", "every certificate is accepted", FIX_TLS
    ),
    _rule(
        338,
        0.7,
        r"(?<![\w.])random\.(?:choices?|randint|random|randrange|getrandbits)\s*\(",
        "these random numbers can be predicted",
        "use the secrets module",
    ),
    _rule(377, 0.9, r"\btempfile\.mktemp\s*\(", "another process can take the name first", "use tempfile.mkstemp"),
    _rule(611, 0.85, r"resolve_entities\s*=\s*True", "the parser resolves external entities", FIX_XML),
)

RULES: dict[str, tuple[Rule, ...]] = {
    "python": PYTHON_RULES,
    "c": C_RULES,
    "cpp": C_RULES,
    "javascript": JAVASCRIPT_RULES,
    "java": JAVA_RULES,
    "kotlin": JAVA_RULES,
    "csharp": CSHARP_RULES,
    "php": PHP_RULES,
    "rust": RUST_RULES,
    "go": GO_RULES,
}
