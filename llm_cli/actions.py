"""What the chat's commands do.

Knows the client and the chat, no keyboard. Invariant: every command of the table has exactly one action here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import msgspec

from llm_cli import commands
from llm_cli.chat import Chat
from llm_cli.commands import Call
from llm_cli.progress import loading
from llm_cli.render import clean, clean_line
from llmws.client.requests import SamplingValue
from llmws.protocol.messages import Sampling

_HISTORY_DEFAULT: Final = 10

SETTINGS: Final = Sampling.__struct_fields__
"""Names that `/config` takes."""


class LeaveError(Exception):
    """The person wants to leave the chat."""


async def run(chat: Chat, call: Call) -> None:
    """Does what a command says.

    Raises:
        LeaveError: it was /quit.
        ClientError: the server refused or is gone.
        ValueError: the argument is not one.
    """
    if not commands.is_available(call.command, is_online=chat.is_online):
        chat.say(f"/{call.command.name} needs a connection")
        return
    await ACTIONS[call.command.name](chat, call.argument)


async def _help(chat: Chat, _argument: str) -> None:
    chat.say(commands.help_text(is_online=chat.is_online, columns=shutil.get_terminal_size().columns))


async def _model(chat: Chat, argument: str) -> None:
    if argument:
        if chat.is_online:
            chat.model_names = [model.name for model in await chat.client.models()]
        if chat.model_names and argument not in chat.model_names:
            raise ValueError(f"there is no model {argument}; /models lists them")
        chat.model = argument
    present = chat.view.model or "none"
    chat.say(f"model: {chat.model}" if chat.model else f"model: the server's present one ({present})")


async def _models(chat: Chat, _argument: str) -> None:
    models = await chat.client.models()
    chat.model_names = [model.name for model in models]
    if not models:
        chat.say("there is no model on the server")
    rows = [
        ("*" if model.loaded else "", clean_line(model.name), f"{model.size_mb:,.1f} MB", clean_line(model.path))
        for model in models
    ]
    chat.say(_table(rows))


async def _switch(chat: Chat, argument: str) -> None:
    name = _wanted(argument, "a model's name; /models lists them")
    with loading() as show:
        switched = await chat.client.switch_model(name, show)
    chat.model = None
    chat.view = msgspec.structs.replace(chat.view, model=clean_line(switched.name))
    chat.say(f"the model is now {clean_line(switched.name)}, with {switched.max_context} tokens of context")


async def _delete(chat: Chat, argument: str) -> None:
    name = _wanted(argument, "a model's name; /models lists them")
    entry = next((model for model in await chat.client.models() if model.name == name), None)
    if entry is None:
        raise ValueError(f"there is no model {name}; /models lists them")
    if not await chat.confirm(f"delete {clean_line(name)} ({entry.size_mb:,.1f} MB)? y/N "):
        chat.say("nothing was deleted")
        return
    deleted = await chat.client.delete_model(name)
    chat.say(f"deleted {clean_line(deleted.model_name)}")


async def _config(chat: Chat, argument: str) -> None:
    config = await chat.client.config(**dict(_setting(word) for word in argument.split()))
    values = msgspec.structs.asdict(config)
    chat.say(_table((name, json.dumps(value)) for name, value in values.items() if value is not None))


async def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.system = "" if argument == "-" else argument
    chat.say(f"system message: {clean(chat.system)}" if chat.system else "no system message of this chat's own")


async def _resources(chat: Chat, _argument: str) -> None:
    found = await chat.client.resources()
    rows = [("model", clean_line(found.model.name or "none"))]
    if (cuda := found.cuda) is not None:
        rows.append(("device", f"{clean_line(cuda.device)}, compute capability {clean_line(cuda.compute_capability)}"))
        rows.append(("memory", f"{cuda.free_gb:.1f} of {cuda.total_gb:.1f} GB free"))
        if cuda.utilization is not None:
            rows.append(("utilization", f"{cuda.utilization:.0f} %"))
    rows.append(("load", f"{found.engine.running} running, {found.engine.queued} waiting"))
    rows.append(("rate", f"{found.engine.tokens_per_s:.1f} tokens/s"))
    rows.append(("host", f"{found.host.cpu} CPUs, {found.host.ram_gb:.1f} GB"))
    chat.say(_table(rows))


async def _status(chat: Chat, _argument: str) -> None:
    status = await chat.client.status()
    rows = [
        ("server", chat.client.url),
        ("model", clean_line(status.model or "none")),
        ("device", clean_line(status.memory.device)),
        ("memory", f"{status.memory.free_gb:.1f} of {status.memory.total_gb:.1f} GB free"),
        ("sessions", str(status.sessions)),
        ("waiting", str(status.queue)),
        ("up for", f"{status.uptime_s / 3600:.1f} h"),
        ("round trip", f"{await chat.client.ping() * 1000:.1f} ms"),
    ]
    chat.say(_table(rows))


async def _session(chat: Chat, _argument: str) -> None:
    if (session_id := chat.client.session_id) is None:
        chat.say("there is no session yet: not connected")
    else:
        chat.say(f"session {session_id}\nto come back: llm --session {session_id}")


async def _new(chat: Chat, _argument: str) -> None:
    if chat.conversation.was_used:
        chat.say(f"to come back to this session: llm --session {chat.client.session_id}")
    await chat.new_session()


async def _history(chat: Chat, argument: str) -> None:
    if argument and not argument.isdecimal():
        raise ValueError("give a number of messages")
    limit = int(argument) if argument else _HISTORY_DEFAULT
    page = await chat.client.history(limit=max(1, min(limit, 200)))
    if not page.messages:
        chat.say("nothing was said in this session yet")
    for message in page.messages:
        chat.say(f"{message.role}: {clean(message.content)}\n")


async def _cancel(chat: Chat, _argument: str) -> None:
    running = chat.client.running()
    for request_id in running:
        chat.client.cancel(request_id)
    chat.say(f"cancelled {len(running)}" if running else "nothing runs in this session")


async def _quit(_chat: Chat, _argument: str) -> None:
    raise LeaveError


ACTIONS: Final[dict[str, Callable[[Chat, str], Awaitable[None]]]] = {
    "help": _help,
    "model": _model,
    "models": _models,
    "switch": _switch,
    "delete": _delete,
    "config": _config,
    "system": _system,
    "resources": _resources,
    "status": _status,
    "session": _session,
    "new": _new,
    "history": _history,
    "cancel": _cancel,
    "quit": _quit,
}


def _wanted(argument: str, what: str) -> str:
    if not argument:
        raise ValueError(f"give {what}")
    return argument


def _setting(word: str) -> tuple[str, SamplingValue]:
    """`name=value`, the value as JSON or, where it is none, as text."""
    name, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r} is not NAME=VALUE")
    if name not in SETTINGS:
        raise ValueError(f"there is no setting {name}; the settings are {', '.join(SETTINGS)}")
    try:
        value = json.loads(text)
    except ValueError:
        return name, text
    # JSON has one kind of number: 1e3 is as whole as 1000.
    return name, int(value) if isinstance(value, float) and value.is_integer() else value


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    """Columns padded to their widest cell."""
    cells = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
