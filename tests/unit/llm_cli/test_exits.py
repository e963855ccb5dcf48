"""What `llm` exits with, and what it says before."""

import pytest

from llm_cli.exits import explain, status_of
from llmws.client import (
    CertificateError,
    ClosedError,
    ForbiddenError,
    GenerationError,
    IntegrityError,
    NoReplyError,
    ProtocolError,
    RequestRejectedError,
    ServerFaultError,
    SessionLostError,
    TakenOverError,
    UnauthorizedError,
    UnreachableError,
)
from llmws.protocol import messages as m


def refused(code: str) -> m.Error:
    return m.Error(code=code, message="because", retryable=False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ClosedError(), 1),
        (ProtocolError(), 1),
        (TakenOverError(), 1),
        (NoReplyError(), 1),
        (UnreachableError(), 3),
        (CertificateError(), 3),
        (UnauthorizedError(), 4),
        (ForbiddenError(), 4),
        (RequestRejectedError(refused("forbidden")), 4),
        (RequestRejectedError(refused("bad_request")), 5),
        (GenerationError(refused("model_failed"), ""), 5),
        (IntegrityError(), 5),
        (SessionLostError(), 5),
        (ServerFaultError(), 5),
    ],
)
def test_every_error_has_its_status(error, status):
    assert status_of(error) == status


def test_what_can_be_done_is_said():
    assert explain(UnreachableError("gone")).startswith("gone; start a server")
    assert "/switch" in explain(RequestRejectedError(refused("no_model")))


def test_the_servers_words_are_cleaned():
    assert explain(ProtocolError("a\x1b[2J\nb")) == "a[2J b"
