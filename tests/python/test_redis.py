"""Publishers of the FastAPI hub, unchanged: redis-py, with its channels and its messages."""

import asyncio
import json
import uuid
from contextlib import ExitStack
from datetime import datetime

import pytest
import redis
import redis.asyncio
from hub import Hub, token, until
from proxy import late_clock

ADMIN = token("root", admin=True)


def message(kind: str, data: dict) -> dict:
    """Returns a message like WSMessage of the FastAPI hub: with a new ID, and a time in UTC without an offset."""
    now = datetime(2026, 11, 23, 9, 30, 0, 125000).isoformat()
    return {"type": kind, "event_id": str(uuid.uuid4()), "timestamp": now, "data": data}


@pytest.fixture(scope="module")
def nodes(server, tmp_path_factory):
    """Two hubs that share a log."""
    environment = {"REDIS_URL": server.url, "FANFARE_CONNECTS_PER_SECOND_PER_ADDRESS": "0"}
    running = [Hub(tmp_path_factory.mktemp("node"), **environment) for _ in range(2)]
    yield running
    for hub in running:
        hub.kill()


def test_events_of_a_redis_publisher_reach_their_audience_on_every_node(server, nodes):
    first, second = nodes
    publisher = redis.Redis.from_url(server.url)
    with first.client("ann") as ann, second.client("bob") as bob, second.client("ann") as again:
        task = message("task_status_update", {"task_id": "t1", "status": "running", "progress": 40})
        assert publisher.publish("ws:broadcast", json.dumps(task)) == 2
        note = message("agent_activity_update", {"agent_id": "a1", "activity": "note"})
        publisher.publish("ws:user:ann", json.dumps(note))
        event = message("calendar_event_created", {"event_id": "c1", "title": "t", "start_time": "2026-12-01"})
        publisher.publish(f"ws:connection:{bob.id}", json.dumps(event))
        last = message("done", {})
        publisher.publish("ws:broadcast", json.dumps(last))
        for client, expected in ((ann, [task, note]), (again, [task, note]), (bob, [task, event])):
            got = client.until_event(last["event_id"])
            events = [frame for frame in got if frame["type"] not in ("ack", "ping")]
            assert all(event.pop("log_position").startswith("pos-") for event in events)
            assert events == [*expected, last], "as they were published, in order, once"


def test_a_client_resumes_on_another_node(server, nodes):
    first, second = nodes
    publisher = redis.Redis.from_url(server.url)
    with first.client("carl") as client:
        name, mark = client.id, client.ack["event_id"]
    missed = [message("note", {"n": n}) for n in range(3)]
    for each in missed:
        publisher.publish("ws:user:carl", json.dumps(each))
    with second.client("carl", connection_id=name, last_event_id=mark) as client:
        assert client.id == name
        assert client.ids_until(missed[-1]["event_id"]) == [each["event_id"] for each in missed]


def test_an_asynchronous_redis_publisher_works(server, nodes):
    async def publish(events):
        client = redis.asyncio.from_url(server.url)
        for event in events:
            await client.publish("ws:broadcast", json.dumps(event))
        await client.aclose()

    events = [message("note", {"n": n}) for n in range(200)]
    with nodes[0].client("dora") as client:
        asyncio.run(publish(events))
        assert client.ids_until(events[-1]["event_id"]) == [event["event_id"] for event in events]


# attack: malformed messages on the Redis channels => ignored; delivery continues
def test_malformed_messages_are_ignored(server, nodes):
    publisher = redis.Redis.from_url(server.url)
    with nodes[0].client("eve") as client:
        for text in ("", "{", "[]", "7", '{"type":"ping"}', '{"data":{}}', b"\xff\xfe", '{"type":7}'):
            publisher.publish("ws:broadcast", text)
        good = message("note", {})
        publisher.publish("ws:broadcast", json.dumps(good))
        assert client.ids_until(good["event_id"]) == [good["event_id"]]
    assert nodes[0].get("/ws/health").json()["status"] == "healthy"


def test_the_reason_of_a_rejected_message_is_stored_for_its_publisher(server, nodes):
    store = redis.Redis.from_url(server.url, decode_responses=True)
    bad = {"type": "$sys", "event_id": "rejected-1"}
    store.publish("ws:broadcast", json.dumps(bad))
    reason = json.loads(until(lambda: store.get("ws:refused:rejected-1"), "the reason"))
    assert reason["code"] == "invalid" and "reserved" in reason["message"]
    assert 0 < store.ttl("ws:refused:rejected-1") <= 60
    store.publish("ws:user:", json.dumps({"type": "note", "event_id": "rejected-2"}))
    assert "channel" in json.loads(until(lambda: store.get("ws:refused:rejected-2"), "the reason"))["message"]


# attack: a publisher on a channel sends messages with missing, huge or non-text IDs => no keys are created for them
def test_a_rejected_message_without_an_id_creates_no_key(server, nodes):
    store = redis.Redis.from_url(server.url, decode_responses=True)
    for event_id in ("", "x" * 129, 7, None, ["a"]):
        store.publish("ws:broadcast", json.dumps({"type": "$sys", "event_id": event_id}))
    store.publish("ws:broadcast", json.dumps({"type": "$sys", "event_id": "rejected-last"}))
    until(lambda: store.get("ws:refused:rejected-last"), "the reason for the last one")
    assert set(store.keys("ws:refused:*")) <= {f"ws:refused:rejected-{name}" for name in ("1", "2", "last")}


def test_both_nodes_list_the_connections_of_a_user(server, nodes):
    first, second = nodes
    store = redis.Redis.from_url(server.url, decode_responses=True)
    with first.client("fay") as here, second.client("fay") as there:
        ids = {here.id, there.id}
        until(lambda: store.smembers("ws:user:fay:connections") == ids, "both connections to be listed")
        stored = store.hgetall(f"ws:connection:{here.id}")
        assert stored["user_id"] == "fay" and 3_500 < store.ttl(f"ws:connection:{here.id}") <= 3_600
        total = lambda hub: hub.get("/ws/health").json()["connections"]["total"]  # noqa: E731
        until(lambda: total(first) >= 2 and total(second) >= 2, "each node to count both connections")
        listed = second.get("/users/fay/connections", bearer=ADMIN).json()["connections"]
        assert {each["connection_id"] for each in listed} == ids
        response = first.request("POST", "/users/fay/disconnect", bearer=ADMIN).json()
        assert response == {"disconnected": 2}
        assert here.closed()[0] == there.closed()[0] == 4003
    until(lambda: not store.exists("ws:user:fay:connections"), "the list to be removed")


def test_a_newer_socket_on_another_node_closes_the_older_one(nodes):
    first, second = nodes
    with first.client("gus") as old:
        with second.client("gus", connection_id=old.id) as new:
            assert new.id == old.id
            # 1012 if the two connected within the accuracy of the nodes' estimates of Redis' clock.
            assert old.closed()[0] in (4001, 1012)
            second.publish("for-gus", {"connection": new.id})
            assert new.until_event("for-gus")


def test_the_clients_of_all_shards_are_listed_again_after_a_reconnect_to_redis(server, tmp_path):
    hub = Hub(tmp_path, REDIS_URL=server.url, FANFARE_SHARDS="3", FANFARE_CONNECTS_PER_SECOND_PER_ADDRESS="0")
    log = redis.Redis.from_url(server.url)
    try:
        with ExitStack() as clients:
            names = {clients.enter_context(hub.client("many")).id for _ in range(12)}

            def all_listed():
                return {name.decode() for name in log.smembers("ws:user:many:connections")} == names

            until(all_listed, "the list of all clients")
            log.delete("ws:user:many:connections")
            log.client_kill_filter(_type="normal", skipme=True)
            until(all_listed, "the list to be restored", deadline=60)
    finally:
        hub.kill()


def test_nodes_whose_clock_differs_from_that_of_redis_answer_why(server, tmp_path):
    with late_clock(server.port, 3_600) as port, ExitStack() as nodes:
        settings = {"REDIS_URL": f"redis://127.0.0.1:{port}/0", "FANFARE_REDIS_NAMESPACE": "late"}
        hubs = [Hub(tmp_path, **settings) for _ in range(2)]
        for hub in hubs:
            nodes.callback(hub.kill)
        with hubs[0].client("ann"), hubs[1].client("ann"):
            hubs[0].publish("asked-about")

            def written():
                response = hubs[1].get("/events/asked-about", bearer=ADMIN)
                assert response.status in (200, 404), response.text
                if response.status == 404:
                    return None
                journey = response.json()
                return journey if [node["written"] for node in journey["nodes"]] == [1, 1] else None

            assert until(written, "both nodes to answer")["silent_nodes"] == 0
