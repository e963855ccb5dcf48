"""A model is a stranger's folder: what it may not do by lying there, by being listed, by being asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmws.catalog.catalog import Catalog
from llmws.engine_api import PromptFailed, PromptReady
from llmws.prompt.limits import Limits
from tests.integration.prompt.harness import Renderer, good_model, template_model
from tests.support.safetensors_file import EMPTY, safetensors_bytes

LIMITS = Limits(memory_bytes=384 * 2**20, base_s=1.0, per_mib_s=0.0)


def folder(path: Path, *, config: dict[str, Any] | None = None, weights: str = "model.safetensors") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    (path / weights).write_bytes(EMPTY)
    return path


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "models", tmp_path / "own", None)


def offered(catalog: Catalog) -> list[str]:
    return [model.name for model in catalog.scan()]


def test_a_configuration_that_brings_code_is_not_offered(catalog: Catalog, tmp_path: Path) -> None:
    """The flag against remote code was passed by from `config.json`: CVE-2026-4372, CVE-2026-5241; CVE-2026-22807."""
    poisons: list[dict[str, Any]] = [
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"text_config": {"auto_map": {"AutoModel": "evil.Model"}}},
        {"_attn_implementation_internal": "evil/kernel"},
        {"attn_implementation": "evil/kernel"},
        {"trust_remote_code": True},
        {"vision_config": {"trust_remote_code": True}},
        {"custom_pipelines": {"x": {"impl": "evil.py"}}},
    ]
    for number, poison in enumerate(poisons):
        folder(tmp_path / "models" / f"m{number}", config=poison)
    assert offered(catalog) == []
    assert len(catalog.problems()) == len(poisons)


def test_weights_that_are_a_program_are_not_offered(catalog: Catalog, tmp_path: Path) -> None:
    """A pickle runs when it is read: CVE-2025-32434, where even `torch.load(weights_only=True)` ran it."""
    for suffix in ("bin", "pt", "pth", "pkl", "ckpt", "h5"):
        folder(tmp_path / "models" / suffix, weights=f"pytorch_model.{suffix}")
    assert offered(catalog) == []


def test_an_index_leads_nowhere_else(catalog: Catalog, tmp_path: Path) -> None:
    """A file that names other files names `/etc/passwd`: CVE-2024-37032, where a manifest's digest did."""
    (tmp_path / "secret.safetensors").write_bytes(EMPTY)
    for number, name in enumerate(("../../secret.safetensors", str(tmp_path / "secret.safetensors"), "a/../x")):
        path = folder(tmp_path / "models" / f"m{number}")
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    assert offered(catalog) == []


def test_what_has_not_come_whole_is_not_offered(catalog: Catalog, tmp_path: Path) -> None:
    """A download that is renamed into place before it is checked is served when it breaks off."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"
    longer = (1000).to_bytes(8, "little") + b"{}"
    cut = safetensors_bytes({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, bytes(35))
    for number, weights in enumerate((b"", EMPTY[:7], pointer, longer, cut)):
        (folder(tmp_path / "models" / f"m{number}") / "model.safetensors").write_bytes(weights)
    shard = folder(tmp_path / "models" / "shard", weights="model-1.safetensors")
    (shard / "model.safetensors.index.json").write_text(
        '{"weight_map":{"v":"model-1.safetensors","w":"2.safetensors"}}'
    )
    (tmp_path / "models" / "dots").mkdir()
    assert offered(catalog) == []


def test_a_link_leads_nowhere_else(catalog: Catalog, tmp_path: Path) -> None:
    """Archives and repositories carry links, and what is read through one may be any file of the account."""
    (tmp_path / "secret").write_bytes(EMPTY)
    path = folder(tmp_path / "models" / "m")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to(tmp_path / "secret")
    (tmp_path / "elsewhere").mkdir()
    folder(tmp_path / "elsewhere" / "m")
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "elsewhere" / "m")
    assert offered(catalog) == []


def test_deleting_a_model_follows_no_link(catalog: Catalog, tmp_path: Path) -> None:
    """A link in the folder is an invitation to delete what it points to: CVE-2022-21658, Rust's `remove_dir_all`."""
    victim = folder(tmp_path / "victim")
    path = folder(tmp_path / "models" / "m")
    (path / "link").symlink_to(victim)
    catalog.delete("m")
    assert (victim / "config.json").exists()
    assert not path.exists()


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(limits=LIMITS) as renderer:
        yield renderer


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('%s').read() }}",
    "{{ lipsum.__globals__['os'].system('%s') }}",
    "{{ messages|attr('__class__')|attr('__base__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ ['{0.__class__.__mro__}'] | map('format', messages) | list }}",
    "{{ raise_exception.__globals__.__builtins__.open('%s', 'w') }}",
    "{{ strftime_now.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('%s') }}",
    "{{ messages.append('x') or messages[0].update(role='system') }}",
)


def test_a_template_does_not_leave_its_sandbox(renderer: Renderer, tmp_path: Path) -> None:
    """Outside one, templates of models ran commands: CVE-2024-34359, llama-cpp-python; CVE-2026-5760, SGLang."""
    mark = tmp_path / "escaped"
    for number, template in enumerate(ESCAPES):
        model = template_model(tmp_path / f"m{number}", template.replace("%s", f"touch {mark}"))
        renderer.ask(model, "k")
        event = renderer.answer()
        assert isinstance(event, PromptFailed), template
    assert not mark.exists()


def test_a_template_bomb_costs_its_own_prompt_only(renderer: Renderer, tmp_path: Path) -> None:
    """Templates and their arguments stopped whole servers: CVE-2025-61620, CVE-2025-62426, vLLM."""
    good = good_model(tmp_path / "good")
    expected = renderer.ids(good)
    bombs = ("{{ 'x' * 10 ** 10 }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    for number, bomb in enumerate(bombs):
        renderer.ask(template_model(tmp_path / f"b{number}", bomb), "bomb")
        renderer.ask(good, "good")
        events = [renderer.answer(), renderer.answer()]
        assert isinstance(events[0], PromptFailed)
        assert events[1] == PromptReady(key="good", ids=expected)
