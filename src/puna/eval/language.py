"""Is a reply in the language that it was asked in? By script, and by small words, for the 12 languages of the card.

In: a text and the language that it should have. Out: yes or no. Arabic, Hindi and Thai are told by their letters. Of
the others the one counts that has most of its small words in the text, greetings among them, so that a text without
any is in none: a single noun cannot be told, and counts as wrong. Written apart from what training is rewarded for, so
that a model which learnt to please those rules shows it here. The words are common knowledge, no published list.
"""

import re
import unicodedata

SCRIPTS = {"ar": "ARABIC", "hi": "DEVANAGARI", "th": "THAI"}
"""Languages by the name with which Unicode's names of their letters begin."""

_WORDS = {
    "de": "ich du er es wir der die das den dem ein eine einen und ist sind bin war nicht kein nein ja mit zu auf "
    "von für im sich auch aber dabei hallo danke bitte gern wiedersehen tschüss gut sehr wie was wer",
    "en": "i you he she it we they the a an and is are am was were not no yes with to of for in on at that this but "
    "my his her their hello hi thanks thank please goodbye bye welcome good very how what who can had",
    "es": "yo tú él ella el la los las un una y es son soy era fue no sí con a de para en que se por pero mi su muy "
    "lo del al hola gracias adiós favor buenos cómo qué quién más había nada",
    "fr": "je tu il elle nous le la les un une des et est sont suis était ne pas non oui avec à de du pour dans que "
    "se sur mais mon son sa très bonjour merci revoir salut comment qui rien plus ce",
    "id": "saya aku kamu dia kami yang dan itu ini adalah tidak bukan ya dengan ke di dari untuk pada akan bisa juga "
    "mereka halo terima kasih sampai jumpa selamat apa siapa ada sebuah sama tinggal ibu",
    "it": "io tu lui lei il lo la gli le un una e è sono era non no sì con a di per in che si ma mio suo molto del "
    "della al ciao grazie prego arrivederci come chi più nel disse questo",
    "pt": "eu tu ele ela o a os as um uma e é são sou era não sim com de para em que se por mas meu seu muito do da "
    "no na ao olá oi obrigado obrigada tchau adeus nada como quem mais foi disse",
    "tl": "ako ikaw ka siya kami ang ng mga sa na at ay si ni hindi oo may ito iyon niya kanyang para isang nang po "
    "kumusta salamat paalam walang anuman sino ano ko mo maaaring diyan",
    "vi": "tôi bạn anh chị ông bà và là của có không được một những các cho với này đã khi để trong người rất xin "
    "chào cảm ơn tạm biệt gì ai cô nó việc đi đến",
}
SMALL_WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}


def is_in(text: str, language: str) -> bool:
    """Says whether a text is in one of the 12 languages, given by its code. A language beside them has no texts."""
    script = SCRIPTS.get(language, "LATIN")
    letters = [letter for letter in text if letter.isalpha()]
    if not letters or 2 * sum(unicodedata.name(each, "").startswith(script) for each in letters) <= len(letters):
        return False
    if language in SCRIPTS:
        return True
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
    found = {code: sum(word in small for word in words) for code, small in SMALL_WORDS.items()}
    return found.get(language, 0) > 0 and found[language] == max(found.values())
