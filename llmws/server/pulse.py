"""Whether the other side of a connection is still there, judged once a heartbeat.

Pure; knows neither sockets nor time. Invariant: a client that answers pings, or whose link is merely slow, is alive.
"""

from __future__ import annotations


class Pulse:
    """The signs of life since the last beat.

    Any byte from the client is one, not only the pong. So is a full socket that takes more, because only the client's
    reading empties it: on a slow link the ping still waits behind what was sent before.
    """

    def __init__(self) -> None:
        self._alive = True
        self._was_full = False
        self._taken_bytes = 0

    def sign(self) -> None:
        """Something came from the client, or it has emptied a full socket."""
        self._alive = True

    def beat(self, *, written_bytes: int, unsent_bytes: int) -> bool:
        """Judges the time since the last beat, when the client was pinged, and begins the next.

        Args:
            written_bytes: everything written to the connection so far.
            unsent_bytes: what of it the socket has not taken yet.

        Returns:
            Whether the client is alive and is to be pinged again.
        """
        taken_bytes = written_bytes - unsent_bytes
        alive = self._alive or (self._was_full and taken_bytes > self._taken_bytes)
        self._alive, self._was_full, self._taken_bytes = False, unsent_bytes > 0, taken_bytes
        return alive
