"""lm-evaluation-harness on a task of the test's own: reads a question from standard input, writes the answer.

The question: {"model": ..., "arguments": {...}, "task": {...}, "batch_size": 1}, where the task is what one of the
harness's YAML files would hold. The answer: for each document what the model said, and what it scored. See `referees`.
"""

import contextlib
import json
import sys
from typing import Any

import tests.reference.torchvision_on_cpu  # noqa: F401  (before anything imports torchvision)


def run(model: str, arguments: dict[str, Any], task: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Returns {"samples": what was said, document by document, "results": metrics}."""
    import evaluate
    import lm_eval

    evaluate.load = lambda name: type("Nothing", (), {"compute": staticmethod(lambda **_: {name: 0.0})})  # a download
    done = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
        batch_size=batch_size,
        bootstrap_iters=0,
        apply_chat_template="chat" in model,
    )
    samples = sorted(done["samples"][task["task"]], key=lambda row: row["doc_id"])
    return {"samples": [row["filtered_resps"] for row in samples], "results": done["results"][task["task"]]}


if __name__ == "__main__":
    question = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        answer = run(**question)
    print(json.dumps(answer))
