"""What is acknowledged, when, and how much more the server may send."""

from llmws.client.acks import LONGEST_UNACKNOWLEDGED, Acknowledgements
from llmws.protocol import messages as m


def attached(window: int) -> Acknowledgements:
    acks = Acknowledgements(window=window)
    acks.attached(floor=0, position=0)
    return acks


def test_the_floor_moves_to_an_end_that_was_consumed():
    acks = attached(window=100)
    acks.ended(4)
    assert acks.due(applied=4, consumed=3) is None
    assert acks.due(applied=4, consumed=4) == m.Ack(seq=4, window=100)
    assert acks.due(applied=4, consumed=4) is None


def test_half_a_window_grants_a_new_one_without_acknowledging():
    acks = attached(window=10)
    assert acks.due(applied=4, consumed=0) is None
    assert acks.due(applied=5, consumed=0) == m.Ack(seq=0, window=15)
    assert acks.due(applied=10, consumed=0) == m.Ack(seq=0, window=20)


def test_a_window_of_one_is_granted_event_by_event():
    acks = attached(window=1)
    assert acks.due(applied=1, consumed=0) == m.Ack(seq=0, window=2)


def test_the_window_counts_from_the_resumed_position():
    acks = attached(window=10)
    acks.attached(floor=3, position=50)
    assert acks.due(applied=55, consumed=0) == m.Ack(seq=3, window=15)


def test_a_very_long_answer_is_acknowledged_in_parts():
    acks = attached(window=1000)
    consumed = LONGEST_UNACKNOWLEDGED + 1
    assert acks.due(applied=consumed, consumed=consumed).seq == consumed


def test_an_acknowledgement_that_the_server_did_not_get_is_repeated():
    acks = attached(window=10)
    acks.ended(2)
    acks.due(applied=2, consumed=2)
    acks.attached(floor=0, position=2)
    assert acks.due(applied=2, consumed=2) == m.Ack(seq=2, window=10)


def test_after_a_snapshot_no_number_beyond_it_is_acknowledged():
    acks = attached(window=10)
    acks.ended(9)
    acks.attached(floor=0, position=9)
    acks.moved(5)
    assert acks.due(applied=5, consumed=8) is None


def test_where_the_server_pauses_everything_consumed_is_acknowledged_at_once_and_then_in_quarters():
    acks = attached(window=1000)
    assert acks.due(applied=16, consumed=10) is None
    acks.paused(16)
    assert acks.due(applied=16, consumed=10).seq == 10
    assert acks.due(applied=16, consumed=14) is None
    assert acks.due(applied=16, consumed=16).seq == 16
    assert acks.due(applied=25, consumed=20) is None
    assert acks.due(applied=25, consumed=21).seq == 21
    acks.ended(26)
    assert acks.due(applied=26, consumed=25) is None
    assert acks.due(applied=26, consumed=26).seq == 26
    assert acks.due(applied=40, consumed=40) is None


def test_a_pause_that_was_noticed_early_counts_what_was_not_consumed():
    """Nothing is acknowledged that was not consumed, and the little that follows is, event by event."""
    acks = attached(window=1000)
    acks.paused(2)
    assert acks.due(applied=2, consumed=0) is None
    assert acks.due(applied=2, consumed=1).seq == 1
