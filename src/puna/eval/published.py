"""The tables of Llama 4's model card, row by row: what the card says, and which tasks measure the same here.

Source: llama-models `models/llama4/MODEL_CARD.md`, "Benchmarks". The sizes of the sets are those of their hub pages or
papers. What a row's setting leaves open, and how ours fills it, stands in its note.
"""

from dataclasses import dataclass
from typing import Literal

Table = Literal["base", "chat"]

COLUMNS: dict[Table, tuple[str, ...]] = {
    "base": ("Llama 3.1 70B", "Llama 3.1 405B", "Llama 4 Scout", "Llama 4 Maverick"),
    "chat": ("Llama 3.3 70B", "Llama 3.1 405B", "Llama 4 Scout", "Llama 4 Maverick"),
}
TITLES: dict[Table, str] = {"base": "Pre-trained models", "chat": "Instruction tuned models"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the card. Two tasks are two values behind one another ("42.2/36.6"). `values` in the order of COLUMNS.

    `n` items each task has when it is whole, None where nobody says; `note`: what is inferred; `from_folder`: why
    values from a folder's files are not the card's even when there are as many.
    """

    table: Table
    category: str
    benchmark: str
    shots: str
    metric: str
    tasks: tuple[str, ...]
    values: tuple[str, str, str, str]
    n: int | None
    note: str = ""
    from_folder: str = ""


ROWS = (
    Row(
        table="base",
        category="Reasoning & Knowledge",
        benchmark="MMLU",
        shots="5",
        metric="macro_avg/acc_char",
        tasks=("mmlu",),
        values=("79.3", "85.2", "79.6", "85.5"),
        n=14_042,
    ),
    Row(
        table="base",
        category="Reasoning & Knowledge",
        benchmark="MMLU-Pro",
        shots="5",
        metric="macro_avg/em",
        tasks=("mmlu_pro_base",),
        values=("53.8", "61.6", "58.2", "62.9"),
        n=12_032,
    ),
    Row(
        table="base",
        category="Reasoning & Knowledge",
        benchmark="MATH",
        shots="4",
        metric="em_maj1@1",
        tasks=("math",),
        values=("41.6", "53.5", "50.3", "61.2"),
        n=5_000,
    ),
    Row(
        table="base",
        category="Code",
        benchmark="MBPP",
        shots="3",
        metric="pass@1",
        tasks=("mbpp",),
        values=("66.4", "74.4", "67.8", "77.6"),
        n=500,
    ),
    Row(
        table="base",
        category="Multilingual",
        benchmark="TydiQA",
        shots="1",
        metric="average/f1",
        tasks=("tydiqa",),
        values=("29.9", "34.3", "31.5", "31.7"),
        n=5_077,
        note="asked without the passage, which is inferred from the card's values",
    ),
    Row(
        table="base",
        category="Image",
        benchmark="ChartQA",
        shots="0",
        metric="relaxed_accuracy",
        tasks=("chartqa_base",),
        values=("", "", "83.4", "85.3"),
        n=2_500,
        note="the words of the prompt are ours: none are published for base models",
    ),
    Row(
        table="base",
        category="Image",
        benchmark="DocVQA",
        shots="0",
        metric="anls",
        tasks=("docvqa_base",),
        values=("", "", "89.4", "91.6"),
        n=5_349,
        note="the prompt is the chat models' with a line that the answer continues",
    ),
    Row(
        table="chat",
        category="Image Reasoning",
        benchmark="MMMU",
        shots="0",
        metric="accuracy",
        tasks=("mmmu",),
        values=("", "", "69.4", "73.4"),
        n=900,
    ),
    Row(
        table="chat",
        category="Image Reasoning",
        benchmark="MMMU Pro",
        shots="0",
        metric="accuracy",
        tasks=("mmmu_pro",),
        values=("", "", "52.2", "59.6"),
        n=3_460,
        note="mean of standard and vision, as in the card",
    ),
    Row(
        table="chat",
        category="Image Reasoning",
        benchmark="MathVista",
        shots="0",
        metric="accuracy",
        tasks=("mathvista",),
        values=("", "", "70.7", "73.7"),
        n=1_000,
        note="rules read the answer, not a language model",
    ),
    Row(
        table="chat",
        category="Image Understanding",
        benchmark="ChartQA",
        shots="0",
        metric="relaxed_accuracy",
        tasks=("chartqa",),
        values=("", "", "88.8", "90.0"),
        n=2_500,
    ),
    Row(
        table="chat",
        category="Image Understanding",
        benchmark="DocVQA (test)",
        shots="0",
        metric="anls",
        tasks=("docvqa_test",),
        values=("", "", "94.4", "94.4"),
        n=5_188,
        note="the answers are hidden: the run writes the file that the organisers score",
    ),
    Row(
        table="chat",
        category="Code",
        benchmark="LiveCodeBench (10/01/2024-02/01/2025)",
        shots="0",
        metric="pass@1",
        tasks=("livecodebench",),
        values=("33.3", "27.7", "32.8", "43.4"),
        n=None,
    ),
    Row(
        table="chat",
        category="Reasoning & Knowledge",
        benchmark="MMLU Pro",
        shots="0",
        metric="macro_avg/acc",
        tasks=("mmlu_pro",),
        values=("68.9", "73.4", "74.3", "80.5"),
        n=12_032,
    ),
    Row(
        table="chat",
        category="Reasoning & Knowledge",
        benchmark="GPQA Diamond",
        shots="0",
        metric="accuracy",
        tasks=("gpqa_diamond",),
        values=("50.5", "49.0", "57.2", "69.8"),
        n=198,
    ),
    Row(
        table="chat",
        category="Multilingual",
        benchmark="MGSM",
        shots="0",
        metric="average/em",
        tasks=("mgsm",),
        values=("91.1", "91.6", "90.6", "92.3"),
        n=2_750,
        note="the prompts are those of simple-evals, which is likely, not confirmed",
    ),
    Row(
        table="chat",
        category="Long Context",
        benchmark="MTOB (half book) eng->kgv/kgv->eng",
        shots="-",
        metric="chrF",
        tasks=("mtob_half_ek", "mtob_half_ke"),
        values=("", "", "42.2/36.6", "54.0/46.4"),
        n=50,
        from_folder="book and sentences are a folder's, which need not be MTOB's",
    ),
    Row(
        table="chat",
        category="Long Context",
        benchmark="MTOB (full book) eng->kgv/kgv->eng",
        shots="-",
        metric="chrF",
        tasks=("mtob_full_ek", "mtob_full_ke"),
        values=("", "", "39.7/36.3", "50.8/46.7"),
        n=50,
        from_folder="book and sentences are a folder's, which need not be MTOB's",
    ),
)
"""All rows, in the card's order."""

ROW_OF = {task: row for row in ROWS for task in row.tasks}
"""The row that a task belongs to, by the task's name."""
