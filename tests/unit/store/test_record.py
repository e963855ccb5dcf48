"""The byte format of a session log: vectors, canonical form, and what a line is bound to."""

import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmws.store.record import BadLineError, LogKeys, Segment, SegmentCipher
from llmws.store_api import Record

MASTER = bytes(range(32))
SESSION = uuid.UUID("6f1c2d3e-4a5b-4c6d-8e7f-901122334455").bytes
SEGMENT = Segment(kid=2, epoch=1763600000123, base=4711, salt=bytes(range(32, 64)), end=4711)
TOKEN = b'{"type":"token","seq":4713,"epoch":1763600000123,"request_id":"r-9","index":0,"data":"Hel","ids":[15043]}'
RECORD = Record(n=4712, kind="event", value=TOKEN, seq=4713)

# Made once by a separate program: HKDF by hand from HMAC-SHA256, GCM from its block-cipher interface.
HEADER_LINE = (
    b'{"h":1,"alg":"A256GCM","kid":2,"role":"buffer","epoch":1763600000123,"base":4711,'
    b'"salt":"ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=","tag":"gteeKyOfzzzdETLnhz89Dw=="}\n'
)
RECORD_LINE = (
    b'{"n":4712,"data":"SNM+SCJcyExopJcIQ+mVN0GNuCwY13y986R03rliGmcu/aV2znXOM2Tu14nwIkLFoaC+8poc5cal1AsaKAKvi5/qWbzbpx'
    b'pzzM+KGSbL/k9h1FJVUYw059XzoMn2gll38nS5dshpwvt7nepvsWrN9zrrsnIndR22uYn5XUgqIR+8XbF3ZqX4s4GtQHnjgC8y"}\n'
)


def cipher(**changes) -> SegmentCipher:
    return SegmentCipher(MASTER, SESSION, "buffer", msgspec.structs.replace(SEGMENT, **changes))


def keys(log="buffer", session=SESSION) -> LogKeys:
    return LogKeys(session, log, {2: MASTER}.get)


def test_the_header_of_a_known_segment_is_this_line():
    assert cipher().header == HEADER_LINE


def test_a_known_record_is_this_line():
    assert cipher().seal(RECORD) == RECORD_LINE


def test_the_published_lines_read_back():
    assert keys().read_header(HEADER_LINE).unseal(RECORD_LINE) == RECORD


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("buffer", "request"),
        ("buffer", "prompt"),
        ("buffer", "ack"),
        ("conversation", "message"),
        ("conversation", "config"),
    ],
)
def test_a_record_of_every_kind_reads_back_byte_for_byte(log, kind):
    sealing = SegmentCipher(MASTER, SESSION, log, SEGMENT)
    record = Record(n=1, kind=kind, value=b'{ "text" : "\xc3\xa9 }  " }')
    assert sealing.unseal(sealing.seal(record)) == record


def test_lines_of_one_to_twenty_bytes_of_text_have_one_length():
    """The length of a line tells the length of its text only in steps of 32 bytes."""
    lengths = {len(cipher().seal(Record(n=1, kind="ack", value=b"%d" % 10**size))) for size in range(1, 15)}
    assert len(lengths) == 1


@pytest.mark.parametrize("changed", [{"epoch": 1763600000124}, {"base": 4710}, {"salt": bytes(32)}])
def test_a_line_of_another_epoch_base_or_salt_does_not_unseal(changed):
    with pytest.raises(BadLineError):
        cipher(**changed).unseal(RECORD_LINE)


def test_a_line_of_another_session_does_not_unseal():
    other = SegmentCipher(MASTER, uuid.UUID(int=1).bytes, "buffer", SEGMENT)
    with pytest.raises(BadLineError):
        other.unseal(RECORD_LINE)


def test_a_line_of_the_conversation_does_not_unseal_as_one_of_the_buffer():
    line = SegmentCipher(MASTER, SESSION, "conversation", SEGMENT).seal(Record(n=4712, kind="message", value=b"{}"))
    with pytest.raises(BadLineError):
        cipher().unseal(line)


def test_a_renumbered_line_does_not_unseal():
    with pytest.raises(BadLineError):
        cipher().unseal(RECORD_LINE.replace(b'"n":4712', b'"n":4713'))


@pytest.mark.parametrize(
    "line",
    [
        RECORD_LINE[:-1],
        RECORD_LINE[:-1] + b"\r\n",
        b" " + RECORD_LINE,
        RECORD_LINE.replace(b'{"n":4712', b'{"n":04712'),
        RECORD_LINE.replace(b'{"n":4712,', b'{"n":4712, '),
        RECORD_LINE.replace(b'8y"}', b'8z"}'),
        RECORD_LINE.replace(b'8y"}', b'8y="}'),
        RECORD_LINE.replace(b'"SNM+', b'"SNM-'),
        RECORD_LINE.replace(b'"SNM+', b'"SNM+\\n'),
        b'{"n":99999999999999999999,"data":""}\n',
        b'{"n":1,"data":""}\n',
        b"",
    ],
)
def test_only_the_one_canonical_spelling_is_a_record(line):
    with pytest.raises(BadLineError):
        cipher().unseal(line)


def test_a_header_with_any_bit_flipped_is_refused():
    line = bytearray(HEADER_LINE)
    for position in range(len(line)):
        for bit in range(8):
            line[position] ^= 1 << bit
            with pytest.raises(BadLineError):
                keys().read_header(bytes(line))
            line[position] ^= 1 << bit


@pytest.mark.parametrize("reader", [keys("conversation"), keys(session=bytes(16)), LogKeys(SESSION, "buffer", {}.get)])
def test_a_header_is_refused_for_another_log_or_session_or_without_its_master_key(reader):
    with pytest.raises(BadLineError):
        reader.read_header(HEADER_LINE)


@given(st.binary())
def test_no_bytes_make_the_parsers_raise_anything_else(line):
    for parse in (cipher().unseal, keys().read_header):
        with pytest.raises(BadLineError):
            parse(line)
