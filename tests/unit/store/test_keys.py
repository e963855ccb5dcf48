"""Where the master keys come from, and what is said when they cannot be used."""

import base64
import errno
import os
from pathlib import Path

import pytest

from llmws.errors import ConfigError, StorageError
from llmws.store.keys import KeyRing, load_keys, read_key_file

KEY = bytes(range(32))
LINE = f"3 {base64.b64encode(KEY).decode()}\n"


def write(path, text=LINE, mode=0o600):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_first_start_makes_a_key_that_only_its_owner_can_read_and_later_starts_take_it(tmp_path):
    ring = load_keys(tmp_path, environ={}, random=lambda size: KEY[:size])
    path = tmp_path / "keys" / "master.key"
    assert (ring.current, ring.get(1)) == (1, KEY)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert load_keys(tmp_path, environ={}).get(1) == KEY


def test_a_credential_comes_before_the_key_file_and_that_before_the_state_folder(tmp_path):
    write(tmp_path / "keys" / "master.key", LINE.replace("3 ", "1 "))
    key_file = write(tmp_path / "own.key", LINE.replace("3 ", "2 "))
    write(tmp_path / "credentials" / "master.key")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert load_keys(tmp_path, key_file=key_file, environ=environ).current == 3
    assert load_keys(tmp_path, key_file=key_file, environ={}).current == 2
    assert load_keys(tmp_path, environ={}).current == 1


def test_a_credentials_folder_without_our_key_is_passed_over(tmp_path):
    ring = load_keys(tmp_path, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert ring.current == 1


def test_the_highest_kid_seals_and_all_open(tmp_path):
    path = write(tmp_path / "k", f"# comment\n1 {base64.b64encode(b'o' * 32).decode()}\n\n{LINE}")
    ring = load_keys(tmp_path, key_file=path, environ={})
    assert (ring.current, ring.get(1), ring.get(3), ring.get(2)) == (3, b"o" * 32, KEY, None)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_that_others_can_read_is_refused_with_the_fix(tmp_path, mode):
    path = write(tmp_path / "k", mode=mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        load_keys(tmp_path, key_file=path, environ={})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("hello\n", "line 1"),
        ("1 QUJD\n", "line 1"),
        ("0 " + LINE[2:], "line 1"),
        ("4294967296 " + LINE[2:], "line 1"),
        (LINE + "1 ????\n", "line 2"),
        (LINE + LINE, "twice"),
        ("\x00\xe9", "not a key file"),
    ],
)
def test_a_bad_key_file_is_named_and_its_contents_are_not(tmp_path, text, said):
    path = write(tmp_path / "k", text)
    with pytest.raises(ConfigError, match=said) as raised:
        load_keys(tmp_path, key_file=path, environ={})
    assert str(path) in str(raised.value)
    assert LINE.split()[1] not in str(raised.value)


def test_a_key_file_that_is_a_folder_is_named(tmp_path):
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="folder: cannot be read"):
        load_keys(tmp_path, key_file=tmp_path / "folder", environ={})


def test_a_configured_key_file_is_not_made(tmp_path):
    with pytest.raises(ConfigError, match="there is no key file"):
        load_keys(tmp_path, key_file=tmp_path / "k", environ={})


def test_no_new_key_is_made_where_sessions_need_the_old_one(tmp_path):
    (tmp_path / "sessions" / "6f1c2d3e-4a5b-4c6d-8e7f-901122334455").mkdir(parents=True)
    with pytest.raises(ConfigError, match="restore it"):
        load_keys(tmp_path, environ={})
    assert not (tmp_path / "keys").exists()


def test_derived_keys_differ_by_purpose_session_and_master():
    ring = KeyRing({1: KEY, 2: KEY[::-1]})
    derived = [
        derive(kid, session)
        for derive in (ring.meta_mac_key, ring.ledger_key)
        for kid in (1, 2)
        for session in (bytes(16), b"s" * 16)
    ]
    assert len(set(derived)) == 8
    assert {len(key) for key in derived} == {32}


def test_a_missing_master_key_is_a_storage_error():
    with pytest.raises(StorageError, match="master key 9"):
        KeyRing({1: KEY}).ledger_key(9, bytes(16))


def test_a_key_ring_does_not_show_its_keys():
    assert repr(KeyRing({1: KEY})) == "KeyRing(kids=[1])"


# --- a key file that changes ---------------------------------------------------------------------------------------


def lines(*kids: int) -> str:
    return "".join(f"{kid} {base64.b64encode(bytes([kid]) * 32).decode()}\n" for kid in kids)


def test_a_refresh_takes_over_a_changed_file(tmp_path):
    path = write(tmp_path / "k", lines(1))
    ring = load_keys(tmp_path, key_file=path, environ={})
    write(path, lines(1, 2))
    assert ring.current == 1
    ring.refresh()
    assert (ring.current, ring.kids, ring.get(1)) == (2, [1, 2], b"\1" * 32)
    write(path, lines(2, 3, 4))
    ring.refresh()
    assert (ring.current, ring.kids) == (4, [2, 3, 4])


@pytest.mark.parametrize("text", ["", "1 nonsense\n", None])
def test_a_file_that_cannot_be_used_any_more_changes_nothing_and_is_reported_once(tmp_path, caplog, text):
    path = write(tmp_path / "k", lines(1, 2))
    ring = load_keys(tmp_path, key_file=path, environ={})
    if text is None:
        path.unlink()
    else:
        write(path, text)
    ring.refresh()
    ring.refresh()
    assert ring.kids == [1, 2]
    assert [record.message.partition(":")[0] for record in caplog.records] == ["the master keys stay as they were"]
    write(path, lines(2, 3))
    ring.refresh()
    assert ring.kids == [2, 3]


def test_a_key_that_came_after_the_file_was_read_and_before_there_was_a_ring_is_taken_over(tmp_path):
    path = write(tmp_path / "k", lines(1))
    keys = read_key_file(path)
    write(path, lines(1, 2))
    ring = KeyRing(keys, path)
    ring.refresh()
    assert ring.kids == [1, 2]


def test_a_read_that_failed_is_tried_again_and_reported_once(tmp_path, caplog, monkeypatch):
    path = write(tmp_path / "k", lines(1))
    ring = load_keys(tmp_path, key_file=path, environ={})
    write(path, lines(1, 2))

    def refuse(*_: object) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as without_handles:
        without_handles.setattr(Path, "read_text", refuse)
        ring.refresh()
        ring.refresh()
    assert ring.kids == [1]
    assert [record.message for record in caplog.records] == [
        f"the master keys stay as they were: {path}: cannot be read (Too many open files)"
    ]
    ring.refresh()
    assert ring.kids == [1, 2]


def test_a_key_that_others_could_read_meanwhile_is_not_taken_over(tmp_path):
    path = write(tmp_path / "k", lines(1))
    ring = load_keys(tmp_path, key_file=path, environ={})
    write(path, lines(1, 2), mode=0o644)
    ring.refresh()
    assert ring.kids == [1]


def test_a_credential_is_read_once(tmp_path):
    path = write(tmp_path / "credentials" / "master.key", lines(1))
    ring = load_keys(tmp_path, environ={"CREDENTIALS_DIRECTORY": str(path.parent)})
    write(path, lines(1, 2))
    ring.refresh()
    assert ring.kids == [1]
