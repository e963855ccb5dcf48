"""Master keys come and go: a new one is added, sessions are brought under it, and an old one is removed.

Owns the changes of the key file after it was made; a running server notices them by itself, a little later.
Invariant: a key is removed only while no file of a session names it.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llmws.errors import ConfigError, StorageError
from llmws.store.disk import read_whole
from llmws.store.folder import META_NAME, Site, list_session_folders, prepare, reseal_session
from llmws.store.keys import KEY_BYTES, KeyRing, read_key_file, write_key_file
from llmws.store.lock import alone_with, check_owner
from llmws.store.meta import named_kids
from llmws.store.survey import look_through

_logger = logging.getLogger(__name__)

_HEADER_KID: Final = re.compile(rb'^\{"h":1,"alg":"A256GCM","kid":([0-9]{1,10}),', re.MULTILINE)


# A running server looks at the key file once a minute.
_NOTICED_S: Final = 120


class RefusedError(Exception):
    """A key that must stay. The message says why, and what to do."""


def add_key(path: Path, *, random: Callable[[int], bytes] = os.urandom) -> int:
    """Adds a master key to the key file; everything new is sealed under it. Returns its kid.

    Raises:
        ConfigError: the file cannot be read or replaced.
    """
    _check_owner(path)
    with alone_with(path):
        keys = read_key_file(path)
        kid = max(keys) + 1
        write_key_file(path, {**keys, kid: random(KEY_BYTES)})
    return kid


def remove_key(
    path: Path, kid: int, site: Site, *, is_served: bool = False, now_s: Callable[[], float] = time.time
) -> None:
    """Removes a master key from the key file.

    Args:
        path: the key file.
        kid: of the key.
        site: the sessions.
        is_served: a server has them; until it notices the newest key, it may still seal under the one to be removed.
        now_s: the wall clock, Unix time.

    Raises:
        ConfigError: the file cannot be read or replaced.
        RefusedError: the key is not there, seals what is new, or some session needs it or may soon.
    """
    _check_owner(path)
    with alone_with(path):
        keys = read_key_file(path)
        if kid not in keys:
            raise RefusedError(f"there is no key {kid}; `llmws keys list` shows them")
        if kid == max(keys):
            raise RefusedError(f"key {kid} seals what is new; make another first: llmws keys rotate")
        if count := references(site)[kid]:
            raise RefusedError(
                f"key {kid} is needed by {count} session{'' if count == 1 else 's'}. A conversation comes under the "
                "newest key when its session is closed, at the latest at the server's next start; answers that are not "
                "acknowledged keep the old one until they are acknowledged or expire. Try again then"
            )
        if is_served and now_s() - path.stat().st_mtime < _NOTICED_S:
            raise RefusedError(f"the running server may not have noticed key {max(keys)} yet; try again in two minutes")
        write_key_file(path, {number: key for number, key in keys.items() if number != kid})


def references(site: Site) -> Counter[int]:
    """How many sessions name each kid in any of their files. Raises ConfigError."""
    try:
        return Counter(kid for folder in list_session_folders(site) for kid in _kids(site, folder))
    except OSError as error:
        raise ConfigError(f"{site.sessions}: cannot be read ({error.strerror or error})") from None


def reseal_all(site: Site) -> int:
    """Brings every session under the newest master key, while no server runs. Returns how many are not, after all.

    Raises:
        ConfigError: the state folder cannot be used.
    """
    try:
        prepare(site)
    except OSError as error:
        raise ConfigError(f"{site.state}: cannot be used ({error.strerror or error})") from None
    for session_id in [look.session_id for look in look_through(site) if look.is_stale]:
        try:
            reseal_session(site, session_id)
        except (OSError, StorageError) as error:
            _logger.warning("session %s stays under an older master key: %s", session_id, error)
    # Without room for a copy a reseal leaves the conversation as it is, and that is no error.
    return sum(look.is_stale for look in look_through(site))


def open_site(state: Path, path: Path) -> Site:
    """The sessions, with the keys of a key file. Raises ConfigError."""
    return Site(state=state, keys=KeyRing(read_key_file(path), path))


def _kids(site: Site, folder: Path) -> set[int]:
    kids = named_kids(read_whole(site.disk, folder / META_NAME) or b"")
    for name in ("buffer.jsonl", "conversation.jsonl"):
        headers = _HEADER_KID.findall(read_whole(site.disk, folder / name) or b"")
        kids.update(int(kid) for kid in headers)
    return kids


def _check_owner(path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        raise ConfigError(
            f"{path}: there is no key file to change ({error.strerror}); keys that systemd passes in "
            "$CREDENTIALS_DIRECTORY are changed where its LoadCredential= takes them from"
        ) from None
    check_owner(path)
