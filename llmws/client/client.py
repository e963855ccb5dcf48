"""The public face of the package: a session on a server and its answers; `questions` has what else may be asked.

Knows neither sockets nor positions. Invariant: every method that waits ends, with a value or with a `ClientError`.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Literal, Self
from uuid import uuid4

import msgspec

from llmws.client import requests
from llmws.client.answer import Answer, Completion, completion
from llmws.client.backoff import Backoff
from llmws.client.calls import Calls
from llmws.client.connection import Collectable, Connection, Notice
from llmws.client.discovery import local_server
from llmws.client.errors import ClientError, UnreachableError
from llmws.client.generation import Generation
from llmws.client.link import READABLE_ON_THE_WAY, is_readable_on_the_way, websocket_url
from llmws.client.questions import CALL_TIMEOUT_S, Questions, Reply
from llmws.client.requests import SamplingValue
from llmws.client.session import Session
from llmws.protocol import messages as m


class ReadableTokenWarning(UserWarning):
    """A token is sent without TLS to another machine: whoever is on the way can read it, and use it."""


class Client(Questions):
    """A session on a server, for as long as `async with` lasts.

    Answers come exactly once and in order, however often the connection is cut or the server restarted. Requests that
    the server has not answered are sent again under the same id, which runs them once. What the caller has read to its
    end is acknowledged.

    Args:
        url: the server's address; None for the server that this account runs on this machine.
        token: the bearer token; with `url` None that server's own.
        tls: which certificates are believed at an `https` or `wss` address, as `trusting` makes it; None for those of
            the machine's authorities, with `url` None for that server's own alone.
        session_id: an existing session; None for a new one.
        position: where to go on, from `Client.position` of an earlier client; None for everything unacknowledged.
        window: how many events the server may send ahead.
        mode: `observe` reads along without taking the session over.
        when_taken_over: what to do when another client takes the session over: end in `TakenOverError`, or go on as an
            observer until `take_over`.
        name: what the server's lists and logs call this client.
        connect_timeout_s: how long the first connection may take.
        reconnect_timeout_s: how long a lost connection is tried again. In both, one that the server ends over a fault
            of its own before anything comes, as with a full disk, counts as none; then it is `ServerFaultError`.
        heartbeat_s: how often the connection is tested; one on which no answer comes for as long again is lost.
        listen: called with every `Notice`.
        backoff: the waits between attempts.

    Raises:
        UnreachableError: `url` is None and no server of this account runs here.
        CertificateError: the certificate of the server that runs here cannot be read.
        ValueError: `url` is not an address, or not one with TLS although `tls` is given, or `token` or `name` not valid
            Unicode.

    Warns:
        ReadableTokenWarning: the token will leave the machine unencrypted.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        session_id: str | None = None,
        position: m.Position | None = None,
        window: int = 1024,
        mode: Literal["takeover", "observe"] = "takeover",
        when_taken_over: Literal["leave", "observe"] = "leave",
        name: str = "python",
        connect_timeout_s: float = 10.0,
        reconnect_timeout_s: float = 600.0,
        heartbeat_s: float = 20.0,
        listen: Callable[[Notice], None] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        if url is None:
            if (server := local_server()) is None:
                raise UnreachableError("no server of this account runs on this machine; give a URL")
            url, token, tls = server.ws_url, token or server.token(), tls or server.tls()
        self.url = websocket_url(url)
        if tls is not None and not self.url.startswith("wss:"):
            raise ValueError(f"{url} is no address with TLS; such a one begins with https:// or wss://")
        if token is not None and is_readable_on_the_way(self.url):
            warnings.warn(READABLE_ON_THE_WAY.format(url=url), ReadableTokenWarning, stacklevel=2)
        self._connect_timeout_s = connect_timeout_s
        self._reconnect_timeout_s = reconnect_timeout_s
        self._listen = listen or (lambda _notice: None)
        self._generations: dict[str, Generation] = {}
        self._announced: Answer | None = None
        self._session = Session(session_id=session_id, position=position, window=window, mode=mode, client_name=name)
        requests.check(self._session.hello(token))
        self._calls = Calls(self._send)
        self._connection = Connection(
            self.url,
            token,
            self._session,
            tls=tls,
            backoff=backoff or Backoff(),
            heartbeat_s=heartbeat_s,
            stays_as_observer=when_taken_over == "observe",
            receive=self._receive,
            changed=self._changed,
            listen=self._listen,
        )

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects and attaches to the session.

        Raises:
            UnreachableError, ServerFaultError: no server answered, or could go on, within `connect_timeout_s`.
            UnauthorizedError, ForbiddenError, ProtocolError: it does not let this client in.
        """
        await self._connection.open(first_timeout_s=self._connect_timeout_s, later_timeout_s=self._reconnect_timeout_s)

    async def close(self, *, ack: bool = True) -> None:
        """Leaves the session; running answers go on without this client.

        Args:
            ack: acknowledge what arrived and is not being waited for: what was read to its end, and the rest of an
                answer whose reading was left early. Without it the server keeps that for the next client.
        """
        await self._connection.close(ack=ack)

    @property
    def welcome(self) -> m.Welcome | None:
        """What the server said last about itself, the session and the model; None before the first connection."""
        return self._connection.welcome

    @property
    def session_id(self) -> str | None:
        """The session's id; None before the first welcome of a new one."""
        return self._session.session_id

    @property
    def position(self) -> m.Position | None:
        """Where a later client of this session should go on: everything before was read from a `Generation`."""
        return self._session.position

    @property
    def is_connected(self) -> bool:
        """Whether the session is attached right now."""
        return self._connection.is_up

    @property
    def is_observer(self) -> bool:
        """Whether the session is only watched, so that most of what this client sends is `forbidden`."""
        return self._session.mode == "observe"

    @property
    def has_collectable(self) -> bool:
        """Whether `collect` has an answer to give now."""
        return bool(self._session.uncollected)

    @property
    def failure(self) -> ClientError | None:
        """Why the client has given up; None while it has not."""
        return self._connection.failure

    # --- answers ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | None = None,
        *,
        system: str | None = None,
        messages: Sequence[m.ChatMessage | dict[str, str]] | None = None,
        images: Sequence[m.Image] | None = None,
        model: str | None = None,
        config: m.Sampling | None = None,
        max_tokens: int | None = None,
        parent_id: str | None = None,
        request_id: str | None = None,
        on_disconnect: Literal["continue", "cancel"] = "continue",
        ttl_s: float | None = None,
        **sampling: SamplingValue,
    ) -> Generation:
        """Asks for an answer: `async for event in client.generate("…")`, or `completion = await client.generate("…")`.

        The request is sent at once; several may be out, and the server answers them in order.

        Args:
            prompt: the user's turn in the session's own conversation.
            system: replaces the conversation's system message.
            messages: the whole context instead of the session's conversation, which then stays as it is.
            images: shown to the model before the prompt's text; `image_file` makes them.
            model: which model answers; None for the server's present one.
            config: sampling parameters as one value.
            max_tokens: the same as `max_new_tokens`.
            parent_id: the message of the conversation that the prompt follows; empty for a new beginning.
            request_id: the idempotency key; made up when None.
            on_disconnect: `cancel` ends the answer when this client's connection is lost.
            ttl_s: how long the server works for nobody.
            **sampling: fields of `llmws.protocol.messages.Sampling`, over those of `config`.

        Raises:
            RequestRejectedError: the request is larger than the server takes.
            ClientError: the client was not opened, has given up or is closed.
            ValueError: a sampling parameter is unknown or out of range, a text is not valid Unicode, there are more
                than 16 images, or an answer of the same `request_id` has not been read to its end.
        """
        self._connection.check()
        if max_tokens is not None:
            sampling["max_new_tokens"] = max_tokens
        inference = m.Inference(
            request_id=request_id or uuid4().hex,
            model=model,
            prompt=requests.prompt(prompt, system, images),
            messages=None if messages is None else msgspec.convert(messages, list[m.ChatMessage]),
            parent_id=parent_id,
            config=requests.sampling(sampling, over=config) if sampling else config,
            on_disconnect=on_disconnect,
            ttl_s=ttl_s,
        )
        requests.check(inference, self.welcome.limits if self.welcome is not None else None)
        generation = self._generation(self._session.ask(inference))
        self._connection.settle()
        return generation

    def regenerate(
        self,
        message_id: str,
        *,
        model: str | None = None,
        config: m.Sampling | None = None,
        **sampling: SamplingValue,
    ) -> Generation:
        """Answers a question of the conversation once more; the new answer is a sibling of the earlier ones.

        Args:
            message_id: of the question, from `history`.
            model: which model answers; None for the server's present one.
            config: sampling parameters as one value.
            **sampling: fields of `llmws.protocol.messages.Sampling`, over those of `config`.

        Raises:
            RequestRejectedError, ClientError, ValueError: as `generate`.
        """
        config = requests.sampling(sampling, over=config) if sampling else config
        return self.generate(parent_id=message_id, model=model, config=config)

    async def collect(self) -> AsyncIterator[Generation]:
        """Gives the answers to requests that another client of this session made, oldest first, until none is left.

        A `Collectable` notice tells of what comes later, from a client that is observed. With a position these are the
        ones that an earlier client had not read to the end, the first of them perhaps from the middle on
        (`Generation.is_whole`); without, all unacknowledged ones. Read each before asking for the next.
        """
        waiting = self._session.uncollected
        while True:
            await self._connection.until(lambda: bool(waiting) or self._session.is_caught_up)
            if not waiting:
                return
            yield self._generation(waiting.popleft())

    def cancel(self, request_id: str) -> None:
        """Asks the server to end a request; it then ends in `Done` with `finish_reason` `cancelled`.

        While there is no connection, one that the server has not accepted ends in `WithdrawnError` at once.
        """
        self._connection.check()
        requests.check(m.Cancel(request_id=request_id))
        if not self.is_connected:
            self._session.withdraw(request_id)
            self._changed()
        self._session.cancel(request_id)
        self._connection.settle()

    def take_over(self) -> None:
        """Takes the session from the client that has it, if this one is an observer; at once, or once connected."""
        self._connection.check()
        self._connection.take_over()

    def running(self) -> list[str]:
        """Ids of the session's requests that have not ended, oldest first."""
        return [answer.request_id for answer in self._session.open_answers()]

    # --- inside ----------------------------------------------------------------------------------------------------

    def _generation(self, answer: Answer) -> Generation:
        generation = Generation(answer, taken=self._connection.settle, cancel=self.cancel, complete=self._complete)
        self._generations[answer.request_id] = generation
        return generation

    def _complete(self, answer: Answer, done: m.Done) -> Completion:
        assert self.welcome is not None
        return completion(answer, done, self.welcome)

    async def _ask(
        self,
        question: m.ClientMessage,
        reply_type: type[Reply],
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        on_log: Callable[[m.Log], None] | None = None,
    ) -> Reply:
        self._connection.check()
        requests.check(question, self.welcome.limits if self.welcome is not None else None)
        return await self._calls.ask(question, reply_type, timeout_s=timeout_s, on_log=on_log)

    def _send(self, message: m.ClientMessage) -> None:
        self._session.outbox.append(message)
        self._connection.settle()

    def _receive(self, message: m.ServerMessage) -> None:
        if isinstance(message, m.Welcome):
            self._calls.repeat()
            return
        # What is replayed answered an earlier question, if one of this client's at all.
        is_replayed = isinstance(message, m.ModelSwitched) and not self._session.is_caught_up
        if is_replayed or not self._calls.receive(message):
            self._listen(message)

    def _changed(self) -> None:
        if self._connection.failure is not None:
            self._calls.fail(self._connection.failure)
        waiting = self._session.uncollected
        if waiting and waiting[-1] is not self._announced:
            self._announced = waiting[-1]
            self._listen(Collectable(request_id=waiting[-1].request_id))
        running = set(self.running())
        for request_id, generation in list(self._generations.items()):
            generation.wake()
            if request_id not in running:
                del self._generations[request_id]
