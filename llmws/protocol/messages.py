"""Every message of the wire protocol, version 1, as a typed value.

Owns the shapes and the ranges of PROTOCOL.md; the tables there are generated from the types here.
Knows nothing of sessions, sockets or engines. Invariant: a value that decodes is within range in every field, so no later
code checks ranges again.

Absent optional fields are `None` when received and are left out when sent; a message is an *event* of the session's story iff
it carries both `seq` and `epoch`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

MAX_SAFE_INT = 2**53 - 1
"""Largest integer that every JSON reader (JavaScript among them) keeps exactly. Source: RFC 8259, section 6."""

Seq = Annotated[int, Meta(ge=0, le=MAX_SAFE_INT)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
RequestId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\-]{1,64}\Z")]
SessionId = Annotated[str, Meta(min_length=1, max_length=64)]
Label = Annotated[str, Meta(max_length=256)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled", "interrupted"]


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every value on the wire: immutable, keyword-only, defaults left out."""


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class Message(Value, frozen=True, kw_only=True, tag_field="type", tag=_snake):
    """Base of every message; the `type` field is the class name in snake case."""


# --- parts of messages ---------------------------------------------------------------------------------------------


class Sampling(Value, frozen=True, kw_only=True):
    """Sampling parameters of a request or a session; an absent field falls back to the next wider default.

    Source: names and meanings follow `transformers.GenerationConfig`; penalties on [-2, 2] follow the OpenAI API.
    """

    max_new_tokens: Annotated[int, Meta(ge=1, le=1_048_576)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Meta(pattern=r"^[0-9]{1,10}\Z")], Annotated[float, Meta(ge=-100, le=100)]],
            Meta(max_length=1024),
        ]
        | None
    ) = None
    seed: Seq | None = None
    stop: Annotated[list[StopString], Meta(max_length=16)] | StopString | None = None
    ignore_eos: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class Image(Value, frozen=True, kw_only=True):
    """An inline image; neither URLs nor server paths are taken."""

    data: str
    mime: Literal["image/png", "image/jpeg", "image/webp", "image/gif"]


class Prompt(Value, frozen=True, kw_only=True):
    """A user turn, with an optional system message that replaces the conversation's."""

    user: str = ""
    system: str | None = None
    images: Annotated[list[Image], Meta(max_length=16)] | None = None


class ChatMessage(Value, frozen=True, kw_only=True):
    """One turn of a conversation that the client supplies itself."""

    role: Role
    content: str


class Position(Value, frozen=True, kw_only=True):
    """The last event that a client applied."""

    epoch: Seq
    last_seq: Seq


class ClientInfo(Value, frozen=True, kw_only=True):
    """What the client says it is; for logs and lists only."""

    name: Label = ""
    version: Label = ""


class RequestState(Value, frozen=True, kw_only=True):
    """An open request, as `welcome` lists it."""

    request_id: str
    state: Literal["queued", "running"]


class RequestSnapshot(Value, frozen=True, kw_only=True):
    """A request's whole state, for a client whose position could not be continued.

    `next_index` is the index of the first token that later events bring.
    """

    request_id: str
    state: Literal["queued", "running", "done", "error"]
    text: str
    next_index: int
    terminal: dict[str, Any] | None = None


class Capabilities(Value, frozen=True, kw_only=True):
    """What the server can do with the current model; `max_context` in tokens, absent without a model."""

    vision: bool
    resume: bool
    flash_attention: bool
    max_context: int | None = None


class DeviceSummary(Value, frozen=True, kw_only=True):
    """The compute device, in short; sizes in units of 1e9 bytes."""

    device: str
    total_gb: float
    free_gb: float


class Limits(Value, frozen=True, kw_only=True):
    """Limits that a client must respect."""

    max_message_bytes: int
    max_queue: int


class Heartbeat(Value, frozen=True, kw_only=True):
    """How often the server pings."""

    interval_s: float


class ServerInfo(Value, frozen=True, kw_only=True):
    """Which server answers."""

    node_id: str
    version: str


class Usage(Value, frozen=True, kw_only=True):
    """Token counts of a finished request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Timing(Value, frozen=True, kw_only=True):
    """Times of a finished request, measured by the process that finished it."""

    queued_ms: float
    ttft_ms: float | None
    tokens_per_s: float | None


class TopLogprob(Value, frozen=True, kw_only=True):
    """One alternative at a position."""

    id: int
    logprob: float


class TokenLogprob(Value, frozen=True, kw_only=True):
    """The sampled token's log-probability under the model, and the best alternatives."""

    id: int
    logprob: float
    top: list[TopLogprob]


class CudaResources(Value, frozen=True, kw_only=True):
    """The GPU; `*_gb` in units of 1e9 bytes, utilization in percent (None where the driver does not say)."""

    device: str
    total_gb: float
    free_gb: float
    total_bytes: int
    free_bytes: int
    utilization: float | None
    compute_capability: str


class ModelSummary(Value, frozen=True, kw_only=True):
    """The model being served."""

    name: str | None
    path: str | None
    vision: bool


class ModelEntry(Value, frozen=True, kw_only=True):
    """A model on this machine; `path` is relative, `size_mb` in units of 1e6 bytes."""

    name: str
    path: str
    size_mb: float
    source: str
    loaded: bool = False


class EngineResources(Value, frozen=True, kw_only=True):
    """The engine's load."""

    running: int
    queued: int
    tokens_per_s: float
    kv_blocks: int | None = None


class HostResources(Value, frozen=True, kw_only=True):
    """The host: logical CPU count and total memory in units of 1e9 bytes."""

    cpu: int
    ram_gb: float


class HistoryMessage(Value, frozen=True, kw_only=True):
    """One message of the session's conversation."""

    id: str
    parent_id: str | None
    role: Role
    content: str
    request_id: str | None
    model: str | None
    created_at: float
    finish_reason: str | None


# --- client to server ----------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True):
    """Opens or resumes a session; the first message, with or without its `type`."""

    protocol: Annotated[list[int], Meta(max_length=16)] | None = None
    auth: Annotated[str, Meta(max_length=4096)] | None = None
    session_id: SessionId | None = None
    resume: Position | None = None
    mode: Literal["takeover", "observe"] = "takeover"
    window: Seq | None = None
    client: ClientInfo | None = None


class Inference(Message, frozen=True, kw_only=True):
    """Asks for a completion. Exactly one of `prompt`, `messages` and `input_ids`, unless `parent_id` regenerates."""

    request_id: RequestId | None = None
    model: ModelName | None = None
    prompt: str | Prompt | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)] | None = None
    input_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    parent_id: Annotated[str, Meta(max_length=64)] | None = None
    config: Sampling | None = None
    on_disconnect: Literal["continue", "cancel"] = "continue"
    ttl_s: Annotated[float, Meta(ge=1, le=31_536_000)] | None = None


class Cancel(Message, frozen=True, kw_only=True):
    """Ends a request; what it generated stays."""

    request_id: RequestId


class Ack(Message, frozen=True, kw_only=True):
    """Cumulative acknowledgement up to `seq`, or up to the last terminal event sent when absent."""

    seq: Seq | None = None
    window: Seq | None = None


class Ping(Message, frozen=True, kw_only=True):
    """Health check; also allowed before the hello. `t` comes back unchanged."""

    t: int | float | Annotated[str, Meta(max_length=256)] | None = None


class Config(Message, frozen=True, kw_only=True):
    """Sets the session's sampling defaults, merged over the present ones."""

    data: Sampling


class GetResources(Message, frozen=True, kw_only=True):
    """Asks for device, model and load."""


class GetStatus(Message, frozen=True, kw_only=True):
    """Asks for the server's state in short."""


class ListModels(Message, frozen=True, kw_only=True):
    """Asks for the models on this machine."""


class SwitchModel(Message, frozen=True, kw_only=True):
    """Loads another model; `name`, or `model_path` as listed. Admin."""

    model_path: ModelName | None = None
    name: ModelName | None = None


class DeleteModel(Message, frozen=True, kw_only=True):
    """Deletes a model's files. Admin; never the loaded one."""

    model_name: ModelName


class History(Message, frozen=True, kw_only=True):
    """Asks for the conversation, newest last."""

    before_id: Annotated[str, Meta(max_length=64)] | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


class EndSession(Message, frozen=True, kw_only=True):
    """Deletes a session of one's own for good."""

    session_id: SessionId


ClientMessage = (
    Hello
    | Inference
    | Cancel
    | Ack
    | Ping
    | Config
    | GetResources
    | GetStatus
    | ListModels
    | SwitchModel
    | DeleteModel
    | History
    | EndSession
)

# --- server to client ----------------------------------------------------------------------------------------------


class Event(Message, frozen=True, kw_only=True):
    """Base of messages that may belong to the session's story; `seq` and `epoch` come together or not at all."""

    seq: int | UnsetType = UNSET
    epoch: int | UnsetType = UNSET


class Welcome(Message, frozen=True, kw_only=True):
    """Answers the hello."""

    protocol: int
    session_id: str
    status: Literal["new", "resumed", "reset"]
    reason: str | None = None
    epoch: int
    head_seq: int
    floor_seq: int
    requests: list[RequestState]
    model: str | None
    capabilities: Capabilities
    resources: DeviceSummary
    limits: Limits
    heartbeat: Heartbeat
    durability: Literal["os", "disk"]
    server: ServerInfo


class Snapshot(Message, frozen=True, kw_only=True):
    """State of the session after a `reset`; the client's position becomes (epoch, as_of)."""

    as_of: int
    epoch: int
    requests: list[RequestSnapshot]


class Start(Event, frozen=True, kw_only=True):
    """A request began; the sampling that is in force, `seed` included."""

    request_id: str
    model: str
    tokens_in: int
    max_tokens: int
    seed: int


class Token(Event, frozen=True, kw_only=True):
    """One or more generated tokens. `index` is that of the first; `ids` holds all sampled ids, EOS included."""

    request_id: str
    index: int
    data: str
    ids: list[int]
    logprobs: list[TokenLogprob] | None = None


class Done(Event, frozen=True, kw_only=True):
    """The request's one terminal event, unless it is an `error`."""

    request_id: str
    total_tokens: int
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    text_sha256: str


class Error(Event, frozen=True, kw_only=True):
    """A failure. With `seq`: the terminal event of an accepted request; without: a rejection or a connection's error."""

    request_id: str | None = None
    code: str
    message: str
    retryable: bool
    retry_after_ms: int | None = None
    field: str | None = None
    terminal: Literal["done", "error"] | None = None


class Log(Event, frozen=True, kw_only=True):
    """A notice; `code` for programs, `message` for a person."""

    code: str
    message: str
    request_id: str | None = None
    head_seq: int | None = None
    from_index: int | None = None
    exact: bool | None = None
    bytes: int | None = None
    total_bytes: int | None = None


class ModelSwitched(Event, frozen=True, kw_only=True):
    """The switch that this session asked for is complete."""

    name: str
    path: str
    message: str
    max_context: int


class Queue(Message, frozen=True, kw_only=True):
    """A request's place: 0 is running or done."""

    request_id: str
    position: int
    eta_ms: int | None = None


class AckReceived(Message, frozen=True, kw_only=True):
    """Answers `ack`; events up to `floor_seq` may be gone."""

    seq: int
    floor_seq: int


class Pong(Message, frozen=True, kw_only=True):
    """Answers `ping`."""

    t: int | float | str | None = None


class ConfigAck(Message, frozen=True, kw_only=True):
    """The session's sampling defaults after the merge, server defaults included."""

    config: Sampling


class Resources(Message, frozen=True, kw_only=True):
    """Device, model and load."""

    cuda: CudaResources | None
    model: ModelSummary
    available_models: list[ModelEntry]
    engine: EngineResources
    host: HostResources


class Status(Message, frozen=True, kw_only=True):
    """The server's state in short; `memory` as in the welcome's `resources`."""

    model: str | None
    memory: DeviceSummary
    sessions: int
    queue: int
    uptime_s: float


class ModelsList(Message, frozen=True, kw_only=True):
    """The models on this machine."""

    models: list[ModelEntry]


class ModelDeleted(Message, frozen=True, kw_only=True):
    """The model's files are gone."""

    model_name: str
    message: str


class HistoryReply(Message, frozen=True, kw_only=True, tag="history"):
    """A page of the conversation, oldest first; `more` says that older ones exist."""

    messages: list[HistoryMessage]
    more: bool


class SessionEnded(Message, frozen=True, kw_only=True):
    """The session and its files are gone; its id is never used again."""

    session_id: str


ServerMessage = (
    Welcome
    | Snapshot
    | Start
    | Token
    | Done
    | Error
    | Log
    | ModelSwitched
    | Queue
    | AckReceived
    | Pong
    | ConfigAck
    | Resources
    | Status
    | ModelsList
    | ModelDeleted
    | HistoryReply
    | SessionEnded
)
