"""What the chat's commands do.

Knows the client and the chat, no keyboard. Invariant: every command of the table has exactly one action here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from llm_cli import commands
from llm_cli.chat import Chat
from llm_cli.commands import Call, nearest
from llm_cli.progress import loading
from llm_cli.render import clean, clean_line
from llm_cli.session_actions import SESSION_ACTIONS, Action
from llm_cli.transcript import path_of
from llmws.client import RequestRejectedError, image_file
from llmws.client.images import MAX_IMAGES
from llmws.client.requests import SamplingValue
from llmws.protocol import ErrorCode
from llmws.protocol.messages import ModelEntry, Sampling

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
    command = call.command
    if not call.argument and command.arguments and not command.arguments.startswith("["):
        raise ValueError(f"/{command.name} needs more: /{command.name} {command.arguments}")
    if command.needs != "nothing" and not chat.is_online:
        raise ValueError(f"/{command.name} needs a connection, and there is none now")
    if command.needs in ("session", "admin"):
        chat.conversation.take_over()
    try:
        await ACTIONS[command.name](chat, call.argument)
    except RequestRejectedError as error:
        if command.needs != "admin" or error.code != ErrorCode.FORBIDDEN:
            raise
        chat.is_admin = False
        text = f"/{command.name} needs an admin's token; `llmws token create --role admin` makes one"
        raise ValueError(text) from None


async def _help(chat: Chat, _argument: str) -> None:
    columns = shutil.get_terminal_size().columns
    chat.say(commands.help_text(is_online=chat.is_online, is_admin=chat.is_admin, columns=columns))


async def _model(chat: Chat, argument: str) -> None:
    if argument:
        if chat.is_online:
            await chat.list_models()
        chat.model = _listed(chat, argument)
    present = chat.view.model or "none"
    chat.say(f"model: {chat.model}" if chat.model else f"model: the server's present one ({present})")


async def _models(chat: Chat, _argument: str) -> None:
    models = await chat.list_models()
    if not models:
        chat.say("there is no model on the server")
        return
    rows = [
        (_standing(chat, model), clean_line(model.name), f"{model.size_mb:,.1f} MB", clean_line(model.path))
        for model in models
    ]
    chat.say(_table(rows))


def _standing(chat: Chat, model: ModelEntry) -> str:
    if not model.loaded:
        return ""
    return "default" if clean_line(model.name) == chat.view.model else "loaded"


async def _switch(chat: Chat, argument: str) -> None:
    await chat.list_models()
    name = _listed(chat, argument)
    with loading() as show:
        switched = await chat.client.switch_model(name, show)
    chat.model = None
    chat.view = msgspec.structs.replace(chat.view, model=clean_line(switched.name))
    chat.say(f"the model is now {clean_line(switched.name)}, with {switched.max_context} tokens of context")


async def _delete(chat: Chat, argument: str) -> None:
    sizes_mb = {model.name: model.size_mb for model in await chat.list_models()}
    name = _listed(chat, argument)
    if not await chat.confirm(f"delete {clean_line(name)} ({sizes_mb.get(name, 0):,.1f} MB)? y/N "):
        chat.say("nothing was deleted")
        return
    deleted = await chat.client.delete_model(name)
    chat.say(f"deleted {clean_line(deleted.model_name)}")


async def _config(chat: Chat, argument: str) -> None:
    config = await chat.client.config(**dict(settings(argument)))
    values = msgspec.structs.asdict(config)
    chat.say(_table((name, json.dumps(value)) for name, value in values.items() if value is not None))


async def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.system = "" if argument == "-" else argument
    chat.say(f"system message: {clean(chat.system)}" if chat.system else "no system message of this chat's own")


async def _image(chat: Chat, argument: str) -> None:
    if argument == "-":
        chat.images.clear()
    elif argument and len(chat.images) == MAX_IMAGES:
        raise ValueError(f"{MAX_IMAGES} images go with the next question already; no more are taken")
    elif argument:
        chat.images.append(image_file(path_of(argument)))
    count = "1 image goes" if len(chat.images) == 1 else f"{len(chat.images)} images go"
    chat.say(f"{count} with the next question" if chat.images else "no image goes with the next question")


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


async def _cancel(chat: Chat, _argument: str) -> None:
    running = chat.client.running()
    for request_id in running:
        chat.client.cancel(request_id)
    chat.say(f"cancelled {len(running)}" if running else "nothing runs in this session")


async def _quit(_chat: Chat, _argument: str) -> None:
    raise LeaveError


ACTIONS: Final[dict[str, Action]] = {
    "help": _help,
    "model": _model,
    "models": _models,
    "switch": _switch,
    "delete": _delete,
    "config": _config,
    "system": _system,
    "image": _image,
    "resources": _resources,
    "status": _status,
    "cancel": _cancel,
    "quit": _quit,
    **SESSION_ACTIONS,
}


def _listed(chat: Chat, word: str) -> str:
    """The name of the model with that name or path.

    Raises:
        ValueError: there is no such model, as far as is known.
    """
    names = [model.name for model in chat.models]
    if word in names or not names:
        return word
    found = next((model.name for model in chat.models if model.path == word), None)
    if found is None:
        raise ValueError(f"there is no model {word}; {nearest(word, names) or '/models lists them'}")
    return found


def settings(argument: str) -> Iterator[tuple[str, SamplingValue]]:
    """The settings in `name=value name=value`; a value is JSON, spaces and all, or else a word.

    Raises:
        ValueError: it is something else.
    """
    rest = argument.strip()
    while rest:
        word = rest.split(maxsplit=1)[0]
        name, equals, _ = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        if name not in SETTINGS:
            meant = nearest(name, SETTINGS) or f"the settings are {', '.join(SETTINGS)}"
            raise ValueError(f"there is no setting {name}; {meant}")
        value, rest = _value(rest[len(name) + 1 :])
        yield name, value
        rest = rest.lstrip()


def _value(text: str) -> tuple[SamplingValue, str]:
    """The value that the text begins with, and what follows it."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        end = 0
    if end == 0 or not (end == len(text) or text[end].isspace()):
        end = next((place for place, char in enumerate(text) if char.isspace()), len(text))
        return text[:end], text[end:]
    # JSON has one kind of number: 1e3 is as whole as 1000.
    return (int(value) if isinstance(value, float) and value.is_integer() else value), text[end:]


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    """Columns padded to their widest cell."""
    cells = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
