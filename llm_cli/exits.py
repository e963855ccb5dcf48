"""What `llm` exits with, and what it says before."""

from __future__ import annotations

from typing import Final

from llm_cli.render import clean_line
from llmws.client import (
    CertificateError,
    ClientError,
    ForbiddenError,
    GenerationError,
    IntegrityError,
    RequestRejectedError,
    ServerFaultError,
    SessionLostError,
    UnauthorizedError,
    UnreachableError,
)
from llmws.protocol import ErrorCode

OK: Final = 0
ERROR: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
UNAUTHORIZED: Final = 4
GENERATION_FAILED: Final = 5
INTERRUPTED: Final = 130
SIGNALLED: Final = 128
"""With the signal's number added, as shells have it."""

_HINTS: Final[dict[type[ClientError], str]] = {
    UnreachableError: "start a server with `llmws serve`, or name one with --url",
    UnauthorizedError: "give its token with --token-file; `llmws token create` makes one",
}


def status_of(error: ClientError) -> int:
    """The exit status that an error leads to."""
    match error:
        case UnreachableError() | CertificateError():
            return UNREACHABLE
        case UnauthorizedError() | ForbiddenError():
            return UNAUTHORIZED
        case RequestRejectedError(code=ErrorCode.UNAUTHORIZED | ErrorCode.FORBIDDEN):
            return UNAUTHORIZED
        case GenerationError() | IntegrityError() | SessionLostError() | RequestRejectedError() | ServerFaultError():
            return GENERATION_FAILED
        case _:
            return ERROR


def explain(error: ClientError) -> str:
    """The error as a sentence, with what can be done about it where that is known."""
    text = clean_line(str(error))
    if isinstance(error, RequestRejectedError) and error.code == ErrorCode.NO_MODEL:
        return f"{text}; in the chat, /models lists what is there and /switch loads it"
    if isinstance(error, RequestRejectedError) and error.code == ErrorCode.MODEL_NOT_FOUND:
        return "there is no such model on the server; in the chat, /models lists what is there"
    if isinstance(error, RequestRejectedError) and error.code == ErrorCode.UNKNOWN_TYPE:
        return "this server cannot do that: it is of another version"
    hint = _HINTS.get(type(error))
    return f"{text}; {hint}" if hint else text
