"""Listens to a hub with asyncio: yields events in order, each once, across reconnects."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Iterable, Optional

from .client import Client, Gap, HubError, Notification
from .errors import Refused, TopicRefused
from .tokens import Token, TokenError, TokenSource

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

log = logging.getLogger(__name__)

#: The logger of `websockets`. It must not be at DEBUG, because `websockets` would then log the token.
_quiet = logging.getLogger(f"{__package__}.websockets")
_quiet.setLevel(logging.INFO)


class Listener:
    """``async for item in Listener(url, token): ...`` yields events (:class:`WSMessage`) and gaps (:class:`Gap`).
    It reconnects, and raises :class:`Refused` if another attempt would fail in the same way.

    ``token`` may be a function, also an async one. It is called for each connection, with the reason (``connect``,
    ``expiring`` or ``refused``) if it takes an argument. If it raises, or takes longer than ``token_timeout`` seconds,
    the attempt has failed, and another follows.

    A topic that the hub rejects raises :class:`TopicRefused`. With ``on_error``, that is called with a
    :class:`HubError` instead.

    ``types`` selects the types of the events to yield. ``connection_id`` and ``last_event_id`` of an earlier listener
    resume from its cursor. Needs the extra ``fanfare-publisher[listen]``.
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
        #: Called when the cursor has advanced without an item to yield.
        self._moved: Callable[[], None] = lambda: None

    @property
    def live(self) -> asyncio.Event:
        """Set while the connection is live. A test can wait for it before it publishes."""
        try:
            loop: Optional[asyncio.AbstractEventLoop] = asyncio.get_running_loop()
        except RuntimeError:
            loop = self._loop
        # An `asyncio.Event` belongs to one event loop (in Python 3.9 to the one in which it is created), and a listener
        # may be used in several, one after another.
        if self._live is None or (self._loop is not None and loop is not self._loop):
            self._live = asyncio.Event()
        self._loop = loop
        return self._live

    @property
    def connection_id(self) -> Optional[str]:
        return self._client.connection_id

    @property
    def last_event_id(self) -> Optional[str]:
        """The cursor to save: the position after the last item.

        After a gap it advances when the next item is requested, because the gap has then been handled.
        """
        return self._cursor

    def __aiter__(self) -> AsyncIterator[Notification]:
        return self._listen()

    async def _listen(self) -> AsyncIterator[Notification]:
        try:
            from websockets.exceptions import ConnectionClosed, InvalidHandshake
        except ImportError as error:
            raise ImportError("a listener needs websockets: pip install 'fanfare-publisher[listen]'") from error

        client = self._client
        while True:
            code, reason, problem = 1006, "", "the connection was lost"
            try:
                socket = await self._connect()
                try:
                    async for notification in self._receive(socket):
                        yield notification
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
                log.warning("the hub rejected the listener: %s", refused)
                raise
            level = logging.INFO if was_live else logging.WARNING
            log.log(level, "not connected: %s; next attempt in %.1f s", problem, wait)
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
            # A closing event loop cancels the closing handshake, which would leave the connection open.
            socket.transport.abort()

    async def _receive(self, socket: ClientConnection) -> AsyncIterator[Notification]:
        """Yields the items of one connection, until it is closed."""
        client = self._client
        renewing: Optional[asyncio.Task[None]] = None
        try:
            while True:
                received = client.receive(await asyncio.wait_for(socket.recv(), client.silence_timeout))
                if client.live and not self.live.is_set():
                    log.info("listening as connection %s", client.connection_id)
                    self.live.set()
                if received.unexpected:
                    log.warning("unexpected message: not from a fanfare hub: %s; check the URL", received.unexpected)
                if received.answer:
                    await socket.send(received.answer)
                if received.wants_token and (renewing is None or renewing.done()):
                    renewing = asyncio.ensure_future(self._renew(socket))
                if received.problem:
                    self._report(received.problem)
                item = received.notification
                if item is not None and (isinstance(item, Gap) or self._types is None or item.type in self._types):
                    # After a gap the cursor advances below, when the application has handled it.
                    if not isinstance(item, Gap):
                        self._cursor = client.last_event_id
                    yield item
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
            log.warning("failed to renew the token before it expires: %s", error)
        except ConnectionClosed:
            pass

    def _report(self, problem: HubError) -> None:
        rejected = problem.topic or problem.ack_event_id
        log.warning("the hub rejected %s: %s (%s)", rejected, problem.message, problem.error)
        if self._on_error:
            self._on_error(problem)
        elif problem.is_about_topic:
            raise TopicRefused(problem.error, problem.message, problem.topic)
