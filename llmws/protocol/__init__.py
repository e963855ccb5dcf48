"""The wire protocol: message types, codec, codes. Imports nothing else of llmws."""

from llmws.protocol.codec import FrameError, decode, decode_server, encode
from llmws.protocol.codes import CloseCode, ErrorCode, is_final

VERSION = 1
"""The protocol version that this package speaks."""

SUBPROTOCOL = "llmws.v1"
"""The WebSocket subprotocol that our clients offer."""

__all__ = [
    "SUBPROTOCOL",
    "VERSION",
    "CloseCode",
    "ErrorCode",
    "FrameError",
    "decode",
    "decode_server",
    "encode",
    "is_final",
]
