"""The renderer's thread: a bounded queue of jobs, one worker, a small cache of models' tokenizers.

Knows no template and no tokenizer from inside. Invariant: until `close`, every job is answered exactly once, also when
reading the model's files or rendering fails in an unforeseen way.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from llmws.engine_api import PromptEvent, PromptFailed, PromptJob
from llmws.errors import LlmwsError
from llmws.prompt import model_text
from llmws.prompt.model_text import Fingerprint, ModelText
from llmws.prompt.render import render
from llmws.prompt.template import local_now
from llmws.protocol import ErrorCode

MAX_JOBS: Final = 4096
"""Waiting jobs; a session has at most one."""

CACHED_MODELS: Final = 4
CLOSE_TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)


class ThreadRenderer:
    """Renders prompts on one background thread. Implements `llmws.engine_api.PromptRenderer`."""

    def __init__(self, *, clock: Callable[[], datetime] = local_now, max_jobs: int = MAX_JOBS) -> None:
        self._clock = clock
        self._jobs: queue.Queue[PromptJob | None] = queue.Queue(max_jobs)
        self._models: OrderedDict[str, tuple[Fingerprint, ModelText]] = OrderedDict()
        self._closing = threading.Event()
        self._deliver: Callable[[PromptEvent], None] | None = None
        self._thread: threading.Thread | None = None

    def start(self, deliver: Callable[[PromptEvent], None]) -> None:
        """Starts the thread; `deliver` is called from it, once a job."""
        assert self._thread is None, "started twice"
        self._deliver = deliver
        # A daemon, because a template that does not come to an end must not keep the process.
        self._thread = threading.Thread(target=self._work, name="llmws-prompt", daemon=True)
        self._thread.start()

    def render(self, job: PromptJob) -> None:
        """Queues a job and returns at once. With `max_jobs` waiting it is refused, from the calling thread."""
        assert self._deliver is not None, "not started"
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            message = "too many prompts are waiting"
            self._deliver(PromptFailed(key=job.key, code=ErrorCode.QUEUE_FULL, message=message))

    def close(self) -> None:
        """Stops after the running job and waits at most `CLOSE_TIMEOUT_S`. Waiting jobs are not answered."""
        self._closing.set()
        with contextlib.suppress(queue.Full):  # full, the worker needs no waking: it looks at `_closing` after its job
            self._jobs.put_nowait(None)
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                _log.warning("the prompt thread did not end within %s s", CLOSE_TIMEOUT_S)

    def _work(self) -> None:
        assert self._deliver is not None
        while (job := self._jobs.get()) is not None and not self._closing.is_set():
            event = self._answer(job)
            if not self._closing.is_set():
                self._deliver(event)

    def _answer(self, job: PromptJob) -> PromptEvent:
        try:
            return render(job, self._model(Path(job.model.location)))
        except LlmwsError as error:
            return PromptFailed(key=job.key, code=error.code, message=str(error))
        except BaseException as error:  # noqa: BLE001 - a panic of the tokenizers library is not even an Exception
            # Neither message nor traceback: they may quote the prompt.
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error(
                "rendering a prompt for %s failed in an unforeseen way: %s in %s, %s:%s",
                job.model.path,
                type(error).__name__,
                place.name,
                place.filename,
                place.lineno,
            )
            message = "the model's tokenizer failed on this prompt"
            return PromptFailed(key=job.key, code=ErrorCode.MODEL_FAILED, message=message)

    def _model(self, folder: Path) -> ModelText:
        """The model's tokenizer, read again when its files changed."""
        seen = model_text.fingerprint(folder)
        known = self._models.get(str(folder))
        if known is None or known[0] != seen:
            known = (seen, model_text.load(folder, clock=self._clock))
            self._models[str(folder)] = known
        self._models.move_to_end(str(folder))
        while len(self._models) > CACHED_MODELS:
            self._models.popitem(last=False)
        return known[1]
