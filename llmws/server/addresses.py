"""IP addresses in one spelling.

Pure. Invariant: two texts that mean one address become the same text, so that addresses may be compared as text.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

_WITH_PORT: Final = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}")


def canonical(text: str) -> str | None:
    """The address in its one spelling: IPv4 that is mapped into IPv6 is IPv4; no zone, no brackets, no port.

    Returns:
        None where it is no IP address.
    """
    match = _WITH_PORT.fullmatch(text)
    if match is not None:
        text = match[1] or match[2] or ""
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return str(ip)
