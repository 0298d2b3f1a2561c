"""MGSM: 250 school problems in eleven languages, asked and reasoned about in the language. Chat models, 0 shots.

Exact match, averaged over all eleven languages, also those that Llama does not support; the same problem in several
languages is a cluster. That Meta used exactly these texts is likely, not confirmed. The texts are kept as published,
with their slips (the Bengali "।.", the Japanese beginning).
Source: Shi et al. 2022; openai/simple-evals `mgsm_eval.py`.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from puna.eval.extract import MGSM_PREFIXES, mgsm_number
from puna.eval.task import Chat, Hub, Item, Score, Source, Task, matched, read, user

TEST = Source(
    folder="mgsm",
    file="test.jsonl",
    hub=Hub(ids=("juletxara/mgsm",), configs=tuple(MGSM_PREFIXES), split="test", revision=None),
)
INSTRUCTIONS = {
    "bn": (
        "এই গণিতের সমস্যাটি সমাধান করুন। চূড়ান্ত উত্তর দেওয়ার আগে যুক্তিসম্পন্ন পদক্ষেপ প্রদান "
        'করুন। চূড়ান্ত উত্তরটি একক সংখ্যা হিসাবে "উত্তর:" এর পরে শেষ লাইনে দিন। "উত্তর:" এর পরে '
        "অন্য কিছু যুক্ত করবেন না।."
    ),
    "de": (
        "Löse dieses Mathematikproblem. Gib die Schritte zur Begründung an, bevor du die "
        'endgültige Antwort in der letzten Zeile alleine im Format "Antwort:" gibst. Füge nichts '
        'anderes als die ganzzahlige Antwort nach "Antwort:" hinzu.'
    ),
    "en": (
        "Solve this math problem. Give the reasoning steps before giving the final answer on the "
        'last line by itself in the format of "Answer:". Do not add anything other than the '
        'integer answer after "Answer:".'
    ),
    "es": (
        "Resuelve este problema matemático. Proporciona los pasos de razonamiento antes de dar la "
        'respuesta final en la última línea por sí misma en el formato de "Respuesta:". No añadas '
        'nada más que la respuesta entera después de "Respuesta:".'
    ),
    "fr": (
        "Résolvez ce problème de mathématiques. Donnez les étapes de raisonnement avant de fournir "
        'la réponse finale sur la dernière ligne elle-même dans le format de "Réponse:". N\'ajoutez '
        'rien d\'autre que la réponse entière après "Réponse:".'
    ),
    "ja": (
        "の数学の問題を解いてください。最終的な答えを出す前に、解答の推論過程を記述してください。"
        'そして最後の行には "答え:" の形式で答えを記述し、その後には整数の答え以外何も追加しないでください。'
    ),
    "ru": (
        "Решите эту математическую задачу. Объясните шаги рассуждения перед тем, как дать "
        'окончательный ответ в последней строке сам по себе в формате "Ответ:". Не добавляйте '
        'ничего, кроме целочисленного ответа после "Ответ:".'
    ),
    "sw": (
        "Suluhisha tatizo hili la hesabu. Toa hatua za mantiki kabla ya kutoa jibu la mwisho "
        'kwenye mstari wa mwisho peke yake katika muundo wa "Jibu:". Usiongeze chochote kingine '
        'isipokuwa jibu la integer baada ya "Jibu:".'
    ),
    "te": (
        "ఈ గణిత సమస్యను పరిష్కరించండి. చివరి సమాధానాన్ని ఇవ్వదానికి ముందు తర్కాత్మక అదుగులను "
        "ఇవ్వండి. చివరి పంక్తిలో మాత్రమే 'సమాధానం:' అనే ఆకారంలో చివరి సమాధానాద్ని ఇవ్వండి సమాధానం: "
        "తర్వాత పూర్ణాంక సమాధానానికి తప్పించి ఎదేనా చేర్చవద్దు."
    ),
    "th": (
        "แก้ปัญหาคณิตศาสตร์นี้ "
        'ให้ให้ขั้นตอนการใช้เหตุผลก่อนที่จะให้คำตอบสุดท้ายในบรรทัดสุดท้ายโดยอยู่ในรูปแบบ "คำตอบ:" '
        'ไม่ควรเพิ่มอะไรนอกจากคำตอบที่เป็นจำนวนเต็มหลังจาก "คำตอบ:"'
    ),
    "zh": (
        '解决这个数学问题。在最后一行给出答案前，请提供推理步骤。最后一行应该以 "答案: " 的形式独立给出答案。'
        '在 "答案：" 后不要添加除整数答案之外的任何内容。'
    ),
}


def items(data: Path | None) -> Iterator[Item]:
    """Yields the problems; on the hub the language is the configuration and the number the place."""
    seen = Counter[str]()
    for row in read(TEST, data):
        language = row.get("language") or row["config"]
        number = row.get("index", seen[language])
        yield Item(id=f"{language}/{number}", row=row, group=language, cluster=str(number))
        seen[language] += 1


def prompt(item: Item) -> Chat:
    """Returns the instruction in the problem's language, and the problem."""
    return user(f"{INSTRUCTIONS[item.group]}\n\n{item.row['question']}")


def score(item: Item, response: str) -> Score:
    """Judges the last number behind the language's answer word."""
    return matched(mgsm_number(response, item.group), gold_number(item))


def gold_number(item: Item) -> str:
    """Returns the answer without commas; on the hub it is a number, in some files a text."""
    return str(item.row["answer_number"]).replace(",", "").removesuffix(".0")


MGSM = Task(
    name="mgsm",
    items=items,
    prompt=prompt,
    score=score,
    gold=lambda item: f"{MGSM_PREFIXES[item.group]}: {gold_number(item)}",
    metric="average/em",
    shots=0,
    max_new_tokens=2048,
    chance=0.0,
    macro=True,
)
