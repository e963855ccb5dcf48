"""One answer: what arrives, what is handed out, how it ends."""

import hashlib

import msgspec
import pytest

from llmws.client.answer import Answer, Reset
from llmws.client.errors import GenerationError, IntegrityError, RequestRejectedError, SessionLostError
from llmws.protocol import messages as m

USAGE = m.Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=0)
TIMING = m.Timing(queued_ms=0, ttft_ms=None, tokens_per_s=None)


def start(seq: int) -> m.Start:
    return m.Start(request_id="r", model="m", tokens_in=1, max_tokens=9, seed=1, seq=seq, epoch=1)


def token(seq: int, index: int, data: str) -> m.Token:
    return m.Token(request_id="r", index=index, data=data, ids=[index], seq=seq, epoch=1)


def done(seq: int, text: str) -> m.Done:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return m.Done(
        request_id="r",
        total_tokens=1,
        finish_reason="stop",
        usage=USAGE,
        timing=TIMING,
        text_sha256=digest,
        seq=seq,
        epoch=1,
    )


def error(code: str, seq: int | None = None) -> m.Error:
    place = {} if seq is None else {"seq": seq, "epoch": 1}
    return m.Error(request_id="r", code=code, message="because", retryable=False, **place)


def state(text: str, *, terminal: dict | None = None) -> m.RequestSnapshot:
    kind = "running" if terminal is None else terminal["type"]
    return m.RequestSnapshot(request_id="r", state=kind, text=text, next_index=len(text), terminal=terminal)


def mine(*events, merge_above: int = 100) -> Answer:
    answer = Answer("r", inference=m.Inference(request_id="r", prompt="hi"), merge_above=merge_above)
    for event in events:
        answer.receive(event)
    return answer


def foreign(*events) -> Answer:
    answer = Answer("r", inference=None, merge_above=100)
    for event in events:
        answer.receive(event)
    return answer


def taken(answer: Answer) -> list:
    return list(iter(answer.take, None))


def test_events_are_handed_out_in_order_and_once():
    events = [start(1), token(2, 0, "a"), done(3, "a")]
    answer = mine(*events)
    assert taken(answer) == events
    assert answer.is_exhausted


def test_an_event_counts_as_dealt_with_when_the_next_is_asked_for():
    answer = mine(start(1), token(2, 0, "a"))
    assert answer.unconsumed_seq == 1
    answer.take()
    assert answer.unconsumed_seq == 1
    answer.take()
    assert answer.unconsumed_seq == 2
    answer.take()
    assert answer.unconsumed_seq is None


def test_an_error_is_raised_after_everything_before_it():
    answer = mine(start(1), token(2, 0, "a"), error("model_failed", 3))
    assert answer.take() == start(1)
    assert answer.take() == token(2, 0, "a")
    with pytest.raises(GenerationError) as caught:
        answer.take()
    assert (caught.value.code, caught.value.text) == ("model_failed", "a")
    assert answer.is_exhausted


def test_another_digest_is_raised_in_place_of_done():
    answer = mine(start(1), token(2, 0, "a"), done(3, "b"))
    answer.take()
    answer.take()
    with pytest.raises(IntegrityError):
        answer.take()


def test_the_rest_of_an_answer_has_no_digest_of_its_own():
    answer = foreign(token(9, 5, "x"), done(10, "hello x"))
    assert [type(each) for each in taken(answer)] == [m.Token, m.Done]
    assert not answer.is_whole


@pytest.mark.parametrize("rest", [[token(4, 2, "c")], []])
def test_the_rest_of_an_answer_that_is_asked_for_again_has_none_either(rest):
    """By a client that knows its position: the answer goes on in the middle, or is just ended."""
    answer = mine(*rest, msgspec.structs.replace(done(5, "abc"), total_tokens=3))
    assert [type(event) for event in taken(answer)] == [type(event) for event in rest] + [m.Done]
    assert not answer.is_whole


def test_nothing_follows_the_end():
    answer = mine(start(1), done(2, ""))
    answer.receive(token(3, 0, "a"))
    assert [type(each) for each in taken(answer)] == [m.Start, m.Done]


def test_a_refusal_ends_what_was_not_accepted():
    answer = mine()
    answer.reject(error("queue_full"))
    with pytest.raises(RequestRejectedError):
        answer.take()


@pytest.mark.parametrize("sign", [m.Queue(request_id="r", position=0), start(1)])
def test_a_refusal_does_not_end_what_was_accepted(sign):
    answer = mine()
    answer.queued(sign) if isinstance(sign, m.Queue) else answer.receive(sign)
    answer.reject(error("bad_request"))
    assert not answer.is_over


def test_unread_tokens_above_the_bound_become_one():
    answer = mine(start(1), *(token(seq, seq - 2, "x") for seq in range(2, 50)), merge_above=3)
    assert taken(answer) == [
        start(1),
        token(2, 0, "x"),
        m.Token(request_id="r", index=1, data="x" * 47, ids=list(range(1, 48)), seq=49, epoch=1),
    ]


def test_a_merged_token_is_unconsumed_from_its_first_event_on():
    answer = mine(token(2, 0, "x"), token(3, 1, "x"), merge_above=1)
    assert answer.unconsumed_seq == 2


def test_merged_tokens_keep_their_logprobs():
    logprob = m.TokenLogprob(id=1, logprob=-1.0, top=[])
    tokens = [m.Token(request_id="r", index=i, data="x", ids=[1], logprobs=[logprob], seq=i, epoch=1) for i in (1, 2)]
    assert mine(*tokens, merge_above=1).take().logprobs == [logprob, logprob]


def test_a_released_answer_keeps_nothing():
    answer = mine(start(1))
    answer.release()
    answer.receive(token(2, 0, "a"))
    assert (answer.take(), answer.unconsumed_seq) == (None, None)


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_that_continues_the_text_gives_the_rest():
    answer = mine(start(1), token(2, 0, "ab"))
    answer.reconcile(state("abcd"), as_of=9, epoch=2)
    answer.receive(done(10, "abcd"))
    events = taken(answer)
    assert events[2] == m.Token(request_id="r", index=1, data="cd", ids=[], seq=9, epoch=2)
    assert isinstance(events[3], m.Done)


def test_a_snapshot_of_the_same_text_gives_nothing():
    answer = mine(start(1), token(2, 0, "ab"))
    answer.reconcile(state("ab"), as_of=9, epoch=2)
    assert len(taken(answer)) == 2


def test_a_snapshot_of_another_text_resets():
    answer = mine(start(1), token(2, 0, "ab"))
    answer.reconcile(state("xy"), as_of=9, epoch=2)
    answer.receive(done(10, "xy"))
    assert taken(answer)[2:] == [Reset(request_id="r", text="xy", seq=9, epoch=2), done(10, "xy")]


def test_a_snapshot_makes_a_rest_whole():
    answer = foreign(token(9, 5, "x"))
    answer.reconcile(state("hello x"), as_of=9, epoch=2)
    assert answer.is_whole
    assert isinstance(taken(answer)[1], Reset)


def test_a_snapshot_may_bring_the_end():
    answer = mine(start(1))
    terminal = {"type": "error", "request_id": "r", "code": "model_failed", "message": "", "retryable": False}
    answer.reconcile(state("a", terminal=terminal), as_of=9, epoch=2)
    assert [type(answer.take()), type(answer.take())] == [m.Start, m.Token]
    with pytest.raises(GenerationError):
        answer.take()


def test_what_a_snapshot_lacks_is_lost_if_it_had_begun():
    begun, fresh = mine(start(1)), mine()
    fresh.queued(m.Queue(request_id="r", position=1))
    begun.vanish()
    fresh.vanish()
    begun.take()
    with pytest.raises(SessionLostError):
        begun.take()
    assert (fresh.is_over, fresh.is_accepted) == (False, False)


def test_of_unread_places_in_the_queue_only_the_newest_is_told():
    answer = mine()
    for position in (3, 2, 1):
        answer.queued(m.Queue(request_id="r", position=position))
    answer.receive(start(1))
    answer.queued(m.Queue(request_id="r", position=0))
    assert [answer.take() for _ in range(4)] == [
        m.Queue(request_id="r", position=1),
        start(1),
        m.Queue(request_id="r", position=0),
        None,
    ]
