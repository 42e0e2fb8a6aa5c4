"""The HTTP API: publishing, and the endpoints of the FastAPI hub."""

import re
import socket
from contextlib import closing

import pytest
from hub import token, until

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


def test_an_event_id_is_accepted_once(hub):
    with hub.client() as client:
        first = hub.post("/events", {"type": "note", "event_id": "once", "audience": "everyone", "data": {"n": 1}})
        again = hub.post("/events", {"type": "note", "event_id": "once", "audience": "everyone", "data": {"n": 2}})
        assert (first.status, again.status) == (201, 200)
        assert first.json() == {"event_id": "once", "position": first.json()["position"], "duplicate": False}
        assert again.json() == {**first.json(), "duplicate": True}
        hub.publish("once-end")
        assert client.ids_until("once-end") == ["once", "once-end"]


def test_a_batch_keeps_its_order_and_is_all_or_nothing(hub):
    with hub.client() as client:
        events = [{"type": "note", "event_id": f"batch-{n}", "audience": "everyone"} for n in range(100)]
        answer = hub.post("/events/batch", {"events": events})
        assert answer.status == 200
        assert [result["event_id"] for result in answer.json()["results"]] == [event["event_id"] for event in events]
        good, invalid = {"type": "note", "event_id": "batch-bad"}, {"type": "ping"}
        events = [{**event, "audience": "everyone"} for event in (good, invalid)]
        bad = hub.post("/events/batch", {"events": events})
        assert (bad.status, bad.json()["index"]) == (422, 1)
        hub.publish("batch-end")
        assert client.ids_until("batch-end") == [f"batch-{n}" for n in range(100)] + ["batch-end"]


REFERENCE = [
    ("/tasks/t1/update?status=running&progress=50", None, {"status": "updated"},
     "task_status_update", {"task_id": "t1", "status": "running", "progress": 50}),
    ("/tasks/t1/update", {"status": "completed", "progress": 100}, {"status": "updated"},
     "task_status_update", {"task_id": "t1", "status": "completed", "progress": 100}),
    ("/tasks/t1/broadcast-update", {"status": "failed"}, {"message": "Task update broadcasted", "task_id": "t1"},
     "task_status_update", {"task_id": "t1", "status": "failed"}),
    ("/users/alice/notify", {"message": "hi"}, {"status": "sent"}, "agent_activity_update", {"message": "hi"}),
    ("/users/alice/send-notification", {"title": "T"}, {"message": "Notification sent", "user_id": "alice"},
     "agent_activity_update", {"title": "T"}),
    ("/calendar/events/create", {"event_id": "c1", "title": "T"},
     {"message": "Calendar event created", "event_id": "c1"},
     "calendar_event_created", {"event_id": "c1", "title": "T"}),
    ("/agents/a1/activity", {"action": "think"}, {"status": "sent"},
     "agent_activity_update", {"agent_id": "a1", "action": "think"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "answer", "kind", "data"), REFERENCE, ids=lambda value: str(value)[:40])
def test_the_endpoints_of_the_fastapi_hub(hub, path, body, answer, kind, data):
    with hub.client("alice") as client:
        answered = hub.post(path, body)
        assert (answered.status, answered.json()) == (200, answer)
        event = client.next()
        assert (event["type"], event["data"]) == (kind, data)
        assert TIMESTAMP.fullmatch(event["timestamp"])
        assert event["event_id"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/tasks/t1/update", None, "status"),
        ("/events", {"type": "ping", "audience": "everyone"}, "ping"),
        ("/events", {"type": "$sys", "audience": "everyone"}, "$"),
        ("/events", {"data": {}, "audience": "everyone"}, "type"),
        ("/events", {"type": "note", "audience": None}, "audience"),
        ("/events", {"type": "note"}, '"audience": "everyone"'),
        ("/events", {"type": "note", "audience": "everyone", "user": "bob"}, '"audience": {"user": "bob"}'),
    ],
)
def test_a_rejection_of_an_event_names_the_field(hub, path, body, says):
    answer = hub.post(path, body)
    assert answer.status == 422, answer.text
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/tasks/t1/update?status=running&progress=101", None, "progress"),
        ("/tasks/t1/update", {"status": "running", "progress": -1}, "progress"),
        ("/tasks/t1/update", {"status": "dancing"}, "status"),
        ("/events", {"type": "task_status_update", "audience": "everyone", "data": {"task_id": 7}}, "task_id"),
        ("/events", {"type": "note", "audience": "everyone", "data": 7}, "data"),
    ],
)
def test_validate_events_is_strict_about_known_fields(hub, hub_with, path, body, says):
    assert hub.post(path, body).status in (200, 201)
    answer = hub_with(validate_events="true").post(path, body)
    assert answer.status == 422, answer.text
    assert says in answer.json()["detail"]


def test_publishing_needs_a_token_that_allows_it(hub):
    cases = [(None, 401, "token_missing"), (token("alice"), 403, "forbidden"), ("x", 401, "token_invalid")]
    for bearer, status, code in cases:
        answer = hub.request("POST", "/events", {"type": "note"}, bearer=bearer)
        assert (answer.status, answer.json()["code"]) == (status, code)


def test_wrong_paths_and_methods(hub):
    assert hub.get("/nothing/here").status == 404
    answer = hub.request("PUT", "/events", {"type": "note"}, bearer=token("p", publish=True))
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


def test_health_has_the_fields_of_the_fastapi_hub(hub):
    with hub.client(), hub.client():
        read = lambda: hub.get("/ws/health").json()  # noqa: E731
        health = until(lambda: (h := read())["connections"]["local"] == 2 and h, "two connections")
        assert list(health)[:4] == ["status", "timestamp", "connections", "redis"]
        assert health["status"] == "healthy"
        assert TIMESTAMP.fullmatch(health["timestamp"])
        assert health["connections"] == {"total": 2, "local": 2, "alive": 2, "dead": 0}
        assert health["redis"] == {"connected": False, "pubsub_connected": False}
        assert health["broker"] == "memory"
    until(lambda: hub.get("/ws/health").json()["connections"]["total"] == 0, "all connections to close")


def test_a_client_that_has_not_answered_a_ping_counts_as_dead(hub_with):
    hub = hub_with(heartbeat_interval="1s", heartbeat_timeout="30s")
    with hub.client() as client:
        until(lambda: hub.get("/ws/health").json()["connections"]["dead"] == 1, "the client to count as dead")
        client.send({"type": "pong"})
        until(lambda: hub.get("/ws/health").json()["connections"]["alive"] == 1, "the client to count as alive again")


def test_probes_documentation_and_page_are_served(hub):
    assert hub.get("/health/live").json() == {"status": "live"}
    assert hub.get("/health/ready").json() == {"status": "ready"}
    paths = hub.get("/openapi.json").json()["paths"]
    for path in ["/events", "/events/batch", "/tasks/{task_id}/update", "/users/{user_id}/notify", "/ws/health"]:
        assert path in paths
    page = hub.get("/")
    assert page.status == 200 and page.headers["Content-Type"].startswith("text/html")
    for address in re.findall(r"""(?:src|href)=["']([^"']+)""", page.text):
        assert not re.match(r"(https?:)?//", address), f"the page loads from another host: {address}"


def test_an_incomplete_request_does_not_affect_other_clients(hub):
    host, port = hub.address.split(":")
    with closing(socket.create_connection((host, int(port)))) as half:
        half.sendall(b"GET /ws HTTP/1.1\r\nHost: x\r\n")
        with hub.client() as client:
            hub.publish("half-open")
            assert client.ids_until("half-open") == ["half-open"]
