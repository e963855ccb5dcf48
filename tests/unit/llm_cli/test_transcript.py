"""Conversations as files."""

import errno
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cli.transcript import Transcript, file_words, from_json, path_of, read, to_json, to_markdown, write
from llmws.protocol.messages import ChatMessage

TALK = Transcript(
    messages=[ChatMessage(role="user", content="hi\x1b[2J"), ChatMessage(role="assistant", content="# no\n\nHello\n")],
    title="A\ntalk",
    session_id="s",
)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1))
def test_what_is_exported_is_imported_again(turns):
    messages = [ChatMessage(role=role, content=content) for role, content in turns]
    assert from_json(to_json(Transcript(messages=messages)).encode()) == messages


def test_a_bare_list_of_turns_is_taken_too():
    assert from_json(b' [{"role":"user","content":"hi","name":"me"}]') == [ChatMessage(role="user", content="hi")]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[{", "is not JSON"),
        (b"{}", "holds no conversation: Object missing required field `messages`"),
        (b"[]", "holds no conversation: Expected `array` of length >= 1"),
        (b"[" * 100_000, "holds no conversation: it is nested too deeply"),
        (b'{"messages":' + b"[" * 100_000, "holds no conversation: "),
        (b"3", "holds no conversation: Expected `object`, got `int`"),
        (b'[{"role":"tool","content":""}]', "holds no conversation: Invalid enum value 'tool'"),
    ],
)
def test_what_is_no_conversation_is_said(data, why):
    with pytest.raises(ValueError, match="^" + why.replace("[", r"\[")):
        from_json(data)


def test_markdown_has_a_heading_for_each_turn_and_no_control_characters():
    assert to_markdown(TALK) == "# A talk\n\n## User\n\nhi[2J\n\n## Assistant\n\n# no\n\nHello\n"


def test_a_file_is_written_in_the_format_of_its_name_and_not_replaced_unasked(tmp_path):
    path = tmp_path / "talk.json"
    write(TALK, path, mode="x")
    assert read(path) == TALK.messages
    with pytest.raises(FileExistsError):
        write(TALK, path, mode="x")
    write(Transcript(messages=TALK.messages[:1]), path, mode="w")
    assert read(path) == TALK.messages[:1]
    assert [each.name for each in tmp_path.iterdir()] == ["talk.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write(TALK, tmp_path / "talk.JSON", mode="x")
    assert read(tmp_path / "talk.JSON") == TALK.messages
    write(TALK, tmp_path / "talk.md", mode="x")
    assert (tmp_path / "talk.md").read_text() == to_markdown(TALK)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json: No such file or directory"):
        read(tmp_path / "nowhere.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json is not a regular file"):
        read(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"Is a directory"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"No such file or directory"):
        write(TALK, tmp_path / "no" / "talk.md", mode="x")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json is not JSON; /import takes what /export FILE\.json writes"):
        read(tmp_path / "bad.json")


def test_what_cannot_be_replaced_is_still_there_and_nothing_else(tmp_path):
    (tmp_path / "talk.md").mkdir()
    with pytest.raises(ValueError, match=r"talk\.md: Is a directory"):
        write(TALK, tmp_path / "talk.md", mode="w")
    assert [each.name for each in tmp_path.iterdir()] == ["talk.md"]


def test_a_file_that_a_link_leads_to_is_replaced_where_it_is(tmp_path):
    (tmp_path / "real.json").touch()
    (tmp_path / "talk.json").symlink_to("real.json")
    write(TALK, tmp_path / "talk.json", mode="w")
    assert (tmp_path / "talk.json").is_symlink()
    assert read(tmp_path / "real.json") == TALK.messages


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        write(TALK, tmp_path / "talk.json", mode="x")
    assert list(tmp_path.iterdir()) == []


def test_names_of_files_are_completed(tmp_path):
    for name in ("talk.json", "talk.md", "other.json", ".hidden.json", "talk.txt"):
        (tmp_path / name).touch()
    (tmp_path / "talks").mkdir()
    assert [word for word, _ in file_words(f"{tmp_path}/ta", (".json",))] == [
        f"{tmp_path}/talk.json",
        f"{tmp_path}/talks/",
    ]
    assert [word for word, _ in file_words(f"{tmp_path}/.h", (".json",))] == [f"{tmp_path}/.hidden.json"]
    assert list(file_words(f"{tmp_path}/nowhere/x", (".json",))) == []


def test_the_home_folder_may_be_abbreviated(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "talk.md").touch()
    assert path_of("~/talk.md") == tmp_path / "talk.md"
    assert list(file_words("~/t", (".md",))) == [("~/talk.md", "")]
    assert list(file_words("~nosuchuser/t", (".md",))) == []
