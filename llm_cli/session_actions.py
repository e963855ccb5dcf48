"""What the commands about sessions and their conversations do.

Knows the client and the chat, no keyboard. Invariant: nothing is deleted or replaced without asking.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from llm_cli import sessions
from llm_cli import transcript as files
from llm_cli.chat import Chat, Draft
from llm_cli.render import clean, clean_line
from llmws.client import branch, question
from llmws.protocol.messages import HistoryMessage

Action = Callable[[Chat, str], Awaitable[None]]

_HISTORY_DEFAULT: Final = 10


async def _sessions(chat: Chat, _argument: str) -> None:
    chat.shown_sessions = found = await chat.list_sessions()
    columns = shutil.get_terminal_size().columns
    chat.say(sessions.listing(found, present=chat.client.session_id, now_s=time.time(), columns=columns))
    chat.say("/session N goes to one of them, /forget N deletes one")


async def _session(chat: Chat, argument: str) -> None:
    if not argument:
        _show_session(chat)
        return
    if argument.lower() == "new":
        await _new(chat, "")
        return
    session_id = await _chosen(chat, argument)
    if session_id == chat.client.session_id:
        chat.say("this is that session")
        return
    await chat.go_to(session_id)
    title = next((each.title for each in chat.sessions if each.session_id == session_id), None)
    name = f" ({sessions.shortened(title, 60)})" if title else ""
    chat.note(f"session {session_id}{name}; /history shows what was said")


def _show_session(chat: Chat) -> None:
    if (session_id := chat.client.session_id) is None:
        chat.say("there is no session yet: not connected")
    elif chat.conversation.is_temporary:
        chat.say(f"session {session_id}, a temporary one: it is deleted when it is left")
    else:
        chat.say(f"session {session_id}\nto come back: {chat.way_back}")


async def _new(chat: Chat, _argument: str) -> None:
    if chat.conversation.was_used:
        chat.say(f"to come back to this session: {chat.way_back}")
    await chat.go_to(None)


async def _title(chat: Chat, argument: str) -> None:
    if argument:
        updated = await chat.client.update_session(title=None if argument == "-" else argument)
        title = updated.title
    else:
        title = await chat.title_of(chat.client.session_id)
    chat.say(f"title: {clean_line(title)}" if title else "this session has no title; /title TEXT gives it one")


async def _forget(chat: Chat, argument: str) -> None:
    session_id = await _chosen(chat, argument) if argument else chat.client.session_id
    assert session_id is not None, "who is connected has a session"
    is_own = session_id == chat.client.session_id
    title = await chat.title_of(session_id)
    which = "this session" if is_own else f"session {session_id}"
    name = f" ({sessions.shortened(title, 60)})" if title else ""
    if not await chat.confirm(f"delete {which}{name} and all that was said in it? y/N "):
        chat.say("nothing was deleted")
        return
    await chat.client.end_session(session_id)
    chat.say(f"deleted session {session_id}")
    if is_own:
        await chat.go_to(None)
    chat.deleted(session_id)


async def _history(chat: Chat, argument: str) -> None:
    if argument and not (argument.isdecimal() and int(argument)):
        raise ValueError("give a number of messages, such as /history 20")
    messages = branch(await chat.client.conversation())
    if not messages:
        chat.say("nothing was said in this session yet")
    for message in messages[-int(argument or _HISTORY_DEFAULT) :]:
        chat.say(f"{message.role}: {clean(message.content)}\n")


async def _regenerate(chat: Chat, _argument: str) -> None:
    asked = await _last_question(chat)
    chat.note(f"once more: {sessions.shortened(asked.content, 60)}")
    await chat.ask(None, parent_id=asked.id)


async def _edit(chat: Chat, _argument: str) -> None:
    asked = await _last_question(chat)
    chat.draft = Draft(asked.content, asked.parent_id or "")
    chat.note("change the question and send it; Ctrl-C leaves the conversation as it is")


async def _export(chat: Chat, argument: str) -> None:
    path = files.path_of(argument)
    if path.suffix.lower() not in files.SUFFIXES:
        raise ValueError(f"let the file's name end in {' or '.join(files.SUFFIXES)}")
    messages = branch(await chat.client.conversation())
    if not messages:
        raise ValueError("nothing was said in this session yet")
    title = await chat.title_of(chat.client.session_id)
    found = files.transcript(messages, title=title, session_id=chat.client.session_id)
    try:
        files.write(found, path, mode="x")
    except FileExistsError:
        if not await chat.confirm(f"replace {clean_line(str(path))}? y/N "):
            chat.say("nothing was written")
            return
        files.write(found, path, mode="w")
    chat.say(f"wrote {len(messages)} message{'' if len(messages) == 1 else 's'} to {clean_line(str(path))}")


async def _import(chat: Chat, argument: str) -> None:
    messages = files.read(files.path_of(argument))
    await chat.client.import_messages(messages)
    count = "1 message" if len(messages) == 1 else f"{len(messages)} messages"
    chat.say(f"imported {count}; the next question follows the last of them")


SESSION_ACTIONS: Final[dict[str, Action]] = {
    "sessions": _sessions,
    "session": _session,
    "new": _new,
    "title": _title,
    "forget": _forget,
    "history": _history,
    "regenerate": _regenerate,
    "edit": _edit,
    "export": _export,
    "import": _import,
}


async def _chosen(chat: Chat, argument: str) -> str:
    """The id of the session that was meant.

    Raises:
        ValueError: there is none, as far as is known.
    """
    if not chat.is_online:
        if _is_uuid(argument):
            return argument.lower()
        raise ValueError("not connected: give the session's whole id")
    entries = await chat.list_sessions()
    try:
        return sessions.pick(argument, entries, shown=chat.shown_sessions)
    except ValueError:
        if len(entries) < sessions.MOST_LISTED or not _is_uuid(argument):
            raise
        return argument.lower()


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


async def _last_question(chat: Chat) -> HistoryMessage:
    asked = question(await chat.client.conversation())
    if asked is None:
        raise ValueError("nothing was asked in this session yet")
    return asked
