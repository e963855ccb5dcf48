"""Names of models, checked in the one place where a client's text may become a folder's name.

Knows no files. Invariant: a `ModelName` that exists is safe as a single path component on any system.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from llmws.errors import BadRequestError, printable

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Devices, not files, on Windows, where a models folder may lie on a shared disk; with any extension too.
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


class ModelName(msgspec.Struct, frozen=True):
    """The plain name of a model's folder.

    Letters, digits, `.`, `_` and `-`, at most 128 of them, the first a letter or digit; no `..` and no final dot.

    Raises:
        BadRequestError: on construction from any other text.
    """

    text: str

    def __post_init__(self) -> None:
        text = self.text
        plain = _PLAIN.fullmatch(text) and ".." not in text and not text.endswith(".")
        if not plain or _DEVICES.fullmatch(text):
            shown = printable(text[:64])
            raise BadRequestError(f"'{shown}' is not a model name: letters and digits, then '.', '_' and '-' too")

    def __str__(self) -> str:
        return self.text
