"""Sessions as things: listed, titled, ended, filled; and the branches of their conversations."""

import pytest

from llmws.client import ClosedError, RequestRejectedError, branch, question
from llmws.protocol import messages as m
from tests.integration.client.harness import LONG, client, eventually


async def test_sessions_are_listed_titled_and_ended(server):
    async with client(server) as first, client(server) as second:
        assert await first.update_session(title="mine") == m.SessionUpdated(session_id=first.session_id, title="mine")
        entries = {each.session_id: each.title for each in await second.sessions()}
        assert entries == {first.session_id: "mine", second.session_id: None}
        await second.end_session(first.session_id)
        assert [each.session_id for each in await second.sessions()] == [second.session_id]
        with pytest.raises(RequestRejectedError, match="no such session"):
            await second.end_session(first.session_id)
        await second.end_session()
        await eventually(lambda: isinstance(second.failure, ClosedError))


async def test_a_question_is_answered_once_more_and_continued_from_elsewhere(server):
    async with client(server) as c:
        await c.generate("hi")
        asked = question(await c.conversation())
        await c.regenerate(asked.id, temperature=0)
        await c.generate("long", parent_id="")
        messages = await c.conversation()
    assert [(each.role, each.parent_id) for each in messages] == [
        ("user", None),
        ("assistant", "m1"),
        ("assistant", "m1"),
        ("user", None),
        ("assistant", "m4"),
    ]
    assert [each.content for each in branch(messages)] == ["long", "".join(LONG)]
    assert [(each.prompt, each.parent_id) for each in server.of_type(m.Inference)] == [
        ("hi", None),
        (None, "m1"),
        ("long", ""),
    ]


async def test_messages_are_imported_and_read_back_page_by_page(server):
    turns = [{"role": "user" if n % 2 else "assistant", "content": str(n)} for n in range(450)]
    async with client(server) as c:
        await c.import_messages(turns)
        assert [each.content for each in await c.conversation()] == [str(n) for n in range(450)]
    assert [each.limit for each in server.of_type(m.History)] == [200, 200, 200]


async def test_an_import_that_is_too_large_is_not_sent(server):
    server.max_message_bytes = 1000
    async with client(server) as c:
        with pytest.raises(RequestRejectedError, match="the server takes 1000"):
            await c.import_messages([{"role": "user", "content": "x" * 1000}])
    assert server.of_type(m.Import) == []
