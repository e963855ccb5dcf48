"""How a good folder becomes a poisoned one: each function makes what does it, given the folder and the canary."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.security.poisoned.canary import Canary
from tests.security.poisoned.folders import SHAPES, edit, unlink_weights, weights

Spoil = Callable[[Path, Canary], object]


def config(**changes: object) -> Spoil:
    return lambda folder, canary: edit(folder / "config.json", changes)


def with_code(changes: Mapping[str, object], *, file: str = "config.json", script: str = "evil.py") -> Spoil:
    """A script that leaves a mark, and a file that names it."""

    def spoil(folder: Path, canary: Canary) -> None:
        path = folder / script
        path.parent.mkdir(exist_ok=True)
        name = folder.name
        path.write_text(f"{canary.code(name)}\nclass Evil: pass\ndef generate(*_, **__): {canary.code(name)}\n")
        edit(folder / file, changes)

    return spoil


def template(source: str) -> Spoil:
    def spoil(folder: Path, canary: Canary) -> None:
        mark, secret = canary.mark(folder.name), canary.secret
        (folder / "chat_template.jinja").write_text(source.replace("MARK", str(mark)).replace("SECRET", str(secret)))

    return spoil


def header(change: Mapping[str, object] | bytes) -> Spoil:
    return lambda folder, canary: weights(folder / "model.safetensors", seed=7, header=change)


def index(name: str) -> Spoil:
    """An index in which a weight lies in another file."""

    def spoil(folder: Path, canary: Canary) -> None:
        unlink_weights(folder)
        names = dict.fromkeys(SHAPES, name.replace("SECRET", str(canary.secret)))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    return spoil


def pickled(*names: str, instead: bool = False) -> Spoil:
    """Pickles that leave a mark, beside the weights or instead of them."""

    def spoil(folder: Path, canary: Canary) -> None:
        if instead:
            unlink_weights(folder)
        for name in names:
            (folder / name).write_bytes(canary.pickled(folder.name))

    return spoil


def zipped(folder: Path, canary: Canary) -> None:
    """As `torch.save` writes: a zip with a pickle in it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", canary.pickled(folder.name))
        file.writestr("archive/version", "3\n")
    (folder / "model.safetensors").write_bytes(archive.getvalue())


def linked(name: str) -> Spoil:
    def spoil(folder: Path, canary: Canary) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(canary.secret)

    return spoil


def hard_linked(folder: Path, canary: Canary) -> None:
    (folder / "model.safetensors").rename(canary.marks.parent / "elsewhere")
    os.link(canary.marks.parent / "elsewhere", folder / "model.safetensors")


def pipe(folder: Path, canary: Canary) -> None:
    os.mkfifo(folder / "generation_config.json")


def adapter(folder: Path, canary: Canary) -> None:
    edit(folder / "adapter_config.json", {"base_model_name_or_path": "evil/repo", "peft_type": "LORA"})


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path, canary: Canary) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def text(name: str, content: str) -> Spoil:
    return lambda folder, canary: (folder / name).write_text(content)


def growing(content: dict[str, Any]) -> None:
    double = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], *[double] * 15]}


def nested(depth: int) -> str:
    return '{"x":' * depth + "1" + "}" * depth
