"""One helper process as the server sees it: started, asked, killed.

Knows neither templates nor tokenizers, and believes nothing that it is told. Invariant: a job that was handed over
comes back as a checked answer or as one of the errors below, by its deadline; after an error the process is of no use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from llmws.engine_api import PromptFailed, PromptJob
from llmws.prompt.frames import UNREADABLE, Answer, FrameError, Line, decode_answer
from llmws.prompt.limits import MAX_JOB_BYTES, Limits
from llmws.protocol import ErrorCode

COMMAND: Final = (sys.executable, "-s", "-P", "-m", "llmws.prompt.worker")
"""Neither the user's own packages nor the current folder; where ours are, the environment says."""

ENDING_TIMEOUT_S: Final = 1.0
REAP_TIMEOUT_S: Final = 5.0

_MAX_MESSAGE_CHARS: Final = 2000
_MAX_ANSWER_BYTES: Final = 16 * 1024
"""Of an answer without ids: key and message."""

_MAX_ID_BYTES: Final = 5
"""Of a token id below 2**32 in MessagePack."""

_log = logging.getLogger(__name__)


class NotBegunError(Exception):
    """The process was gone before it had the whole job; another may be given it."""


class BrokenOffError(Exception):
    """The process died over the job, took too long or answered with nonsense; the message says which."""


class PromptProcess:
    """A helper process. One thread at a time; only `kill` may be called from any.

    The thread that makes it must stay: on Linux the process ends with it.
    """

    def __init__(self, command: Sequence[str], limits: Limits) -> None:
        """Starts the process and does not wait for it.

        Raises:
            OSError, subprocess.SubprocessError: there is no such program, or no room for another process.
        """
        self._limits = limits
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as on_error:
            on_error.callback(ours.close)
            # Its standard error stays the server's until it is ready, for the traceback of a start that fails. A
            # session of its own, so that Ctrl-C in the terminal is the server's alone.
            self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - our own interpreter
                [*command, msgspec.json.encode(limits).decode()],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
            on_error.pop_all()
        self._line = Line(ours)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Waits until it takes jobs.

        Raises:
            NotBegunError: it ended, or was not ready in time.
        """
        try:
            self._line.receive(0, ends_s=time.monotonic() + self._limits.start_s)
        except TimeoutError:
            raise NotBegunError(f"was not ready within {self._limits.start_s:g} s") from None
        except FrameError as error:
            raise NotBegunError(f"began with {error}") from None
        except EOFError:
            raise NotBegunError(self._ending()) from None

    def ask(self, job: PromptJob, body: bytes) -> Answer:
        """Hands the job, encoded as `body`, over and waits for its answer.

        Raises:
            NotBegunError: the process was gone already.
            BrokenOffError: the job is not answered, and the process is to be ended.
        """
        if len(body) > MAX_JOB_BYTES:
            message = f"the conversation has {len(body)} bytes; at most {MAX_JOB_BYTES} are taken"
            return Answer(PromptFailed(key=job.key, code=ErrorCode.CONTEXT_TOO_LONG, message=message))
        time_s = self._limits.time_s(len(body))
        ends_s = time.monotonic() + time_s
        has_begun = False
        try:
            self._line.send(body, ends_s=ends_s)
            self._line.receive(0, ends_s=ends_s)
            has_begun = True
            reply = self._line.receive(_MAX_ANSWER_BYTES + _MAX_ID_BYTES * job.max_context, ends_s=ends_s)
            return _checked(decode_answer(reply), job)
        except TimeoutError:
            raise BrokenOffError(f"took more than {time_s:.3g} s") from None
        except (FrameError, *UNREADABLE):
            raise BrokenOffError("gave an answer that makes no sense") from None
        except EOFError:
            raise (BrokenOffError if has_begun else NotBegunError)(self._ending()) from None

    def kill(self) -> None:
        """Kills it at once; whoever waits for it notices."""
        self._process.kill()

    def end(self) -> None:
        """Kills it and lets go of all that was its."""
        self.kill()
        self._line.close()
        try:
            self._process.wait(REAP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _log.warning("prompt process %d was killed and does not go", self.pid)

    def _ending(self) -> str:
        """How it came to the end of its line, in words."""
        try:
            # The line may break a little before the end, while an interpreter tidies up.
            status = self._process.wait(ENDING_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "closed its line"
        if status == -signal.SIGPROF:
            return "took too much processor time"
        return f"ended with {_named(status)}; {self._limits.memory_bytes // 2**20} MiB of memory is what it may take"


def _environment() -> dict[str, str]:
    """What a helper process needs: no secret that somebody gave to the server is among it."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ", "SYSTEMROOT") if name in os.environ}
    ours = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    # One prompt at a time: more threads would only take memory.
    return {**kept, "PYTHONPATH": ours, "TOKENIZERS_PARALLELISM": "false"}


def _checked(answer: Answer, job: PromptJob) -> Answer:
    """The answer, if it can be one to this job.

    Raises:
        ValueError: it cannot.
    """
    event = answer.event
    if event.key != job.key:
        raise ValueError("of another job")
    if isinstance(event, PromptFailed):
        is_sound = len(event.message) <= _MAX_MESSAGE_CHARS
    else:
        is_sound = (
            0 < len(event.ids) < job.max_context
            and min(event.ids) >= 0
            and 0 <= event.dropped_turns <= len(job.turns)
            and 0 <= event.images <= sum(turn.images for turn in job.turns)
        )
    if not is_sound:
        raise ValueError("out of bounds")
    return answer


def _named(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
