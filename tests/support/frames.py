"""What a client of bare bytes sends: an upgrade, frames, and the end of a connection that is no end.

Source: RFC 6455, section 5.2.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
UPGRADE: Final = (
    b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(data: bytes, *, opcode: int = TEXT, fin: bool = True, mask: bool = True) -> bytes:
    """One frame on the wire; the mask is zero, so that the payload stays as it is."""
    head = bytes([(0x80 if fin else 0) | opcode])
    bit = 0x80 if mask else 0
    if len(data) < 126:
        head += bytes([bit | len(data)])
    elif len(data) < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", len(data))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(data))
    return head + (b"\0\0\0\0" if mask else b"") + data


def hello(token: str) -> bytes:
    """The message that signs in."""
    return frame(f'{{"auth":"{token}"}}'.encode())


def reset_at_end(sock: socket.socket) -> None:
    """From now on the end of this connection is an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
