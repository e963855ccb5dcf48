"""The client against a server that misbehaves: every answer arrives once and whole, or its caller is told why not."""

import asyncio

import pytest

from llmws.client import (
    Client,
    ClosedError,
    Connected,
    Disconnected,
    Done,
    GenerationError,
    IntegrityError,
    NoReplyError,
    ProtocolError,
    RequestRejectedError,
    Reset,
    ServerFaultError,
    SessionLostError,
    Start,
    TakenOverError,
    Token,
    UnauthorizedError,
    UnreachableError,
    WithdrawnError,
)
from llmws.protocol import messages as m
from tests.integration.client.fake_server import FakeSession
from tests.integration.client.harness import LONG, client, eventually


async def text_of(generation) -> str:
    return "".join([event.data async for event in generation if isinstance(event, Token)])


# --- a plain answer --------------------------------------------------------------------------------------------------


async def test_an_answer_is_iterated_as_typed_events(server):
    async with client(server) as c:
        events = [event async for event in c.generate("hi")]
    assert [type(event) for event in events] == [Start, Token, Token, Token, Done]
    assert [event.data for event in events if isinstance(event, Token)] == ["He", "l", "lo"]


async def test_an_answer_is_awaited_as_one_object(server):
    async with client(server) as c:
        completion = await c.generate("hi", max_tokens=5, temperature=0)
    assert (completion.text, completion.node_id, completion.model, completion.tokens_generated) == (
        "Hello",
        "node-1",
        "scripted",
        3,
    )
    assert (completion.finish_reason, completion.is_whole) == ("stop", True)
    assert server.of_type(m.Inference)[0].config == m.Sampling(max_new_tokens=5, temperature=0)


async def test_several_answers_at_once_come_in_order(server):
    async with client(server) as c:
        first, second = c.generate("long"), c.generate("hi")
        assert (await second).text == "Hello"
        assert (await first).text == "".join(LONG)


async def test_what_was_read_to_its_end_is_acknowledged(server):
    async with client(server) as c:
        await c.generate("hi")
        await eventually(lambda: server.session().floor == 5)


async def test_nothing_is_acknowledged_before_the_end(server):
    """A client that dies in the middle can still get the whole answer by the session's id."""
    server.held = True
    async with client(server, window=2) as c:
        generation = c.generate("long")
        server.step(20)
        events = aiter(generation)
        while (event := await anext(events)).seq < 20:
            assert isinstance(event, Start | Token)
        assert server.session().floor == 0
        assert {ack.seq for ack in server.of_type(m.Ack)} == {0}
        server.step(len(LONG))
        async for _ in events:
            pass
        await eventually(lambda: server.session().floor == 42)


async def test_leaving_the_loop_early_does_not_stop_the_next_answer(server):
    async with client(server, window=4) as c:
        async for _ in c.generate("long"):
            break
        assert (await c.generate("hi")).text == "Hello"


async def test_unread_tokens_merge_and_lose_nothing(server):
    async with client(server, window=4) as c:
        generation = c.generate("long")
        await eventually(lambda: generation.text == "".join(LONG))
        events = [event async for event in generation]
    assert "".join(event.data for event in events if isinstance(event, Token)) == "".join(LONG)
    assert [i for event in events if isinstance(event, Token) for i in event.ids] == list(range(1, 41))
    assert len(events) < 10


# --- cuts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", range(1, 6))
async def test_a_cut_after_any_event_is_not_noticed(server, seq):
    server.cut_after = {seq}
    async with client(server) as c:
        assert (await c.generate("hi")).text == "Hello"
        if seq < 5:
            assert server.connections == 2


async def test_a_cut_after_every_event_is_not_noticed(server):
    server.cut_after = set(range(1, 43))
    async with client(server) as c:
        assert (await c.generate("long")).text == "".join(LONG)
    assert server.connections >= 40


async def test_events_sent_twice_are_delivered_once(server):
    server.double = True
    async with client(server) as c:
        assert await text_of(c.generate("long")) == "".join(LONG)


async def test_a_gap_is_healed_by_resuming(server):
    server.skip = {7}
    async with client(server) as c:
        assert await text_of(c.generate("long")) == "".join(LONG)
    assert server.connections == 2
    assert server.of_type(m.Hello)[1].resume == m.Position(epoch=1, last_seq=6)


async def test_a_gap_that_never_heals_is_an_error(server):
    server.held = True
    async with client(server) as c:
        generation = c.generate("long")
        await eventually(lambda: server.session().head == 1)
        server.session().events.append(m.Token(request_id="x", index=9, data="!", ids=[], seq=9, epoch=1))
        server.step()
        with pytest.raises(ProtocolError):
            await generation


async def test_an_unanswered_request_is_sent_again_under_the_same_id(server):
    server.model = None
    server.close_next = None
    async with client(server) as c:
        await server.stop()
        generation = c.generate("hi", request_id="mine")
        await server.start()
        assert (await generation).request_id == "mine"
    assert [each.request_id for each in server.of_type(m.Inference)] == ["mine"]


async def test_the_same_id_runs_once(server):
    server.cut_after = {1}
    async with client(server) as c:
        assert (await c.generate("hi", request_id="r-1")).text == "Hello"
    assert sum(isinstance(event, Start) for event in server.session().events) == 1


async def test_a_server_restarted_in_the_middle_goes_on(server):
    server.held = True
    async with client(server) as c:
        generation = c.generate("long")
        server.step(5)
        await eventually(lambda: generation.text == "0 1 2 3 4 ")
        await server.restart()
        server.step(len(LONG))
        assert (await generation).text == "".join(LONG)
    assert [event.code for event in server.session().events if isinstance(event, m.Log)] == ["resumed_after_restart"]


async def test_the_listener_hears_of_losses(server):
    heard = []
    server.cut_after = {2}
    async with client(server, listen=heard.append) as c:
        await c.generate("hi")
    kinds = [type(notice) for notice in heard if isinstance(notice, Connected | Disconnected)]
    assert kinds == [Connected, Disconnected, Connected]


# --- a client that died ----------------------------------------------------------------------------------------------


async def test_a_later_client_goes_on_exactly_where_the_first_one_was(server):
    server.held = True
    async with client(server) as first:
        events = aiter(first.generate("long"))
        server.step(10)
        seen = ""
        while not seen.endswith("7 "):
            event = await anext(events)
            seen += event.data if isinstance(event, Token) else ""
        position = m.Position(epoch=event.epoch, last_seq=event.seq)
    async with client(server, session_id=first.session_id, position=position) as second:
        server.step(len(LONG))
        rest = [(await text_of(generation), generation.is_whole) async for generation in second.collect()]
    assert [(seen + text, whole) for text, whole in rest] == [("".join(LONG), False)]


async def test_a_session_id_alone_gives_everything_unacknowledged(server):
    async with client(server) as first:
        generation = first.generate("hi")
        await eventually(lambda: generation.text == "Hello")
    async with client(server, session_id=first.session_id) as second:
        assert [(await generation).text async for generation in second.collect()] == ["Hello"]
    async with client(server, session_id=first.session_id) as third:
        assert [generation async for generation in third.collect()] == []


async def test_position_counts_only_what_was_read(server):
    async with client(server) as c:
        events = aiter(c.generate("hi"))
        await anext(events)
        second = await anext(events)
        assert (second.seq, c.position) == (2, m.Position(epoch=1, last_seq=1))
        async for _ in events:
            pass
        assert c.position == m.Position(epoch=1, last_seq=5)


# --- resets ----------------------------------------------------------------------------------------------------------


async def test_a_reset_that_continues_the_text_is_not_noticed(server):
    server.held = True
    async with client(server) as c:
        generation = c.generate("long")
        server.step(3)
        await eventually(lambda: generation.text == "0 1 2 ")
        server.reset_reason = "unknown_epoch"
        await server.stop()
        server.step(2)
        await server.start()
        await eventually(lambda: server.connections == 2)
        server.step(len(LONG))
        events = [event async for event in generation]
    assert "".join(event.data for event in events if isinstance(event, Token)) == "".join(LONG)
    assert not any(isinstance(event, Reset) for event in events)


async def test_a_reset_to_another_text_is_told(server):
    server.held = True
    async with client(server) as c:
        generation = c.generate("hi", request_id="r")
        server.step(1)
        await eventually(lambda: generation.text == "He")
        server.reset_reason, server.snapshot_texts = "log_corrupt", {"r": "Ha"}
        await server.cut()
        await eventually(lambda: generation.text == "Ha")
        server.wrong_digest = False
        server.step(2)
        events = aiter(generation)
        seen = [await anext(events) for _ in range(3)]
    assert seen[1].data == "He"
    assert isinstance(seen[2], Reset)
    assert seen[2].text == "Ha"


async def test_a_reset_after_the_end_delivers_the_end(server):
    server.held = True
    async with client(server) as c:
        generation = c.generate("hi")
        server.step(1)
        await eventually(lambda: generation.text == "He")
        server.reset_reason = "below_floor"
        session = server.session()
        session.owner.window = 0
        server.step(2)
        await eventually(lambda: session.head == 5)
        await server.cut()
        assert (await generation).text == "Hello"
        await eventually(lambda: session.floor == 5)


async def test_a_lost_session_fails_what_had_begun_and_asks_the_rest_again(server):
    server.held = True
    async with client(server) as c:
        first, second = c.generate("hi"), c.generate("long")
        server.step(1)
        await eventually(lambda: first.text == "He")
        await eventually(lambda: len(server.of_type(m.Inference)) == 2)
        await server.stop()
        server.sessions.clear()
        server.held = False
        await server.start()
        with pytest.raises(SessionLostError):
            await first
        assert (await second).text == "".join(LONG)


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_taken_over_is_final(server):
    async with client(server) as first, client(server, session_id=first.session_id):
        with pytest.raises(TakenOverError):
            await first.status()
        with pytest.raises(TakenOverError):
            first.generate("hi")
    assert server.connections == 2


async def test_a_wrong_token_is_final_and_says_why(server):
    server.token = "right"
    with pytest.raises(UnauthorizedError, match="the token is not valid"):
        await Client(server.url, "wrong").open()
    assert server.connections == 1


async def test_a_good_token_is_taken(server):
    server.token = "right"
    async with Client(server.url, "right") as c:
        assert (await c.generate("hi")).text == "Hello"


@pytest.mark.parametrize("code", [1012, 1013, 1011, 4500, 4503, 4504, 4510])
async def test_transient_close_codes_reconnect(server, code):
    server.close_next = code
    async with client(server) as c:
        assert (await c.generate("hi")).text == "Hello"
    assert server.connections == 2


@pytest.mark.parametrize(("code", "kind"), [(4400, ProtocolError), (4426, ProtocolError), (1000, ClosedError)])
async def test_final_close_codes_do_not(server, code, kind):
    server.close_next = code
    with pytest.raises(kind):
        await client(server).open()
    assert server.connections == 1


async def test_no_server_is_unreachable(server):
    await server.stop()
    with pytest.raises(UnreachableError, match="could not be reached"):
        await client(server, connect_timeout_s=0.1).open()


async def test_a_server_that_stays_away_fails_what_is_running(server):
    server.held = True
    async with client(server, reconnect_timeout_s=0.1) as c:
        generation = c.generate("hi")
        await eventually(lambda: server.sessions and server.session().head == 1)
        await server.stop()
        with pytest.raises(UnreachableError):
            await generation


async def test_an_error_event_ends_the_answer(server):
    server.fail_with = "model_failed"
    async with client(server) as c:
        with pytest.raises(GenerationError) as caught:
            await c.generate("hi")
    assert (caught.value.code, caught.value.text) == ("model_failed", "Hello")


async def test_a_refused_request_raises(server):
    server.reject_with = [m.Error(code="queue_full", message="full", retryable=True, retry_after_ms=5)]
    async with client(server) as c:
        with pytest.raises(RequestRejectedError) as caught:
            await c.generate("hi")
        assert (await c.generate("hi")).text == "Hello"
    assert (caught.value.code, caught.value.retryable, caught.value.retry_after_ms) == ("queue_full", True, 5)


async def test_another_text_than_the_servers_is_noticed(server):
    server.wrong_digest = True
    async with client(server) as c:
        with pytest.raises(IntegrityError):
            await c.generate("hi")


async def test_a_request_above_the_servers_limit_is_not_sent(server):
    server.max_message_bytes = 1000
    async with client(server) as c:
        with pytest.raises(RequestRejectedError, match="too_large"):
            c.generate("x" * 1000)
    assert server.of_type(m.Inference) == []


async def test_cancel_ends_in_done(server):
    server.held = True
    async with client(server) as c:
        generation = c.generate("long")
        server.step(2)
        await eventually(lambda: generation.text == "0 1 ")
        generation.cancel()
        completion = await generation
    assert (completion.text, completion.finish_reason) == ("0 1 ", "cancelled")


async def test_a_cancel_survives_a_lost_connection(server):
    server.held = True
    async with client(server) as c:
        generation = c.generate("long")
        server.step(1)
        await eventually(lambda: generation.text == "0 ")
        await server.stop()
        generation.cancel()
        await server.start()
        assert (await generation).finish_reason == "cancelled"


# --- questions -------------------------------------------------------------------------------------------------------


async def test_questions_are_answered(server):
    async with client(server) as c:
        assert (await c.resources()).host.cpu == 2
        assert (await c.status()).model == "scripted"
        assert [model.name for model in await c.models()] == ["scripted", "other"]
        assert await c.config(temperature=0.5) == m.Sampling(temperature=0.5)
        assert (await c.history()).messages == []
        assert await c.ping() > 0


async def test_a_switch_reports_its_progress(server):
    seen = []
    async with client(server) as c:
        switched = await c.switch_model("other", seen.append)
    assert switched.name == "other"
    assert [(log.bytes, log.total_bytes) for log in seen] == [(5, 10)]


async def test_a_refused_question_raises(server):
    async with client(server) as c:
        with pytest.raises(RequestRejectedError, match="there is no x"):
            await c.delete_model("x")


async def test_a_question_is_asked_again_after_a_loss(server):
    async with client(server) as c:
        await server.stop()
        asking = asyncio.create_task(c.status())
        await asyncio.sleep(0)
        await server.start()
        assert (await asking).model == "scripted"


async def test_a_question_without_a_reply_times_out(server):
    async with client(server) as c:
        with pytest.raises(NoReplyError):
            await c.switch_model("other", timeout_s=0.0)
        assert (await c.status()).model is not None


@pytest.mark.parametrize("given_up", [lambda c: c.delete_model("x"), lambda c: c.switch_model("copy")])
async def test_the_reply_to_a_question_that_was_given_up_answers_no_other(server, given_up):
    async with client(server) as c:
        asking = asyncio.create_task(given_up(c))
        await asyncio.sleep(0)
        asking.cancel()
        assert (await c.switch_model("other")).name == "other"
        assert [model.name for model in await c.models()] == ["scripted", "other"]


async def test_a_question_that_was_given_up_is_not_asked_again(server):
    async with client(server) as c:
        await server.stop()
        asking = asyncio.create_task(c.switch_model("copy"))
        await asyncio.sleep(0)
        asking.cancel()
        await server.start()
        assert (await c.switch_model("other")).name == "other"
    assert [message.name for message in server.of_type(m.SwitchModel)] == ["other"]


async def test_a_switch_that_is_replayed_answers_no_question(server):
    async with client(server) as c:
        await c.switch_model("copy")
        await c.close(ack=False)
    async with client(server, session_id=server.session().id) as c:
        assert (await c.switch_model("other")).name == "other"


async def test_the_end_of_the_client_reaches_questions_that_wait_for_their_turn(server):
    async with client(server) as c:
        await server.stop()
        asking = [asyncio.create_task(c.status()) for _ in range(3)]
        await asyncio.sleep(0)
    assert [type(error) for error in await asyncio.gather(*asking, return_exceptions=True)] == [ClosedError] * 3


@pytest.mark.parametrize(
    "say", [lambda c: c.generate("caf\udce9"), lambda c: c.cancel("caf\udce9"), lambda c: c.delete_model("caf\udce9")]
)
async def test_text_that_is_not_unicode_is_refused_and_the_rest_goes_on(server, say):
    async with client(server) as c:
        with pytest.raises(ValueError, match="not valid Unicode"):
            await say(c)
        assert (await c.generate("hi")).text == "Hello"


@pytest.mark.parametrize("options", [{"token": "caf\udce9"}, {"name": "caf\udce9"}])
async def test_a_hello_that_is_not_unicode_is_refused(server, options):
    with pytest.raises(ValueError, match="not valid Unicode"):
        client(server, **options)


async def test_a_bug_in_the_writer_ends_the_client(server):
    c = client(server)
    await c.open()
    c._session.outbox.append(m.Cancel(request_id="caf\udce9"))
    c._connection.settle()
    with pytest.raises(ClosedError):
        await c.models()
    with pytest.raises(UnicodeEncodeError):
        await c.close()


@pytest.mark.parametrize("timeouts_s", [{"connect_timeout_s": 0.1}, {"reconnect_timeout_s": 0.1}])
async def test_a_server_whose_disk_is_full_is_given_up_in_the_time_allowed(timeouts_s, server):
    """Each attempt is welcomed, and ended as soon as it asks: that is no connection that was of use."""
    async with client(server, **timeouts_s) as c:
        if "reconnect_timeout_s" in timeouts_s:
            await c.generate("hi")
        server.is_disk_full = True
        with pytest.raises(ServerFaultError, match=r"^the server's disk failed: full$"):
            async with asyncio.timeout(5):
                await c.generate("hi")
    assert server.connections > 1


async def test_a_disk_that_has_room_again_is_no_reason_to_give_up(server):
    server.is_disk_full = True
    async with client(server) as c:
        generation = c.generate("hi")
        await eventually(lambda: server.connections > 2)
        server.is_disk_full = False
        assert (await generation).text == "Hello"


async def test_a_request_that_was_never_sent_is_taken_back(server):
    async with client(server) as c:
        await server.stop()
        await eventually(lambda: not c.is_connected)
        generation = c.generate("hi")
        generation.cancel()
        with pytest.raises(WithdrawnError):
            await generation
        await server.start()
        assert (await c.generate("long")).text == "".join(LONG)
    assert [message.prompt for message in server.of_type(m.Inference)] == ["long"]


@pytest.mark.parametrize("proxy", ["foo", "socks5://127.0.0.1:1"])
async def test_a_proxy_that_cannot_be_used_is_said(monkeypatch, proxy):
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ProtocolError, match="proxy"):
        await Client("https://llm.invalid").open()


async def test_leaving_closes_the_connection_in_the_normal_way(server):
    async with client(server) as c:
        await c.status()
    await eventually(lambda: server.close_codes == [1000])


async def test_a_closed_client_says_so(server):
    async with client(server) as c:
        pass
    with pytest.raises(ClosedError):
        c.generate("hi")


# --- hostile servers, and none -------------------------------------------------------------------------------------


async def test_a_client_that_was_never_opened_says_so(server):
    c = client(server)
    with pytest.raises(ClosedError, match="was not opened"):
        c.generate("hi")
    with pytest.raises(ClosedError, match="was not opened"):
        await c.status()
    with pytest.raises(ClosedError, match="was not opened"):
        async for _ in c.collect():
            pass


async def test_a_frame_that_is_nested_too_deeply_is_not_a_message(server):
    lost = []
    async with client(server, listen=lambda notice: lost.append(notice) if isinstance(notice, Disconnected) else None):
        (session,) = server.sessions.values()
        await session.owner.socket.send('{"type":"queue","x":' + "[" * 100_000)
        await eventually(lambda: lost)
    assert lost[0].reason == "the server sent something that is not a message"


async def test_a_session_whose_id_is_no_uuid_is_not_believed(server):
    server.sessions["x"] = FakeSession("\x1b[2J; rm -rf")
    with pytest.raises(ProtocolError, match="has no session's UUID"):
        await client(server, session_id="x").open()
