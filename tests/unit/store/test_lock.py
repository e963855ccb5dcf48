"""One process a state folder."""

import os

import pytest

from llmws.errors import ConfigError
from llmws.store.lock import hold_state_folder


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
