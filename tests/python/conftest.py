"""Hubs for the tests: one that all share, and one with settings of its own for a test that needs them."""

import pytest

from hub import PUBLISHER, Hub, token
from redis_server import RedisServer


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A hub with default settings but the limits on how often a test may connect."""
    running = Hub(tmp_path_factory.mktemp("hub"), FANFARE_CONNECTS_PER_SECOND_PER_ADDRESS="0")
    yield running
    running.kill()


@pytest.fixture
def hub_with(tmp_path):
    """Starts a hub with settings of its own: `hub_with(window_events=10)`."""
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
    """A Redis that the tests of one file share."""
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
    """How to reach the same hub."""
    return {"url": f"http://{node.address}", "token": token("publisher", **PUBLISHER)} if request.param == "http" else {"url": server.url}
