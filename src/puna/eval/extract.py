"""Finds the answer in a response: pure functions from text to an answer, or None where there is none.

In: what a model wrote. Out: the letter, number, code or phrase that a benchmark's authors, or Meta, would take from
it. Not here: whether it is right (`metrics`, `tasks`). None is never a guess: where the published code picks a random
option, we return None, which is wrong.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from puna.eval.metrics import levenshtein

# What stands before a letter, tried in this order; the first that hits decides.
# Source: package llama-stack-evals 0.1.0, `regex_parser_multiple_choice_grader.py`, as facts.
STATEMENTS = (
    "FINAL ANSWER: ",
    "The best answer is ",
    *(
        rf"{word}\s*[:：]"
        for word in (
            "Answer উত্তর उत्तर Antwort 답변 정답 답 答案 答 答复 答曰 الإجابة الجواب إجابة Respuesta Risposta 答え "
            "回答 解答 Jawaban Réponse Resposta Jibu Idahun Ìdáhùn Idáhùn Àmọ̀nà Àdáhùn Ànúgọ Àṣàyàn"
        ).split()
    ),
    "উত্তরঃ",
    "الإجابة النهائية:",
    "الإجابة الصحيحة:",
    "الإجابة الصحيحة هي:",
    "الإجابة هي:",
)

# Letters that other scripts use for A, B, C, D.
OTHER_LETTERS = {**dict(zip("أبجد", "ABCD", strict=True)), **dict(zip("অবডঢ", "ABCD", strict=True))}
OTHER_LETTERS |= dict(zip("ＡＢＣＤ", "ABCD", strict=True))

MGSM_PREFIXES = {
    "bn": "উত্তর",
    "de": "Antwort",
    "en": "Answer",
    "es": "Respuesta",
    "fr": "Réponse",
    "ja": "答え",
    "ru": "Ответ",
    "sw": "Jibu",
    "te": "సమాధానం",
    "th": "คำตอบ",
    "zh": "答案",
}
"""What stands before the answer, by language. Source: openai/simple-evals `mgsm_eval.py`."""


def until(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the first stop sequence, as a server cuts it that knows the sequences."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text


def stated_letter(response: str) -> str | None:
    """Returns the letter that a response states as its answer, in one of about 30 languages: Meta's grader.

    Case of the words before it does not count, nor how Unicode puts their accents together. The first statement that is
    found decides, and its first place. Flaws of the published code that are not kept: "(B)" is B, not "(B)"; a letter
    is a capital and no beginning of a word, so "the best answer is a ..." states nothing; "**B**" is B; letters of
    other scripts stand for A to D.
    """
    response = unicodedata.normalize("NFC", response)
    letter = rf"\s*[*_]*\(?([A-J]|{'|'.join(OTHER_LETTERS)})\)?(?!\w)"
    for statement in STATEMENTS:
        if match := re.search(f"(?i:{statement}){letter}", response):
            return OTHER_LETTERS.get(match[1], match[1])
    return None


def best_answer(response: str) -> str | None:
    """Returns the letter of the last "best answer is X" or "answer is (X)", with or without parentheses.

    Source: lm-evaluation-harness `mmlu_cot_llama`, `mmlu_pro_llama`; TIGER-AI-Lab/MMLU-Pro for the second form.
    """
    for words in ("best answer is", "answer is"):
        if letters := re.findall(rf"(?i:{words})\s*[*_]*\(?([A-Z])\)?(?!\w)", response):
            return str(letters[-1])
    return None


def final_answer(response: str) -> str | None:
    """Returns the first line after the last "FINAL ANSWER:", without Markdown's marks; None when there is none.

    Source: the prompt of ChartQA in llama-models `llama3_3/eval_details.md`.
    """
    _, marker, rest = re.sub(r"[*_]+", "", response).rpartition(_last_marker(response))
    lines = [line.strip() for line in rest.splitlines() if line.strip()]
    return lines[0] if marker and lines else None


def _last_marker(response: str) -> str:
    found = re.findall(r"(?i)final answer\s*:", re.sub(r"[*_]+", "", response))
    return found[-1] if found else "FINAL ANSWER:"


def last_code_block(response: str) -> str | None:
    """Returns the inside of the last closed fenced block; None when there is none.

    LiveCodeBench's code takes the last two lines with a fence, which is the same for one block and differs for a
    response that ends inside a block: that one has no code here.
    """
    fences = [i for i, line in enumerate(response.splitlines()) if line.lstrip().startswith("```")]
    if len(fences) < 2:
        return None
    last = len(fences) // 2 * 2
    return "\n".join(response.splitlines()[fences[last - 2] + 1 : fences[last - 1]])


def boxed(text: str) -> str | None:
    """Returns the inside of the last `\\boxed{...}` (or `\\boxed x`, `\\fbox{...}`), braces balanced."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    inside = re.sub(r"^\\f?box(ed)?\s*", "", text[start:])
    if not inside.startswith("{"):
        return inside.split("$")[0].strip() or None
    depth = 0
    for i, c in enumerate(inside):
        depth += (c == "{") - (c == "}")
        if depth == 0:
            return inside[1:i]
    return None


def minerva_answer(response: str) -> str | None:
    """Returns what stands between "The final answer is" and "I hope it is correct." The first such place decides.

    Also without the second sentence, at the end of the line. Source: Lewkowycz et al. 2022, appendix D.1.
    """
    match = re.search(
        r"Final Answer: The final answer is(.*?)\.? I hope it is correct\.", response + " I hope it is correct."
    )
    return match[1].strip() or None if match else None


def boxed_final_answer(response: str) -> str | None:
    """Returns the box behind the last "final answer is:", or else the last box: Meta's format of MATH for chat models.

    The published expression takes everything to the last brace of the line; ours balances braces.
    """
    _, marker, rest = response.rpartition("final answer is")
    return boxed(rest if marker and "\\boxed" in rest else response)


def mgsm_number(response: str, language: str) -> str | None:
    """Returns the last number after the last answer prefix of the language, without commas and a trailing ".0".

    A sign is dropped, as in the published code: no answer of MGSM is negative. Digits of other scripts count.
    Source: openai/simple-evals `mgsm_eval.py`.
    """
    _, marker, rest = response.rpartition(MGSM_PREFIXES[language])
    numbers = re.findall(r"\d+\.?\d*", rest.replace(",", "")) if marker else []
    if not numbers:
        return None
    number = str(numbers[-1]).rstrip(".")
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return "".join(str(int(c)) if c.isdigit() else c for c in number)


def last_answer_part(response: str) -> str:
    """Returns the response from the beginning of the line with the last "answer"; all of it where there is none.

    Source: package llama-stack-evals 0.1.0, `mmmu/grader.py`: it removes what the parser below would trip over.
    """
    place = response.lower().rfind("answer")
    return response[response.rfind("\n", 0, place) + 1 :] if place >= 0 else response


def mmmu_choice(response: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the option that a response means, as MMMU's parser finds it; None when it finds none.

    `options`: letter -> text. In this order, the last place deciding: "(B)"; " B "; in answers of more than five words
    the text of an option. Known flaws that are kept, so that scores compare: a lone "A" that is an article counts; an
    option whose text is part of another's is found too. Not kept: where nothing is found the published code draws a
    random letter. Source: MMMU-Benchmark/MMMU `eval/eval_utils.py`.
    """
    for c in ",.!?;:'":
        response = response.strip(c)
    response = f" {response} "
    for form in ("({})", " {} "):
        if places := {letter: response.rfind(form.format(letter)) for letter in options}:
            letter = max(places, key=lambda each: places[each])
            if places[letter] >= 0:
                return letter
    if len(response.split()) <= 5:
        return None
    texts = {letter: response.lower().rfind(text.lower()) for letter, text in options.items()}
    best = max(texts, key=lambda each: texts[each], default=None)
    return best if best is not None and texts[best] >= 0 else None


def mmmu_pro_choice(response: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of an option: a stated one ("The best answer is X", "Answer: X"), or MMMU's parse.

    The last statement decides. The authors' parser looks for any option letter as a substring after the last
    "Answer:", so that "Answer: C. Both" would be two letters, and takes a random one where it finds nothing: neither is
    kept. Source: MMMU-Benchmark/MMMU `mmmu-pro/evaluate.py`; llama-models `llama3_3/eval_details.md`.
    """
    letters = "".join(options)
    stated = rf"(?i:best answer is|answer is|answer\s*:)[\s*_$]*(?:\\boxed\{{)?\(?([{letters}])\)?(?!\w)"
    found = re.findall(stated, response)
    return str(found[-1]) if found else mmmu_choice(last_answer_part(response), options)


def mmmu_open(response: str) -> list[str | float]:
    """Returns the phrases and numbers that an open answer may mean, normalised: numbers with two decimals.

    The phrases are the shortest tails behind words such as "is" or "therefore" (on the last line also "="), by line,
    and the numbers within them. Known flaw that is kept: sentences are split at ". " before a capital letter after
    everything has been made lower case, so they never are. Source: MMMU-Benchmark/MMMU `eval/eval_utils.py`.
    """
    tails = list(_key_tails(response.strip().strip(".").lower())) or [response.strip().strip(".").lower()]
    numbers = [number for tail in tails for number in _numbers(tail)]
    return list(dict.fromkeys(form for text in [*tails, *numbers] for form in mmmu_forms(text)))


def mmmu_forms(text: str) -> list[str | float]:
    """Returns the forms in which an open answer is compared: a rounded number, or lower case.

    A single character gets a space on either side, so that it is not found inside words.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
    return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def _key_tails(response: str) -> Iterator[str]:
    words = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "]
    lines = response.split("\n")
    for i, line in enumerate(lines):
        marks = [*words, "="] if i == len(lines) - 1 else words
        tails = [tail for mark in marks if mark in line and (tail := line.split(mark)[-1].strip())]
        if tails and (shortest := min(tails, key=len)) not in tuple(":,.!?;'"):
            yield shortest


def _numbers(text: str) -> list[str]:
    forms = (
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    )
    return [number for form in forms for number in re.findall(form, text)]


def mathvista_answer(response: str, row: Mapping[str, object]) -> str | None:
    """Returns the answer of a MathVista response by rules, so that no judge is asked; None when no rule fits.

    Multiple choice, in order: the response is a choice or a letter; the last "answer is (B)"; what follows the last
    "answer is", if it is a choice; the last "(B)"; the only choice named on the last line; or else the response
    itself, of which `mathvista_form` makes the closest choice. Other types: the first number or list behind the last
    "answer is", or the last of the response; the argument of a function, as in f(0), is none. The authors ask a
    language model where the response is not simply a choice or a number; `tasks.mathvista` can too.
    Source: lupantech/MathVista `evaluation/extract_answer.py` (quick checks).
    """
    response = response.strip()
    choices = row.get("choices")
    marked = re.findall(r"(?i:answer is|answer\s*:)[ *\"]*([^\n]*)", response)
    tail = str(marked[-1]).strip(' *".') if marked else response
    if row["question_type"] == "multi_choice" and isinstance(choices, Sequence):
        return _vista_choice(response, tail, [str(choice).strip() for choice in choices])
    number = r"(?<!\w\()-?(?:\d[\d,]*\.?\d*|\.\d+)"
    found = re.findall(r"\[[^\[\]]*\]" if row["answer_type"] == "list" else number, tail)
    if not found:
        return tail if marked and row["answer_type"] == "text" else None
    answer = str(found[0 if marked else -1])
    return answer if row["answer_type"] == "list" else answer.replace(",", "").rstrip(".")


def _vista_choice(response: str, tail: str, choices: Sequence[str]) -> str | None:
    letters = "".join(chr(ord("A") + i) for i in range(len(choices)))
    if response in choices:
        return response
    if re.fullmatch(rf"\(?[{letters}]\)?\.?", response):
        return response.strip("().")
    if found := re.findall(rf"(?i:answer is|answer\s*:)[\s*_$]*\(?([{letters}])\)?(?![\w'])", response):
        return str(found[-1])
    if tail in choices:
        return tail
    if found := re.findall(rf"\(([{letters}])\)", response):
        return str(found[-1])
    last = response.splitlines()[-1].lower() if response else ""
    named = [choice for choice in choices if re.search(rf"(?<!\w){re.escape(choice.lower())}(?!\w)", last)]
    return named[0] if len(named) == 1 else response or None


def mathvista_form(extraction: str | None, row: Mapping[str, object]) -> str | None:
    """Returns an extracted answer in the form of the item's gold answer; None where it has none.

    Multiple choice: the choice with that letter or text, or else the one with the least Levenshtein distance, so that
    "N/A" becomes "yes": a flaw of the measure that is kept. Integer: cut, not rounded; float: rounded to `precision`;
    other: as it is. Source: lupantech/MathVista `evaluation/calculate_score.py`.
    """
    if extraction is None:
        return None
    choices = row.get("choices")
    if row["question_type"] == "multi_choice" and isinstance(choices, Sequence):
        extraction = extraction.strip()
        in_parentheses = re.findall(r"\(([a-zA-Z])\)", extraction)
        letter = in_parentheses[0].upper() if in_parentheses else extraction
        index = ord(letter) - ord("A") if len(letter) == 1 else -1
        if 0 <= index < len(choices):
            return str(choices[index])
        if letter in (named := {str(choice).strip(): str(choice) for choice in choices}):
            return named[letter]
        return min((str(choice) for choice in choices), key=lambda choice: levenshtein(letter, choice))
    try:
        if row["answer_type"] == "integer":
            return str(int(float(extraction)))
        if row["answer_type"] == "float":
            return str(round(float(extraction), int(str(row["precision"]).split(".")[0])))
    except (ValueError, OverflowError):
        return None
    return extraction
