"""The mailbox: nothing is lost, nothing is torn, nobody waits for ever."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from llmws.engine.mailbox import Mailbox, merge
from llmws.engine_api import Chunk, ModelProgress
from llmws.protocol.messages import TokenLogprob

TIMEOUT_S = 10


def chunk(key, index, *ids, text="", finish=None):
    return Chunk(key=key, index=index, ids=ids, text=text, finish=finish)


def progress(done):
    return ModelProgress(name="m", bytes=done, total_bytes=9)


def test_a_request_comes_as_one_chunk():
    box = Mailbox(lambda: None)
    box.put([chunk("a", 0, 1, text="He")])
    box.put([chunk("a", 1, 2, 3, text="llo", finish="stop")])

    assert box.take() == [chunk("a", 0, 1, 2, 3, text="Hello", finish="stop")]
    assert box.take() == []


def test_requests_keep_the_order_in_which_they_spoke_first():
    events = [chunk("a", 0, 1), chunk("b", 5, 9), chunk("a", 1, 2), chunk("b", 6, 8)]

    assert merge(events) == [chunk("a", 0, 1, 2), chunk("b", 5, 9, 8)]


def test_log_probabilities_are_merged_with_their_ids():
    one, two = (TokenLogprob(id=i, logprob=-0.5, top=[]) for i in (1, 2))
    first = Chunk(key="a", index=0, ids=(1,), logprobs=(one,))
    second = Chunk(key="a", index=1, ids=(2,), logprobs=(two,), finish="length")

    (merged,) = merge([first, second])

    assert merged.logprobs == (one, two)


def test_no_chunk_passes_a_model_event():
    events = [chunk("a", 0, 1), progress(3), chunk("a", 1, 2)]

    assert merge(events) == events


def test_only_the_newest_of_neighbouring_reports_counts():
    assert merge([progress(1), progress(2), chunk("a", 0, 1), progress(3)]) == [
        progress(2),
        chunk("a", 0, 1),
        progress(3),
    ]


def test_one_call_however_many_puts():
    calls = []
    box = Mailbox(lambda: calls.append(1), capacity=3)
    box.put([chunk("a", 0, 1)])
    box.put([chunk("a", 1, 2)])
    assert len(calls) == 1

    box.take()
    box.put([chunk("a", 2, 3)])
    assert len(calls) == 2


def test_a_step_without_events_is_no_step():
    calls = []
    box = Mailbox(lambda: calls.append(1))
    for _ in range(5):
        box.put([])

    assert calls == []
    assert box.take() == []


def test_a_full_box_stops_the_engine_until_it_is_emptied():
    box = Mailbox(lambda: None, capacity=2)
    done = [threading.Event() for _ in range(3)]

    def engine():
        for index, event in enumerate(done):
            box.put([chunk("a", index, index)])
            event.set()

    thread = threading.Thread(target=engine)
    thread.start()
    assert done[1].wait(TIMEOUT_S)
    assert not done[2].wait(0.05)

    assert box.take() == [chunk("a", 0, 0, 1)]
    assert done[2].wait(TIMEOUT_S)
    thread.join(TIMEOUT_S)
    assert box.take() == [chunk("a", 2, 2)]


def test_closing_lets_a_waiting_engine_go_and_loses_nothing():
    box = Mailbox(lambda: None, capacity=1)
    box.put([chunk("a", 0, 1)])
    thread = threading.Thread(target=lambda: box.put([chunk("a", 1, 2, finish="stop")]))
    thread.start()

    box.close()
    thread.join(TIMEOUT_S)

    assert not thread.is_alive()
    assert box.take() == [chunk("a", 0, 1, 2, finish="stop")]


@given(
    steps=st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=4), max_size=30),
    capacity=st.integers(1, 3),
)
def test_two_threads_lose_nothing_and_tear_nothing(steps, capacity):
    """Whatever an engine says, each request's ids arrive once, in order, with contiguous indices.

    Kills: the later chunk in place of the merged one; `take` returning only the first step.
    """
    woken = threading.Semaphore(0)
    box = Mailbox(woken.release, capacity=capacity)
    said = {key: [] for key in "abc"}
    heard = {key: [] for key in "abc"}
    finished = threading.Event()

    def engine():
        number = 0
        for step in steps:
            events = []
            for key, count in step:
                ids = tuple(range(number, number + count))
                events.append(chunk(key, len(said[key]), *ids))
                said[key] += ids
                number += count
            box.put(events)
        finished.set()
        woken.release()

    thread = threading.Thread(target=engine)
    thread.start()
    while True:
        assert woken.acquire(timeout=TIMEOUT_S)
        last = finished.is_set()
        for event in box.take():
            assert event.index == len(heard[event.key])
            heard[event.key] += event.ids
        if last:
            break
    thread.join(TIMEOUT_S)

    assert heard == said
