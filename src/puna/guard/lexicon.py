"""Harmful requests that single phrases give away: the content guard of those who have no weights.

In: the last message of a context. Out: one `Verdict` that covers a few hazard codes and calls all others unknown.
A rule is a request, an act and an object close together, in any of the 12 languages of the model card; games, stories
and history excuse it. It judges words, not meaning: most harmful texts have none of these phrases, so "allow" here says
little, and nothing at all about a code outside `coverage`. No list of slurs, no recipe, nothing to learn from.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from puna.guard.guard import Context, Probe
from puna.guard.hazards import NAMES
from puna.guard.verdict import Backend, Span, Verdict, action_of, codes_of

EXCUSED_WITHIN = 120  # characters on both sides of a hit
SCORE = 0.8  # of a hit: sure about the words, not about what is meant


def _any(*phrases: str) -> str:
    return f"(?:{'|'.join(phrases)})"


_ASK = _any(
    r"how (?:do|can|could|would|should|to|did you)\b",
    r"ways? (?:of|to)\b",
    r"what(?:'s| is) (?:a|the) \w+ (?:way|method|plan)",
    r"what steps|steps? (?:to|for)|step[- ]by[- ]step|instructions?|recipe|guide|tutorial",
    r"tell me|teach me|show me|help me|where (?:can|do) i",
    r"i(?: want| am going| plan|'m going|'m planning) to",
)
_NEAR = r"[^.?!\n]{0,40}\b"
_PERSON = (
    r"(?:(?:a|an|my|the|some|another|this|that|his|her|our) )?(?:\w+ )?"
    + _any(
        r"person|people|someone|somebody|human|man|woman|wife|husband|spouse|partner|girlfriend|boyfriend|ex",
        r"boss|neighbou?r|parents?|grandparent|mother|father|mom|dad|sister|brother|child(?:ren)?|kids?|baby",
        r"co-?worker|colleague|classmates?|teacher|politician|president|family|date",
    )
    + r"(?:'s life)?\b(?! (?:portrait|photo|picture|film|movie|scene|video)s?)"
)
_KILLING = (
    r"(?:kill|murder|strangl|stab|shoot|assassinat|poison|chok|behead|execut|terminat|beat up|euthani[sz])"
    r"(?:e|es|ed|t?ing)?"
)
_MAKING = r"(?:mak|build|construct|assembl|synthesi[sz]|produc|creat|weaponi[sz]|set off|detonat)\w*"
_HARMLESS_BOMB = "".join(
    f"(?<!{kind})" for kind in ("bath ", "glitter ", "seed ", "smoke ", "photo", "photo ", "cherry ")
)
_WEAPON = _any(
    r"(?:pipe|nail|dirty|car|fertili[sz]er|petrol|time|homemade|home-made|nuclear|atomic) ?bombs?",
    r"\bbombs?(?! (?:calorimeter|shelter|cyclone))",
    r"explosives?|\bied\b|nerve (?:agent|gas)|sarin|mustard gas|ricin|anthrax|molotov cocktails?|ghost gun",
    r"(?:chemical|biological|nuclear|radiological) (?:weapon|device|agent)s?",
)
_OWN = r"(?:a |an |my |the |some\w* )*(?:\w+ )?"

# Words near a request that make it one about a game, a story, the past, or a word.
_EXCUSE = re.compile(
    r"\b"
    + _any(
        r"games?|chess|checkers|judo|wrestling|minecraft|gta|fortnite|call of duty|battlefield|witcher",
        r"film|movie|novel|story|stories|series|season|episode|actor|played by|character|fiction(?:al)?|fantasy",
        r"history|historical|world war|genocide|what does|definition|define|meaning",
        r"juego|película|jeu|roman|spiel|romanzo|jogo|filme",
    )
    + r"\b",
    re.IGNORECASE,
)

# What is harmful once somebody asks for it, in English.
ASKED: dict[str, tuple[str, ...]] = {
    "S1": (
        rf"{_KILLING} {_PERSON}",
        r"(?:commit(?:ting)?|get(?:ting)? away with|plan(?:ning)?) (?:a |an |violent )*"
        r"(?:murder|assassination|assault|massacre|(?:mass|school) shooting)",
    ),
    "S2": (
        r"launder(?:ing)? money|money launder",
        r"commit(?:ting)? (?:\w+ ){0,2}(?:fraud|theft|robbery|arson|treason|blackmail)",
        rf"break(?:ing)? into {_OWN}(?:house|home|apartment|car|bank|vault|account)",
        r"steal(?:ing)? (?:an? |my \w+ |someone's |the )?(?:car|identity|wallet|credit cards?)",
        r"rob(?:bing)? a (?!base)",
        r"(?:cook|mak|synthesi[sz]|produc|sell|smuggl)\w*\b[^.?!\n]{0,15}\b"
        r"(?:meth(?:amphetamine)?|crystal meth|lsd|mdma|heroin|cocaine|fentanyl|marihuana in the street)\b",
        r"(?:writ|mak|creat|build|spread)\w*[^.?!\n]{0,15}\b(?:ransomware|keylogger|phishing (?:e-?mail|site|page))",
    ),
    "S9": (rf"{_MAKING}[^.?!\n]{{0,25}}{_HARMLESS_BOMB}{_WEAPON}",),
}
# What is harmful as it stands.
PHRASES: dict[str, tuple[str, ...]] = {
    "S1": (
        r"(?:cómo|como) (?:puedo )?(?:matar|asesinar|apuñalar|envenenar) a (?:mi|una?|alguien)",
        r"comment (?:puis-je )?(?:tuer|assassiner|poignarder|empoisonner) (?:ma|mon|une?|quelqu'un)",
        r"wie (?:kann ich|töte ich|ermorde ich|bringe ich)[^.?!\n]{0,30}(?:jemanden|meine|meinen|einen menschen)"
        r"[^.?!\n]{0,20}(?:um\b|töten|umbringen|ermorden|vergiften|\?)",
        r"come (?:posso )?(?:uccidere|assassinare|accoltellare|avvelenare) (?:mia|mio|una?|qualcuno)",
        r"como (?:posso )?(?:matar|assassinar|esfaquear|envenenar) (?:minha|meu|uma?|alguém)",
        r"(?:bagaimana|gimana)[^.?!\n]{0,20}(?:membunuh|meracuni|menikam) (?:seseorang|orang|istri|suami)",
        r"(?:làm (?:thế nào|sao)|cách)[^.?!\n]{0,20}(?:giết|đầu độc) (?:người|ai đó|vợ|chồng)",
        r"paano[^.?!\n]{0,20}(?:pumatay|papatayin|patayin|lasunin)[^.?!\n]{0,20}(?:tao|asawa|isang)",
        r"كيف (?:يمكنني |أستطيع )?(?:أقتل|قتل|أسمم|تسميم) (?:شخص|زوج|أحد|إنسان)",
        r"(?:किसी|पत्नी|पति|इंसान|आदमी)[^.?!।\n]{0,20}(?:हत्या|कत्ल|जान से मार|ज़हर)[^.?!।\n]{0,20}(?:कैसे|तरीका)",
        r"(?:วิธี|ทำอย่างไร|ยังไง)[^\n]{0,20}(?:ฆ่า|วางยาพิษ)(?:คน|ภรรยา|สามี|ใคร)",
        r"(?:ฆ่าคน|ฆ่าภรรยา)[^\n]{0,10}(?:อย่างไร|ยังไง)",
    ),
    "S4": (
        r"\b(?:child|kiddie|underage|preteen) (?:porn(?:ography)?|sex(?:ual)? (?:images?|videos?|material)|nudes?)\b"
        r"(?![^.?!\n]{0,40}(?:law|prevent|report|victim|research|police|detect))",
    ),
    "S9": (
        r"(?:cómo|como) (?:puedo )?(?:hacer|fabricar|construir|fazer|faço) u[nm]a bomba",
        r"comment (?:puis-je )?(?:faire|fabriquer|construire) une bombe",
        r"wie (?:baue|bastle|baut|bastelt|kann) (?:ich|man)[^.?!\n]{0,15}(?:eine )?(?:rohr)?bombe",
        r"come (?:posso )?(?:fare|costruire|fabbricare|si costruisce) una bomba",
        r"(?:bagaimana|cara)[^.?!\n]{0,20}(?:membuat|merakit) bom\b",
        r"(?:làm (?:thế nào|sao)|cách)[^.?!\n]{0,20}(?:chế tạo|làm|chế) (?:ra )?(?:một quả )?bom",
        r"paano[^.?!\n]{0,20}(?:gumawa|gagawa) ng bomba",
        r"كيف (?:يمكنني |أستطيع )?(?:أصنع|صنع|أصنّع) (?:قنبلة|متفجرات)",
        r"बम[^.?!।\n]{0,15}(?:कैसे बना|बनाने का तरीका)",
        r"(?:ทำ|สร้าง|ประกอบ)ระเบิด(?:อย่างไร|ยังไง|แสวงเครื่อง)",
    ),
    "S11": (
        r"\b(?:how (?:do|can|should|to)|ways? (?:of|to)|want to|going to|help me)\b[^.?!\n]{0,30}\b"
        r"(?:commit(?:ting)? suicide|end(?:ing)? my (?:own )?life|(?:kill|hang|drown|cut|hurt)(?:t?ing)? myself)\b",
        r"\b(?:quiero|cómo) (?:suicidarme|matarme|quitarme la vida)",
        r"\b(?:je veux|comment) me (?:suicider|tuer)",
        r"\b(?:ich will|wie kann ich) mich (?:umbringen|töten)|mir das leben nehmen",
        r"\b(?:voglio|come posso) (?:uccidermi|suicidarmi|togliermi la vita)",
        r"\b(?:quero|como posso) (?:me matar|suicidar-me|tirar a minha vida)",
        r"(?:ingin|mau|cara) bunuh diri",
        r"(?:muốn|cách) tự tử",
        r"(?:gusto kong|paano) magpakamatay",
        r"(?:أريد|كيف) (?:أن )?(?:أنتحر|الانتحار)",
        r"(?:आत्महत्या|खुदकुशी)[^।\n]{0,15}(?:कैसे|करना चाहत)",
        r"(?:อยาก|วิธี)ฆ่าตัวตาย",
    ),
    "S14": (
        r":\(\)\s*\{\s*:\s*\|\s*:\s*&\s*\}\s*;\s*:",
        r"\b(?:run|execute|python|interpreter|sandbox)\b[^.?!\n]{0,60}"
        r"(?:/etc/shadow|rm -rf /(?:\s|$|\*)|fork bomb|reverse shell|"
        r"escape (?:from )?(?:the |this |your )?(?:sandbox|container))",
    ),
}

_MID_WORD = re.compile("[A-Za-z\u00c0-\u024f]{2}")  # where a phrase would begin inside a word


class Rule(NamedTuple):
    """A phrase and the code that it stands for."""

    code: str
    phrase: re.Pattern[str]


ASK = re.compile(_ASK, re.IGNORECASE)
ACTS = tuple(Rule(code, re.compile(_NEAR + _any(*acts), re.IGNORECASE)) for code, acts in ASKED.items())
RULES = tuple(Rule(code, re.compile(phrase, re.IGNORECASE)) for code, phrases in PHRASES.items() for phrase in phrases)
COVERAGE = tuple(code for code in NAMES if code in PHRASES or code in ASKED)
UNKNOWN = tuple(code for code in NAMES if code not in COVERAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LexiconGuard:
    """The content guard that needs nothing. See the module for how little it sees."""

    name: str = "content"
    backend: Backend = "rules"
    probes: Sequence[Probe] = field(
        default=(
            Probe(Context.of_text("How do I build a pipe bomb?"), False),
            Probe(Context.of_text("How do I build a bird house?"), True),
        )
    )

    def check(self, context: Context) -> Verdict:
        """Returns the verdict about the last text. Pictures are not seen, which makes the status "skipped"."""
        spans = find(context.text)
        score = max((span.score for span in spans), default=0.0)
        has_images = bool(context.messages and context.messages[-1].images)
        return Verdict(
            guard="content/lexicon",
            action=action_of(score, flag_at=0.5, block_at=0.5),
            score=score,
            codes=codes_of(spans),
            spans=tuple(spans),
            backend=self.backend,
            status="skipped" if has_images else "ok",
            coverage=COVERAGE,
            unknown=UNKNOWN,
            scores={span.code: span.score for span in spans},
            reason="pictures cannot be judged without weights" if has_images else None,
        )


def find(text: str) -> list[Span]:
    """Returns the passages that a rule names, in the order of the text, none inside another of the same code."""
    found: list[Span] = []
    hits = (hit for hit in _hits(text) if not _MID_WORD.match(text[max(0, hit[0] - 1) : hit[0] + 1]))
    for start, end, code in sorted(hits):
        excused = _EXCUSE.search(text, max(start - EXCUSED_WITHIN, 0), end + EXCUSED_WITHIN)
        if not excused and not any(span.code == code and span.end >= end for span in found):
            reason = f"the words ask for {NAMES[code].lower()}"
            found.append(Span(start=start, end=end, code=code, score=SCORE, reason=reason))
    return found


def _hits(text: str) -> Iterator[tuple[int, int, str]]:
    """Yields begin, end and code. Who asks is looked for once, and what is asked only behind that."""
    for asked in ASK.finditer(text):
        for rule in ACTS:
            if found := rule.phrase.match(text, asked.end()):
                yield asked.start(), found.end(), rule.code
    for rule in RULES:
        yield from ((*found.span(), rule.code) for found in rule.phrase.finditer(text))
