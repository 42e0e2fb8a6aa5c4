"""The publishers of the Python package over Redis Cluster and Sentinel."""

import asyncio
import threading

import pytest
from fanfare_publisher import AsyncPublisher, EventRejected, Publisher, WSMessage
from hub import DEADLINE, Hub, until
from redis_kinds import Cluster, Sentinels


@pytest.fixture(scope="module", params=[Cluster, Sentinels], ids=["cluster", "sentinel"])
def servers(request, tmp_path_factory):
    running = request.param(tmp_path_factory.mktemp("servers"))
    yield running
    running.end()


@pytest.fixture(scope="module")
def node(servers, tmp_path_factory):
    running = Hub(tmp_path_factory.mktemp("node"), REDIS_URL=servers.url)
    yield running
    running.kill()


def note(**fields) -> WSMessage:
    return WSMessage(type="note", **fields)


def publish(way: str, url: str, event: WSMessage, audience):
    """Publishes an event with either publisher."""
    if way == "sync":
        with Publisher(url, patience=DEADLINE) as publisher:
            return publisher.publish(event, audience)

    async def run():
        async with AsyncPublisher(url, patience=DEADLINE) as publisher:
            return await publisher.publish(event, audience)

    return asyncio.run(run())


def publish_many(way: str, url: str, events):
    if way == "sync":
        with Publisher(url, patience=DEADLINE) as publisher:
            return publisher.publish_many(events)

    async def run():
        async with AsyncPublisher(url, patience=DEADLINE) as publisher:
            return await publisher.publish_many(events)

    return asyncio.run(run())


@pytest.mark.parametrize("way", ["sync", "async"])
def test_events_reach_their_audience_and_are_published_once(way, servers, node):
    first, second = note(), note()
    with node.client("ann") as ann, node.client("bob") as bob:
        one = publish(way, servers.url, first, {"user": "ann"})
        again = publish(way, servers.url, first, {"user": "ann"})
        publish(way, servers.url, second, "everyone")
        assert ann.ids_until(second.event_id) == [first.event_id, second.event_id]
        assert bob.ids_until(second.event_id) == [second.event_id]
    assert (one.sequence, one.duplicate, again.duplicate) == (again.sequence, False, True)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_the_reason_of_a_rejected_event_is_raised(way, servers, node):
    with pytest.raises(EventRejected, match="reserved") as rejected:
        publish(way, servers.url, WSMessage(type="$sys"), "everyone")
    assert (rejected.value.code, rejected.value.may_be_published) == ("invalid", False)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_many_events_are_published_in_their_order(way, servers, node):
    events = [(note(), "everyone" if n % 2 else {"user": "ann"}) for n in range(300)]
    with node.client("ann") as ann:
        published = publish_many(way, servers.url, events)
        ids = [event.event_id for event, _ in events]
        assert ann.ids_until(ids[-1]) == ids
    assert [one.event_id for one in published] == ids
    sequences = [one.sequence for one in published]
    assert sequences == list(range(sequences[0], sequences[0] + 300))


@pytest.mark.parametrize("way", ["sync", "async"])
def test_the_index_of_a_rejected_event_is_reported(way, servers, node):
    events = [(WSMessage(type="$sys" if n == 3 else "note"), "everyone") for n in range(6)]
    with pytest.raises(EventRejected, match="reserved") as rejected:
        publish_many(way, servers.url, events)
    assert rejected.value.index == 3
    published = [one.event_id for one in rejected.value.published]
    assert published == [event.event_id for n, (event, _) in enumerate(events) if n != 3]


def test_a_publisher_continues_with_the_new_master_after_a_failover(tmp_path):
    (tmp_path / "servers").mkdir()
    servers = Sentinels(tmp_path / "servers")
    hub = Hub(tmp_path, REDIS_URL=servers.url)
    sequences: list[int] = []
    done = threading.Event()
    try:
        with Publisher(servers.url, patience=DEADLINE) as publisher, hub.client("ann") as ann:

            def publish_until_done() -> None:
                while not done.is_set():
                    sequences.append(publisher.publish(note(), "everyone").sequence)

            thread = threading.Thread(target=publish_until_done)
            thread.start()
            try:
                until(lambda: len(sequences) > 50, "the first events")
                former = servers.master()
                former.kill()
                until(lambda: servers.master() is not former, "the failover")
                count = len(sequences)
                until(lambda: len(sequences) > count + 50, "events through the new master")
            finally:
                done.set()
                thread.join(2 * DEADLINE)
            assert not thread.is_alive()
            assert ann.next_of("note")
    finally:
        hub.kill()
        servers.end()
