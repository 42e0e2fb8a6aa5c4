"""The messages of an open connection."""

import json
import time

import pytest
from hub import DEADLINE, token


def test_a_ping_is_answered(hub):
    with hub.client() as client:
        client.send({"type": "ping", "event_id": "p1", "timestamp": "2026-01-01T00:00:00Z"})
        pong = client.next()
        assert list(pong) == ["type", "event_id", "timestamp"]
        assert pong["type"] == "pong"
        assert pong["event_id"].startswith("pos-")


def test_a_ping_of_the_websocket_protocol_is_answered_too(hub):
    with hub.client() as client:
        assert client.socket.ping("payload").wait(DEADLINE)


def test_the_hub_pings_and_accepts_any_frame_as_an_answer(hub_with):
    hub = hub_with(heartbeat_interval="1s", heartbeat_timeout="4s")
    with hub.client() as client:
        assert client.ack["heartbeat"] == 1
        connected = time.monotonic()
        answers = ['{"type":"pong"}', '{"type":"nonsense"}', '{"type":"ack","ack_event_id":"x"}', '{"type":"pong"}'] * 2
        for answer in answers:
            ping = client.next_of("ping")
            assert list(ping) == ["type", "event_id", "timestamp"]
            client.send(answer)
        assert client.next_of("ping")["type"] == "ping"
        assert time.monotonic() - connected > 4, "the connection is older than the timeout"


def test_a_silent_client_is_closed(hub_with):
    hub = hub_with(heartbeat_interval="1s", heartbeat_timeout="2s")
    with hub.client() as client:
        connected = time.monotonic()
        code, reason = client.closed()
        assert (code, reason.split(":")[0]) == (4000, "silent for 2 s")
        assert time.monotonic() - connected > 1.5, "not before the timeout"


BAD = {
    '{"type":"publish"}': "unknown_type",
    '{"type":"task_status_update","data":{}}': "unknown_type",
    "": "malformed",
    "hello": "malformed",
    "[]": "malformed",
    "null": "malformed",
    '{"type":7}': "malformed",
    "{}": "malformed",
    '{"type":"ping"': "malformed",
    '{"type":"ping","type":"pong"}': "malformed",
    "[" * 20_000: "malformed",
    '{"type":"ping","x":' + "[" * 20_000 + "]" * 20_000 + "}": "malformed",
    '{"type":"subscribe"}': "missing_field",
    '{"type":"unsubscribe"}': "missing_field",
    '{"type":"auth"}': "missing_field",
    '{"type":"subscribe","topic":"project:*"}': "invalid_topic",
    '{"type":"subscribe","topic":""}': "invalid_topic",
    '{"type":"subscribe","topic":"other"}': "forbidden",
    '{"type":"auth","token":"rubbish"}': "token_invalid",
}


@pytest.mark.parametrize("message", BAD, ids=lambda message: f"{message[:30]}({len(message)})")
def test_an_invalid_message_receives_an_error_and_has_no_effect(hub, message):
    with hub.client(claims={"topics": ["project:*"]}) as client:
        client.send(message)
        error = client.next()
        named = ["ack_event_id"] if error["error"] != "malformed" else []
        about = ["topic"] if '"topic":' in message else []
        assert list(error) == ["type", "event_id", "timestamp", "error", "details", *named, *about]
        assert (error["type"], error["error"]) == ("error", BAD[message])
        assert not named or error["ack_event_id"] == json.loads(message)["type"]
        assert not about or error["topic"] == json.loads(message)["topic"]
        assert len(error["details"]["message"]) > 10
        client.send({"type": "ping"})
        assert client.next()["type"] == "pong", "the connection stays open"


def test_topics_are_subscribed_by_query_and_by_message(hub):
    claims = {"topics": ["project:*", "news"]}
    with hub.client(claims=claims, topics="project:1,news,forbidden") as client:
        refused = client.next()
        assert (refused["type"], refused["error"]) == ("error", "forbidden")
        assert "forbidden" in refused["details"]["message"]
        assert (refused["ack_event_id"], refused["topic"]) == ("initial_connect", "forbidden")

        client.send({"type": "subscribe", "topic": "project:2", "event_id": "s1"})
        ack = client.next()
        assert (ack["type"], ack["topic"], ack["ack_event_id"]) == ("ack", "project:2", "s1")
        client.send({"type": "unsubscribe", "topic": "news", "event_id": "u1"})
        ack = client.next()
        assert (ack["type"], ack["topic"], ack["ack_event_id"]) == ("ack", "news", "u1")

        for topic in ["project:1", "project:2", "project:3", "news", "forbidden"]:
            hub.publish(f"topics-{topic}", {"topic": topic})
        hub.publish("topics-end")
        assert client.ids_until("topics-end") == ["topics-project:1", "topics-project:2", "topics-end"]


def test_a_newer_token_changes_the_permissions(hub):
    with hub.client("ann") as client:
        client.send({"type": "auth", "token": token("ann", topics=["project:*"]), "event_id": "a1"})
        assert client.next()["ack_event_id"] == "a1"
        client.send({"type": "subscribe", "topic": "project:1"})
        assert client.next()["topic"] == "project:1"
        client.send({"type": "auth", "token": token("bob")})
        assert client.next()["error"] == "wrong_user"
        client.send({"type": "auth", "token": token("ann", exp=int(time.time()) - 3600)})
        assert client.next()["error"] == "token_expired"


def test_an_event_reaches_exactly_its_audience(hub):
    with hub.client("ann") as ann, hub.client("ann") as again, hub.client("bob") as bob:
        hub.publish("audience-user", {"user": "ann"})
        hub.publish("audience-connection", {"connection": ann.id})
        hub.publish("audience-nobody", {"user": "nobody"})
        hub.publish("audience-everyone")
        expectations = [(ann, ["user", "connection", "everyone"]), (again, ["user", "everyone"]), (bob, ["everyone"])]
        for client, expected in expectations:
            assert client.ids_until("audience-everyone") == [f"audience-{name}" for name in expected]


def test_an_event_is_delivered_unchanged(hub):
    body = (
        '{"z":[1.0, 2e5],"type":"note","event_id":"exact-é","timestamp":"2026-01-01T00:00:00Z",'
        '"data":{"b": 12345678901234567890, "a": null},"a":true}'
    )
    with hub.client() as client:
        addressed = body[:-1] + ',"audience":"everyone"}'
        published = hub.post("/events", addressed.encode())
        assert published.status == 201
        assert client.socket.recv(10) == f'{body[:-1]},"log_position":"{published.json()["position"]}"}}'
