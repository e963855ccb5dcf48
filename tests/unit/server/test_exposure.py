"""Where the server may listen, and what it says where it may not."""

import pytest

from llmws.config import Config, override
from llmws.errors import ConfigError
from llmws.server.exposure import cautions, check_exposure

LAN = {"host": "0.0.0.0"}
TLS = {"tls_cert": "cert.pem", "tls_key": "key.pem"}
OPEN = {"required": False}


@pytest.mark.parametrize(
    ("server", "auth"),
    [
        ({}, {}),
        ({}, OPEN),
        ({"host": "::1"}, {}),
        (TLS, {}),
        (LAN | TLS, {}),
        (LAN | {"insecure_lan": True}, {}),
        (LAN | {"behind_proxy": True}, {}),
        ({"behind_proxy": True}, {}),
    ],
)
def test_safe_places(server: dict[str, object], auth: dict[str, object]) -> None:
    check_exposure(override(Config(), {"server": server, "auth": auth}))


@pytest.mark.parametrize(
    ("server", "auth", "fix"),
    [
        (LAN, {}, "--tls-cert"),
        ({"host": "192.0.2.1"}, {}, "--insecure-lan"),
        ({"host": "llm.example.org"}, {}, "--behind-proxy"),
        (LAN | TLS, OPEN, "drop --no-auth"),
        (LAN | {"insecure_lan": True}, OPEN, "drop --no-auth"),
        ({"behind_proxy": True}, OPEN, "drop --no-auth"),
        ({"tls_cert": "cert.pem"}, {}, "server.tls_key"),
        ({"tls_key": "key.pem"}, {}, "server.tls_cert"),
    ],
)
def test_unsafe_ones_are_refused_with_the_fix(server: dict[str, object], auth: dict[str, object], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        check_exposure(override(Config(), {"server": server, "auth": auth}))


NO_NAME = "server.hosts lists no name"


@pytest.mark.parametrize(
    ("server", "auth", "said"),
    [
        ({}, {}, []),
        ({}, OPEN, ["--no-auth: every program"]),
        ({"host": "::"} | TLS, {}, [f"{NO_NAME}: clients on other machines are refused"]),
        (LAN | TLS | {"hosts": ["box.local"]}, {}, []),
        ({"host": "192.0.2.1", "behind_proxy": True}, {}, [f"{NO_NAME}; clients must use the address 192.0.2.1"]),
        (LAN | {"insecure_lan": True}, {}, ["--insecure-lan: listening on 0.0.0.0 without TLS", NO_NAME]),
    ],
)
def test_what_is_safe_enough_to_start_is_warned_of(
    server: dict[str, object], auth: dict[str, object], said: list[str]
) -> None:
    found = cautions(override(Config(), {"server": server, "auth": auth}))
    assert [text[: len(beginning)] for text, beginning in zip(found, said, strict=True)] == said
