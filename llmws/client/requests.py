"""Requests from what a caller gives, checked before they are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from llmws.client.errors import RequestRejectedError
from llmws.client.images import MAX_IMAGES
from llmws.protocol import ErrorCode, encode
from llmws.protocol import messages as m

SamplingValue = float | int | bool | str | list[str] | dict[str, float] | None


class _StrictSampling(m.Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The wire ignores fields that it does not know; a caller who misspells one wants to hear of it."""


def sampling(fields: Mapping[str, SamplingValue], *, over: m.Sampling | None = None) -> m.Sampling:
    """Sampling parameters by name, laid over others; see `llmws.protocol.messages.Sampling`.

    Raises:
        ValueError: an unknown name, or a value out of range.
    """
    base = {} if over is None else msgspec.structs.asdict(over)
    try:
        checked = msgspec.convert(base | dict(fields), _StrictSampling)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        reason = reason.replace(" | null", "")
        raise ValueError(f"{path.rstrip('`')}: {reason}" if path else reason) from None
    return m.Sampling(**msgspec.structs.asdict(checked))


def prompt(text: str | None, system: str | None, images: Sequence[m.Image] | None) -> str | m.Prompt | None:
    """The `prompt` field in its shortest form.

    Raises:
        ValueError: there are more images than the protocol takes.
    """
    if images and len(images) > MAX_IMAGES:
        raise ValueError(f"{len(images)} images; a prompt takes {MAX_IMAGES}")
    if system is None and not images:
        return text
    return m.Prompt(user=text or "", system=system, images=list(images) if images else None)


def check(message: m.ClientMessage, limits: m.Limits | None = None) -> None:
    """Refuses, while its author still listens, what cannot be sent or what the server would close the connection over.

    Raises:
        RequestRejectedError: with code `too_large`.
        ValueError: a text has half of a surrogate pair, as Python makes of bytes that are not UTF-8.
    """
    try:
        size_bytes = len(encode(message))
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode: it was made from bytes that are not UTF-8") from None
    if limits is not None and size_bytes > limits.max_message_bytes:
        text = f"the request has {size_bytes} bytes; the server takes {limits.max_message_bytes}"
        if isinstance(message, m.Inference) and isinstance(message.prompt, m.Prompt) and message.prompt.images:
            text += "; send a smaller image, or raise limits.max_message_bytes there"
        request_id = message.request_id if isinstance(message, m.Inference) else None
        error = m.Error(code=ErrorCode.TOO_LARGE, message=text, retryable=False, request_id=request_id)
        raise RequestRejectedError(error)
