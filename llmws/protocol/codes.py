"""Error codes and WebSocket close codes: what each means and whether a client should try again."""

from __future__ import annotations

import enum


class ErrorCode(enum.StrEnum):
    """The `code` of an `error` message."""

    BAD_MESSAGE = "bad_message"
    BAD_REQUEST = "bad_request"
    UNKNOWN_TYPE = "unknown_type"
    TOO_LARGE = "too_large"
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    CONFLICT = "conflict"
    DUPLICATE = "duplicate"
    RATE_LIMITED = "rate_limited"
    QUEUE_FULL = "queue_full"
    NO_MODEL = "no_model"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_LOADING = "model_loading"
    MODEL_OOM = "model_oom"
    MODEL_FAILED = "model_failed"
    CONTEXT_TOO_LONG = "context_too_long"
    BUFFER_FULL = "buffer_full"
    STORAGE_FAILED = "storage_failed"
    DOWNLOAD_FAILED = "download_failed"
    PEER_FAILED = "peer_failed"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """Whether the same message may succeed later without a change."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ErrorCode.RATE_LIMITED,
        ErrorCode.QUEUE_FULL,
        ErrorCode.NO_MODEL,
        ErrorCode.MODEL_LOADING,
        ErrorCode.MODEL_OOM,
        ErrorCode.BUFFER_FULL,
        ErrorCode.STORAGE_FAILED,
        ErrorCode.DOWNLOAD_FAILED,
        ErrorCode.PEER_FAILED,
        ErrorCode.INTERNAL,
    }
)


class CloseCode(enum.IntEnum):
    """WebSocket close codes. 44xx is final: do not reconnect. 45xx is transient: reconnect and resume."""

    NORMAL = 1000
    GOING_AWAY = 1001
    TOO_BIG = 1009
    SERVER_ERROR = 1011
    RESTART = 1012
    TRY_LATER = 1013
    BAD_HELLO = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    NO_HELLO = 4408
    TAKEN_OVER = 4409
    PROTOCOL = 4426
    INTERNAL = 4500
    DRAINING = 4503
    HEARTBEAT = 4504
    RESYNC = 4510


def is_final(close_code: int) -> bool:
    """Whether a client that was closed with this code must not reconnect by itself."""
    return close_code in (CloseCode.NORMAL, CloseCode.GOING_AWAY) or 4400 <= close_code < 4500
