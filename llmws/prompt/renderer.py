"""The renderer: a bounded queue of jobs, one thread, one helper process that is replaced when it fails.

Knows no template and no tokenizer. Invariant: until `close`, every job is answered exactly once and in order; a job
that ends its process is answered with an error, and no other job is.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from llmws.engine_api import PromptEvent, PromptFailed, PromptJob
from llmws.errors import one_line
from llmws.prompt.frames import encode
from llmws.prompt.limits import DEFAULT_LIMITS, Limits
from llmws.prompt.process import COMMAND, BrokenOffError, NotBegunError, PromptProcess
from llmws.protocol import ErrorCode

MAX_JOBS: Final = 4096
"""Waiting jobs; a session has at most one."""

CLOSE_TIMEOUT_S: Final = 5.0

BACKOFF_S: Final = (0.1, 0.5, 2.0, 10.0, 30.0)
"""Pauses after the first, second, … start in a row that failed; the last one again and again."""

PATIENCE_S: Final = 1.0
"""A job waits through pauses up to this; in a longer one it fails at once."""

_log = logging.getLogger(__name__)


class ProcessRenderer:
    """Renders prompts in a helper process. Implements `llmws.engine_api.PromptRenderer`.

    Args:
        limits: of each process and job.
        max_jobs: that may wait; one more is refused with `queue_full`.
        command: starts a helper process; its limits come as the last argument, its line as standard input.
    """

    def __init__(
        self, *, limits: Limits = DEFAULT_LIMITS, max_jobs: int = MAX_JOBS, command: Sequence[str] = COMMAND
    ) -> None:
        self._limits = limits
        self._command = command
        self._jobs: queue.Queue[PromptJob | None] = queue.Queue(max_jobs)
        self._closing = threading.Event()
        self._deliver: Callable[[PromptEvent], None] | None = None
        self._thread: threading.Thread | None = None
        self._process_lock = threading.Lock()
        self._process: PromptProcess | None = None
        self._failed_starts = 0
        self._next_start_s = 0.0

    def start(self, deliver: Callable[[PromptEvent], None]) -> None:
        """Starts the thread, and on it the process; `deliver` is called from it, once a job."""
        assert self._thread is None, "started twice"
        self._deliver = deliver
        self._thread = threading.Thread(target=self._work, name="llmws-prompt", daemon=True)
        self._thread.start()

    def render(self, job: PromptJob) -> None:
        """Queues a job and returns at once. With `max_jobs` waiting it is refused, from the calling thread."""
        assert self._deliver is not None, "not started"
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._deliver(_failed(job, ErrorCode.QUEUE_FULL, "too many prompts are waiting"))

    def close(self) -> None:
        """Kills the process, whatever it does, and waits for the thread. Unanswered jobs stay so."""
        with self._process_lock:
            self._closing.set()
            if self._process is not None:
                self._process.kill()
        with contextlib.suppress(queue.Full):  # full, the worker needs no waking: it looks at `_closing` after its job
            self._jobs.put_nowait(None)
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                _log.warning("the prompt thread did not end within %s s", CLOSE_TIMEOUT_S)

    def _work(self) -> None:
        assert self._deliver is not None
        while True:
            # Before the job comes, so that it need not wait for an interpreter.
            self._ready_process(patience_s=0)
            job = self._jobs.get()
            event = None if job is None or self._closing.is_set() else self._answer(job)
            if event is None or self._closing.is_set():
                break
            self._deliver(event)
        self._drop_process()

    def _answer(self, job: PromptJob) -> PromptEvent:
        try:
            body = encode(job)
        except UnicodeEncodeError as error:
            return _not_handed_over(job, error)
        try:
            return self._ask(job, body)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job is answered and the next one served
            self._drop_process()
            return _not_handed_over(job, error)

    def _ask(self, job: PromptJob, body: bytes) -> PromptEvent:
        # Twice: a process that dies while it is idle must not take the next job with it.
        for _ in range(2):
            process = self._ready_process(patience_s=PATIENCE_S)
            if process is None:
                return _failed(job, ErrorCode.INTERNAL, "the process that renders prompts does not start")
            try:
                answer = process.ask(job, body)
            except NotBegunError as error:
                _log.warning("prompt process %d before a prompt: %s", process.pid, error)
                self._drop_process()
            except BrokenOffError as error:
                _log.warning("prompt process %d on a prompt for %s: %s", process.pid, job.model.path, error)
                self._drop_process()
                return _failed(job, ErrorCode.MODEL_FAILED, f"the model's chat template or tokenizer {error}")
            else:
                if answer.fault:
                    fault = one_line(answer.fault, limit_chars=500)
                    _log.error("rendering a prompt for %s failed in an unforeseen way: %s", job.model.path, fault)
                    self._drop_process()  # what went wrong in it may go on doing so
                return answer.event
        return _failed(job, ErrorCode.MODEL_FAILED, "the process that renders prompts died of this prompt twice")

    def _ready_process(self, *, patience_s: float) -> PromptProcess | None:
        """The process, or a new one; None when none starts and the next attempt is more than `patience_s` away."""
        if self._process is not None and not self._process.is_alive:
            _log.warning("prompt process %d ended between two prompts", self._process.pid)
            self._drop_process()
        while self._process is None:
            pause_s = max(0.0, self._next_start_s - time.monotonic())
            if pause_s > patience_s or self._closing.wait(pause_s):
                return None
            self._start_process()
        return self._process

    def _start_process(self) -> None:
        try:
            process = PromptProcess(self._command, self._limits)
            with self._process_lock:
                self._process = process
                if self._closing.is_set():
                    process.kill()
            process.wait_ready()
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread stays and tries again later
            self._drop_process()
            self._start_failed(str(error) or type(error).__name__)
        else:
            self._failed_starts = 0

    def _start_failed(self, reason: str) -> None:
        pause_s = BACKOFF_S[min(self._failed_starts, len(BACKOFF_S) - 1)]
        self._failed_starts += 1
        self._next_start_s = time.monotonic() + pause_s
        if not self._closing.is_set():
            _log.error("the prompt process did not start: %s; the next attempt is %g s away", reason, pause_s)

    def _drop_process(self) -> None:
        with self._process_lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()


def _failed(job: PromptJob, code: ErrorCode, message: str) -> PromptFailed:
    return PromptFailed(key=job.key, code=code, message=message)


def _not_handed_over(job: PromptJob, error: Exception) -> PromptFailed:
    # No message: it may quote the prompt.
    _log.error("handing over a prompt for %s failed: %s", job.model.path, type(error).__name__)
    return _failed(job, ErrorCode.INTERNAL, "the prompt could not be handed over")
