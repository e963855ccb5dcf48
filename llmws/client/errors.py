"""Every way in which the client gives up; each is final: what can be mended by reconnecting never gets here."""

from __future__ import annotations

from llmws.protocol import CloseCode
from llmws.protocol import messages as m


class ClientError(Exception):
    """Base of everything this package raises on purpose."""


class UnreachableError(ClientError):
    """No server answered within the time allowed."""


class ServerFaultError(ClientError):
    """The server answers, but ended every connection over a fault of its own, such as a full disk."""


class CertificateError(ClientError):
    """Whoever answers there has no certificate that makes it the server that was meant."""


class ClosedError(ClientError):
    """The client, or the server in the normal way, closed the connection for good."""


class UnauthorizedError(ClientError):
    """The token is missing, wrong or revoked."""


class ForbiddenError(ClientError):
    """The token is good but does not allow this."""


class TakenOverError(ClientError):
    """A newer connection to the same session has replaced this one."""


class ProtocolError(ClientError):
    """Client and server do not understand each other."""


class SessionLostError(ClientError):
    """The server no longer has the session, or the rest of an answer whose beginning was already delivered."""


class NoReplyError(ClientError):
    """The server did not answer a call in time; whether it took effect is not known."""


class WithdrawnError(ClientError):
    """The caller took the request back before the server had accepted it, as far as is known here."""


class IntegrityError(ClientError):
    """The text that arrived is not the text the server generated: its SHA-256 differs."""


class RequestRejectedError(ClientError):
    """The server refused a message; nothing was done.

    Attributes:
        code: the wire code, e.g. `bad_request`.
        message: for a person.
        retryable: whether the same message may succeed later.
        retry_after_ms: how long to wait first, where the server says so.
        field: dotted path of the offending field, where known.
        request_id: of the refused request, if it was one.
        error: the message itself.
    """

    def __init__(self, error: m.Error) -> None:
        super().__init__(f"{error.message} ({error.code})")
        self.code = error.code
        self.message = error.message
        self.retryable = error.retryable
        self.retry_after_ms = error.retry_after_ms
        self.field = error.field
        self.request_id = error.request_id
        self.error = error


class GenerationError(ClientError):
    """An accepted request ended in an error.

    Attributes:
        error: the terminal event.
        text: what had been generated until then.
    """

    def __init__(self, error: m.Error, text: str) -> None:
        super().__init__(f"{error.message} ({error.code})")
        self.error = error
        self.text = text

    @property
    def code(self) -> str:
        """The wire code, e.g. `context_too_long`."""
        return self.error.code


_CLOSED: dict[int, type[ClientError]] = {
    CloseCode.UNAUTHORIZED: UnauthorizedError,
    CloseCode.FORBIDDEN: ForbiddenError,
    CloseCode.TAKEN_OVER: TakenOverError,
    CloseCode.NORMAL: ClosedError,
    CloseCode.GOING_AWAY: ClosedError,
}


def from_close(code: int, reason: str) -> ClientError:
    """The error for a final close code; `reason` is the server's, or a description."""
    kind = _CLOSED.get(code, ProtocolError)
    return kind(f"{reason or 'the server closed the connection'} (close code {code})")
