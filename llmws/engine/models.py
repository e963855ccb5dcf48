"""The models that are loaded, in the order of their last use.

Carries out what `residency` decides; knows neither the line of requests nor torch. Invariant: what is resident and open
is within its devices' budget; whatever a load does, a model that served before it serves on or is said to be gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import msgspec

from llmws.engine import residency
from llmws.engine.residency import Claim, Room
from llmws.engine.runner import DeviceLostError, Loader, Progress, Runner
from llmws.engine.stream import Stream, reason
from llmws.engine_api import (
    EngineEvent,
    GenerationRequest,
    ModelFailed,
    ModelInfo,
    ModelLoaded,
    ModelRef,
    ModelUnloaded,
)

log = logging.getLogger(__name__)


class StoppedError(Exception):
    """Leaves a load that nobody waits for any more."""


class Resident:
    """A model that is there, and its streams.

    Args:
        runner: the model.
        claim: what it takes while its pool is closed and no stream is on.
    """

    def __init__(self, runner: Runner, claim: Claim) -> None:
        self.runner = runner
        self.streams: dict[str, Stream] = {}
        self._claim = claim

    @property
    def claim(self) -> Claim:
        """What it takes now."""
        return msgspec.structs.replace(self._claim, pool_bytes=self.runner.pool_bytes, is_busy=bool(self.streams))

    def may_join(self, request: GenerationRequest) -> bool:
        """Whether the request can run beside those that are on."""
        return len(self.streams) < self.runner.info.max_running and self.runner.has_room(request)


class Models:
    """The residents, the least recently used first.

    Args:
        make_loader: called at the first load; it may take its time.
        tell: takes events that cannot wait for the end of a load.
    """

    def __init__(self, make_loader: Callable[[], Loader], tell: Callable[[EngineEvent], None]) -> None:
        self._make_loader = make_loader
        self._tell = tell
        self._loader: Loader | None = None
        self._residents: dict[str, Resident] = {}
        self._waiting: tuple[ModelRef, Claim] | None = None
        self.last: ModelRef | None = None
        """The model of requests that name none."""

    def __iter__(self) -> Iterator[Resident]:
        """Those that are there now."""
        return iter(list(self._residents.values()))

    def get(self, model: ModelRef) -> Resident | None:
        """The model of that name, None if it is not there."""
        return self._residents.get(model.name)

    def touch(self, resident: Resident) -> None:
        """Makes this the most recently used one."""
        name = resident.runner.info.ref.name
        if name in self._residents:
            self._residents[name] = self._residents.pop(name)

    def load(self, model: ModelRef, progress: Progress) -> ModelLoaded | ModelFailed | None:
        """Makes a model resident, as its folder is now. None: others must go, and are busy.

        After a failure everything is as it was, but for idle models that had made room; the last one comes back if
        nothing else is there.
        """
        before = [each.runner.info.ref for each in self]
        try:
            resident = self._made_resident(model, progress)
        except (StoppedError, DeviceLostError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model folder holds, the other models go on
            code, message = reason(error, f"{model.name} cannot be loaded; the server's log says why")
        else:
            if resident is None:
                return None
            self.last = model
            self.touch(resident)
            return ModelLoaded(info=resident.runner.info)
        # Out here the error is gone, and with it what its frames held of the new model.
        self._waiting = None
        return ModelFailed(name=model.name, code=code, message=message, kept=self._restored(before, progress))

    def open_pool(self, resident: Resident) -> bool:
        """Sets memory aside for a model's streams. False: other models' streams have it.

        Raises:
            LlmwsError: the device has not got it after all.
        """
        if not self._make(residency.room_for_streams(resident.claim, self._others(resident))):
            return False
        resident.runner.open_pool(residency.pool_budget(resident.claim, self._others(resident)))
        return True

    def close(self) -> None:
        """Unloads all models, streams or not."""
        while self._residents:
            self._residents.popitem()[1].runner.close()

    def _made_resident(self, model: ModelRef, progress: Progress) -> Resident | None:
        """The model, loaded unless it is there; None: others must go, and are busy."""
        resident = self.get(model)
        if resident is not None:
            if resident.runner.info.ref == model:
                return resident
            if resident.streams:  # its folder has changed; they end on what they began with
                return None
            self._unload(model.name)
        if self._loader is None:
            self._loader = self._make_loader()
        # While it waits it comes here at every step.
        if self._waiting is None or self._waiting[0] != model:
            self._waiting = model, self._loader.claim(model)
        claim = self._waiting[1]
        if not self._make(residency.room_for_model(claim, self._others())):
            return None
        runner = self._loader.load(model, claim, progress=progress)
        claim = msgspec.structs.replace(claim, held_bytes=runner.held_bytes, need_bytes=runner.need_bytes)
        if not self._make(residency.room_for_model(claim, self._others())):
            # It takes more than its files told. Whoever is busy was promised to go on: it comes again after them.
            runner.close()
            self._waiting = model, claim
            return None
        self._waiting = None
        self._residents[model.name] = Resident(runner, claim)
        return self._residents[model.name]

    def _restored(self, before: list[ModelRef], progress: Progress) -> ModelInfo | None:
        """The model that goes on after a failed load; it is read again if all had to make room."""
        wanted = self.last if self.last in before else None
        if not self._residents and before:
            wanted = wanted or before[-1]
            try:
                self._made_resident(wanted, progress)
            except (StoppedError, DeviceLostError):
                raise
            except Exception:  # the second failure in a row; the server stands without a model until the next load
                log.exception("%s could not be loaded again", wanted.name)
        kept = self.get(wanted) if wanted is not None else None
        kept = kept or next(reversed(self._residents.values()), None)
        self.last = kept.runner.info.ref if kept else None
        return kept.runner.info if kept else None

    def _others(self, resident: Resident | None = None) -> list[Claim]:
        return [each.claim for each in self if each is not resident]

    def _make(self, room: Room) -> bool:
        """Makes room, unless those that must go are busy."""
        if room.waits:
            return False
        for name in room.unload:
            self._unload(name)
        for name in room.close:
            self._residents[name].runner.close_pool()
        return True

    def _unload(self, name: str) -> None:
        log.info("%s makes room", name)
        self._residents.pop(name).runner.close()
        self._tell(ModelUnloaded(name=name))
