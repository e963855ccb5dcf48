"""The tree of errors that llmws raises on purpose; each carries its wire code."""

from __future__ import annotations

from llmws.protocol import ErrorCode


class LlmwsError(Exception):
    """Base of every error raised on purpose. `code` is what a client would be told."""

    code: ErrorCode = ErrorCode.INTERNAL


class ConfigError(LlmwsError):
    """The configuration cannot be used; the message names the path of the value and the fix (exit status 78)."""


class ModelNotFoundError(LlmwsError):
    """No model of that name is on this machine."""

    code = ErrorCode.MODEL_NOT_FOUND


class ModelInvalidError(LlmwsError):
    """A model's files cannot be served; the message says which and why."""

    code = ErrorCode.MODEL_FAILED


class ModelOutOfMemoryError(LlmwsError):
    """The model or its smallest useful context does not fit into memory."""

    code = ErrorCode.MODEL_OOM


class BadRequestError(LlmwsError):
    """A request that a client must change before it sends it again."""

    code = ErrorCode.BAD_REQUEST


class PromptError(LlmwsError):
    """A prompt cannot be rendered; `code` says whether it is too long or the template failed."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class StorageError(LlmwsError):
    """The session log cannot be written or read."""

    code = ErrorCode.STORAGE_FAILED


def one_line(text: str, *, limit_chars: int = 300) -> str:
    """The text on one line without control characters, cut to a readable length."""
    line = "".join(c if c.isprintable() else " " for c in text[: 2 * limit_chars])
    line = " ".join(line.split())
    return line if len(line) <= limit_chars else line[: limit_chars - 1] + "…"


def printable(text: str) -> str:
    """The text with everything that a terminal or a log reader would act on written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
