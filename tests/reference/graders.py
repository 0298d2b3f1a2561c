"""The graders of authors and of others on recorded responses: reads cases from standard input, writes what they say.

    {"grader": name, "cases": [[gold, response], ...]}        gold: whatever that grader compares with

Answers with a value for each case. Graders whose modules import half a world are run without what is not here: the
function that grades needs none of it. See `referees`.
"""

import ast
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Grader = Callable[[Any, str], Any]


def names_of(module: str) -> dict[str, Any]:
    """Returns what a module defines, run statement by statement; those that need a missing package are left out."""
    root, _, inside = module.partition(".")
    spec = find_spec(root)
    assert spec is not None and spec.origin is not None, module
    path = Path(spec.origin).parent / f"{inside.replace('.', '/')}.py"
    names: dict[str, Any] = {"__name__": module, "__file__": str(path)}
    for statement in ast.parse(path.read_text("utf-8")).body:
        with contextlib.suppress(ImportError, NameError):
            exec(compile(ast.Module([statement], []), str(path), "exec"), names)
    return names


def minerva() -> Grader:
    """gold: the problem's solution, with its box. (right by Minerva's rule, right by math-verify)"""
    from lm_eval.tasks.minerva_math import utils

    def grade(solution: str, response: str) -> tuple[bool, bool]:
        box = utils.remove_boxed(utils.last_boxed_only_string(solution))
        doc = {"solution": solution, "answer": utils.normalize_final_answer(box)}
        found = utils.process_results(doc, [response])
        return bool(found["exact_match"]), bool(found["math_verify"])

    return grade


def math500() -> Grader:
    """gold: the answer. Right by Meta's MATH-500 grader, which compares texts after much rewriting, and numbers."""
    grader = names_of("llama_stack_evals.benchmarks.benchmarks.math500.grader")["Math500Grader"]("x")
    return lambda answer, response: grader.grade_row({"expected_answer": answer, "generation": response})["score"] == 1


def meta_letter() -> Grader:
    """gold: none. The letter that Meta's multilingual grader captures, None where it captures nothing."""
    names = names_of("llama_stack_evals.benchmarks.benchmarks.common.graders.regex_parser_multiple_choice_grader")
    grader = names["RegexParserMultipleChoiceGrader"]("x")
    return lambda gold, response: grader.grade_row({"expected_answer": "", "generation": response})["parsed_pred"]


def last_letter() -> Grader:
    """gold: none. The letter that lm-eval's `mmlu_pro_llama` and `mmlu_cot_llama` take."""
    from lm_eval.filters.extraction import RegexFilter

    take = RegexFilter(r"[tT]he best answer is ([A-Z])", group_select=-1)
    return lambda gold, response: next(iter(take.apply([[response]], [{}])))[0]


def chart() -> Grader:
    """gold: the label. Right by lm-eval's relaxed accuracy, of what follows the last "answer:"."""
    from lm_eval.tasks.chartqa import utils

    return lambda gold, response: bool(utils.ExplicitPromptRelaxedCorrectness().score(response, gold))


def anls() -> Grader:
    """gold: the accepted answers. The value by inspect_evals."""
    best = names_of("inspect_evals.docvqa.docvqa")["_best_normalized_levenshtein_similiarity"]
    return lambda gold, response: best(response, gold, 0.5)


def squad() -> Grader:
    """gold: the accepted answers. F1 by SQuAD's rule as lm-eval's LongBench has it."""
    names = names_of("lm_eval.tasks.longbench.metrics")
    return lambda gold, response: max(names["qa_f1_score"](response, answer) for answer in gold)


def tydiqa_english() -> Grader:
    """gold: the accepted answers. F1 by lm-eval's `tydiqa_goldp_en`."""
    from lm_eval.tasks.tydiqa import utils

    return lambda gold, response: utils.process_results_lang({"answers": gold}, [response], "en")["f1"]


def mmmu() -> Grader:
    """gold: the row. Right by lm-eval's copy of the authors' parser; a parse that was drawn at random is no answer."""
    from lm_eval.tasks.mmmu import utils

    class Drawn:
        choice = staticmethod(lambda options: "drawn")

    utils.random = Drawn
    return lambda row, response: bool(utils.process_results(row, [response])["acc"])


def mgsm() -> Grader:
    """gold: [answer, language]. Right by simple-evals."""
    names = names_of("simple_evals.evals.mgsm_eval")

    def grade(gold: list[str], response: str) -> bool:
        answer, language = gold
        found = names["parse_answer"](response, names["LANG_TO_ANSWER_PREFIX"][language])
        return bool(names["score_mgsm"](answer, found))

    return grade


def mgsm_prompt() -> Grader:
    """gold: the language; in place of a response the question. The whole prompt of simple-evals."""
    texts = names_of("simple_evals.evals.mgsm_eval")["LANG_TO_INSTRUCTIONS"]
    return lambda language, question: texts[language].format(input=question)


def chrf() -> Grader:
    """gold: all references; in place of a response all predictions, as JSON. The corpus value by Meta's grader."""
    score = names_of("llama_stack_evals.benchmarks.benchmarks.common.graders.chrf")["global_chrf_score"]

    def grade(references: list[str], predictions: str) -> float:
        rows = zip(references, json.loads(predictions), strict=True)
        return float(score([{"expected_answer": gold, "generation": given} for gold, given in rows])["chrf"])

    return grade


def mtob_prompt() -> Grader:
    """gold: the arguments of Meta's `to_prompt`."""
    names = names_of("llama_stack_evals.benchmarks.benchmarks.mtob.create_dataset")
    return lambda arguments, response: names["to_prompt"](**arguments)


def livecodebench() -> Grader:
    """gold: the tests, with the function's name if there is one. Right by the authors' runner: all tests pass."""
    from livecodebench.evaluation.compute_code_generation_metrics import check_correctness

    def grade(gold: dict[str, Any], program: str) -> bool:
        results, _ = check_correctness({"input_output": json.dumps(gold)}, program, timeout=6, debug=False)
        return all(each is True or each == 1 for each in results) and len(results) == len(gold["inputs"])

    return grade


def mbpp() -> Grader:
    """gold: the asserts. Right when a plain interpreter reaches their end, as the authors and lm-eval's metric do."""

    def grade(asserts: list[str], program: str) -> bool:
        text = "\n".join([program, *asserts])
        done = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, timeout=30)
        return done.returncode == 0

    return grade


GRADERS: dict[str, Callable[[], Grader]] = {
    each.__name__: each
    for each in (
        minerva,
        math500,
        meta_letter,
        last_letter,
        chart,
        anls,
        squad,
        tydiqa_english,
        mmmu,
        mgsm,
        mgsm_prompt,
        chrf,
    )
} | {each.__name__: each for each in (mtob_prompt, livecodebench, mbpp)}

if __name__ == "__main__":
    question = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        grader = GRADERS[question["grader"]]()
        answers = [grader(gold, response) for gold, response in question["cases"]]
    print(json.dumps(answers))
