"""The limits that a decoding or recognising process puts on itself, and the launcher that puts them on tools.

As a module: functions for a process that limits itself. As a script, run by path so that it loads nothing but
the standard library: ``limits.py PARENT_PID MEMORY_BYTES CPU_SECONDS FILE_BYTES PROGRAM ARGS…`` applies the
limits and becomes PROGRAM. A ``preexec_fn`` would do the same inside the caller, but it runs Python between
fork and exec, which can deadlock in a process with threads.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
OPEN_FILES = 64
COMMAND_NOT_FOUND = 127

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends; exit if `parent` is gone."""
    if _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if parent is not None and os.getppid() != parent:
        os._exit(0)


def limit_process(memory: int, file_size: int) -> None:
    """Cap address space and written files (bytes) and open files, for this process and its children."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_cpu(seconds: float) -> None:
    """Let this process use `seconds` more of processor time before it gets SIGXCPU."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def main(arguments: list[str]) -> None:
    parent, memory, cpu_seconds, file_size = (int(number) for number in arguments[:4])
    program = arguments[4:]
    die_with_parent(parent)
    limit_process(memory, file_size)
    allow_cpu(cpu_seconds)
    try:
        os.execvp(program[0], program)
    except FileNotFoundError:
        sys.exit(COMMAND_NOT_FOUND)


if __name__ == "__main__":
    main(sys.argv[1:])
