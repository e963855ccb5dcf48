"""The client and `llm` against a real server with the built-in model; either side is killed in mid-answer."""

import asyncio
import hashlib

import pytest

from llmws.client import Client, Done, Log, RequestRejectedError, Token
from tests.e2e.llm_cli.terminal import Terminal, run
from tests.support.real_server import RealServer

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
