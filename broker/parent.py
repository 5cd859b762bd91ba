"""For children of a supervisor: not to outlive it."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Has the kernel send ``number`` to this process when its parent is gone, however it went (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    # The parent may have gone before the request was made; its signal would then never come.
    if os.getppid() != parent or parent == 1:
        os.kill(os.getpid(), number)
