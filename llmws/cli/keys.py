"""`llmws keys`: the master keys that seal the sessions. No key is ever shown."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmws.config import Config
    from llmws.places import Places

Configuration = Callable[[argparse.Namespace], "tuple[Config, Places]"]


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    add_config: Callable[[argparse.ArgumentParser], None],
    configuration: Configuration,
) -> None:
    """Adds `keys` and its actions.

    Args:
        commands: the subcommands of `llmws`.
        add_config: adds the options that say where the configuration and the state are.
        configuration: reads them.
    """
    actions = commands.add_parser("keys", help="manage the keys that seal the sessions")
    keys = actions.add_subparsers(metavar="ACTION", required=True)
    shown = keys.add_parser("list", help="list the keys", description="Lists the keys by number, never the keys.")
    shown.set_defaults(act=_list)
    rotate = keys.add_parser(
        "rotate",
        help="begin a new key",
        description="Adds a key that seals everything new, and brings the conversations under it: now, or, where the "
        "server runs, by the server within a minute.",
    )
    rotate.set_defaults(act=_rotate)
    retire = keys.add_parser(
        "retire", help="remove an old key", description="Removes a key that no session needs any more."
    )
    retire.add_argument("kid", type=int, metavar="KID", help="the key's number, as `llmws keys list` shows it")
    retire.set_defaults(act=_retire)
    for parser in (shown, rotate, retire):
        add_config(parser)
        parser.set_defaults(run=lambda options: options.act(options, *_place(options, configuration)))


def _place(options: argparse.Namespace, configuration: Configuration) -> tuple[Path, Path]:
    """The state folder and the key file. Raises ConfigError where the service manager brings the keys."""
    from llmws.errors import ConfigError  # noqa: PLC0415 - `--help` stays free of imports
    from llmws.store.keys import find_key_file  # noqa: PLC0415
    from llmws.store.lock import prepare_state_folder  # noqa: PLC0415

    _, places = configuration(options)
    path, is_credential = find_key_file(places.state_dir, key_file=places.key_file)
    if is_credential:
        raise ConfigError(
            f"{path}: the keys come from $CREDENTIALS_DIRECTORY, where nothing can be written; change the file that "
            "systemd's LoadCredential= takes them from, then restart the service"
        )
    if not path.exists():
        raise ConfigError(f"{path}: there is no key file; the server makes one at its first start")
    prepare_state_folder(places.state_dir)
    return places.state_dir, path


def _list(_: argparse.Namespace, state: Path, path: Path) -> int:
    from llmws.store.rotation import open_site, references  # noqa: PLC0415

    site = open_site(state, path)
    counts = references(site)
    for kid in site.keys.kids:
        sessions = f"{counts[kid]} session{'' if counts[kid] == 1 else 's'}"
        print(kid, sessions, *(["current"] if kid == site.keys.current else []), sep="\t")
    return 0


def _rotate(_: argparse.Namespace, state: Path, path: Path) -> int:
    from llmws.store.rotation import add_key  # noqa: PLC0415

    kid = add_key(path)
    stale = _reseal_unless_served(state, path)
    if stale is None:
        print(f"key {kid} seals what is new; the running server brings the conversations under it")
        return 0
    if stale:
        sessions = f"{stale} session{'' if stale == 1 else 's'}"
        print(f"key {kid} seals what is new")
        print(f"llmws: {sessions} could not be brought under it; the server will try again", file=sys.stderr)
        return 1
    print(f"key {kid} seals what is new; the conversations are under it")
    return 0


def _retire(options: argparse.Namespace, state: Path, path: Path) -> int:
    from llmws.store.rotation import RefusedError, open_site, remove_key  # noqa: PLC0415

    is_served = _reseal_unless_served(state, path) is None
    try:
        remove_key(path, options.kid, open_site(state, path), is_served=is_served)
    except RefusedError as error:
        print(f"llmws: {error}", file=sys.stderr)
        return 1
    print(f"key {options.kid} is removed; a backup that was made before needs it still")
    return 0


def _reseal_unless_served(state: Path, path: Path) -> int | None:
    """Brings the sessions under the newest key; returns how many are not, None if a server has them."""
    from llmws.store.lock import try_hold_state_folder  # noqa: PLC0415
    from llmws.store.rotation import open_site, reseal_all  # noqa: PLC0415

    os.umask(0o077)
    lock = try_hold_state_folder(state)
    if lock is None:
        return None
    try:
        return reseal_all(open_site(state, path))
    finally:
        lock.close()
