"""What the doors tell the hub, and what the hub wants done at them.

Together with the answers of `engine_api` and `store_api` these are all of the hub's inputs and outputs. A connection
is named by a number that is never used twice, so the late death of an old socket cannot hurt a new one.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from llmws.engine_api import (
    Chunk,
    GenerationRequest,
    ModelFailed,
    ModelLoaded,
    ModelProgress,
    ModelRef,
    ModelUnloaded,
    PromptFailed,
    PromptJob,
    PromptReady,
)
from llmws.protocol import CloseCode
from llmws.protocol import messages as m
from llmws.store_api import StoreEvent, StoreOp

UserRole = Literal["user", "admin"]


class Value(msgspec.Struct, frozen=True):
    """Base of events and commands."""


class Clock(Protocol):
    """Time, as an argument."""

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary start."""

    def time(self) -> float:
        """Unix time in seconds; may jump."""


class Entropy(Protocol):
    """Randomness, as an argument."""

    def new_id(self) -> str:
        """A fresh UUIDv4, as text."""

    def new_seed(self) -> int:
        """A sampling seed, 0..2^53-1."""


# --- events --------------------------------------------------------------------------------------------------------


class Attach(Value, frozen=True):
    """An authenticated hello."""

    connection: int
    principal: str
    role: UserRole
    hello: m.Hello


class Receive(Value, frozen=True):
    """A message after the hello."""

    connection: int
    message: m.ClientMessage


class Detach(Value, frozen=True):
    """The connection is gone, for whatever reason."""

    connection: int


class Congested(Value, frozen=True):
    """The connection's socket buffer is above its high-water mark."""

    connection: int


class Drained(Value, frozen=True):
    """It has fallen below its low-water mark again."""

    connection: int


class Answer(Value, frozen=True):
    """The reply to an `Inspect`."""

    connection: int
    message: m.ServerMessage


class ModelsScanned(Value, frozen=True):
    """The models on this machine, at start and after a change."""

    models: tuple[ModelRef, ...]


class ScanFailed(Value, frozen=True):
    """The folders could not be looked at; what was known still counts."""


class MemoryRead(Value, frozen=True):
    """The device's memory, for the next welcomes."""

    device: m.DeviceSummary


class SelectModel(Value, frozen=True):
    """The default model to begin with, and those to try in its place, in order, should it not load."""

    model: ModelRef
    instead: tuple[ModelRef, ...] = ()


class UnfinishedFound(Value, frozen=True):
    """The sessions that an earlier process left a buffer file of, newest first: their requests go on."""

    session_ids: tuple[str, ...]


class Tick(Value, frozen=True):
    """Time has passed; sent about every 250 ms."""


class Drain(Value, frozen=True):
    """The server is going to stop: what runs goes on, nothing new is taken or started."""


class Shutdown(Value, frozen=True):
    """The server stops: every session's files are closed; what is unfinished stays resumable."""


HubEvent = (
    Attach
    | Receive
    | Detach
    | Congested
    | Drained
    | Answer
    | ModelsScanned
    | ScanFailed
    | MemoryRead
    | SelectModel
    | UnfinishedFound
    | Tick
    | Drain
    | Shutdown
    | Chunk
    | ModelProgress
    | ModelLoaded
    | ModelUnloaded
    | ModelFailed
    | PromptReady
    | PromptFailed
    | StoreEvent
)

# --- commands ------------------------------------------------------------------------------------------------------


class Send(Value, frozen=True):
    """Frames for a connection, in order."""

    connection: int
    frames: tuple[bytes, ...]


class Disconnect(Value, frozen=True):
    """Closes a connection after what was sent to it."""

    connection: int
    code: CloseCode
    reason: str


class Inspect(Value, frozen=True):
    """A question about models or resources, answered outside the hub by one `Answer`."""

    connection: int
    message: m.GetResources | m.ListModels | m.DeleteModel


class Submit(Value, frozen=True):
    """Starts a generation."""

    request: GenerationRequest


class CancelGeneration(Value, frozen=True):
    """Stops a generation; its later chunks are ignored."""

    key: str


class ScanModels(Value, frozen=True):
    """Looks for models again; answered by `ModelsScanned` or `ScanFailed`."""


class RememberModel(Value, frozen=True):
    """A client chose this model: it serves again after a restart."""

    name: str


class SaveUptime(Value, frozen=True):
    """How long the server has been up, over all its starts: it goes on from there after the next one."""

    uptime_s: float


class LoadModel(Value, frozen=True):
    """Loads a model beside the others, or in the place of idle ones; see `Engine.load`."""

    model: ModelRef
    again: bool = False


class WithdrawLoad(Value, frozen=True):
    """Nobody waits for this model any more: its load is not wanted, if it has not begun."""

    name: str


class Warn(Value, frozen=True):
    """Something that an operator should know, for the server's log."""

    message: str


HubCommand = (
    Send
    | Disconnect
    | Inspect
    | Submit
    | CancelGeneration
    | ScanModels
    | RememberModel
    | SaveUptime
    | LoadModel
    | WithdrawLoad
    | Warn
    | PromptJob
    | StoreOp
)
