"""The terminal's lines: those of an answer, those between, and those that are replaced."""

import asyncio
import socket

import pytest

from llm_cli.screen import Screen


@pytest.fixture
def ends():
    mine, its = socket.socketpair()
    with mine, its:
        yield mine, its


def written(its: socket.socket) -> None:
    """Answers as the scribe does when it has written a piece."""
    its.recv(65536)
    its.send(b".")


async def write(screen: Screen, its: socket.socket, text: str) -> None:
    writing = asyncio.create_task(screen.write(text))
    await asyncio.sleep(0)
    written(its)
    await writing


async def test_a_line_between_the_pieces_of_an_answer_begins_on_its_own(ends, capsys):
    screen = Screen(ends[0], unrecorded=lambda: None)
    await write(screen, ends[1], "half")
    screen.say("note")
    screen.say("another")
    assert capsys.readouterr().out == "\nnote\nanother\n"


async def test_a_line_waits_for_the_piece_that_is_being_written(ends, capsys):
    screen = Screen(ends[0], unrecorded=lambda: None)
    writing = asyncio.create_task(screen.write("half"))
    await asyncio.sleep(0)
    screen.say("note")
    assert capsys.readouterr().out == ""
    written(ends[1])
    await writing
    assert capsys.readouterr().out == "\nnote\n"
    assert screen.at_line_start


async def test_lines_are_shown_after_a_write_that_was_given_up(ends, capsys):
    screen = Screen(ends[0], unrecorded=lambda: None)
    writing = asyncio.create_task(screen.write("half"))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    screen.say("to come back")
    assert capsys.readouterr().out == "\nto come back\n"


async def test_a_passing_line_is_erased_by_whatever_comes_next(ends, capsys):
    screen = Screen(ends[0], unrecorded=lambda: None)
    screen.passing("3 before")
    screen.passing("2 before")
    screen.say("note")
    screen.passing("1 before")
    screen.passing("")
    screen.say("end")
    erase = "\r\x1b[2K"
    assert capsys.readouterr().out == f"3 before{erase}2 before{erase}note\n1 before{erase}end\n"


async def test_an_answer_erases_the_passing_line_too(ends, capsys):
    screen = Screen(ends[0], unrecorded=lambda: None)
    screen.passing("1 before")
    writing = asyncio.create_task(screen.write("Hel"))
    await asyncio.sleep(0)
    assert b"\\r\\u001b[2KHel" in ends[1].recv(65536)
    ends[1].send(b".")
    await writing
    assert not screen.at_line_start
