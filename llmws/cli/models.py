"""`llmws models`: what there is to serve, on which tier, and what it would take. No weight is read."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from llmws.catalog.catalog import Catalog
    from llmws.config import Config
    from llmws.engine.forecast import Forecast, Sort
    from llmws.places import Places

Configuration = Callable[[argparse.Namespace], "tuple[Config, Places]"]

_GB = 1e9
_UNTRIED = "the self-check at load decides"


class _Row(NamedTuple):
    """A model of the list."""

    name: str
    size_bytes: int
    source: str
    type: str
    tier: str
    reason: str


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    add_config: Callable[[argparse.ArgumentParser], None],
    configuration: Configuration,
) -> None:
    """Adds `models` and its actions.

    Args:
        commands: the subcommands of `llmws`.
        add_config: adds the options that say where the configuration and the state are.
        configuration: reads them.
    """
    models = commands.add_parser("models", help="list the models, estimate what one takes", description=_list.__doc__)
    actions = models.add_subparsers(metavar="[ACTION]")
    # What an action is not told stays as it was told before it.
    shown = actions.add_parser(
        "list", help="list the models", description=_list.__doc__, argument_default=argparse.SUPPRESS
    )
    about = "Tells the memory that a model takes and the longest context that fits, from its files' headers alone."
    estimate = actions.add_parser(
        "estimate", help="tell what a model takes", description=about, argument_default=argparse.SUPPRESS
    )
    estimate.add_argument("model", metavar="PATH", help="a model's folder, its config.json alone, or a listed name")
    estimate.set_defaults(vram=None, context=None, dtype=None)
    estimate.add_argument(
        "--vram", type=_gigabytes, metavar="GB", help="plan for a GPU of that size (default: this machine)"
    )
    estimate.add_argument("--context", type=_tokens, metavar="N", help="tokens of a stream (default: a table)")
    estimate.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as configured")
    for parser, act in ((models, _list), (shown, _list), (estimate, _estimate)):
        add_config(parser)
        parser.add_argument("--models-dir", type=Path, metavar="DIR", help="folder of the downloaded models")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(run=lambda options: options.act(options, *configuration(options)), act=act)


def _gigabytes(text: str) -> int:
    try:
        amount = float(text)
    except ValueError:
        amount = 0.0
    if not 0 < amount < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of gigabytes")
    return int(amount * _GB)


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens")
    return int(text)


def _list(options: argparse.Namespace, config: Config, places: Places) -> int:
    """Lists the models that can be served, and the tier that each would get; the others with the reason."""
    from llmws.engine.local import import_transformers  # noqa: PLC0415 - `--help` stays free of imports

    import_transformers(config.optimization)
    from llmws.engine.forecast import suitability  # noqa: PLC0415 - imports torch
    from llmws.errors import ModelInvalidError  # noqa: PLC0415

    catalog = _catalog(places)
    models = catalog.scan()
    rows = []
    for model in models:
        try:
            found = suitability(Path(model.location), config.optimization)
        except (ModelInvalidError, OSError) as error:
            rows.append(_Row(model.name, model.size_bytes, model.source, "", "", str(error)))
        else:
            kind = found.model_type, found.tier, found.tier_reason or _UNTRIED
            rows.append(_Row(model.name, model.size_bytes, model.source, *kind))
    problems = [{"path": problem.path, "reason": problem.reason} for problem in catalog.problems()]
    folder = places.models_dir.resolve()
    if not problems and not any(Path(model.location).parent == folder for model in models):
        print(f"llmws: no models in {places.models_dir}", file=sys.stderr)
    if options.json:
        return _print_json({"models": [row._asdict() for row in rows], "not_offered": problems})
    for row in rows:
        print(row.name, _amount(row.size_bytes), row.source, row.type, row.tier, row.reason, sep="\t")
    for problem in problems:
        print(f"llmws: {problem['path']} is not offered: {problem['reason']}", file=sys.stderr)
    return 0


def _estimate(options: argparse.Namespace, config: Config, places: Places) -> int:
    from llmws.catalog.catalog import refusal  # noqa: PLC0415 - `--help` stays free of imports
    from llmws.config import override  # noqa: PLC0415
    from llmws.engine.local import import_transformers  # noqa: PLC0415
    from llmws.errors import ModelInvalidError, printable  # noqa: PLC0415
    from llmws.model_config import check_config  # noqa: PLC0415

    folder = _folder(options.model, places)
    if folder is None:
        print(f"llmws: {_missing(options.model, places)}", file=sys.stderr)
        return 1
    if options.dtype is not None:
        config = override(config, {"optimization": {"dtype": options.dtype}})
    try:
        check_config(folder)
        import_transformers(config.optimization)
        from llmws.engine.forecast import forecast  # noqa: PLC0415 - imports torch

        found = forecast(folder, config.optimization, config.limits, vram_bytes=options.vram, context=options.context)
    except (ModelInvalidError, OSError) as error:
        print(f"llmws: {printable(options.model)}: {error}", file=sys.stderr)
        return 1
    if Path(options.model).name != "config.json" and (reason := refusal(folder)) is not None:
        print(f"llmws: {printable(options.model)} is not offered: {reason}", file=sys.stderr)
    if options.json:
        return _print_json(found)
    for line in _report(found, has_weights=any(folder.glob("*.safetensors"))):
        print(line)
    return 0


def _report(found: Forecast, *, has_weights: bool) -> Sequence[str]:
    """The figures for people."""
    tier = _UNTRIED if found.tier == "fast" else found.tier_reason
    counted = "" if has_weights else ", counted from config.json"
    lines = [
        f"type         {found.type}, {found.dtype} on {found.device}",
        f"tier         {found.tier} ({tier})",
        f"weights      {_amount(found.weights_bytes)} of {_amount(found.budget_bytes)} that models may take{counted}",
        *(f"{'cache' if n == 0 else '':12} {_sort(sort)}" for n, sort in enumerate(found.sorts)),
    ]
    if found.problem:
        return [*lines, f"max context  none: {found.problem}"]
    knows = f"the model knows {found.positions}" if found.positions else "the model sets no bound"
    return [
        *lines,
        f"max context  {found.max_context} tokens ({knows})",
        f"{'context':>12} {'cache':>12} {'side by side':>12}",
        *(
            f"{each.context:>12} {_amount(each.cache_bytes):>12} {each.side_by_side or 'too long':>12}"
            for each in found.streams
        ),
    ]


def _sort(sort: Sort) -> str:
    parts = []
    if sort.token_bytes:
        kept = "of each token" if sort.window is None else f"of each of the last {sort.window} tokens"
        parts.append(f"{_amount(sort.token_bytes)} {kept}")
    if sort.state_bytes:
        parts.append(f"{_amount(sort.state_bytes)} of state")
    layers = f"{sort.layers} layer{'' if sort.layers == 1 else 's'}"
    return f"{' and '.join(parts) or 'nothing'} ({layers})"


def _folder(text: str, places: Places) -> Path | None:
    """The folder that is meant; None if there is none."""
    path = Path(text)
    with contextlib.suppress(OSError):  # no path at all: it is too long
        if path.is_dir():
            return path.resolve()
        if path.is_file() and path.name == "config.json":
            return path.resolve().parent
    named = [model for model in _catalog(places).scan() if text in (model.name, model.path)]
    return Path(named[0].location) if named else None


def _missing(text: str, places: Places) -> str:
    """Why there is no folder of a model."""
    problems = _catalog(places).problems()
    refused = next((each for each in problems if text in (each.path, each.path.rpartition("/")[2])), None)
    if refused is not None:
        return f"{refused.path} is not offered: {refused.reason}"
    from llmws.errors import printable  # noqa: PLC0415 - `--help` stays free of imports

    return f"there is no model {printable(text)}: neither a folder nor a listed name"


def _catalog(places: Places) -> Catalog:
    from llmws.catalog.catalog import Catalog  # noqa: PLC0415 - `--help` stays free of imports

    logging.basicConfig(level=logging.ERROR)  # what a scan warns of is said in the list
    return Catalog(places.models_dir, places.own_models_dir, places.bundled_dir)


def _print_json(value: object) -> int:
    import msgspec  # noqa: PLC0415 - `--help` stays free of imports

    print(msgspec.json.encode(value).decode())
    return 0


def _amount(size_bytes: int) -> str:
    """Bytes for people."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
