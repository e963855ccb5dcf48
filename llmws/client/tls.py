"""Which server a TLS connection takes for the right one.

Owns the two ways to believe a certificate that the machine's own authorities do not vouch for, and what is said of one
that is not believed. Invariant: no context made here accepts a certificate that nobody named.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final

from llmws.client.errors import CertificateError

_NAMED: Final = "this account's server names {} as its certificate"
_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)

_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64
"""Source: OpenSSL, include/openssl/x509_vfy.h, X509_V_ERR_…"""
_ADVICE: Final = {
    _NOT_YET_VALID: "set this machine's clock, or the server's certificate, right",
    _EXPIRED: "renew it on the server, and restart that",
    _OTHER_NAME: "use a name that the certificate is for",
    _OTHER_ADDRESS: "use an address or a name that the certificate is for",
}
_UNKNOWN: Final = "if it is your own, trust it or its authority: --tls-ca FILE, or `tls` of the Python client"


def trusting(ca_file: str | Path) -> ssl.SSLContext:
    """Believes the certificates in a file, and what they have signed, instead of the machine's authorities.

    Args:
        ca_file: PEM: a private authority's certificate, or a server's self-signed one.

    Returns:
        For a server that a person named: its certificate must be for that name.

    Raises:
        ValueError: the file cannot be read, or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise ValueError(f"{ca_file} holds no certificate in PEM form") from None
    except OSError as error:
        raise ValueError(f"{ca_file}: {error.strerror}") from None
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def pinned(certificate_file: str | Path) -> ssl.SSLContext:
    """Believes exactly one certificate, whatever name it is for.

    For a server of this account, found by its ready file: it is reached by a loopback address, for which few
    certificates are made. No name has to be checked, because only this account can have written which certificate it
    is, and only the holder of its key can show it.

    Args:
        certificate_file: PEM: the server's certificate, and perhaps its authorities' behind it.

    Raises:
        CertificateError: the file cannot be read, or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        # The first one alone: without a name to check, an authority behind it would vouch for all of its customers.
        found = _CERTIFICATE.search(Path(certificate_file).read_text(encoding="ascii", errors="replace"))
        context.load_verify_locations(cadata=found.group() if found else "")
    except (ssl.SSLError, ValueError):
        raise CertificateError(f"{_NAMED.format(certificate_file)}: it is no certificate in PEM form") from None
    except OSError as error:
        raise CertificateError(f"{_NAMED.format(certificate_file)}: {error.strerror}") from None
    return context


def refused(error: ssl.SSLCertVerificationError, *, is_pinned: bool) -> str:
    """What is wrong with a server's certificate and what can be done about it, in one line."""
    advice = _ADVICE.get(error.verify_code, _UNKNOWN)
    if is_pinned and advice is _UNKNOWN:
        advice = "it is not the one that this account's server names; restart the server if it was renewed"
    why = error.verify_message.rstrip(".")
    return f"the server's certificate is not trusted ({why}); {advice}"
