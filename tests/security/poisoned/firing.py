"""The same repositories without the product's walls: their payloads do fire, so that a silent canary means something.

Runs hostile code on purpose, in the process of the gauntlet when all is over. Each function returns whether what the
repository is made for has happened.
"""

from __future__ import annotations

import contextlib
import pickle
import runpy
import zipfile
from collections.abc import Callable
from pathlib import Path

import jinja2
from jinja2.ext import LoopControlExtension
from tokenizers import Tokenizer

from tests.security.poisoned.canary import SECRET
from tests.security.poisoned.repositories import ESCAPES

Fire = Callable[[Path, Path], bool]
"""Takes the repository and the folder of the marks."""

UNPROVABLE = {
    "auto-map-of-another-repository": "it would have to be fetched, and there is no network in tests",
    "nested-auto-map": "this version of transformers follows none in a nested part; vLLM did",
    "trust": "it only opens the door for other keys",
    "custom-generate-named": "it would have to be fetched",
    "generation-config": "it would have to be fetched",
    "custom-pipelines": "this version of transformers knows them no more",
    "kernel": "the package that fetches and loads kernels is not installed",
    "public-kernel": "likewise",
    "experts-kernel": "likewise",
    "quantisation": "the packages that read quantised weights are not installed",
    "backbone": "it would have to be fetched",
    "adapter": "the package that reads adapters is not installed",
}
"""Repositories that reach for code and whose canary cannot be shown to fire here, each with the reason."""


def trusting(auto: str) -> Fire:
    """A class of transformers that is told to trust the repository."""

    def fire(folder: Path, marks: Path) -> bool:
        import transformers  # takes seconds, and the table is read by tests that run nothing of it

        with contextlib.suppress(Exception):  # the payload has run by the time that transformers finds it wanting
            getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, local_files_only=True)
        return (marks / folder.name).exists()

    return fire


def unpickled(name: str) -> Fire:
    def fire(folder: Path, marks: Path) -> bool:
        pickle.loads((folder / name).read_bytes())
        return (marks / folder.name).exists()

    return fire


def unzipped(folder: Path, marks: Path) -> bool:
    with zipfile.ZipFile(folder / "model.safetensors") as archive:
        pickle.loads(archive.read("archive/data.pkl"))
    return (marks / folder.name).exists()


def started(folder: Path, marks: Path) -> bool:
    runpy.run_path(str(folder / "modeling_llama.py"))
    return (marks / folder.name).exists()


def rendered(folder: Path) -> str:
    """What a plain environment makes of the template."""
    plain = jinja2.Environment(loader=jinja2.FileSystemLoader("/"), extensions=[LoopControlExtension])
    with contextlib.suppress(Exception):
        return plain.from_string((folder / "chat_template.jinja").read_text()).render(messages=[], x=1)
    return ""


def escaped(folder: Path, marks: Path) -> bool:
    rendered(folder)
    return (marks / folder.name).exists()


def told(folder: Path, marks: Path) -> bool:
    return SECRET in rendered(folder)


def included(folder: Path, marks: Path) -> bool:
    """The file is parsed as a template, whose text an import does not show but for the loader's word."""
    loader = jinja2.FileSystemLoader("/")
    source = (folder / "chat_template.jinja").read_text()
    return SECRET in loader.get_source(jinja2.Environment(), source.split("'")[1])[0]


def read(name: str) -> Fire:
    return lambda folder, marks: SECRET in (folder / name).read_text()


def labelled(folder: Path, marks: Path) -> bool:
    import transformers

    return len(transformers.PreTrainedConfig(num_labels=5000).id2label) == 5000


def grown(folder: Path, marks: Path) -> bool:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return len(tokenizer.decode(tokenizer.encode("e").ids)) == 2**15


FIRES: dict[str, Fire] = {
    "auto-map": trusting("AutoConfig"),
    "auto-map-of-an-unknown-type": trusting("AutoConfig"),
    "custom-generate": trusting("AutoModelForCausalLM"),
    "tokenizer-code": trusting("AutoTokenizer"),
    "processor-code": trusting("AutoProcessor"),
    "scripts": started,
    "pickle": unpickled("pytorch_model.bin"),
    "pickles-beside": unpickled("optimizer.pt"),
    "disguised-pickle": unpickled("model.safetensors"),
    "disguised-zip": unzipped,
    "linked-configuration": read("config.json"),
    "linked-weights": read("model.safetensors"),
    "index-out": read("../../canary/secret.safetensors"),
    "include": told,
    "import": included,
    "environment": told,
    "labels": labelled,
    "decoder-bomb": grown,
    **{f"escape-{name.replace(' ', '-')}": escaped for name in ESCAPES},
}


def fired(models: Path, marks: Path) -> list[str]:
    """The repositories whose payloads have done what they are for."""
    return [name for name, fire in FIRES.items() if fire(models / name, marks)]
