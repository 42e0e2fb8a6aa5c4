"""The addresses of a hub and its Redis, in the forms that the hub accepts, and clients for them."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio.cluster
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.backoff
import redis.cluster
import redis.retry
import redis.sentinel

from .errors import ConfigurationError

SENTINEL = ("redis+sentinel://", "rediss+sentinel://")
CLUSTER = ("redis+cluster://", "rediss+cluster://")
_REDIS = ("redis://", "rediss://", "unix://", *SENTINEL, *CLUSTER)
_HTTP = ("http://", "https://", "ws://", "wss://")

#: Time limit of a command to Redis, in seconds. A server that has failed may not close its connections.
_TIMEOUT = 2.0


class Address:
    """The checked address of a publisher, with its credentials. The constructor raises :class:`ConfigurationError`."""

    def __init__(self, url: str, token: Optional[str], namespace: str, patience: float):
        if not isinstance(url, str) or not url.startswith(_REDIS + _HTTP):
            redis_schemes = "redis:// (rediss, unix, redis+sentinel, redis+cluster)"
            kinds = f"https:// or http:// for a hub, {redis_schemes} for its Redis"
            raise ConfigurationError(f"the publisher's URL is not valid: expected {kinds}")
        if not isinstance(patience, (int, float)) or not patience > 0:
            raise ConfigurationError("patience must be more than 0 seconds")
        self.url, self.namespace, self.patience = url, namespace, patience
        self.over_redis, self.cluster = url.startswith(_REDIS), url.startswith(CLUSTER)
        #: Time limit of a command to Redis. It leaves time for a retry before the deadline of the publish.
        self.timeout = max(0.05, min(_TIMEOUT, patience / 4))
        self.base = self.where = ""
        self.headers: Dict[str, str] = {}
        if not self.over_redis:
            self._over_http(token)

    def _over_http(self, token: Optional[str]) -> None:
        try:
            parsed = urlsplit(self.url)
            host, port = parsed.hostname, parsed.port
        except ValueError as error:
            raise ConfigurationError(f"the hub's URL is not valid: {error}") from None
        if not host or parsed.query or parsed.fragment:
            expected = "https://HOST[:PORT][/PATH]; pass a token as `token`"
            raise ConfigurationError(f"the hub's URL is not valid: expected {expected}")
        self.base = self.url.rstrip("/")
        if parsed.scheme in ("ws", "wss"):
            self.base = self.base.replace("ws", "http", 1)
            self.base = self.base[:-3] if self.base.endswith("/ws") else self.base
        # `where` appears in messages, so it must not contain the password that a URL may have.
        self.where = f"{self.base.split(':', 1)[0]}://{host}{f':{port}' if port else ''}"
        self.headers = {"Authorization": f"Bearer {_token(token)}", "Content-Type": "application/json"}


def _token(token: Optional[str]) -> str:
    token = (token or "").strip()
    if not token:
        raise ConfigurationError("no token: set `token` (FANFARE_TOKEN) to a token or an access key of the hub")
    if not all("!" <= c <= "~" for c in token):
        raise ConfigurationError("the token contains a character that is not valid, such as a space or a line break")
    return token


def _parts(url: str) -> Tuple[List[Tuple[str, int]], str, Dict[str, Any]]:
    """Returns the servers, the path, and the options of each connection."""
    parsed = urlsplit(url)
    credentials, _, servers = parsed.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    default = 26379 if url.startswith(SENTINEL) else 6379
    found = []
    for server in servers.split(","):
        host, _, port = server.rpartition(":") if ":" in server.rsplit("]", 1)[-1] else (server, "", "")
        found.append((host.strip("[]") or "127.0.0.1", int(port or default)))
    options: Dict[str, Any] = {}
    if password:
        options.update(username=unquote(user) or None, password=unquote(password))
    if parsed.scheme.startswith("rediss"):
        options["ssl"] = True
    return found, parsed.path.strip("/"), options


def _master(path: str, options: Dict[str, Any]) -> str:
    name, _, database = path.partition("/")
    if database:
        options["db"] = int(database)
    return name


def connect(address: Address, api: Any) -> Any:
    """Returns a client of ``api``, which is ``redis`` or ``redis.asyncio``. Both have the same classes."""
    try:
        return _connect(address.url, address.timeout, api)
    except (ValueError, TypeError, redis.RedisError) as error:
        if isinstance(error, redis.ConnectionError):
            raise
        # The error is not chained, because the URL may contain a password.
        raise ConfigurationError("the URL of Redis is not valid: check its port, database and options") from None


def _connect(url: str, timeout: float, api: Any) -> Any:
    limits: Dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    if url.startswith(CLUSTER):
        found, _, options = _parts(url)
        nodes = [api.cluster.ClusterNode(host, port) for host, port in found]
        return api.cluster.RedisCluster(startup_nodes=nodes, **options, **limits)
    # The publisher retries, within the deadline of the publish.
    retry = redis.asyncio.retry.Retry if api is redis.asyncio else redis.retry.Retry
    limits["retry"] = retry(redis.backoff.NoBackoff(), 0)
    if url.startswith(SENTINEL):
        found, path, options = _parts(url)
        name = _master(path, options)
        own = {key: value for key, value in {**options, **limits}.items() if key != "db"}
        return api.sentinel.Sentinel(found, sentinel_kwargs=own, **options, **limits).master_for(name)
    client = api.Redis.from_url(url, **limits)
    # Set here, because options of the URL take precedence over the arguments of `from_url`.
    client.connection_pool.connection_kwargs.update(limits)
    return client


def close(client: Any) -> None:
    """Closes a client, and its connections to the sentinels, which redis-py leaves open."""
    client.close()
    for sentinel in _sentinels(client):
        sentinel.close()


async def aclose(client: Any) -> None:
    """Closes a client of asyncio, as :func:`close` does."""
    await client.aclose()
    for sentinel in _sentinels(client):
        await sentinel.aclose()


def _sentinels(client: Any) -> List[Any]:
    pool = getattr(client, "connection_pool", None)
    return list(getattr(getattr(pool, "sentinel_manager", None), "sentinels", []))
