"""What the source itself may not hold: ways to run what somebody else wrote, and ways to switch a defence off.

It is read as a syntax tree, so that neither comments nor strings count and an alias does not hide anything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

TREES = ("llmws", "llm_cli")

MODULES = {
    "pickle": "unpickling runs code",
    "_pickle": "unpickling runs code",
    "dill": "unpickling runs code",
    "cloudpickle": "unpickling runs code",
    "joblib": "its files are pickles",
    "shelve": "its files are pickles",
    "marshal": "it loads code",
    "yaml": "its loaders construct objects",
    "telnetlib": "nothing is encrypted",
    "xml": "entities are expanded without a bound",
}
CALLS = {
    "eval": "it runs text",
    "exec": "it runs text",
    "compile": "it makes text runnable",
    "__import__": "it imports what a text names",
    "os.system": "a shell reads the text",
    "os.popen": "a shell reads the text",
    "subprocess.getoutput": "a shell reads the text",
    "subprocess.getstatusoutput": "a shell reads the text",
    "asyncio.create_subprocess_shell": "a shell reads the text",
    "torch.load": "it unpickles",
    "torch.hub.load": "it runs a repository's code",
    "pandas.read_pickle": "it unpickles",
    "jinja2.Environment": "templates outside the sandbox reach Python",
    "jinja2.Template": "templates outside the sandbox reach Python",
    "tempfile.mktemp": "somebody else may make the file first",
    "ssl._create_unverified_context": "certificates are not checked",
}
KEYWORDS = {
    "shell": "a shell reads the text",
    "trust_remote_code": "a model's code is run",
    "allow_pickle": "it unpickles",
    "use_unsafe": "it unpickles",
}
ATTRIBUTES = {"ssl.CERT_NONE": "certificates are not checked"}
EXPRESSIONS = {f"re.{name}" for name in ("compile", "match", "fullmatch", "search", "sub", "split", "findall")}
"""Their pattern must stand in the source: one that a client supplies can be made to take for ever."""


def findings(source: str) -> list[str]:
    """What is wrong with a module, each with its line."""
    tree = ast.parse(source)
    names = dict(imported(tree))
    constants = constant_names(tree)
    return [f"{node.lineno}: {text}" for node in ast.walk(tree) for text in wrong(node, names, constants)]


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What each name that an import makes stands for, dotted."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                for alias in aliases:
                    yield (
                        (alias.asname or alias.name.partition(".")[0]),
                        (alias.name if alias.asname else alias.name.partition(".")[0]),
                    )
            case ast.ImportFrom(module=str(module), names=aliases):
                for alias in aliases:
                    yield alias.asname or alias.name, f"{module}.{alias.name}"


def constant_names(tree: ast.Module) -> set[str]:
    """The names that the module gives a text once and for all."""
    found = set()
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                if is_constant(value, found):
                    found.add(name)
            case _:
                pass
    return found


def is_constant(node: ast.expr, constants: set[str]) -> bool:
    """Whether a text is put together from texts of the source alone."""
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name):
            return name in constants
        case ast.BinOp(left=left, right=right):
            return is_constant(left, constants) and is_constant(right, constants)
        case ast.JoinedStr(values=values):
            return all(is_constant(value, constants) for value in values)
        case ast.FormattedValue(value=value):
            return is_constant(value, constants)
        case _:
            return False


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The full name of what an expression refers to; empty where it is no name."""
    match node:
        case ast.Name(id=name):
            return names.get(name, name)
        case ast.Attribute(value=value, attr=attr):
            before = dotted(value, names)
            return f"{before}.{attr}" if before else ""
        case _:
            return ""


def wrong(node: ast.AST, names: dict[str, str], constants: set[str]) -> Iterator[str]:
    match node:
        case ast.Import(names=aliases):
            for alias in aliases:
                yield from wrong_module(alias.name)
        case ast.ImportFrom(module=str(module)):
            yield from wrong_module(module)
        case ast.Attribute():
            if reason := ATTRIBUTES.get(dotted(node, names)):
                yield f"{dotted(node, names)}: {reason}"
        case ast.Call(func=function, args=arguments, keywords=keywords):
            called = dotted(function, names).removeprefix("builtins.")
            if reason := CALLS.get(called):
                yield f"{called}: {reason}"
            if called in EXPRESSIONS and arguments and not is_constant(arguments[0], constants):
                yield f"{called}: its pattern does not stand in the source"
            for keyword in keywords:
                off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg in KEYWORDS and not off:
                    yield f"{keyword.arg}: {KEYWORDS[keyword.arg]}"
                if keyword.arg in ("verify", "check_hostname") and off:
                    yield f"{keyword.arg}: certificates are not checked"
        case _:
            pass


def wrong_module(name: str) -> Iterator[str]:
    top = name.partition(".")[0]
    if reason := MODULES.get(top):
        yield f"{top}: {reason}"


def test_the_source_holds_nothing_that_runs_what_others_wrote() -> None:
    """SGLang and vLLM unpickled what came over the network: CVE-2026-3059, CVE-2025-32444."""
    files = [path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]
    assert len(files) > 100
    found = {str(path.relative_to(ROOT)): findings(path.read_text(encoding="utf-8")) for path in files}
    assert {path: wrongs for path, wrongs in found.items() if wrongs} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import marshal as m",
        "import yaml",
        "eval(x)",
        "import builtins\nbuiltins.exec(x)",
        "import os\nos.system(x)",
        "from os import popen as run\nrun(x)",
        "import subprocess as s\ns.run(x, shell=True)",
        "run(x, shell=wanted)",
        "import torch\ntorch.load(x)",
        "from torch import load\nload(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=wanted)",
        "import jinja2\njinja2.Environment()",
        "from jinja2 import Environment as Sandbox\nSandbox()",
        "import re\nre.compile(pattern)",
        "import re\nre.search(f'{wish}x', text)",
        "from re import fullmatch\nfullmatch(pattern, text)",
        "import ssl\ncontext.verify_mode = ssl.CERT_NONE",
        "connect(url, verify=False)",
        "import tempfile\ntempfile.mktemp()",
        "import numpy\nnumpy.load(x, allow_pickle=True)",
    ],
)
def test_the_search_finds_what_is_planted(planted: str) -> None:
    assert len(findings(planted)) == 1


@pytest.mark.parametrize(
    "harmless",
    [
        "# eval(x)",
        "text = 'import pickle'",
        "model.eval()",
        "self.load(x)",
        "subprocess.run(x, shell=False)",
        "from jinja2.sandbox import SandboxedEnvironment\nSandboxedEnvironment()",
        "import re\nWORD = r'\\w'\nre.compile(rf'{WORD}+')",
        "import torch\ntorch.compile(x)",
    ],
)
def test_the_search_leaves_alone_what_is_harmless(harmless: str) -> None:
    assert findings(harmless) == []
