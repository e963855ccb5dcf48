"""How the helper process binds itself, before it touches a model's files.

Knows neither jobs nor models. Invariant: after `confine` the process takes no more memory than allowed, writes to no
file, leaves no core, and on Linux does not outlive the thread that started it. Elsewhere it ends with its line, and the
bound on memory is as good as the system's.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import signal
import sys
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""Source: linux/prctl.h."""

_OOM_SCORE: Final = 500
"""When the machine's memory is out, the kernel takes this process rather than the server."""

_IS_LINUX: Final = sys.platform == "linux"


def confine(memory_bytes: int) -> None:
    """Takes the limits that hold for the whole life of the process.

    Raises:
        OSError: the system refuses one.
    """
    if _IS_LINUX:
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        with contextlib.suppress(OSError):  # a container may not show it
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    # A core would hold prompts.
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    with contextlib.nullcontext() if _IS_LINUX else contextlib.suppress(OSError, ValueError):
        _lower(resource.RLIMIT_AS, memory_bytes)


def allow_cpu(more_s: float) -> None:
    """Lets the kernel end the process (SIGPROF) after `more_s` of processor time from now.

    A timer for each job, not RLIMIT_CPU: that counts ticks over the whole life of the process, which drift from every
    clock that can be read, and would one day end a process over an innocent job.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, more_s)


def give_memory_back() -> None:
    """Returns freed memory to the system, where the C library can: a long prompt leaves hundreds of MiB in its heap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _lower(kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (limit, limit))
