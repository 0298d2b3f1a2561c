"""Unsafe Python, found in the syntax tree.

In: Python source that may be a fragment (indented, fenced, cut off). Out: findings with a CWE, a place and a remedy, or
None if no repair makes it parse: the caller then falls back to patterns. Calls are resolved through import aliases, and
values through assignments of constants in the same scope. There is no flow between functions.

Source: CWE 4.15; documentation of each library named (which argument makes a call safe).
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from puna.guard import code_patterns
from puna.guard.code_finding import (
    CREDENTIAL_NAME,
    SECURITY_WORD,
    SQL_TEXT,
    Finding,
    is_placeholder,
)

SHELL_CALLS = frozenset(
    {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "popen2.popen2"}
)
SHELL_CALLS |= {"commands.getoutput", "commands.getstatusoutput", "asyncio.create_subprocess_shell", "pty.spawn"}
PROCESS_CALLS = frozenset(f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen"))
UNPICKLERS = frozenset(
    f"{module}.{name}"
    for module in ("pickle", "cPickle", "_pickle", "dill", "cloudpickle")
    for name in ("load", "loads")
)
UNPICKLERS |= {
    "pickle.Unpickler",
    "dill.Unpickler",
    "shelve.open",
    "marshal.load",
    "marshal.loads",
    "jsonpickle.decode",
}
UNPICKLERS |= {"joblib.load", "pandas.read_pickle", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "BaseLoader", "CBaseLoader"}
WEAK_HASHES = {"md5", "sha1", "md4", "sha", "ripemd160", "md2"}
WEAK_CIPHERS = {"DES", "DES3", "ARC2", "ARC4", "Blowfish", "XOR", "TripleDES", "IDEA", "CAST5", "SEED"}
RANDOM_CALLS = {"choice", "choices", "randint", "random", "randrange", "sample", "getrandbits", "randbytes", "uniform"}
HARMLESS_CHANCE = re.compile(
    r"dice|shuffle|simulat|monte|jitter|backoff|sleep|noise|augment|mutat|\bgame|sampl|train|batch|color|plot|test_|weights",
    re.IGNORECASE,
)
HTTP_MODULES = {"requests", "httpx", "aiohttp"}
HTTP_VERBS = {"get", "post", "put", "patch", "delete", "head", "options", "request", "stream", "Client", "AsyncClient"}
HTTP_VERBS |= {"Session"}
XML_MODULES = ("xml.etree", "xml.sax", "xml.dom", "xml.parsers")
XML_CALLS = {"parse", "fromstring", "iterparse", "XMLParser", "parseString", "make_parser", "ParserCreate", "XML"}
REQUEST = re.compile(
    r"\b(?:request|req)\s*\.\s*(?:args|form|values|json|params|query|GET|POST|files|cookies|headers|data)\b"
)
PATH_GUARD = re.compile(
    r"realpath|abspath|resolve\(|is_relative_to|secure_filename|basename|commonpath|safe_join|\.name\b"
)
ARCHIVE_GUARD = re.compile(r"filter\s*=|realpath|abspath|is_relative_to|commonpath|resolve\(")
TEMPORARY = re.compile("^/(?:tm" + "p|var/tm" + "p|dev/shm)/")
MAX_LINES_CUT = 8


class Call(NamedTuple):
    """A call, its resolved dotted name, and the function that it stands in (None at the top)."""

    node: ast.Call
    name: str
    scope: ast.AST | None


def scan(code: str) -> list[Finding] | None:
    """Returns what is unsafe in `code`, or None if it cannot be parsed as Python even after repair."""
    tree, offset_of, judged = _parse(code)
    if tree is None:
        return None
    rest = [
        each._replace(start=each.start + judged, end=each.end + judged)
        for each in code_patterns.scan(code[judged:], "python")
    ]
    return [*_Scan(code, tree, offset_of).findings(), *rest]


def _parse(code: str) -> tuple[ast.Module | None, Callable[[int, int], int], int]:
    """Returns the tree of `code`, repaired where need be, where its places lie, and how many characters it covers."""
    lines = code.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def locate(shift: int) -> Callable[[int, int], int]:
        return lambda line, column: min(starts[min(max(line - 1 + shift, 0), len(lines))] + column, len(code))

    for text, shift, n_lines in _repairs(code, lines):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                return ast.parse(text), locate(shift), starts[n_lines]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None, locate(0), 0


def _repairs(code: str, lines: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yields texts that may parse where `code` does not, the lines they lack in front, and the lines they cover."""
    yield code, 0, len(lines)
    yield "if True:\n" + code, -1, len(lines)
    yield "def _():\n" + _indent(code), -1, len(lines)
    yield _without_prompts(code), 0, len(lines)
    for end in range(len(lines) - 1, max(len(lines) - MAX_LINES_CUT, 0), -1):
        yield textwrap.dedent("".join(lines[:end])), 0, end


def _indent(code: str) -> str:
    return textwrap.indent(textwrap.dedent(code), "    ")


def _without_prompts(code: str) -> str:
    return "\n".join(re.sub(r"^\s*(?:>>> |\.\.\. )", "", line) for line in code.splitlines())


class _Scan:
    """One pass over one tree."""

    def __init__(self, code: str, tree: ast.Module, offset_of: Callable[[int, int], int]) -> None:
        self._code, self._tree, self._offset_of = code, tree, offset_of
        self._aliases: dict[str, str] = {}
        self._scope_of: dict[ast.AST, ast.AST | None] = {}
        self._parent_of: dict[ast.AST, ast.AST] = {}
        self._assigned: dict[tuple[ast.AST | None, str], list[ast.expr]] = {}
        self._collect(tree, None)

    def _collect(self, node: ast.AST, scope: ast.AST | None) -> None:
        stack: list[tuple[ast.AST, ast.AST | None]] = [(node, scope)]
        while stack:
            node, scope = stack.pop()
            self._scope_of[node] = scope
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._aliases[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self._aliases[alias.asname or alias.name] = f"{node.module or ''}.{alias.name}"
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value, scope)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.AugAssign) and node.value is not None:
                self._assign(node.target, node.value, scope)
            inner = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else scope
            for child in ast.iter_child_nodes(node):
                self._parent_of[child] = node
                stack.append((child, inner))

    def _assign(self, target: ast.expr, value: ast.expr, scope: ast.AST | None) -> None:
        if isinstance(target, ast.Name):
            self._assigned.setdefault((scope, target.id), []).append(value)

    def findings(self) -> list[Finding]:
        """Returns the findings in the order of the text, each place and CWE once."""
        found: dict[tuple[int, str], Finding] = {}
        for each in self._all():
            found.setdefault((each.start, each.cwe), each)
        return sorted(found.values(), key=lambda each: each.start)

    def _all(self) -> Iterator[Finding]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call):
                call = Call(node, self._name(node.func), self._scope_of.get(node))
                for rule in CALL_RULES:
                    yield from rule(self, call)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                yield from self._credentials(node)
                yield from self._switched_off(node)
            elif isinstance(node, ast.Assert):
                yield from self._assert_as_check(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from self._default_credentials(node)
            elif isinstance(node, ast.Return):
                yield from self._reflected(node)
            elif isinstance(node, ast.Compare):
                yield from self._credential_comparison(node)

    # What expressions mean

    def _name(self, node: ast.expr) -> str:
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            parts.append(self._aliases.get(node.id, node.id))
        elif isinstance(node, ast.Call):
            parts.append(self._name(node.func) + "()")
        else:
            parts.append("?")
        return ".".join(reversed(parts))

    def _values(self, node: ast.expr, scope: ast.AST | None) -> list[ast.expr]:
        """Returns what `node` may be: itself, or what its name was assigned in this scope or at the top."""
        if isinstance(node, ast.Name):
            return self._assigned.get((scope, node.id)) or self._assigned.get((None, node.id)) or [node]
        return [node]

    def _is_constant(self, node: ast.expr, scope: ast.AST | None, depth: int = 0) -> bool:
        if isinstance(node, ast.Constant):
            return True
        if isinstance(node, ast.Name) and depth < 4:
            values = self._values(node, scope)
            upper = node.id.isupper() and values == [node]
            return upper or (values != [node] and all(self._is_constant(each, scope, depth + 1) for each in values))
        if isinstance(node, ast.JoinedStr):
            return all(self._is_constant(each, scope, depth) for each in node.values)
        if isinstance(node, ast.FormattedValue):
            return self._is_constant(node.value, scope, depth)
        if isinstance(node, ast.BinOp):
            return self._is_constant(node.left, scope, depth) and self._is_constant(node.right, scope, depth)
        if isinstance(node, ast.List | ast.Tuple):
            return all(self._is_constant(each, scope, depth) for each in node.elts)
        return False

    def _is_built(self, node: ast.expr, scope: ast.AST | None, depth: int = 0) -> bool:
        """Tells whether `node` is text put together from parts that are not all constant."""
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod)):
            return not self._is_constant(node, scope)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"format", "join"}:
            return not all(self._is_constant(each, scope) for each in [*node.args, *(k.value for k in node.keywords)])
        if isinstance(node, ast.Call) and self._name(node.func) in {"str", "text", "sqlalchemy.text"} and node.args:
            return self._is_built(node.args[0], scope, depth)
        if isinstance(node, ast.Name) and depth < 4:
            return any(
                each is not node and self._is_built(each, scope, depth + 1) for each in self._values(node, scope)
            )
        return isinstance(node, ast.IfExp) and (self._is_built(node.body, scope) or self._is_built(node.orelse, scope))

    def _text(self, node: ast.AST) -> str:
        """Returns all constant text inside `node` and inside what its names were assigned."""
        scope, words = self._scope_of.get(node), []
        for each in ast.walk(node):
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                words.append(each.value)
            elif isinstance(each, ast.Name):
                for value in self._values(each, scope):
                    words += [
                        c.value for c in ast.walk(value) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                    ]
        return " ".join(words)

    def _is_request(self, node: ast.expr, scope: ast.AST | None) -> bool:
        parts = [node, *self._values(node, scope)]
        for each in list(ast.walk(node)):
            if isinstance(each, ast.Name):
                parts += self._values(each, scope)
        return any(REQUEST.search(ast.unparse(each)) for each in parts)

    def _scope_text(self, scope: ast.AST | None) -> str:
        return ast.unparse(scope) if scope is not None else self._code

    def _argument(self, call: Call, position: int, *names: str) -> ast.expr | None:
        for keyword in call.node.keywords:
            if keyword.arg in names:
                return keyword.value
        plain = [each for each in call.node.args if not isinstance(each, ast.Starred)]
        return plain[position] if position < len(plain) else None

    def _keyword(self, call: Call, name: str) -> ast.expr | None:
        return next((each.value for each in call.node.keywords if each.arg == name), None)

    def _is(self, node: ast.expr | None, value: object) -> bool:
        return isinstance(node, ast.Constant) and node.value is value

    def _find(self, node: ast.AST, cwe: str, score: float, reason: str, fix: str) -> Finding:
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        end_line, end_column = getattr(node, "end_lineno", line), getattr(node, "end_col_offset", column)
        start = self._offset_of(line, column)
        return Finding(start, max(self._offset_of(end_line, end_column), start), cwe, score, reason, fix)

    # Rules about calls

    def _commands(self, call: Call) -> Iterator[Finding]:
        command = self._argument(call, 0, "args", "cmd", "command")
        if command is None:
            return
        shell = self._keyword(call, "shell")
        through_shell = call.name in SHELL_CALLS or (
            (call.name in PROCESS_CALLS or call.name.endswith(".Popen"))
            and shell is not None
            and not self._is(shell, False)
        )
        listed = isinstance(command, ast.List | ast.Tuple) and len(command.elts) > 2
        if listed and isinstance(command, ast.List | ast.Tuple) and call.name in PROCESS_CALLS:
            words = [each.value if isinstance(each, ast.Constant) else None for each in command.elts]
            runs_shell = words[0] in {"sh", "bash", "/bin/sh", "/bin/bash", "cmd", "cmd.exe", "powershell"}
            if (
                runs_shell
                and words[1] in {"-c", "/c", "-Command"}
                and not self._is_constant(command.elts[2], call.scope)
            ):
                yield self._find(call.node, "CWE-78", 0.9, "a shell runs text that is put together", FIX_SHELL)
        elif through_shell and not self._is_constant(command, call.scope) and "shlex.quote" not in ast.unparse(command):
            yield self._find(call.node, "CWE-78", 0.9, "a shell runs text that is not constant", FIX_SHELL)
        elif through_shell and call.name in {"os.system", "os.popen"}:
            yield self._find(call.node, "CWE-78", 0.5, "a shell runs a command", FIX_SHELL)
        elif call.name in {"paramiko.SSHClient().exec_command"} or call.name.endswith(".exec_command"):
            if self._is_built(command, call.scope):
                yield self._find(call.node, "CWE-78", 0.8, "a remote shell runs text that is put together", FIX_SHELL)
        elif call.name.startswith(("os.exec", "os.spawn")) and not self._is_constant(command, call.scope):
            yield self._find(call.node, "CWE-78", 0.6, "the program that is started is not constant", FIX_SHELL)

    def _evaluation(self, call: Call) -> Iterator[Finding]:
        if call.name in {
            "eval",
            "exec",
            "builtins.eval",
            "builtins.exec",
            "compile",
            "code.InteractiveInterpreter().runcode",
        }:
            source = self._argument(call, 0, "source")
            if source is not None and not self._is_constant(source, call.scope):
                score = 0.6 if call.name == "compile" else 0.9
                yield self._find(call.node, "CWE-94", score, f"{call.name} runs text as code", FIX_EVAL)
        elif call.name in {"importlib.import_module", "__import__"}:
            name = self._argument(call, 0, "name")
            if name is not None and self._is_request(name, call.scope):
                yield self._find(call.node, "CWE-94", 0.8, "a request chooses the module that is loaded", FIX_EVAL)
        elif call.name in {"jinja2.Template", "flask.render_template_string"} or call.name.endswith(
            "render_template_string"
        ):
            template = self._argument(call, 0, "source")
            if template is not None and (
                self._is_built(template, call.scope) or self._is_request(template, call.scope)
            ):
                yield self._find(call.node, "CWE-1336", 0.8, "the template itself is put together", FIX_TEMPLATE)

    def _deserialization(self, call: Call) -> Iterator[Finding]:
        if call.name in UNPICKLERS:
            yield self._find(call.node, "CWE-502", 0.9, f"{call.name} can run code from the data", FIX_PICKLE)
        elif call.name in {"yaml.load", "yaml.load_all"}:
            loader = self._argument(call, 1, "Loader")
            if loader is None or (
                isinstance(loader, ast.Name | ast.Attribute) and self._name(loader).split(".")[-1] not in SAFE_LOADERS
            ):
                yield self._find(call.node, "CWE-502", 0.9, "yaml.load builds arbitrary objects", "use yaml.safe_load")
        elif call.name == "torch.load":
            if not self._is(self._keyword(call, "weights_only"), True):
                yield self._find(call.node, "CWE-502", 0.6, "torch.load may unpickle", "pass weights_only=True")
        elif call.name in {"numpy.load", "np.load"} and self._is(self._keyword(call, "allow_pickle"), True):
            yield self._find(
                call.node, "CWE-502", 0.8, "allow_pickle=True unpickles the array", "leave allow_pickle out"
            )

    def _sql(self, call: Call) -> Iterator[Finding]:
        method = call.name.split(".")[-1]
        if method not in {
            "execute",
            "executemany",
            "executescript",
            "raw",
            "query",
            "read_sql",
            "read_sql_query",
            "text",
            "extra",
            "RawSQL",
            "mogrify",
            "fetch",
            "fetchrow",
            "fetchval",
        }:
            return
        for query in call.node.args[:1]:
            if self._is_built(query, call.scope) and SQL_TEXT.search(self._text(query)):
                yield self._find(call.node, "CWE-89", 0.9, "the SQL text contains values", FIX_SQL)

    def _weak_hash(self, call: Call) -> Iterator[Finding]:
        module, _, name = call.name.rpartition(".")
        digest = None
        if module in {"hashlib", "Crypto.Hash.MD5", "Crypto.Hash.SHA1", "Crypto.Hash.SHA", "Cryptodome.Hash.MD5"}:
            first = call.node.args[0] if call.node.args else None
            chosen = first.value if name == "new" and isinstance(first, ast.Constant) else name
            digest = str(chosen).lower() if module == "hashlib" else module.rsplit(".", 1)[-1].lower()
        elif module.endswith("hazmat.primitives.hashes") or (module.endswith("hashes") and name.isupper()):
            digest = name.lower()
        elif name == "new" and module.rsplit(".", 1)[-1] in {"MD5", "SHA1", "SHA", "MD4", "MD2"}:
            digest = module.rsplit(".", 1)[-1].lower()
        elif call.name == "md5" or call.name == "sha1":
            digest = call.name
        elif call.name in {"hmac.new", "hashlib.pbkdf2_hmac"}:
            words = [ast.unparse(each) for each in [*call.node.args, *(k.value for k in call.node.keywords)]]
            weak = [word for word in words if re.fullmatch(r"(?:hashlib\.)?(?:md5|sha1)|['\"](?:md5|sha1)['\"]", word)]
            if weak:
                yield self._find(call.node, "CWE-328", 0.6, f"{weak[0]} is broken", FIX_HASH)
        if (
            digest
            and digest.replace("-", "") in WEAK_HASHES
            and not self._is(self._keyword(call, "usedforsecurity"), False)
        ):
            yield self._find(call.node, "CWE-328", 0.8, f"{digest} is broken as a hash", FIX_HASH)
        elif call.name == "crypt.crypt":
            yield self._find(call.node, "CWE-328", 0.7, "crypt uses weak password hashes", FIX_HASH)

    def _weak_cipher(self, call: Call) -> Iterator[Finding]:
        parts = call.name.split(".")
        cipher = next((part for part in parts if part in WEAK_CIPHERS), None)
        if cipher and (parts[-1] == "new" or "algorithms" in parts):
            yield self._find(call.node, "CWE-327", 0.9, f"{cipher} is broken as a cipher", FIX_CIPHER)
        elif "modes" in parts and parts[-1] == "ECB":
            yield self._find(call.node, "CWE-327", 0.9, "ECB shows equal blocks as equal", FIX_CIPHER)
        elif parts[-1] == "new" and parts[-2:-1] == ["AES"]:
            mode = self._argument(call, 1, "mode")
            if mode is not None and ast.unparse(mode).endswith("MODE_ECB"):
                yield self._find(call.node, "CWE-327", 0.9, "ECB shows equal blocks as equal", FIX_CIPHER)
        elif parts[-1] in {"generate_private_key", "generate"} and ("rsa" in parts or "RSA" in parts or "DSA" in parts):
            bits = self._keyword(call, "key_size") or self._keyword(call, "bits")
            bits = bits or next(iter(call.node.args[:1] if parts[-1] == "generate" else call.node.args[1:2]), None)
            if isinstance(bits, ast.Constant) and isinstance(bits.value, int) and bits.value < 2048:
                yield self._find(
                    call.node, "CWE-326", 0.8, "the key is shorter than 2048 bits", "use 3072 bits or more"
                )

    def _randomness(self, call: Call) -> Iterator[Finding]:
        module, _, name = call.name.rpartition(".")
        if module not in {"random", "numpy.random", "np.random"} or name not in RANDOM_CALLS | {"bytes"}:
            return
        around = self._names_around(call)
        security = SECURITY_WORD.search(around)
        if security or (module == "random" and not HARMLESS_CHANCE.search(self._scope_text(call.scope))):
            score = 0.8 if security else 0.5
            yield self._find(call.node, "CWE-338", score, "these random numbers can be predicted", FIX_RANDOM)

    def _names_around(self, call: Call) -> str:
        names, node = [], self._parent_of.get(call.node)
        while node is not None:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.append(node.name)
            elif isinstance(node, ast.Assign):
                names += [ast.unparse(each) for each in node.targets]
            elif isinstance(node, ast.AnnAssign | ast.AugAssign):
                names.append(ast.unparse(node.target))
            elif isinstance(node, ast.keyword) and node.arg:
                names.append(node.arg)
            node = self._parent_of.get(node)
        return " ".join(names)

    def _transport(self, call: Call) -> Iterator[Finding]:
        head, _, verb = call.name.rpartition(".")
        http = head.split(".")[0] in HTTP_MODULES or verb in HTTP_VERBS
        for name in ("verify", "verify_ssl", "ssl"):
            if http and self._is(self._keyword(call, name), False):
                yield self._find(call.node, "CWE-295", 0.9, f"{name}=False accepts every certificate", FIX_TLS)
        if call.name in {"ssl._create_unverified_context", "ssl._create_stdlib_context"}:
            yield self._find(call.node, "CWE-295", 0.9, "the context accepts every certificate", FIX_TLS)
        elif call.name == "ssl.wrap_socket":
            yield self._find(call.node, "CWE-295", 0.7, "ssl.wrap_socket checks no certificate", FIX_TLS)
        elif (verb == "set_missing_host_key_policy" and "AutoAdd" in ast.unparse(call.node) + "") or (
            verb == "set_missing_host_key_policy" and "WarningPolicy" in ast.unparse(call.node)
        ):
            yield self._find(
                call.node, "CWE-295", 0.8, "unknown host keys are accepted", "load known hosts and use RejectPolicy"
            )
        elif (
            call.name in {"ssl.SSLContext"}
            and call.node.args
            and re.search("SSLv[23]|TLSv1(_1)?$", ast.unparse(call.node.args[0]))
        ):
            yield self._find(
                call.node, "CWE-327", 0.8, "an outdated TLS version is allowed", "use ssl.create_default_context()"
            )
        elif call.name in {"telnetlib.Telnet", "ftplib.FTP"}:
            yield self._find(
                call.node, "CWE-319", 0.6, "everything is sent unencrypted", "use SSH, SFTP or FTP over TLS"
            )

    def _xml(self, call: Call) -> Iterator[Finding]:
        head, _, name = call.name.rpartition(".")
        if call.name in {"lxml.etree.XMLParser", "etree.XMLParser"}:
            if (
                self._is(self._keyword(call, "resolve_entities"), True)
                or self._is(self._keyword(call, "no_network"), False)
                or self._is(self._keyword(call, "load_dtd"), True)
            ):
                yield self._find(call.node, "CWE-611", 0.9, "the parser resolves external entities", FIX_XML)
        elif (
            head == "lxml.etree"
            and name in {"parse", "fromstring", "XML"}
            and len(call.node.args) + len(call.node.keywords) == 1
        ):
            yield self._find(call.node, "CWE-611", 0.7, "the default parser of lxml resolves entities", FIX_XML)
        elif head.startswith(XML_MODULES) and name in XML_CALLS and "defusedxml" not in self._code:
            yield self._find(call.node, "CWE-611", 0.7, "the parser expands entities", FIX_XML)
        elif name == "setFeature" and len(call.node.args) > 1:
            feature, value = (ast.unparse(each) for each in call.node.args[:2])
            if "external" in feature.lower() and value not in {"False", "0"}:
                yield self._find(call.node, "CWE-611", 0.9, "external entities are switched on", FIX_XML)

    def _files(self, call: Call) -> Iterator[Finding]:
        name = call.name.rpartition(".")[2]
        if call.name in {"tempfile.mktemp", "os.tempnam", "os.tmpnam"}:
            yield self._find(call.node, "CWE-377", 0.9, "another process can take the name first", FIX_TEMPORARY)
        elif call.name in {"open", "io.open", "pathlib.Path"} and call.node.args:
            path = call.node.args[0]
            if TEMPORARY.search(self._text(path)) and (
                len(call.node.args) > 1 and re.search("[wax]", self._text(call.node.args[1]))
            ):
                yield self._find(
                    call.node, "CWE-377", 0.6, "the name of the temporary file can be guessed", FIX_TEMPORARY
                )
        elif call.name in {"os.chmod", "os.fchmod"} or name == "chmod":
            mode = call.node.args[-1] if call.node.args else self._keyword(call, "mode")
            if isinstance(mode, ast.Constant) and isinstance(mode.value, int) and mode.value & 0o002:
                yield self._find(
                    call.node, "CWE-732", 0.8, "everybody may write the file", "grant 0o600, or 0o700 for a folder"
                )
        elif name == "extractall" and not ARCHIVE_GUARD.search(self._scope_text(call.scope)) and "tar" in self._code:
            yield self._find(
                call.node, "CWE-22", 0.7, "members of the archive may leave the folder", 'pass filter="data"'
            )
        yield from self._paths(call)

    def _paths(self, call: Call) -> Iterator[Finding]:
        if call.name in {
            "open",
            "io.open",
            "flask.send_file",
            "send_file",
            "os.remove",
            "os.unlink",
            "shutil.rmtree",
            "codecs.open",
        } or call.name.endswith((".read_text", ".read_bytes")):
            target = call.node.args[0] if call.node.args else call.node.func
            within = self._scope_text(call.scope)
            joined = self._is_joined_path(target, call.scope)
            if (self._is_request(target, call.scope) or joined) and not PATH_GUARD.search(within):
                yield self._find(call.node, "CWE-22", 0.8, "the path may leave its folder", FIX_PATH)

    def _is_joined_path(self, node: ast.expr, scope: ast.AST | None) -> bool:
        """Tells whether a folder is joined with a parameter of the function, in whichever way."""
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        parameters = {each.arg for each in [*scope.args.args, *scope.args.kwonlyargs]} - {"self", "cls"}
        for each in self._values(node, scope):
            names = {n.id for n in ast.walk(each) if isinstance(n, ast.Name)} & parameters
            constants = [c.value for c in ast.walk(each) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
            folder = any(text.endswith("/") or text.startswith("/") for text in constants) or bool(
                re.search(r"\b[A-Z_]*(?:DIR|ROOT|FOLDER|BASE|PATH)\b", ast.unparse(each))
            )
            joins = (
                isinstance(each, ast.BinOp | ast.JoinedStr)
                or "join(" in ast.unparse(each)
                or "Path(" in ast.unparse(each)
            )
            if names and folder and joins:
                return True
        return False

    def _requests_out(self, call: Call) -> Iterator[Finding]:
        head, _, name = call.name.rpartition(".")
        outgoing = (head.split(".")[0] in HTTP_MODULES and name in HTTP_VERBS) or call.name.endswith("urlopen")
        url = self._argument(call, 1 if name == "request" else 0, "url")
        if outgoing and url is not None and self._is_request(url, call.scope):
            guarded = re.search("allow|whitelist|urlparse|hostname|netloc", self._scope_text(call.scope), re.IGNORECASE)
            if not guarded:
                yield self._find(
                    call.node, "CWE-918", 0.8, "a request chooses the address that the server calls", FIX_SSRF
                )

    def _web(self, call: Call) -> Iterator[Finding]:
        name = call.name.rpartition(".")[2]
        target = call.node.args[0] if call.node.args else None
        if name in {"redirect", "HttpResponseRedirect", "RedirectResponse"} and target is not None:
            if self._is_request(target, call.scope) and not re.search(
                "is_safe_url|allowed_host|urlparse|startswith", self._scope_text(call.scope)
            ):
                yield self._find(call.node, "CWE-601", 0.8, "a request chooses where the browser goes", FIX_REDIRECT)
        elif name in {"mark_safe", "Markup", "SafeString", "HttpResponse", "make_response"} and target is not None:
            reflected = self._is_request(target, call.scope) or (
                name in {"mark_safe", "Markup"} and self._is_built(target, call.scope)
            )
            if reflected and not re.search(
                r"escape\(|format_html|bleach|conditional_escape", self._scope_text(call.scope)
            ):
                yield self._find(call.node, "CWE-79", 0.8, "text becomes markup unescaped", FIX_MARKUP)
        elif name == "Environment" and self._is(self._keyword(call, "autoescape"), False):
            yield self._find(call.node, "CWE-79", 0.8, "autoescape is off", "pass autoescape=select_autoescape()")
        elif call.name.endswith("jinja2.Environment") and self._keyword(call, "autoescape") is None:
            yield self._find(
                call.node, "CWE-79", 0.6, "autoescape is off by default", "pass autoescape=select_autoescape()"
            )
        elif name == "run" and self._is(self._keyword(call, "debug"), True):
            yield self._find(call.node, "CWE-489", 0.7, "the debugger lets visitors run code", "leave debug out")
        elif (
            name == "run"
            and isinstance(host := self._keyword(call, "host"), ast.Constant)
            and host.value == ".".join("0000")
        ):
            yield self._find(call.node, "CWE-605", 0.4, "the server listens on all interfaces", "bind to 127.0.0.1")
        elif name == "set_cookie" and self._is(self._keyword(call, "secure"), False):
            yield self._find(
                call.node, "CWE-614", 0.6, "the cookie also travels unencrypted", "pass secure=True, httponly=True"
            )
        elif name in {"decode"} and call.name.startswith("jwt."):
            if "verify_signature': False" in ast.unparse(call.node) or self._is(self._keyword(call, "verify"), False):
                yield self._find(
                    call.node, "CWE-347", 0.9, "the signature is not checked", "pass the key and algorithms=[...]"
                )
        elif name in {"search", "search_s"} and target is not None and "ldap" in self._code:
            if any(self._is_built(each, call.scope) for each in call.node.args) and "escape_filter" not in self._code:
                yield self._find(
                    call.node, "CWE-90", 0.7, "the LDAP filter contains values", "use ldap.filter.escape_filter_chars"
                )
        elif name == "xpath" and target is not None and self._is_built(target, call.scope):
            yield self._find(
                call.node, "CWE-643", 0.8, "the XPath text contains values", "pass values as XPath variables"
            )
        elif name in {"compile", "match", "search", "findall"} and call.name.startswith("re.") and target is not None:
            chosen = self._is_request(target, call.scope) and "re.escape" not in self._code
            if chosen:
                yield self._find(
                    call.node, "CWE-1333", 0.7, "a request chooses the regular expression", "use re.escape"
                )

    def _named_secrets(self, call: Call) -> Iterator[Finding]:
        for keyword in call.node.keywords:
            if keyword.arg and CREDENTIAL_NAME.search(keyword.arg) and self._is_secret(keyword.value):
                yield self._find(call.node, "CWE-798", 0.8, f"{keyword.arg} is written into the code", FIX_SECRET)

    def _is_secret(self, node: ast.expr | None) -> bool:
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        return isinstance(value, str) and not is_placeholder(value)

    # Rules about other statements

    def _credentials(self, node: ast.Assign | ast.AnnAssign) -> Iterator[Finding]:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            name = (
                target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""
            )
            if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                name = str(target.slice.value)
            if CREDENTIAL_NAME.search(name) and self._is_secret(node.value):
                yield self._find(node, "CWE-798", 0.8, f"{name} is written into the code", FIX_SECRET)
        if isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and CREDENTIAL_NAME.search(str(key.value)) and self._is_secret(value):
                    yield self._find(value, "CWE-798", 0.8, f"{key.value!r} is written into the code", FIX_SECRET)

    def _default_credentials(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Finding]:
        positional = [*node.args.posonlyargs, *node.args.args]
        defaults = list(zip(positional[len(positional) - len(node.args.defaults) :], node.args.defaults, strict=True))
        for argument, default in defaults:
            if CREDENTIAL_NAME.search(argument.arg) and self._is_secret(default):
                yield self._find(default, "CWE-798", 0.7, f"{argument.arg} has a default in the code", FIX_SECRET)

    def _switched_off(self, node: ast.Assign | ast.AnnAssign) -> Iterator[Finding]:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if not isinstance(target, ast.Attribute) or node.value is None:
                continue
            value = ast.unparse(node.value)
            off = target.attr in {"check_hostname", "verify"} and value == "False"
            if (
                off
                or (target.attr == "verify_mode" and value.endswith("CERT_NONE"))
                or (target.attr == "_create_default_https_context" and "unverified" in value)
            ):
                yield self._find(node, "CWE-295", 0.9, "every certificate is accepted", FIX_TLS)

    def _assert_as_check(self, node: ast.Assert) -> Iterator[Finding]:
        if re.search(
            r"is_admin|is_auth|has_perm|permission|is_staff|authori[sz]ed|authenticated", ast.unparse(node.test)
        ):
            yield self._find(node, "CWE-617", 0.7, "python -O removes this check", "raise an error instead")

    def _reflected(self, node: ast.Return) -> Iterator[Finding]:
        scope = self._scope_of.get(node)
        if node.value is None or not self._is_built(node.value, scope) or not self._is_request(node.value, scope):
            return
        if re.search(r"<\w", self._text(node.value)) and not re.search(r"escape\(", self._scope_text(scope)):
            yield self._find(node, "CWE-79", 0.8, "a request is part of the page unescaped", FIX_MARKUP)

    def _credential_comparison(self, node: ast.Compare) -> Iterator[Finding]:
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq):
            return
        for name, value in ((node.left, node.comparators[0]), (node.comparators[0], node.left)):
            text = name.id if isinstance(name, ast.Name) else name.attr if isinstance(name, ast.Attribute) else ""
            if CREDENTIAL_NAME.search(text) and self._is_secret(value):
                yield self._find(node, "CWE-798", 0.8, f"{text} is compared with a secret in the code", FIX_SECRET)
            elif (
                (
                    isinstance(name, ast.Name)
                    and re.search(r"signature|hmac|digest|mac$", text)
                    and not isinstance(value, ast.Constant)
                )
                and isinstance(value, ast.Call)
                and value is node.comparators[0]
            ):
                yield self._find(
                    node,
                    "CWE-208",
                    0.6,
                    "the time of the comparison shows how much is equal",
                    "use hmac.compare_digest",
                )


FIX_SHELL = "pass a list of arguments without shell=True"
FIX_EVAL = "choose from a table of functions, or use ast.literal_eval for data"
FIX_TEMPLATE = "render a constant template and pass values as variables"
FIX_PICKLE = "use JSON, or another format that holds data only"
FIX_SQL = "write placeholders in the SQL text and pass the values as parameters"
FIX_HASH = "use SHA-256; for passwords hashlib.scrypt; for checksums usedforsecurity=False"
FIX_CIPHER = "use AES-GCM or ChaCha20-Poly1305"
FIX_RANDOM = "use the secrets module"
FIX_TLS = "leave verification on; give the path of your own certificate authority if you have one"
FIX_XML = "use defusedxml, or a parser with resolve_entities=False"
FIX_TEMPORARY = "use tempfile.NamedTemporaryFile or tempfile.mkstemp"
FIX_PATH = "resolve the path and require that it lies in the folder (Path.resolve, is_relative_to)"
FIX_SSRF = "compare the host with a list of allowed ones"
FIX_REDIRECT = "redirect to paths of your own site only"
FIX_MARKUP = "escape the value (html.escape) or render it in a template that escapes"
FIX_SECRET = "read it from the environment or a secret store"

CALL_RULES: tuple[Callable[[_Scan, Call], Iterator[Finding]], ...] = (
    _Scan._commands,
    _Scan._evaluation,
    _Scan._deserialization,
    _Scan._sql,
    _Scan._weak_hash,
    _Scan._weak_cipher,
    _Scan._randomness,
    _Scan._transport,
    _Scan._xml,
    _Scan._files,
    _Scan._requests_out,
    _Scan._web,
    _Scan._named_secrets,
)

CWES = tuple(
    f"CWE-{number}" for number in (22, 78, 79, 89, 90, 94, 208, 295, 319, 326, 327, 328, 338, 347, 377, 489, 502)
)
CWES += tuple(f"CWE-{number}" for number in (601, 611, 614, 617, 643, 732, 798, 918, 1333, 1336))
