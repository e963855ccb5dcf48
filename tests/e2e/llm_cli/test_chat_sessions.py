"""Sessions, branches and files in the chat, on a real terminal."""

import asyncio
import json
import signal

import pytest

from llm_cli.bookmark import Bookmarks
from llmws.client import Client
from llmws.protocol import messages as m
from tests.integration.client.fake_server import FakeServer, prompt_of
from tests.support.terminal import Terminal, run


@pytest.fixture
async def server():
    async with FakeServer({"why": ("be", "cause")}) as server:
        yield server


async def says(terminal: Terminal, line: str, *answers: str) -> None:
    """Types a line and waits until each answer is seen once more than before."""
    before = [terminal.text.count(answer) for answer in answers]
    terminal.type(line + "\r")
    for answer, times in zip(answers, before, strict=True):
        await terminal.sees(answer, times=times + 1)


async def test_sessions_are_listed_and_gone_to_by_number(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        first = server.session().id
        await says(terminal, "hi", "Hello\n")
        await says(terminal, "/title my  talk", "title: my talk")
        await says(terminal, "/title", "title: my talk")
        await says(terminal, "/session new", f"to come back to this session: llm --session {first}")
        await says(terminal, "why", "because\n")
        await says(terminal, "/sessions", "2 messages  my talk", "/session N goes to one of them")
        await says(terminal, "/title another", "title: another")
        await says(terminal, "/session 2", f"session {first} (my talk); /history shows what was said")
        await says(terminal, "/history", "user: hi", "assistant: Hello")
        await says(terminal, f"/session {first[:8]}", "this is that session")
        await says(terminal, "/session nope", "there is no session nope of yours on this server; /sessions lists them")
        await says(terminal, "/session 3", "there is no session 3; /sessions lists them")
        terminal.type("/quit\r")
        await terminal.end()
    assert f"to come back: llm --session {first}" in terminal.text
    assert terminal.text.count("Hello\n") == 2  # the answer, and the history: nothing was shown again


async def test_a_session_is_deleted_after_asking(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        first = server.session().id
        await says(terminal, "/forget", "delete this session and all that was said in it? y/N")
        await says(terminal, "", "nothing was deleted")
        await says(terminal, "why", "because\n")
        await says(terminal, "/forget", "delete this session (why) and all that was said in it? y/N")
        await says(terminal, "y", f"deleted session {first}")
        await says(terminal, "hi", "Hello\n")
        assert Bookmarks(tmp_path / "llmws" / "llm" / "sessions").read(first) is None
        assert server.session().id != first


async def test_a_conversation_is_exported_and_imported(server, tmp_path):
    talk = tmp_path / "my talk.json"
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        await says(terminal, f"/export {talk}", "nothing was said in this session yet")
        await says(terminal, "hi", "Hello\n")
        await says(terminal, f"/export {talk}", f"wrote 2 messages to {talk}")
        await says(terminal, f"/export {talk}", f"replace {talk}? y/N")
        await says(terminal, "n", "nothing was written")
        await says(terminal, f"/export {tmp_path}/talk.md", "wrote 2 messages")
        await says(terminal, f"/export {tmp_path}/talk.txt", "let the file's name end in .md or .json")
        await says(terminal, "/new", "to come back to this session")
        await says(terminal, f"/import {talk}", "imported 2 messages; the next question follows the last of them")
        await says(terminal, "why", "because\n")
        await says(terminal, "/history", "user: hi", "assistant: because")
        await says(terminal, f"/import {tmp_path}/nowhere.json", "nowhere.json: No such file or directory")
        await says(terminal, f"/import {tmp_path}/talk.md", "talk.md is not JSON; /import takes what /export")
    assert json.loads(talk.read_text())["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert "## Assistant\n\nHello\n" in (tmp_path / "talk.md").read_text()


async def test_the_last_question_is_answered_again_and_changed(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        await says(terminal, "/regenerate", "nothing was asked in this session yet")
        await says(terminal, "hi", "Hello\n")
        await says(terminal, "/regenerate", "once more: hi", "Hello\n")
        await says(terminal, "/edit", "change the question and send it", "> hi")
        terminal.type("\x7f\x7f")
        await says(terminal, "why", "because\n")
        await says(terminal, "/history", "user: why")
    asked = [(each.prompt and prompt_of(each), each.parent_id) for each in server.of_type(m.Inference)]
    assert asked == [("hi", None), (None, "m1"), ("why", "")]
    assert "user: hi" not in terminal.text


async def test_a_draft_that_is_not_sent_changes_nothing(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        await says(terminal, "hi", "Hello\n")
        await says(terminal, "/edit", "change the question", "> hi")
        terminal.type("\x03")
        await terminal.sees("the conversation stays as it is")
        await says(terminal, "why", "because\n")
    assert [each.parent_id for each in server.of_type(m.Inference)] == [None, None]


async def test_models_and_sessions_are_completed_without_having_been_listed(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("/switch o\t")
        await terminal.sees("/switch other")
        await says(terminal, "", "the model is now other")
        session_id = server.session().id
        terminal.type(f"/session {session_id[:4]}\t")
        await terminal.sees(session_id[4:])
        await says(terminal, "", "this is that session")


async def test_without_an_admins_token_the_command_says_so_and_help_does_from_then_on(server, tmp_path):
    server.is_admin = False
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        await says(terminal, "/switch other", "/switch needs an admin's token; `llmws token create --role admin`")
        await says(terminal, "/help", "for everyone (needs an admin's token)")


async def test_a_server_of_another_version_is_no_mystery(server, tmp_path):
    server.unknown = {"list_sessions"}
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        await says(terminal, "/sessions", "this server cannot do that: it is of another version")


# --- two clients in one session ------------------------------------------------------------------------------------


async def test_after_being_taken_over_the_chat_watches_and_takes_over_again_when_something_is_sent(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        await says(terminal, "hi", "Hello\n")
        async with Client(server.url, session_id=server.session().id, when_taken_over="observe") as other:
            await terminal.sees("another client took this session over; what it does is shown here")
            await terminal.sees("another client has this session")
            server.held = True
            answer = other.generate("why")
            await terminal.sees("another client asked; the answer:")
            server.held = False
            server.step()
            await answer
            await terminal.sees("because\n")
            await terminal.sees("the question was: why")
            await says(terminal, "/config temperature=0", "this session is yours again", "temperature  0")
            async with asyncio.timeout(10):
                while not other.is_observer:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await says(terminal, "hi", "Hello\n")
        assert await terminal.leave() == 0


async def test_what_is_being_typed_is_kept_while_the_other_client_is_answered(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        async with Client(server.url, session_id=server.session().id) as other:
            await terminal.sees("another client has this session")
            terminal.type("quest")
            await terminal.sees("quest")
            await other.generate("why")
            assert "because" not in terminal.text
            terminal.type("ion\r")
            await terminal.sees("Hello\n")
    # A notice may stand between the pieces, but all of the other's answer comes before one's own.
    assert terminal.text.index("cause\n") < terminal.text.index("Hello\n")
    assert prompt_of(server.of_type(m.Inference)[-1]) == "question"


async def test_an_answer_goes_on_where_it_was_when_its_session_is_taken_over(server, tmp_path):
    server.held = True
    async with Terminal(tmp_path, "--url", server.url, NO_COLOR="1") as terminal:
        await terminal.sees("model scripted")
        terminal.type("why\r")
        server.step(1)
        await terminal.sees("\nbe")
        async with Client(server.url, session_id=server.session().id):
            await terminal.sees("another client took this session over")
            server.step(1)
            await terminal.sees("cause\n")
            await terminal.sees("10 tokens/s")


# --- waiting, and leaving nothing behind ---------------------------------------------------------------------------


async def test_the_place_in_the_queue_is_one_line_that_the_answer_replaces(server, tmp_path):
    server.held = True
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("why\r")
        async with asyncio.timeout(10):
            while not server.session().open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        request_id = server.session().open[0]
        for position in (12, 11):
            await server.say(m.Queue(request_id=request_id, position=position, eta_ms=9000))
            await terminal.sees(f"waiting: {position} to be answered before, about 9 s")
        server.step(9)
        await terminal.sees("because\n")
    screen = terminal.raw.decode()
    assert screen.index("waiting: 12") < screen.index("\r\x1b[2K", screen.index("waiting: 12"))
    assert screen.index("waiting: 11") < screen.rindex("\r\x1b[2K") < screen.index("because")


async def test_a_temporary_session_is_deleted_when_it_is_left(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url, "--temporary") as terminal:
        await terminal.sees("model scripted")
        await says(terminal, "hi", "Hello\n")
        first = server.session().id
        terminal.type("/new\r")
        await says(terminal, "why", "because\n")
        assert server.session().id != first
        assert await terminal.leave() == 0
    assert (server.sessions, "to come back" in terminal.text) == ({}, False)
    assert (await run(tmp_path, "--url", server.url, "--temporary", "hi"))[:2] == (0, "Hello\n")
    assert server.sessions == {}
    assert Bookmarks(tmp_path / "llmws" / "llm" / "sessions").last_used() is None
    assert not (tmp_path / "llmws" / "llm" / "history").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_temporary_session_is_deleted_when_the_chat_is_told_to_end(server, tmp_path, number):
    async with Terminal(tmp_path, "--url", server.url, "--temporary") as terminal:
        await terminal.sees("model scripted")
        await says(terminal, "hi", "Hello\n")
        terminal.signal(number)
        assert await terminal.end() == 128 + number
        assert terminal.is_cooked
    assert server.sessions == {}


async def test_a_temporary_session_that_another_terminal_has_is_taken_back_and_deleted(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url, "--temporary") as terminal:
        await terminal.sees("model scripted")
        async with Client(server.url, session_id=server.session().id):
            await terminal.sees("another client has this session")
            terminal.type("/session\r")
            await terminal.sees("a temporary one: it is deleted when it is left")
            assert await terminal.leave() == 0
    assert server.sessions == {}


async def test_a_temporary_session_that_cannot_be_deleted_is_named(server, tmp_path):
    server.unknown = {"end_session"}
    async with Terminal(tmp_path, "--url", server.url, "--temporary") as terminal:
        await terminal.sees("model scripted")
        terminal.type("\x04")
        await terminal.sees(f"could not be deleted; /forget {server.session().id}")
        assert await terminal.end() == 0


async def test_who_watches_an_answer_stops_watching_by_ctrl_c_and_does_not_end_it(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        async with Client(server.url, session_id=server.session().id) as other:
            await terminal.sees("another client has this session")
            server.held = True
            answer = other.generate("why")
            await terminal.sees("another client asked; the answer:")
            terminal.type("\x03")
            await terminal.sees("not watching any more; /cancel ends the answer")
            assert server.of_type(m.Cancel) == []
            answer.cancel()
            assert (await answer).finish_reason == "cancelled"


async def test_an_answer_that_another_client_cancels_is_said_to_be(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        server.held = True
        terminal.type("why\r")
        server.step(1)
        await terminal.sees("be")
        async with Client(server.url, session_id=server.session().id) as other:
            other.cancel(server.session().open[0])
            await terminal.sees("the answer was cancelled")
