"""Strangers who send the corpus to a server by real sockets, as fast as they can.

A program of its own, so that its work is not the server's: `python -m tests.fuzz.storm PORT SECONDS SEED`. Knows only
the port and what `door` each input is meant for. Prints how many connections it made.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Final

from tests.fuzz.target import PART, corpus_of, flooded
from tests.support.echo_server import TOKEN
from tests.support.frames import UPGRADE, frame, hello, reset_at_end

STRANGERS: Final = 4
TIMEOUT_S: Final = 2.0
HELLO: Final = hello(TOKEN)
FLOOD_BYTES: Final = 512 * 1024


def conversations() -> list[list[bytes]]:
    """What strangers say: for each, the pieces that are sent one after the other."""
    said = []
    for name in ("http", "websocket-upgrade"):
        said += [[data[1:]] for data in corpus_of(name)]
    for data in corpus_of("http-flood"):
        said.append([flooded(data, FLOOD_BYTES)])
    for name in ("websocket", "websocket-session"):
        said += [[UPGRADE, data[1:]] for data in corpus_of(name)]
        said += [[UPGRADE, HELLO, data[1:]] for data in corpus_of(name)]
    for data in corpus_of("websocket-flood"):
        said.append([UPGRADE, HELLO, flooded(data, FLOOD_BYTES)])
    for name in ("wire-first", "wire-later", "door"):
        said += [[UPGRADE, HELLO, *map(frame, data.split(PART))] for data in corpus_of(name)]
    return said


def stranger(port: int, seconds: float, seed: int) -> int:
    """Talks to the server until its time is over; returns how many connections it made."""
    random, said = Random(seed), conversations()
    ends_s = time.monotonic() + seconds
    made = 0
    while time.monotonic() < ends_s:
        # A server that has heard enough resets the connection, or reads no more.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as end:
            made += 1
            end.settimeout(TIMEOUT_S)
            for piece in random.choice(said):
                end.sendall(piece)
                if piece is UPGRADE:
                    end.recv(4096)
            if random.random() < 0.5:
                reset_at_end(end)
            else:
                end.shutdown(socket.SHUT_WR)
                end.recv(65_536)
    return made


def main(port: int, seconds: float, seed: int) -> None:
    """Lets some strangers loose."""
    with ThreadPoolExecutor(STRANGERS) as pool:
        made = [pool.submit(stranger, port, seconds, seed + number) for number in range(STRANGERS)]
    print(sum(each.result() for each in made))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
