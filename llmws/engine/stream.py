"""One request on its way: from a runner's tokens to chunks.

Knows neither threads nor torch. Invariant: the chunks of a stream follow one another without a gap, and whatever goes
wrong in making one ends this stream alone.
"""

from __future__ import annotations

import logging

from llmws.engine.runner import Runner, Token
from llmws.engine.text import Completion
from llmws.engine_api import Chunk, GenerationRequest
from llmws.errors import LlmwsError
from llmws.protocol import ErrorCode

log = logging.getLogger(__name__)


class Stream:
    """A request that is on, and what it has said.

    Args:
        request: what was asked.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._index = len(request.emitted_ids)
        self._completion: Completion | None = None

    def replay(self, runner: Runner) -> None:
        """Takes up where the emitted ids end. Needed before `add` and `last_chunk`.

        Raises:
            LlmwsError: they cannot be decoded.
        """
        self._completion = Completion(self._request, decode=runner.decode, eos_ids=runner.eos_ids)

    def last_chunk(self) -> Chunk | None:
        """The end of a request whose emitted ids are complete already."""
        assert self._completion is not None
        if self._completion.finish is None:
            return None
        return Chunk(
            key=self._request.key, index=self._index, text=self._completion.take(), finish=self._completion.finish
        )

    def add(self, outcome: Token | LlmwsError) -> Chunk:
        """The chunk for a step's outcome. A fault of the tokenizer is this request's own."""
        assert self._completion is not None
        if isinstance(outcome, LlmwsError):
            return self.fail(*reason(outcome))
        try:
            self._completion.push(outcome.id, is_last=outcome.is_last)
        except Exception as error:  # noqa: BLE001 - one request's error is never the thread's
            return self.fail(*reason(error))
        chunk = Chunk(
            key=self._request.key,
            index=self._index,
            ids=(outcome.id,),
            text=self._completion.take(),
            logprobs=None if outcome.logprob is None else (outcome.logprob,),
            finish=self._completion.finish,
            cached_tokens=outcome.cached_tokens,
        )
        self._index += 1
        return chunk

    def fail(self, code: ErrorCode, message: str) -> Chunk:
        """The chunk that ends the request with an error."""
        return Chunk(key=self._request.key, index=self._index, error_code=code, error_message=message)


def reason(error: Exception, otherwise: str = "the model failed on this request") -> tuple[ErrorCode, str]:
    """Code and message for a person. What was not raised on purpose goes to the log, not to a client."""
    if isinstance(error, LlmwsError):
        return error.code, str(error)
    if isinstance(error, MemoryError):
        return ErrorCode.MODEL_OOM, "not enough memory"
    log.error("%s", otherwise, exc_info=error)
    return ErrorCode.MODEL_FAILED, otherwise
