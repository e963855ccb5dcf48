"""Keeps a session attached: connects, serves a connection until it is lost, and connects again.

Owns the socket and the task that reads it; everything that decides is in `session`. Invariant: from `open` to `close`
exactly one task owns the connection, and when it ends every waiter is told why.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Final, Literal

from llmws.client.backoff import Backoff
from llmws.client.cursor import StoryFaultError
from llmws.client.errors import (
    ClientError,
    ClosedError,
    ProtocolError,
    ServerFaultError,
    TakenOverError,
    UnreachableError,
)
from llmws.client.link import CLOSE_TIMEOUT_S, Link, LostError
from llmws.client.session import Session
from llmws.protocol import CloseCode
from llmws.protocol import messages as m

STEADY_S: Final = 10.0
"""A connection that lasted this long was good even if nothing happened on it."""
MOST_FAULTS: Final = 5
"""So many connections in a row that contradict the session's story are the server's fault, not the network's."""


class Connected(m.Value, frozen=True, kw_only=True):
    """The session is attached; `mode`: as its owner, or only to watch."""

    welcome: m.Welcome
    mode: Literal["takeover", "observe"] = "takeover"


class Disconnected(m.Value, frozen=True, kw_only=True):
    """The connection is lost; the next attempt starts in `retry_in_s` seconds, or never when None.

    `is_refusal`: the server ended it over a fault of its own, before anything of the session's story came.
    """

    reason: str
    retry_in_s: float | None
    is_refusal: bool = False


class Collectable(m.Value, frozen=True, kw_only=True):
    """Something of a request that another client made has arrived; `Client.collect` gives its answer."""

    request_id: str


Notice = Connected | Disconnected | Collectable | m.ServerMessage
"""What a listener is told: the connection's state, and messages of the server that answer nothing."""


class Connection:
    """A session's connection, through all its lives.

    Args:
        tls: which certificates are believed at a `wss` URL; None for those of the machine's authorities.
        heartbeat_s: how often the connection is tested.
        stays_as_observer: whether to attach as an observer once another client has taken the session over.
        receive: called with every message that is not about a request.
        listen: called with changes of the connection's state.

    Attributes:
        welcome: the newest one; None before the first.
        failure: why it was given up; None while it is not.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        session: Session,
        *,
        tls: ssl.SSLContext | None,
        backoff: Backoff,
        heartbeat_s: float,
        stays_as_observer: bool,
        receive: Callable[[m.ServerMessage], None],
        changed: Callable[[], None],
        listen: Callable[[Notice], None],
    ) -> None:
        self.welcome: m.Welcome | None = None
        self.failure: ClientError | None = None
        self._url = url
        self._token = token
        self._tls = tls
        self._session = session
        self._backoff = backoff
        self._heartbeat_s = heartbeat_s
        self._stays_as_observer = stays_as_observer
        self._on_message = receive
        self._on_change = changed
        self._listen = listen
        self._link: Link | None = None
        self._arrived = asyncio.Event()
        self._outgoing = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        self._is_refused = False

    @property
    def is_up(self) -> bool:
        """Whether the session is attached right now."""
        return self._link is not None

    async def open(self, *, first_timeout_s: float, later_timeout_s: float) -> None:
        """Attaches.

        Args:
            first_timeout_s: how long that may take.
            later_timeout_s: how long a lost connection is tried again.

        Raises:
            ClientError: there is no connection, and the connection is closed.
        """
        assert self._owner is None, "a connection is opened once"
        self._owner = asyncio.create_task(self._own(first_timeout_s, later_timeout_s))
        try:
            await self.until(lambda: self.welcome is not None)
        except BaseException:
            await self.close(ack=False)
            raise

    async def close(self, *, ack: bool) -> None:
        """Detaches, after a last acknowledgement if `ack`."""
        if self._link is not None and ack:
            self._session.settle()
            with contextlib.suppress(LostError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._flush(self._link)
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.wait([self._owner])
            if not self._owner.cancelled():
                self._owner.result()  # a bug in the task must not stay in it
        self._fail(ClosedError("this client is closed"))

    def check(self) -> None:
        """Raises why the connection was given up, if it was, or that there never was one."""
        if self.failure is not None:
            raise self.failure
        if self._owner is None:
            raise ClosedError("this client was not opened")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that only an arriving message can make true.

        Raises:
            ClientError: the connection is given up.
        """
        while not condition():
            self.check()
            self._arrived.clear()
            await self._arrived.wait()

    def take_over(self) -> None:
        """Attaches as the session's owner, at once, if it is only observed now."""
        if self._session.mode == "observe":
            self._attach_as("takeover")
            if self._link is not None:
                self._link.abort()

    def settle(self) -> None:
        """Acknowledges what is due and sends the outbox; to be called after every change of the session."""
        self._session.settle()
        if self._session.outbox:
            self._outgoing.set()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._arrived.set()
        self._on_change()

    def _fail(self, error: ClientError) -> None:
        if self.failure is None:
            self.failure = error
            self._session.fail(error)
            self._wake()

    def _attach_as(self, mode: Literal["takeover", "observe"]) -> None:
        """The next connection is another kind of attachment; that is no reason to wait for it."""
        self._session.attach_as(mode)
        self._backoff.reset()

    async def _own(self, timeout_s: float, later_timeout_s: float) -> None:
        """Keeps the session attached until that is impossible."""
        reason, faults = "", 0
        loop = asyncio.get_running_loop()
        lost_s = loop.time()
        try:
            while True:
                link, welcome = await self._connect(reason, lost_s, timeout_s)
                self._session.welcomed(welcome)
                since_s, before = loop.time(), self._session.applied_seq
                lost = await self._serve(link, welcome)
                reason = str(lost)
                has_progressed = self._session.applied_seq != before
                faults = 0 if has_progressed or not isinstance(lost, StoryFaultError) else faults + 1
                if faults == MOST_FAULTS:
                    raise ProtocolError(f"the server keeps breaking the session's story: {reason}")
                was_good = has_progressed or loop.time() - since_s >= STEADY_S
                if was_good:
                    self._backoff.reset()
                self._is_refused = not was_good and isinstance(lost, LostError) and lost.code == CloseCode.INTERNAL
                if not self._is_refused:
                    lost_s, timeout_s = loop.time(), later_timeout_s
        except ClientError as error:
            self._fail(error)
            self._listen(Disconnected(reason=str(error), retry_in_s=None))
        finally:
            self._fail(ClosedError("this client stopped"))

    async def _connect(self, reason: str, lost_s: float, timeout_s: float) -> tuple[Link, m.Welcome]:
        """Attaches, in as many attempts as it takes.

        Args:
            reason: why there is no connection now; empty at first.
            lost_s: since when there is none that was of use, in the loop's time.
            timeout_s: how long after that it is tried.
        """
        try:
            async with asyncio.timeout_at(lost_s + timeout_s):
                while True:
                    delay_s = self._backoff.next_s()
                    if reason:
                        self._listen(Disconnected(reason=reason, retry_in_s=delay_s, is_refusal=self._is_refused))
                    await asyncio.sleep(delay_s)
                    hello = self._session.hello(self._token)
                    try:
                        link, welcome = await Link.open(self._url, hello, tls=self._tls, heartbeat_s=self._heartbeat_s)
                    except LostError as lost:
                        reason, self._is_refused = str(lost), lost.code == CloseCode.INTERNAL
                        continue
                    if hello.mode == self._session.mode:
                        return link, welcome
                    await link.close()  # the caller wanted another kind of attachment meanwhile
        except TimeoutError:
            if self._is_refused:
                raise ServerFaultError(reason) from None
            why = f": {reason}" if reason else ""
            raise UnreachableError(f"{self._url} could not be reached within {timeout_s:g} s{why}") from None

    async def _serve(self, link: Link, welcome: m.Welcome) -> LostError | StoryFaultError:
        """Serves one connection until it is lost, or given up for one of another kind: an empty reason then."""
        mode, said = self._session.mode, ""
        writer = asyncio.create_task(self._write(link))
        try:
            self.welcome, self._link = welcome, link
            self._listen(Connected(welcome=welcome, mode=mode))
            self._on_message(welcome)
            self._outgoing.set()
            while True:
                self.settle()
                self._wake()
                message = await link.receive()
                if not isinstance(message, m.ServerMessage):
                    self._session.receive_unknown(message)
                elif (rest := self._session.receive(message)) is not None:
                    said = rest.message if isinstance(rest, m.Error) else said
                    self._on_message(rest)
        except TakenOverError:
            if not self._stays_as_observer or mode == "observe":
                raise
            self._attach_as("observe")
            return LostError("")
        except LostError as lost:
            if mode != self._session.mode:
                return LostError("")
            if lost.code == CloseCode.TOO_BIG:
                self._session.too_large("the server closed the connection over a message that was too large")
            if lost.code == CloseCode.INTERNAL and said:
                return LostError(said, lost.code)  # the close frame has a word only
            return lost
        except StoryFaultError as fault:
            return fault
        finally:
            self._link = None
            writer.cancel()
            await asyncio.wait([writer])
            await link.close()
            if not writer.cancelled():
                writer.result()  # a bug in the task must not stay in it

    async def _write(self, link: Link) -> None:
        try:
            while True:
                await self._outgoing.wait()
                self._outgoing.clear()
                await self._flush(link)
        except LostError:
            return  # whoever receives is told why
        except Exception:
            link.abort()  # on a connection that nobody writes to, everyone would wait for ever
            raise

    async def _flush(self, link: Link) -> None:
        while self._session.outbox:
            await link.send(self._session.outbox.popleft())
