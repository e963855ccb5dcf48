"""Every message of the wire protocol, version 1, as a typed value.

A long file, because it is the protocol's dictionary: what each field means stands here and nowhere else.

Owns the shapes and the ranges of PROTOCOL.md; the tables there are generated from the types and docstrings here, which
is why this is one long file. Knows nothing of sessions, sockets or engines. Invariant: a value that decodes is within
range in every field, so no later code checks ranges again.

Absent optional fields are `None` when received and are left out when sent; a message is an *event* of the session's
story iff it carries both `seq` and `epoch`.
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
SessionId = Annotated[str, Meta(max_length=64)]
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

    Attributes:
        max_new_tokens: completion tokens at most; also bounded by what the prompt leaves of the context.
        do_sample: false: always the likeliest token.
        temperature: sharpness of the choice; 0 is the same as `do_sample: false`.
        top_p: keep the likeliest tokens that together have this probability.
        top_k: keep this many of the likeliest tokens; 0: all.
        min_p: keep tokens at least this likely, relative to the likeliest.
        repetition_penalty: above 1 makes tokens that came before, in prompt or answer, less likely.
        frequency_penalty: subtracted for every time a token came in the answer.
        presence_penalty: subtracted once for a token that came in the answer.
        logit_bias: token id, as a string, to what is added to its logit.
        seed: of the random choices; drawn by the server and stated in `start` when absent.
        stop: one or several texts that end the answer; they are not part of it.
        ignore_eos: goes on where the model would end.
        logprobs: how many alternatives to report with every token; 0: the chosen token alone.
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
    """An inline image; neither URLs nor server paths are taken. Of an animation the first frame is shown.

    Attributes:
        data: base64 in its canonical form.
        mime: what the bytes are; a file of another type is refused.
    """

    data: str
    mime: Literal["image/png", "image/jpeg", "image/webp", "image/gif"]


class Prompt(Value, frozen=True, kw_only=True):
    """A user turn, with an optional system message that replaces the conversation's.

    Attributes:
        user: the user's text.
        system: replaces the conversation's system message; empty: there is none from now on; absent: as before.
        images: shown to the model before the text, and again with it in later turns; `capabilities.vision` says whether
            they are taken.
    """

    user: str = ""
    system: str | None = None
    images: Annotated[list[Image], Meta(max_length=16)] | None = None


class ChatMessage(Value, frozen=True, kw_only=True):
    """One turn of a conversation that the client supplies itself.

    Attributes:
        role: whose turn it is.
        content: the text.
    """

    role: Role
    content: str


class Position(Value, frozen=True, kw_only=True):
    """The last event that a client applied.

    Attributes:
        epoch: of that event.
        last_seq: its `seq`; 0 before any.
    """

    epoch: Seq
    last_seq: Seq


class ClientInfo(Value, frozen=True, kw_only=True):
    """What the client says it is; for logs and lists only.

    Attributes:
        name: the program.
        version: its version.
    """

    name: Label = ""
    version: Label = ""


class RequestState(Value, frozen=True, kw_only=True):
    """An open request, as `welcome` lists it.

    Attributes:
        request_id: the request.
        state: `queued` until its `start`.
    """

    request_id: str
    state: Literal["queued", "running"]


class RequestSnapshot(Value, frozen=True, kw_only=True):
    """A request's whole state, for a client whose position could not be continued.

    `next_index` is the index of the first token that later events bring.

    Attributes:
        request_id: the request.
        state: where it stands at `as_of`.
        text: everything generated so far.
        next_index: index of the first token that later events bring.
        terminal: its `done` or `error`, when it has ended.
    """

    request_id: str
    state: Literal["queued", "running", "done", "error"]
    text: str
    next_index: int
    terminal: dict[str, Any] | None = None


class Capabilities(Value, frozen=True, kw_only=True):
    """What the server can do with the default model; `max_context` in tokens.

    Attributes:
        vision: whether images are taken.
        resume: whether a session can be resumed by position; always true here.
        flash_attention: whether flash attention is in use.
        max_context: tokens that a request may hold, prompt and completion together; 0 while none was loaded yet.
    """

    vision: bool
    resume: bool
    flash_attention: bool
    max_context: int


class DeviceSummary(Value, frozen=True, kw_only=True):
    """The compute device, in short; sizes in units of 1e9 bytes.

    Attributes:
        device: its name.
        total_gb: memory in all.
        free_gb: memory that is free.
    """

    device: str
    total_gb: float
    free_gb: float


class Limits(Value, frozen=True, kw_only=True):
    """Limits that a client must respect.

    Attributes:
        max_message_bytes: longest frame taken.
        max_queue: requests of a session that may be open at once.
    """

    max_message_bytes: int
    max_queue: int


class Heartbeat(Value, frozen=True, kw_only=True):
    """How often the server pings.

    Attributes:
        interval_s: seconds between WebSocket pings.
    """

    interval_s: float


class ServerInfo(Value, frozen=True, kw_only=True):
    """Which server answers.

    Attributes:
        node_id: names the server's installation.
        version: of llmws.
    """

    node_id: str
    version: str


class Usage(Value, frozen=True, kw_only=True):
    """Token counts of a finished request.

    Attributes:
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the answer, the end-of-sequence token included.
        cached_tokens: prompt tokens that did not have to be computed again.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Timing(Value, frozen=True, kw_only=True):
    """Times of a finished request, measured by the process that finished it.

    Attributes:
        queued_ms: from acceptance until it was given to the engine.
        ttft_ms: from acceptance to the first token; null when none came.
        tokens_per_s: from when it was given to the engine until its end; null when no token came.
    """

    queued_ms: float
    ttft_ms: float | None
    tokens_per_s: float | None


class TopLogprob(Value, frozen=True, kw_only=True):
    """One alternative at a position.

    Attributes:
        id: the token.
        logprob: its natural logarithm of the probability.
    """

    id: int
    logprob: float


class TokenLogprob(Value, frozen=True, kw_only=True):
    """The sampled token's log-probability under the model, and the best alternatives.

    Attributes:
        id: the token that was chosen.
        logprob: natural logarithm of its probability, before temperature and filters.
        top: the likeliest tokens, best first.
    """

    id: int
    logprob: float
    top: list[TopLogprob]


class CudaResources(Value, frozen=True, kw_only=True):
    """The GPU; `*_gb` in units of 1e9 bytes, utilization in percent (None where the driver does not say).

    Attributes:
        device: the GPU's name.
        total_gb: memory in all.
        free_gb: memory that is free.
        total_bytes: the same in bytes.
        free_bytes: the same in bytes.
        utilization: percent; null where the driver does not say.
        compute_capability: such as `9.0`.
    """

    device: str
    total_gb: float
    free_gb: float
    total_bytes: int
    free_bytes: int
    utilization: float | None
    compute_capability: str


class ModelSummary(Value, frozen=True, kw_only=True):
    """The default model.

    Attributes:
        name: null when there is none.
        path: as in the list of models.
        vision: whether images are taken.
    """

    name: str | None
    path: str | None
    vision: bool


class ModelEntry(Value, frozen=True, kw_only=True):
    """A model on this machine; `path` is relative, `size_mb` in units of 1e6 bytes.

    Attributes:
        name: what `inference` and `switch_model` take.
        path: `models/<name>` or `var/models/<name>`; taken too.
        size_mb: of its files.
        source: `models` (downloaded) or `var` (the user's own).
        loaded: whether it is in memory: a request for it needs no load.
    """

    name: str
    path: str
    size_mb: float
    source: str
    loaded: bool = False


class EngineResources(Value, frozen=True, kw_only=True):
    """The engine's load.

    Attributes:
        running: requests that are being generated.
        queued: requests that wait.
        tokens_per_s: completion tokens of all requests together, of late.
        kv_blocks: blocks of the key-value cache that are in use.
    """

    running: int
    queued: int
    tokens_per_s: float
    kv_blocks: int | None = None


class HostResources(Value, frozen=True, kw_only=True):
    """The host: logical CPU count and total memory in units of 1e9 bytes.

    Attributes:
        cpu: logical processors.
        ram_gb: memory in all.
    """

    cpu: int
    ram_gb: float


class HistoryMessage(Value, frozen=True, kw_only=True):
    """One message of the session's conversation.

    Attributes:
        id: names the message.
        parent_id: the message before it; null for the first.
        role: whose turn it is.
        content: the text.
        request_id: the request that it belongs to.
        model: which model answered.
        created_at: Unix time in seconds.
        finish_reason: of an answer.
    """

    id: str
    parent_id: str | None
    role: Role
    content: str
    request_id: str | None
    model: str | None
    created_at: float
    finish_reason: str | None


class SessionEntry(Value, frozen=True, kw_only=True):
    """A session, as a list shows it.

    Attributes:
        session_id: its id.
        title: what it is called.
        created: Unix time, in seconds.
        last_activity: Unix time, in seconds.
        state: whether a client is attached; `archived`: only its conversation is kept.
        messages: how many messages its conversation has.
    """

    session_id: str
    title: str | None
    created: float
    last_activity: float
    state: Literal["attached", "detached", "archived"]
    messages: int


# --- client to server ----------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True):
    """Opens or resumes a session; the first message, with or without its `type`.

    Attributes:
        protocol: versions that the client speaks; absent: 1.
        auth: the token, unless it came with the upgrade.
        session_id: the session to resume; absent: a new one.
        resume: where the client stands; absent: send everything that is not acknowledged.
        mode: `observe`: watch without taking the session over.
        window: events that may be in flight; absent: any number; 0: none.
        client: who asks.
    """

    protocol: Annotated[list[Seq], Meta(max_length=16)] | None = None
    auth: Annotated[str, Meta(max_length=4096)] | None = None
    session_id: SessionId | None = None
    resume: Position | None = None
    mode: Literal["takeover", "observe"] = "takeover"
    window: Seq | None = None
    client: ClientInfo | None = None


class Inference(Message, frozen=True, kw_only=True):
    """Asks for a completion. Exactly one of `prompt`, `messages` and `input_ids`, unless `parent_id` regenerates.

    Attributes:
        request_id: the client's idempotency key, unique in the session; made by the server when absent.
        model: a listed name or path; absent: the default.
        prompt: the next turn of the session's own conversation; a string is the user's text.
        messages: the whole context, oldest first; the conversation is left alone.
        input_ids: the whole context as token ids.
        parent_id: the message of the conversation that the prompt follows; empty: none, a new beginning; absent: the
            newest. Without a prompt: the question to answer once more.
        config: sampling for this request.
        on_disconnect: whether the request is cancelled when its connection is lost.
        ttl_s: how long a generation that nobody is attached to goes on.
    """

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
    """Ends a request; what it generated stays.

    Attributes:
        request_id: the request to end.
    """

    request_id: RequestId


class Ack(Message, frozen=True, kw_only=True):
    """Cumulative acknowledgement up to `seq`, or up to the last terminal event sent when absent.

    Attributes:
        seq: the last event that was applied and will not be asked for again.
        window: a new window, from now on.
    """

    seq: Seq | None = None
    window: Seq | None = None


class Ping(Message, frozen=True, kw_only=True):
    """Health check; also allowed before the hello. `t` comes back unchanged.

    Attributes:
        t: anything; comes back.
    """

    t: (
        Annotated[int, Meta(ge=-MAX_SAFE_INT, le=MAX_SAFE_INT)]
        | Annotated[float, Meta(ge=-1e300, le=1e300)]
        | Annotated[str, Meta(max_length=256)]
        | None
    ) = None


class Config(Message, frozen=True, kw_only=True):
    """Sets the session's sampling defaults, merged over the present ones.

    Attributes:
        data: what changes; absent fields stay as they are.
    """

    data: Sampling


class GetResources(Message, frozen=True, kw_only=True):
    """Asks for device, model and load."""


class GetStatus(Message, frozen=True, kw_only=True):
    """Asks for the server's state in short."""


class ListModels(Message, frozen=True, kw_only=True):
    """Asks for the models on this machine."""


class SwitchModel(Message, frozen=True, kw_only=True):
    """Loads another model; `name`, or `model_path` as listed. Admin.

    Attributes:
        model_path: a listed path, as the original protocol sends it; a name is taken too.
        name: a listed name; goes before `model_path`.
    """

    model_path: ModelName | None = None
    name: ModelName | None = None


class DeleteModel(Message, frozen=True, kw_only=True):
    """Deletes a model's files. Admin; never one that is in use.

    Attributes:
        model_name: the name, not the path.
    """

    model_name: ModelName


class History(Message, frozen=True, kw_only=True):
    """Asks for the conversation, newest last.

    Attributes:
        before_id: messages before this one; absent: the newest.
        limit: messages at most.
    """

    before_id: Annotated[str, Meta(max_length=64)] | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


class EndSession(Message, frozen=True, kw_only=True):
    """Deletes a session of one's own for good.

    Attributes:
        session_id: the connection's own session, or another one of the same owner.
    """

    session_id: SessionId


class DownloadModel(Message, frozen=True, kw_only=True):
    """Fetches a model to this machine. Admin; not served in this version.

    Attributes:
        repo: the repository, `owner/name`.
        target_dir: name of the folder; the repository's name when absent.
        revision: branch, tag or commit.
        via: how to fetch it; the server chooses when absent.
    """

    repo: ModelName
    target_dir: ModelName | None = None
    revision: Label | None = None
    via: Literal["hub", "git", "torrent", "peer"] | None = None


class CancelDownload(Message, frozen=True, kw_only=True):
    """Stops a download, which can be resumed. Admin; not served in this version.

    Attributes:
        download_id: from `download_started`.
    """

    download_id: Label


class ListPeers(Message, frozen=True, kw_only=True):
    """Asks for the other nodes. Not served in this version."""


class UpdateSession(Message, frozen=True, kw_only=True):
    """Changes what the session is called.

    Attributes:
        title: for people, in lists; absent: none, lists then show how the conversation begins.
    """

    title: Label | None = None


class Import(Message, frozen=True, kw_only=True):
    """Adds messages to the session's conversation, as a branch of its own.

    Attributes:
        messages: oldest first; a system message first sets the session's system prompt.
    """

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]


class ListSessions(Message, frozen=True, kw_only=True):
    """Asks for one's own sessions."""


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
    | DownloadModel
    | CancelDownload
    | ListPeers
    | UpdateSession
    | Import
    | ListSessions
)

# --- server to client ----------------------------------------------------------------------------------------------


class Event(Message, frozen=True, kw_only=True):
    """Base of messages that may belong to the session's story; `seq` and `epoch` come together or not at all.

    Attributes:
        seq: position in the session's story: +1 an event, from 1.
        epoch: which opening of the session's log the event belongs to.
    """

    seq: int | UnsetType = UNSET
    epoch: int | UnsetType = UNSET


class Welcome(Message, frozen=True, kw_only=True):
    """Answers the hello.

    Attributes:
        protocol: the version in force.
        session_id: the session: keep it to resume.
        status: `resumed`: everything missed follows; `reset`: a `snapshot` follows.
        reason: of a `new` session or a `reset` that was not asked for.
        epoch: the present one.
        head_seq: the newest event, 0 before any.
        floor_seq: events up to here are acknowledged.
        requests: the open ones.
        model: the model that serves, null for none.
        capabilities: what can be asked of it.
        resources: where it runs.
        limits: what the server takes.
        heartbeat: how often it pings.
        durability: `os`: events survive a killed server; `disk`: a power cut too.
        server: who answers.
        role: what the token may do: the admin messages, or not.
    """

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
    role: Literal["user", "admin"] | None = None


class Snapshot(Message, frozen=True, kw_only=True):
    """State of the session after a `reset`; the client's position becomes (epoch, as_of).

    Attributes:
        as_of: events up to here are folded in.
        epoch: the position's epoch.
        requests: what is open, and what ended after the floor.
    """

    as_of: int
    epoch: int
    requests: list[RequestSnapshot]


class Start(Event, frozen=True, kw_only=True):
    """A request began; the sampling that is in force, `seed` included.

    Attributes:
        request_id: the request.
        model: which model answers.
        tokens_in: tokens of the prompt.
        max_tokens: completion tokens at most.
        seed: in force, drawn or given.
    """

    request_id: str
    model: str
    tokens_in: int
    max_tokens: int
    seed: int


class Token(Event, frozen=True, kw_only=True):
    """One or more generated tokens. `index` is that of the first; `ids` holds all sampled ids, EOS included.

    Attributes:
        request_id: the request.
        index: of the first of `ids` in the completion, from 0.
        data: the text; may be empty; never splits a character.
        ids: all sampled tokens, the end-of-sequence token included.
        logprobs: one an id, when asked for.
    """

    request_id: str
    index: int
    data: str
    ids: list[int]
    logprobs: list[TokenLogprob] | None = None


class Done(Event, frozen=True, kw_only=True):
    """The request's one terminal event, unless it is an `error`.

    Attributes:
        request_id: the request.
        total_tokens: completion tokens.
        finish_reason: `stop`: the model or a stop string; `length`: the limit; `cancelled`: by a client; `interrupted`:
            nobody came for it.
        usage: counts.
        timing: times.
        text_sha256: hex SHA-256 of the whole text in UTF-8: check what was put together.
    """

    request_id: str
    total_tokens: int
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    text_sha256: str


class Error(Event, frozen=True, kw_only=True):
    """A failure: with `seq` the terminal event of an accepted request, without it a rejection or a bad message.

    Attributes:
        request_id: the request, where there is one.
        code: for programs: the table of error codes.
        message: for a person.
        retryable: whether the same message may succeed later.
        retry_after_ms: not before this long.
        field: path of the field that is wrong.
        terminal: of a `duplicate`: how the request had ended.
    """

    request_id: str | None = None
    code: str
    message: str
    retryable: bool
    retry_after_ms: int | None = None
    field: str | None = None
    terminal: Literal["done", "error"] | None = None


class Log(Event, frozen=True, kw_only=True):
    """A notice; `code` for programs, `message` for a person.

    Attributes:
        code: for programs.
        message: for a person.
        request_id: the request, where there is one.
        head_seq: of `caught_up`: the newest event that was replayed.
        from_index: of `resumed_after_restart` and `continued`: index of the next token.
        exact: of the same: false when the rest may differ from what would have come.
        bytes: of `loading`: read so far.
        total_bytes: of `loading`: to read.
    """

    code: str
    message: str
    request_id: str | None = None
    head_seq: int | None = None
    from_index: int | None = None
    exact: bool | None = None
    bytes: int | None = None
    total_bytes: int | None = None


class ModelSwitched(Event, frozen=True, kw_only=True):
    """The switch that this session asked for is complete.

    Attributes:
        name: of the model.
        path: as listed.
        message: for a person.
        max_context: tokens that a request may hold now.
    """

    name: str
    path: str
    message: str
    max_context: int


class Queue(Message, frozen=True, kw_only=True):
    """A request's place: 0 is running or done.

    Attributes:
        request_id: the request.
        position: how many requests go before it: of the session, and of other sessions while it is next in its own.
        eta_ms: a guess at when its turn comes.
    """

    request_id: str
    position: int
    eta_ms: int | None = None


class AckReceived(Message, frozen=True, kw_only=True):
    """Answers `ack`; events up to `floor_seq` may be gone.

    Attributes:
        seq: the newest acknowledgement that was taken.
        floor_seq: events up to here may be gone.
    """

    seq: int
    floor_seq: int


class Pong(Message, frozen=True, kw_only=True):
    """Answers `ping`.

    Attributes:
        t: of the `ping`.
    """

    t: int | float | str | None = None


class ConfigAck(Message, frozen=True, kw_only=True):
    """The session's sampling defaults after the merge, server defaults included.

    Attributes:
        config: in force for requests that bring no `config`.
    """

    config: Sampling


class Resources(Message, frozen=True, kw_only=True):
    """Device, model and load.

    Attributes:
        cuda: null on a CPU.
        model: the model that serves.
        available_models: as in `models_list`.
        engine: its load.
        host: the machine.
    """

    cuda: CudaResources | None
    model: ModelSummary
    available_models: list[ModelEntry]
    engine: EngineResources
    host: HostResources


class Status(Message, frozen=True, kw_only=True):
    """The server's state in short; `memory` as in the welcome's `resources`.

    Attributes:
        model: the model that serves.
        memory: of the device that it runs on.
        sessions: sessions in memory.
        queue: requests that wait, of all sessions.
        uptime_s: seconds since the server's start.
    """

    model: str | None
    memory: DeviceSummary
    sessions: int
    queue: int
    uptime_s: float


class ModelsList(Message, frozen=True, kw_only=True):
    """The models on this machine.

    Attributes:
        models: `models/` first, then by name.
    """

    models: list[ModelEntry]


class ModelDeleted(Message, frozen=True, kw_only=True):
    """The model's files are gone.

    Attributes:
        model_name: of the model.
        message: for a person.
    """

    model_name: str
    message: str


class HistoryReply(Message, frozen=True, kw_only=True, tag="history"):
    """A page of the conversation, oldest first; `more` says that older ones exist.

    Attributes:
        messages: oldest first.
        more: whether there are older ones.
    """

    messages: list[HistoryMessage]
    more: bool


class SessionEnded(Message, frozen=True, kw_only=True):
    """The session and its files are gone; its id is never used again.

    Attributes:
        session_id: the session.
    """

    session_id: str


class DownloadStarted(Message, frozen=True, kw_only=True):
    """A download has begun; `log` messages tell how it goes. Not sent in this version.

    Attributes:
        download_id: names it.
    """

    download_id: str


class DownloadDone(Message, frozen=True, kw_only=True):
    """A download is complete and checked. Not sent in this version.

    Attributes:
        download_id: names it.
        name: the model's name from now on.
        path: where it is listed.
    """

    download_id: str
    name: str
    path: str


class Peers(Message, frozen=True, kw_only=True):
    """The other nodes. Not sent in this version.

    Attributes:
        peers: one object a node.
    """

    peers: list[dict[str, Any]]


class SessionUpdated(Message, frozen=True, kw_only=True):
    """Answers `update_session` and `import`.

    Attributes:
        session_id: the session.
        title: what it is called now.
    """

    session_id: str
    title: str | None = None


class Sessions(Message, frozen=True, kw_only=True):
    """One's own sessions, the newest 1,000.

    Attributes:
        sessions: the most recently used first.
    """

    sessions: list[SessionEntry]


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
    | DownloadStarted
    | DownloadDone
    | Peers
    | SessionUpdated
    | Sessions
)
