"""Hubs for the tests: a shared one, and hubs with settings for a single test."""

import pytest

from hub import PUBLISHER, Hub, token
from redis_server import RedisServer


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A hub with default settings, but without a limit on connects."""
    running = Hub(tmp_path_factory.mktemp("hub"), FANFARE_CONNECTS_PER_SECOND_PER_ADDRESS="0")
    yield running
    running.kill()


@pytest.fixture
def hub_with(tmp_path):
    """Starts a hub with settings: `hub_with(window_events=10)`."""
    running = []

    def start(**settings):
        environment = {f"FANFARE_{name.upper()}": str(value) for name, value in settings.items()}
        running.append(Hub(tmp_path, **environment))
        return running[-1]

    yield start
    for one in running:
        one.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Redis server that the tests of a file share."""
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    yield running
    running.kill()


@pytest.fixture(scope="module")
def node(server, tmp_path_factory):
    """A hub whose log is in Redis."""
    running = Hub(tmp_path_factory.mktemp("node"), REDIS_URL=server.url, FANFARE_CONNECTS_PER_SECOND_PER_ADDRESS="0")
    yield running
    running.kill()


@pytest.fixture(params=["http", "redis"])
def way(request, node, server) -> dict:
    """The arguments of a publisher for the same hub, over HTTP and over Redis."""
    if request.param == "http":
        return {"url": f"http://{node.address}", "token": token("publisher", **PUBLISHER)}
    return {"url": server.url}
