"""Publishers: with asyncio and without, over HTTP or Redis."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any, Coroutine, Dict, Generic, Optional, TypeVar, Union

import httpx
import redis
import redis.asyncio

from . import servers, ways
from .errors import PublishError
from .messages import WSMessage
from .ways import Audience, Failed, Find, Post, Published, Say, Wait, Way

__all__ = ["AsyncPublisher", "Published", "Publisher", "RedisPubSub", "redis_pubsub"]

#: What says that a step did not come through, and that another attempt may.
_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, redis.ReadOnlyError, OSError, asyncio.TimeoutError)


#: What a publish gives: what came of it, or what is awaited for that.
_Answer = TypeVar("_Answer")


class _Address:
    """Where events go, and how they are written there."""

    def __init__(self, url: str, token: Optional[str], namespace: str, patience: float):
        self.url, self.namespace, self.patience = url, namespace, patience
        self.over_redis = url.startswith("redis")
        if not self.over_redis and not token:
            raise ValueError("publishing over HTTP needs a token or an access key of the hub")
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.base = url.rstrip("/").replace("ws", "http", 1) if url.startswith("ws") else url.rstrip("/")
        tagged = f"{{{namespace}}}" if url.startswith(servers.CLUSTER) else namespace
        self.index = f"{tagged}:ids"

    def way(self, message: WSMessage, audience: Audience) -> Way:
        deadline = time.monotonic() + self.patience
        if not self.over_redis:
            return ways.over_http(message, audience, deadline, time.monotonic)
        if isinstance(audience, str):
            channel = f"{self.namespace}:broadcast"
        else:
            ((kind, name),) = audience.items()
            channel = f"{self.namespace}:{kind}:{name}"
        return ways.over_redis(message, channel, self.index, deadline, time.monotonic)


class _Audiences(Generic[_Answer]):
    """A method for each audience, as the FastAPI hub's module has them."""

    def publish(self, message: WSMessage, audience: Audience = "everyone") -> _Answer:
        raise NotImplementedError

    def publish_broadcast(self, message: WSMessage) -> _Answer:
        return self.publish(message)

    def publish_to_user(self, user_id: str, message: WSMessage) -> _Answer:
        return self.publish(message, {"user": str(user_id)})

    def publish_to_connection(self, connection_id: str, message: WSMessage) -> _Answer:
        return self.publish(message, {"connection": str(connection_id)})

    def publish_to_topic(self, topic: str, message: WSMessage) -> _Answer:
        return self.publish(message, {"topic": topic})


class AsyncPublisher(_Audiences[Coroutine[Any, Any, Published]]):
    """Publishes to a hub. ``url`` is the hub's (``https://hub.example.org``, with a ``token`` or an access key) or that of its
    Redis (``redis://``, ``rediss://``, ``redis+sentinel://``, ``redis+cluster://``, as the hub has it).

    Every publish returns once the event is in the log, and otherwise raises :class:`PublishError` after ``patience`` seconds.
    An event is published once however often that takes.
    """

    def __init__(self, url: str, *, token: Optional[str] = None, namespace: str = "ws", patience: float = 10.0):
        self._address = _Address(url, token, namespace, patience)
        self._client: Any = None

    async def __aenter__(self) -> AsyncPublisher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections. A later publish opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def publish(self, message: WSMessage, audience: Audience = "everyone") -> Published:
        """Publishes to ``"everyone"``, ``{"user": id}``, ``{"connection": id}`` or ``{"topic": name}``."""
        way, outcome = self._address.way(message, audience), None
        while True:
            try:
                step = way.send(outcome)
            except StopIteration as end:
                published: Published = end.value
                return published
            outcome = await self._do(step)

    async def _do(self, step: ways.Step) -> Any:
        if isinstance(step, Wait):
            return await asyncio.sleep(step.seconds)
        try:
            if isinstance(step, Post):
                if self._client is None:
                    self._client = httpx.AsyncClient(base_url=self._address.base, headers=self._address.headers)
                answer = await self._client.post(step.path, content=step.body)
                return answer.status_code, answer.headers, answer.text
            if self._client is None:
                self._client = servers.connect(self._address.url, redis.asyncio)
            if isinstance(step, Say):
                return await self._client.publish(step.channel, step.text)
            return _sequence(await self._client.hget(step.key, step.event_id))
        except (httpx.TransportError, *_AWAY) as error:
            return Failed(str(error) or type(error).__name__)


class Publisher(_Audiences[Published]):
    """As :class:`AsyncPublisher`, without asyncio. Safe to share between threads."""

    def __init__(self, url: str, *, token: Optional[str] = None, namespace: str = "ws", patience: float = 10.0):
        self._address = _Address(url, token, namespace, patience)
        self._opening = threading.Lock()
        self._client: Any = None

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. A later publish opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def publish(self, message: WSMessage, audience: Audience = "everyone") -> Published:
        """Publishes to ``"everyone"``, ``{"user": id}``, ``{"connection": id}`` or ``{"topic": name}``."""
        way, outcome = self._address.way(message, audience), None
        while True:
            try:
                step = way.send(outcome)
            except StopIteration as end:
                published: Published = end.value
                return published
            outcome = self._do(step)

    def _do(self, step: ways.Step) -> Any:
        if isinstance(step, Wait):
            return time.sleep(step.seconds)
        try:
            client = self._open()
            if isinstance(step, Post):
                answer = client.post(step.path, content=step.body)
                return answer.status_code, answer.headers, answer.text
            if isinstance(step, Say):
                return client.publish(step.channel, step.text)
            return _sequence(client.hget(step.key, step.event_id))
        except (httpx.TransportError, *_AWAY) as error:
            return Failed(str(error) or type(error).__name__)

    def _open(self) -> Any:
        with self._opening:
            if self._client is None and self._address.over_redis:
                self._client = servers.connect(self._address.url, redis)
            elif self._client is None:
                self._client = httpx.Client(base_url=self._address.base, headers=self._address.headers)
            return self._client


def _sequence(held: Optional[Union[bytes, str]]) -> Optional[int]:
    return None if held is None else int(held)


class RedisPubSub(AsyncPublisher):
    """The FastAPI hub's publishing object. Where events go is read from the environment at the first publish: ``REDIS_URL``, with
    ``FANFARE_REDIS_NAMESPACE`` if it is not ``ws``; or ``FANFARE_URL`` with ``FANFARE_TOKEN`` for a hub without a Redis."""

    def __init__(self) -> None:
        self._client = None
        self._found: Optional[_Address] = None

    @property
    def _address(self) -> _Address:  # type: ignore[override]
        if self._found is None:
            setting: Dict[str, str] = dict(os.environ)
            url = setting.get("REDIS_URL") or setting.get("FANFARE_URL")
            if not url:
                raise PublishError("there is nowhere to publish to: set REDIS_URL, or FANFARE_URL and FANFARE_TOKEN")
            token = setting.get("FANFARE_TOKEN")
            self._found = _Address(url, token, setting.get("FANFARE_REDIS_NAMESPACE", "ws"), 10.0)
        return self._found

    async def initialize(self) -> None:
        """Checks that there is somewhere to publish to. Connections are opened when they are needed."""
        _ = self._address


#: What the FastAPI hub's applications import.
redis_pubsub = RedisPubSub()
