"""Each limit rejects with its own code and reason, is counted, and does not affect other clients."""

import re
import socket
from contextlib import suppress

import pytest
from hub import DEADLINE, Client, token, until
from websockets.exceptions import ConnectionClosed, InvalidStatus


def counter(hub, name: str) -> int:
    answer = hub.get("/metrics", bearer=token("operator", admin=True))
    assert answer.status == 200, answer.text
    found = re.search(rf"^{re.escape(name)} (\d+)$", answer.text, re.MULTILINE)
    assert found, f"{name} is not in:\n{answer.text}"
    return int(found[1])


def refused(hub, sub: str) -> tuple[int, str]:
    with Client(hub.url(token=token(sub))) as client:
        return client.closed()


# attack: more connections than a limit => closed with 1013; a client that reconnects keeps its place
@pytest.mark.parametrize(
    ("setting", "value", "first", "second", "spare"),
    [
        ("max_connections", 2, "ann", "bob", None),
        ("max_connections_per_address", 2, "ann", "bob", None),
        ("max_connections_per_user", 2, "ann", "ann", "bob"),
    ],
)
def test_connections_are_limited(hub_with, setting, value, first, second, spare):
    hub = hub_with(**{setting: value})
    with hub.client(first) as kept:
        with hub.client(first):
            code, reason = refused(hub, second)
            assert code == 1013
            assert reason.split(":")[0] == setting
            assert counter(hub, f'fanfare_refusals_total{{limit="{setting}"}}') == 1
            if spare:
                with hub.client(spare):
                    pass
            with hub.client(first, connection_id=kept.id) as taken:
                assert taken.id == kept.id, "a client that reconnects takes over its connection"
                assert kept.closed()[0] == 4001
                hub.publish("undisturbed")
                assert taken.ids_until("undisturbed") == ["undisturbed"]


def test_connects_a_second_are_limited(hub_with):
    hub = hub_with(connects_per_second_per_address=2)
    answers = []
    for _ in range(16):
        try:
            with Client(hub.url(token=token())) as client:
                try:
                    assert client.next()["type"] == "ack"
                    answers.append("in")
                except ConnectionClosed:
                    code, reason = client.closed()
                    assert (code, reason.split(":")[0]) == (1013, "connects_per_second_per_address")
                    answers.append("out")
        except InvalidStatus as error:
            assert (error.response.status_code, error.response.headers["retry-after"]) == (429, "1")
            answers.append("not upgraded")
    assert answers[:4] == ["in"] * 4, "a burst of twice the rate is accepted"
    assert "out" in answers and "not upgraded" in answers, answers


# attack: a message over max_message_bytes or max_frame_bytes => closed with 1009; other clients are not affected
@pytest.mark.parametrize("max_message_bytes", [1000, 5000])
def test_a_message_that_is_too_large_closes_the_connection(hub_with, max_message_bytes):
    hub = hub_with(max_frame_bytes=1000, max_message_bytes=max_message_bytes)
    with hub.client() as bystander, hub.client() as client:
        client.send({"type": "ping", "padding": "x" * 800})
        assert client.next()["type"] == "pong"
        client.send({"type": "ping", "padding": "x" * 1000})
        code, _ = client.closed()
        assert code == 1009
        hub.publish("undisturbed")
        assert bystander.ids_until("undisturbed") == ["undisturbed"]


# attack: one large message in many fragments => counted together, closed with 1009
def test_fragments_count_together(hub_with):
    hub = hub_with(max_frame_bytes=1000, max_message_bytes=1000)
    with hub.client() as client:
        with suppress(ConnectionClosed):  # The hub may close after the second fragment.
            client.socket.send(["x" * 400] * 3)
        assert client.closed()[0] == 1009


# attack: more messages than max_messages_per_second => closed with 4002; other clients are not affected
def test_too_many_messages_close_the_connection(hub_with):
    hub = hub_with(max_messages_per_second=5)
    with hub.client() as bystander, hub.client() as client:
        for _ in range(10):
            client.send({"type": "ping"})
            assert client.next()["type"] == "pong"
        with suppress(ConnectionClosed):  # The hub may close before all are sent.
            for _ in range(50):
                client.send({"type": "ping"})
        code, reason = client.closed()
        assert (code, reason.split(":")[0]) == (4002, "max_messages_per_second")
        hub.publish("undisturbed")
        assert bystander.ids_until("undisturbed") == ["undisturbed"]


def test_a_binary_message_closes_the_connection(hub):
    with hub.client() as client:
        client.send(b"\x00\x01")
        assert client.closed()[0] == 1003


# attack: more topics than max_topics_per_connection => error too_many_topics
def test_topics_of_a_connection_are_limited(hub_with):
    hub = hub_with(max_topics_per_connection=2)
    with hub.client(claims={"topics": ["*"]}, topics="a,b,c") as client:
        error = client.next()
        assert (error["type"], error["error"]) == ("error", "too_many_topics")
        assert '"c"' in error["details"]["message"]
        client.send({"type": "subscribe", "topic": "d"})
        assert client.next()["error"] == "too_many_topics"
        client.send({"type": "unsubscribe", "topic": "a"})
        assert client.next()["type"] == "ack"
        client.send({"type": "subscribe", "topic": "d"})
        assert client.next()["topic"] == "d"


# attack: an event over max_event_bytes => 413
def test_an_event_that_is_too_large_is_rejected(hub_with):
    hub = hub_with(max_event_bytes=1000)
    answer = hub.post("/events", {"type": "note", "audience": "everyone", "data": {"x": "y" * 1000}})
    assert answer.status == 413
    assert "max_event_bytes" in answer.json()["detail"]


# attack: a request head that never ends => closed after handshake_timeout and counted
def test_a_request_that_never_ends_is_closed_and_counted(hub_with):
    hub = hub_with(handshake_timeout="1s")
    with socket.create_connection(hub.address.split(":"), timeout=DEADLINE) as stream:
        stream.sendall(b"GET /ws HTTP/1.1\r\nHost: hub\r\n")
        while stream.recv(1000):
            pass
    name = 'fanfare_refusals_total{limit="handshake_timeout"}'
    until(lambda: counter(hub, name) == 1, "the request to be counted")
    hub.publish("undisturbed")


def test_input_that_is_not_http_is_answered_and_counted(hub_with):
    hub = hub_with()
    with socket.create_connection(hub.address.split(":"), timeout=DEADLINE) as stream:
        stream.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert stream.recv(1000).startswith(b"HTTP/1.1 400 ")
    until(lambda: counter(hub, 'fanfare_bad_input_total{kind="request"}') == 1, "the input to be counted")
    hub.publish("undisturbed")
