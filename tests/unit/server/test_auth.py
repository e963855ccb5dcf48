"""Where a credential is found, what it stands for, which role a route needs."""

import base64

import pytest

from llmws.access import Identity
from llmws.server.auth import Authenticator, Denied, credential, select_subprotocol
from llmws.server.codes import Codes
from tests.support.credentials import FixedCredentials

OWNER = Identity("local", "admin")
OFFER = "llmws.bearer." + base64.urlsafe_b64encode(b"tok\x7f?>").rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("authorization", "subprotocols", "hello_auth", "expected"),
    [
        ([], [], None, None),
        (["Bearer abc"], [], None, "abc"),
        (["bearer  abc "], [], None, "abc"),
        (["Bearer"], [], None, None),
        (["Bearer "], [], None, None),
        (["Basic abc"], [], None, None),
        (["Bearer a", "Bearer b"], [], None, None),
        ([], ["llmws.v1", OFFER], None, "tok\x7f?>"),
        ([], [OFFER, OFFER], None, None),
        ([], ["llmws.bearer."], None, None),
        ([], ["llmws.bearer.YQ"], None, "a"),
        ([], ["llmws.bearer.YQ=="], None, None),
        ([], ["llmws.bearer.YR"], None, None),
        ([], ["llmws.bearer.Y+/"], None, None),
        ([], ["llmws.bearer._w"], None, None),
        ([], ["llmws.bearer.YQ\n"], None, None),
        ([], [], "abc", "abc"),
        (["Bearer header"], ["llmws.bearer.YQ"], "hello", "header"),
        (["Basic x"], ["llmws.bearer.YQ"], "hello", "a"),
    ],
)
def test_credential(
    authorization: list[str], subprotocols: list[str], hello_auth: str | None, expected: str | None
) -> None:
    actual = credential(authorization=authorization, subprotocols=subprotocols, hello_auth=hello_auth)
    assert actual == expected


def test_the_server_echoes_the_protocol_and_never_the_token() -> None:
    assert select_subprotocol([OFFER, "llmws.v1"]) == "llmws.v1"
    assert select_subprotocol([OFFER]) is None
    assert select_subprotocol([]) is None


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def authenticator(clock: Clock, *, required: bool = True) -> Authenticator:
    credentials = FixedCredentials({"good" if required else None: OWNER})
    return Authenticator(credentials, codes=Codes(clock=clock), clock=clock)


def test_ten_wrong_tokens_slow_an_address_down_but_never_the_right_one() -> None:
    clock = Clock()
    auth = authenticator(clock)
    assert [auth.identify(f"guess{n}", "127.0.0.1") for n in range(10)] == [Denied()] * 10
    assert auth.identify("guess", "127.0.0.1") == Denied(retry_after_s=6.0)
    assert auth.identify("good", "127.0.0.1") == OWNER
    assert auth.identify("guess", "127.0.0.2") == Denied()
    clock.now_s = 6.0
    assert auth.identify("guess", "127.0.0.1") == Denied()


def test_showing_no_token_is_no_guess() -> None:
    auth = authenticator(Clock())
    assert {auth.identify(None, "10.0.0.1") for _ in range(50)} == {Denied()}
    assert auth.identify("good", "10.0.0.1") == OWNER


def test_origin_null_is_trusted_with_a_valid_token_only_and_never_where_none_is_required() -> None:
    auth = authenticator(Clock())
    assert [auth.trusts_null_origin(token, "::1") for token in ("good", "bad", None)] == [True, False, False]
    open_to_all = authenticator(Clock(), required=False)
    assert [open_to_all.trusts_null_origin(token, "::1") for token in ("good", None)] == [False, False]
