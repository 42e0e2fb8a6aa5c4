"""Where a hub and its Redis are: the URLs that the hub takes, and clients for them."""

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

#: The longest that one command may take, in seconds: a server that is gone says nothing.
_TIMEOUT = 2.0


class Address:
    """Where events go, and what is shown there. Checked when it is made: raises :class:`ConfigurationError`."""

    def __init__(self, url: str, token: Optional[str], namespace: str, patience: float):
        if not isinstance(url, str) or not url.startswith(_REDIS + _HTTP):
            kinds = "https:// or http:// for a hub, redis:// (rediss, unix, redis+sentinel, redis+cluster) for its Redis"
            raise ConfigurationError(f"the publisher's URL is not valid: expected {kinds}")
        if not isinstance(patience, (int, float)) or not patience > 0:
            raise ConfigurationError("patience must be more than 0 seconds")
        self.url, self.namespace, self.patience = url, namespace, patience
        self.over_redis, self.cluster = url.startswith(_REDIS), url.startswith(CLUSTER)
        #: For one command to Redis, so that a publish whose server falls silent still ends in time.
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
            raise ConfigurationError("the hub's URL is not valid: expected https://HOST[:PORT][/PATH]; a token goes into `token`")
        self.base = self.url.rstrip("/")
        if parsed.scheme in ("ws", "wss"):
            self.base = self.base.replace("ws", "http", 1)
            self.base = self.base[:-3] if self.base.endswith("/ws") else self.base
        # Without the password that a URL may have.
        self.where = f"{self.base.split(':', 1)[0]}://{host}{f':{port}' if port else ''}"
        self.headers = {"Authorization": f"Bearer {_token(token)}", "Content-Type": "application/json"}


def _token(token: Optional[str]) -> str:
    token = (token or "").strip()
    if not token:
        raise ConfigurationError("publishing over HTTP needs a token or an access key of the hub: set `token` (FANFARE_TOKEN)")
    if not all("!" <= c <= "~" for c in token):
        raise ConfigurationError("the token has characters that no token or access key has, such as a space or a line break")
    return token


def _parts(url: str) -> Tuple[List[Tuple[str, int]], str, Dict[str, Any]]:
    """The servers, the path, and what each connection needs."""
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
    """A client of ``api``, which is ``redis`` or ``redis.asyncio``: both have the same classes."""
    try:
        return _connect(address.url, address.timeout, api)
    except (ValueError, TypeError, redis.RedisError) as error:
        if isinstance(error, redis.ConnectionError):
            raise
        # The URL may have a password in it.
        raise ConfigurationError("the URL of Redis is not valid: its port, database or one of its options can't be used") from None


def _connect(url: str, timeout: float, api: Any) -> Any:
    limits: Dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    if url.startswith(CLUSTER):
        found, _, options = _parts(url)
        nodes = [api.cluster.ClusterNode(host, port) for host, port in found]
        return api.cluster.RedisCluster(startup_nodes=nodes, **options, **limits)
    # What fails is tried again as a whole publish, within its deadline.
    retry = redis.asyncio.retry.Retry if api is redis.asyncio else redis.retry.Retry
    limits["retry"] = retry(redis.backoff.NoBackoff(), 0)
    if url.startswith(SENTINEL):
        found, path, options = _parts(url)
        name = _master(path, options)
        own = {key: value for key, value in {**options, **limits}.items() if key != "db"}
        return api.sentinel.Sentinel(found, sentinel_kwargs=own, **options, **limits).master_for(name)
    client = api.Redis.from_url(url, **limits)
    # Options of the URL would count before these.
    client.connection_pool.connection_kwargs.update(limits)
    return client


def close(client: Any) -> None:
    """Closes a client, and its connections to the sentinels, which redis-py leaves open."""
    client.close()
    for sentinel in _sentinels(client):
        sentinel.close()


async def aclose(client: Any) -> None:
    """As :func:`close`, for a client of asyncio."""
    await client.aclose()
    for sentinel in _sentinels(client):
        await sentinel.aclose()


def _sentinels(client: Any) -> List[Any]:
    pool = getattr(client, "connection_pool", None)
    return list(getattr(getattr(pool, "sentinel_manager", None), "sentinels", []))
