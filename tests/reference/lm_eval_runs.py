"""lm-evaluation-harness on our slices: reads a question from standard input, writes the answer. See `referees`.

Its tasks are taken as they are; only what they would download comes from a local folder. Questions:
{"job": "choices" | "chats" | "prompts" | "rolling", ...} with the arguments of the function of that name.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import tests.reference.torchvision_on_cpu  # noqa: F401  (before anything imports torchvision)

FEW = 5
FOLDERS = {"mmlu_pro_llama": "llama3/instruct/mmlu_pro", "mmlu": "mmlu/default", "minerva_math": "minerva_math"}
FOLDERS |= {"mbpp": "mbpp"}
HUB = {"cais/mmlu": "mmlu", "TIGER-Lab/MMLU-Pro": "mmlu_pro", "google-research-datasets/mbpp": "mbpp"}
HUB |= {"EleutherAI/hendrycks_math": "math", "google-research-datasets/tydiqa": "tydiqa"}


def choices(model: str, arguments: dict[str, Any], task: str, data: str, limit: int | None) -> dict[str, Any]:
    """Returns, by subtask and place, the log-likelihoods of the choices and whether the most probable one is right."""
    from lm_eval import simple_evaluate

    use_local(Path(data))
    done = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=tasks_of(task),
        num_fewshot=FEW,
        limit=limit,
        bootstrap_iters=0,
        batch_size=1,
    )
    return {
        name: [
            {"logprobs": [value for value, _ in sample["filtered_resps"]], "right": sample["acc"] == 1}
            for sample in sorted(rows, key=lambda row: row["doc_id"])
        ]
        for name, rows in done["samples"].items()
    }


def chats(arguments: dict[str, Any], task: str, data: str, limit: int) -> list[Any]:
    """Returns the messages and the answer of each item of a task that is asked as a chat."""
    from lm_eval import simple_evaluate

    use_local(Path(data))
    done = simple_evaluate(
        model="local-chat-completions",
        model_args=arguments,
        tasks=[task],
        task_manager=tasks_of(task),
        num_fewshot=0,
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=True,
        gen_kwargs={"max_gen_toks": 64, "until": [], "do_sample": False},
    )
    rows = done["samples"][task]
    return [[json.loads(row["arguments"][0][0][0]), row["resps"][0][0]] for row in rows]


def prompts(tasks: dict[str, int], data: str, limit: int) -> dict[str, list[str]]:
    """Returns the first prompts of tasks with that many shots, which they take from where they take them."""
    use_local(Path(data))
    found: dict[str, list[str]] = {}
    for name, n_shots in tasks.items():
        task = tasks_of(name).load([name])["tasks"][name]
        task.set_config(key="num_fewshot", value=n_shots)
        task.build_all_requests(limit=limit)
        found[name] = [instance.args[0] for instance in task.instances]
    return found


def rolling(arguments: dict[str, Any], texts: list[str]) -> list[float]:
    """Returns the log-likelihood of each text, by windows of the model's `max_length`."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    return [float(value) for value in HFLM(**arguments, batch_size=1).loglikelihood_rolling(requests)]


def tasks_of(name: str) -> Any:
    """Returns the harness's index of the folder with that task: of all of them it takes a minute to make."""
    import lm_eval.tasks

    place = Path(lm_eval.tasks.__file__).parent
    folder = next(folder for start, folder in FOLDERS.items() if name.startswith(start))
    return lm_eval.tasks.TaskManager(include_path=place / folder, include_defaults=False)


def use_local(data: Path) -> None:
    """Has the harness find the slices where it would download data sets, and no metric that is itself a download."""
    import datasets
    import evaluate

    def load_dataset(path: str, name: str | None = None, **others: Any) -> Any:
        folder = data / HUB[path]
        splits = {}
        for file in sorted(folder.glob("*.jsonl")):
            rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
            rows = [row for row in rows if HUB[path] != "mmlu" or row.get("subject") == name]
            if rows:
                splits[file.stem] = datasets.Dataset.from_list(rows)
        return datasets.DatasetDict(splits)

    datasets.load_dataset = load_dataset
    evaluate.load = lambda name: type("Nothing", (), {"compute": staticmethod(lambda **_: [{}])})


if __name__ == "__main__":
    question = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        jobs = {"choices": choices, "chats": chats, "prompts": prompts, "rolling": rolling}
        answer = jobs[question.pop("job")](**question)
    print(json.dumps(answer))
