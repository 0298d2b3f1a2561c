"""Programs in the sandbox: honest ones run, hostile ones are contained and named."""

import os
import signal
from pathlib import Path

import pytest

from puna.errors import DeviceError
from puna.eval.sandbox import Limits, Outcome, run

SHORT = Limits(seconds=10, cpu_seconds=1, memory_bytes=2**28, output_bytes=2**16)
"""Wall time is generous, since a busy machine may take seconds to start; there a loop may meet it before the other."""

LIBC = "import ctypes\nlibc = ctypes.CDLL(None)\n"

# name -> (program, how it may end, what must have been named); CANARY is the path of a file with a secret in it.
HOSTILE: dict[str, tuple[str, set[str], set[str]]] = {
    "fork bomb": ("import os\nwhile True: os.fork()", {"raised"}, {"process"}),
    "fork in C": (LIBC + "assert libc.fork() != -1", {"raised"}, {"native code"}),
    "clone in C": (LIBC + "assert libc.syscall(56, 17, 0, 0, 0, 0) != -1", {"raised"}, {"native code"}),
    "subprocess": ("import subprocess\nsubprocess.run(['ls'])", {"raised"}, {"process"}),
    "shell": ("import os\nassert os.system('true') == 0", {"raised"}, {"process"}),
    "exec": ("import os\nos.execv('/bin/sh', ['sh'])", {"raised"}, {"process"}),
    "spawn": ("import os\nos.posix_spawn('/bin/sh', ['sh'], {})", {"raised"}, {"process"}),
    "terminal": ("import os\nos.forkpty()", {"raised"}, {"process"}),
    "thread bomb": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(999,)).start()",
        {"raised", "memory", "crashed", "cpu", "time"},
        set(),
    ),
    "memory": ("x = [0] * 10**9", {"memory"}, set()),
    "memory, bit by bit": ("x = []\nwhile True: x.append(bytearray(2**22))", {"memory"}, set()),
    "memory, mapped": ("import mmap\nmmap.mmap(-1, 2**40)", {"raised", "memory"}, set()),
    "memory, anonymous file": ("import os\nos.memfd_create('x')", {"raised"}, set()),
    "endless recursion": (
        "import sys\nsys.setrecursionlimit(2**30)\ndef f(): f()\nf()",
        {"raised", "memory", "crashed", "cpu", "time"},
        set(),
    ),
    "connection": ("import socket\nsocket.create_connection(('127.0.0.1', 80))", {"raised"}, {"network"}),
    "server": ("import socket\nsocket.create_server(('', 0))", {"raised"}, {"network"}),
    "name lookup": ("import socket\nsocket.getaddrinfo('example.org', 80)", {"raised"}, {"network"}),
    "download": ("import urllib.request as u\nu.urlopen('http://example.org')", {"raised"}, {"network"}),
    "socket in C": (LIBC + "assert libc.socket(2, 1, 0) != -1", {"raised"}, {"native code"}),
    "socket pair": ("import socket\nsocket.socketpair()", {"raised"}, set()),
    "new file": ("open('stolen', 'w').write('x')", {"raised"}, {"file write"}),
    "new file in memory": ("open('/dev/shm/stolen', 'w').write('x')", {"raised"}, {"file write"}),
    "overwritten file": ("open('CANARY', 'w').write('x')", {"raised"}, {"file write"}),
    "overwritten in C": (LIBC + "assert libc.open(b'CANARY', 1) != -1", {"raised"}, {"native code"}),
    "removed file": ("import os\nos.remove('CANARY')", {"raised"}, {"file write"}),
    "renamed file": ("import os\nos.rename('CANARY', 'CANARY-2')", {"raised"}, {"file write"}),
    "changed rights": ("import os\nos.chmod('CANARY', 0)", {"raised"}, {"file write"}),
    "new folder": ("import os\nos.mkdir('stolen')", {"raised"}, {"file write"}),
    "link": ("import os\nos.symlink('CANARY', 'CANARY-2')", {"raised"}, {"file write"}),
    "secret": ("print(open('CANARY').read())", {"raised"}, {"file read"}),
    "passwords": ("print(open('/etc/passwd').read())", {"raised"}, {"file read"}),
    "folder": ("import os\nprint(os.listdir('/'))", {"raised"}, {"file read"}),
    "parent's environment": ("import os\nopen(f'/proc/{os.getppid()}/environ')", {"raised"}, {"file read"}),
    "parent's memory": (LIBC + "import os\nassert libc.ptrace(16, os.getppid(), 0, 0) != -1", {"raised"}, set()),
    "endless loop": ("while True: pass", {"cpu", "time"}, set()),
    "endless loop, deaf": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        {"cpu", "time"},
        set(),
    ),
    "loop in a finally": ("try: 1 / 0\nfinally:\n while True: pass", {"cpu", "time"}, set()),
    "signal to the parent": ("import os\nos.kill(os.getppid(), 9)", {"raised"}, {"signal"}),
    "signal to everybody": ("import os\nos.kill(-1, 9)", {"raised"}, {"signal"}),
    "signal by descriptor": (
        "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())",
        {"raised"},
        set(),
    ),
    "own limits": (
        "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (99, r.RLIM_INFINITY))",
        {"raised"},
        {"limits"},
    ),
    "other user": ("import os\nos.setuid(1)", {"raised"}, set()),
    "huge output": ("while True: print('x' * 1000)", {"output"}, set()),
    "huge complaints": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", {"output"}, set()),
    "closed streams": ("import os\nos.closerange(0, 20)\nwhile True: pass", {"cpu", "time"}, set()),
    "abort": ("import os\nos.abort()", {"crashed"}, set()),
    "silent exit": ("import os\nos._exit(0)", {"exited"}, set()),
    "polite exit": ("raise SystemExit(0)", {"exited"}, set()),
    "forged report": (
        'import os\nfor i in range(3, 20):\n try: os.write(i, b\'{"ended": "finished", "detail": ""}\\n\')\n'
        " except OSError: pass\nos._exit(0)",
        {"exited"},
        set(),
    ),
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary.txt"
    path.write_text("secret-of-the-canary")
    path.chmod(0o644)
    return path


def confined(program: str, **options: object) -> Outcome:
    try:
        return run(program, **options)  # type: ignore[arg-type]
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_is_contained_and_named(name: str, canary: Path) -> None:
    program, ends, named = HOSTILE[name]
    outcome = confined(program.replace("CANARY", str(canary)), limits=SHORT)
    assert outcome.ended in ends, outcome
    assert named <= set(outcome.attempts), outcome
    assert [path.name for path in canary.parent.iterdir()] == ["canary.txt"]
    assert canary.read_text() == "secret-of-the-canary" and canary.stat().st_mode & 0o777 == 0o644
    assert "secret-of-the-canary" not in outcome.stdout + outcome.detail
    assert len(outcome.stdout) + len(outcome.stderr) <= 4 * 2**16  # a pipe's last pieces beyond the limit


def test_kernel_refuses_reads_also_where_the_interpreter_is_not_asked(canary: Path) -> None:
    program = LIBC + f"print(libc.open({os.fsencode(canary)!r}, 0))"
    outcome = confined(program, limits=SHORT)
    if "landlock" not in outcome.layers:
        pytest.skip("this kernel has no Landlock, so only the interpreter refuses reads")
    assert outcome.stdout == "-1\n"


def test_sleeping_program_is_stopped_by_the_clock() -> None:
    assert confined("import time\ntime.sleep(999)", limits=Limits(seconds=2)).ended == "time"


def test_program_with_closed_streams_is_stopped_by_the_clock() -> None:
    program = "import os, time\nfor i in range(20):\n try: os.close(i)\n except OSError: pass\ntime.sleep(999)"
    assert confined(program, limits=Limits(seconds=2)).ended == "time"


def test_parent_receives_no_signal() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        confined("import os, signal\nos.kill(os.getppid(), signal.SIGTERM)", limits=SHORT)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not received


def test_honest_program_has_input_output_and_value() -> None:
    outcome = confined("n = int(input())\nprint(n * 2)", stdin="21\n", value="{'n': n, 'pair': (1, 2)}")
    assert outcome.finished and outcome.stdout == "42\n" and outcome.value == {"n": 21, "pair": [1, 2]}
    assert outcome.attempts == () and {"limits", "seccomp"} <= set(outcome.layers)


def test_honest_program_may_use_the_library_and_threads() -> None:
    program = (
        "import collections, decimal, hashlib, heapq, itertools, json, math, random, re, statistics, threading\n"
        "threading.stack_size(2**25)\nt = threading.Thread(target=lambda: print('in a thread'))\nt.start()\n"
        "print(hashlib.sha256(b'').hexdigest()[:4], random.random() < 1)\n"
    )
    outcome = confined(program)
    assert outcome.finished, outcome
    assert sorted(outcome.stdout.splitlines()) == ["e3b0 True", "in a thread"]
    assert outcome.attempts == ()


def test_main_block_runs_and_text_is_unicode() -> None:
    assert confined("if __name__ == '__main__':\n print(input()[::-1])", stdin="añu").stdout == "uña\n"


def test_failure_names_exception_and_line() -> None:
    outcome = confined("x = 1\nassert x == 2, 'no'")
    assert (outcome.ended, outcome.detail) == ("raised", "AssertionError: no (line 2)")
    assert confined("def f(:").ended == "raised"
    assert confined("x = 1", value="set()").detail.startswith("TypeError")


def test_large_input_and_program_pass() -> None:
    text = "7 " * 500_000
    assert confined(f"{'# padding' * 20_000}\nprint(len(input().split()))", stdin=text).stdout == "500000\n"


def test_nothing_of_the_environment_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "token")
    assert confined("import os\nprint('A_SECRET' in os.environ)").stdout == "False\n"
