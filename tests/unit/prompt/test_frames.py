"""Frames: whole or an error, whatever the other side does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from llmws.prompt.frames import FrameError, Line

Pair = tuple[Line, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Line(ours), theirs


def soon_s() -> float:
    return time.monotonic() + 0.01


def test_frames_come_out_as_they_went_in(pair: Pair) -> None:
    line, other = pair
    sent = [b"", b"x", b"y" * 1000]
    for body in sent:
        Line(other).send(body)
    assert [line.receive(1000) for _ in sent] == sent


def test_a_frame_over_the_limit_is_refused_by_its_header_alone(pair: Pair) -> None:
    line, other = pair
    other.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(FrameError, match="a frame of 4294967295 bytes where 16 may come"):
        line.receive(16, ends_s=soon_s())


@pytest.mark.parametrize("cut", [b"", b"\0\0", b"\0\0\0\5abc"])
def test_the_end_of_the_line_is_told_wherever_it_comes(pair: Pair, cut: bytes) -> None:
    line, other = pair
    other.sendall(cut)
    other.close()
    with pytest.raises(EOFError):
        line.receive(16)


def test_sending_to_nobody_is_the_end_of_the_line(pair: Pair) -> None:
    line, other = pair
    other.close()
    with pytest.raises(EOFError):
        line.send(b"x")


@pytest.mark.parametrize("slow", [b"", b"\0\0", b"\0\0\0\5abc"])
def test_waiting_for_a_frame_has_an_end(pair: Pair, slow: bytes) -> None:
    line, other = pair
    other.sendall(slow)
    with pytest.raises(TimeoutError):
        line.receive(16, ends_s=soon_s())


def test_sending_to_someone_who_does_not_read_has_an_end(pair: Pair) -> None:
    line, _ = pair
    with pytest.raises(TimeoutError):
        line.send(b"x" * 2**24, ends_s=soon_s())
