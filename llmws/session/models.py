"""Which model serves, which is being loaded, and who asked for another.

Knows no requests but by their absence: it loads only when told that nothing runs. Invariant: at most one load is
under way, and `is_settled` is false from the moment a switch is asked for until it ends.
"""

from __future__ import annotations

from typing import NamedTuple

from llmws.engine_api import ModelFailed, ModelInfo, ModelLoaded, ModelProgress, ModelRef, ModelUnloaded
from llmws.protocol import ErrorCode
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.state import HubState


class _Switch(NamedTuple):
    """A switch that a session asked for; `ref` is None until the models folders have been looked at again."""

    session_id: str
    wanted: str
    ref: ModelRef | None


class Models:
    """What the hub knows of models."""

    def __init__(self, state: HubState) -> None:
        self._state = state
        self.available: tuple[ModelRef, ...] = ()
        self.current: ModelInfo | None = None
        self.loading: ModelRef | None = None
        self._switches: list[_Switch] = []
        self._is_scanned = False

    @property
    def name(self) -> str | None:
        """The model that serves, or will."""
        if self.current is not None:
            return self.current.ref.name
        return self.loading.name if self.loading else None

    @property
    def is_settled(self) -> bool:
        """Whether it is known what there is, and no load is under way or wanted."""
        return self._is_scanned and self.loading is None and not self._switches

    def find(self, wanted: str) -> ModelRef | None:
        """The listed model of just this name or path."""
        return next((each for each in self.available if wanted in (each.name, each.path)), None)

    def capabilities(self) -> m.Capabilities:
        """For the welcome."""
        info = self.current
        return m.Capabilities(
            vision=info.vision if info else False,
            resume=True,
            flash_attention=info.flash_attention if info else False,
            max_context=info.max_context if info else 0,
        )

    def load(self, ref: ModelRef) -> None:
        """Loads a model. Nothing may be running."""
        self.loading = ref
        self._state.out.append(e.LoadModel(ref))

    def is_wanted(self, name: str) -> bool:
        """Whether this model serves, is being loaded, or is to be switched to."""
        serving = self.current.ref.name if self.current else None
        loading = self.loading.name if self.loading else None
        return name in (serving, loading) or any(wish.ref and wish.ref.name == name for wish in self._switches)

    def ask_switch(self, session_id: str, wanted: str) -> None:
        """Takes a client's wish; the folders are looked at again, since the model may just have been put there.

        A session has one wish at a time: a newer one replaces one that has not begun.
        """
        begun = self._switches[:1] if self.loading is not None else []
        for wish in self._switches[len(begun) :]:
            if wish.session_id == session_id:
                self._switches.remove(wish)
                self._refuse(wish, ErrorCode.CONFLICT, "a newer switch_model of this session replaces this one")
        self._switches.append(_Switch(session_id, wanted, None))
        self._state.out.append(e.ScanModels())

    def scanned(self, event: e.ModelsScanned) -> None:
        """Takes what is there now, and decides the wishes that waited for it."""
        self.available = event.models
        self._is_scanned = True
        wishes, self._switches = self._switches, []
        for wish in wishes:
            ref = wish.ref or self.find(wish.wanted)
            if ref is not None:
                self._switches.append(wish._replace(ref=ref))
            else:
                self._refuse(wish, ErrorCode.MODEL_NOT_FOUND, "no such model here; list_models lists them")

    def scan_failed(self, _event: e.ScanFailed) -> None:
        """The folders could not be looked at: the wishes that waited for it are refused."""
        wishes, self._switches = self._switches, [wish for wish in self._switches if wish.ref is not None]
        for wish in wishes:
            if wish.ref is None:
                self._refuse(wish, ErrorCode.INTERNAL, "the models folders could not be read")

    def begin_switch(self) -> None:
        """Begins the next switch that was asked for. Nothing may be running."""
        while self._switches and (ref := self._switches[0].ref) is not None and self.loading is None:
            if self.current is not None and self.current.ref.location == ref.location:
                self._tell(f"{ref.name} is loaded already.", 0, 0)
                self._switched(self.current)
            else:
                self._tell(f"Loading {ref.name}.", 0, ref.size_bytes)
                self.load(ref)

    def progress(self, event: ModelProgress) -> None:
        """A load goes on."""
        percent = 100 * event.bytes // max(1, event.total_bytes)
        self._tell(f"Loading {event.name}: {percent} %.", event.bytes, event.total_bytes)

    def loaded(self, event: ModelLoaded) -> None:
        """A load succeeded."""
        self.loading = None
        self.current = event.info
        if self._switches and self._switches[0].ref == event.info.ref:
            self._switched(event.info)

    def unloaded(self, event: ModelUnloaded) -> None:
        """A model made room for another one."""
        if self.current is not None and self.current.ref.name == event.name:
            self.current = None

    def failed(self, event: ModelFailed) -> None:
        """A load failed; what was kept goes on serving."""
        self.loading = None
        self.current = event.kept
        if self._switches and self._switches[0].ref and self._switches[0].ref.name == event.name:
            self._refuse(self._switches.pop(0), event.code, event.message)

    def _switched(self, info: ModelInfo) -> None:
        wish = self._switches.pop(0)
        self._state.out.append(e.RememberModel(info.ref.name))
        session = self._state.sessions.get(wish.session_id)
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
        if self._switches and (owner := self._owner(self._switches[0])) is not None:
            self._state.send(owner, m.Log(code="loading", message=text, bytes=read_bytes, total_bytes=total_bytes))

    def _refuse(self, wish: _Switch, code: ErrorCode, text: str) -> None:
        if (owner := self._owner(wish)) is not None:
            self._state.reject(owner, code, text)

    def _owner(self, wish: _Switch) -> int | None:
        """The connection that the session which asked has now."""
        session = self._state.sessions.get(wish.session_id)
        return session.attachment.connection if session and session.attachment else None
