"""Where Redis is: the URLs that the hub takes, as clients of redis-py."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple
from urllib.parse import unquote, urlsplit

import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel

SENTINEL = ("redis+sentinel://", "rediss+sentinel://")
CLUSTER = ("redis+cluster://", "rediss+cluster://")

#: For one command, in seconds: a publish waits no longer than its patience, and a server that is gone says nothing.
_TIMEOUT = 2.0


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
    options: Dict[str, Any] = {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT}
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


def connect(url: str, api: Any) -> Any:
    """A client of ``api``, which is ``redis`` or ``redis.asyncio``: both have the same classes."""
    if url.startswith(SENTINEL):
        found, path, options = _parts(url)
        name = _master(path, options)
        own = {key: value for key, value in options.items() if key != "db"}
        return api.sentinel.Sentinel(found, sentinel_kwargs=own, **options).master_for(name)
    if url.startswith(CLUSTER):
        found, _, options = _parts(url)
        nodes = [api.cluster.ClusterNode(host, port) for host, port in found]
        return api.cluster.RedisCluster(startup_nodes=nodes, **options)
    return api.Redis.from_url(url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT)
