"""Other people's scanners of unsafe code, as guards: bandit for Python, codeshield for eight languages.

In: a context with code. Out: one `Verdict`; it names places by line, as these tools do. Both are optional and run in
processes of their own, which takes tenths of a second: the rules of `code` need neither. codeshield 1.0.1 as published
finds next to nothing with a current semgrep, since it names "/" as the root of the project: that option is left out
here, a tool that fails is an error and not a clean result, and the self test would show if either were dead again.

Source: bandit 1.9 (`--format json`), codeshield 1.0.1, `insecure_code_detector.py`.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from puna.errors import ConfigError
from puna.guard import code
from puna.guard.guard import Context, TextGuard, code_guard
from puna.guard.verdict import Span, Verdict, action_of, codes_of

BANDIT_SCORES = {"LOW": 0.4, "MEDIUM": 0.7, "HIGH": 0.9}
SHIELD_SCORES = {"advice": 0.4, "warning": 0.7, "error": 0.9}
SHIELD_NAMES = {"cpp": "CPP", "csharp": "CSHARP", "c": "C", "java": "JAVA", "javascript": "JAVASCRIPT"} | {
    "php": "PHP",
    "python": "PYTHON",
    "rust": "RUST",
}
_ONE_AT_A_TIME = threading.Lock()  # what is repaired in codeshield belongs to the whole process
IGNORED = frozenset({"B101", "B404", "B403"})  # asserts and mere imports


class Report(NamedTuple):
    """One finding of a tool: its line in the block, from 1, and what it says."""

    line: int
    cwe: str
    score: float
    text: str


Scan = Callable[[str, str], Sequence[Report]]  # code and language


def bandit_guard() -> TextGuard:
    """Returns bandit as the code guard. Raises ConfigError where it is not installed."""
    return _guard("bandit", _bandit, ("python",))


def codeshield_guard() -> TextGuard:
    """Returns codeshield as the code guard. Raises ConfigError where it is not installed."""
    return _guard("codeshield", _codeshield, tuple(SHIELD_NAMES))


def _guard(package: str, scan: Scan, languages: Sequence[str]) -> TextGuard:
    if find_spec(package) is None:
        raise ConfigError(f"guard: {package} is not installed; pip install {package}, or use the rules of the package")
    return TextGuard(
        name="code",
        backend="rules",
        verdict_of=lambda context: _check(package, scan, languages, context),
        probes=code_guard().probes,
    )


def _check(package: str, scan: Scan, languages: Sequence[str], context: Context) -> Verdict:
    text, spans, skipped = context.text, [], []
    is_code = context.point == "code" or code.FENCE.search(text) is not None
    for start, block, named in code.blocks(text, context.language) if is_code else ():
        language = code.known(named) or code.guess_language(block)
        if language not in languages:
            skipped.append(language)
            continue
        spans += [_span(report, block, start) for report in scan(block, language)]
    score = max((span.score for span in spans), default=0.0)
    return Verdict(
        guard=f"code/{package}",
        action=action_of(score, flag_at=code.FLAG_AT, block_at=code.BLOCK_AT),
        score=score,
        codes=codes_of(spans),
        spans=tuple(spans),
        backend="rules",
        status="skipped" if skipped else "ok",
        coverage=code.coverage("python" if languages == ("python",) else None),
        reason=f"{package} reads no {', '.join(skipped)}" if skipped else None,
    )


def _span(report: Report, block: str, start: int) -> Span:
    lines = block.splitlines(keepends=True)
    before = sum(map(len, lines[: report.line - 1]))
    line = lines[report.line - 1].rstrip() if report.line <= len(lines) else ""
    begin = start + before
    return Span(start=begin, end=begin + len(line), code=report.cwe, score=report.score, reason=report.text)


def _bandit(text: str, _: str) -> list[Report]:
    command = [sys.executable, "-m", "bandit", "--quiet", "--format", "json", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)  # it always writes one; what it could not read is among the errors
    if document["errors"]:
        raise ValueError(f"bandit: {document['errors'][0].get('reason', 'could not read the code')}")
    return [
        Report(
            each["line_number"],
            f"CWE-{each['issue_cwe']['id']}" if each.get("issue_cwe") else each["test_id"],
            BANDIT_SCORES[each["issue_severity"]],
            each["issue_text"],
        )
        for each in document["results"]
        if each["test_id"] not in IGNORED
    ]


def _codeshield(text: str, language: str) -> list[Report]:
    from codeshield.insecure_code_detector import insecure_code_detector as detector
    from codeshield.insecure_code_detector.languages import Language
    from codeshield.insecure_code_detector.usecases import UseCase

    with _ONE_AT_A_TIME, tempfile.TemporaryDirectory() as folder:  # codeshield leaves its file where patterns hit
        detector._run_command = _semgrep
        detector._write_code_to_file = lambda content, extension: _written(Path(folder) / f"code{extension}", content)
        issues = asyncio.run(detector.analyze(Language[SHIELD_NAMES[language]], text, usecase=UseCase.CODESHIELD))
    return [
        Report(
            each.line or 1,
            each.cwe_id or "insecure",
            SHIELD_SCORES.get(str(each.severity).lower().rsplit(".", 1)[-1], 0.7),
            each.description,
        )
        for each in issues or ()
    ]


async def _semgrep(command: list[str]) -> str:
    """Runs semgrep as codeshield asks for it, without naming a root, and with the tools of this interpreter."""
    if "--project-root" in command:
        at = command.index("--project-root")
        command = command[:at] + command[at + 2 :]
    beside = Path(sys.executable).parent / "semgrep"
    program = str(beside) if Path(command[0]).name == "semgrep" and beside.is_file() else command[0]
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(program, *command[1:], stdout=asyncio.subprocess.PIPE, stderr=quiet)
    output, _ = await process.communicate()
    document: Any = json.loads(output)  # a rule that does not parse is no reason to drop what the others found
    if "results" not in document:
        raise ValueError(f"semgrep ended with {process.returncode} and no results")
    return output.decode()


def _written(file: Path, content: str) -> Path:
    file.write_text(content, encoding="utf-8")
    return file
