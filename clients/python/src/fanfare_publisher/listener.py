"""Listens to a hub: events in order, each once, across reconnects."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Iterable, Optional

from .client import Client, Gap, Heard, HubError
from .errors import Refused, TopicRefused
from .tokens import Token, TokenError, TokenSource

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

log = logging.getLogger(__name__)

#: At its level DEBUG, `websockets` would log the token.
_quiet = logging.getLogger(f"{__package__}.websockets")
_quiet.setLevel(logging.INFO)


class Listener:
    """``async for heard in Listener(url, token): ...`` gives each event as a :class:`WSMessage`, and a :class:`Gap` where history
    was lost. Reconnects by itself; raises :class:`Refused` where that would not help.

    ``token`` may be a function, also an async one. It is asked for each connection, with the reason (``connect``, ``expiring`` or
    ``refused``) if it takes an argument. A failure of it, or more than ``token_timeout`` seconds, counts as a failed attempt.

    A topic that the hub rejects raises :class:`TopicRefused`, or is given to ``on_error`` as a :class:`HubError` if there is one.

    ``types`` leaves out events of other types. ``connection_id`` and ``last_event_id`` of an earlier listener resume it.
    Needs the extra ``fanfare-publisher[listen]``.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        topics: Iterable[str] = (),
        types: Optional[Iterable[str]] = None,
        connection_id: Optional[str] = None,
        last_event_id: Optional[str] = None,
        on_error: Optional[Callable[[HubError], object]] = None,
        token_timeout: float = 10.0,
    ):
        self._tokens = TokenSource(token, token_timeout)
        renews = self._tokens.is_function
        self._client = Client(url, topics, renews=renews, connection_id=connection_id, last_event_id=last_event_id)
        self._types = None if types is None else frozenset(types)
        self._on_error, self._cursor = on_error, last_event_id
        self._live: Optional[asyncio.Event] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        #: Called when the cursor has moved without anything to hand out.
        self._moved: Callable[[], None] = lambda: None

    @property
    def live(self) -> asyncio.Event:
        """Set while the connection is live; a test waits for it before it publishes."""
        try:
            loop: Optional[asyncio.AbstractEventLoop] = asyncio.get_running_loop()
        except RuntimeError:
            loop = self._loop
        # An event belongs to one loop, and a listener may be used in one after another. Until Python 3.9 it is that in which it is made.
        if self._live is None or (self._loop is not None and loop is not self._loop):
            self._live = asyncio.Event()
        self._loop = loop
        return self._live

    @property
    def connection_id(self) -> Optional[str]:
        return self._client.connection_id

    @property
    def last_event_id(self) -> Optional[str]:
        """The cursor to save: behind what was handed out. A gap counts once the next item is asked for, which is when it has been
        handled."""
        return self._cursor

    def __aiter__(self) -> AsyncIterator[Heard]:
        return self._listen()

    async def _listen(self) -> AsyncIterator[Heard]:
        try:
            from websockets.exceptions import ConnectionClosed, InvalidHandshake
        except ImportError as error:
            raise ImportError("a listener needs websockets: pip install 'fanfare-publisher[listen]'") from error

        client = self._client
        while True:
            code, reason, problem = 1006, "", "the connection ended"
            try:
                socket = await self._connect()
                try:
                    async for heard in self._attend(socket):
                        yield heard
                finally:
                    await self._close(socket)
            except ConnectionClosed as closed:
                if closed.rcvd:
                    code, reason = closed.rcvd.code, closed.rcvd.reason
                    problem = f"closed by the hub with {code} {reason}"
            except (OSError, InvalidHandshake, EOFError, asyncio.TimeoutError, TokenError) as error:
                problem = str(error) or type(error).__name__
            finally:
                was_live = client.live
                self.live.clear()
            try:
                wait = client.closed(code, reason)
            except Refused as refused:
                log.warning("the hub refused the listener: %s", refused)
                raise
            log.log(logging.INFO if was_live else logging.WARNING, "not connected: %s; next attempt in %.1f s", problem, wait)
            await asyncio.sleep(wait)

    async def _connect(self) -> ClientConnection:
        from websockets.asyncio.client import connect

        url, headers = self._client.opening(await self._tokens.get(self._client.token_reason))
        return await connect(
            url, additional_headers=headers, ping_interval=None, max_size=None, close_timeout=2, logger=_quiet
        )

    @staticmethod
    async def _close(socket: ClientConnection) -> None:
        try:
            await socket.close()
        finally:
            # A loop that ends cancels the closing handshake, which would leave the connection open.
            socket.transport.abort()

    async def _attend(self, socket: ClientConnection) -> AsyncIterator[Heard]:
        """What comes from one connection, until it ends."""
        client = self._client
        renewing: Optional[asyncio.Task[None]] = None
        try:
            while True:
                received = client.receive(await asyncio.wait_for(socket.recv(), client.patience))
                if client.live and not self.live.is_set():
                    log.info("listening as connection %s", client.connection_id)
                    self.live.set()
                if received.unexpected:
                    log.warning("unexpected message, not a fanfare hub's: %s; check the URL", received.unexpected)
                if received.answer:
                    await socket.send(received.answer)
                if received.wants_token and (renewing is None or renewing.done()):
                    renewing = asyncio.ensure_future(self._renew(socket))
                if received.problem:
                    self._report(received.problem)
                heard = received.heard
                if heard is not None and (isinstance(heard, Gap) or self._types is None or heard.type in self._types):
                    if not isinstance(heard, Gap):
                        self._cursor = client.last_event_id
                    yield heard
                self._cursor = client.last_event_id
                self._moved()
        finally:
            if renewing:
                renewing.cancel()

    async def _renew(self, socket: ClientConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await socket.send(self._client.auth(await self._tokens.get("expiring")))
        except TokenError as error:
            log.warning("the token was not renewed before it expires: %s", error)
        except ConnectionClosed:
            pass

    def _report(self, problem: HubError) -> None:
        log.warning("the hub rejected %s: %s (%s)", problem.topic or problem.ack_event_id, problem.message, problem.error)
        if self._on_error:
            self._on_error(problem)
        elif problem.is_about_topic:
            raise TopicRefused(problem.error, problem.message, problem.topic)
