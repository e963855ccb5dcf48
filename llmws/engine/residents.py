"""The models that are loaded, in the order of their last use.

Carries out what `residency` decides; knows neither the line of requests nor torch. Invariant: what is resident and open
is within its devices' budget; whatever a load does, a model that served before it serves on or is said to be gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import msgspec

from llmws.engine import residency
from llmws.engine.residency import Claim, Room
from llmws.engine.runner import DeviceLostError, Fingerprint, Loader, Progress, Runner, StoppedError
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
from llmws.errors import LlmwsError
from llmws.protocol import ErrorCode

log = logging.getLogger(__name__)


class Resident:
    """A model that is there, and its streams.

    Args:
        runner: the model.
        claim: what it takes while its pool is closed and no stream is on.

    Attributes:
        streams: those that are on, by key.
        is_outdated: whether its folder was found to hold another model.
    """

    def __init__(self, runner: Runner, claim: Claim) -> None:
        self.runner = runner
        self.streams: dict[str, Stream] = {}
        self.is_outdated = False
        self._claim = claim

    @property
    def claim(self) -> Claim:
        """What it takes now."""
        return msgspec.structs.replace(self._claim, pool_bytes=self.runner.pool_bytes, is_busy=bool(self.streams))

    def may_join(self, request: GenerationRequest) -> bool:
        """Whether the request can run beside those that are on."""
        return len(self.streams) < self.runner.info.max_running and self.runner.has_room(request)


class _Plan(NamedTuple):
    """A load that comes next: what its folder was found to hold, and what it will take."""

    model: ModelRef
    fingerprint: Fingerprint
    claim: Claim


class _Failure(NamedTuple):
    """Why a load failed that others may have made room for, and of what."""

    model: ModelRef
    fingerprint: Fingerprint
    code: ErrorCode
    message: str


class Residents:
    """The models that are there, the least recently used first.

    Args:
        make_loader: called at the first load; it may take its time.
        tell: takes events that cannot wait for the end of a load.
    """

    def __init__(self, make_loader: Callable[[], Loader], tell: Callable[[EngineEvent], None]) -> None:
        self._make_loader = make_loader
        self._tell = tell
        self._residents: dict[str, Resident] = {}
        self._plan: _Plan | None = None
        self._failures: dict[str, _Failure] = {}
        self.last: ModelRef | None = None
        """What was loaded last, on demand or not: the model of requests that name none. Sessions' requests name
        theirs; which one is the default there, the hub decides."""

    @cached_property
    def _loader(self) -> Loader:
        return self._make_loader()

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

    def load(self, model: ModelRef, progress: Progress, *, again: bool) -> ModelLoaded | ModelFailed | None:
        """Makes a model resident, as its folder is now. None: others must go, and are busy.

        After a failure everything is as it was, but for idle models that had made room; the last one comes back if
        nothing else is there.

        Args:
            model: which.
            progress: see `Progress`.
            again: whether what failed before is tried once more although its folder has not changed.
        """
        before = [each.runner.info.ref for each in self]
        failure = None if again else self._known_failure(model)
        if failure is None:
            try:
                resident = self._made_resident(model, progress)
            except (StoppedError, DeviceLostError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a model folder holds, the other models go on
                failure = reason(error, f"{model.name} cannot be loaded; the server's log says why")
            else:
                if resident is None:
                    return None
                self.last = model
                self.touch(resident)
                self._failures.pop(model.name, None)
                return ModelLoaded(info=resident.runner.info)
            if self._plan is not None and self._plan.model == model:
                self._failures[model.name] = _Failure(model, self._plan.fingerprint, *failure)
        # Out here the error is gone, and with it what its frames held of the new model.
        self._plan = None
        code, message = failure
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
        if resident is not None and not self._is_outdated(resident, model):
            return resident
        plan = self._planned(model)
        if resident is not None:
            if resident.streams:  # they end on what they began with
                return None
            self._unload(model.name)
        if not self._make(residency.room_for_model(plan.claim, self._others())):
            return None
        return self._read(plan, progress)

    def _is_outdated(self, resident: Resident, model: ModelRef) -> bool:
        """Whether the folder holds something else now. That it does is found once: it may have to wait for streams."""
        if not resident.is_outdated:
            info = resident.runner.info
            was = Fingerprint(info.digest, info.tokenizer_digest)
            resident.is_outdated = info.ref != model or was != self._loader.fingerprint(model)
        return resident.is_outdated

    def _known_failure(self, model: ModelRef) -> tuple[ErrorCode, str] | None:
        """Why the model cannot be loaded, if that is known and its folder is as it was then."""
        known = self._failures.get(model.name)
        if known is None:
            return None
        try:
            if (known.model, known.fingerprint) == (model, self._loader.fingerprint(model)):
                return known.code, known.message
        except LlmwsError:
            pass  # a load will say what it is now
        del self._failures[model.name]
        return None

    def _planned(self, model: ModelRef) -> _Plan:
        """What the model will take; while it waits it comes here at every step."""
        if self._plan is None or self._plan.model != model:
            claim = self._loader.claim(model)
            self._plan = _Plan(model, self._loader.fingerprint(model), claim)
        return self._plan

    def _read(self, plan: _Plan, progress: Progress) -> Resident | None:
        """Loads the model, for which there is room. None: it takes more than its files told, and others are busy."""
        runner = self._loader.load(plan.model, plan.claim, progress=progress)
        claim = msgspec.structs.replace(plan.claim, held_bytes=runner.held_bytes, need_bytes=runner.need_bytes)
        if not self._make(residency.room_for_model(claim, self._others())):
            # Whoever is busy was promised to go on: it comes again after them.
            runner.close()
            self._plan = plan._replace(claim=claim)
            return None
        self._plan = None
        self._residents[plan.model.name] = Resident(runner, claim)
        return self._residents[plan.model.name]

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
