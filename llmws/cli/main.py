"""Arguments of `llmws`, and what each command does with them."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmws import __version__
from llmws.cli import keys, models

if TYPE_CHECKING:
    from llmws.config import Config
    from llmws.places import Places
    from llmws.store.tokens import TokenFile


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status; 78 (sysexits: EX_CONFIG) for a fault of the configuration."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["chat"]:
        from llm_cli.main import main as chat  # noqa: PLC0415 - the chat brings its own arguments and imports

        return chat(arguments[1:])
    options = _parser().parse_args(arguments)
    from llmws.errors import ConfigError  # noqa: PLC0415 - `--version` and `--help` stay free of imports

    try:
        status = int(options.run(options))
        sys.stdout.flush()
    except KeyboardInterrupt:  # while it began; from then on the server ends in order
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `llmws models | head`: as if the signal, which Python ignores, had ended it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit
        return 128 + signal.SIGPIPE
    except ConfigError as error:
        print(f"llmws: {error}", file=sys.stderr)
        return os.EX_CONFIG
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("llmws", "llm_cli"):
            raise
        text = (
            f"llmws: this command needs the package {error.name}; install the server with: pip install 'llmws[server]'"
        )
        print(text, file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmws", description="A self-hosted LLM session server.")
    parser.add_argument("--version", action="version", version=f"llmws {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="run the server", description="Runs the server until SIGTERM or Ctrl-C.")
    _add_config(serve)
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default 8765); 0 picks a free one")
    serve.add_argument("--models-dir", type=Path, metavar="DIR", help="folder of the downloaded models")
    serve.add_argument("--model", metavar="NAME", help="model to begin with")
    serve.add_argument("--no-auth", action="store_true", help="ask for no token; loopback addresses only")
    serve.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate and its chain, PEM: speak TLS")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's private key, PEM")
    serve.add_argument("--behind-proxy", action="store_true", help="a proxy that server.proxies lists speaks TLS")
    serve.add_argument("--insecure-lan", action="store_true", help="listen beyond loopback without TLS")
    serve.add_argument("--ready-file", type=Path, metavar="PATH", help="write url, port and pid there once listening")
    serve.set_defaults(run=_serve)

    commands.add_parser("chat", help="chat in the terminal; the same as llm", add_help=False)

    token = commands.add_parser("token", help="manage tokens").add_subparsers(metavar="ACTION", required=True)
    create = token.add_parser("create", help="make a token and print it", description="Makes a token and prints it.")
    _add_config(create)
    create.add_argument("--name", required=True, help="who it is for; sessions belong to this name")
    create.add_argument("--role", required=True, choices=("user", "admin"), help="what it may do")
    create.set_defaults(run=_create_token)
    shown = token.add_parser("list", help="list the tokens", description="Lists the tokens; none can be shown again.")
    _add_config(shown)
    shown.set_defaults(run=_list_tokens)
    revoke = token.add_parser("revoke", help="make a token invalid", description="Makes a token invalid at once.")
    _add_config(revoke)
    revoke.add_argument("id", help="as `llmws token list` shows it")
    revoke.set_defaults(run=_revoke_token)
    keys.add_commands(commands, _add_config, _configuration)
    models.add_commands(commands, _add_config, _configuration)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file, made if it is missing")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="folder of sessions, keys and tokens")


def _configuration(
    options: argparse.Namespace, changes: Mapping[str, Mapping[str, object]] | None = None
) -> tuple[Config, Places]:
    from llmws import config, places  # noqa: PLC0415

    path = places.plain(options.config or places.default_config_path())
    is_new = options.config is not None and not path.exists()
    loaded = config.override(config.load(path), changes or {})
    if is_new:
        print(f"llmws: made {path} with the defaults", file=sys.stderr)
    located = places.locate(
        loaded,
        path.parent,
        state_dir=options.state_dir,
        models_dir=getattr(options, "models_dir", None),
    )
    return loaded, located


def _serve(options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    changes: dict[str, dict[str, object]] = {"server": {}, "model": {}, "auth": {}}
    if options.host is not None:
        changes["server"]["host"] = options.host
    if options.port is not None:
        changes["server"]["port"] = options.port
    for name in ("insecure_lan", "behind_proxy"):
        if getattr(options, name):
            changes["server"][name] = True
    for name in ("tls_cert", "tls_key"):
        if getattr(options, name) is not None:
            changes["server"][name] = str(getattr(options, name).absolute())
    if options.model is not None:
        changes["model"]["name"] = options.model
    if options.no_auth:
        changes["auth"]["required"] = False
    loaded, located = _configuration(options, changes)
    from llmws.app import serve  # noqa: PLC0415 - uvicorn and the store

    serve(loaded, located, ready_file=options.ready_file)
    return 0


def _create_token(options: argparse.Namespace) -> int:
    print(_tokens(options, to_change=True).create(options.name, options.role))
    return 0


def _list_tokens(options: argparse.Namespace) -> int:
    for entry in _tokens(options, to_change=False).list():
        print(entry.id, entry.role, entry.principal, entry.note, sep="\t")
    return 0


def _revoke_token(options: argparse.Namespace) -> int:
    if _tokens(options, to_change=True).revoke(options.id):
        return 0
    print(f"llmws: there is no token {options.id}; `llmws token list` shows them", file=sys.stderr)
    return 1


def _tokens(options: argparse.Namespace, *, to_change: bool) -> TokenFile:
    from llmws.store.lock import check_owner, prepare_state_folder  # noqa: PLC0415
    from llmws.store.tokens import TokenFile  # noqa: PLC0415

    _, located = _configuration(options)
    prepare_state_folder(located.state_dir)
    path = located.state_dir / "tokens.json"
    if to_change:
        check_owner(path)
    return TokenFile(path)
