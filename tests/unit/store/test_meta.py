"""`meta.json`: what it hides, what it takes from older versions, and that every bit counts."""

import base64
import hmac
import itertools
import json
import uuid

import msgspec
import pytest

from llmws.errors import StorageError
from llmws.store.keys import KeyRing
from llmws.store.meta import LogState, Meta, MetaForgedError, named_kids, open_meta, seal_meta, sealing_kid
from llmws.store.record import Segment
from llmws.store_api import Finished, SessionMeta

SESSION = uuid.UUID("6f1c2d3e-4a5b-4c6d-8e7f-901122334455").bytes
OTHER = uuid.UUID("00000000-0000-4000-8000-000000000000").bytes
KEYS = KeyRing({1: b"k" * 32})
COUNTER = itertools.count(1)
EMPTY = LogState(first_n=1, segments=())
FULL = SessionMeta(
    owner="local",
    created_s=1.0,
    last_activity_s=2.0,
    last_seq=9,
    floor=7,
    finished=(Finished(id_mac=b"i" * 32, body_mac=b"b" * 32, terminal="error"),),
    title="How do I tell my doctor?",
    messages=4,
    idle_since_s=3.5,
    archived=True,
)


def meta(session: SessionMeta = FULL, **changes) -> Meta:
    return Meta(
        epoch=7, ends=((3, 9),), ledger_key=b"l" * 32, buffer=EMPTY, conversation=EMPTY, session=session, **changes
    )


def sealed(value: Meta, keys: KeyRing = KEYS) -> bytes:
    return seal_meta(value, SESSION, keys, lambda size: next(COUNTER).to_bytes(size, "big"))


def signed(body: bytes, kid: int = 1) -> bytes:
    """A file around a body, as whoever has the master key can make it."""
    mac = base64.b64encode(hmac.digest(KEYS.meta_mac_key(kid, SESSION), body, "sha256"))
    return b'{"kid":%d,"mac":"%b","body":%b}\n' % (kid, mac, body)


def test_what_is_sealed_opens():
    assert open_meta(sealed(meta()), SESSION, KEYS) == meta()


@pytest.mark.parametrize("title", [None, "", "x", "ä" * 256, "\x01" * 256])
def test_a_title_shows_neither_its_words_nor_its_length_nor_whether_there_is_one(title):
    data = sealed(meta(msgspec.structs.replace(FULL, title=title)))
    assert open_meta(data, SESSION, KEYS).session.title == title
    assert len(data) == len(sealed(meta()))
    assert json.loads(data)["body"]["session"]["title"] is None


def test_neither_the_title_nor_the_ledger_key_is_readable():
    data = sealed(meta())
    assert b"doctor" not in data
    assert base64.b64encode(b"l" * 32)[:40] not in data


def test_every_writing_seals_the_box_under_another_nonce():
    boxes = [json.loads(sealed(meta()))["body"]["box"] for _ in range(3)]
    assert len({base64.b64decode(box)[:12] for box in boxes}) == 3
    assert len({base64.b64decode(box)[12:40] for box in boxes}) == 3


def test_a_box_opens_in_its_own_session_only():
    """Whoever can sign for one session, but has no other's box key, moves a box there in vain."""
    body = msgspec.json.decode(json.dumps(json.loads(sealed(meta()))["body"]).encode(), type=dict)
    foreign = seal_meta(meta(), OTHER, KEYS, lambda size: b"r" * size)
    body["box"] = json.loads(foreign)["body"]["box"]
    with pytest.raises(MetaForgedError, match="another version"):
        open_meta(signed(msgspec.json.encode(body)), SESSION, KEYS)


def test_a_meta_opens_for_its_own_session_only():
    with pytest.raises(MetaForgedError, match="not authentic"):
        open_meta(sealed(meta()), OTHER, KEYS)


def test_every_single_flipped_bit_is_noticed():
    data = bytearray(sealed(meta()))
    for position, bit in itertools.product(range(len(data)), range(8)):
        data[position] ^= 1 << bit
        with pytest.raises((MetaForgedError, StorageError)):
            open_meta(bytes(data), SESSION, KEYS)
        data[position] ^= 1 << bit


def test_a_meta_from_before_there_was_a_box_opens_with_the_ledger_key_it_had():
    old = (
        b'{"epoch":7,"ends":[[3,9]],"corrupt_epoch":0,"ledger_kid":1,'
        b'"buffer":{"first_n":1,"segments":[]},"conversation":{"first_n":1,"segments":[]},'
        b'"session":{"owner":"local","created_s":1.0,"last_activity_s":2.0,"last_seq":9,"floor":7,"finished":[]}}'
    )
    opened = open_meta(signed(old), SESSION, KEYS)
    plain = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0, last_seq=9, floor=7)
    assert (opened.session, opened.ledger_key) == (plain, KEYS.ledger_key(1, SESSION))
    rotated = KeyRing({1: b"k" * 32, 2: b"n" * 32})
    again = sealed(opened, rotated)
    assert open_meta(again, SESSION, KeyRing({2: b"n" * 32})) == opened
    assert named_kids(signed(old)) == {1}
    assert named_kids(again) == {2}


def test_the_ledger_key_and_the_title_need_the_newest_master_key_only():
    rotated = KeyRing({1: b"k" * 32, 2: b"n" * 32})
    data = sealed(meta(), rotated)
    assert sealing_kid(data) == 2
    assert open_meta(data, SESSION, KeyRing({2: b"n" * 32})) == meta()
    with pytest.raises(StorageError, match="master key 2 is not in the key file"):
        open_meta(data, SESSION, KEYS)


def test_all_kids_that_a_meta_names_are_found():
    def state(kid: int) -> LogState:
        return LogState(first_n=1, segments=(Segment(kid=kid, epoch=1, base=0, salt=b"s" * 32, end=0),))

    data = sealed(msgspec.structs.replace(meta(), buffer=state(5), conversation=state(6)))
    assert named_kids(data) == {1, 5, 6}
    assert (named_kids(b"{}"), sealing_kid(b"{}")) == (set(), None)
    assert named_kids(b'{"kid":9,"mac":"' + b"A" * 43 + b'=","body":{}}\n') == {9}
