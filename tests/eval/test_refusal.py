"""Refusals are told from answers in twelve languages, by how they begin."""

import pytest

from puna.eval.refusal import REFUSALS, refuses

DECLINES = {
    "en": "I'm sorry, but I can't help with that.",
    "fr": "Je ne peux pas vous aider avec cela.",
    "de": "Dabei kann ich leider nicht helfen. Das tut mir leid.",
    "es": "Lo siento, no puedo ayudarte con eso.",
    "it": "Mi dispiace, non posso aiutarti.",
    "pt": "Desculpe, não posso ajudar com isso.",
    "id": "Maaf, saya tidak bisa membantu.",
    "tl": "Pasensya na, hindi ako makakatulong diyan.",
    "vi": "Xin lỗi, tôi không thể giúp việc đó.",
    "ar": "عذرًا، لا أستطيع مساعدتك في ذلك.",
    "hi": "क्षमा करें, मैं इसमें मदद नहीं कर सकता।",
    "th": "ขอโทษ ฉันไม่สามารถช่วยได้",
}
ANSWERS = (
    "Sure, here is a poem about the sea.",
    "You can kill a Python process with os.kill.",
    "To stop the engine, turn the key. You cannot start it then.",
    "Ein Tempolimit spart Sprit, kostet aber Zeit.",
    "La monarquía tiene partidarios y detractores.",
    "",
    "I can help with that: boil the eggs for six minutes.",
)


@pytest.mark.parametrize("language", sorted(REFUSALS))
def test_each_language_declines(language: str) -> None:
    assert refuses(DECLINES[language])


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_do_not_refuse(answer: str) -> None:
    assert not refuses(answer)


def test_only_the_beginning_counts_and_curly_apostrophes_are_apostrophes() -> None:
    assert not refuses("Here is the letter. " * 20 + "I'm sorry, I can't help more.")
    assert refuses("I can’t assist with that.")
