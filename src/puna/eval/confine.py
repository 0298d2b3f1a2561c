"""Runs one untrusted program in this process, after giving up for good whatever it could do harm with.

In: `python -I -S confine.py JOB REPORT`, two open file descriptors. JOB holds one JSON document (`program`, `value`,
`token`, `memory_bytes`, `cpu_seconds`, `n_files`). Out: lines of JSON on REPORT: what the program attempted, as it
happens, and how it ended. `sandbox` starts this file, watches time and output from outside, and reads the report.

The kernel enforces: a seccomp filter that lets through only what computing needs (no socket, no process, no signal to
others, no file opened for writing), Landlock (files are read below the standard library only), resource limits, no
capabilities. An audit hook gives the attempts their names and refuses reads where a kernel has no Landlock.

Standard library only, and nothing of puna: this file runs alone. Linux on x86-64 and aarch64.
Source: kernel documentation `userspace-api/seccomp_filter`, `userspace-api/landlock`; syscall numbers from
`arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What computing needs, with the numbers on (x86-64, aarch64); None where the machine has no such call.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
}
# Allowed for some arguments only: see `_filter`.
OPEN, OPENAT, CLONE, CLONE3 = (2, None), (257, 56), (56, 220), (435, 435)
KILL, TGKILL, PRLIMIT, FCNTL, IOCTL = (62, 129), (234, 131), (302, 261), (72, 25), (16, 29)

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CLONE_THREAD = 0x10000
FCNTL_COMMANDS = (0, 1, 2, 3, 1030)  # duplicate a descriptor, read and write its flags; not: whom to send signals to
IOCTL_COMMANDS = (0x5401, 0x5413, 0x5451)  # is it a terminal, its size, close on exec
EPERM, EACCES, ENOSYS = 1, 13, 38

# BPF opcodes: load a word of seccomp_data, compare, test bits, return.
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, KILL_PROCESS, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in seccomp_data
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
LANDLOCK_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # rights of the file system known to that version; 16 from the fifth on

# Audit events (their beginnings) -> what the program tried. Source: docs.python.org/3/library/audit_events.html
ATTEMPTS = {
    "socket.": "network",
    "os.fork": "process",
    "os.exec": "process",
    "os.posix_spawn": "process",
    "os.spawn": "process",
    "os.system": "process",
    "subprocess.": "process",
    "pty.": "process",
    "os.kill": "signal",
    "signal.pthread_kill": "signal",
    "os.remove": "file write",
    "os.rename": "file write",
    "os.mkdir": "file write",
    "os.rmdir": "file write",
    "os.chmod": "file write",
    "os.chown": "file write",
    "os.link": "file write",
    "os.symlink": "file write",
    "os.truncate": "file write",
    "os.utime": "file write",
    "os.setxattr": "file write",
    "shutil.": "file write",
    "resource.setrlimit": "limits",
    "resource.prlimit": "limits",
    "ctypes.": "native code",
    "os.putenv": "environment",
}


def main(job_fd: int, report_fd: int) -> None:
    """Reads the job, confines this process, runs the program, reports, and ends the process."""
    with os.fdopen(job_fd, "rb") as file:
        job = json.load(file)

    def report(**line: Any) -> None:
        os.write(report_fd, json.dumps(line).encode() + b"\n")

    roots = _readable_roots()
    try:
        layers = _confine(job, roots)
    except OSError as error:
        report(setup=str(error))
        os._exit(1)
    report(layers=layers)
    sys.addaudithook(_naming_hook(report, roots))
    sys.argv = [""]
    report(token=job["token"], **_run(job["program"], job["value"]))
    os._exit(0)


def _run(program: str, value: str | None) -> dict[str, Any]:
    """Runs the program as `__main__`, then evaluates `value` in it. Returns how it ended and the value as JSON."""
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        exec(compile(program, "<program>", "exec"), names)
        result = None if value is None else json.dumps(eval(compile(value, "<value>", "eval"), names))
        _join_threads()
        sys.stdout.flush()
    except SystemExit as error:
        sys.stdout.flush()
        return {"ended": "exited", "detail": f"exit({error.code!r})"}
    except MemoryError:
        return {"ended": "memory", "detail": "MemoryError"}
    except BaseException as error:  # also KeyboardInterrupt: whatever a program raises is its result
        sys.stdout.flush()
        frames = traceback.walk_tb(error.__traceback__)  # extract_tb would look for a file of that name
        lines = [line for frame, line in frames if frame.f_code.co_filename == "<program>"]
        text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1][:300]
        return {"ended": "raised", "detail": f"{text} (line {lines[-1]})" if lines else text}
    return {"ended": "finished", "detail": "", "value": result}


def _join_threads() -> None:
    threading = sys.modules.get("threading")
    for thread in threading.enumerate() if threading else ():
        if thread is not threading.main_thread() and not thread.daemon:  # type: ignore[union-attr]
            thread.join()


def _confine(job: dict[str, Any], roots: list[str]) -> list[str]:
    """Gives up everything; returns the names of the layers. Raises OSError when the kernel refuses the essential."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        raise OSError(f"{sys.platform} on {machine}: programs are confined on Linux, x86_64 or aarch64, only")
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    _call(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")
    _call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, job["n_files"]),
        (resource.RLIMIT_AS, job["memory_bytes"]),
    ):
        resource.setrlimit(kind, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_seconds"], job["cpu_seconds"] + 1))
    layers = ["limits", *_landlock(libc, roots)]
    nothing = (ctypes.c_uint32 * 6)()
    _call(libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), nothing), "capset")
    code = b"".join(_filter(*ARCHITECTURES[machine], os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    _call(libc.prctl(PR_SET_SECCOMP, 2, ctypes.create_string_buffer(head, len(head)), 0, 0), "prctl(PR_SET_SECCOMP)")
    return [*layers, "seccomp"]


def _filter(column: int, architecture: int, pid: int) -> Iterator[bytes]:
    """Yields the instructions of the system call filter: all that is not named here fails with EPERM."""

    def step(code: int, operand: int, when: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("HBBI", code, when, otherwise, operand)

    def block(call: tuple[int | None, int | None], body: list[bytes]) -> list[bytes]:
        number = call[column]
        return [] if number is None else [step(EQUAL, number, 0, len(body)), *body]

    def argument(index: int, high: bool = False) -> bytes:
        return step(LOAD, ARGUMENTS + 8 * index + 4 * high)

    allow, refuse = step(RETURN, ALLOW), step(RETURN, ERROR | EPERM)

    def if_one_of(index: int, values: tuple[int, ...]) -> list[bytes]:
        checks = [step(EQUAL, v & 0xFFFFFFFF, len(values) - i, 0) for i, v in enumerate(values)]
        return [argument(index), *checks, refuse, allow]

    def unless_writing(index: int) -> list[bytes]:
        return [argument(index), step(ANY_BIT, WRITING, 0, 1), step(RETURN, ERROR | EACCES), allow]

    yield step(LOAD, ARCHITECTURE)
    yield step(EQUAL, architecture, 1, 0)
    yield step(RETURN, KILL_PROCESS)
    yield step(LOAD, NUMBER)
    for call in ALLOWED.values():
        yield from block(call, [allow])
    yield from block(OPEN, unless_writing(1))
    yield from block(OPENAT, unless_writing(2))
    yield from block(CLONE, [argument(0), step(ANY_BIT, CLONE_THREAD, 1, 0), refuse, allow])
    yield from block(CLONE3, [step(RETURN, ERROR | ENOSYS)])  # glibc then tries clone, whose flags a filter can see
    yield from block(KILL, if_one_of(0, (pid,)))
    yield from block(TGKILL, if_one_of(0, (pid,)))
    yield from block(FCNTL, if_one_of(1, FCNTL_COMMANDS))
    yield from block(IOCTL, if_one_of(1, IOCTL_COMMANDS))
    reads_limits = [argument(2), step(EQUAL, 0, 1, 0), refuse, argument(2, True), step(EQUAL, 0, 1, 0), refuse, allow]
    yield from block(PRLIMIT, reads_limits)
    yield refuse


def _landlock(libc: ctypes.CDLL, roots: list[str]) -> list[str]:
    """Lets files be read below `roots` only, where the kernel has Landlock; returns the layer's name, or nothing."""
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return []
    rights = struct.pack("Q", (1 << LANDLOCK_RIGHTS.get(version, 16)) - 1)
    rules = libc.syscall(LANDLOCK_CREATE, rights, len(rights), 0)
    _call(rules, "landlock_create_ruleset")
    for root in roots:
        fd = os.open(root, os.O_PATH | os.O_CLOEXEC)
        allowed = READ_FILE | READ_DIR if Path(root).is_dir() else READ_FILE
        _call(libc.syscall(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, fd), 0), "landlock_add_rule")
        os.close(fd)
    _call(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "landlock_restrict_self")
    os.close(rules)
    return ["landlock"]


def _readable_roots() -> list[str]:
    """Returns where the standard library and the shared objects it loads are, and the time zones."""
    paths = sysconfig.get_paths()
    named = [paths["stdlib"], paths["platstdlib"], str(Path(sys.base_prefix) / "lib"), "/usr/share/zoneinfo"]
    named += ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime"]
    return sorted({os.path.realpath(path) for path in named if Path(path).exists()})


def _naming_hook(report: Any, roots: list[str]) -> Any:
    """Returns an audit hook that reports each kind of attempt once, and refuses reads outside `roots`."""
    seen: set[str] = set()
    inside = tuple(f"{root}/" for root in roots) + tuple(roots)

    def attempted(name: str) -> None:
        if name not in seen:
            seen.add(name)
            report(attempt=name)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"open", "os.listdir", "os.scandir"}:
            path = arguments[0]
            if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
                attempted("file write")
            elif not isinstance(path, int) and not os.fsdecode(os.path.realpath(path or ".")).startswith(inside):
                attempted("file read")
                raise PermissionError(EACCES, "the sandbox reads the standard library only", path)
            return
        for start, name in ATTEMPTS.items():
            if event.startswith(start):
                attempted(name)

    return hook


def _call(result: int, name: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
