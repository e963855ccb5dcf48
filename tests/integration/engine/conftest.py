"""One engine for all of these tests, with torch in one thread, on models made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.local import LocalEngine
from llmws.engine_api import ModelInfo, ModelLoaded, ModelRef
from tests.integration.engine import tiny_models
from tests.support.listening import Listener

torch.set_num_threads(1)


SHORT_CANCELS = 1_000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cancels", type=int, help="how many streams of a batch are cancelled at random")


@pytest.fixture
def cancels(request: pytest.FixtureRequest) -> int:
    """Heard only where these tests are named on the command line; else there are a few."""
    return request.config.getoption("--cancels") or SHORT_CANCELS


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory) -> Callable[[str], ModelRef]:
    """Each tiny model in a folder, written when it is first asked for."""
    made: dict[str, ModelRef] = {}

    def get(name: str) -> ModelRef:
        if name not in made:
            made[name] = tiny_models.save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="session")
def ear() -> Iterator[Listener]:
    """A running local engine."""
    engine = LocalEngine(OptimizationSection(device="cpu", threads=1), LimitsSection())
    ear = Listener(engine)
    yield ear
    engine.close()


@pytest.fixture
def serve(ear, folder_of) -> Iterator[Callable[[str], ModelInfo]]:
    """Loads a tiny model, unless it is the one that is loaded, and forgets what was heard before."""

    def load(name: str) -> ModelInfo:
        loaded = [event.info for event in ear.models() if isinstance(event, ModelLoaded)]
        info = loaded[-1] if loaded else None
        if info is None or info.ref.name != name:
            event = ear.load(folder_of(name))
            assert isinstance(event, ModelLoaded), event
            info = event.info
        ear.heard = [event for event in ear.heard if event == ear.models()[-1]]
        return info

    yield load
    ear.heard = ear.models()[-1:]
