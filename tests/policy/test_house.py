"""The rules of the house that a machine can see. Each test names the place and what to do about it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "puna"

VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
NOT_MIRRORED = {"policy", "reference", "route"}  # folders of tests that belong to no single source file
MIRRORS_THE_CARD = {"test_card_claims.py"}  # reads like Meta's card, which is no file of ours
MACHINE_PATH = re.compile(r"/([w]ork|[r]oot|[t]mp|[f]arm)/|/[o]pt/(wheels|pypi)|/([h]ome|[U]sers)/\w+/")
MAX_FILE_BYTES = 2 * 2**20


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def project_files() -> list[Path]:
    """Returns all files that are, or would be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so nobody knows which files are the project's")
    return [path for name in sorted(set(listed.stdout.split("\0")) - {""}) if (path := ROOT / name).is_file()]


def where(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_files_are_named_for_their_subject() -> None:
    vague = [where(path) for path in source_files() if VAGUE_NAMES & {path.stem, path.parent.name}]
    assert not vague, f"name these after the noun they define or the verb they perform: {vague}"


def test_modules_and_their_public_names_have_docstrings() -> None:
    def undocumented(path: Path) -> Iterator[str]:
        tree = ast.parse(path.read_text("utf-8"))
        public = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        yield from (where(path, getattr(node, "lineno", 1)) for node in [tree, *public] if not ast.get_docstring(node))

    found = [each for path in source_files() for each in undocumented(path)]
    assert not found, f"say what these return or do, and what the signature does not show: {found}"


def test_no_error_is_swallowed() -> None:
    def swallows(handler: ast.ExceptHandler) -> bool:
        everything = isinstance(handler.type, ast.Name) and handler.type.id in {"Exception", "BaseException"}
        silent = all(isinstance(each, ast.Pass) for each in handler.body)
        return handler.type is None or (everything and silent)

    found = [
        where(path, node.lineno)
        for path in source_files()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ExceptHandler) and swallows(node)
    ]
    assert not found, f"name the error that is expected here: {found}"


def test_no_text_names_a_path_of_one_machine() -> None:
    found = []
    for path in project_files():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            lines = content.decode("utf-8", "replace").splitlines()
            found += [where(path, number) for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert not found, f"use a path relative to the repository, or a temporary folder that the test is given: {found}"


def test_large_files_are_assets_only() -> None:
    assets = SOURCE / "assets"
    large = [where(p) for p in project_files() if p.stat().st_size > MAX_FILE_BYTES and assets not in p.parents]
    assert not large, f"over {MAX_FILE_BYTES} bytes and not part of a shipped model: {large}"


def test_every_test_file_mirrors_a_source_file() -> None:
    tests = ROOT / "tests"
    lost = []
    for path in sorted(tests.rglob("test_*.py")):
        folder = path.parent.relative_to(tests)
        if NOT_MIRRORED & set(folder.parts) or path.name in MIRRORS_THE_CARD:
            continue
        if not (SOURCE / folder / path.name.removeprefix("test_")).exists():
            lost.append(where(path))
    assert not lost, f"no source file of that name; mirror one, or move to {sorted(NOT_MIRRORED)}: {lost}"


def test_decisions_that_code_cites_exist() -> None:
    existing = {path.name[:3] for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md")}
    missing = [
        f"{where(path)} cites {number}"
        for path in source_files()
        for number in re.findall(r"docs/decisions/(\d{3})", path.read_text("utf-8"))
        if number not in existing
    ]
    assert not missing, missing


def test_links_between_documents_lead_somewhere() -> None:
    dead = []
    for path in project_files():
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text("utf-8")):
                if "://" not in target and not (path.parent / target).exists():
                    dead.append(f"{where(path)} -> {target}")
    assert not dead, dead


def test_readme_lists_every_source_file_once_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    tree = re.search(r"```\nsrc/puna/\n(.*?)```", readme, re.DOTALL)
    assert tree, "README.md has no block that begins with src/puna/"
    listed, folder = [], ""
    for line in tree[1].splitlines():
        indent, name = re.match(r"( *)(\S*)", line).groups()  # type: ignore[union-attr]
        if len(indent) == 2:
            folder = name if name.endswith("/") else ""
        if name.endswith(".py") and len(indent) <= 4:
            listed.append(("" if len(indent) == 2 else folder) + name)
    actual = {
        str(path.relative_to(SOURCE)) for path in source_files() if path.name != "__init__.py" or path.parent == SOURCE
    }
    assert sorted(listed) == sorted(actual), sorted(set(listed) ^ actual)


def test_help_of_the_command_line_needs_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "puna", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "usage" in run.stdout.lower(), run.stderr[-2000:]
    imported = {line.split("|")[-1].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert imported, "the interpreter listed no imports"
    assert not imported & {"torch", "numpy", "PIL", "rich", "tiktoken", "huggingface_hub"}
