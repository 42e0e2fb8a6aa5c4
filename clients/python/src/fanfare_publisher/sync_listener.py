"""A listener without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from typing import Any, Deque, Iterator, Optional, Tuple

from .client import Notification
from .listener import Listener
from .tokens import Token


class SyncListener:
    """A :class:`Listener` without asyncio. It has the same arguments.

    ``with SyncListener(url, token) as events: for item in events: ...``
    """

    def __init__(self, url: str, token: Token, **options: Any):
        self._listener = Listener(url, token, **options)
        self._changed = threading.Condition()
        #: Items that were received and not read yet, each with the cursor after it. ``None`` only advances the cursor.
        self._queue: Deque[Tuple[Optional[Notification], Optional[str]]] = deque()
        self._cursor = self._listener.last_event_id
        self._listener._moved = lambda: self._put(None)
        self._is_live = self._ended = False
        self._failure: Optional[BaseException] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._task: Optional[asyncio.Task[None]] = None
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> SyncListener:
        if self._thread and self._thread.is_alive():
            raise RuntimeError("the listener is in use: leave its `with` block first, or create another listener")
        self._is_live, self._ended, self._failure = False, False, None
        started = threading.Event()
        run = lambda: asyncio.run(self._run(started))  # noqa: E731
        self._thread = threading.Thread(target=run, name="fanfare-listener", daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        loop, task, thread = self._loop, self._task, self._thread
        while loop and task and thread and thread.is_alive():
            # The loop of a listener that has ended is closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            # Repeated, because `asyncio.wait_for` may swallow a cancellation before Python 3.12.
            thread.join(3)

    @property
    def connection_id(self) -> Optional[str]:
        return self._listener.connection_id

    @property
    def last_event_id(self) -> Optional[str]:
        """The cursor to save: the position after the last item.

        After a gap it advances when the next item is requested, because the gap has then been handled.
        """
        return self._cursor

    def wait_until_live(self, timeout: float = 10.0) -> None:
        """Waits until the connection is live. Raises the error that ended the listener, or :class:`TimeoutError`."""
        self._check_entered()
        with self._changed:
            self._changed.wait_for(lambda: self._is_live or self._ended, timeout)
            if self._is_live:
                return
            if self._failure:
                raise self._failure
        raise TimeoutError(f"not live after {timeout} s")

    def next(self, timeout: Optional[float] = None) -> Notification:
        """Returns the next event or gap.

        Raises :class:`TimeoutError` after ``timeout`` seconds, the error that ended the listener, or ``StopIteration``
        after the listener was closed.
        """
        self._check_entered()
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                while self._queue:
                    notification, self._cursor = self._queue.popleft()
                    if notification is not None:
                        return notification
                if self._failure:
                    raise self._failure
                if self._ended:
                    raise StopIteration
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"no event within {timeout} s")
                self._changed.wait(left)

    def __iter__(self) -> Iterator[Notification]:
        return self

    def __next__(self) -> Notification:
        return self.next()

    def _check_entered(self) -> None:
        if self._thread is None:
            raise RuntimeError("the listener is not started: use it as with SyncListener(...) as events: ...")

    async def _run(self, started: threading.Event) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.ensure_future(self._listen())
        started.set()
        failure: Optional[BaseException] = None
        try:
            await self._task
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001: raised in the thread that reads the events
            failure = error
        with self._changed:
            self._is_live, self._ended, self._failure = False, True, failure
            self._changed.notify_all()

    async def _listen(self) -> None:
        watching = asyncio.ensure_future(self._watch())
        try:
            async for notification in self._listener:
                self._put(notification)
        finally:
            watching.cancel()

    def _put(self, notification: Optional[Notification]) -> None:
        with self._changed:
            if notification is None and self._queue and self._queue[-1][0] is None:
                self._queue.pop()
            self._queue.append((notification, self._listener.last_event_id))
            self._changed.notify_all()

    async def _watch(self) -> None:
        await self._listener.live.wait()
        with self._changed:
            self._is_live = True
            self._changed.notify_all()
