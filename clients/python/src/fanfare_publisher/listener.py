"""Listens to a hub, for scripts and tests: events in order, each once, across reconnects."""

from __future__ import annotations

import asyncio
import json
import queue
import random
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, AsyncIterator, Callable, Dict, Iterable, Iterator, Optional, Tuple, Union
from urllib.parse import urlencode

from .errors import Refused
from .messages import WSMessage

#: What a close asks of a client; the hub's docs/protocol.md has the table.
CLOSES: Dict[int, str] = {
    1000: "never", 1001: "later", 1002: "never", 1003: "never", 1007: "never", 1008: "new token", 1009: "never",
    1011: "later", 1012: "now", 1013: "later", 4000: "now", 4001: "never", 4002: "later", 4003: "never",
}  # fmt: skip

#: Reasons of 1008 that no token of the same user mends.
FINAL = re.compile(r"(forbidden|origin_not_allowed)\b")

#: The least pause and its spread at the first attempt, in seconds.
PAUSES: Dict[str, Tuple[float, float]] = {
    "new token": (0, 0.25), "now": (0, 0.25), "lost": (0, 1), "later": (1, 4),
}  # fmt: skip

KNOWN = 1_000


@dataclass(frozen=True)
class Gap:
    """History was lost between what came before and what comes next: fetch the state anew."""

    reason: str
    missed: Optional[int] = None


Token = Union[str, Callable[[], str]]
Heard = Union[WSMessage, Gap]


def verdict(code: int, reason: str) -> str:
    """What a close asks of a client: never, now, later, new token, or lost for a code that no hub sends."""
    return "never" if code == 1008 and FINAL.match(reason) else CLOSES.get(code, "lost")


class Client:
    """One client without I/O: where it is, and what it does about each frame and each close."""

    def __init__(self, url: str, token: Token, topics: Iterable[str]):
        base = url.rstrip("/").replace("http", "ws", 1) if url.startswith("http") else url.rstrip("/")
        self._url = base if base.endswith("/ws") else f"{base}/ws"
        self._token, self.topics = token, list(topics)
        self.connection_id: Optional[str] = None
        self.last_event_id: Optional[str] = None
        #: How long the hub may be silent, in seconds.
        self.patience = 50.0
        self.live = False
        self._known: OrderedDict[str, None] = OrderedDict()
        self._attempts, self._goaway, self._live_since = 0, 0.0, 0.0

    def opening(self) -> Tuple[str, Dict[str, str]]:
        """The address and the headers of the next attempt."""
        self.live, self._goaway = False, 0.0
        token = self._token if isinstance(self._token, str) else self._token()
        query = {"connection_id": self.connection_id, "last_event_id": self.last_event_id, "topics": ",".join(self.topics)}
        text = urlencode({name: value for name, value in query.items() if value})
        return f"{self._url}?{text}" if text else self._url, {"Authorization": f"Bearer {token}"}

    def receive(self, text: str) -> Tuple[Optional[str], Optional[Heard]]:
        """What to answer and what to hand on."""
        frame = json.loads(text)
        kind, event_id = frame.get("type"), frame.get("event_id")
        if event_id:
            self.last_event_id = event_id
        if kind == "ack":
            if not self.live:
                self.live, self._live_since = True, time.monotonic()
                self.connection_id = frame.get("connection_id", self.connection_id)
                self.patience = 1.5 * float(frame.get("heartbeat", 30)) + 5
            return None, None
        if kind == "ping":
            return json.dumps({"type": "pong", "event_id": event_id}), None
        if kind == "auth_expiring":
            newer = None if isinstance(self._token, str) else self._token()
            return (json.dumps({"type": "auth", "token": newer}) if newer else None), None
        if kind == "goaway":
            self._goaway = float(frame.get("reconnect_after_ms", 0)) / 1_000
        if kind == "gap":
            return None, Gap(str(frame.get("reason", "")), frame.get("missed"))
        if kind in ("pong", "error", "goaway") or event_id in self._known:
            return None, None
        if event_id:
            self._known[event_id] = None
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)
        return None, WSMessage.model_validate(frame)

    def closed(self, code: int, reason: str) -> float:
        """How many seconds to wait before the next attempt. Raises :class:`Refused` where none would help."""
        what = verdict(code, reason)
        if what == "never" or (what == "new token" and (isinstance(self._token, str) or not self.live)):
            raise Refused(code, reason)
        if self.live and time.monotonic() - self._live_since > 10:
            self._attempts = 0
        least, spread = PAUSES[what]
        self._attempts += 1
        return self._goaway + least + random.uniform(0, min(30.0, spread * 2.0 ** min(self._attempts - 1, 10)))


class Listener:
    """``async for heard in Listener(url, token): ...`` gives each event as a :class:`WSMessage`, and a :class:`Gap` where history
    was lost. Comes back by itself; raises :class:`Refused` where that would not help.

    ``token`` may be a function, which is asked anew for each connect. ``types`` leaves out events of other types.
    Needs the extra ``fanfare-publisher[listen]``.
    """

    def __init__(self, url: str, token: Token, *, topics: Iterable[str] = (), types: Optional[Iterable[str]] = None):
        self._client = Client(url, token, topics)
        self._types = None if types is None else frozenset(types)
        #: Set while the connection is live; a test waits for it before it publishes.
        self.live = asyncio.Event()

    @property
    def connection_id(self) -> Optional[str]:
        return self._client.connection_id

    @property
    def last_event_id(self) -> Optional[str]:
        return self._client.last_event_id

    def __aiter__(self) -> AsyncIterator[Heard]:
        return self._listen()

    async def _listen(self) -> AsyncIterator[Heard]:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidHandshake

        client = self._client
        while True:
            code, reason = 1006, ""
            try:
                url, headers = client.opening()
                async with connect(url, additional_headers=headers, ping_interval=None, max_size=None) as socket:
                    while True:
                        text = await asyncio.wait_for(socket.recv(), client.patience)
                        answer, heard = client.receive(str(text))
                        if client.live:
                            self.live.set()
                        if answer:
                            await socket.send(answer)
                        if isinstance(heard, Gap) or (heard and (self._types is None or heard.type in self._types)):
                            yield heard
            except ConnectionClosed as closed:
                if closed.rcvd:
                    code, reason = closed.rcvd.code, closed.rcvd.reason
            except (OSError, InvalidHandshake, EOFError, asyncio.TimeoutError):
                pass
            self.live.clear()
            await asyncio.sleep(client.closed(code, reason))


class SyncListener:
    """As :class:`Listener`, without asyncio: ``with SyncListener(url, token) as events: for heard in events: ...``."""

    def __init__(self, url: str, token: Token, *, topics: Iterable[str] = (), types: Optional[Iterable[str]] = None):
        self._options: Dict[str, Any] = {"topics": list(topics), "types": types}
        self._url, self._token = url, token
        self._heard: queue.Queue[Union[Heard, BaseException, None]] = queue.Queue()
        self._stop: Callable[[], object] = lambda: None
        self._live = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> SyncListener:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._thread:
            self._thread.join()

    def wait_until_live(self, timeout: float = 10.0) -> None:
        """Waits until events arrive as they are published."""
        if not self._live.wait(timeout):
            raise TimeoutError(f"not live after {timeout} s")

    def next(self, timeout: Optional[float] = None) -> Heard:
        """The next event or gap. Raises :class:`TimeoutError`, :class:`Refused`, or ``StopIteration`` at the end."""
        try:
            heard = self._heard.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"nothing came in {timeout} s") from None
        if heard is None:
            raise StopIteration
        if isinstance(heard, BaseException):
            raise heard
        return heard

    def __iter__(self) -> Iterator[Heard]:
        return self

    def __next__(self) -> Heard:
        return self.next()

    async def _run(self) -> None:
        listener = Listener(self._url, self._token, **self._options)
        task = asyncio.ensure_future(self._listen(listener))
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            self._heard.put(None)
        except BaseException as error:  # noqa: BLE001: whatever it is, it belongs to whoever listens
            self._heard.put(error)

    async def _listen(self, listener: Listener) -> None:
        async def tell() -> None:
            await listener.live.wait()
            self._live.set()

        telling = asyncio.ensure_future(tell())
        try:
            async for heard in listener:
                self._heard.put(heard)
        finally:
            telling.cancel()
