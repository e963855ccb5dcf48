"""What is said of a certificate and a key that cannot be used."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from llmws.errors import ConfigError
from llmws.server.tls import tls_context
from tests.support.certificates import Authority

BEGINNING = "-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key, apart; everybody may read both."""
    chain, _, key = Authority(tmp_path).issue("box.example").read_text().partition(BEGINNING)
    (tmp_path / "cert.pem").write_text(chain)
    (tmp_path / "key.pem").write_text(BEGINNING + key)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def said_of(cert: Path, key: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        tls_context(cert, key)
    return str(caught.value)


def test_files_that_were_swapped_are_told_so_before_anything_is_said_of_their_modes(pair: tuple[Path, Path]) -> None:
    cert, key = pair
    cert.chmod(0o644)
    key.chmod(0o600)
    assert said_of(key, cert) == f"server.tls_cert: {cert} is the certificate, and not {key}; swap them"
    tls_context(cert, key)


def test_a_key_with_a_password_is_told_so_with_the_fix(pair: tuple[Path, Path]) -> None:
    cert, key = pair
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert said_of(cert, key).endswith(f"is encrypted; write it without a password: openssl pkey -in {key} -out FILE")
