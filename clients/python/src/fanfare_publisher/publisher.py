"""The publishers: with and without asyncio, over HTTP or Redis."""

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
from .published import Published
from .steps import Failed, FindInLog, Outgoing, Post, PublishOnChannels, Step, Steps, Wait, all_outgoing, outgoing

__all__ = ["AsyncPublisher", "Published", "Publisher", "RedisPubSub", "redis_pubsub"]

Events = Iterable[Tuple[WSMessage, Audience]]

#: The return types of `publish` and `publish_many`: results, or coroutines of them.
_One = TypeVar("_One")
_Many = TypeVar("_Many")
_Result = TypeVar("_Result")

#: The additional time limit of a request whose caller was cancelled, in seconds. A server may send its response byte by
#: byte.
CANCELLED_TIMEOUT = 30.0

#: Clients that were inherited from a parent process. They are never closed or collected, because that would write to
#: connections that the parent uses.
_INHERITED: List[object] = []


class _Audiences(Generic[_One, _Many]):
    """A method for each audience, as in the module of the FastAPI hub."""

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


class _Transport:
    """Creates the steps of a publish to an address, over HTTP or Redis."""

    def __init__(self, address: Address):
        self.address = address
        self._keys = over_redis.Keys.of(address.namespace, address.cluster)

    def publish(self, event: Outgoing) -> Steps[Published]:
        address, deadline = self.address, time.monotonic() + self.address.patience
        if address.over_redis:
            return over_redis.publish(event, self._keys, deadline, address.timeout, time.monotonic)
        return over_http.publish(event, address.where, deadline, time.monotonic)

    def publish_many(self, events: List[Outgoing]) -> Steps[List[Published]]:
        address = self.address
        if address.over_redis:
            return over_redis.publish_many(events, self._keys, address.patience, address.timeout, time.monotonic)
        return over_http.publish_many(events, address.where, address.patience, time.monotonic)


class AsyncPublisher(_Audiences[Coroutine[Any, Any, Published], Coroutine[Any, Any, List[Published]]]):
    """Publishes events to a hub, with asyncio.

    ``url`` is the URL of the hub (``https://hub.example.org``, with a token or an access key in ``token``), or that of
    its Redis in a form that the hub accepts (``redis://``, ``rediss://``, ``redis+sentinel://``, ``redis+cluster://``).

    A publish returns once the event is in the log, and otherwise raises :class:`PublishError` within ``patience``
    seconds. The event is published once, regardless of the number of attempts.

    A publisher may be created at import time, and used from any event loop and process: each has its own connections.
    """

    def __init__(self, url: str, *, token: Optional[str] = None, namespace: str = "ws", patience: float = 10.0):
        self._transport: Optional[_Transport] = _Transport(Address(url, token, namespace, patience))
        self._reset()

    def _reset(self) -> None:
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
        return await self._run(self._get_transport().publish(event))

    async def publish_many(self, events: Events) -> List[Published]:
        """Publishes pairs of a message and its audience, in their order, many in one request.

        docs/fastapi.md describes which events are published if it fails.
        """
        checked = all_outgoing(events)
        return await self._run(self._get_transport().publish_many(checked))

    def _get_transport(self) -> _Transport:
        if self._transport is None:
            raise ConfigurationError("the publisher has no URL")
        return self._transport

    async def _run(self, steps: Steps[_Result]) -> _Result:
        outcome: Any = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                result: _Result = end.value
                return result
            outcome = await self._execute(step)

    async def _execute(self, step: Step) -> Any:
        if isinstance(step, Wait):
            return await asyncio.sleep(step.seconds)
        try:
            request = self._uncancelled(step) if isinstance(step, Post) else self._request(step)
            return await asyncio.wait_for(request, step.seconds)
        except Exception as error:
            return _failure(error)

    async def _uncancelled(self, step: Post) -> Any:
        """Runs a request to its end even if its caller is cancelled.

        httpx never frees the slot in its pool of a request that is cancelled while it waits for a connection, and
        without free slots no request can start.
        """
        limit = step.seconds + CANCELLED_TIMEOUT
        request = asyncio.ensure_future(asyncio.wait_for(self._request(step), limit))
        request.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return await asyncio.shield(request)

    async def _request(self, step: Union[Post, PublishOnChannels, FindInLog]) -> Any:
        client, transport = self._open(), self._get_transport()
        if isinstance(step, Post):
            answer = await client.post(step.path, content=step.body, timeout=step.seconds)
            return answer.status_code, answer.headers, answer.text
        answers: List[Any] = []
        for commands in _commands(step, transport.address.cluster):
            if len(commands) == 1:
                answers.append(await client.execute_command(*commands[0]))
                continue
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers += await pipeline.execute(raise_on_error=False)
        return _outcome(step, answers)

    def _own(self) -> Dict[asyncio.AbstractEventLoop, Any]:
        """Returns the clients of this process. After a fork it starts with none."""
        if self._pid != os.getpid():
            _INHERITED.append(self._clients)
            self._reset()
        return self._clients

    def _open(self) -> Any:
        clients, loop = self._own(), asyncio.get_running_loop()
        client = clients.get(loop)
        if client is None:
            for ended in [other for other in clients if other.is_closed()]:
                del clients[ended]
            client = clients[loop] = self._connect(self._get_transport().address)
        return client

    def _connect(self, address: Address) -> Any:
        if address.over_redis:
            return servers.connect(address, redis.asyncio)
        return httpx.AsyncClient(base_url=address.base, headers=address.headers)


class _Shared:
    """A client, and the number of threads that use it. The last one closes it."""

    def __init__(self, client: Any):
        self.client, self.users, self.closing = client, 0, False


class _Process:
    """The state of one process: its client and its lock. A lock that a fork copied in a locked state is never used."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.shared: Optional[_Shared] = None


class Publisher(_Audiences[Published, List[Published]]):
    """Publishes events to a hub, without asyncio. The arguments are those of :class:`AsyncPublisher`.

    A publisher may be shared between threads, and used after a fork.
    """

    def __init__(self, url: str, *, token: Optional[str] = None, namespace: str = "ws", patience: float = 10.0):
        self._transport = _Transport(Address(url, token, namespace, patience))
        self._process = _Process()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; those in use are closed after their requests. A later publish opens new ones."""
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
        return self._run(self._transport.publish(outgoing(message, audience)))

    def publish_many(self, events: Events) -> List[Published]:
        """Publishes pairs of a message and its audience, in their order, many in one request.

        docs/fastapi.md describes which events are published if it fails.
        """
        return self._run(self._transport.publish_many(all_outgoing(events)))

    def _run(self, steps: Steps[_Result]) -> _Result:
        outcome: Any = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                result: _Result = end.value
                return result
            outcome = self._execute(step)

    def _execute(self, step: Step) -> Any:
        if isinstance(step, Wait):
            return time.sleep(step.seconds)
        try:
            with self._client() as client:
                return self._request(client, step)
        except Exception as error:
            return _failure(error)

    def _request(self, client: Any, step: Union[Post, PublishOnChannels, FindInLog]) -> Any:
        if isinstance(step, Post):
            return _post(client, step)
        answers: List[Any] = []
        for commands in _commands(step, self._transport.address.cluster):
            if len(commands) == 1:
                answers.append(client.execute_command(*commands[0]))
                continue
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers += pipeline.execute(raise_on_error=False)
        return _outcome(step, answers)

    def _own(self) -> _Process:
        """Returns the state of this process. After a fork it is a new one."""
        if self._process.pid != os.getpid():
            _INHERITED.append(self._process)
            self._process = _Process()
        return self._process

    @contextmanager
    def _client(self) -> Iterator[Any]:
        own = self._own()
        with own.lock:
            if own.shared is None:
                own.shared = _Shared(self._connect(self._transport.address))
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
    """The time limits of a request. Each phase reads its limit when it begins, and gets the remaining time."""

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
                raise httpx.ReadTimeout("the response did not end in time")
        return answer.status_code, answer.headers, body.decode("utf-8", "replace")


def _commands(step: Union[PublishOnChannels, FindInLog], cluster: bool) -> List[List[Tuple[Any, ...]]]:
    """Returns the commands of a step, in groups that are sent at once."""
    if isinstance(step, FindInLog):
        return [[("HMGET", step.index, *step.event_ids), *(("GET", key) for key in step.reasons)]]
    delete: List[Tuple[Any, ...]] = [("DEL", key) for key in step.delete]
    publish: List[Tuple[Any, ...]] = [("PUBLISH", *message) for message in step.messages]
    # The client of a Redis Cluster has no pipeline for channels, because they belong to no slot.
    return [delete, *([command] for command in publish)] if cluster else [delete + publish]


def _outcome(step: Union[PublishOnChannels, FindInLog], answers: List[Any]) -> Any:
    """Returns the outcome of a step. Reading the reasons may fail, because a Redis user may lack the permission."""
    needed = answers[len(step.delete) :] if isinstance(step, PublishOnChannels) else answers[:1]
    for answer in needed:
        if isinstance(answer, Exception):
            raise answer
    if isinstance(step, PublishOnChannels):
        return int(needed[-1])
    reasons = [_text(answer) for answer in answers[1:]]
    return [(None if found is None else int(found), reason) for found, reason in zip(needed[0], reasons)]


def _text(answer: Any) -> Optional[str]:
    if isinstance(answer, bytes):
        return answer.decode("utf-8", "replace")
    return answer if isinstance(answer, str) else None


#: Rejections of Redis for which a retry would fail too.
_FINAL = (redis.AuthenticationError, redis.exceptions.AuthorizationError, redis.exceptions.NoPermissionError)

#: Failures after which a publish is retried.
_RETRIED = (httpx.HTTPError, httpx.StreamError, redis.RedisError, OSError, EOFError, RuntimeError, ValueError)

#: Failures before anything was sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def _failure(error: Exception) -> Failed:
    """Converts an exception to an outcome. Raises :class:`PublishError` if a retry would fail too."""
    if isinstance(error, PublishError):
        raise error
    if isinstance(error, _FINAL):
        text = "Redis rejected the publisher; check the user, the password and the permissions (ACL) of the user"
        raise NotAuthorized(f"{text}: {error}") from error
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        raise ConfigurationError("the hub's URL is not valid: expected https://HOST[:PORT][/PATH]") from None
    if isinstance(error, redis.ResponseError) and _is_final(error):
        raise PublishError(f"Redis rejected a command: {error}", may_be_published=True) from error
    if isinstance(error, _RETRIED):
        return Failed(str(error) or type(error).__name__, sent=not isinstance(error, _NOT_SENT))
    if isinstance(error, asyncio.TimeoutError):
        return Failed("no response in time")
    raise PublishError(f"publishing failed: {type(error).__name__}: {error}", may_be_published=True) from error


def _is_final(error: Exception) -> bool:
    cluster = ("CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK")
    temporary = ("LOADING", "READONLY", "MASTERDOWN", "BUSY", "OOM", "MISCONF", *cluster)
    kinds = (redis.BusyLoadingError, redis.ReadOnlyError, redis.exceptions.ClusterError, redis.exceptions.TryAgainError)
    return not isinstance(error, kinds) and not str(error).upper().startswith(temporary)


class RedisPubSub(AsyncPublisher):
    """The publishing object of the FastAPI hub.

    It reads its address from the environment at the first publish: ``REDIS_URL``, with ``FANFARE_REDIS_NAMESPACE`` if
    the namespace is not ``ws``, or ``FANFARE_URL`` and ``FANFARE_TOKEN`` for a hub without Redis.
    """

    def __init__(self) -> None:
        self._transport = None
        self._reset()

    def _get_transport(self) -> _Transport:
        if self._transport is None:
            url = os.environ.get("REDIS_URL") or os.environ.get("FANFARE_URL")
            if not url:
                raise ConfigurationError("no URL to publish to: set REDIS_URL, or FANFARE_URL and FANFARE_TOKEN")
            token = os.environ.get("FANFARE_TOKEN")
            namespace = os.environ.get("FANFARE_REDIS_NAMESPACE") or "ws"
            self._transport = _Transport(Address(url, token, namespace, 10.0))
        return self._transport

    async def initialize(self) -> None:
        """Checks the configuration. Connections are opened on demand."""
        self._get_transport()


#: The object that applications of the FastAPI hub import.
redis_pubsub = RedisPubSub()
