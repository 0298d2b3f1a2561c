"""lm-evaluation-harness, unmodified, as a client of our server: what it scores there is what we score in process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import puna
from puna.chat import Assistant
from puna.prompt.render import Prompt
from puna.prompt.vocab import BEGIN_OF_TEXT
from tests.reference.referees import ask
from tests.serve.conftest import MODEL, Running

pytestmark = pytest.mark.slow

CRIA = Path(puna.__file__).parent / "assets" / "cria"
TOLERANCE = 1e-4  # nats of a whole continuation, in float32: the server reads prompts of another length beside it
ROWS = [
    {"question": f"{opening} {animal}", "choices": [" " + end for end in ends], "answer": i % 3}
    for i, animal in enumerate(("dog", "little bird", "lion and the mouse", "girl who lived by the river", "öküz"))
    for opening in ("Once upon a time there was a", "The story of the")
    for ends in (("who ran.", "and a cat were friends", "!"), ("went home to sleep", "xyzzy 17", "ate the \n\n yam"))
]


@pytest.fixture(scope="module")
def cria() -> Assistant:
    return puna.load("cria", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def running(cria: Assistant) -> Iterator[Running]:
    server = Running(cria)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm_eval") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def task(file: Path, **fields: Any) -> dict[str, Any]:
    return {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    } | fields


def scores(cria: Assistant, first: list[int], question: str, choices: list[str]) -> list[float]:
    """Returns the log-likelihood of each choice behind the question, by the model's logits in this process."""
    found = []
    encode = cria.tokenizer.encode
    for choice in choices:
        ids, n_before = first + encode(question + choice), len(first + encode(question))
        expected = cria.prompt_logprobs(Prompt(ids, None))
        found.append(sum(each.chosen for each in expected[n_before - 1 :]))
    return found


@pytest.mark.parametrize("tokenizer", ["remote", "huggingface"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_lm_eval_scores_over_http_what_we_score_in_process(
    cria: Assistant, running: Running, file: Path, tokenizer: str, batch_size: int
) -> None:
    """The server's tokenizer puts nothing before a text; in that of the files, begin_of_text can be written."""
    arguments = {"base_url": f"{running.url}/v1/completions", "model": MODEL, "tokenizer_backend": tokenizer}
    arguments |= {"tokenizer": str(CRIA)} if tokenizer == "huggingface" else {}
    first = [cria.tokenizer.bos_id] if tokenizer == "huggingface" else []
    fields = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"}
    fields |= {"target_delimiter": "", "doc_to_text": BEGIN_OF_TEXT * len(first) + "{{question}}"}
    fields |= {"metric_list": [{"metric": "acc"}]}  # type: ignore[dict-item]
    theirs = ask(
        "lm_eval_own",
        model="local-completions",
        arguments=arguments,
        task=task(file, **fields),
        batch_size=batch_size,
    )
    assert len(theirs["samples"]) == len(ROWS)
    right, worst = 0, 0.0
    for row, sample in zip(ROWS, theirs["samples"], strict=True):
        ours = scores(cria, first, row["question"], row["choices"])  # type: ignore[arg-type]
        assert [score for score, _ in sample] == pytest.approx(ours, abs=TOLERANCE)
        worst = max(worst, *(abs(own - score) for own, (score, _) in zip(ours, sample, strict=True)))
        right += ours.index(max(ours)) == row["answer"]
    assert theirs["results"]["acc,none"] == pytest.approx(right / len(ROWS), abs=TOLERANCE)
    print(f"{len(ROWS)} documents, {tokenizer}: accuracy {right / len(ROWS):.4f}, at most {worst:.1e} nats apart")


def test_lm_eval_reads_in_a_chat_what_the_assistant_says(cria: Assistant, running: Running, file: Path) -> None:
    fields = {"output_type": "generate_until", "doc_to_target": "{{answer}}"}
    fields |= {"generation_kwargs": {"until": [" the"], "max_gen_toks": 24}}  # type: ignore[dict-item]
    fields |= {"metric_list": [{"metric": "exact_match"}]}  # type: ignore[dict-item]
    arguments = {"base_url": f"{running.url}/v1/chat/completions", "model": MODEL, "num_concurrent": 4}
    theirs = ask(
        "lm_eval_own", model="local-chat-completions", arguments=arguments, task=task(file, **fields), batch_size=1
    )
    for row, (text,) in zip(ROWS, theirs["samples"], strict=True):
        messages = [{"role": "user", "content": row["question"]}]
        ours = cria.chat(messages, temperature=0.0, max_new_tokens=24, stop=[" the"])
        assert text == ours.text  # type: ignore[union-attr]
