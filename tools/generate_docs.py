"""Writes what can be derived from the code: tables in PROTOCOL.md, the JSON Schema, the example configuration.

Run `python tools/generate_docs.py` after a change to messages, codes or configuration; with `--check` nothing is
written and the exit status is 1 when something differs. A test runs the check.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from llmws import config
from llmws.protocol import schema

ROOT = Path(__file__).resolve().parent.parent


def with_parts(text: str, parts: dict[str, str]) -> str:
    """The text with what stands between `<!-- generated:NAME -->` and `<!-- /generated -->` replaced.

    Raises:
        ValueError: a part has no place in the text, or a place has no part.
    """
    places = re.findall(r"<!-- generated:([\w-]+) -->", text)
    if sorted(places) != sorted(parts):
        raise ValueError(f"the text has places for {sorted(places)}, and the parts are {sorted(parts)}")
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- generated:{name} -->\n).*?(<!-- /generated -->)", re.DOTALL)
        text, replaced = pattern.subn(lambda match, part=part: f"{match[1]}\n{part}\n{match[2]}", text)
        if replaced != 1:
            raise ValueError(f"the place for {name} is not closed")
    return text


def documents(root: Path) -> dict[Path, str]:
    """The generated documents: where each belongs and what it must contain."""
    parts = {
        "client-messages": schema.message_tables(schema.client_messages()),
        "server-messages": schema.message_tables(schema.server_messages()),
        "parts": schema.part_tables(),
        "error-codes": schema.error_code_table(),
        "close-codes": schema.close_code_table(),
    }
    protocol = root / "PROTOCOL.md"
    return {
        protocol: with_parts(protocol.read_text(), parts),
        root / "docs" / "protocol.schema.json": json.dumps(schema.json_schema(), indent=2) + "\n",
        root / "config.example.json": config.to_json(config.Config()),
    }


def main(arguments: list[str]) -> int:
    """Writes the documents, or with `--check` says which are out of step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something differs")
    check = parser.parse_args(arguments).check
    differing = [
        (path, text) for path, text in documents(ROOT).items() if not path.exists() or path.read_text() != text
    ]
    for path, text in differing:
        print(f"{path.relative_to(ROOT)}: {'out of step' if check else 'written'}")
        if not check:
            path.write_text(text)
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
