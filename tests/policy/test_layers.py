"""Who may import whom: the table of DESIGN.md as data.

It is held against every import of src/puna, also those inside functions and those for type checkers only.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[2] / "src" / "puna"

GROUND = frozenset({"errors", "shapes", "config", "presets", "records", "meter", "host", "hardware"})
BELOW_CHAT = GROUND | {"prompt", "kernels", "model", "weights", "quant", "offload", "adapters", "parallel", "engine"}

# Each name directly under src/puna -> what its files may import besides their own package ("engine.request": one file).
MAY_IMPORT: dict[str, frozenset[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    "prompt": GROUND,
    "kernels": GROUND,
    "model": GROUND | {"kernels"},
    **dict.fromkeys(("weights", "quant", "offload", "adapters", "parallel"), GROUND | {"kernels", "model"}),
    "engine": GROUND | {"kernels", "model", "parallel"},
    "chat": BELOW_CHAT,
    "guard": GROUND | {"prompt", "chat"},
    **dict.fromkeys(("terminal", "serve", "eval"), GROUND | {"prompt", "engine.request", "chat", "guard"}),
    "train": GROUND | {"prompt", "kernels", "model", "adapters", "weights", "quant", "parallel", "plan"},
    "bench": GROUND | {"kernels.native", "model", "engine", "chat", "plan"},
    "card": GROUND,
    "doctor": GROUND | {"card", "kernels.build"},
    "plan": GROUND | {"card.params", "card.memory"},
    "cli": BELOW_CHAT | {"chat", "guard", "terminal", "serve", "eval", "train", "bench", "card", "plan", "doctor"},
    "__init__": frozenset({"chat"}),
    "__main__": frozenset({"cli"}),
}
# Single files that may import more than their package.
EXCEPTIONS: dict[str, frozenset[str]] = {
    "train.rollout": frozenset({"engine"}),
    "guard.prune": frozenset({"weights"}),
    "guard.deberta": frozenset({"weights"}),
    "guard.llama3": frozenset({"weights"}),
}

# At run time these import only ground before a function asks for more: `puna --help` must not load torch.
ONLY_INSIDE_FUNCTIONS = {"cli"}
MAY_IMPORT_TORCH_IN_GROUND = {"shapes"}


class Import(NamedTuple):
    target: str  # dotted, "puna." included
    line: int
    deferred: bool  # inside a function, or for type checkers only


def imports_of(code: str, module: str) -> Iterator[Import]:
    """Yields each imported module of `code`; `module` (such as "puna.model.moe") resolves relative imports."""

    def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*parents, *filter(None, [node.module])])
            yield from (Import(f"{origin}.{alias.name}", node.lineno, deferred) for alias in node.names)
        defers = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        )
        for child in ast.iter_child_nodes(node):
            yield from walk(child, deferred or defers)

    yield from walk(ast.parse(code), False)


def offences(code: str, module: str) -> list[str]:
    """Returns one "line: rule" for each import of `code` that the table does not allow; `module` without "puna."."""
    house = module.split(".")[0]
    if house not in MAY_IMPORT:
        return [f"1: {house} is not in the table of layers: decide where it belongs, here and in DESIGN.md"]
    allowed = MAY_IMPORT[house] | EXCEPTIONS.get(module, frozenset()) | {house}
    found = []
    for target, line, deferred in imports_of(code, f"puna.{module}"):
        head, *rest = target.split(".")
        if head == "torch" and house in GROUND - MAY_IMPORT_TORCH_IN_GROUND:
            found.append(f"{line}: ground needs the standard library only; torch may be imported by shapes alone")
        if head != "puna" or rest == ["__version__"]:
            continue
        name = ".".join(rest)
        if not any(name == each or name.startswith(f"{each}.") for each in allowed):
            found.append(
                f"{line}: {house} must not import {name or 'the whole package'}; it may: {', '.join(sorted(allowed))}"
            )
        elif house in ONLY_INSIDE_FUNCTIONS and not deferred and rest[0] not in GROUND - MAY_IMPORT_TORCH_IN_GROUND:
            found.append(
                f"{line}: {house} imports {name} at its top; only inside functions, so that --help needs no torch"
            )
    return found


def test_every_import_goes_down_the_layers() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found += [f"src/puna/{path.relative_to(SOURCE)}:{each}" for each in offences(path.read_text("utf-8"), module)]
    assert not found, "\n" + "\n".join(found)


def test_walk_finds_upward_import_wherever_it_hides() -> None:
    assert offences("from puna.engine.engine import Engine", "model.moe")
    assert offences("import puna.chat", "model.moe")
    assert offences("from puna import load", "model.moe")
    assert offences("def f():\n    from puna import chat", "model.moe")
    assert offences("if TYPE_CHECKING:\n    from puna.engine.cache import Cache", "model.attention")
    assert offences("from ..prompt import render", "engine.batch")
    assert offences("import torch", "config")
    assert offences("from puna.chat import Assistant", "cli")
    assert offences("x = 1", "helpers.strings")


def test_walk_leaves_downward_imports_alone() -> None:
    assert not offences("from puna.config import LlamaConfig\nfrom puna.kernels import experts", "model.moe")
    assert not offences("from . import rope\nfrom .mask import visible", "model.attention")
    assert not offences("from puna.engine.request import Sampling", "serve.convert")
    assert offences("from puna.engine.cache import Cache", "serve.convert")
    assert not offences("from puna.engine.engine import Engine", "train.rollout")
    assert offences("from puna.engine.engine import Engine", "train.loop")
    assert not offences("from puna import __version__\ndef f():\n    from puna.chat import load", "cli")
    assert not offences("if TYPE_CHECKING:\n    from puna.chat import Assistant", "cli")
