"""How many files a process may have open: each client that waits or streams has one, and each of a database's too.

A login's soft limit is often 1024, and so is that of a container; the hard one is what its owner truly allows.
"""

import resource

_ENOUGH = 65_536


def enough_open_files() -> int:
    """The soft limit that a process here may set itself, if it serves many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)


def allow_open_files() -> None:
    """Lifts this process's soft limit, never lowers it; whatever it starts has the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < enough_open_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough_open_files(), hard))
