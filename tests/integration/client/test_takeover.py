"""Two clients in one session: the newer one has it, the older one watches, and takes it back when it is asked to."""

import pytest

from llmws.client import (
    Collectable,
    Connected,
    Disconnected,
    RequestRejectedError,
    TakenOverError,
    Token,
)
from llmws.protocol import CloseCode
from tests.integration.client.harness import LONG, client, eventually


async def test_the_client_that_was_taken_over_sees_the_rest_of_its_answer(server):
    server.held = True
    notices = []
    async with client(server, when_taken_over="observe", listen=notices.append) as first:
        generation = first.generate("long")
        server.step(5)
        await eventually(lambda: generation.text == "".join(LONG[:5]))
        async with client(server, session_id=first.session_id):
            await eventually(lambda: first.is_observer and first.is_connected)
            server.step(len(LONG))
            assert (await generation).text == "".join(LONG)
    assert [each.mode for each in notices if isinstance(each, Connected)] == ["takeover", "observe"]
    assert not any(isinstance(each, Disconnected) for each in notices)


async def test_an_observer_collects_what_the_other_client_asks_and_takes_over_again(server):
    notices = []
    async with client(server, when_taken_over="observe", listen=notices.append) as first:
        await first.generate("hi")
        async with client(server, session_id=first.session_id, when_taken_over="observe") as second:
            await eventually(lambda: first.is_observer and first.is_connected)
            asked = second.generate("long")
            await asked
            await eventually(lambda: first.has_collectable)
            assert [
                "".join([event.data async for event in each if isinstance(event, Token)])
                async for each in first.collect()
            ] == ["".join(LONG)]
            assert [each.request_id for each in notices if isinstance(each, Collectable)] == [asked.request_id]
            first.take_over()
            assert (await first.generate("hi")).text == "Hello"
            await eventually(lambda: second.is_observer)
            assert not first.is_observer


async def test_what_an_observer_asks_is_refused(server):
    async with client(server) as first, client(server, session_id=first.session_id, mode="observe") as second:
        with pytest.raises(RequestRejectedError, match="forbidden"):
            await second.generate("hi")


async def test_a_request_that_came_too_late_for_a_session_taken_over_is_given_up(server):
    async with client(server, when_taken_over="observe") as first:
        server.take_over_next_request = True
        with pytest.raises(TakenOverError, match="before it had this request"):
            await first.generate("hi")
        first.take_over()
        assert (await first.generate("hi")).text == "Hello"
    assert len(server.session().requests) == 1


async def test_taking_over_waits_for_a_connection(server):
    async with client(server, when_taken_over="observe") as c:
        await server.close_all(CloseCode.TAKEN_OVER)
        await eventually(lambda: c.is_observer and c.is_connected)
        await server.stop()
        c.take_over()
        answer = c.generate("hi")
        await server.start()
        assert (await answer).text == "Hello"


async def test_after_taking_over_collecting_waits_for_what_the_other_client_had_asked(server):
    async with client(server, when_taken_over="observe") as first:
        async with client(server, session_id=first.session_id) as second:
            await eventually(lambda: first.is_observer and first.is_connected)
            await second.generate("hi")
        first.take_over()
        assert [(await each).text async for each in first.collect()] == ["Hello"]
