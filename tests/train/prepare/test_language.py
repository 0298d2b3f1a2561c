import pytest

from puna.train.prepare.language import LANGUAGES, language
from puna.train.prepare.words import plain, words

# The first article of the Universal Declaration of Human Rights (public domain), as the United Nations print it.
ARTICLE = {
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt",
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है",
    "id": "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama. Mereka dikaruniai akal",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "tl": "Ang lahat ng tao'y isinilang na malaya at pantay-pantay sa karangalan at mga karapatan. Sila'y",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con người đều được",
}


def tag(text: str) -> str:
    return language(plain(text), words(plain(text)).hashes)


def test_every_language_is_told_from_the_others() -> None:
    assert {code: tag(text) for code, text in ARTICLE.items()} == {code: code for code in ARTICLE}
    assert set(ARTICLE) | {"other"} == set(LANGUAGES)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12 34 !!",
        "xqj zzkv wrrt mnbv plok",
        "すべての人間は、生まれながらにして自由であり",
        "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند. همه دارای عقل و وجدان می‌باشند چگونه",
    ],
)
def test_what_is_none_of_them_is_other(text: str) -> None:
    assert tag(text) == "other"
