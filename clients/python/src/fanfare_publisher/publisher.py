"""Publishers: with asyncio and without, over HTTP or Redis."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import contextmanager
from typing import (
    Any,
    Coroutine,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Optional,
    Tuple,
    TypeVar,
    Union,
)

import httpx
import redis
import redis.asyncio

from . import over_http, over_redis, servers
from .audience import EVERYONE, Audience, UserId, to_connection, to_topic, to_user
from .errors import ConfigurationError, NotAuthorized, PublishError
from .messages import WSMessage
from .servers import Address
from .steps import Failed, Find, Outgoing, Post, Published, Say, Step, Wait, Way, all_outgoing, outgoing

__all__ = ["AsyncPublisher", "Published", "Publisher", "RedisPubSub", "redis_pubsub"]

Events = Iterable[Tuple[WSMessage, Audience]]

#: What a publish gives: what came of it, or what is awaited for that.
_One = TypeVar("_One")
_Many = TypeVar("_Many")
_Result = TypeVar("_Result")

#: The time limit of a request whose caller was cancelled, in seconds: a server may send its response byte by byte.
LONGEST_REST = 30.0

#: Clients of a parent process. They are kept, because whatever ends them here would write to connections that are the parent's.
_INHERITED: List[object] = []


class _Audiences(Generic[_One, _Many]):
    """A method for each audience, as the FastAPI hub's module has them."""

    def publish(self, message: WSMessage, audience: Audience) -> _One:
        raise NotImplementedError

    def publish_many(self, events: Events) -> _Many:
        raise NotImplementedError

    def publish_broadcast(self, message: WSMessage) -> _One:
        return self.publish(message, EVERYONE)

    def publish_to_user(self, user_id: UserId, message: WSMessage) -> _One:
        return self.publish(message, to_user(user_id))

    def publish_to_connection(self, connection_id: str, message: WSMessage) -> _One:
        return self.publish(message, to_connection(connection_id))

    def publish_to_topic(self, topic: str, message: WSMessage) -> _One:
        return self.publish(message, to_topic(topic))


class _Ways:
    """The way of an event to the address, over HTTP or Redis."""

    def __init__(self, address: Address):
        self.address = address
        self._keys = over_redis.Keys.of(address.namespace, address.cluster)

    def of_one(self, event: Outgoing) -> Way[Published]:
        address, deadline = self.address, time.monotonic() + self.address.patience
        if address.over_redis:
            return over_redis.publish(event, self._keys, deadline, address.timeout, time.monotonic)
        return over_http.publish(event, address.where, deadline, time.monotonic)

    def of_many(self, events: List[Outgoing]) -> Way[List[Published]]:
        address = self.address
        if address.over_redis:
            return over_redis.publish_many(events, self._keys, address.patience, address.timeout, time.monotonic)
        return over_http.publish_many(events, address.where, address.patience, time.monotonic)


class AsyncPublisher(_Audiences[Coroutine[Any, Any, Published], Coroutine[Any, Any, List[Published]]]):
    """Publishes to a hub. ``url`` is the hub's (``https://hub.example.org``, with a ``token`` or an access key) or that of its
    Redis (``redis://``, ``rediss://``, ``redis+sentinel://``, ``redis+cluster://``, as the hub has it).

    Every publish returns once the event is in the log, and otherwise raises :class:`PublishError` within ``patience`` seconds.
    An event is published once however often that takes.

    May be made at import time and used from any event loop and any process: each has its own connections.
    """

    def __init__(self, url: str, *, token: Optional[str] = None, namespace: str = "ws", patience: float = 10.0):
        self._ways: Optional[_Ways] = _Ways(Address(url, token, namespace, patience))
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._clients: Dict[asyncio.AbstractEventLoop, Any] = {}

    async def __aenter__(self) -> AsyncPublisher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections of this event loop. A later publish opens new ones."""
        client = self._own().pop(asyncio.get_running_loop(), None)
        if client is not None:
            await servers.aclose(client)

    async def publish(self, message: WSMessage, audience: Audience) -> Published:
        """Publishes to ``"everyone"``, ``{"user": id}``, ``{"connection": id}`` or ``{"topic": name}``."""
        event = outgoing(message, audience)
        return await self._go(self._found().of_one(event))

    async def publish_many(self, events: Events) -> List[Published]:
        """Publishes pairs of a message and its audience, in their order, many in one request. See docs/fastapi.md for what is published
        when it fails."""
        checked = all_outgoing(events)
        return await self._go(self._found().of_many(checked))

    def _found(self) -> _Ways:
        if self._ways is None:
            raise ConfigurationError("there is nowhere to publish to")
        return self._ways

    async def _go(self, way: Way[_Result]) -> _Result:
        outcome: Any = None
        while True:
            try:
                step = way.send(outcome)
            except StopIteration as end:
                result: _Result = end.value
                return result
            outcome = await self._do(step)

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Wait):
            return await asyncio.sleep(step.seconds)
        try:
            request = self._unbroken(step) if isinstance(step, Post) else self._request(step)
            return await asyncio.wait_for(request, step.seconds)
        except Exception as error:
            return _failure(error)

    async def _unbroken(self, step: Post) -> Any:
        """A request that runs to its end even if its caller is cancelled: httpx never frees the place in its pool of a request
        that is cancelled while it waits for a connection, and without places nothing is published."""
        request = asyncio.ensure_future(asyncio.wait_for(self._request(step), step.seconds + LONGEST_REST))
        request.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return await asyncio.shield(request)

    async def _request(self, step: Union[Post, Say, Find]) -> Any:
        client, ways = self._open(), self._found()
        if isinstance(step, Post):
            answer = await client.post(step.path, content=step.body, timeout=step.seconds)
            return answer.status_code, answer.headers, answer.text
        answers: List[Any] = []
        for commands in _commands(step, ways.address.cluster):
            if len(commands) == 1:
                answers.append(await client.execute_command(*commands[0]))
                continue
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers += await pipeline.execute(raise_on_error=False)
        return _outcome(step, answers)

    def _own(self) -> Dict[asyncio.AbstractEventLoop, Any]:
        """The clients of this process."""
        if self._pid != os.getpid():
            _INHERITED.append(self._clients)
            self._begin()
        return self._clients

    def _open(self) -> Any:
        clients, loop = self._own(), asyncio.get_running_loop()
        client = clients.get(loop)
        if client is None:
            for ended in [other for other in clients if other.is_closed()]:
                del clients[ended]
            client = clients[loop] = self._connect(self._found().address)
        return client

    def _connect(self, address: Address) -> Any:
        if address.over_redis:
            return servers.connect(address, redis.asyncio)
        return httpx.AsyncClient(base_url=address.base, headers=address.headers)


class _Shared:
    """A client, and how many threads use it: the last one closes it."""

    def __init__(self, client: Any):
        self.client, self.users, self.closing = client, 0, False


class _Process:
    """What one process has: its client, and a lock that no fork leaves locked."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.shared: Optional[_Shared] = None


class Publisher(_Audiences[Published, List[Published]]):
    """As :class:`AsyncPublisher`, without asyncio. Safe to share between threads, and to use after a fork."""

    def __init__(self, url: str, *, token: Optional[str] = None, namespace: str = "ws", patience: float = 10.0):
        self._ways = _Ways(Address(url, token, namespace, patience))
        self._process = _Process()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections, those in use once their requests have ended. A later publish opens new ones."""
        own = self._own()
        with own.lock:
            shared, own.shared = own.shared, None
            if shared is None:
                return
            shared.closing = True
            idle = not shared.users
        if idle:
            servers.close(shared.client)

    def publish(self, message: WSMessage, audience: Audience) -> Published:
        """Publishes to ``"everyone"``, ``{"user": id}``, ``{"connection": id}`` or ``{"topic": name}``."""
        return self._go(self._ways.of_one(outgoing(message, audience)))

    def publish_many(self, events: Events) -> List[Published]:
        """Publishes pairs of a message and its audience, in their order, many in one request. See docs/fastapi.md for what is published
        when it fails."""
        return self._go(self._ways.of_many(all_outgoing(events)))

    def _go(self, way: Way[_Result]) -> _Result:
        outcome: Any = None
        while True:
            try:
                step = way.send(outcome)
            except StopIteration as end:
                result: _Result = end.value
                return result
            outcome = self._do(step)

    def _do(self, step: Step) -> Any:
        if isinstance(step, Wait):
            return time.sleep(step.seconds)
        try:
            with self._client() as client:
                return self._request(client, step)
        except Exception as error:
            return _failure(error)

    def _request(self, client: Any, step: Union[Post, Say, Find]) -> Any:
        if isinstance(step, Post):
            return _post(client, step)
        answers: List[Any] = []
        for commands in _commands(step, self._ways.address.cluster):
            if len(commands) == 1:
                answers.append(client.execute_command(*commands[0]))
                continue
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers += pipeline.execute(raise_on_error=False)
        return _outcome(step, answers)

    def _own(self) -> _Process:
        """What belongs to this process."""
        if self._process.pid != os.getpid():
            _INHERITED.append(self._process)
            self._process = _Process()
        return self._process

    @contextmanager
    def _client(self) -> Iterator[Any]:
        own = self._own()
        with own.lock:
            if own.shared is None:
                own.shared = _Shared(self._connect(self._ways.address))
            shared = own.shared
            shared.users += 1
        try:
            yield shared.client
        finally:
            with own.lock:
                shared.users -= 1
                last = shared.closing and not shared.users
            if last:
                servers.close(shared.client)

    def _connect(self, address: Address) -> Any:
        if address.over_redis:
            return servers.connect(address, redis)
        return httpx.Client(base_url=address.base, headers=address.headers)


class _Remaining(Dict[str, Optional[float]]):
    """The time limits of a request. Each of its phases asks for its own when it begins, and gets what is left for all."""

    def __init__(self, end: float):
        super().__init__()
        self._end = end

    def get(self, name: str, default: Any = None) -> float:
        return max(0.001, self._end - time.monotonic())


def _post(client: httpx.Client, step: Post) -> Any:
    end = time.monotonic() + step.seconds
    extensions = {"timeout": _Remaining(end)}
    with client.stream("POST", step.path, content=step.body, extensions=extensions) as answer:
        body = b""
        for chunk in answer.iter_bytes():
            body += chunk
            if time.monotonic() > end:
                raise httpx.ReadTimeout("the answer did not end in time")
        return answer.status_code, answer.headers, body.decode("utf-8", "replace")


def _commands(step: Union[Say, Find], cluster: bool) -> List[List[Tuple[Any, ...]]]:
    """The commands of a step, in groups that are sent at once."""
    if isinstance(step, Find):
        return [[("HMGET", step.index, *step.event_ids), *(("GET", key) for key in step.reasons)]]
    forget: List[Tuple[Any, ...]] = [("DEL", key) for key in step.forget]
    say: List[Tuple[Any, ...]] = [("PUBLISH", *message) for message in step.messages]
    # A Cluster's client has no pipeline for channels, which belong to no slot.
    return [forget, *([command] for command in say)] if cluster else [forget + say]


def _outcome(step: Union[Say, Find], answers: List[Any]) -> Any:
    """What came of a step. A user of Redis who may not read the reasons publishes without them."""
    needed = answers[len(step.forget) :] if isinstance(step, Say) else answers[:1]
    for answer in needed:
        if isinstance(answer, Exception):
            raise answer
    if isinstance(step, Say):
        return int(needed[-1])
    reasons = [_text(answer) for answer in answers[1:]]
    return [(None if held is None else int(held), reason) for held, reason in zip(needed[0], reasons)]


def _text(answer: Any) -> Optional[str]:
    if isinstance(answer, bytes):
        return answer.decode("utf-8", "replace")
    return answer if isinstance(answer, str) else None


#: Refusals of Redis that another attempt does not change.
_FINAL = (redis.AuthenticationError, redis.exceptions.AuthorizationError, redis.exceptions.NoPermissionError)

#: Failures before anything was sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def _failure(error: Exception) -> Failed:
    """What a failed request means. Raises where another attempt would fail alike."""
    if isinstance(error, PublishError):
        raise error
    if isinstance(error, _FINAL):
        text = "Redis rejected the publisher: check user and password in the URL, and the user's permissions (ACL)"
        raise NotAuthorized(f"{text}: {error}") from error
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        raise ConfigurationError("the hub's URL is not valid: expected https://HOST[:PORT][/PATH]") from None
    if isinstance(error, redis.ResponseError) and _is_final(error):
        raise PublishError(f"Redis rejected a command: {error}", may_be_published=True) from error
    if isinstance(error, (httpx.HTTPError, httpx.StreamError, redis.RedisError, OSError, EOFError, RuntimeError, ValueError)):
        return Failed(str(error) or type(error).__name__, sent=not isinstance(error, _NOT_SENT))
    if isinstance(error, asyncio.TimeoutError):
        return Failed("no answer in time")
    raise PublishError(f"publishing failed: {type(error).__name__}: {error}", may_be_published=True) from error


def _is_final(error: Exception) -> bool:
    temporary = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "OOM", "MISCONF", "MOVED", "ASK")
    kinds = (redis.BusyLoadingError, redis.ReadOnlyError, redis.exceptions.ClusterError, redis.exceptions.TryAgainError)
    return not isinstance(error, kinds) and not str(error).upper().startswith(temporary)


class RedisPubSub(AsyncPublisher):
    """The FastAPI hub's publishing object. Where events go is read from the environment at the first publish: ``REDIS_URL``, with
    ``FANFARE_REDIS_NAMESPACE`` if it is not ``ws``; or ``FANFARE_URL`` with ``FANFARE_TOKEN`` for a hub without a Redis."""

    def __init__(self) -> None:
        self._ways = None
        self._begin()

    def _found(self) -> _Ways:
        if self._ways is None:
            url = os.environ.get("REDIS_URL") or os.environ.get("FANFARE_URL")
            if not url:
                raise ConfigurationError("there is nowhere to publish to: set REDIS_URL, or FANFARE_URL and FANFARE_TOKEN")
            token = os.environ.get("FANFARE_TOKEN")
            self._ways = _Ways(Address(url, token, os.environ.get("FANFARE_REDIS_NAMESPACE") or "ws", 10.0))
        return self._ways

    async def initialize(self) -> None:
        """Checks that there is somewhere to publish to. Connections are opened when they are needed."""
        self._found()


#: What the FastAPI hub's applications import.
redis_pubsub = RedisPubSub()
