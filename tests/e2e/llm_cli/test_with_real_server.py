"""The client and `llm` against a real server with the built-in model; either side is killed in mid-answer."""

import asyncio
import hashlib

import pytest

from llmws.client import Client, Done, Log, RequestRejectedError, Token, branch, question
from tests.support.real_server import RealServer
from tests.support.terminal import Terminal, run

QUESTION = "How does llmws keep my answer when the connection drops?"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RealServer(tmp_path_factory.mktemp("server"))
    server.start()
    server.wait_until_loaded()
    yield server
    server.close()


def client(server: RealServer, **options) -> Client:
    return Client(server.ready["ws_url"], server.token, **options)


async def test_an_answer_survives_the_kill_of_the_server(server):
    text, codes, done = "", [], None
    async with client(server, window=8, reconnect_timeout_s=60) as c:
        async for event in c.generate(QUESTION, max_tokens=600, ignore_eos=True, seed=5):
            match event:
                case Token():
                    text += event.data
                    if event.index <= 20 < event.index + len(event.ids):
                        await asyncio.to_thread(server.kill)
                        await asyncio.to_thread(server.start)
                        await asyncio.to_thread(server.wait_until_loaded)
                case Log():
                    codes.append(event.code)
                case Done():
                    done = event
        history = await c.history()
    assert codes == ["resumed_after_restart"]
    assert done.total_tokens == 600
    assert done.text_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert [message.content for message in history.messages] == [QUESTION, text]


async def test_a_server_that_keeps_little_is_acknowledged_to_in_time(tmp_path, monkeypatch):
    """Paused again and again, or left by a client that had read all there was, an answer comes to its end."""
    monkeypatch.setenv("LLMWS_LIMITS_MAX_UNACKNOWLEDGED_EVENTS", "16")
    server = RealServer(tmp_path)
    server.start()
    try:
        server.wait_until_loaded()
        async with asyncio.timeout(60):
            async with client(server) as first:
                async for event in first.generate(QUESTION, max_tokens=200, ignore_eos=True, seed=5):
                    if isinstance(event, Log) and event.code == "paused":
                        break
                session_id, position = first.session_id, first.position
                await first.close(ack=False)
            async with client(server, session_id=session_id, position=position) as later:
                (done,) = [
                    event async for answer in later.collect() async for event in answer if isinstance(event, Done)
                ]
                whole = await later.generate(QUESTION, max_tokens=200, ignore_eos=True, seed=5)
        assert (done.total_tokens, whole.tokens_generated) == (200, 200)
    finally:
        server.close()


async def test_the_replies_have_their_types(server):
    async with client(server) as c:
        assert [model.name for model in await c.models()] == ["llmws-guide"]
        assert (await c.status()).model == (await c.resources()).model.name == "llmws-guide"
        assert (await c.config(temperature=0.0)).temperature == 0.0
        assert (await c.switch_model("llmws-guide")).name == "llmws-guide"
        with pytest.raises(RequestRejectedError, match="conflict"):
            await c.delete_model("llmws-guide")
        first, second = c.generate("hi", max_tokens=3), c.generate("bye", max_tokens=3)
        assert [(await each).tokens_generated for each in (second, first)] == [3, 3]


async def test_sessions_have_titles_and_conversations_branches(server):
    async with client(server) as c:
        await c.generate("hi", max_tokens=3)
        asked = question(await c.conversation())
        await c.regenerate(asked.id, max_new_tokens=3)
        await c.import_messages([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}])
        await c.update_session(title="mine")
        assert next(each.title for each in await c.sessions() if each.session_id == c.session_id) == "mine"
        messages = await c.conversation()
        await c.end_session()
    assert [each.parent_id for each in messages[:3]] == [None, asked.id, asked.id]
    assert [(each.role, each.content) for each in branch(messages)] == [("user", "one"), ("assistant", "two")]


async def test_the_chat_watches_its_session_in_other_hands_and_takes_it_back(server, tmp_path):
    state = server.folder / "xdg"
    async with Terminal(state, "--url", server.ready["ws_url"]) as terminal:
        await terminal.sees("llmws-guide")
        terminal.type("/config max_new_tokens=5 temperature=0\r")
        await terminal.sees("max_new_tokens      5")
        terminal.type("What is llmws?\r")
        await terminal.sees("the answer is cut")
        async with client(server, session_id=_session_id(state), when_taken_over="observe") as other:
            await terminal.sees("another client took this session over")
            await other.generate("And who are you?")
            await terminal.sees("And who are you?")
            terminal.type("/regenerate\r")
            await terminal.sees("this session is yours again")
            await terminal.sees("once more: And who are you?")
            await terminal.sees("the answer is cut", times=3)
        terminal.type("/title mine\r")
        await terminal.sees("title: mine")
        terminal.type("/sessions\r")
        await terminal.sees("5 messages  mine")


async def test_a_temporary_session_leaves_nothing_on_the_server(server):
    async with client(server) as c:
        before = {each.session_id for each in await c.sessions()}
        status, _, _ = await run(server.folder / "xdg", "--temporary", "--max-tokens", "3", "hi")
        assert status == 0
        assert {each.session_id for each in await c.sessions()} == before


async def test_llm_finds_the_server_and_its_token(server, tmp_path):
    status, out, err = await run(server.folder / "xdg", "--max-tokens", "5", "--temperature", "0", "What is llmws?")
    assert (status, out) == (0, "llmws is a self-\n")
    assert err == "llm: the answer is cut: it reached its longest allowed length\n"


async def test_the_killed_chat_prints_exactly_the_missing_text(server):
    state = server.folder / "xdg"
    async with Terminal(state, "--url", server.ready["ws_url"], NO_COLOR="1") as first:
        await first.sees("llmws-guide")
        first.type("/config ignore_eos=true max_new_tokens=300 seed=3\r")
        await first.sees("ignore_eos          true")
        first.type("hello\r")
        await first.sees("> hello\n")
        beginning = len(first.text)
        async with asyncio.timeout(20):
            while len(first.text) < beginning + 40:  # noqa: ASYNC110
                await asyncio.sleep(0)
        first.kill()
        await first.end()
    status, rest, _ = await run(state, "--continue")
    async with client(server, session_id=_session_id(state)) as c:
        answer = (await c.history()).messages[-1].content
    shown = first.text[first.text.index("> hello\n") + len("> hello\n") :]
    assert status == 0
    assert (shown + rest).rstrip("\n") == answer.rstrip("\n")


def _session_id(state) -> str:
    newest = max((state / "llmws" / "llm" / "sessions").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return newest.stem
