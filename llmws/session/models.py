"""Which models are there, which of them is the default, what is being loaded, and who asked for another.

The engine decides how many models stay side by side; this follows what it tells. Knows no requests but by their
absence: a switch begins only when told that nothing runs. Invariants: one load of a model is asked for at a time, and
none that nobody waits for;
`is_settled` is false from the moment a switch is asked for until it ends; only a switch changes the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from llmws.engine_api import ModelFailed, ModelInfo, ModelLoaded, ModelProgress, ModelRef, ModelUnloaded
from llmws.protocol import ErrorCode
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.state import HubState


class _Wish(NamedTuple):
    """A switch that a session asked for; `ref` is None until the models folders have been looked at again."""

    session_id: str
    wanted: str
    ref: ModelRef | None


class _Switch(NamedTuple):
    """A switch under way: its load has been asked for.

    `session_id` is None for the model to begin with; `instead` is what to try should that not load.
    """

    session_id: str | None
    ref: ModelRef
    instead: tuple[ModelRef, ...] = ()


class Models:
    """What the hub knows of models.

    Attributes:
        available: what the last scan found.
        resident: the loaded models by name, as far as the engine has told.
        default: the model for whoever names none, as it was when it was last loaded. It stays the default while it
            makes room for another one.
    """

    def __init__(self, state: HubState) -> None:
        self._state = state
        self.available: tuple[ModelRef, ...] = ()
        self.resident: dict[str, ModelInfo] = {}
        self.default: ModelInfo | None = None
        self._loading: set[str] = set()
        self._before_load: AbstractSet[str] | None = None
        self._wishes: list[_Wish] = []
        self._switch: _Switch | None = None
        self._is_scanned = False

    @property
    def name(self) -> str | None:
        """The default model, or the one that will be."""
        if self.default is not None:
            return self.default.ref.name
        return self._switch.ref.name if self._switch else None

    @property
    def is_settled(self) -> bool:
        """Whether it is known what there is, and no switch is under way or wanted."""
        return self._is_scanned and self._switch is None and not self._wishes

    def find(self, wanted: str) -> ModelRef | None:
        """The listed model of just this name or path."""
        return next((each for each in self.available if wanted in (each.name, each.path)), None)

    def serving(self, wanted: str | None) -> ModelRef | None:
        """The model for a request that names this one, or none."""
        if wanted is not None:
            return self.find(wanted)
        return self.default.ref if self.default else None

    def no_default(self) -> str:
        """What to tell whoever names no model while there is no default one."""
        if not self.resident:
            return "no model is loaded; an admin can switch to one"
        return f"no default model is loaded; name one of {', '.join(sorted(self.resident))}, or an admin can switch"

    def may_serve(self, ref: ModelRef) -> bool:
        """Whether users may ask for this model: one that is there costs no load."""
        return self._state.settings.load_on_demand or ref.name == self.name or ref.name in self.resident

    def capabilities(self) -> m.Capabilities:
        """For the welcome."""
        info = self.default
        return m.Capabilities(
            vision=info.vision if info else False,
            resume=True,
            flash_attention=info.flash_attention if info else False,
            max_context=info.max_context if info else 0,
        )

    def wait_for(self, wanted: Mapping[str, ModelRef], *, rendering: AbstractSet[str]) -> None:
        """Has those models loaded that requests wait for, and takes back the loads that nobody waits for any more.

        One after the other: to the engine a model is idle until a rendered prompt reaches it, and makes room for the
        next. So a load is due when no other one is under way, and then waits for the prompts that are being rendered;
        not for those that come later, so nobody can be passed over for ever. What the engine has begun ends all the
        same.

        Args:
            wanted: by name, who came first first; the load of the default, or of a switch, is kept in any case.
            rendering: the keys of the prompts that are being rendered for models that are there.
        """
        for name in sorted(self._loading.difference(wanted)):
            if not self._is_chosen(name):
                self._loading.discard(name)
                self._state.out.append(e.WithdrawLoad(name))
        due = next((ref for name, ref in wanted.items() if name not in self.resident), None)
        if due is None or self._loading or not self.is_settled:
            self._before_load = None
            return
        first = rendering if self._before_load is None else self._before_load & rendering
        self._before_load = first or None
        if not first:
            self._load(due)

    def _load(self, ref: ModelRef, *, again: bool = False) -> None:
        if ref.name not in self._loading:
            self._loading.add(ref.name)
            self._state.out.append(e.LoadModel(ref, again))

    def is_wanted(self, name: str) -> bool:
        """Whether this model is resident, the default, being loaded, or to be switched to."""
        return self._is_chosen(name) or name in self.resident or name in self._loading

    def _is_chosen(self, name: str) -> bool:
        """Whether this model is the default, or is to be."""
        switching = [wish.ref for wish in self._wishes] + ([self._switch.ref] if self._switch else [])
        return name == self.name or any(ref is not None and ref.name == name for ref in switching)

    # --- switching -------------------------------------------------------------------------------------------------

    def select(self, event: e.SelectModel) -> None:
        """Loads the model to begin with."""
        if self._switch is None:
            self._switch = _Switch(None, event.model, event.instead)
            self._load(event.model)

    def ask_switch(self, session_id: str, wanted: str) -> None:
        """Takes a client's wish; the folders are looked at again, since the model may just have been put there.

        A session has one wish at a time: a newer one replaces one that has not begun.
        """
        for wish in [each for each in self._wishes if each.session_id == session_id]:
            self._wishes.remove(wish)
            self._refuse(session_id, ErrorCode.CONFLICT, "a newer switch_model of this session replaces this one")
        self._wishes.append(_Wish(session_id, wanted, None))
        self._state.out.append(e.ScanModels())

    def scanned(self, event: e.ModelsScanned) -> None:
        """Takes what is there now, and decides the wishes that waited for it."""
        self.available = event.models
        self._is_scanned = True
        wishes, self._wishes = self._wishes, []
        for wish in wishes:
            ref = wish.ref or self.find(wish.wanted)
            if ref is not None:
                self._wishes.append(wish._replace(ref=ref))
            else:
                self._refuse(wish.session_id, ErrorCode.MODEL_NOT_FOUND, "no such model here; list_models lists them")

    def scan_failed(self, _event: e.ScanFailed) -> None:
        """The folders could not be looked at: the wishes that waited for it are refused."""
        wishes, self._wishes = self._wishes, [wish for wish in self._wishes if wish.ref is not None]
        for wish in wishes:
            if wish.ref is None:
                self._refuse(wish.session_id, ErrorCode.INTERNAL, "the models folders could not be read")

    def begin_switch(self) -> None:
        """Begins the next switch that was asked for. Nothing may be running.

        Also one to a model that is there: only the engine knows whether its folder is as it was.
        """
        while self._switch is None and self._wishes and (ref := self._wishes[0].ref) is not None:
            wish = self._wishes.pop(0)
            self._switch = _Switch(wish.session_id, ref)
            self._tell(f"Loading {ref.name}.", 0, ref.size_bytes)
            self._load(ref, again=True)

    # --- what the engine tells -------------------------------------------------------------------------------------

    def progress(self, event: ModelProgress) -> None:
        """A load goes on."""
        if self._switch is not None and self._switch.ref.name == event.name:
            percent = 100 * event.bytes // max(1, event.total_bytes)
            self._tell(f"Loading {event.name}: {percent} %.", event.bytes, event.total_bytes)

    def loaded(self, event: ModelLoaded) -> None:
        """A model is there: a load that was asked for, or one that a request needed after its model had made room."""
        info = event.info
        self._answered(info.ref.name)
        self._resides(info)
        if self._switch is not None and self._switch.ref.name == info.ref.name:
            self._switched(info)

    def unloaded(self, event: ModelUnloaded) -> None:
        """A model made room for another one."""
        self.resident.pop(event.name, None)

    def failed(self, event: ModelFailed) -> None:
        """A load failed; the default is what it was, and what was there stays, unless it is said to be gone."""
        self._answered(event.name)
        if event.kept is not None:
            self._resides(event.kept)
        if self._switch is not None and self._switch.ref.name == event.name:
            switch, self._switch = self._switch, None
            self._refuse(switch.session_id, event.code, event.message)
            if switch.instead:
                following, *others = switch.instead
                text = f"{event.name} cannot be loaded to begin with; trying {following.name} in its place"
                self._state.out.append(e.Warn(text))
                self.select(e.SelectModel(following, instead=tuple(others)))

    def _answered(self, name: str) -> None:
        """A load has ended. It may be another one than was asked for, which is not needed any more then.

        Such a one began for a request that had come before, or was taken back too late.
        """
        if name in self._loading:
            self._loading.discard(name)
            self._state.out.append(e.WithdrawLoad(name))

    def _resides(self, info: ModelInfo) -> None:
        self.resident[info.ref.name] = info
        if self.default is not None and self.default.ref.name == info.ref.name:
            self.default = info

    def _switched(self, info: ModelInfo) -> None:
        assert self._switch is not None
        switch, self._switch = self._switch, None
        self.default = info
        if switch.session_id is None:
            return
        self._state.out.append(e.RememberModel(info.ref.name))
        session = self._state.sessions.get(switch.session_id)
        if session is not None:
            self._state.dirty[session.id] = session
            session.emit(
                m.ModelSwitched(
                    name=info.ref.name,
                    path=info.ref.path,
                    message=f"{info.ref.name} is serving on {info.device}.",
                    max_context=info.max_context,
                )
            )

    def _tell(self, text: str, read_bytes: int, total_bytes: int) -> None:
        """Tells whoever asked for the switch how it goes."""
        if self._switch is not None and (asker := self._asker(self._switch.session_id)) is not None:
            self._state.send(asker, m.Log(code="loading", message=text, bytes=read_bytes, total_bytes=total_bytes))

    def _refuse(self, session_id: str | None, code: ErrorCode, text: str) -> None:
        if (asker := self._asker(session_id)) is not None:
            self._state.reject(asker, code, text)

    def _asker(self, session_id: str | None) -> int | None:
        """The connection that the session which asked has now."""
        session = self._state.sessions.get(session_id) if session_id is not None else None
        return session.attachment.connection if session and session.attachment else None
