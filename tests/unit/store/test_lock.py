"""One process a state folder."""

import os
from pathlib import Path

import pytest

from llmws.errors import ConfigError
from llmws.store.lock import alone_with, check_owner, hold_state_folder


def test_a_second_server_is_refused_and_told_who_the_first_is(tmp_path):
    held = hold_state_folder(tmp_path / "state")
    with pytest.raises(ConfigError, match=rf"another llmws server \(process {os.getpid()}\)"):
        hold_state_folder(tmp_path / "state")
    held.close()
    hold_state_folder(tmp_path / "state").close()


def test_the_folder_is_made_for_its_owner_only(tmp_path):
    hold_state_folder(tmp_path / "a" / "state").close()
    assert (tmp_path / "a" / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "state" / "lock").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used as the state folder"):
        hold_state_folder(tmp_path / "file" / "state")


def test_a_file_that_another_process_keeps_is_not_waited_for_without_end(tmp_path):
    """A suspended `llmws token create` would otherwise hang a server, which then could not even be stopped."""
    path = tmp_path / "tokens.json"
    with (
        alone_with(path),
        pytest.raises(ConfigError, match=r"tokens\.lock: kept by another process"),
        alone_with(path, timeout_s=0.1),
    ):
        raise AssertionError
    with alone_with(path, timeout_s=0):
        pass


def test_a_file_or_folder_of_another_account_is_not_changed(tmp_path):
    """What root made there, the server's account could not read."""
    path = Path("/tokens.json")
    if os.geteuid() == 0:
        path = tmp_path / "tokens.json"
        check_owner(path)
        os.chown(tmp_path, 65534, 65534)
    with pytest.raises(ConfigError, match="run this command as that one"):
        check_owner(path)
