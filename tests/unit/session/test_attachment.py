"""What one connection is given at a time."""

from __future__ import annotations

from llmws.protocol import messages as m
from llmws.session.attachment import Attachment
from llmws.session.journal import EventLog
from llmws.session.rules import Rules


def test_a_connection_is_given_a_bounded_amount_however_much_becomes_sendable_at_once():
    log = EventLog("s", epoch=1, rules=Rules())
    for index in range(1000):
        log.emit(m.Token(request_id="a", index=index, data="x" * 4096, ids=[1]))
    log.flushed(written=1000, durable=1000)
    attachment = Attachment(1, "s", role="user", mode="takeover", window=None, position=0, rules=Rules())
    frames, read = attachment.pump(log)
    assert 65_536 <= sum(map(len, frames)) < 65_536 + 8192
    assert read is not None
    assert read.after_seq == len(frames)
    assert attachment.pump(log) == ([], None)  # what it reads comes first
