"""The web page, and the policy under which a browser shows it.

Owns which script may run: the page's own, named by its hash. Invariant: whatever else gets into the page, by whatever
mistake, does not run and reaches no other server.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

import msgspec

from llmws.errors import ConfigError

_POLICY: Final = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_INLINE: Final = {
    "script": re.compile(rb"<script>(.*?)</script>", re.DOTALL),
    "style": re.compile(rb"<style>(.*?)</style>", re.DOTALL),
}


class Page(msgspec.Struct, frozen=True):
    """A page, and its `Content-Security-Policy`."""

    html: bytes
    policy: str


def load_page(path: Path) -> Page:
    """Reads a page with one inline script and one inline style.

    Raises:
        ConfigError: the file cannot be read, or is not such a page.

    Source: Content Security Policy Level 3, section 6.7.2 (hashes).
    """
    try:
        html = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the web page cannot be read ({error.strerror}); install llmws again") from None
    hashes = {}
    for element, pattern in _INLINE.items():
        found = pattern.findall(html)
        if len(found) != 1:
            raise ConfigError(f"{path}: the web page has {len(found)} elements {element}, not one; install llmws again")
        digest = base64.b64encode(hashlib.sha256(found[0]).digest()).decode()
        hashes[element] = f"'sha256-{digest}'"
    return Page(html, _POLICY.format(**hashes))
