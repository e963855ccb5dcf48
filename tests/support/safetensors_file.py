"""Files of weights as bytes: a few of them, or ones that no library would write."""

from __future__ import annotations

import json
from collections.abc import Mapping


def safetensors_bytes(header: Mapping[str, object] | bytes, data: bytes = b"") -> bytes:
    """A file of that header, as JSON or as it is, and what follows it. Source: the safetensors format."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


EMPTY = safetensors_bytes({})
"""A whole file without a tensor."""
