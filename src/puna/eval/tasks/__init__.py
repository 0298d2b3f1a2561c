"""The benchmarks of the model card, a file each, and all of them by name."""

from puna.eval.task import Task
from puna.eval.tasks.chartqa import CHARTQA, CHARTQA_BASE
from puna.eval.tasks.copy import COPY, COPY_BASE, COPY_LONG
from puna.eval.tasks.docvqa import DOCVQA, DOCVQA_BASE, DOCVQA_TEST
from puna.eval.tasks.drift import DRIFT
from puna.eval.tasks.gpqa import GPQA_DIAMOND
from puna.eval.tasks.lessons import LESSONS
from puna.eval.tasks.livecodebench import LIVECODEBENCH
from puna.eval.tasks.math import MATH, MATH_CHAT
from puna.eval.tasks.mathvista import MATHVISTA
from puna.eval.tasks.mbpp import MBPP
from puna.eval.tasks.mgsm import MGSM
from puna.eval.tasks.mmlu import MMLU, MMLU_COT
from puna.eval.tasks.mmlu_pro import MMLU_PRO, MMLU_PRO_BASE
from puna.eval.tasks.mmmu import MMMU
from puna.eval.tasks.mmmu_pro import MMMU_PRO, MMMU_PRO_STANDARD, MMMU_PRO_VISION
from puna.eval.tasks.mtob import MTOB
from puna.eval.tasks.needle import NEEDLE, NEEDLE_BASE, NEEDLE_LONG
from puna.eval.tasks.perplexity import BITS_PER_BYTE, PERPLEXITY
from puna.eval.tasks.tydiqa import TYDIQA, TYDIQA_GOLD

BASE = (MMLU, MMLU_PRO_BASE, MATH, MBPP, TYDIQA, CHARTQA_BASE, DOCVQA_BASE)
"""The card's rows for base models, in its order."""

CHAT = (MMMU, MMMU_PRO, MATHVISTA, CHARTQA, DOCVQA_TEST, LIVECODEBENCH, MMLU_PRO, GPQA_DIAMOND, MGSM, *MTOB)
"""The card's rows for chat models, in its order."""

OTHERS = (MMLU_COT, MATH_CHAT, TYDIQA_GOLD, DOCVQA, MMMU_PRO_STANDARD, MMMU_PRO_VISION, LESSONS)

LONG_CONTEXT = (NEEDLE, COPY, NEEDLE_BASE, COPY_BASE, NEEDLE_LONG, COPY_LONG)
"""Something to be found in texts that are made up, by their length and its depth."""

READING = (BITS_PER_BYTE, PERPLEXITY, *DRIFT)
"""Texts that are read and not answered."""

TASKS: dict[str, Task] = {task.name: task for task in (*BASE, *CHAT, *OTHERS, *LONG_CONTEXT, *READING)}
"""All tasks by name."""
