"""Log-likelihoods, prompts and verdicts against lm-evaluation-harness: same items, same checkpoint, same machine.

It reads cria with transformers, as its users read a Llama 4. Both work in float32 and add up in different orders, over
prompts of up to 4,000 tokens: log-probabilities may differ by TOLERANCE nats. The harness tells cria's tokenizer to put
its first token before a text, as that of the released models does by itself.
"""

import json
import math
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import puna
from puna.chat import Assistant
from puna.eval.ask import Question
from puna.eval.local import LocalModel
from puna.eval.task import Choice, Likelihood, Passage, Prompt
from puna.eval.tasks import TASKS
from puna.prompt.vocab import BEGIN_OF_TEXT
from tests.reference.referees import ask
from tests.serve.conftest import MODEL, Running

pytestmark = pytest.mark.slow

SLICES = Path(__file__).parents[2].parent / "shared" / "data" / "eval"
CRIA = Path(puna.__file__).parent / "assets" / "cria"
ARGUMENTS = {"pretrained": str(CRIA), "dtype": "float32", "device": "cpu", "add_bos_token": True}
TOLERANCE = 1e-3

# lm-eval's task -> ours, its shots, the group it is; the prompts of both are compared.
PROMPTS = {
    "mmlu_anatomy": ("mmlu", 5, "anatomy"),
    "mmlu_high_school_us_history": ("mmlu", 5, "high_school_us_history"),
    "mmlu_pro_llama_biology": ("mmlu_pro_base", 5, "biology"),
    "mmlu_pro_llama_law": ("mmlu_pro_base", 5, "law"),
    "minerva_math_algebra": ("math", 4, None),
    "mbpp": ("mbpp", 3, None),
}


_BEGIN, _TEXT = {"SpecialToken": {"id": BEGIN_OF_TEXT, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
BEGINS_TEXTS = {
    "type": "TemplateProcessing",
    "single": [_BEGIN, _TEXT],
    "pair": [_BEGIN, _TEXT, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {BEGIN_OF_TEXT: {"id": BEGIN_OF_TEXT, "ids": [12224], "tokens": [BEGIN_OF_TEXT]}},
}
"""What makes a tokenizer of transformers put cria's first token before a text, as those of the released models do."""


@cache
def cria() -> Assistant:
    return puna.load("cria", dtype="float32", device="cpu")


def slices() -> Path:
    if not SLICES.exists():
        pytest.skip("needs ../shared/data/eval")
    return SLICES


def replies(prompts: dict[str, Prompt]) -> dict[str, Any]:
    questions = [
        Question(key=key, prompt=prompt, n=1, max_new_tokens=1, temperature=0.0, seed=0)
        for key, prompt in prompts.items()
    ]
    return {question.key: each for question, (each,) in LocalModel(cria()).answers(questions)}


def compare(theirs: dict[str, list[dict[str, Any]]], n_items: int, tolerance: float = TOLERANCE) -> str:
    """Asserts that our MMLU says of `n_items` what the harness says, one by one; returns what was compared."""
    task = TASKS["mmlu"]
    rows = {f"{name.removeprefix('mmlu_')}/{place}": row for name, of in theirs.items() for place, row in enumerate(of)}
    items = [item for item in task.items(slices()) if item.id in rows]
    assert len(items) == len(rows) == n_items
    ours = replies({item.id: task.prompt(item) for item in items})
    worst, n_right = 0.0, [0, 0]
    for item in items:
        row, reply = rows[item.id], ours[item.id]
        assert reply.details["logprobs"] == pytest.approx(row["logprobs"], abs=tolerance), item.id
        assert (task.score(item, reply.text).value == 1) is row["right"], item.id
        worst = max(worst, *(abs(a - b) for a, b in zip(reply.details["logprobs"], row["logprobs"], strict=True)))
        n_right = [n_right[0] + (task.score(item, reply.text).value == 1), n_right[1] + row["right"]]
    assert n_right[0] / n_items == pytest.approx(n_right[1] / n_items, abs=1e-4)
    score = f"the same verdicts, {n_right[0]} right"
    return f"{n_items} items, {4 * n_items} log-likelihoods: at most {worst:.1e} nats apart, {score}"


def test_mmlu_equals_lm_eval_through_transformers_item_by_item() -> None:
    question = {"job": "choices", "arguments": ARGUMENTS, "task": "mmlu", "data": str(slices()), "limit": None}
    print(compare(ask("lm_eval_runs", model="hf", **question), 171))


def test_mmlu_equals_lm_eval_through_our_server_item_by_item(tmp_path: Path) -> None:
    """One item of each scientific subject: the harness sends every prompt four times and reads what is echoed.

    Ours asks no server: `LocalModel` runs the same weights in this process, so only HTTP and batching are between.
    """
    shutil.copy(CRIA / "config.json", tmp_path)
    document = json.loads((CRIA / "tokenizer.json").read_text("utf-8"))
    document["post_processor"] = BEGINS_TEXTS
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    server = Running(cria())
    arguments = {
        "base_url": f"{server.url}/v1/completions",
        "model": MODEL,
        "tokenizer_backend": "huggingface",
        "tokenizer": str(tmp_path),
        "add_bos_token": True,
        "max_length": 4096,  # or the harness cuts prompts to half of what cria reads
    }
    question = {"job": "choices", "arguments": arguments, "task": "mmlu_stem", "data": str(slices()), "limit": 1}
    try:
        print(compare(ask("lm_eval_runs", model="local-completions", **question), 19, tolerance=1e-4))
    finally:
        server.stop()


def test_lm_eval_chats_with_our_server() -> None:
    """Its answers are those that the model gives in this process."""
    server = Running(cria())
    arguments = {"base_url": f"{server.url}/v1/chat/completions", "model": MODEL, "max_retries": 1}
    question = {"job": "chats", "arguments": arguments, "task": "mmlu_pro_llama_biology", "data": str(slices())}
    try:
        told = ask("lm_eval_runs", **question, limit=2)
    finally:
        server.stop()
    assert len(told) == 2
    for messages, answer in told:
        ours = cria().chat(messages, temperature=0.0, max_new_tokens=64)
        assert answer == ours.text  # type: ignore[union-attr]
    print(f"{len(told)} chats: {[answer[:60] for _, answer in told]}")


def test_texts_of_several_windows_have_the_likelihood_that_lm_eval_finds() -> None:
    rows = [item.row for item in TASKS["tydiqa"].items(slices())][::9]
    texts = [row["context"] for row in rows]
    arguments = {**ARGUMENTS, "max_length": 96, "add_bos_token": False}  # or it would predict that token too
    theirs = ask("lm_eval_runs", job="rolling", arguments=arguments, texts=texts)
    ours = replies({str(i): Passage(text=text, window=96) for i, text in enumerate(texts)})
    for i, wanted in enumerate(theirs):
        found = Likelihood.read(ours[str(i)].text)
        assert found is not None and found.logprob == pytest.approx(wanted, rel=1e-5), texts[i][:40]
        assert found.n_tokens == len(cria().tokenizer.encode(texts[i]))
    print(f"{len(texts)} texts of {sum(len(text.encode()) for text in texts)} bytes in windows of 96 tokens: equal")


def test_prompts_equal_those_of_lm_eval_to_the_letter() -> None:
    data = slices()
    shots = {name: n_shots for name, (_, n_shots, _) in PROMPTS.items()}
    found = ask("lm_eval_runs", job="prompts", tasks=shots, data=str(data), limit=1000)
    for name, (ours, n_shots, group) in PROMPTS.items():
        task = TASKS[ours]
        items = [item for item in task.items(data) if group in (None, item.group)]
        assert task.shots == n_shots and items
        theirs = found[name][::4] if isinstance(task.prompt(items[0]), Choice) else found[name]
        assert len(theirs) == len(items)
        for item, wanted in zip(items, theirs, strict=True):
            text = task.prompt(item).text  # type: ignore[union-attr]
            if ours == "math":  # our copy of the paper's examples has a brace too many, and backslashes too few
                text = text.replace("{\\sqrt{5-x}}$.}", "{\\sqrt{5-x}}$.")
                text, wanted = (each.replace("\\\\\n", "\\\n") for each in (text, wanted))
            if "N/A" not in item.row.get("options", ()):
                assert text == wanted, item.id


def test_the_likelihood_of_a_continuation_of_several_tokens_is_that_of_its_tokens() -> None:
    """The harness's rule for two parts: the text's own ids first; space at its end belongs to the continuation."""
    text, continuations = "The llama lives", (" in the Andes mountains", " under", " in the sea, far away")
    (reply,) = replies({"x": Choice(text=text, continuations=continuations, labels=("a", "b", "c"))}).values()
    whole = [cria().tokenizer.encode(text + each) for each in continuations]
    n = len(cria().tokenizer.encode(text))
    for found, ids in zip(reply.details["logprobs"], whole, strict=True):
        rows = cria().logits([cria().tokenizer.bos_id, *ids])[:-1].log_softmax(-1)
        wanted = sum(float(rows[i, id_]) for i, id_ in enumerate(ids) if i >= n)
        assert found == pytest.approx(wanted, abs=TOLERANCE) and math.isfinite(found)
