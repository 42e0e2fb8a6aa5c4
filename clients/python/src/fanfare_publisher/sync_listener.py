"""A listener without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from typing import Any, Deque, Iterator, Optional, Tuple

from .client import Heard
from .listener import Listener
from .tokens import Token


class SyncListener:
    """As :class:`Listener`, with the same arguments, without asyncio: ``with SyncListener(url, token) as events: for heard in events: ...``."""

    def __init__(self, url: str, token: Token, **options: Any):
        self._listener = Listener(url, token, **options)
        self._changed = threading.Condition()
        #: What was heard and not handed out, each with the cursor that it makes. A cursor alone is for what is not handed out.
        self._heard: Deque[Tuple[Optional[Heard], Optional[str]]] = deque()
        self._cursor = self._listener.last_event_id
        self._listener._moved = lambda: self._put(None)
        self._is_live = self._ended = False
        self._failure: Optional[BaseException] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._task: Optional[asyncio.Task[None]] = None
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> SyncListener:
        if self._thread and self._thread.is_alive():
            raise RuntimeError("the listener is in use: leave its `with` first, or make another one")
        self._is_live, self._ended, self._failure = False, False, None
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), name="fanfare-listener", daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        loop, task, thread = self._loop, self._task, self._thread
        while loop and task and thread and thread.is_alive():
            # A listener that has ended by itself has no loop any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            # Again, because `asyncio.wait_for` may swallow a cancellation until Python 3.12.
            thread.join(3)

    @property
    def connection_id(self) -> Optional[str]:
        return self._listener.connection_id

    @property
    def last_event_id(self) -> Optional[str]:
        """The cursor to save: behind what was handed out. A gap counts once the next item is asked for."""
        return self._cursor

    def wait_until_live(self, timeout: float = 10.0) -> None:
        """Waits until events arrive as they are published. Raises what ended the listener instead, or :class:`TimeoutError`."""
        self._check_entered()
        with self._changed:
            self._changed.wait_for(lambda: self._is_live or self._ended, timeout)
            if self._is_live:
                return
            if self._failure:
                raise self._failure
        raise TimeoutError(f"not live after {timeout} s")

    def next(self, timeout: Optional[float] = None) -> Heard:
        """The next event or gap. Raises :class:`TimeoutError`, what ended the listener, or ``StopIteration`` at the end."""
        self._check_entered()
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                while self._heard:
                    heard, self._cursor = self._heard.popleft()
                    if heard is not None:
                        return heard
                if self._failure:
                    raise self._failure
                if self._ended:
                    raise StopIteration
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"no event within {timeout} s")
                self._changed.wait(left)

    def __iter__(self) -> Iterator[Heard]:
        return self

    def __next__(self) -> Heard:
        return self.next()

    def _check_entered(self) -> None:
        if self._thread is None:
            raise RuntimeError("the listener does not listen yet: with SyncListener(...) as events: for heard in events: ...")

    async def _run(self, started: threading.Event) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.ensure_future(self._listen())
        started.set()
        failure: Optional[BaseException] = None
        try:
            await self._task
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001: raised where the events are read
            failure = error
        with self._changed:
            self._is_live, self._ended, self._failure = False, True, failure
            self._changed.notify_all()

    async def _listen(self) -> None:
        watching = asyncio.ensure_future(self._watch())
        try:
            async for heard in self._listener:
                self._put(heard)
        finally:
            watching.cancel()

    def _put(self, heard: Optional[Heard]) -> None:
        with self._changed:
            if heard is None and self._heard and self._heard[-1][0] is None:
                self._heard.pop()
            self._heard.append((heard, self._listener.last_event_id))
            self._changed.notify_all()

    async def _watch(self) -> None:
        await self._listener.live.wait()
        with self._changed:
            self._is_live = True
            self._changed.notify_all()
